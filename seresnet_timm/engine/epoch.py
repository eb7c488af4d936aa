"""One epoch of training"""
import logging
import math
import time
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

import torch
import torchvision
from timm import utils
from timm.task import TrainingTask

from seresnet_timm import device as devices
from seresnet_timm.data.image_files import take_unreadable
from seresnet_timm.data.scheduled import average_batch_size, loss_scale
from seresnet_timm.engine.bad_images import BadImages
from seresnet_timm.engine.bad_steps import check_steps, tell_ranks
from seresnet_timm.engine.faults import note_all, note_own
from seresnet_timm.engine.forward import Forward
from seresnet_timm.engine.meters import LossMeter, Throughput, report_epoch
from seresnet_timm.engine.outputs import Outputs
from seresnet_timm.engine.patience import Patience
from seresnet_timm.engine.progress import Progress
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step.backward import backward
from seresnet_timm.step.bad_steps import BadSteps, Figures
from seresnet_timm.step.loss_scaler import current_scale

_logger = logging.getLogger('train')


@dataclass
class Training:
    """What a training holds while it runs.

    Attributes:
        args: Flags of train.py, with what was decided for this rank.
        forward: Device, precision and memory format.
        task: timm's task: model, loss, moving average.
        optimizer: Optimizer.
        train_loader: Loader of the training split.
        eval_loader: Loader of the validation split; None for a training without evaluation.
        mixup_fn: Mixup of a batch, if the loader does not do it.
        loss_scaler: timm's scaler of the loss; None without one.
        lr_scheduler: timm's scheduler; None for a constant learning rate.
        updates_per_epoch: Optimizer steps of an epoch.
        eval_metric: Metric by which checkpoints are ranked.
        outputs: What rank 0 writes; None on other ranks.
        saving: Saves the state in the middle of an epoch, see `saving`; None to save at its end only.
        epoch: Number of the epoch that is trained or evaluated.
        begun: Where the next epoch goes on, if it was begun before: `batches` that are done, and the states of the
            meters, `losses` and `throughput`.
        has_evaluated: The validation split has been evaluated, in this run or in the one that it continues.
        max_bad_steps: Bad steps in a row that end the run.
        bad_steps: Skips them; made in the first epoch.
        figures: Of the last log point.
        bad_ranks: Ranks whose loss alone was not finite before the last log point.
        told_ranks: Those of which was said so.
        bad_images: Ends a run of whose images too many cannot be read; None for no limit.
        average_batch_size: Images of a batch and process, where batches differ.
        progress: Shows how far it is.
        patience: How long it waits for a new best.
    """
    args: Any
    forward: Forward
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    train_loader: Any
    eval_loader: Optional[Any] = None
    mixup_fn: Optional[Callable] = None
    loss_scaler: Optional[Any] = None
    lr_scheduler: Optional[Any] = None
    updates_per_epoch: int = 0
    eval_metric: str = 'loss'
    outputs: Optional[Outputs] = None
    saving: Any = None
    epoch: Optional[int] = None
    begun: Optional[Mapping[str, Any]] = None
    has_evaluated: bool = False
    max_bad_steps: int = 20
    bad_steps: Optional[BadSteps] = None
    figures: Optional[Figures] = None
    bad_ranks: List[int] = field(default_factory=list)
    told_ranks: Set[int] = field(default_factory=set)
    bad_images: Optional[BadImages] = None
    average_batch_size: float = 0.
    progress: Progress = field(default_factory=Progress)
    patience: Patience = Patience()

    @classmethod
    def of(
            cls, settings: RunSettings, args, *, forward: Forward, task: Any, optimizer: Any, train_loader: Any, **more,
    ) -> 'Training':
        """A training by its settings and flags; `more` are further attributes."""
        return cls(
            args, forward, task, optimizer, train_loader,
            updates_per_epoch=math.ceil(len(train_loader) / args.grad_accum_steps),
            eval_metric=args.eval_metric if args.val_split else 'loss',
            max_bad_steps=settings.max_bad_steps,
            bad_images=BadImages(train_loader.dataset, settings),
            average_batch_size=average_batch_size(args),
            patience=Patience.of(settings),
            **more,
        )

    @property
    def device(self) -> torch.device:
        return self.forward.device

    @property
    def record(self) -> Optional[RunRecord]:
        return self.outputs.record if self.outputs else None

    @property
    def lr(self) -> float:
        """Learning rate now, on average over the parameter groups."""
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)


