"""A training loader that knows where it is in its epoch, and can start there without loading what came before

Where samples draw from the global generators (timm's own loading), what they draw depends on everything that was drawn
before. So the loader remembers, for the next batch: the seed of the shuffle, the generators of this process before the
batch was loaded (timm's PrefetchLoader holds one batch more than the training has seen), and those of every worker.
"""
import atexit
import logging
import multiprocessing
import random
import signal
import time
from contextlib import suppress
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils.worker import _generate_state
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from seresnet_timm.data.batches import Batches, own_sampler, set_batch_sampler
from seresnet_timm.data.loading import inner_loader, is_fast
from seresnet_timm.data.random_state import own_state, pack_cpu_state, set_own_state, set_packed_cpu_state
from seresnet_timm.data.seeding import SeededErasing
from seresnet_timm.data.worker_errors import as_torch_tells, describe_ends, ended_workers, is_replaceable, kill_workers
from seresnet_timm.process import end_with_parent
from seresnet_timm.step import heartbeat

_logger = logging.getLogger(__name__)
MOST_ENDS = 3  # in a row without a batch; the last one ends the run

WORKER_GRACE = 10  # seconds that a worker outlives a SIGTERM: the process that it loads for finishes its step and saves


def make_resumable(loader: Any, device: torch.device) -> Any:
    """Let a training loader know its position; a loader of an iterable dataset, which has none, stays as it is."""
    inner = inner_loader(loader)
    if isinstance(inner.dataset, IterableDataset):
        return loader
    if inner is loader:
        return ResumableLoader(inner, device)
    if loader.random_erasing is not None and is_fast(inner.dataset):
        loader.random_erasing = SeededErasing.from_erasing(loader.random_erasing, inner.dataset.seeds)
    loader.loader = ResumableLoader(inner, device, loader)
    return loader


def resumable(loader: Any) -> Optional['ResumableLoader']:
    """The loader that knows its position, inside the one that a training iterates over; None if there is none."""
    inner = inner_loader(loader)
    return inner if isinstance(inner, ResumableLoader) else None


