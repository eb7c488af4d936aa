"""Ports of this machine for tests, which other processes may use at the same time."""
import contextlib
import errno
import socket
import time
from typing import Iterator, Optional

# Below those that Linux gives to any socket that does not name one (32768-60999): another process cannot get one of
# these by chance between the choice here and its use. The package chooses none of them itself (hccl_ports.CANDIDATES).
LOWEST, HIGHEST = 10000, 19999
_kept = contextlib.ExitStack()  # until this process ends


def free_ports(count: int = 1) -> int:
    """First of some successive ports at which nobody listens. No other test gets them, of any test run."""
    for first in range(LOWEST, HIGHEST - count + 2, count):
        names = _keep(first, count)
        if names is None:
            continue
        _kept.push(names)
        if all(map(_is_free, range(first, first + count))):
            return first
    raise RuntimeError(f'No {count} ports in a row are free from {LOWEST} to {HIGHEST}')


@contextlib.contextmanager
def kept(first: int, count: int) -> Iterator[None]:
    """Waits for ports that another test run uses, and keeps them; for tests that need certain ones."""
    while (names := _keep(first, count)) is None:
        time.sleep(0.1)
    with names:
        taken = [port for port in range(first, first + count) if not _is_free(port)]
        assert not taken, f'another program listens at {taken}'
        yield


def _keep(first: int, count: int) -> Optional[contextlib.ExitStack]:
    """Names in the kernel, which end with this process; None if another one has any of them."""
    with contextlib.ExitStack() as names:
        for port in range(first, first + count):
            name = names.enter_context(socket.socket(socket.AF_UNIX))
            try:
                name.bind(f'\0test of seresnet_timm at port {port}')
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise
                return None
        return names.pop_all()


def _is_free(port: int) -> bool:
    """At every address, also as one that has just been closed."""
    with socket.socket() as s:
        try:
            s.bind(('', port))
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise
            return False
    return True