def train_one_epoch(run: Training, epoch: int) -> Tuple[Dict[str, float], Throughput]:
    """Train one epoch, or what is left of it.

    Returns:
        Metrics (`loss`), and the wall times of the epoch.

    Raises:
        RunError: Too many steps had a loss or gradients that are not finite.
    """
    args, task, optimizer = run.args, run.task, run.optimizer
    switch_mixup_off(run.train_loader, run.mixup_fn, epoch, args)
    task.get_trainable_module().train()
    num_batches = len(run.train_loader)
    full_groups_end = num_batches - num_batches % args.grad_accum_steps  # later batches make a smaller group
    losses, throughput, first = begin_epoch(run, epoch)
    bad_steps: Any = run.bad_steps
    num_updates = epoch * run.updates_per_epoch + first // args.grad_accum_steps
    update_images, loss_avg = 0, float('nan')

    optimizer.zero_grad()
    wait_start = time.perf_counter()
    with run.progress.training(
            epoch, num_batches, first, _logger if utils.is_primary(args) else None) as progress:
        batches = run.saving.batches(run, epoch, first, losses, throughput) if run.saving else run.train_loader
        for batch_idx, (input, target) in enumerate(batches, first):
            is_last = batch_idx == num_batches - 1
            need_update = is_last or (batch_idx + 1) % args.grad_accum_steps == 0
            update_idx = batch_idx // args.grad_accum_steps
            accum_steps = args.grad_accum_steps if batch_idx < full_groups_end else num_batches - full_groups_end
            input, target = prepare(run, input, target)
            throughput.add_wait(time.perf_counter() - wait_start)

            with nullcontext() if need_update else task.no_sync():
                with run.forward.autocast():
                    loss = task(input, target)['loss']
                losses.update(loss, input.shape[0])
                scale = loss_scale(args, input.shape[0], run.average_batch_size)
                loss = loss if scale is None else scale * loss
                backward(loss / accum_steps if accum_steps > 1 else loss, task, optimizer, args, run.loss_scaler,
                         need_update=need_update, bad_steps=bad_steps)
            update_images += input.shape[0] * args.world_size
            progress.step()
            if not need_update:
                wait_start = time.perf_counter()
                continue

            num_updates += 1
            bad_steps.count()
            optimizer.zero_grad()
            task.update_ema(step=num_updates)
            if args.synchronize_step:
                devices.synchronize(run.device)
            throughput.step(update_images)
            progress.update(update_idx + 1)

            if update_idx % args.log_interval == 0 or is_last:
                # the host waits for the device here
                loss_now, loss_avg, figures = losses.read_with(counts_of(run, bad_steps, losses))
                check_counts(run, (epoch, update_idx), loss_now, figures, is_last)
                line = describe_step(run, (epoch, update_idx), (loss_now, loss_avg), throughput, update_images)
                line += progress.at_log(update_idx + 1, loss_avg, run.lr, int(run.figures.total))
                progress.log(line, is_last)
                if args.save_images and run.outputs:
                    torchvision.utils.save_image(
                        input, run.outputs.folder.path / f'train-batch-{batch_idx}.jpg', padding=0, normalize=True)
            if run.lr_scheduler is not None:
                run.lr_scheduler.step_update(num_updates=num_updates)
            if run.saving is not None and not is_last:
                run.saving.after_update(run, epoch, batch_idx + 1, losses, throughput)
            update_images = 0
            wait_start = time.perf_counter()

    if hasattr(optimizer, 'sync_lookahead'):
        optimizer.sync_lookahead()
    return OrderedDict(loss=loss_avg), throughput


