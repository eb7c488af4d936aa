"""Meters in the form that timm's scripts use them."""
import time
from typing import Any, Callable, Optional

import torch

from seresnet_timm.engine.meters import LossMeter, Throughput


class DeviceMeter:
    """timm's AverageMeter for tensors: they stay on the device until `val` or `avg` is read."""

    def __init__(self, device: torch.device):
        self.created = time.perf_counter()
        self._meter = LossMeter(device)
        self._fresh = True
        self._val = self._avg = 0.

    def update(self, value: torch.Tensor, n: int = 1) -> None:
        self._meter.update(value, n)
        self._fresh = False

    def _read(self) -> None:
        if not self._fresh:
            self._val, self._avg = self._meter.read()
            self._fresh = True

    @property
    def val(self) -> float:
        self._read()
        return self._val

    @property
    def avg(self) -> float:
        self._read()
        return self._avg

    @property
    def count(self) -> int:
        self._read()
        return self._meter.count


class TimedLoader:
    """A loader that measures: time waiting for batches, and images by step.

    Args:
        loader: The loader.
        throughput: Takes the figures.
        world_size: Number of ranks.
        check: Called after the first of every `interval` batches.
        interval: Number of batches.
    """

    def __init__(
            self, loader: Any, throughput: Throughput, world_size: int, check: Optional[Callable[[], None]] = None,
            interval: int = 1):
        self._loader, self._throughput, self._world_size = loader, throughput, world_size
        self._check, self._interval = check, interval

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def mixup_enabled(self) -> bool:
        return self._loader.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._loader.mixup_enabled = enabled

    def __iter__(self):
        start = time.perf_counter()
        for i, batch in enumerate(self._loader):
            if self._check is not None and i % self._interval == 0:
                self._check()
            self._throughput.add_wait(time.perf_counter() - start)
            yield batch
            self._throughput.step(len(batch[1]) * self._world_size)
            start = time.perf_counter()
