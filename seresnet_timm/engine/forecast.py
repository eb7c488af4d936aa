"""When a training will end, from the time of its steps and of what follows the last step of an epoch

Steps are timed at log points, where the host waits for the device anyway, and on a CPU every few seconds. The first
steps of a process are left out: they compile and allocate. This file does not import torch.
"""
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional, Sequence, Tuple

FIRST_STEPS = 2  # of a process, which are slow
MANY_STEPS = 10  # one slow step among so many does not matter
EVALUATION = 1 / 3  # time of an evaluated image in times of a training image, until one has been measured


@dataclass(frozen=True)
class Extent:
    """How much there is to do.

    Attributes:
        epochs: Epochs of the run.
        updates: Updates of an epoch.
        batch_images: Images of an update, of all processes.
        val_interval: Epochs between evaluations.
        val_images: Images of the evaluations of an epoch; 0 if not known, or without evaluation.
        patience: Epochs without a new best after which `--early-stop` ends the run; None for never.
    """
    epochs: int
    updates: int
    batch_images: int
    val_interval: int = 1
    val_images: int = 0
    patience: Optional[int] = None

    def is_evaluated(self, epoch: int) -> bool:
        return (epoch + 1) % self.val_interval == 0 or epoch + 1 == self.epochs

    def evaluated_from(self, epoch: int) -> int:
        """How many epochs are evaluated, from this one on."""
        interval = self.val_interval
        is_last_extra = self.epochs % interval != 0 and epoch < self.epochs
        return max(0, self.epochs // interval - epoch // interval) + is_last_extra

    def without_better(self, best_epoch: Optional[int]) -> Optional['Extent']:
        """What there is to do if no epoch is better than the best; None if the run does not end early then."""
        if self.patience is None or best_epoch is None:
            return None
        intervals = -(-(best_epoch + self.patience + 1) // self.val_interval)  # the run ends after an evaluation only
        epochs = intervals * self.val_interval
        return replace(self, epochs=epochs) if epochs < self.epochs else None


class Forecast:
    """When a training ends. Times are seconds of one clock.

    Args:
        extent: How much there is to do.
        before: Epochs of the run before this process, as in run.json: the speed of the last one counts as that of ten
            updates.
    """

    def __init__(self, extent: Extent, before: Sequence[Dict[str, Any]] = ()):
        self.extent = extent
        fps = next((e['fps'] for e in reversed(before) if e.get('fps')), None)
        self._updates = float(MANY_STEPS) if fps else 0.  # the latest ones with the largest weight
        self._seconds = self._updates * extent.batch_images / fps if fps else 0.  # of these
        self._mark: Optional[float] = None  # the last time at which updates were counted
        self._marked = self._made = 0  # updates of the epoch then; of this process
        self._logged: Optional[Tuple[int, float]] = None  # updates of the epoch at the last log point, and its time
        self._epoch: Optional[int] = None
        self._recent: Optional[float] = None  # seconds of an update since the log point before
        self._after: Optional[float] = None  # seconds from the last step of an evaluated epoch to the next epoch
        self._after_estimate = next((e['eval_seconds'] for e in reversed(before) if e.get('eval_seconds')), None)
        self._first_share: Optional[Tuple[float, float]] = None  # at the first log point of an evaluation, and its time

    @property
    def update_seconds(self) -> Optional[float]:
        """Seconds of an update, on average over about an epoch."""
        return self._seconds / self._updates if self._updates else None

    @property
    def images_per_second(self) -> Optional[float]:
        """Since the log point before."""
        return self.extent.batch_images / self._recent if self._recent else None

    @property
    def after_seconds(self) -> float:
        """Seconds of evaluation and saving after an epoch."""
        found = self._after if self._after is not None else self._after_estimate
        if found is None and self.update_seconds is not None:
            found = EVALUATION * self.extent.val_images * self.update_seconds / self.extent.batch_images
        return found or 0.

    def start_epoch(self, epoch: int, update: int, now: float) -> None:
        """An epoch begins, or goes on after `update` updates."""
        if self._epoch is not None:
            if self._mark is not None and self.extent.is_evaluated(self._epoch):
                self._after = now - self._mark
            self._mark = now
            self._logged = update, now
        self._epoch, self._marked, self._first_share = epoch, update, None

    def at_update(self, update: int, now: float, is_log: bool = True) -> None:
        """`update` updates of the epoch are done, on the device too; `is_log`: at a log point."""
        new, before = update - self._marked, self._made
        if new <= 0:
            return
        self._made += new
        is_warm = before >= FIRST_STEPS or before > 0 and new >= MANY_STEPS
        if self._mark is not None and is_warm:
            keep = 0.5 ** (new / self.extent.updates)
            self._seconds = keep * self._seconds + now - self._mark
            self._updates = keep * self._updates + new
            updates, then = self._logged or (self._marked, self._mark)
            self._recent = (now - then) / (update - updates)
        self._mark, self._marked = now, update
        if is_log or self._logged is None:
            self._logged = update, now

    def at_evaluation(self, share: float, now: float) -> None:
        """A share of the evaluations after an epoch is done. The first batches, which are slow, count once."""
        if self._mark is None:
            return
        if self._first_share is None:
            self._first_share = share, now
        elif share > self._first_share[0]:
            begun, then = self._first_share
            self._after_estimate = then - self._mark + (now - then) * (1 - begun) / (share - begun)

    def early_end(self, now: float, best_epoch: Optional[int]) -> Optional[float]:
        """Time at which `--early-stop` ends the run if no epoch is better than the best; None if it does not."""
        extent = self.extent.without_better(best_epoch)
        is_ahead = extent is not None and self._epoch is not None and extent.epochs > self._epoch
        return self.end(now, extent) if is_ahead else None

    def end(self, now: float, extent: Optional[Extent] = None) -> Optional[float]:
        """Time of the end; None if it is not known yet. `extent`: if less is to be done."""
        step, epoch, extent = self.update_seconds, self._epoch, extent or self.extent
        if step is None or epoch is None:
            return None
        updates = (extent.epochs - epoch) * extent.updates - self._marked
        left = updates * step + extent.evaluated_from(epoch) * self.after_seconds
        if self._marked >= extent.updates and self._mark is not None and extent.is_evaluated(epoch):
            left -= min(now - self._mark, self.after_seconds)  # of the evaluation that goes on
        return now + left