class ResumableLoader:
    """A DataLoader, or a loader like it, that starts in the middle of an epoch. Its attributes are the DataLoader's.

    Args:
        loader: DataLoader; its batch sampler, collate function and worker initialisation are wrapped.
        device: Device whose random generator the PrefetchLoader around it draws from.
        prefetcher: The PrefetchLoader around it, if there is one.
        draws: Samples may draw from the global generators.

    Attributes:
        loader: What is iterated over; a loader whose workers run already may take its place.
    """

    def __init__(
            self, loader: Any, device: torch.device, prefetcher: Optional[PrefetchLoader] = None, draws: bool = True):
        self.loader = loader
        self._device, self._prefetched = device, prefetcher is not None
        self._data_loader: DataLoader = getattr(loader, '_loader', loader)  # ThreadedLoader holds one
        self._draws = draws and not is_fast(loader.dataset)
        self._batches = Batches(own_sampler(self._data_loader), self._data_loader.collate_fn)
        set_batch_sampler(self._data_loader, self._batches)
        self._num_workers = self._data_loader.num_workers if self._data_loader is loader else 0
        erasing = None if prefetcher is None else prefetcher.random_erasing
        self._erasing = erasing if isinstance(erasing, SeededErasing) else None
        erases = erasing is not None and self._erasing is None
        self._draws_here = erases or self._draws and not self._num_workers
        self._worker_states: Dict[int, bytes] = {}
        self._next_worker = self._padding = 0
        self._base_seed: Optional[int] = None  # from which the workers' generators started
        self._init_worker = WorkerInit(self._data_loader.worker_init_fn)
        self._data_loader.worker_init_fn = self._init_worker
        if self._draws and self._num_workers:
            self._data_loader.collate_fn = _CollateWithState(self._data_loader.collate_fn)
        # what a resume needs of the time before the last batch, and before the one that is waited for
        self._before: Optional[Dict[str, Any]] = None
        self._earlier: Optional[Dict[str, Any]] = None
        self._is_reading = False
        self._first = 0
        self._start: Optional[Dict[str, Any]] = None
        self._after: Optional[Callable[[], None]] = None
        self._running: Any = None  # iterator of the loader
        self._ends: List[Tuple[float, str]] = []
        self._ends_in_row = 0

    def __getattr__(self, name: str) -> Any:
        if name in ('loader', '_data_loader'):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def collate_fn(self) -> Callable:
        collate_fn = self._data_loader.collate_fn
        return collate_fn.collate_fn if isinstance(collate_fn, _CollateWithState) else collate_fn

    def state(self, batches: int) -> Dict[str, Any]:
        """What a later run needs to go on with a batch.

        Args:
            batches: Batches of the epoch that the training has seen; 0 and all of them mean the next epoch.
        """
        now: Any = dict(workers=self._worker_states, next_worker=self._next_worker, generators=None,
                   drawn=len(self._batches.seeds))
        if self._prefetched and 0 < batches < len(self):
            now = self._earlier if self._is_reading else self._before
        workers = now['workers']
        return dict(
            seeds=list(self._batches.seeds),
            drawn=now['drawn'],
            generators=now['generators'],
            workers={i: torch.frombuffer(bytearray(state), dtype=torch.uint8) for i, state in workers.items()},
            base_seed=self._base_seed,
            next_worker=now['next_worker'],
            num_workers=self._num_workers,
            has_started=self._batches.has_started,
            mixes=self._batches.mixes,
            order=self._batches.order if 0 < batches < len(self) else None,
        )

    def resume(
            self,
            state: Dict[str, Any],
            batches: int,
            after: Optional[Callable[[], None]] = None,
    ) -> Optional[str]:
        """Go on with a batch, in the epoch whose number the sampler knows. Call it before the workers start.

        Args:
            state: From `state`.
            batches: Batches of the epoch that are done.
            after: Called once the process has what it had loaded ahead: restores its random generators.

        Returns:
            A sentence, if the run goes on with other random numbers.
        """
        self._first, self._start, self._after = batches, state, after if batches else None
        padding, note = 0, None
        if self._draws and state['num_workers'] != self._num_workers:
            note = (f'The run had {state["num_workers"]} loader workers, now there are {self._num_workers}: images are '
                    "augmented with other random numbers, as timm's own loading draws them in every worker.")
        elif self._draws and self._num_workers and state['has_started']:
            self._next_worker = self._padding = padding = state['next_worker']
            self._worker_states = {i: bytes(s.numpy()) for i, s in state['workers'].items()}
            self._base_seed = state['base_seed']
            if state['mixes'] is not None:
                self._batches.mixes = state['mixes']
            # a loader draws the workers' seed when it starts, which the run before did once
            self._data_loader.generator = torch.Generator()
            self._go_on_in_workers()
        order = state.get('order')  # where the shuffle of several ranks is not that of its seed and epoch
        seeds = state['seeds'] if self._batches.draws_seed or order is None else [order]
        self._batches.start_at(batches, seeds, padding, state['drawn'])
        self._batches.has_started = state['has_started']
        return note

    def take_ends(self) -> List[Tuple[float, str]]:
        """When and how workers ended that others took the place of, since the last call."""
        ends, self._ends = self._ends, []
        return ends

    def skip(self, batches: int, order: Optional[int] = None) -> None:
        """Let the next epoch begin with a batch, with random numbers of its own. Call it before the workers start.

        Args:
            batches: Batches to leave out.
            order: Of the images of this epoch, from `state` of a run on another number of ranks; None for a new one.
        """
        self._first = batches
        self._batches.start_at(batches, () if order is None else (order,))

    def __iter__(self) -> Iterator:
        first, self._first = self._first, 0
        start, self._start = self._start, None
        after, self._after = self._after, None
        self._running = None
        try:
            yield from self._pass(first, start, after)
        finally:
            self._running = None
            if not isinstance(self.loader, MultiEpochsDataLoader):  # which loads ahead in the next epoch
                self._batches.yielded.clear()

    def _pass(self, first: int, start: Optional[Dict[str, Any]], after: Optional[Callable[[], None]]) -> Iterator:
        self._restart_after_deaths(lambda: self._begin(self.loader), first)
        if start and start['generators'] is not None:
            set_own_state(start['generators'], self._device)
        if after and not self._prefetched:
            after()
        for i in range(first, len(self)):
            if self._prefetched:
                self._earlier = self._before
                self._before = dict(
                    workers=self._worker_states, next_worker=self._next_worker, drawn=len(self._batches.seeds),
                    generators=own_state(self._device) if self._draws_here else None)
            self._is_reading = True  # and still is, if a signal ends the wait
            batch = self._next(i)
            self._is_reading = False
            heartbeat.mark()
            yield batch
            if i == first and after and self._prefetched:
                after()
        if not isinstance(self.loader, MultiEpochsDataLoader):
            next(self._running, None)  # let it end
            self._next_worker = 0
        self._batches.end_of_pass()

    def _begin(self, loader: Any) -> None:
        """Start a pass of the loader, or go on with the one that never ends."""
        if self._running is None and isinstance(loader, MultiEpochsDataLoader):
            if loader.iterator is None:
                loader.iterator = DataLoader.__iter__(loader)
            self._running = loader.iterator
        elif self._running is None:
            self._running = iter(loader)
        if self._draws and self._num_workers and self._base_seed is None:
            self._base_seed = self._running._base_seed
        while self._padding:
            next(self._running)
            self._padding -= 1

    def _next(self, index: int) -> Any:
        def read() -> None:
            if self._running is None:
                self._begin(self._data_loader)
            batches.append(next(self._running))
        batches: List[Any] = []
        self._restart_after_deaths(read, index)
        self._ends_in_row = 0
        batch = batches[0]
        indices = self._batches.yielded.popleft()
        if self._erasing is not None:  # of several sizes, an index comes with the number of its size
            self._erasing.indices = [i[0] if isinstance(i, tuple) else i for i in indices]
        if not isinstance(self._data_loader.collate_fn, _CollateWithState):
            return batch
        batch, worker, state = batch
        self._worker_states = {**self._worker_states, worker: state}
        self._next_worker = (worker + 1) % self._num_workers
        return batch

    # workers that end

    def _restart_after_deaths(self, call: Callable[[], None], index: int) -> None:
        """Call a function; if a worker has ended, start all of them anew at a batch, and call it again."""
        while True:
            try:
                return call()
            except (RuntimeError, OSError, EOFError) as e:
                self._replace_workers(e, index)

    def _replace_workers(self, error: Exception, index: int) -> None:
        """Let new workers load a batch and what follows, as the old ones would have.

        Raises:
            Exception: The error, where it has another cause, or another worker would end likewise.
        """
        iterator: Any = self._data_loader._iterator if self._num_workers else None
        dead = [] if iterator is None else ended_workers(iterator)
        if iterator is not None and isinstance(error, (ConnectionError, EOFError)):
            deadline = time.monotonic() + 1  # a worker that ends closes its connections before it has ended
            while not dead and time.monotonic() < deadline:
                time.sleep(0.01)
                dead = ended_workers(iterator)
        self._ends_in_row += 1
        may_replace = self._ends_in_row < MOST_ENDS and all(is_replaceable(worker.exitcode) for worker in dead)
        if not dead:
            raise error
        if not may_replace:  # torch does not always tell how a worker ended
            raise RuntimeError(as_torch_tells(dead)) from error
        text = describe_ends(dead)
        self._ends.append((time.time(), text))
        _logger.warning(f'{text} New workers load its batch again; the results are the same.')
        kill_workers(iterator)
        self._running = self._data_loader._iterator = None
        if isinstance(self.loader, MultiEpochsDataLoader):
            self.loader.iterator = None
        if self._batches.begun:
            seeds = list(self._batches.seeds)
            self._padding = self._next_worker if self._draws else 0
            self._batches.start_again_at(index, seeds, self._padding)
        # a loader draws the workers' seed when it starts, which has happened once
        self._data_loader.generator = torch.Generator()
        if self._draws:
            self._go_on_in_workers()

    def _go_on_in_workers(self) -> None:
        """Let the workers that start next have the generators that are known."""
        self._init_worker.states, self._init_worker.base_seed = dict(self._worker_states), self._base_seed
        if self._batches.mixes is not None:
            self._init_worker.mixup = (self.collate_fn, self._batches.mixes)


