"""Seeds and a fast collate function for the loaders that timm's factory makes, with timm's scripts and ours"""
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Deque, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.distributed as dist
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.mixup import FastCollateMixup
from torch.utils.data import DataLoader, RandomSampler, default_collate
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.distributed import DistributedSampler

from seresnet_timm import device as devices
from seresnet_timm.data.fast_jpeg import FastJpegDataset
from seresnet_timm.data.scheduled import is_scheduled, sampler_of, with_fast_sizes
from seresnet_timm.data.seeding import SHUFFLE, WORKERS, SeededDataset, SeededMixup, derive_seed
from seresnet_timm.errors import counted

_logger = logging.getLogger(__name__)


def collate(batch: List[Tuple]) -> Tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (N, 3, H, W) and targets: the result of timm's fast_collate in a tenth of the time."""
    targets = default_collate([sample[1] for sample in batch])
    if targets.ndim == 1:
        targets = targets.long()
    images = getattr(batch, 'images', None)
    return default_collate([sample[0] for sample in batch]) if images is None else images, targets


def for_channels(values: Sequence[float], channels: int) -> Tuple[float, ...]:
    """Mean or standard deviation for every channel, as timm's prefetcher has it: their average if their number differs.

    timm's transforms take them as they are, and fill what a rotation of a gray image leaves empty with three values.
    """
    return tuple(values) if len(values) == channels else (np.mean(values).item(),) * channels


def inner_loader(loader: Any) -> Any:
    """The DataLoader inside timm's PrefetchLoader, or the loader itself."""
    return loader.loader if isinstance(loader, PrefetchLoader) else loader


def is_fast(dataset: Any) -> bool:
    """True for a dataset with fast decoding, also inside another dataset."""
    while dataset is not None and not isinstance(dataset, (FastJpegDataset, SeededDataset)):
        dataset = getattr(dataset, 'dataset', None)
    return dataset is not None


def seed_and_speed_up(loader: Any, seed: int) -> Any:
    """Seed and speed up a loader whose dataset has fast decoding; other loaders stay as timm's factory made them.

    Args:
        loader: Result of timm's `create_loader`.
        seed: Seed of the run. The shuffle depends on it and the epoch only, and draws from no generator of the main
            process, so that a resumed run sees the same batches as an uninterrupted one.
    """
    inner = inner_loader(loader)
    if not is_fast(inner.dataset):
        return loader
    with_fast_sizes(inner)
    inner.generator = torch.Generator().manual_seed(derive_seed(WORKERS, seed) % 2 ** 63)
    if isinstance(sampler_of(inner), RandomSampler):
        sampler_of(inner).generator = torch.Generator()
    if isinstance(inner.collate_fn, FastCollateMixup):
        inner.collate_fn = SeededMixup.from_mixup(inner.collate_fn)
    elif inner.collate_fn is fast_collate and not isinstance(inner.dataset, SeededDataset):
        inner.collate_fn = collate
        if isinstance(inner.dataset, FastJpegDataset):
            inner.dataset.one_tensor = True
            if inner is not loader and type(inner) is DataLoader and inner.num_workers and inner.dataset.releases_gil:
                loader.loader = ThreadedLoader(inner, inner.num_workers)
                if not dist.is_initialized() or dist.get_rank() == 0:
                    _logger.info(f'Loader workers: {counted(inner.num_workers, "thread")}, as the decoder releases '
                                 "Python's lock: batches need no copy between processes")
    set_epoch(loader, 0)
    return loader


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell dataset and sampler which epoch begins, so that samples and shuffle depend on it."""
    dataset, sampler = loader.dataset, sampler_of(loader)
    if hasattr(dataset, 'set_epoch'):
        dataset.set_epoch(epoch)
    if is_scheduled(getattr(loader, 'batch_sampler', None)):
        loader.batch_sampler.set_epoch(epoch)
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
    if not is_fast(dataset) or getattr(dataset, 'seeds', None) is None:
        return
    # the same shuffle on any number of ranks
    seed = derive_seed(SHUFFLE, dataset.seeds.seed, epoch) % 2 ** 63
    if isinstance(sampler, RandomSampler):
        sampler.generator.manual_seed(seed)
    elif isinstance(sampler, DistributedSampler):
        sampler.seed = seed - epoch  # it adds the epoch


class ThreadedLoader:
    """A DataLoader whose workers are threads of this process, so that batches are not copied between processes.

    For datasets whose decoder releases Python's lock and whose samples draw from generators of their own: measured 8 to
    11 % less CPU time per image than with worker processes (`seresnet-timm bench data`), no shared memory, no fork.
    Batches come in the sampler's order; an error in a thread is raised in place of its batch. All other attributes are
    the DataLoader's.

    Args:
        loader: DataLoader, whose own workers are never started.
        threads: Number of threads; they stay from epoch to epoch.
        ahead: Number of batches that are being loaded or are waiting; None for one per thread, at least two.
    """

    def __init__(self, loader: DataLoader, threads: int, ahead: Optional[int] = None):
        self._loader, self.threads = loader, threads
        self._ahead = ahead or max(2, threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='loader')
        # as in a DataLoader: without a device there is no page-locked memory
        self._pins = loader.pin_memory and any(devices.why_unavailable(kind) is None for kind in ('npu', 'cuda'))

    def __getattr__(self, name: str) -> Any:
        if name == '_loader':
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        waiting: Deque[Future] = deque()
        batches = iter(self._loader.batch_sampler)
        try:
            for indices in batches:
                waiting.append(self._pool.submit(self._load, indices))
                if len(waiting) >= self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _load(self, indices: List[int]) -> Any:
        batch = self._loader.collate_fn(self._loader.dataset.__getitems__(indices))
        return pin_memory(batch) if self._pins else batch
