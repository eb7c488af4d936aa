"""Batches that BatchNorm layers have seen (`num_batches_tracked`): one addition for a network, not one for each layer

The counters of a network become parts of one tensor. They stay buffers of their layers under timm's names, with the
values that they have without this: for checkpoints, moving averages, DDP and whoever reads them between two passes. An
addition of a list (`torch._foreach_add_`) would not do: an NPU has it for no integers of 64 bits.

Whether a layer counts is decided by the layer: torch's BatchNorm calls `add_` of its counter. During a forward pass
this call is noted, and the additions are made at its end. So a layer that does not run, runs twice or does not track
its statistics has torch's count.
"""
from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator, List

import torch
import torch.nn as nn

NAME = 'num_batches_tracked'


@contextmanager
def counted_together(counters: List[torch.Tensor]) -> Iterator[None]:
    """Note what layers add to their counters meanwhile, and add it at the end: at once, if it is the same for all.

    Args:
        counters: Counters of layers that are `countable`; each once, and all on one device.
    """
    if not are_together(counters):
        put_together(counters)
    added = [0] * len(counters)

    def note(i: int, batches: int) -> None:
        added[i] += batches
    try:
        for i, counter in enumerate(counters):
            counter.__dict__['add_'] = partial(note, i)
        yield
    finally:
        for counter in counters:
            counter.__dict__.pop('add_', None)  # it is gone if the network ran inside of itself
        if len(set(added)) == 1:
            counters, added = [counters[0].as_strided((len(counters),), (1,))], added[:1]
        for counter, batches in zip(counters, added):
            if batches:
                counter.add_(batches)


def countable(layer: Any) -> bool:
    """True for a BatchNorm that counts the batches it sees, and does not compute with their number."""
    if type(layer) is not nn.BatchNorm2d or not layer.training or layer.momentum is None:
        return False
    counter = layer._buffers.get(NAME)
    return (layer.track_running_stats and type(counter) is torch.Tensor and counter.dtype == torch.int64
            and counter.dim() == 0)


def are_together(counters: List[torch.Tensor]) -> bool:
    """Whether the counters are the values of one tensor, in their order."""
    storage, start = counters[0].untyped_storage()._cdata, counters[0].storage_offset()
    return all(c.untyped_storage()._cdata == storage and c.storage_offset() == start + i
               for i, c in enumerate(counters))


def put_together(counters: List[torch.Tensor]) -> None:
    """Move the values of the counters into one tensor; they stay the same objects, which DDP holds."""
    with torch.inference_mode(False), torch.no_grad():
        for counter, part in zip(counters, torch.stack([c.detach() for c in counters]).unbind()):
            counter.data = part