class _CollateWithState:
    """A collate function of a worker that also returns the state of the worker's generators, after the batch."""

    def __init__(self, collate_fn: Callable):
        self.collate_fn = collate_fn

    def __call__(self, samples: List) -> Any:
        if not samples:
            return None
        info: Any = get_worker_info()
        return self.collate_fn(samples), info.id, pack_cpu_state()


class WorkerInit:
    """Initialisation of a loader's worker: timm's, then signals, then the generators of the run that is continued.

    A signal to all processes of a run is for the process that trains. Its workers go on loading for its last step, and
    end with it.
    """

    def __init__(self, init: Optional[Callable[[int], None]]):
        self._init = init
        self.states: Dict[int, bytes] = {}
        self.base_seed: Optional[int] = None
        self.mixup: Optional[Tuple[Any, bool]] = None  # mixup of the loader, and whether it is on

    def __call__(self, worker_id: int) -> None:
        end_with_parent()
        if self.base_seed is not None:  # a worker of which no state is known starts as it did, see torch's _worker_loop
            seed = self.base_seed + worker_id
            random.seed(seed)
            torch.manual_seed(seed)
            np.random.seed(_generate_state(self.base_seed, worker_id))
            object.__setattr__(get_worker_info(), 'seed', seed)
        if self._init is not None:
            self._init(worker_id)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))
        if self.mixup is not None:
            self.mixup[0].mixup_enabled = self.mixup[1]
        if worker_id in self.states:
            set_packed_cpu_state(self.states[worker_id])


