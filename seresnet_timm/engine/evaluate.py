"""The evaluation loop that train.py and validate.py share: every image counts once, on any number of processes."""
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from timm import utils
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch.utils.data import IterableDataset

from seresnet_timm.data.image_files import IGNORED_TARGET, Unreadable, take_unreadable
from seresnet_timm.engine.agreement import Agreement
from seresnet_timm.engine.forward import Forward
from seresnet_timm.engine.progress import Progress, progress_bar
from seresnet_timm.engine.signals import Stopped
from seresnet_timm.errors import RunError
from seresnet_timm.step import heartbeat


@dataclass(frozen=True)
class EvaluationLog:
    """Log lines of an evaluation, and what may stop it.

    Attributes:
        logger: Where they go; None on ranks that do not log.
        interval: Batches between two lines.
        line: Makes a line from (batch, last batch, seconds a batch lately, on average, images per second, metrics of
            this batch, metrics so far).
        agreement: Of the ranks of a training, which a signal may stop.
        progress: Of the training; None without one.
        verbosity: As in RunSettings.
    """
    logger: Optional[logging.Logger]
    interval: int
    line: Callable[[int, int, float, float, float, Dict, Dict], str]
    agreement: Optional[Agreement] = None
    progress: Optional[Progress] = None
    verbosity: int = 0


def evaluate(
        model: nn.Module,
        loader: Any,
        forward: Forward,
        log: EvaluationLog,
        tta: int = 0,
        valid_labels: Optional[List[int]] = None,
        on_output: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
) -> Tuple[Dict[str, float], Optional[Unreadable]]:
    """Loss, top1 and top5 (percent) over a loader.

    An image that cannot be read counts as wrong; the loss leaves it out. Sums stay on the device: the host waits for it
    at log lines only.

    Args:
        model: Model to evaluate; switched to eval mode.
        loader: Loader of (input, target) batches.
        forward: Device, precision and memory format.
        log: Log lines.
        tta: Consecutive outputs to average, for test-time augmentation.
        valid_labels: Class indices that count; None for all.
        on_output: Called with every batch's output and target.

    Returns:
        `loss`, `top1`, `top5` over all images of all ranks; and the images that could not be read, None if not known.

    Raises:
        RunError: No image could be read.
        Stopped: A signal stops the training.
    """
    criterion = _LossOfReadable(forward.device)
    evaluator = _Evaluator(
        forward.device, max_samples=evaluation_sample_limit(loader), criterion=criterion)
    model.eval()
    last_idx = len(loader) - 1
    start = last_time = time.perf_counter()
    last_logged, num_images = -1, 0
    with torch.inference_mode(), progress_bar(len(loader), 'Test', log.logger, log.verbosity) as bar:
        for batch_idx, (input, target) in enumerate(_until_stopped(loader, log.agreement)):
            input, target = forward.move(input, target)
            with forward.autocast():
                output = model(forward.lay_out(input))
            if isinstance(output, (tuple, list)):
                output = output[0]
            if tta > 1:
                output = output.unfold(0, tta, tta).mean(dim=2)
                target = target[0:target.size(0):tta]
            if valid_labels is not None:
                output = output[:, valid_labels]

            log_now = log.logger is not None and (batch_idx == last_idx or batch_idx % log.interval == 0)
            before = [t.clone() for t in _sums(evaluator)] if log_now else []
            evaluator.update(output, target)
            if on_output is not None:
                on_output(output, target)
            num_images += output.shape[0]
            _count_batch(bar, evaluator, forward.device)
            if log_now:
                batch_metrics = _metrics(*(now - then for now, then in zip(_sums(evaluator), before)))
                so_far = _metrics(*_sums(evaluator))  # the host waits for the device here
                now = time.perf_counter()
                recent = (now - last_time) / (batch_idx - last_logged)
                average = (now - start) / (batch_idx + 1)
                last_time, last_logged = now, batch_idx
                if log.progress is not None:
                    log.progress.at_evaluation(batch_idx + 1, last_idx + 1)
                bar.log(
                    log.line(batch_idx, last_idx, recent, average, num_images / (now - start), batch_metrics, so_far),
                    short=_short(so_far),
                    is_last=batch_idx == last_idx,
                )
    if log.agreement is not None:
        log.agreement.vote()
    loss_sum, counts = _over_all_ranks(evaluator) if forward.distributed else _sums(evaluator)
    skipped = None if forward.distributed else _skipped_by_reader(loader, counts, log.logger)
    if skipped is not None:
        counts = counts + torch.tensor([skipped.count, 0, 0, skipped.count], device=counts.device)
    return _metrics(loss_sum, counts), skipped or report_unreadable(loader, log.logger)


def _until_stopped(loader: Any, agreement: Optional[Agreement]) -> Iterator[Any]:
    """Batches of an evaluation, until a signal stops the training."""
    batches = iter(loader)
    while True:
        try:
            with nullcontext() if agreement is None else agreement.waiting_for_data():
                batch = next(batches, None)
        except Stopped:
            return
        if batch is None or agreement is not None and agreement.is_stopping():
            return
        yield batch


class _Evaluator(ClassificationEvaluator):
    """timm's evaluator, whose sum of losses is float32 on npu.

    An NPU does not compute in float64: torch_npu casts to float32 instead, and warns.
    """

    def reset(self) -> None:
        if self.device.type != 'npu':
            super().reset()
            return
        self.num_samples = 0
        self.loss_sum = torch.zeros((), device=self.device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=self.device)


