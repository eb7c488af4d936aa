"""A batch sampler that starts in the middle of a pass, and knows in which order the images of all ranks come"""
import itertools
from collections import deque
from typing import Any, Callable, Deque, Iterator, List, Optional, Sequence

import torch
from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import RandomSampler
from torch.utils.data.distributed import DistributedSampler


class Batches:
    """A batch sampler that remembers the seeds of its shuffles, and can start in the middle of a pass.

    Attributes:
        draws_seed: The shuffle has no seed of its own: each pass draws one.
        seeds: Of the passes that have begun and are not over, oldest first; only where the shuffle has no seed already.
        has_started: A pass has begun, in this run or in the one that it continues.
        mixes: Whether the workers mixed images when they started; None if the collate function cannot.
        begun: Number of passes that have begun and are not over.
        yielded: Indices of the batches that are being loaded.
    """

    def __init__(self, batch_sampler: Any, collate_fn: Callable):
        self._batch_sampler, self._collate_fn = batch_sampler, collate_fn
        self.yielded: Deque[List[int]] = deque()
        sampler = batch_sampler.sampler
        self.draws_seed = isinstance(sampler, RandomSampler) and sampler.generator is None
        self.seeds: List[int] = []
        self.has_started = False
        self.mixes: Optional[bool] = None
        self.begun = 0
        self._shuffle: Optional[torch.Tensor] = None  # state of the shuffle's own generator before the pass
        self._given: List[int] = []
        self._skip = self._padding = 0
        self._given_drawn = 0
        self._own_seed: Optional[int] = None  # of a DistributedSampler that has another one in this pass

    def __getattr__(self, name: str) -> Any:
        if name == '_batch_sampler':
            raise AttributeError(name)
        return getattr(self._batch_sampler, name)

    def __len__(self) -> int:
        return len(self._batch_sampler)

    @property
    def order(self) -> Optional[int]:
        """Seed of the order of all ranks' images in the oldest pass that is not over; None if not known."""
        sampler = self._batch_sampler.sampler
        if isinstance(sampler, DistributedSampler):
            return sampler.seed + sampler.epoch if sampler.shuffle else None
        if self.seeds or not isinstance(sampler, RandomSampler) or sampler.generator is None:
            return self.seeds[0] if self.seeds else None
        return sampler.generator.initial_seed()

    def start_at(self, batches: int, seeds: Sequence[int] = (), padding: int = 0, drawn: int = 0) -> None:
        """Let the next pass begin with a batch.

        Args:
            batches: Batches to leave out.
            seeds: Seeds of that pass and, if they are drawn already, of later ones.
            padding: Empty batches before the first one, so that the worker that would have loaded it gets it.
            drawn: Number of seeds that the generators have drawn; they draw the others again.
        """
        self._given_drawn = drawn
        self._skip, self._given, self._padding = batches, list(seeds), padding

    def start_again_at(self, batches: int, seeds: Sequence[int], padding: int) -> None:
        """Let the passes that have begun begin again, the first one with a batch."""
        self.seeds, self.begun = [], 0
        self.yielded.clear()
        if self._shuffle is not None:
            self._batch_sampler.sampler.generator.set_state(self._shuffle)
        self.start_at(batches, seeds, padding, drawn=len(seeds))

    def end_of_pass(self) -> None:
        self.begun -= 1
        del self.seeds[:1]
        if self._own_seed is not None:
            self._batch_sampler.sampler.seed, self._own_seed = self._own_seed, None

    def __iter__(self) -> Iterator[List[int]]:
        skip, padding = self._skip, self._padding
        self._skip = self._padding = 0
        self.begun += 1
        if not self.has_started:
            self.mixes = getattr(self._collate_fn, 'mixup_enabled', None)
            self.has_started = True
        if self.draws_seed:
            is_given, self._given_drawn = bool(self._given), self._given_drawn - 1
            if not is_given or self._given_drawn < 0:
                # as torch's RandomSampler draws it, at the same time
                seed = int(torch.empty((), dtype=torch.int64).random_().item())
            if is_given:
                seed = self._given.pop(0)
            self.seeds.append(seed)
            self._batch_sampler.sampler.generator = torch.Generator().manual_seed(seed)
        elif isinstance(self._batch_sampler.sampler, RandomSampler):
            self._shuffle = self._batch_sampler.sampler.generator.get_state()
        elif isinstance(self._batch_sampler.sampler, DistributedSampler) and self._given:
            sampler = self._batch_sampler.sampler
            self._own_seed, sampler.seed = sampler.seed, self._given.pop(0) - sampler.epoch  # it adds the epoch
        for _ in range(padding):
            yield []
        for indices in itertools.islice(self._batch_sampler, skip, None):
            self.yielded.append(indices)
            yield indices


def own_sampler(loader: Any) -> Any:
    """The batch sampler of a loader: what a MultiEpochsDataLoader repeats."""
    batch_sampler: Any = loader.batch_sampler
    return batch_sampler.sampler if isinstance(loader, MultiEpochsDataLoader) else batch_sampler


def set_batch_sampler(loader: Any, batches: Batches) -> None:
    batch_sampler: Any = loader.batch_sampler
    if isinstance(loader, MultiEpochsDataLoader):
        batch_sampler.sampler = batches
        return
    loader._DataLoader__initialized = False  # torch lets nobody replace it later, as timm's MultiEpochsDataLoader does
    loader.batch_sampler = batches
    loader._DataLoader__initialized = True
