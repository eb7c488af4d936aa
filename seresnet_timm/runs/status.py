"""status.json of a run: how far it is, and whether it still lives, for `seresnet-timm watch`

Rank 0 writes the file every few seconds in a thread, so that a slow file system does not hold up the training. It is
removed when the run has finished: run.json says so then. This file does not import torch.
"""
import logging
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Iterator, Optional

import psutil

from seresnet_timm.errors import UsageError, first_line
from seresnet_timm.files import as_json, from_json, why_not_text
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.settings import RunSettings

_logger = logging.getLogger('train')
SCHEMA = 1
INTERVAL = 5.  # seconds between two writes
RUNNING = ('starting', 'training', 'evaluating')
FINAL = ('finished', 'stopped', 'failed')


@dataclass
class Status:
    """How far a training is, as rank 0 knows it. What is not known is None.

    Attributes:
        state: One of RUNNING or FINAL.
        text: Why it is stopped or failed, or ended early.
        host: Name of the machine of rank 0.
        system: Boot and process name space of that machine: where they are the same, `pid` can be looked up.
        pid: Process of rank 0.
        pid_started: When it started, in seconds since 1970.
        booted: When the machine started, by its clock of then: a clock that is set moves both; 0 if not known.
        launcher: Process that restarts it after a failure; None without one.
        began: When this process began to train, in seconds since 1970.
        written: When the file was written.
        moved: When the last step was made.
        beat: Number of writes.
        epoch: Epoch that is trained or evaluated, from 0.
        epochs: Epochs of the run.
        update: Updates of this epoch so far.
        updates: Updates of an epoch.
        batch: Batches of the evaluation so far.
        batches: Batches of an evaluation.
        loss: Mean training loss of this epoch so far.
        lr: Learning rate.
        images_per_second: Of all processes, since the log line before.
        metric: Name of the metric that ranks epochs.
        value: The metric of the last evaluation.
        best: Its best value.
        best_epoch: Epoch of that.
        seconds_left: Seconds until the end, when the file was written.
        ends: When the run will end, in seconds since 1970.
        ends_early: When `--early-stop` ends it if no epoch is better than the best.
        restarts: Restarts after a failure so far.
        max_restarts: Restarts at most.
        bad_steps: Steps of this epoch that were skipped.
        bad_images: Training images of the last epoch that could not be read.
    """
    state: str = 'starting'
    text: Optional[str] = None
    host: str = ''
    system: str = ''
    pid: int = 0
    pid_started: float = 0.
    booted: float = 0.
    launcher: Optional[int] = None
    began: float = 0.
    written: float = 0.
    moved: Optional[float] = None
    beat: int = 0
    epoch: Optional[int] = None
    epochs: Optional[int] = None
    update: Optional[int] = None
    updates: Optional[int] = None
    batch: Optional[int] = None
    batches: Optional[int] = None
    loss: Optional[float] = None
    lr: Optional[float] = None
    images_per_second: Optional[float] = None
    metric: Optional[str] = None
    value: Optional[float] = None
    best: Optional[float] = None
    best_epoch: Optional[int] = None
    seconds_left: Optional[float] = None
    ends: Optional[float] = None
    ends_early: Optional[float] = None
    restarts: int = 0
    max_restarts: int = 0
    bad_steps: Optional[int] = None
    bad_images: Optional[int] = None

    @classmethod
    def of_this_process(cls, settings: RunSettings) -> 'Status':
        """Status of a run that begins in this process."""
        is_child = settings.world_size > 1  # torchrun's agent, which restarts it, is the parent
        return cls(
            host=socket.gethostname(), system=this_system(), pid=os.getpid(),
            pid_started=psutil.Process().create_time(), booted=psutil.boot_time(),
            launcher=os.getppid() if is_child else None,
            began=time.time(), restarts=len(settings.restarts), max_restarts=settings.max_restarts)

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def is_here(self) -> bool:
        """Whether its processes are of this system, where they can be looked up."""
        return bool(self.system) and self.system == this_system()


def this_system() -> str:
    """What tells machines, their boots and their containers apart: processes of the same have one numbering."""
    parts = []
    with suppress(OSError):
        parts.append(Path('/proc/sys/kernel/random/boot_id').read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink('/proc/self/ns/pid'))
    return ' '.join(parts)