class _LossOfReadable:
    """Cross entropy over the images that could be read, times their share; 0 if there are none.

    Attributes:
        unreadable: Number of the others so far.
    """

    def __init__(self, device: torch.device):
        self.unreadable = torch.zeros(1, dtype=torch.int64, device=device)

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        readable = (target != IGNORED_TARGET).sum()
        self.unreadable += len(target) - readable
        loss = F.cross_entropy(output, target, ignore_index=IGNORED_TARGET)
        loss = loss if loss.device.type == 'npu' else loss.double()
        return torch.where(readable > 0, loss * readable / len(target), 0.)


def _skipped_by_reader(loader: Any, counts: torch.Tensor, logger: Optional[logging.Logger]) -> Optional[Unreadable]:
    """Images that the reader of an iterable dataset has skipped, by the number that it told; None if there are none."""
    dataset = getattr(loader, 'dataset', None)
    total = getattr(getattr(dataset, 'reader', None), 'num_samples', None) or 0
    if not isinstance(dataset, IterableDataset):
        return None
    count = int(counts[0])
    if count >= total:
        return None
    if not count:
        raise RunError(f'All {total} images to evaluate were skipped by the reader of the dataset, whose own lines say '
                       'why: there is no result.')
    if logger is not None:
        logger.warning(f'Test: {total - count} of {total} images were skipped by the reader of the dataset, whose own '
                       'lines say why; they count as wrong, and the loss leaves them out')
    return Unreadable(count=total - count, total=total, new=[], num_new=0, files=[])


def report_unreadable(loader: Any, logger: Optional[logging.Logger]) -> Optional[Unreadable]:
    """Name the images that an evaluation could not read. All ranks must call it together.

    Args:
        loader: Loader of the evaluation, at its end.
        logger: Where they are named; None on ranks that do not log.

    Raises:
        RunError: No image could be read.
    """
    unreadable = take_unreadable(getattr(loader, 'dataset', None))
    if unreadable is None or not unreadable.count:
        return unreadable
    if unreadable.count == unreadable.total:
        raise RunError(unreadable.describe('to evaluate', 'so that there is no result') + '.')
    if logger is not None:
        logger.warning('Test: ' + unreadable.describe('', 'they count as wrong, and the loss leaves them out'))
    return unreadable


def validate(
        model: nn.Module,
        loader: Any,
        forward: Forward,
        args,
        log_suffix: str = '',
        run: Any = None,
) -> Tuple[Dict[str, float], Optional[Unreadable]]:
    """Evaluate the model of a training, with the log lines of timm's train.py.

    Args:
        model: Model to evaluate.
        loader: Loader of the validation split.
        forward: Device, precision and memory format.
        args: Flags of train.py: `log_interval`, `tta` and `rank` are read.
        log_suffix: What is evaluated, e.g. ' (EMA)'.
        run: The `Training`, which a signal may stop, and whose progress is shown; None without one.

    Raises:
        Stopped: A signal stops the training; its state from before the evaluation is saved.
    """
    def log_line(batch_idx, last_idx, seconds, seconds_avg, _rate, now, avg):
        return (
            f'Test{log_suffix}: [{batch_idx:>4d}/{last_idx}]  '
            f'Time: {seconds:.3f} ({seconds_avg:.3f})  '
            f'Loss: {now["loss"]:>7.3f} ({avg["loss"]:>6.3f})  '
            f'Acc@1: {now["top1"]:>7.3f} ({avg["top1"]:>7.3f})  '
            f'Acc@5: {now["top5"]:>7.3f} ({avg["top5"]:>7.3f})'
        )
    log = EvaluationLog(logging.getLogger('train') if utils.is_primary(args) else None, args.log_interval, log_line)
    if run is not None:
        log = replace(log, agreement=run.saving.agreement, progress=run.progress, verbosity=run.progress.verbosity)
    try:
        return evaluate(model, loader, forward, log, tta=args.tta)
    except Stopped:
        run.saving.save_trained(run)
        raise


def _sums(evaluator: ClassificationEvaluator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses; numbers of images, of top1 and top5, and of images that could not be read."""
    return evaluator.loss_sum, torch.cat([evaluator.counts, evaluator.criterion.unreadable])


def _over_all_ranks(evaluator: ClassificationEvaluator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sums of all ranks. HCCL takes no float64: the loss travels as two float32 whose sum it is."""
    loss_sum, counts = _sums(evaluator)
    high = loss_sum.float()
    parts = torch.stack([high, (loss_sum - high).float()])
    gathered = [torch.empty_like(parts) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, parts)
    dist.all_reduce(counts)
    return torch.stack(gathered).cpu().double().sum(), counts


def _count_batch(bar: Any, evaluator: '_Evaluator', device: torch.device) -> None:
    if device.type == 'cpu':  # nothing to wait for
        bar.tell(lambda: _short(_metrics(*_sums(evaluator))))
    bar.update()
    heartbeat.beat()


def _short(metrics: Dict[str, float]) -> str:
    return f'loss {metrics["loss"]:.3f}, top1 {metrics["top1"]:.2f}'


def _metrics(loss_sum: torch.Tensor, counts: torch.Tensor) -> Dict[str, float]:
    """Metrics from sums."""
    count, top1, top5, unreadable = counts.tolist()
    loss = loss_sum.item() / max(1, count - unreadable)
    count = max(1, count)  # a batch of nothing but the sampler's padding
    return {'loss': loss, 'top1': 100 * top1 / count, 'top5': 100 * top5 / count}
