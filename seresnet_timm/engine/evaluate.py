"""The evaluation loop that train.py and validate.py share: every image counts once, on any number of processes."""
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
from timm.task import ClassificationEvaluator, evaluation_sample_limit

from seresnet_timm.engine.progress import progress_bar


def evaluate(
        model: nn.Module,
        loader: Any,
        args,
        device: torch.device,
        autocast: Callable[[], Any],
        model_dtype: Optional[torch.dtype],
        log_interval: int,
        log_line: Callable[[int, int, float, float, float, Dict, Dict], str],
        logger: Any = None,
        tta: int = 0,
        valid_labels: Optional[List[int]] = None,
        on_output: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
) -> Dict[str, float]:
    """Loss, top1 and top5 (percent) over a loader.

    Sums stay on the device: the host waits for it at log points only.

    Args:
        model: Model to evaluate; switched to eval mode.
        loader: Loader of (input, target) batches.
        args: Flags; `no_prefetcher`, `channels_last` and `distributed` are read.
        device: Device to evaluate on.
        autocast: Context factory of the forward pass.
        model_dtype: Input dtype where the loader does not convert, None for float32.
        log_interval: Batches between log lines.
        log_line: Formats a log line from (batch, last batch, seconds a batch lately, on average, images a second,
            metrics of this batch, metrics so far).
        logger: Where log lines go; None on ranks that do not log.
        tta: Consecutive outputs to average, for test-time augmentation.
        valid_labels: Class indices that count; None for all.
        on_output: Called with every batch's output and target.

    Returns:
        `loss`, `top1`, `top5` over all images of all ranks.
    """
    evaluator = ClassificationEvaluator(device, max_samples=evaluation_sample_limit(loader))
    model.eval()
    last_idx = len(loader) - 1
    start = last_time = time.perf_counter()
    last_logged, num_images = -1, 0
    with torch.inference_mode(), progress_bar(len(loader), 'Test', logger) as bar:
        for batch_idx, (input, target) in enumerate(loader):
            if args.no_prefetcher:
                input = input.to(device=device, dtype=model_dtype)
                target = target.to(device=device)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)

            with autocast():
                output = model(input)
            if isinstance(output, (tuple, list)):
                output = output[0]
            if tta > 1:
                output = output.unfold(0, tta, tta).mean(dim=2)
                target = target[0:target.size(0):tta]
            if valid_labels is not None:
                output = output[:, valid_labels]

            log_now = logger is not None and (batch_idx == last_idx or batch_idx % log_interval == 0)
            before = (evaluator.loss_sum.clone(), evaluator.counts.clone()) if log_now else None
            evaluator.update(output, target)
            if on_output is not None:
                on_output(output, target)
            num_images += output.shape[0]
            bar.update()

            if log_now:
                batch_metrics = _metrics(evaluator.loss_sum - before[0], evaluator.counts - before[1])
                so_far = evaluator.summary()  # the host waits for the device here
                now = time.perf_counter()
                recent = (now - last_time) / (batch_idx - last_logged)
                average = (now - start) / (batch_idx + 1)
                last_time, last_logged = now, batch_idx
                bar.log(
                    log_line(batch_idx, last_idx, recent, average, num_images / (now - start), batch_metrics, so_far),
                    short=f'loss {so_far["loss"]:.3f}, top1 {so_far["top1"]:.2f}',
                    is_last=batch_idx == last_idx,
                )
    return _metrics(*_over_all_ranks(evaluator)) if args.distributed else evaluator.compute()


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
