"""Running figures that do not make the host wait for the device."""
import copy
import logging
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist

from seresnet_timm import device as devices

_logger = logging.getLogger('train')
MOST_WAITING = 0.05  # share of an epoch; above it the loader limits the speed of the training


def report_epoch(figures: Dict[str, Any], epoch: int, workers: int, device: torch.device) -> Dict[str, Any]:
    """Log how long an epoch waited for data, which images it could not read, and the peak memory.

    Args:
        figures: As from `Throughput.summary`; with `unreadable_train`, as from `take_unreadable`.
        epoch: Number of the epoch.
        workers: Loader workers of a process.
        device: Device of the run; the CPU has no peak memory.

    Returns:
        The epoch for `RunRecord.add_epoch`: the figures with its number and the memory in GiB.
    """
    _logger.info(describe_wait(epoch, figures, workers))
    unreadable = figures['unreadable_train']
    if unreadable is not None and unreadable.count:
        _logger.warning('Data: ' + unreadable.describe(f'of epoch {epoch}', 'others took their place'))
    memory = devices.peak_memory(device) or {}
    if memory:
        _logger.info(f'Memory: {memory["peak_gib"]:.2f} GiB at the peak, of {memory["total_gib"]:.2f}')
    return dict(figures, epoch=epoch, **memory)


def describe_wait(epoch: int, figures: Dict[str, Any], workers: int) -> str:
    """Log line: how much of an epoch was spent waiting for data, and what helps if it was too much.

    Args:
        epoch: Number of the epoch.
        figures: As from `Throughput.summary`.
        workers: Loader workers of a process.
    """
    share = figures['data_wait_share']
    line = f'Data: {100 * share:.1f} % of epoch {epoch} was spent waiting for images'
    if share > MOST_WAITING:
        line += (f'. To wait less: use more loader workers (--workers, {workers} now), smaller files (seresnet-timm '
                 'prepare), the C decoder (seresnet-timm doctor shows whether it is built)')
    return line


class LossMeter:
    """Mean loss of an epoch. Values stay on the device until `read`, the only point that waits for it.

    Args:
        device: Device of the losses.
        distributed: Of all ranks.
        only_finite: Leave losses that are not finite out of the mean.
    """

    def __init__(self, device: torch.device, distributed: bool = False, only_finite: bool = False):
        self.distributed, self.only_finite = distributed, only_finite
        self._last = torch.zeros((), device=device)
        self._pending = torch.zeros(2, device=device)  # sum, and images left out, since the last read
        self._pending_count = 0
        self._sum = 0.  # float64 on the host, so that an epoch's sum loses nothing
        self._count = 0
        self._left_out = 0.

    def update(self, loss: torch.Tensor, num_images: Union[int, torch.Tensor]) -> None:
        """Add a batch's mean loss. A number of images on the device stays there too."""
        # each operator here starts a kernel in each step: they are few
        self._last = loss = loss.detach().float()
        total, left_out = self._pending.unbind()
        if self.only_finite:
            loss = loss.nan_to_num(0., 0., 0.)
            left_out.add_(loss.ne(self._last) * num_images)
        total.add_(loss * num_images)
        self._pending_count += num_images

    def read(self) -> Tuple[float, float]:
        """Last batch's loss and the epoch's mean so far, over all ranks. All ranks must call it together."""
        last, mean, _ = self.read_with(self._pending[:0])
        return last, mean

    def read_with(self, others: torch.Tensor) -> Tuple[float, float, List[float]]:
        """`read`, and numbers that are equal on all ranks; the host waits once."""
        pending = torch.cat((self._last.reshape(1), self._pending, others))
        if self.distributed:
            dist.all_reduce(pending)
            pending /= dist.get_world_size()
        last, interval_sum, left_out, *values = pending.tolist()
        self._sum += interval_sum
        self._count += int(self._pending_count)
        self._left_out += left_out
        self._pending.zero_()
        self._pending_count = 0
        counted = self._count - self._left_out
        return last, self._sum / max(1, counted) if counted or not self._left_out else float('nan'), values

    @property
    def left_out(self) -> torch.Tensor:
        """Images that were left out since the last read, on this rank; on the device."""
        return self._pending[1]

    @property
    def count(self) -> int:
        """Images read so far, on this rank."""
        return self._count

    def copy(self) -> 'LossMeter':
        """The meter as it is now. The host does not wait for the device."""
        copied = copy.copy(self)
        copied._pending = self._pending.clone()
        return copied

    def state_dict(self) -> Dict[str, Any]:
        """What the meter holds. The host waits for the device here."""
        pending = torch.cat((self._last.reshape(1), self._pending)).tolist()
        return dict(pending=pending, pending_count=self._pending_count, sum=self._sum, count=self._count,
                    left_out=self._left_out)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        last, *pending = state['pending']
        self._last = torch.tensor(last, device=self._pending.device)
        self._pending = torch.tensor(pending, device=self._pending.device)
        self._pending_count, self._sum, self._count = state['pending_count'], state['sum'], state['count']
        self._left_out = state.get('left_out', 0.)


