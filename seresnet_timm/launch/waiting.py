"""Processes that wait for each other: they say for whom after ten seconds, and end at --rdzv-timeout"""
import os
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Callable, Iterator, Optional

from seresnet_timm.errors import RunError, first_line, first_names
from seresnet_timm.launch.cluster import Cluster, uses_agent_store
from seresnet_timm.launch.network import answers, check_port
from seresnet_timm.process import within

FIRST_LINE_AFTER = 10  # seconds; each further line after three times as long
MAX_NAMED = 8  # ranks that one line lists


class Wait:
    """A wait that began now.

    Args:
        seconds: How long it may last.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._start = time.monotonic()
        self._next_line = min(FIRST_LINE_AFTER, seconds / 3)

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self._start >= self.seconds

    def go_on(self, for_whom: Optional[str]) -> None:
        """Wait a moment, and print from time to time for whom; None prints nothing."""
        passed = time.monotonic() - self._start
        if for_whom and passed >= self._next_line:
            print(f'Waiting for {for_whom}: {passed:.0f} s of at most {self.seconds:g} s.', file=sys.stderr, flush=True)
            self._next_line = 3 * passed
        time.sleep(0.05 if passed < 1 else 0.5)


@contextmanager
def printed(for_whom: str, seconds: float, is_over: Callable[[], bool]) -> Iterator[None]:
    """Print for whom this process waits, in a thread, until that is over or the block ends."""
    ended, wait = threading.Event(), Wait(seconds)

    def print_lines() -> None:
        while not ended.is_set() and not wait.is_over and not is_over():
            wait.go_on(for_whom)
    threading.Thread(target=print_lines, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def wait_for_ranks(job: Cluster, seconds: int) -> Optional[Any]:
    """Wait until all ranks of a job are there, that somebody else has started.

    Args:
        job: The job; torch's variables of this rank are in the environment.
        seconds: How long to wait.

    Returns:
        The store where they met, to be kept until the process group exists; None for one rank.

    Raises:
        UsageError: Rank 0 cannot listen at its port.
        RunError: Not all have come in time; the sentence says who is missing.
    """
    rank, size = job.variable('RANK'), job.variable('WORLD_SIZE')
    if size == 1:
        return None
    address, port = os.environ.get('MASTER_ADDR', 'localhost'), job.variable('MASTER_PORT', 29500)
    place, wait = f'{address}:{port}', Wait(seconds)
    remedy = (f'start them, or wait longer with --rdzv-timeout SECONDS; {job.variables} make this process wait, '
              '--nproc 1 --nnodes 1 lets it train alone.')
    hosts = rank == 0 and not uses_agent_store(os.environ)
    if hosts:
        check_port(port)
    while not hosts and not answers(address, port, 0):
        if wait.is_over:
            raise RunError(f'Rank 0 cannot be reached at {place} within {seconds} s: {remedy}')
        wait.go_on(f'rank 0 at {place}')
    try:
        store = _store(address, port, hosts, seconds)
        store.set(f'rank{rank}', '')
        store.add('arrived', 1)
        while store.add('arrived', 0) < size:
            # the first rank speaks for all
            missing = _missing(store, size) if rank == 0 or wait.is_over else None
            if wait.is_over:
                raise RunError(f'{missing.capitalize()} of {size} did not come to {place} within {seconds} s: {remedy}')
            wait.go_on(f'{missing} of {size} at {place}' if missing else None)
    except RuntimeError as e:  # torch.distributed's errors of stores
        raise RunError(f'Rank 0 at {place} has ended, or belongs to another job ({first_line(e)}): its log says why.')
    return store


def open_store(address: str, port: int, seconds: float, timeout: float, **options: Any) -> Any:
    """A store of torch.distributed, for which this process waits until a time limit.

    torch has none for a program that listens there and never answers, because it is another one.

    Args:
        address: Address of its host.
        port: Port.
        seconds: How long to wait for it.
        timeout: How long its own calls may wait, in seconds.
        options: Further arguments of TCPStore.

    Raises:
        RunError: It did not answer in time.
    """
    from torch.distributed import TCPStore
    place = f'{address}:{port}'
    with printed(f'the store of torch.distributed at {place}', seconds, lambda: False):
        try:
            return within(seconds, lambda: TCPStore(address, port, timeout=timedelta(seconds=timeout), **options))
        except TimeoutError:
            raise RunError(f'What listens at {place} did not answer as a store of torch.distributed within '
                           f'{seconds:g} s: it may be another program. Name another port with MASTER_PORT; without a '
                           'torchrun, unset TORCHELASTIC_RUN_ID RANK LOCAL_RANK WORLD_SIZE.') from None


def _store(address: str, port: int, hosts: bool, seconds: int) -> Any:
    """The store of rank 0 or of torchrun's agent; the process group uses the same, as it is multi-tenant."""
    from torch.distributed import PrefixStore
    seconds = max(1, seconds)
    store = open_store(address, port, seconds, seconds, is_master=hosts, wait_for_workers=False, multi_tenant=True)
    return PrefixStore(f'seresnet_timm/ranks/{os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")}', store)


def _missing(store: Any, size: int) -> str:
    ranks = [str(rank) for rank in range(size) if not store.check([f'rank{rank}'])]
    return f'rank{"s" if len(ranks) > 1 else ""} {first_names(ranks, MAX_NAMED)}'
