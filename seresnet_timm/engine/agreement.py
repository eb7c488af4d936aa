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
import json
import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, ContextManager, Dict, List, Optional

import torch
from torch.distributed import DistStoreError, PrefixStore, TCPStore

from seresnet_timm import device as devices
from seresnet_timm.engine.halt import Halt
from seresnet_timm.engine.signals import Stopped, StopSignals
from seresnet_timm.errors import RunError
from seresnet_timm.runs.status import process_status, this_system

POLL = 0.2
TIMEOUT = 1800  # seconds; a rank may wait for the others as long as for a collective
LOOK = 1.  # seconds after which a rank that waits looks whether the others live
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
        if self._store is not None:
            self._store.set(f'process/{rank}', f'{this_system()} {os.getpid()}')
        self._pids: Dict[int, Optional[int]] = {}  # of ranks whose process is known; None on another machine
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
        self._wait(f'{key}/done')
        if self._store.check([f'{key}/stop']):
            raise Stopped(int(self._store.get(f'{key}/stop')))

    def refuse_differences(self, facts: Dict[str, Any]) -> None:
        """End the run if what must be equal on all ranks is not, as on nodes that resume from folders of their own.

        Args:
            facts: What must be equal, by names for the sentence.

        Raises:
            RunError: Something is not equal; all ranks raise it.
        """
        if self._store is None:
            return
        self._store.set(f'facts/{self.rank}', json.dumps(facts))
        first = json.loads(self._get('facts/0'))
        differs = [f'{name} {value}, not {first.get(name)}' for name, value in facts.items()
                   if json.dumps(value) != json.dumps(first.get(name))]
        if differs:
            self._store.set('facts/differ', f'Rank {self.rank} has other settings than rank 0: {"; ".join(differs)}.')
        if self._store.add('facts/compared', 1) == self.world_size:
            self._store.set('facts/done', '')
        self._wait('facts/done')
        if self._store.check(['facts/differ']):
            remedy = ('Start all nodes with the same command and images, and the folder of the run (--output) on a '
                      'file system that they share.')
            raise RunError(f'{self._store.get("facts/differ").decode()} {remedy}')

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
            states.append(torch.load(io.BytesIO(self._get(f'{key}/{rank}')), weights_only=True))
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
        return self._get(key) == b'1'

    def wait_until_saved(self) -> None:
        """Wait for rank 0, which writes the last state, so that the ranks end together."""
        if self._store is None:
            return
        if self.rank == 0:
            self._store.set('saved', '')
        with suppress(RunError, RuntimeError):  # rank 0 has ended, and with it the store if that is its own
            self._wait('saved')

    def _get(self, key: str) -> bytes:
        self._wait(key)
        return self._store.get(key)

    def _wait(self, key: str) -> None:
        """Wait until another rank has written a key.

        Raises:
            RunError: One that may have to write it has ended.
        """
        why = f'they did not come within {TIMEOUT} s'
        for _ in range(int(TIMEOUT / LOOK)):  # a time in which the job is suspended does not count
            with suppress(DistStoreError):  # not yet
                return self._store.wait([key], timedelta(seconds=LOOK))
            ended = [rank for rank in range(self.world_size) if self._has_ended(rank)]
            if self._store.check([key]):
                return
            if ended:
                why = f'rank {ended[0]} has ended'
                break
        raise RunError(f'Rank {self.rank} lost contact with the other ranks: {why}.')

    def _has_ended(self, rank: int) -> bool:
        """Whether a rank is a process of this machine that has ended."""
        if rank not in self._pids:  # asked for once: many ranks share the store
            key = f'process/{rank}'
            if not self._store.check([key]):
                return False
            system, _, pid = self._store.get(key).decode().rpartition(' ')
            self._pids[rank] = int(pid) if system == this_system() else None
        pid = self._pids[rank]
        return pid is not None and not process_status(pid)

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
