"""What rank 0 writes: the run's folder, its files after each epoch, and the closing lines"""
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Union

import torch.nn as nn
import yaml

from seresnet_timm import device as devices
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.checkpoints.save_errors import SaveErrors
from seresnet_timm.engine.bad_steps import is_bad_epoch
from seresnet_timm.engine.events import EpochEvents
from seresnet_timm.engine.faults import Fault, add
from seresnet_timm.errors import RunError, print_closing, printable
from seresnet_timm.files import as_json, atomic_path
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.folder import RunFolder, resume_hint
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.runs.summary import Summary, trim
from seresnet_timm.runs.summary import read as read_summary

_logger = logging.getLogger('train')


@dataclass
class Outputs:
    """What rank 0 writes.

    Attributes:
        folder: Folder of the run.
        saver: Saves checkpoints.
        record: Writes run.json.
        summary: Writes summary.csv.
        events: Writes the event files of TensorBoard; None without them.
    """
    folder: RunFolder
    saver: AtomicCheckpointSaver
    record: RunRecord
    summary: Summary = field(default_factory=Summary)
    events: Optional[EpochEvents] = None

    def finish(self) -> None:
        """Complete the files of a run that has ended."""
        self.record.finish()
        if self.events is not None:
            self.events.close()

    def refuse_unsaved(self) -> None:
        """End a training that is finished with an error if something of its last epoch could not be saved."""
        errors = list(filter(None, (self.saver.errors.last, self.summary.error, self.record.error)))
        if errors:
            raise RunError(f'The training has ended, but not everything was saved: {" ".join(errors)} Remove the cause.'
                           f'{resume_hint(self.record.settings)}')


def open_outputs(
        settings: RunSettings,
        saver: AtomicCheckpointSaver,
        info: ModelInfo,
        checkpoint: Optional[Checkpoint],
        start_epoch: int,
) -> Outputs:
    """Begin the files of a run, or continue those of the run that the checkpoint to resume from belongs to.

    Args:
        settings: Settings of the run.
        saver: A new saver; the run's folder is the one that it saves into.
        info: What travels with the weights.
        checkpoint: The checkpoint to resume from, if any.
        start_epoch: Epoch at which the run starts.
    """
    folder = RunFolder(saver.checkpoint_dir)
    saver.model_info, saver.errors, saver.in_background = info.to_dict(), SaveErrors(), True
    continues = checkpoint is not None and folder.owns(checkpoint.path)
    start_epoch = start_epoch if continues else 0
    if continues:
        if checkpoint.content.get('saver'):
            saver.load_state_dict(checkpoint.content['saver'], from_last=folder.is_last(checkpoint.path))
        else:
            _logger.warning(f'{printable(checkpoint.path)} holds no ranking of checkpoints: it starts again.')
    record = create_record(settings, folder.path, saver.model_info)
    history = checkpoint.run_state.get('history') if continues else None
    record.continue_from(start_epoch, is_same_run=continues, history=history and history['record'])
    if continues and saver.best_metric is not None:  # the run may have been killed before it noted its best epoch
        metric = settings.args.get('eval_metric') if settings.args.get('val_split') else 'loss'
        record.set_best(metric or 'top1', saver.best_metric, saver.best_epoch)
    note_failed_saves(saver, record)
    trim(folder.summary, start_epoch, history and history['summary'])
    saver.history = lambda: dict(record=record.history(), summary=read_summary(folder.summary))
    events = EpochEvents(folder, start_epoch) if settings.tensorboard else None
    return Outputs(folder, saver, record, events=events)


def create_outputs(
        settings: RunSettings,
        run: Any,
        model: nn.Module,
        info: ModelInfo,
        checkpoint: Optional[Checkpoint],
        start_epoch: int,
) -> Outputs:
    """The outputs of the bundled train.py, which also writes args.yaml and begins a run of Weights & Biases.

    Args:
        settings: Settings of the run.
        run: The `Training`.
        model: Its model, not compiled and not distributed.
        info: What travels with its weights.
        checkpoint: The checkpoint to resume from, if any.
        start_epoch: Epoch at which the run starts.
    """
    args, folder = run.args, str(RunFolder(settings.output).path)
    saver = AtomicCheckpointSaver(
        model=model,
        optimizer=run.optimizer,
        args=args,
        amp_scaler=run.loss_scaler,
        checkpoint_dir=folder,
        recovery_dir=folder,
        decreasing=run.eval_metric == 'loss',
        max_history=args.checkpoint_hist,
        task=run.task,
    )
    outputs = open_outputs(settings, saver, info, checkpoint, start_epoch)
    with atomic_path(outputs.folder.args) as tmp, open(tmp, 'w') as f:
        yaml.safe_dump(settings.args, f, default_flow_style=False)
    _logger.info(f'Output: {printable(outputs.folder.path)}')
    if args.log_wandb:
        start_wandb(args, outputs.folder.path.name)
    return outputs


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


def record_evaluation(
        settings: RunSettings,
        info: Dict[str, Any],
        figures: Dict[str, Any],
        faults: Iterable[Fault],
) -> None:
    """Write run.json of an evaluation into the folder of its settings.

    Args:
        settings: Settings of the evaluation.
        info: ModelInfo of the network, as a dictionary.
        figures: What was measured, see `RunRecord.set_evaluation`.
        faults: Of its data, which did not end it.
    """
    record = create_record(settings, settings.output, info)
    record.set_evaluation(figures)
    add(record, None, faults)
    record.finish()


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
        run: Any,
        epoch: int,
        state: Dict[str, Any],
        train_metrics: Dict[str, float],
        eval_metrics: Optional[Dict[str, float]],
        figures: Dict[str, Any],
) -> None:
    """Write a row of summary.csv, an entry of run.json and a checkpoint with its run state, which holds both too."""
    outputs = run.outputs
    outputs.summary.add(
        filename=str(outputs.folder.summary),
        epoch=epoch,
        train_metrics=train_metrics,
        eval_metrics=eval_metrics,
        lr=run.lr,
        log_wandb=run.args.log_wandb,
    )
    outputs.record.add_epoch(figures)
    outputs.saver.run_state = state
    metric = (eval_metrics or train_metrics)[run.eval_metric]
    best_metric, best_epoch = outputs.saver.save_checkpoint(
        epoch, metric=None if is_bad_epoch(train_metrics, eval_metrics) else metric)
    if best_metric is not None:
        outputs.record.set_best(run.eval_metric, best_metric, best_epoch)


def print_results(run: Any, results: List[Dict[str, Any]]) -> None:
    """Print the ten best epochs as timm's train.py does."""
    saver = run.outputs.saver
    if saver.best_metric is not None:
        _logger.info(f'*** Best metric: {saver.best_metric} (epoch {saver.best_epoch})')
    results.sort(key=lambda r: r.get('validation', r['train']).get(run.eval_metric, 0),
                 reverse=run.eval_metric == 'loss')
    print_closing(f'--result\n{as_json(results[-10:], indent=4)}')
