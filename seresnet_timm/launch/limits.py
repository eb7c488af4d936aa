"""Limits of a process and its container: open files, memory, threads. Without torch, which may not be loadable then"""
import errno
import mmap
import os
import resource
import threading
from contextlib import suppress
from pathlib import Path
from typing import Iterable, Iterator, Optional

from seresnet_timm import process

FILES, THREADS = 24, 4  # that every process needs which computes, beside the threads that compute
OF_LAUNCHER = 6  # threads that start and watch several processes
MAX_COMPUTING = 64  # threads of OpenBLAS
MAX_TRIED = 128  # threads: other programs of this user need some meanwhile
MIB = 2 ** 20
OF_MEMORY = ('failed to map segment', 'Cannot allocate memory', 'bad_alloc', "can't allocate memory")
OF_THREADS = ("can't start new thread", 'Thread creation failed', 'Resource temporarily unavailable',
              'Failed to init uv loop')


def check(processes: int = 1, files: int = 0, threads: int = 0, memory: int = 0) -> Iterator[str]:
    """What is certainly not enough, as sentences. Threads and memory are tried, and given back.

    Args:
        processes: Processes that compute.
        files: Files that one of them opens beside `FILES`.
        threads: Threads and processes that each of them starts beside `THREADS`.
        memory: Bytes of each.
    """
    files += FILES
    threads = processes * (threads + THREADS + _computing())
    if processes > 1:
        threads += OF_LAUNCHER + processes
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < files:  # negative: none
        yield (f'At most {limit} files can be open in a process, {files} or more are needed: raise the limit (`ulimit '
               '-n 65536`).')
    started = _start(min(threads, MAX_TRIED))
    if started < min(threads, MAX_TRIED):
        yield (f'Only {started} further threads or processes can be started, {threads} or more are needed: '
               f'{_more_threads()}.')
    if memory and not _can_map(memory):
        yield f'{mib(memory)} of memory or more are needed, and cannot be had: {_more_memory()}.'
    free = _free_in_container()
    if free is not None and free < processes * memory:
        yield (f'{mib(processes * memory)} of memory or more are needed, the container has '
               f'{mib(free)} free: raise its memory limit (`docker run --memory`), or use a smaller model.')


def most_processes() -> Optional[int]:
    """Processes and threads that the container, the kernel or `ulimit -u` allows; None if none of them says so."""
    found = [words for group in process.groups('pids') for words in group.read('pids.max')]
    if os.geteuid():  # it does not bind root
        found.append(str(resource.getrlimit(resource.RLIMIT_NPROC)[0]))
    with suppress(OSError):
        found += Path('/proc/sys/kernel/threads-max').read_text().split()
    return min((int(n) for n in found if n.isdigit()), default=None)  # not `max`, nor -1


def explain(error: Optional[BaseException]) -> Optional[str]:
    """The sentence for an error that comes from a limit of the process or container; None for another error."""
    while error is not None:
        sentence = _explain(error)
        if sentence is not None:
            return sentence
        error = error.__cause__ or error.__context__
    return None


def mib(size: float) -> str:
    return f'{size / MIB:,.1f} MiB' if size < 100 * MIB else f'{size / MIB:,.0f} MiB'


def _explain(error: BaseException) -> Optional[str]:
    code, text = getattr(error, 'errno', None), str(error)
    if code in (errno.EMFILE, errno.ENFILE) or 'Too many open files' in text:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f'Too many files are open, at most {limit} can be: raise the limit (`ulimit -n 65536`).'
    is_failed_call = isinstance(error, SystemError) and _address_space() is not None
    if is_failed_call or isinstance(error, MemoryError) or code == errno.ENOMEM or _has(text, OF_MEMORY):
        return f'There is not enough memory for this process: {_more_memory()}.'
    if code == errno.EAGAIN or _has(text, OF_THREADS):
        return f'No further thread or process can be started: {_more_threads()}.'
    return None


def _has(text: str, words: Iterable[str]) -> bool:
    return any(word in text for word in words)


def _computing() -> int:
    """Threads that numpy and torch start to compute."""
    typed = os.environ.get('OMP_NUM_THREADS', '')
    return min(int(typed) if typed.isdigit() else process.cores(), MAX_COMPUTING) - 1


def _more_threads() -> str:
    limit = _address_space()
    memory = '' if limit is None else f' or of the memory of a process ({mib(limit)}, `ulimit -v unlimited`)'
    return (f'raise the limit of processes (`ulimit -u`, `docker run --pids-limit`){memory}, or set OMP_NUM_THREADS=1 '
            'and use fewer loader workers (-j)')


def _more_memory() -> str:
    limit = _address_space()
    if limit is not None:
        return f'its limit is {mib(limit)}, raise it (`ulimit -v unlimited`)'
    return 'end other programs, raise the memory limit of the container, or use a smaller model or batch'


def _address_space() -> Optional[int]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit < 0 else limit


def _start(count: int) -> int:
    """Start threads, and end them; how many there could be at the same time."""
    end, threads = threading.Event(), []  # type: threading.Event, List[threading.Thread]
    try:
        for _ in range(count):
            threads.append(threading.Thread(target=end.wait, daemon=True))
            threads[-1].start()
    except (RuntimeError, MemoryError):
        threads.pop()
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return len(threads)


def _can_map(size: int) -> bool:
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def _free_in_container() -> Optional[int]:
    """Bytes that the memory cgroup of this process leaves; None without a limit. Files in its cache do not count."""
    free = []
    for group in process.groups('memory'):
        most, used, cached = ('memory.max', 'memory.current', 'file') if group.version == 2 else (
            'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_cache')
        limit, usage, stat = group.read(most), group.read(used), group.read('memory.stat')
        if limit and limit[0].isdigit() and usage:  # not `max`
            free.append(int(limit[0]) - int(usage[0]) + int(dict(zip(stat[::2], stat[1::2])).get(cached, 0)))
    return min(free, default=None)