def process_status(pid: int) -> str:
    """Status of a process of this system as psutil names it, e.g. 'stopped'; '' if it has ended."""
    try:
        found = psutil.Process(pid).status() if pid else ''
    except psutil.NoSuchProcess:
        return ''
    return '' if found in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else found


class StatusFile:
    """Writes a status every few seconds while it is entered, from a thread.

    Args:
        folder: Folder of the run.
        status: The status, which the training changes.
    """

    def __init__(self, folder: RunFolder, status: Status):
        self.path, self.status = folder.status, status
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='status', daemon=True)
        self._has_warned = False

    def __enter__(self) -> 'StatusFile':
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join(2 * INTERVAL)  # a file system that hangs does not hold up the end
        if not self._thread.is_alive():
            self.write()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.write()

    def write(self) -> None:
        try:
            write_status(self.path, self.status)
        except OSError as e:  # the next time may succeed, and nothing but `watch` needs it
            if not self._has_warned:
                _logger.warning(f'{self.path} cannot be written ({e.strerror}): `seresnet-timm watch` '
                                'shows nothing new.')
            self._has_warned = True


def write_status(path: Path, status: Status) -> None:
    """Write all of the file or nothing. It may be lost in a crash of the machine, so nothing waits for the disk."""
    now = time.time()
    status.beat, status.written = status.beat + 1, now
    status.seconds_left = None if status.ends is None else max(0., status.ends - now)
    tmp = path.with_name(f'.{path.name}.tmp')
    try:
        tmp.write_text(as_json({'schema': SCHEMA, **asdict(status)}, indent=2) + '\n', encoding='utf-8')
        os.replace(tmp, path)
    except OSError:
        with suppress(OSError):
            tmp.unlink()
        raise


@contextmanager
def final_state(settings: RunSettings) -> Iterator[None]:
    """Note in the status of a training that this process runs how it ends; without an error the file goes."""
    try:
        yield
    except BaseException as e:
        is_stop = isinstance(e, (SystemExit, KeyboardInterrupt))
        _set_final(settings, 'stopped' if is_stop else 'failed', _signal_of(e) if is_stop else first_line(e))
        raise
    _set_final(settings, 'finished', None)


def set_stopped(settings: RunSettings, signal_name: str) -> None:
    """Note in the status of a training of this process that a signal stops it."""
    _set_final(settings, 'stopped', signal_name)


def _signal_of(error: BaseException) -> Optional[str]:
    """Name of the signal that stopped a process, from its exit code."""
    code = getattr(error, 'code', None)
    with suppress(ValueError):
        return signal.Signals(code - 128).name if isinstance(code, int) else None
    return None


def _set_final(settings: RunSettings, state: str, text: Optional[str]) -> None:
    if settings.verb != 'train' or not settings.output:
        return
    path = RunFolder(settings.output).status
    with suppress(OSError, UsageError):
        status = read_status(path)
        if status is not None and status.pid == os.getpid() and status.is_here:
            if state == 'finished':
                path.unlink()
                return
            status.state, status.text, status.ends, status.ends_early = state, text, None, None
            write_status(path, status)


def read_status(path: Path) -> Optional[Status]:
    """The status in a file; None if there is none.

    Raises:
        UsageError: The file is damaged, or of a later version.
    """
    reason = why_not_text(path)
    if reason and path.exists():
        raise UsageError(f'{path} cannot be read: {reason}.')
    try:
        content: Any = from_json(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UsageError(f'{path} cannot be read ({first_line(e)}).')
    if not isinstance(content, dict) or not isinstance(content.get('state'), str):
        raise UsageError(f'{path} is not the status of a run.')
    if isinstance(content.get('schema'), int) and content['schema'] > SCHEMA:
        raise UsageError(f'{path} was written by a later version of seresnet-timm: update the package.')
    known = {f.name: f for f in fields(Status)}
    values = {k: v for k, v in content.items() if k in known and _fits(known[k].type, v)}
    return Status(**values)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value of the file is of the type of its field; others are not known."""
    text = str(kind)
    if value is None:
        return 'Optional' in text
    if isinstance(value, bool):
        return False
    if 'str' in text:
        return isinstance(value, str)
    is_number = isinstance(value, int) or 'float' in text and isinstance(value, float)
    return is_number and abs(value) < 1e12  # nor infinite, nor NaN