def begin_epoch(run: Training, epoch: int) -> Tuple[LossMeter, Throughput, int]:
    """Meters of an epoch, and the batches of it that are done: none, unless the epoch was begun before."""
    begun, run.begun, run.epoch = run.begun, None, epoch
    run.bad_steps = run.bad_steps or BadSteps(
        run.task.get_trainable_module(), run.optimizer, run.device, run.loss_scaler)
    run.bad_steps.start_epoch(is_begun=begun is not None)
    losses, throughput = LossMeter(run.device, run.args.distributed, only_finite=True), Throughput()
    if begun is None:
        return losses, throughput, 0
    losses.load_state_dict(begun['losses'])
    throughput.load_state_dict(begun['throughput'])
    return losses, throughput, begun['batches']


def figures_of_epoch(run: Training, epoch: int, throughput: Throughput) -> Dict[str, Any]:
    """Figures for run.json of an epoch that is trained, which rank 0 logs. All ranks must call it together."""
    note_all(run.record, epoch, run.train_loader)
    figures = dict(
        throughput.summary(), bad_steps=int(run.figures.total) if run.figures else None,
        loss_scale=current_scale(run.loss_scaler), unreadable_train=take_unreadable(run.train_loader.dataset))
    return report_epoch(figures, epoch, run.args.workers, run.device) if utils.is_primary(run.args) else figures


def prepare(run: Training, input: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """A batch on the device, mixed, in the memory format of the model."""
    input, target = run.forward.move(input, target)
    if run.mixup_fn is not None:
        input, target = run.mixup_fn(input, target)
    return run.forward.lay_out(input), target


def counts_of(run: Training, bad_steps: BadSteps, losses: LossMeter) -> torch.Tensor:
    """What is counted on the device, and what this rank found: for `check_counts`.

    Of each rank: images whose loss was not finite since the last log point. Of all: images that could not be read.
    """
    new = torch.full((1,), float(run.bad_images.new() if run.bad_images else 0), device=run.device)
    lost = torch.zeros(run.args.world_size, device=run.device)
    lost[run.args.rank] = losses.left_out
    return torch.cat((bad_steps.figures(), new, lost))


def check_counts(run: Training, place: Tuple[int, int], loss: float, counts: List[float], is_last: bool) -> None:
    """End the run if too many steps are bad, or too many images cannot be read; note other faults of the data.

    Args:
        run: The training.
        place: Epoch, and update in it.
        loss: Loss of the last batch.
        counts: `counts_of`, as the mean over the ranks.
        is_last: It is the last update of the epoch.

    Raises:
        RunError: They are.
    """
    figures, (new, *lost) = counts[:len(Figures._fields)], counts[len(Figures._fields):]
    note_own(run.record, place[0], run.train_loader)
    tell_ranks(run, place[0], [rank for rank, count in enumerate(lost) if count])
    if run.bad_images:
        run.bad_images.check(new * run.args.world_size, run.record, place[0])
    check_steps(run, place, loss, figures, is_last)


def switch_mixup_off(loader: Any, mixup_fn: Optional[Callable], epoch: int, args) -> None:
    """End mixup where `--mixup-off-epoch` says so."""
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if args.prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False


def describe_step(
        run: Training,
        place: Tuple[int, int],
        losses: Tuple[float, float],
        throughput: Throughput,
        images: int,
) -> str:
    """Log line of an optimizer step, as timm's train.py prints it.

    Args:
        run: The training.
        place: Epoch, and update in it.
        losses: Loss of the last batch, and mean of the epoch.
        throughput: Wall times of the epoch.
        images: Images of the step, of all processes.
    """
    epoch, update_idx = place
    (seconds, seconds_avg), (data_seconds, data_seconds_avg) = throughput.read()
    lr = run.lr
    return (
        f'Train: {epoch} [{update_idx:>4d}/{run.updates_per_epoch} '
        f'({100. * (update_idx + 1) / run.updates_per_epoch:>3.0f}%)]  '
        f'Loss: {losses[0]:#.3g} ({losses[1]:#.3g})  '
        f'Time: {seconds:.3f}s, {images / seconds:>7.2f}/s  '
        f'({seconds_avg:.3f}s, {images / seconds_avg:>7.2f}/s)  '
        f'LR: {lr:.3e}  '
        f'Data: {data_seconds:.3f} ({data_seconds_avg:.3f})'
    )
