"""Batches that BatchNorm layers have seen (`num_batches_tracked`): one addition for a network, not one for each layer

The counters of a network become parts of one tensor. They stay buffers of their layers under timm's names, with their
values right at every time: for checkpoints, moving averages, DDP and whoever reads them. An addition of a list
(`torch._foreach_add_`) would not do: an NPU has it for no integers of 64 bits.
"""
from contextlib import contextmanager
from typing import Any, Iterator, List

import torch
import torch.nn as nn

NAME = 'num_batches_tracked'


@contextmanager
def counted_together(layers: List[nn.Module]) -> Iterator[None]:
    """Count one batch for all layers at the end, by one addition; the layers do not count meanwhile.

    Args:
        layers: As from `countable`; each runs once.
    """
    counters: List[Any] = [layer._buffers[NAME] for layer in layers]
    if not are_together(counters):
        put_together(counters)
    try:
        for layer in layers:
            layer._buffers[NAME] = None
        yield
    finally:
        for layer, counter in zip(layers, counters):
            layer._buffers[NAME] = counter
    counters[0].as_strided((len(counters),), (1,)).add_(1)


def countable(layer: Any) -> bool:
    """True for a BatchNorm that counts the batches it sees, and does not compute with their number."""
    if type(layer) is not nn.BatchNorm2d or not layer.training or layer.momentum is None:
        return False
    counter = layer._buffers.get(NAME)
    return type(counter) is torch.Tensor and counter.dtype == torch.int64 and counter.dim() == 0


def are_together(counters: List[torch.Tensor]) -> bool:
    """Whether the counters are the values of one tensor, in their order."""
    storage, start = counters[0].untyped_storage()._cdata, counters[0].storage_offset()
    return all(c.untyped_storage()._cdata == storage and c.storage_offset() == start + i
               for i, c in enumerate(counters))


def put_together(counters: List[torch.Tensor]) -> None:
    """Move the values of the counters into one tensor; they stay the same objects, which DDP holds."""
    with torch.no_grad():
        for counter, part in zip(counters, torch.stack([c.detach() for c in counters]).unbind()):
            counter.data = part
