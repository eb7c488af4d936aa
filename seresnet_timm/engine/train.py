"""Train an image classifier: the package's own train.py, for where timm's is not at hand

Same flags, log lines and outputs as timm's train.py (`args.yaml`, `summary.csv`, `checkpoint-N.pth.tar`,
`last.pth.tar`, `model_best.pth.tar`), plus `run.json`. What it does differently:
  * losses stay on the device until a log line needs them: the host does not wait for the device every step
  * evaluation counts every image once on any number of processes
  * DDP works on the CPU; the shuffle of several processes follows --seed
  * of a JPEG only what its crop needs is decoded; augmentation depends on seed, epoch and index alone, see `data/`
  * a run goes on where it was saved, also in the middle of an epoch, with the random state it had; into its own folder
    it keeps its best metric, its history and one CSV header; a signal stops it after a step that is saved
  * a step whose loss or gradients are not finite is skipped; too many in a row end the run

`main` is the training, stage by stage; each stage is a function below it or of `model`, `run_state`, `outputs`.
`epoch` trains, `evaluate` evaluates.
"""
import copy
import logging
import time
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from timm import utils
from timm.data import resolve_data_config
from timm.optim import optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_once
from seresnet_timm.data import loaders
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.data.image_files import Unreadable
from seresnet_timm.data.loading import set_epoch
from seresnet_timm.data.position import end_workers
from seresnet_timm.data.scheduled import images_of_a_step
from seresnet_timm.engine.bad_steps import check_epoch
from seresnet_timm.engine.divergence import refuse_infinite_loss, refuse_infinite_weights
from seresnet_timm.engine.epoch import Training, figures_of_epoch, switch_mixup_off, train_one_epoch
from seresnet_timm.engine.epoch_end import end_epoch
from seresnet_timm.engine.evaluate import validate
from seresnet_timm.engine.faults import note_all, noted
from seresnet_timm.engine.forward import Forward, set_up_device
from seresnet_timm.engine.model import capture_step, compile_and_distribute, create_model, place_model
from seresnet_timm.engine.model_info import check_planned_classes, model_info_of, refuse_other_classes
from seresnet_timm.engine.outputs import create_outputs, print_results, save_epoch
from seresnet_timm.engine.progress import create_progress
from seresnet_timm.engine.run_state import (
    Place,
    Resumed,
    restore_counts,
    restore_loader,
    restore_rank,
    restore_schedule,
    resume,
    resume_from,
    run_state,
    set_up_ema,
    state_of_rank,
)
from seresnet_timm.engine.saving import begin_saving, end_stopped
from seresnet_timm.engine.signals import Stopped, StopSignals
from seresnet_timm.engine.teacher import create_task, load_teacher
from seresnet_timm.errors import UsageError, counted
from seresnet_timm.runs.folder import resume_hint
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step import fast as fast_step
from seresnet_timm.step.learning_rate import scaled_lr
from seresnet_timm.step.loss_scaler import create_loss_scaler

_logger = logging.getLogger('train')


def main(settings: RunSettings, checkpoints: Optional[Mapping[str, Checkpoint]] = None) -> None:
    """Run a training: one rank of it.

    Args:
        settings: Settings of the run; nothing is decided here.
        checkpoints: Checkpoints that this process has read, by their path.

    Raises:
        UsageError: A checkpoint does not belong to this run; nothing has been written.
        RunError: Training failed.
    """
    # device
    args = settings.namespace()
    args.prefetcher = not args.no_prefetcher  # timm's name, for readers of the checkpoint's arguments
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    device = set_up_device(args)
    is_primary = utils.is_primary(args)
    forward = Forward.from_args(args, device)
    loss_scaler, _ = create_loss_scaler(device, args.amp, args.amp_dtype, settings.loss_scale)
    utils.random_seed(args.seed, args.rank)

    # model
    model = create_model(settings, args, checkpoints or {})
    data_config = resolve_data_config(vars(args), model=model, verbose=is_primary)
    model = place_model(model, args, forward)

    # data
    train_loader, eval_loader, mixup_fn = create_loaders(settings, args, data_config, forward)
    info = model_info_of(model, data_config, train_loader.dataset)

    # task and optimizer
    teacher = load_teacher(args.kd_model_name, settings.teacher_folder, checkpoints or {}, model) \
        if args.kd_model_name else None
    task = create_task(args, model, teacher, data_config, device, forward.dtype, verbose=is_primary)
    optimizer = create_optimizer(settings, args, task.get_trainable_module())

    run = Training.of(
        settings, args, forward=forward, task=task, optimizer=optimizer, train_loader=train_loader,
        eval_loader=eval_loader, mixup_fn=mixup_fn, loss_scaler=loss_scaler)

    # resume
    checkpoint = read_once(args.resume, checkpoints or {}) if args.resume else None
    resume_epoch = resume(checkpoint, task, optimizer, loss_scaler, args) if checkpoint else None
    if args.model_ema:
        set_up_ema(checkpoint, task, args)
    refuse_other_classes(checkpoint, train_loader.dataset, args)
    resumed = resume_from(checkpoint, run, resume_epoch)

    # processes: of the loaders, then of the training
    start_loaders(run, resumed)
    if settings.graph:  # after the moving average, which is a copy of the network
        capture_step(model, args, data_config, forward)
    compile_and_distribute(settings, task, args, device)
    restore_rank(run, resumed)
    restore_counts(run, resumed)

    # schedule
    num_epochs = set_up_schedule(run, resumed)

    # outputs
    if is_primary:
        run.outputs = create_outputs(settings, run, model, info, checkpoint, resumed.place.epoch)
    run.progress = create_progress(run, settings, num_epochs)

    # epochs
    try:
        with run.progress.shown(len(train_loader), resumed.place), StopSignals() as signals, noted(run):
            begin_saving(run, settings, resumed, signals)
            results = train_epochs(run, resumed, num_epochs)
    except KeyboardInterrupt:
        if is_primary:
            hint = resume_hint(settings) or ' No epoch was finished.'
            _logger.info(f'Interrupted.{hint}')
        raise SystemExit(130)
    except Stopped as e:
        end_stopped(run, settings, e)
    finally:
        end_workers(train_loader, eval_loader)

    # finish
    if args.distributed:
        torch.distributed.destroy_process_group()
    if is_primary:
        run.outputs.finish()
        print_results(run, results)
        run.outputs.refuse_unsaved()
    if results:
        refuse_infinite_loss(run.record, results[-1].get('validation', results[-1]['train'])['loss'])


