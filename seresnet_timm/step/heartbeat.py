"""Signs of life: every rank counts its steps in a file, so that its launcher sees which one makes no more steps

A step is an optimizer step of a training, or a batch of an evaluation. The count is memory that both processes map, so
that it costs nothing and is seen even if the rank can no longer answer.
"""
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

RECORD = struct.Struct('qq')  # process, steps


@dataclass(frozen=True)
class Heartbeat:
    """What a rank has written.

    Attributes:
        pid: Its process; 0 before it has started.
        steps: Steps so far.
    """
    pid: int
    steps: int


class _Writer:
    """The record of this process, once it has one."""
    memory: Optional[mmap.mmap] = None
    offset = 0
    steps = 0
    has_hook = False  # of torch's optimizers, which stays


def create(file: Path, ranks: int) -> None:
    """Make the file of this number of ranks, none of which has started."""
    file.write_bytes(bytes(RECORD.size * ranks))


def read(file: Path) -> List[Heartbeat]:
    """What the ranks have written, in the order of their local ranks."""
    return [Heartbeat(pid, steps) for pid, steps in RECORD.iter_unpack(file.read_bytes())]


def start(file: Path, local_rank: int) -> None:
    """Count this process's steps from now on: optimizer steps by themselves, others by `beat`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook
    with open(file, 'r+b') as f:
        _Writer.memory = mmap.mmap(f.fileno(), 0)
    _Writer.offset, _Writer.steps = RECORD.size * local_rank, 0
    RECORD.pack_into(_Writer.memory, _Writer.offset, os.getpid(), 0)
    if not _Writer.has_hook:
        register_optimizer_step_post_hook(lambda *_: beat())
        _Writer.has_hook = True


def beat() -> None:
    """Count a step, if this process counts any."""
    if _Writer.memory is not None:
        _Writer.steps += 1
        RECORD.pack_into(_Writer.memory, _Writer.offset, os.getpid(), _Writer.steps)
