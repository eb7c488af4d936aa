"""Signs of life: every rank counts its steps in a file, so that its launcher sees which one makes no more steps

A step is an optimizer step of a training, or a batch of an evaluation. The count is memory that both processes map, so
that it costs nothing and is seen even if the rank can no longer answer. A rank, or one of its loader workers, that
waits for its data says so there too. A thread of the rank notes every second that Python runs; it does not while a
call of C or C++ keeps Python's lock (GIL).
"""
import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional

RECORD = struct.Struct('qqdqd')  # process, steps, time of the last wait, places, time at which Python ran last
STEPS, WAIT, PLACES, RAN = (struct.Struct(part) for part in ('qq', 'd', 'q', 'd'))
PULSE = 1.  # seconds


@dataclass(frozen=True)
class Heartbeat:
    """What a rank has written.

    Attributes:
        pid: Its process; 0 before it has started.
        steps: Steps so far.
        waited: Time (`time.monotonic`) at which it said last that it waits for its data; 0 if never.
        places: Places in its steps that it has passed: a batch is there, its loss is known. Of ranks with as many
            steps, those that wait for another one in the backward pass have passed more than that one.
        ran: Time (`time.monotonic`) at which Python ran last, to within a second; 0 if that is not known. By itself it
            is no sign of life.
    """
    pid: int
    steps: int
    waited: float = 0.
    places: int = 0
    ran: float = field(default=0., compare=False)


class _Writer:
    """The record of this process, once it has one."""
    memory: Optional[mmap.mmap] = None
    offset = 0
    steps = 0
    places = 0
    has_hook = False  # of torch's optimizers, which stays


def create(file: Path, ranks: int) -> None:
    """Make the file of this number of ranks, none of which has started."""
    file.write_bytes(bytes(RECORD.size * ranks))


def read(file: Path) -> List[Heartbeat]:
    """What the ranks have written, in the order of their local ranks."""
    return [Heartbeat(*record) for record in RECORD.iter_unpack(file.read_bytes())]


def start(file: Path, local_rank: int) -> None:
    """Count this process's steps from now on: optimizer steps by themselves, others by `beat`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook
    with open(file, 'r+b') as f:
        _Writer.memory = mmap.mmap(f.fileno(), 0)
    _Writer.offset, _Writer.steps, _Writer.places = RECORD.size * local_rank, 0, 0
    RECORD.pack_into(_Writer.memory, _Writer.offset, os.getpid(), 0, 0., 0, 0.)
    if not _Writer.has_hook:
        register_optimizer_step_post_hook(lambda *_: beat())
        _Writer.has_hook = True


def keep_noting_that_python_runs() -> None:
    """Start the thread that notes it, after `start`."""
    memory, offset = _Writer.memory, _Writer.offset + STEPS.size + WAIT.size + PLACES.size

    def note() -> None:
        while memory is not None:
            RAN.pack_into(memory, offset, time.monotonic())
            time.sleep(PULSE)
    threading.Thread(target=note, name='heartbeat', daemon=True).start()


def beat() -> None:
    """Count a step, if this process counts any."""
    if _Writer.memory is not None:
        _Writer.steps += 1
        STEPS.pack_into(_Writer.memory, _Writer.offset, os.getpid(), _Writer.steps)


def mark() -> None:
    """Say that this rank has come to a further place of its step."""
    if _Writer.memory is not None:
        _Writer.places += 1
        PLACES.pack_into(_Writer.memory, _Writer.offset + STEPS.size + WAIT.size, _Writer.places)


def wait() -> None:
    """Say that this rank waits for its data. Its loader workers call it too."""
    if _Writer.memory is not None:
        WAIT.pack_into(_Writer.memory, _Writer.offset + STEPS.size, time.monotonic())