# --- data -------------------------------------------------------------------------------------------------------------

def create_loaders(
        settings: RunSettings,
        args,
        data_config: Dict[str, Any],
        forward: Forward,
) -> Tuple[Any, Optional[Any], Optional[Any]]:
    """Loaders of both splits, the second None without evaluation; and mixup, if the loader does not do it.

    Raises:
        UsageError: The split is smaller than one batch of all processes.
        RunError: The classes are not those of the plan.
    """
    decoder, _ = choose_decoder(args, settings.fast_jpeg)
    setup = loaders.LoaderSetup(
        args, data_config, forward.device, forward.dtype, decoder, settings.class_names, settings.data_timeout)
    train_loader, mixup_fn = loaders.train_loader(setup)
    if len(train_loader) == 0:  # of a dataset whose size only its reader knows
        raise UsageError(
            f'One training batch needs {args.batch_size * args.world_size} images (-b {args.batch_size} on '
            f'{counted(args.world_size, "process", "processes")}), '
            f'the training split has {len(train_loader.dataset)}: lower -b.')
    check_planned_classes(settings, train_loader.dataset)
    eval_loader = None
    if args.val_split:
        eval_loader = loaders.eval_loader(
            setup, args.val_split, args.validation_batch_size or args.batch_size, num_samples=args.val_num_samples,
            crop_pct=data_config['crop_pct'])
    return train_loader, eval_loader, mixup_fn


# --- optimizer and the state of a run that continues ------------------------------------------------------------------

