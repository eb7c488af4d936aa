"""What the bundled train.py says of bad steps, and when it ends the run: see `step.bad_steps`"""
import logging
import math
from typing import Any, Dict, List, Optional, Tuple

from seresnet_timm.data.batch_files import files_of_batch
from seresnet_timm.engine.divergence import diverged
from seresnet_timm.errors import RunError, counted, first_names, printable
from seresnet_timm.step.bad_steps import MIN_LOSS_SCALE, Figures

_logger = logging.getLogger('train')
MAX_NAMED = 3  # files of a batch


def check_steps(run: Any, place: Tuple[int, int], loss: float, figures: List[float], is_last: bool) -> None:
    """Log steps that were skipped since the last log point, and end the run if there are too many. On every rank.

    Args:
        run: The `Training`.
        place: Epoch, and update in it.
        loss: Loss of the last batch.
        figures: `Figures`.
        is_last: It is the last update of the epoch.

    Raises:
        RunError: Too many steps in a row were skipped, or all of the epoch, or the loss scale has collapsed.
    """
    found = Figures(*figures)
    new = int(found.total) - (run.figures.total if run.figures and place[1] else 0)
    run.figures = found
    if new > 0 and run.outputs:
        _logger.warning(f'Skipped {counted(int(new), "step")} whose loss or gradients are not finite ({int(found.row)} '
                        f'in a row until now, {int(found.total)} in epoch {place[0]}).')
    if found.ends_run(run.max_bad_steps) or is_last and found.total >= run.updates_per_epoch:
        raise _ended(run, place, loss)


def tell_ranks(run: Any, epoch: int, ranks: List[int]) -> None:
    """Say once of a rank, and note in run.json, that its loss is not finite though that of others is.

    Args:
        run: The `Training`.
        epoch: Number of the epoch.
        ranks: Ranks whose loss was not finite since the last log point.
    """
    run.bad_ranks = ranks if len(ranks) < run.args.world_size else []
    if run.told_ranks.issuperset(run.bad_ranks):
        return
    run.told_ranks.update(ranks)
    names = ', '.join(map(str, ranks))
    text = (f'In epoch {epoch} the loss is not finite on rank {names} only: look at the images of its share, or at its '
            'device.')
    if run.outputs:
        _logger.warning(text)
        run.record.add_fault('bad_steps', epoch, text)


def check_epoch(run: Any, epoch: int, eval_metrics: Optional[Dict[str, float]]) -> None:
    """End the run before an epoch is saved whose last steps were bad, if its weights are bad too.

    Raises:
        RunError: The loss of the evaluation is not finite; or there is none, and half of the steps were skipped.
    """
    row = run.figures.row if run.figures else 0
    is_bad = not math.isfinite(eval_metrics['loss']) if eval_metrics else 2 * row >= run.updates_per_epoch
    if row and is_bad:
        raise _ended(run, (epoch, run.updates_per_epoch - 1), float('nan'))


def is_bad_epoch(train_metrics: Dict[str, float], eval_metrics: Optional[Dict[str, float]]) -> bool:
    """Whether an epoch cannot be the best one, whatever its metric: a loss is not finite."""
    return not all(math.isfinite(metrics['loss']) for metrics in (train_metrics, eval_metrics) if metrics)


def _ended(run: Any, place: Tuple[int, int], loss: float) -> RunError:
    figures = run.figures
    what = f'The loss became {loss}' if not math.isfinite(loss) else 'The gradients became infinite or NaN'
    if figures.loss_scale < MIN_LOSS_SCALE:
        what = f'The loss scale fell to {figures.loss_scale:g}, because gradients overflow again and again,'
    what += f' at epoch {place[0]}, update {place[1]} ({int(figures.longest)} steps in a row were skipped)'
    more, where, files = '', '', None
    if figures.began >= 0:
        rank = min(run.bad_ranks, default=None)
        files = files_of_batch(run.train_loader, place[0], int(figures.began) * run.args.grad_accum_steps, rank)
        where = '' if rank is None else f' of rank {rank}, whose loss alone was not finite'
    if files:
        more = (f' The first of them was update {int(figures.began)}{where}, with the images '
                f'{first_names(map(printable, files), MAX_NAMED)}.')
    if run.outputs:
        run.outputs.saver.wait()
    if run.outputs and run.outputs.folder.last.exists():
        more += f' The last good checkpoint is {run.outputs.folder.last}.'
    error = diverged(run.record, what, is_saved=bool(run.outputs and run.outputs.folder.last.exists()), more=more)
    if run.record is not None:
        run.record.add_fault('bad_steps', place[0], str(error))
    return error
