"""What rank 0 of the bundled train.py writes: the run's folder, its files after each epoch, and the closing lines"""
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch.nn as nn
import yaml

from seresnet_timm import device as devices
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.checkpoints.save_errors import SaveErrors
from seresnet_timm.engine.bad_steps import is_bad_epoch
from seresnet_timm.engine.epoch import Outputs, Training
from seresnet_timm.engine.events import EpochEvents
from seresnet_timm.errors import printable
from seresnet_timm.files import as_json, atomic_path
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs import summary
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings

_logger = logging.getLogger('train')


def create_outputs(
        settings: RunSettings,
        run: Training,
        model: nn.Module,
        info: ModelInfo,
        checkpoint: Optional[Checkpoint],
        start_epoch: int,
) -> Outputs:
    """Create the run's folder, or continue the one that holds the checkpoint to resume from."""
    args = run.args
    folder = RunFolder(settings.output)
    saver = AtomicCheckpointSaver(
        model=model,
        optimizer=run.optimizer,
        args=args,
        amp_scaler=run.loss_scaler,
        checkpoint_dir=str(folder.path),
        recovery_dir=str(folder.path),
        decreasing=run.eval_metric == 'loss',
        max_history=args.checkpoint_hist,
        task=run.task,
    )
    saver.model_info, saver.errors, saver.in_background = info.to_dict(), SaveErrors(), True
    continues = checkpoint is not None and folder.owns(checkpoint.path)
    if continues:
        if checkpoint.content.get('saver'):
            saver.load_state_dict(checkpoint.content['saver'], from_last=folder.is_last(checkpoint.path))
        else:
            _logger.warning(f'{printable(checkpoint.path)} holds no ranking of checkpoints: it starts again.')
    record = create_record(settings, folder.path, saver.model_info)
    record.continue_from(start_epoch if continues else 0, is_same_run=continues)
    note_failed_saves(saver, record)
    summary.trim(folder.summary, start_epoch if continues else 0)
    with atomic_path(folder.args) as tmp, open(tmp, 'w') as f:
        yaml.safe_dump(settings.args, f, default_flow_style=False)
    _logger.info(f'Output: {printable(folder.path)}')
    if args.log_wandb:
        start_wandb(args, folder.path.name)
    events = EpochEvents(folder, start_epoch if continues else 0) if settings.tensorboard else None
    return Outputs(folder, saver, record, events=events)


def create_record(settings: RunSettings, folder: Union[str, Path], model_info: Optional[Dict[str, Any]]) -> RunRecord:
    """run.json of a run, with the name of its device.

    Args:
        settings: Settings of the run.
        folder: Where it is written.
        model_info: ModelInfo of the network, as a dictionary.
    """
    return RunRecord(settings, folder, model_info, devices.device_name(settings.device.partition(':')[0]))


def note_failed_saves(saver: AtomicCheckpointSaver, record: RunRecord) -> None:
    """Let a saver note in run.json what it could not save; an epoch that is not saved is not the best one."""
    def note(epoch: int, reason: str, when: float) -> None:
        record.add_fault('save', epoch, reason, when)
        best = record.content['best']
        if best and best['epoch'] == epoch and saver.best_epoch != epoch:
            record.set_best(best['metric'], saver.best_metric, saver.best_epoch)
    saver.on_failure = note


def start_wandb(args, name: str) -> None:
    """Begin a run of Weights & Biases, as timm's train.py does."""
    import wandb
    wandb.init(
        project=args.wandb_project,
        name=name,
        config=vars(args),
        tags=args.wandb_tags,
        resume='must' if args.wandb_resume_id else None,
        id=args.wandb_resume_id or None,
    )


def save_epoch(
        run: Training,
        epoch: int,
        state: Dict[str, Any],
        train_metrics: Dict[str, float],
        eval_metrics: Optional[Dict[str, float]],
) -> None:
    """Write a row of summary.csv and a checkpoint, with its run state."""
    outputs = run.outputs
    outputs.summary.add(
        filename=str(outputs.folder.summary),
        epoch=epoch,
        train_metrics=train_metrics,
        eval_metrics=eval_metrics,
        lr=run.lr,
        log_wandb=run.args.log_wandb,
    )
    outputs.saver.run_state = state
    metric = (eval_metrics or train_metrics)[run.eval_metric]
    best_metric, best_epoch = outputs.saver.save_checkpoint(
        epoch, metric=None if is_bad_epoch(train_metrics, eval_metrics) else metric)
    if best_metric is not None:
        outputs.record.set_best(run.eval_metric, best_metric, best_epoch)


def print_results(run: Training, results: List[Dict[str, Any]]) -> None:
    """Print the ten best epochs as timm's train.py does."""
    saver = run.outputs.saver
    if saver.best_metric is not None:
        _logger.info(f'*** Best metric: {saver.best_metric} (epoch {saver.best_epoch})')
    results.sort(key=lambda r: r.get('validation', r['train']).get(run.eval_metric, 0),
                 reverse=run.eval_metric == 'loss')
    print(f'--result\n{as_json(results[-10:], indent=4)}')
