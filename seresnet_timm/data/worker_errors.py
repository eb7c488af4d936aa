"""Loader workers that end, or that run out of shared memory or open files: one sentence, and never a wait without end

A batch travels from a worker process in shared memory. It is put there by a thread of the worker, whose error Python
prints and forgets: the main process would wait for that batch for ever. `end_worker_at_queue_error` ends the worker, so
that the main process notices.

When a worker ends, torch's handler of SIGCHLD raises an error wherever the main process is: in a destructor or inside
`logging`, where Python prints a traceback and goes on, or in the code that explains another worker's error.
`raise_where_loader_waits` keeps the error to the one place that it is for. Elsewhere the end of the worker is noted,
and the loader finds it by itself, at most 5 seconds after it begins to wait for a batch.
"""
import errno
import multiprocessing.queues
import os
import re
import shutil
import signal
from types import FrameType
from typing import Any, Iterator, List, Optional, Sequence

from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

SHM = '/dev/shm'
MANY_SEMAPHORES = 1 << 20  # bytes in /dev/shm
NO_SHM, NO_FILES = 74, 75  # exit codes of a worker
DEAD_WORKER = re.compile(r'DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) (?:is killed by signal: ([\w ]+)|'
                         r'exited unexpectedly(?: with exit code (-?\d+))?)')
SHM_ERRORS = ('shared memory', 'unable to write to file </torch_')
_noted: List[str] = []  # how workers ended while the main process did not wait for one


def end_worker_at_queue_error() -> None:
    """Let loader workers that are forked from now on end where they cannot hand over a batch."""
    queue = multiprocessing.queues.Queue
    original = queue._on_queue_feeder_error

    def on_error(error: BaseException, item: Any) -> None:
        if get_worker_info() is not None:
            if any(words in str(error) for words in SHM_ERRORS):
                os._exit(NO_SHM)
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                os._exit(NO_FILES)
            original(error, item)
            os._exit(1)
        original(error, item)
    if not hasattr(original, 'ends_worker'):
        on_error.ends_worker = True  # type: ignore[attr-defined]
        queue._on_queue_feeder_error = staticmethod(on_error)  # type: ignore[assignment]


def raise_where_loader_waits() -> None:
    """Let torch tell of a worker that ended only where the main process waits for a batch."""
    def handler(signum: int, frame: Optional[FrameType]) -> None:
        try:
            signal_handling._error_if_any_worker_fails()
        except RuntimeError as e:
            if _waits_for_batch(frame):
                raise
            _noted.append(str(e))
        if callable(previous):
            previous(signum, frame)

    if signal_handling._SIGCHLD_handler_set:
        return  # torch's own, or this one
    previous: Any = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, handler)
    signal_handling._SIGCHLD_handler_set = True


def _waits_for_batch(frame: Optional[FrameType]) -> bool:
    """Whether code at `frame` was called by the function of a loader that waits, and not by a destructor in it."""
    while frame is not None and frame.f_code.co_name != '__del__':
        if frame.f_code is _MultiProcessingDataLoaderIter._try_get_data.__code__:
            return True
        frame = frame.f_back
    return False


def ended_workers(iterator: _MultiProcessingDataLoaderIter) -> List[Any]:
    """Processes of a loader that have ended while it is used."""
    return [] if iterator._shutdown else [worker for worker in iterator._workers if not worker.is_alive()]


def is_replaceable(code: Optional[int]) -> bool:
    """Whether a worker that ended with this exit code may be replaced: it was not short of shared memory or files."""
    return code not in (NO_SHM, NO_FILES, -signal.SIGBUS)


def describe_ends(workers: Sequence[Any]) -> str:
    """A sentence on workers that ended."""
    pids = ', '.join(str(worker.pid) for worker in workers)
    who = f'A loader worker (process {pids})' if len(workers) == 1 else f'Loader workers (processes {pids})'
    code = workers[0].exitcode
    if code is None or code >= 0:
        return f'{who} ended with exit code {code}.'
    name = signal.Signals(-code).name
    memory = ', most likely because memory ran out (`dmesg` tells)' if name == 'SIGKILL' else ''
    return f'{who} {"was" if len(workers) == 1 else "were"} ended by {name}{memory}.'