def create_optimizer(settings: RunSettings, args, model: torch.nn.Module) -> torch.optim.Optimizer:
    if not args.lr:
        args.lr, reason = scaled_lr(args, images_of_a_step(args, settings.global_batch_size))
        if utils.is_primary(args):
            _logger.info(f'Learning rate: {args.lr} ({reason})')
    optimizer = fast_step.create_optimizer(
        model, fast=settings.fast_step, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    if utils.is_primary(args):
        defaults = dict(copy.deepcopy(optimizer.defaults), weight_decay=args.weight_decay)
        _logger.info(f'Created {type(optimizer).__name__} ({args.opt}) optimizer: '
                     + ', '.join(f'{k}: {v}' for k, v in defaults.items()))
    return optimizer


# --- processes and schedule -------------------------------------------------------------------------------------------

def start_loaders(run: Training, resumed: Resumed) -> None:
    """Bring the loaders to the place where the run starts, and start their worker processes."""
    args, place = run.args, resumed.place
    epoch = place.epoch + place.is_trained  # that of the next batch
    set_epoch(run.train_loader, epoch)
    switch_mixup_off(run.train_loader, run.mixup_fn, epoch, args)  # workers that start now keep what they see now
    restore_loader(run, resumed)
    if args.distributed or not place.is_trained:  # else the evaluation comes first, and draws before the shuffle
        run.train_loader = loaders.start_workers(run.train_loader)
    if run.eval_loader is not None:
        run.eval_loader = loaders.start_workers(run.eval_loader, keep_rng=True, draws=not run.has_evaluated)


def set_up_schedule(run: Training, resumed: Resumed) -> int:
    """Create the scheduler of the learning rate, at the epoch where the run starts; the number of epochs."""
    args = run.args
    scheduler, num_epochs = create_scheduler_v2(
        run.optimizer,
        **scheduler_kwargs(args, decreasing_metric=run.eval_metric == 'loss'),
        updates_per_epoch=run.updates_per_epoch,
    )
    run.lr_scheduler = scheduler
    restore_schedule(run, resumed)
    if utils.is_primary(args):
        warmup = 'warm-up, epochs and cool-down' if args.warmup_prefix else 'epochs with warm-up in them, and cool-down'
        stepped = 'epoch' if scheduler is None or scheduler.t_in_epochs else 'update'
        _logger.info(f'Scheduled epochs: {num_epochs} ({warmup}). LR stepped per {stepped}.')
        if resumed.place.epoch >= num_epochs:
            _logger.info(f'Nothing left to train: {resumed.place.epoch} of {num_epochs} epochs are done.')
    return num_epochs


# --- epochs -----------------------------------------------------------------------------------------------------------

def train_epochs(run: Training, resumed: Resumed, num_epochs: int) -> List[Dict[str, Any]]:
    """Train, evaluate and save epoch by epoch; the metrics of each.

    Raises:
        Stopped: A signal stopped the run; its state is saved.
    """
    args, results = run.args, []
    for epoch in range(resumed.place.epoch, num_epochs):
        if run.patience.is_over(run, epoch):
            break
        train_metrics, figures = train_epoch(run, epoch, resumed)
        run.saving.after_training(run, epoch, train_metrics, figures)

        is_evaluated = (epoch + 1) % args.val_interval == 0 or epoch + 1 == num_epochs
        lr = run.lr
        if not is_evaluated:
            if run.lr_scheduler is not None:
                run.lr_scheduler.step(epoch + 1, metric=None)
            if run.outputs:
                _logger.info('Skipping eval and checkpointing')
                end_epoch(run, epoch, train_metrics, None, figures, lr)
            continue

        eval_start = time.perf_counter()
        eval_metrics, unreadable = evaluate_epoch(run) if run.eval_loader is not None else (None, None)
        note_all(run.record, epoch, run.eval_loader)
        check_epoch(run, epoch, eval_metrics)
        refuse_infinite_weights(run.record, run.task.get_trainable_module(), epoch, eval_metrics)
        latest_metric = (eval_metrics or train_metrics)[run.eval_metric]
        ranks = run.saving.agreement.gather(state_of_rank(run, Place(epoch + 1)))
        if run.outputs:
            state = run_state(run, Place(epoch + 1), ranks, metric=latest_metric)
            figures.update(eval_seconds=round(time.perf_counter() - eval_start, 3), unreadable_val=unreadable)
            save_epoch(run, epoch, state, train_metrics, eval_metrics, figures)
            figures.update(eval_seconds=round(time.perf_counter() - eval_start, 3))
            end_epoch(run, epoch, train_metrics, eval_metrics, figures, lr)
        run.saving.after_epoch()
        if run.lr_scheduler is not None:
            run.lr_scheduler.step(epoch + 1, latest_metric)
        results.append(dict(epoch=epoch, train=train_metrics))
        if eval_metrics is not None:
            results[-1]['validation'] = eval_metrics
    return results


def train_epoch(run: Training, epoch: int, resumed: Resumed) -> Tuple[Dict[str, float], Dict[str, Any]]:
    """Train an epoch, or what is left of it: its metrics, and figures for run.json."""
    trained = resumed.trained_epoch(epoch)
    if trained is not None:
        return trained
    args, run.begun = run.args, resumed.start_of(epoch, run.args.rank, run.args.world_size)
    set_epoch(run.train_loader, epoch)
    train_metrics, throughput = train_one_epoch(run, epoch)
    figures = figures_of_epoch(run, epoch, throughput)
    if args.distributed and args.dist_bn:
        if utils.is_primary(args):
            _logger.info('Distributing BatchNorm running means and vars')
        utils.distribute_bn(run.task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
    return train_metrics, figures


def evaluate_epoch(run: Training) -> Tuple[Dict[str, float], Optional[Unreadable]]:
    """Metrics on the validation split: of the moving average if there is one on the device, else of the model.

    Returns:
        The metrics; the images that could not be read, None if not known.
    """
    args, task = run.args, run.task
    found = validate(task.get_eval_model(), run.eval_loader, run.forward, args, run=run)
    if task.has_ema() and not args.model_ema_force_cpu:
        if args.distributed and args.dist_bn:
            utils.distribute_bn(task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce')
        found = validate(task.get_eval_model(ema=True), run.eval_loader, run.forward, args, ' (EMA)', run=run)
    run.has_evaluated = True
    return found
