"""Notices a rank that makes no more steps, writes the stacks of all ranks, and ends the one that the others wait for"""
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Set

import psutil

from seresnet_timm.launch import machines
from seresnet_timm.launch.guard import guarded
from seresnet_timm.runs.folder import RunFolder, resume_hint
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.runs.status import process_status
from seresnet_timm.step import heartbeat

# a rank writes its stacks when it gets this one; no other program is known to send it
STACKS_SIGNAL = signal.SIGRTMIN + 7
WAITING = 10.  # seconds after which a rank that waits for its data says so again, at the latest
FIRST_STEP = 3  # times the limit, for a rank's first step


def write_stacks_on_signal(file: Path) -> None:
    """Let this process append the stacks of its threads to a file whenever it gets `STACKS_SIGNAL`."""
    import faulthandler
    file.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.register(STACKS_SIGNAL, open(file, 'a'), all_threads=True)  # which stays open


class Watch:
    """Watches the ranks of this node, in a thread, while it is entered.

    Args:
        file: The heartbeat file of the ranks.
        timeout: Seconds without a step of a rank that are too many; 0 watches nothing.
        end: Called once, with all heartbeats and the local ranks that hold up the run.
        first_rank: Rank of the first record of the file.
        look: Called at each look, with the seconds that the first rank has for its step.

    Attributes:
        sentence: What was found; None while all is well.
    """

    def __init__(
            self,
            file: Path,
            timeout: float,
            end: Callable[[List[heartbeat.Heartbeat], List[int]], None],
            first_rank: int = 0,
            look: Callable[[float], None] = lambda _: None,
    ):
        self.file = file
        self.first_rank = first_rank
        self.timeout = timeout
        self.end = end
        self.look = look
        self.sentence: Optional[str] = None
        self._waiting: Set[int] = set()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)

    def __enter__(self) -> 'Watch':
        if self.timeout:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        last: Dict[int, heartbeat.Heartbeat] = {}
        since: Dict[int, float] = {}
        pause, looked = min(1., self.timeout / 10), time.monotonic()
        while not self._left.wait(pause):
            now = time.monotonic()
            # a time in which this process did not run either, as in a suspended job, does not count
            suspended, looked = max(0., now - looked - pause), now
            since = {rank: when + suspended for rank, when in since.items()}
            beats = heartbeat.read(self.file)
            self.look(self._patience(beats[0]))
            # the others wait for a rank that waits for its data
            is_waiting = bool(self._tell_waiting(beats, now))
            for rank, beat in enumerate(beats):
                if last.get(rank) != beat or is_waiting:
                    last[rank], since[rank] = beat, now
            late = [r for r, b in enumerate(beats) if process_status(b.pid) and now - since[r] > self._patience(b)]
            if not late:
                continue
            guilty = hold_up(beats, late, self._patience(beats[late[0]]) / 2)
            self.sentence = self.sentence or self._describe(beats, guilty)
            self.end(beats, guilty)
            return

    def end_all(self, sentence: str) -> None:
        """End all ranks for another reason: a machine is gone, see `machines`."""
        self.sentence = self.sentence or sentence
        beats = heartbeat.read(self.file)
        self.end(beats, list(range(len(beats))))

    def _tell_waiting(self, beats: List[heartbeat.Heartbeat], now: float) -> Set[int]:
        """The ranks that wait for their data. What the first one says itself, the logs of the others hide."""
        waiting = {rank for rank, beat in enumerate(beats) if beat.waited and now - beat.waited < WAITING}
        for rank in sorted((waiting ^ self._waiting) - {0}):
            what = 'waits for the data folder: its log says more' if rank in waiting else 'has its data again'
            print(f'Rank {self.first_rank + rank} {what}.', file=sys.stderr, flush=True)
        self._waiting = waiting
        return waiting

    def _patience(self, beat: heartbeat.Heartbeat) -> float:
        """Seconds until the next step; more for the first one, before which data are listed and kernels compiled."""
        return self.timeout if beat.steps else FIRST_STEP * self.timeout

    def _describe(self, beats: List[heartbeat.Heartbeat], guilty: List[int]) -> str:
        numbers = ', '.join(str(self.first_rank + r) for r in guilty)
        names = f'Rank {numbers} has' if len(guilty) == 1 else f'Ranks {numbers} have'
        stopped = [r for r in guilty if process_status(beats[r].pid) == psutil.STATUS_STOPPED]
        seconds = self._patience(beats[guilty[0]])
        why = ' (stopped by a signal)' if stopped else ''
        if not stopped and all(r in without_python(beats, seconds / 2) for r in guilty):
            why = ": a call of C or C++ keeps Python's lock (GIL)"
        return f'{names} not finished a step for {seconds:g} s{why}'


