"""Ends several ranks of which some have no data, while the others wait for them in a collective that does not end

A signal stops a run after its step. If a rank has no data, that step does not end: the others are in a collective, and
Python calls no handler of signals there. So a thread of each rank does it, with a connection of its own to the store:

1. A thread that sees a signal tells the others. The signal is seen through the wake-up descriptor, whatever the rank
   does.
2. A rank that has waited for its data for `PATIENCE` seconds since then does not go on, ever. Nobody finishes the step
   without it: weights, moving average and optimizer of all ranks stay as they were after the last step.
3. Each thread gives what its rank had for itself after that step (`kept.Kept`); that of rank 0 saves, and all end.

The host of a GPU or NPU is ahead of its device, which may be stuck in the collective: there a state can be read only
if all ranks wait for data. Else the run ends without saving, and says so.
"""
import atexit
import io
import os
import threading
import time
from typing import Any, Callable, List, Optional

import torch

from seresnet_timm.engine.signals import PATIENCE, POLL, StopSignals

POLL_BEFORE = 1.  # seconds; no signal is known
FOR_ALL = 3.  # seconds until all ranks have given their state
FOR_SAVE = 30.  # seconds until rank 0 has saved
Give = Callable[[], Any]


class Halt:
    """Ends this rank, and tells the others to, if the run is to stop and a step cannot be finished.

    Args:
        signals: Signals that this rank received.
        store: Store of the ranks; no other thread uses this connection.
        device: Device of this rank.
        rank: Number of this rank.
        world_size: Number of ranks.
    """

    def __init__(self, signals: StopSignals, store: Any, device: torch.device, rank: int, world_size: int):
        self._signals, self._store, self._is_cpu = signals, store, device.type == 'cpu'
        self._rank, self._world_size = rank, world_size
        self._place = ''
        self._give: Give = _nothing
        self._end: Any = _nothing
        self._signum: Optional[int] = None
        self._known_since = 0.
        self._is_halting = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name='halt', daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that is in the store must not outlive the interpreter

    def stand(self, place: str, give: Give, end: Callable[[int, Optional[List[Any]]], None]) -> None:
        """This rank has come to a place between two steps.

        Args:
            place: Name of the place, the same on all ranks.
            give: What this rank has for itself there; called in another thread, until the next call of this method.
            end: Ends the run on rank 0, given the signal and what all ranks have; None if that is not known.
        """
        self._place, self._give, self._end = '', give, end
        self._place = place

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5)
        if not self._thread.is_alive():
            self._signals.close()

    def _run(self) -> None:
        try:
            while not self._closed.is_set() and not self._is_halting:
                self._signals.wait(POLL_BEFORE if self._signum is None else POLL)
                self._look()
        except RuntimeError:  # the store has ended, and with it the run
            pass
        finally:
            if self._is_halting:
                os._exit(128 + (self._signum or 0))  # whatever holds up the main thread

    def _look(self) -> None:
        if self._signum is None:
            seen = self._signals.seen()
            if seen is not None:
                self._store.set('signal', str(seen))
            elif not self._store.check(['signal']):
                return
            self._signum, self._known_since = int(self._store.get('signal')), time.monotonic()
        if not self._store.check(['at']):
            if time.monotonic() - self._known_since <= PATIENCE or not self._signals.hold_wait(PATIENCE):
                return
            self._store.set('at', self._place)
        self._is_halting = True
        self._halt(self._store.get('at').decode())

    def _halt(self, place: str) -> None:
        """Give what this rank has at a place, and wait until all have; the run ends then."""
        deadline = time.monotonic() + FOR_ALL
        while self._place != place and (self._is_cpu or time.monotonic() < deadline):
            time.sleep(POLL / 4)
        is_known = self._place == place and (self._signals.hold_wait(0) or self._is_cpu)
        file = io.BytesIO()
        torch.save(dict(is_known=is_known, state=self._give() if is_known else None), file)
        self._store.set(f'state/{self._rank}', file.getvalue())
        if self._rank == 0:
            try:
                self._end(self._signum, self._gather())
            finally:
                self._store.set('ended', '')
        deadline = time.monotonic() + FOR_SAVE
        while not self._store.check(['ended']) and time.monotonic() < deadline:
            time.sleep(POLL)

    def _gather(self) -> Optional[List[Any]]:
        """What all ranks have given; None if that is not known."""
        keys = [f'state/{rank}' for rank in range(self._world_size)]
        deadline = time.monotonic() + FOR_ALL
        while not self._store.check(keys):
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL / 4)
        given = [torch.load(io.BytesIO(self._store.get(key)), weights_only=True) for key in keys]
        return [g['state'] for g in given] if all(g['is_known'] for g in given) else None


def _nothing() -> None:
    return None
