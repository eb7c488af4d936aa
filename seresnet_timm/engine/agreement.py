"""What all ranks agree on between two updates: to save, or to stop. Without a collective of its own

A rank learns of a signal, or that a checkpoint is due, at any time; but all ranks must save and stop after the same
update, and a host can be many updates ahead of its device. They talk through the store of the process group:

1. A rank that wants something writes a request. The others look for one every `POLL` seconds.
2. Who knows of it says so, and from then on waits for its device after every update. An update needs all ranks, so no
   rank is more than one update ahead of another.
3. When all have said so, rank 0 writes: after the next update. All find that before they are there.

`vote` is for the ends of an epoch and of an evaluation, where no update is to come: all wait for all.

A rank that has no data finishes no update, and `vote` has no end: see `halt`.
"""
import io
import os
import time
from datetime import timedelta
from typing import Any, ContextManager, List, Optional

import torch
from torch.distributed import PrefixStore, TCPStore

from seresnet_timm import device as devices
from seresnet_timm.engine.halt import Halt
from seresnet_timm.engine.signals import Stopped, StopSignals

POLL = 0.2
TIMEOUT = 1800  # seconds; a rank may wait for the others as long as for a collective
SAVE = 'save'


class Agreement:
    """What the ranks agree on. All of them call the same methods in the same order.

    Args:
        signals: Signals that this rank received.
        device: Device of this rank.
        rank: Number of this rank.
        world_size: Number of ranks.

    Attributes:
        halt: Ends several ranks of which some have no data; None for one rank.
    """

    def __init__(
            self, signals: StopSignals, device: torch.device, rank: int = 0, world_size: int = 1):
        self._signals, self._device = signals, device
        self.rank, self.world_size = rank, world_size
        self._store = _store() if world_size > 1 else None
        self.halt = Halt(signals, PrefixStore('halt', _store()), device, rank, world_size) if world_size > 1 else None
        signals.is_alone = self.halt is None
        self._updates = self._round = self._votes = self._gathered = self._shared = 0
        self._next_look = 0.
        self._knows = False

    def after_update(self, is_due: bool = False) -> Optional[str]:
        """What to do after this update: `SAVE`, or nothing.

        Args:
            is_due: This rank wants to save.

        Raises:
            Stopped: Stop now, after saving.
        """
        own = self._request(is_due)
        if self._store is None:
            return self._act(own)
        self._updates += 1
        if not self._knows:
            if own:
                self._store.set(self._key('request'), own)
            elif time.monotonic() < self._next_look:
                return None
            self._next_look = time.monotonic() + POLL
            if not own and not self._store.check([self._key('request')]):
                return None
            self._knows = True
            devices.synchronize(self._device)
            self._store.add(self._key('knows'), 1)
        else:
            devices.synchronize(self._device)
            if own and own != SAVE:
                self._store.set(self._key('request'), own)  # a signal while a save is being agreed on
        if not self._store.check([self._key('at')]):
            if self.rank == 0 and self._store.add(self._key('knows'), 0) == self.world_size:
                what = self._store.get(self._key('request')).decode()
                self._store.set(self._key('at'), f'{self._updates + 1} {what}')
            return None
        at, what = self._store.get(self._key('at')).decode().split()
        if self._updates < int(at):
            return None
        self._round, self._knows = self._round + 1, False
        return self._act(what)

    def waiting_for_data(self) -> ContextManager[None]:
        """The wait for the next batch.

        Raises:
            Stopped: A signal came, and this rank, the only one, does not get its data: stop now, after saving.
        """
        return self._signals.waiting()

    def is_stopping(self) -> bool:
        """This rank knows that the run is to stop; the others may not know it yet."""
        if self._signals.received is not None:
            return True
        if self._store is None or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + POLL
        key = self._key('request')
        return self._store.check([key]) and self._store.get(key).decode() != SAVE

    def vote(self) -> None:
        """Stop here if any rank is to stop; every rank must come here.

        Raises:
            Stopped: Stop now, after saving.
        """
        own = self._signals.received
        if self._store is None:
            if own is not None:
                raise Stopped(own)
            return
        self._votes += 1
        key = f'vote/{self._votes}'
        if own is None and self.is_stopping():
            own = int(self._store.get(self._key('request')).decode())
        if own is not None:
            self._store.set(f'{key}/stop', str(own))
            self._store.set(self._key('request'), str(own))  # for ranks that still evaluate
        if self._store.add(f'{key}/count', 1) == self.world_size:
            self._store.set(f'{key}/done', '')
        self._store.wait([f'{key}/done'])
        if self._store.check([f'{key}/stop']):
            raise Stopped(int(self._store.get(f'{key}/stop')))

    def gather(self, state: Any) -> Optional[List[Any]]:
        """What all ranks give, on rank 0; None on the others, which do not wait."""
        if self._store is None:
            return [state]
        self._gathered += 1
        key = f'state/{self._gathered}'
        if self.rank:
            file = io.BytesIO()
            torch.save(state, file)
            self._store.set(f'{key}/{self.rank}', file.getvalue())
            return None
        states = [state]
        for rank in range(1, self.world_size):
            states.append(torch.load(io.BytesIO(self._store.get(f'{key}/{rank}')), weights_only=True))
            self._store.delete_key(f'{key}/{rank}')
        return states

    def share(self, decision: bool) -> bool:
        """What rank 0 has decided; the others wait for it."""
        if self._store is None:
            return decision
        self._shared += 1
        key = f'decision/{self._shared}'
        if self.rank == 0:
            self._store.set(key, str(int(decision)))
            return decision
        return self._store.get(key) == b'1'

    def wait_until_saved(self) -> None:
        """Wait for rank 0, which writes the last state, so that the ranks end together."""
        if self._store is None:
            return
        if self.rank == 0:
            self._store.set('saved', '')
        try:
            self._store.wait(['saved'], timedelta(seconds=TIMEOUT))
        except RuntimeError:  # rank 0 holds the store, and has ended
            pass

    def _request(self, is_due: bool) -> str:
        received = self._signals.received
        return str(received) if received is not None else SAVE if is_due else ''

    def _act(self, what: str) -> Optional[str]:
        if what and what != SAVE:
            raise Stopped(int(what))
        return what or None

    def _key(self, name: str) -> str:
        return f'round/{self._round}/{name}'


def _store() -> Any:
    """The store in which the ranks of this start met."""
    store = TCPStore(
        os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False, timeout=timedelta(seconds=TIMEOUT))
    return PrefixStore(f'seresnet_timm/agreement/{os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")}', store)
