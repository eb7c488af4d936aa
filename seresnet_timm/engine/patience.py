"""Epochs without a new best: after `--patience` of them a line says so, and `--early-stop` ends the run

The best epoch is the saver's, which a resumed run restores; so the count goes on. Rank 0 decides for all ranks, before
an epoch begins.
"""
import logging
from dataclasses import dataclass
from typing import Any, Dict, Optional

from seresnet_timm.errors import counted
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.runs.show import number, painted

_logger = logging.getLogger('train')


class EndedEarly(KeyboardInterrupt):
    """Ends the loop over epochs of timm's train.py, which takes Ctrl-C for its end and prints its results then."""


@dataclass(frozen=True)
class Patience:
    """How long a run waits for a new best.

    Attributes:
        epochs: Epochs after which a line is printed; None for never.
        ends_run: The run ends then.
    """
    epochs: Optional[int] = None
    ends_run: bool = False

    @classmethod
    def of(cls, settings: RunSettings) -> 'Patience':
        return cls(settings.patience, settings.early_stop)

    def tell(self, run: Any, epoch: int) -> None:
        """Say that the metric has not moved, after an epoch with an evaluation. On rank 0."""
        count = epochs_without_best(run, epoch)
        best = run.outputs.record.content['best']
        if self.epochs is None or count < self.epochs or self.ends_run:
            return  # the end of the run says so itself
        _logger.info(painted(
            f'No new best: {run.eval_metric} has not been better for {counted(count, "epoch")}'
            f'{_describe(best, run.eval_metric)}. --early-stop would end such a run.', 'yellow'))

    def is_over(self, run: Any, epoch: int) -> bool:
        """Whether the run ends before this epoch. All ranks must call it together."""
        if self.epochs is None or not self.ends_run or epoch % getattr(run.args, 'val_interval', 1) or not epoch:
            return False  # or the epoch before was not evaluated
        is_over = run.outputs is not None and self._has_waited(run, epoch - 1)
        is_over = run.saving.agreement.share(is_over)
        if is_over and run.outputs:
            self._end(run, epoch - 1)
        return is_over

    def _has_waited(self, run: Any, epoch: int) -> bool:
        saver = run.outputs.saver
        if epochs_without_best(run, epoch, saver) < self.epochs:
            return False
        saver.wait()  # the last epoch may be the best, and be saved just now
        return epochs_without_best(run, epoch, saver) >= self.epochs

    def _end(self, run: Any, last: int) -> None:
        saver = run.outputs.saver
        best = None if saver.best_metric is None else dict(value=saver.best_metric, epoch=saver.best_epoch)
        run.outputs.record.set_early_stop(dict(
            epoch=last, patience=self.epochs, metric=run.eval_metric, best=saver.best_metric,
            best_epoch=saver.best_epoch))
        text = (f'Early stop after epoch {last}: {run.eval_metric} has not been better for '
                f'{counted(epochs_without_best(run, last, saver), "epoch")}{_describe(best, run.eval_metric)} '
                f'(--patience {self.epochs}).')
        _logger.info(painted(text, 'yellow'))
        if run.progress.status is not None:
            run.progress.status.text = text


def epochs_without_best(run: Any, epoch: int, saver: Any = None) -> int:
    """Epochs up to this one since the best; since the first one of the run if no metric was a number yet.

    Args:
        run: The training.
        epoch: Number of the last epoch.
        saver: Knows the best epoch; None for run.json, which has it before the epoch is saved.
    """
    epochs, best = run.outputs.record.content['epochs'], run.outputs.record.content['best']
    if saver is not None:
        best = None if saver.best_metric is None else {'epoch': saver.best_epoch}
    return epoch - (best['epoch'] if best else (epochs[0]['epoch'] if epochs else epoch + 1) - 1)


def _describe(best: Optional[Dict[str, Any]], metric: str) -> str:
    if best is None:
        return ', nor has it been a number'
    return f' than {number(best["value"], metric)} in epoch {best["epoch"]}'