def as_torch_tells(workers: Sequence[Any]) -> str:
    """Likewise, in torch's words, which `explain` reads."""
    worker = next((worker for worker in workers if not is_replaceable(worker.exitcode)), workers[0])
    code = worker.exitcode or 0
    how = (f'is killed by signal: {signal.strsignal(-code)}' if code < 0 else
           f'exited unexpectedly with exit code {code}')
    return f'DataLoader worker (pid {worker.pid}) {how}.'


def kill_workers(iterator: _MultiProcessingDataLoaderIter) -> None:
    """End the other workers of a loader too, without an error in the main process."""
    signal_handling._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    iterator._shutdown_workers()
    _noted.clear()


def explain(error: BaseException, workers: Optional[int] = None) -> Optional[str]:
    """What an error of loader workers means and what to do; None if the error has another cause.

    Args:
        error: As the main process gets it.
        workers: Number of workers now.
    """
    text = '\n'.join(_texts(error))
    fewer = 'load without worker processes (-j 0)'
    if workers and workers > 1:
        fewer = f'use fewer loader workers (-j {workers // 2} instead of {workers})'
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE) or 'ancillary data' in text or (
            'Too many open files' in text):
        return f'Too many files are open for the loader workers: raise the limit (`ulimit -n 65536`), or {fewer}.'
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        # of a semaphore, which has no name in the error
        return _out_of_shm('The loader', fewer) if os.path.isdir(SHM) and _free(SHM) < MANY_SEMAPHORES else None
    found = [match.groups() for match in DEAD_WORKER.finditer(text)]
    if not found:
        return _out_of_shm('A loader worker', fewer) if 'DataLoader worker process' in text and any(
            words in text for words in SHM_ERRORS) else None
    # the loader itself does not know the signal or exit code
    found += [match.groups() for text in _noted for match in DEAD_WORKER.finditer(text)]
    pids, signal_name, code = next((groups for groups in found if groups[1] or groups[2]), found[0])
    who = f'A loader worker (process {pids.strip()})'
    if signal_name is not None and signal_name.startswith('Bus error') or code == str(NO_SHM):
        return _out_of_shm(who, fewer)
    if code == str(NO_FILES):
        return f'{who} has too many files open: raise the limit (`ulimit -n 65536`), or {fewer}.'
    if signal_name is not None and not signal_name.startswith('Killed'):
        return (f'{who} was ended by a signal ({signal_name.strip()}): if nobody sent it, `seresnet-timm check-data` '
                'looks for the image that causes it, and -j 0 shows where.')
    how = 'was killed' if signal_name or not code else f'ended with exit code {code}'
    return f'{who} {how}, most likely because memory ran out (`dmesg` tells): {fewer}, or a smaller batch (-b).'


def explain_shared_memory(error: BaseException) -> Optional[str]:
    """What to do where torch can make no file in shared memory; None if the error has another cause."""
    match = re.search(r'unable to (?:open|allocate) shared memory.*: (?P<reason>[^:(]+) \(\d+\)', str(error))
    if match is None:
        return None
    return (f'torch cannot use shared memory ({SHM}: {match["reason"]}): mount it writable '
            f'(`mount -o remount,rw,size=8g {SHM}`), or start the container with --shm-size 8g.')


def _texts(error: Optional[BaseException]) -> Iterator[str]:
    """Texts of an error and of those that it came from: torch tells the exit code of a worker in one of them."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _free(folder: str) -> int:
    return shutil.disk_usage(folder).free


def _out_of_shm(who: str, fewer: str) -> str:
    size = f' ({shutil.disk_usage(SHM).total / 2**20:,.1f} MiB in all)' if os.path.isdir(SHM) else ''
    return (f'{who} found no shared memory: {SHM} is full{size}. Make it larger (`docker run --shm-size '
            f'8g`, `mount -o remount,size=8g {SHM}`), {fewer}, or use a smaller batch (-b).')