def end_ranks(beats: List[heartbeat.Heartbeat], guilty: List[int]) -> None:
    """Let all ranks write their stacks, then kill those that hold up the others: torchrun's agent ends the rest."""
    # psutil sends nothing to another process that has got the number of one that has ended
    ranks = {process.pid: process for process in psutil.Process().children()}

    def send(pid: int, signum: int) -> None:
        with suppress(psutil.NoSuchProcess):
            if pid in ranks:
                ranks[pid].send_signal(signum)
    for beat in beats:
        send(beat.pid, STACKS_SIGNAL)
    time.sleep(1)  # they write
    for rank in guilty:
        send(beats[rank].pid, signal.SIGKILL)  # a stopped process takes no other


@contextmanager
def watch_this_process(settings: RunSettings) -> Iterator[None]:
    """Watch the only rank of this process: if it hangs, write its stacks, say so, and end the process."""
    import faulthandler
    rank = int(os.environ.get('RANK') or 0)
    stacks = RunFolder(settings.output).logs / f'stacks-{os.getpid()}.txt' if settings.output else None

    def said(what: str) -> str:
        where = f'; the stacks are in {stacks}' if stacks else ''
        return f'seresnet-timm: error: {what}{where}.{resume_hint(settings)}'

    def end(*_) -> None:
        if stacks:
            stacks.parent.mkdir(parents=True, exist_ok=True)
            with open(stacks, 'w') as f:
                faulthandler.dump_traceback(f)
        else:
            faulthandler.dump_traceback(sys.stderr)
        print(said(str(watch.sentence)), file=sys.stderr, flush=True)
        os._exit(1)  # whatever holds up the main thread

    def look(seconds: float) -> None:
        what = f"Rank {rank} has not finished a step for {seconds:g} s: a call of C or C++ keeps Python's lock (GIL)"
        tell_guard(seconds, said(what), str(stacks or ''))

    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as tmp:
        file = Path(tmp) / 'heartbeats'
        heartbeat.create(file, 1)
        heartbeat.start(file, 0)
        watch = Watch(file, settings.hang_timeout, end, first_rank=rank, look=look)
        # one rank of each machine speaks for it
        is_alone = settings.world_size <= settings.nproc or os.environ.get('LOCAL_RANK') != '0'
        seconds = 0 if is_alone else machines.seconds_without_answer(settings.hang_timeout)
        name = f'The machine of rank {rank} ({socket.gethostname()})'
        with ExitStack() as stack:
            written = stack.enter_context(open(Path(tmp) / 'stacks', 'w'))
            faulthandler.register(STACKS_SIGNAL, written)
            stack.callback(faulthandler.unregister, STACKS_SIGNAL)
            tell_guard = stack.enter_context(guarded(STACKS_SIGNAL, written.name))
            if settings.hang_timeout:
                look(FIRST_STEP * settings.hang_timeout)
            stack.enter_context(watch)
            stack.enter_context(machines.watched(os.environ, rank, name, seconds, watch.end_all))
            yield


def hold_up(beats: List[heartbeat.Heartbeat], late: List[int], seconds: float) -> List[int]:
    """The late ranks that the others wait for.

    Those that are stopped; else those in which no Python has run for so many seconds, as a rank that waits for others
    lets it run; else those that are farthest behind.
    """
    stopped = [r for r in late if process_status(beats[r].pid) == psutil.STATUS_STOPPED]
    silent = [r for r in without_python(beats, seconds) if r in late]
    behind = min((beats[r].steps, beats[r].places) for r in late)
    return stopped or silent or [r for r in late if (beats[r].steps, beats[r].places) == behind]


def without_python(beats: List[heartbeat.Heartbeat], seconds: float) -> List[int]:
    """The ranks in which no Python has run for so many seconds: a call of C or C++ keeps its lock (GIL)."""
    before = time.monotonic() - max(seconds, 3 * heartbeat.PULSE)
    return [rank for rank, beat in enumerate(beats) if beat.ran and beat.ran < before]