def make_restartable(loader: Any, device: torch.device) -> Any:
    """Let the workers of an evaluation leave signals to the process that they load for, and be replaced if they end."""
    inner = inner_loader(loader)
    if type(inner) is not DataLoader or isinstance(inner.dataset, IterableDataset):
        return outlive_signals(loader)
    if inner is loader:
        return ResumableLoader(inner, device, draws=False)
    loader.loader = ResumableLoader(inner, device, loader, draws=False)
    return loader


def outlive_signals(loader: Any) -> Any:
    """Let the workers of a loader leave signals to the process that they load for."""
    inner = inner_loader(loader)
    if isinstance(inner, DataLoader):
        inner.worker_init_fn = WorkerInit(inner.worker_init_fn)
    return loader


def end_workers(*loaders: Any) -> None:
    """End the worker processes of loaders that are not used any more.

    Python ends them too, where it frees a loader; but one in a cycle of references (an exception has one to all frames)
    has lost the pipes to its workers by then, and waits 5 seconds for each.
    """
    for loader in loaders:
        inner = inner_loader(loader)
        data_loader = getattr(inner, '_data_loader', inner)
        for iterator in (getattr(data_loader, '_iterator', None), getattr(data_loader, 'iterator', None)):
            if isinstance(iterator, _MultiProcessingDataLoaderIter) and not iterator._shutdown:
                kill_workers(iterator)


@atexit.register  # before multiprocessing asks the workers to end, which they would do with WORKER_GRACE
def _kill_workers() -> None:
    with suppress(ValueError):  # another thread ends the process, while the main one is in a call
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
