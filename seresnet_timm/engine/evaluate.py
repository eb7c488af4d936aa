"""The evaluation loop that train.py and validate.py share: every image counts once, on any number of processes."""
import logging
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
from timm import utils
from timm.task import ClassificationEvaluator, evaluation_sample_limit

from seresnet_timm.engine.forward import Forward
from seresnet_timm.engine.progress import progress_bar
from seresnet_timm.step import heartbeat


@dataclass(frozen=True)
class EvaluationLog:
    """Log lines of an evaluation.

    Attributes:
        logger: Where they go; None on ranks that do not log.
        interval: Batches between two lines.
        line: Makes a line from (batch, last batch, seconds a batch lately, on average, images a second, metrics of this
            batch, metrics so far).
    """
    logger: Optional[logging.Logger]
    interval: int
    line: Callable[[int, int, float, float, float, Dict, Dict], str]


def evaluate(
        model: nn.Module,
        loader: Any,
        forward: Forward,
        log: EvaluationLog,
        tta: int = 0,
        valid_labels: Optional[List[int]] = None,
        on_output: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
) -> Dict[str, float]:
    """Loss, top1 and top5 (percent) over a loader.

    Sums stay on the device: the host waits for it at log lines only.

    Args:
        model: Model to evaluate; switched to eval mode.
        loader: Loader of (input, target) batches.
        forward: Device, precision and memory format.
        log: Log lines.
        tta: Consecutive outputs to average, for test-time augmentation.
        valid_labels: Class indices that count; None for all.
        on_output: Called with every batch's output and target.

    Returns:
        `loss`, `top1`, `top5` over all images of all ranks.
    """
    evaluator = ClassificationEvaluator(forward.device, max_samples=evaluation_sample_limit(loader))
    model.eval()
    last_idx = len(loader) - 1
    start = last_time = time.perf_counter()
    last_logged, num_images = -1, 0
    with torch.inference_mode(), progress_bar(len(loader), 'Test', log.logger) as bar:
        for batch_idx, (input, target) in enumerate(loader):
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
            before = (evaluator.loss_sum.clone(), evaluator.counts.clone()) if log_now else None
            evaluator.update(output, target)
            if on_output is not None:
                on_output(output, target)
            num_images += output.shape[0]
            bar.update()
            heartbeat.beat()

            if log_now:
                batch_metrics = _metrics(evaluator.loss_sum - before[0], evaluator.counts - before[1])
                so_far = evaluator.summary()  # the host waits for the device here
                now = time.perf_counter()
                recent = (now - last_time) / (batch_idx - last_logged)
                average = (now - start) / (batch_idx + 1)
                last_time, last_logged = now, batch_idx
                bar.log(
                    log.line(batch_idx, last_idx, recent, average, num_images / (now - start), batch_metrics, so_far),
                    short=f'loss {so_far["loss"]:.3f}, top1 {so_far["top1"]:.2f}',
                    is_last=batch_idx == last_idx,
                )
    return _metrics(*_over_all_ranks(evaluator)) if forward.distributed else evaluator.compute()


def validate(
        model: nn.Module,
        loader: Any,
        forward: Forward,
        args,
        log_suffix: str = '',
        logger: Optional[logging.Logger] = None,
) -> Dict[str, float]:
    """Evaluate the model of a training, with the log lines of timm's train.py.

    Args:
        model: Model to evaluate.
        loader: Loader of the validation split.
        forward: Device, precision and memory format.
        args: Flags of train.py: `log_interval`, `tta` and `rank` are read.
        log_suffix: What is evaluated, e.g. ' (EMA)'.
        logger: Where rank 0 logs; None for the logger of timm's train.py.
    """
    def log_line(batch_idx, last_idx, seconds, seconds_avg, _rate, now, avg):
        return (
            f'Test{log_suffix}: [{batch_idx:>4d}/{last_idx}]  '
            f'Time: {seconds:.3f} ({seconds_avg:.3f})  '
            f'Loss: {now["loss"]:>7.3f} ({avg["loss"]:>6.3f})  '
            f'Acc@1: {now["top1"]:>7.3f} ({avg["top1"]:>7.3f})  '
            f'Acc@5: {now["top5"]:>7.3f} ({avg["top5"]:>7.3f})'
        )
    logger = logger or logging.getLogger('train')
    log = EvaluationLog(logger if utils.is_primary(args) else None, args.log_interval, log_line)
    return evaluate(model, loader, forward, log, tta=args.tta)


def _over_all_ranks(evaluator: ClassificationEvaluator) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sums of all ranks. HCCL takes no float64: the loss travels as two float32 whose sum it is."""
    high = evaluator.loss_sum.float()
    parts = torch.stack([high, (evaluator.loss_sum - high).float()])
    gathered = [torch.empty_like(parts) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, parts)
    counts = evaluator.counts.clone()
    dist.all_reduce(counts)
    return torch.stack(gathered).cpu().double().sum(), counts


def _metrics(loss_sum: torch.Tensor, counts: torch.Tensor) -> Dict[str, float]:
    """Metrics from sums of the evaluator's."""
    count, top1, top5 = counts.tolist()
    count = max(1, count)  # a batch of nothing but the sampler's padding
    return {'loss': loss_sum.item() / count, 'top1': 100 * top1 / count, 'top5': 100 * top5 / count}
