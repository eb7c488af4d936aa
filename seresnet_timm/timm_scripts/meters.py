"""Meters in the form that timm's scripts use them."""
import time

import torch

from seresnet_timm.engine.meters import LossMeter


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
