"""This process: what a container, job or service (cgroups) allows, calls with a time limit, its end with its parent"""
import ctypes
import math
import os
import signal
import sys
import threading
from typing import Any, Callable, List, NamedTuple, Optional

FIRST_ANSWER = 6.  # seconds until a server has answered for the first time; later answers have more time
PR_SET_PDEATHSIG = 1


class Group(NamedTuple):
    """A control group, of version 1 or 2.

    Attributes:
        folder: Its folder.
        version: 1 or 2.
    """
    folder: str
    version: int

    def read(self, name: str) -> List[str]:
        """Words of a file of the group; none if there is no such file."""
        try:
            with open(os.path.join(self.folder, name)) as file:
                return file.read().split()
        except OSError:
            return []


def groups(controller: str) -> List[Group]:
    """The groups of this process that a controller (cpu, memory, pids) may limit: its own, and those above it."""
    try:
        with open('/proc/self/cgroup') as file:
            lines = [line.rstrip('\n').split(':', 2) for line in file]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        parts = [part for part in path.split('/') if part]
        parents = ['/'.join(parts[:n]) for n in range(len(parts) + 1)]
        if not controllers:
            found += [Group(f'/sys/fs/cgroup/{p}', 2) for p in parents]
        elif controller in controllers.split(','):
            found += [Group(f'/sys/fs/cgroup/{controller}/{p}', 1) for p in parents]
    return found


def cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer by a quota (`docker --cpus`, limits.cpu)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    quotas = [q for q in map(_quota, groups('cpu')) if q is not None]
    return max(1, min([bound, *(math.ceil(q) for q in quotas)]))


def memory_limits() -> List[int]:
    """Bytes of memory that the groups of this process may use together; one without a limit says an enormous number."""
    words = [w for g in groups('memory') for w in g.read('memory.max' if g.version == 2 else 'memory.limit_in_bytes')]
    return [int(word) for word in words if word.isdigit()] or [2 ** 63]  # not `max`


def _quota(group: Group) -> Optional[float]:
    """Cores whose time a group has; None without a limit."""
    words = group.read('cpu.max') if group.version == 2 else [
        *group.read('cpu.cfs_quota_us'), *group.read('cpu.cfs_period_us')]
    if len(words) != 2 or not words[0].isdigit() or int(words[1]) <= 0:  # `max`, or -1
        return None
    return int(words[0]) / int(words[1])


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Result of a call that has no time limit of its own, such as the look-up of an address, or one to a silent proxy.

    Args:
        seconds: Time that it may take. A call that takes longer goes on in its thread, which ends with the process.
        call: Called in a thread.

    Raises:
        TimeoutError: It took longer.
    """
    results: List[Any] = []
    errors: List[BaseException] = []

    def target() -> None:
        try:
            results.append(call())
        except BaseException as e:
            errors.append(e)
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f'no answer within {seconds:g} s')
    return results[0]


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it has ended, however that came about (Linux)."""
    parent = os.getppid()
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit('The process that started this one has ended.')
