"""The end of an epoch on rank 0: its entry of run.json, its line, a new best or none for long; events of TensorBoard"""
import logging
import time
from typing import Any, Dict, Optional

from seresnet_timm.runs.show import duration, left, number, painted

_logger = logging.getLogger('train')


def end_epoch(
        run: Any,
        epoch: int,
        train_metrics: Dict[str, float],
        eval_metrics: Optional[Dict[str, float]],
        figures: Dict[str, Any],
        lr: float,
) -> None:
    """Note in run.json how an epoch went, and say it, once it is saved. On rank 0.

    Args:
        run: The training.
        epoch: Number of the epoch.
        train_metrics: Its training loss.
        eval_metrics: Of its evaluation; None without one.
        figures: Its entry of run.json.
        lr: Its learning rate.
    """
    outputs, progress = run.outputs, run.progress
    outputs.record.add_epoch(figures)
    has_ranking = eval_metrics is not None or not run.args.val_split
    metric = (eval_metrics or train_metrics).get(run.eval_metric) if has_ranking else None
    progress.end_epoch(run.eval_metric, metric, figures.get('unreadable_train'))
    if progress.status is not None and progress.forecast is not None:
        best = outputs.record.content['best']
        progress.foresee(time.time(), best['epoch'] if best else None)
    _logger.info(describe_epoch(run, epoch, train_metrics, eval_metrics, figures))
    if progress.status is not None and has_ranking:
        _tell_of_best(run, epoch)
    if outputs.events is not None:
        outputs.events.add(epoch, train_metrics, eval_metrics, lr, figures.get('fps'))


def describe_epoch(
        run: Any,
        epoch: int,
        train_metrics: Dict[str, float],
        eval_metrics: Optional[Dict[str, float]],
        figures: Dict[str, Any],
) -> str:
    """The line of an epoch."""
    parts = [f'loss {number(train_metrics["loss"], "loss")}']
    for name, value in (eval_metrics or {}).items():
        parts.append(f'{"eval loss" if name == "loss" else name} {number(value, name)}')
    if figures.get('fps'):
        parts.append(f'{figures["fps"]:.1f} images/s')
    times = [f'training {duration(figures["train_seconds"])}']
    if figures.get('eval_seconds') is not None:
        times.append(f'{"saving" if eval_metrics is None else "evaluation"} {duration(figures["eval_seconds"])}')
    status = run.progress.status
    if status is None or run.progress.forecast is None:
        return f'Epoch {epoch}: {", ".join(parts + times)}'
    rest = left(status) if epoch + 1 < status.epochs else ''
    return (f'Epoch {epoch}: {", ".join(parts + times)}; {epoch + 1} of {status.epochs} epochs done'
            f'{", " if rest else ""}{rest}')


def _tell_of_best(run: Any, epoch: int) -> None:
    best, status, metric = run.outputs.record.content['best'], run.progress.status, run.eval_metric
    before, before_epoch = status.best, status.best_epoch
    if best is None or best['epoch'] != epoch or best['value'] is None:
        if before_epoch != (best and best['epoch']):  # what was the best could not be saved
            status.best, status.best_epoch = (best['value'], best['epoch']) if best else (None, None)
        return run.patience.tell(run, epoch)
    status.best, status.best_epoch = best['value'], epoch
    was = ''
    if before is not None and run.outputs.saver.cmp(before, best['value']):
        was = f' (that of epoch {before_epoch}, {number(before, metric)}, could not be saved)'
    elif before is not None:
        was = f' (before: {number(before, metric)} in epoch {before_epoch})'
    _logger.info(painted(f'New best: {metric} {number(best["value"], metric)} in epoch {epoch}{was}', 'green'))
