"""Runs that end because loss or weights are no longer finite numbers; the reason is noted in run.json"""
import math
from typing import Dict, Optional

import torch.nn as nn

from seresnet_timm.errors import RunError, printable
from seresnet_timm.models.create import not_finite
from seresnet_timm.runs.record import RunRecord


def describe_evaluation(name: str, loss: float) -> Optional[str]:
    """That the loss of an evaluation is not finite, as a sentence; None if it is. Finite weights can give that too.

    Args:
        name: The checkpoint or model.
        loss: Its loss.
    """
    if math.isfinite(loss):
        return None
    return (f'The loss of {printable(name)} is {loss} on these images: the network has outputs that are not finite '
            '(NaN or infinity), and its top-1 means nothing. Take an earlier checkpoint, or evaluate without --amp.')


def refuse_evaluation(name: str, loss: float) -> None:
    """End an evaluation whose loss is not finite.

    Raises:
        RunError: It is not.
    """
    problem = describe_evaluation(name, loss)
    if problem:
        raise RunError(problem)


def diverged(record: Optional[RunRecord], what: str, is_saved: bool = False, more: str = '') -> RunError:
    """The error that ends a run without finite numbers; it is noted in run.json.

    Args:
        record: The run's record, on the rank that writes it.
        what: What is not finite, and since when: the beginning of the sentence.
        is_saved: A checkpoint of this state was written, or another sentence says which one to use.
        more: Further sentences, with a space before each.
    """
    text = (f'{what}: lower the learning rate, use a longer warm-up, or clip gradients (--clip-grad 1).'
            + ('' if is_saved else ' No checkpoint was written after that.') + more)
    if record is not None:
        record.set_diverged(text)
    return RunError(text)


def refuse_infinite_weights(
        record: Optional[RunRecord],
        module: nn.Module,
        epoch: int,
        eval_metrics: Optional[Dict[str, float]],
) -> None:
    """End the run before the epoch is saved, if the last update has made weights infinite.

    Raises:
        RunError: They are; the loss of the evaluation is not finite, or there is no evaluation that would show it.
    """
    if eval_metrics is not None and math.isfinite(eval_metrics['loss']):
        return
    if not_finite(module.state_dict()):
        raise diverged(record, f'Weights are no longer finite after epoch {epoch}')


def refuse_infinite_loss(record: Optional[RunRecord], loss: float) -> None:
    """End a run with an error whose last evaluation has no finite loss.

    Raises:
        RunError: It has not.
    """
    if not math.isfinite(loss):
        raise diverged(record, f'The loss of the last evaluation is {loss}', is_saved=True)