def mean_losses(states: List[Dict[str, Any]], world_size: int) -> Dict[str, Any]:
    """State of a LossMeter of each rank, for another number of ranks: from those of all ranks before."""
    share = len(states) / world_size  # of what a rank counted before: sums are means over the ranks

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)
    last, *pending = (mean(values) for values in zip(*(s['pending'] for s in states)))
    sums = {k: share * mean([s.get(k, 0.) for s in states]) for k in ('pending_count', 'sum', 'count', 'left_out')}
    return dict(sums, pending=[last, *(share * value for value in pending)])


class Throughput:
    """Wall time of training steps: since the last read, over the epoch, and without the first steps.

    `fps` follows the reference: images of all ranks over the wall time of the steps after the first two, waiting for
    data included. In an epoch of at most two steps all of them count.
    """

    SKIP_STEPS = 2

    def __init__(self):
        self._start = self._last_read = time.perf_counter()
        self._steps = self._images = 0
        self._read_steps, self._read_wait = 0, 0.
        self._warm: Optional[Tuple[float, int]] = None  # time and images when the first steps are done
        self._wait = 0.

    def add_wait(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._wait += seconds

    def step(self, num_images: int) -> None:
        """Count an optimizer step on `num_images` images of all ranks."""
        self._steps += 1
        self._images += num_images
        if self._steps == self.SKIP_STEPS:
            self._warm = (time.perf_counter(), self._images)

    def read(self) -> Tuple[Tuple[float, float], Tuple[float, float]]:
        """Seconds a step, and of it waiting for data: each since the last read, and over the epoch."""
        now = time.perf_counter()
        steps, all_steps = max(1, self._steps - self._read_steps), max(1, self._steps)
        seconds = (now - self._last_read) / steps, (now - self._start) / all_steps
        wait = (self._wait - self._read_wait) / steps, self._wait / all_steps
        self._last_read, self._read_steps, self._read_wait = now, self._steps, self._wait
        return seconds, wait

    def state_dict(self) -> Dict[str, Any]:
        """What was counted so far, with times since the start of the epoch."""
        return dict(
            seconds=time.perf_counter() - self._start, steps=self._steps, images=self._images, wait=self._wait,
            warm=None if self._warm is None else (self._warm[0] - self._start, self._warm[1]))

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on counting; the time between is left out."""
        self._start = time.perf_counter() - state['seconds']
        self._steps, self._images, self._wait = state['steps'], state['images'], state['wait']
        self._read_steps, self._read_wait = self._steps, self._wait
        self._warm = None if state['warm'] is None else (self._start + state['warm'][0], state['warm'][1])

    def summary(self) -> dict:
        """Figures of the epoch, once the device has finished it."""
        now = time.perf_counter()
        seconds = now - self._start
        start, skipped = self._warm if self._warm and self._images > self._warm[1] else (self._start, 0)
        return {
            'train_seconds': round(seconds, 3),
            'steps': self._steps,
            'images': self._images,
            'fps': round((self._images - skipped) / max(1e-9, now - start), 2),
            'data_wait_share': round(self._wait / max(1e-9, seconds), 4),
        }
