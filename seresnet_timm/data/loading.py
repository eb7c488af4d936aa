"""What the loaders of both train.py flavours get beside timm's factory: seeds, and a cheap collate"""
from typing import Any, List, Tuple

import torch
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.mixup import FastCollateMixup
from torch.utils.data import RandomSampler, default_collate

from seresnet_timm.data.fast_jpeg import FastJpegDataset
from seresnet_timm.data.seeding import SHUFFLE, WORKERS, SeededDataset, SeededMixup, key_of


def collate(batch: List[Tuple]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Stack uint8 images (N, 3, H, W) and targets; in a worker process straight into shared memory.

    timm's fast_collate gives the same and costs about ten times as much.
    """
    targets = default_collate([sample[1] for sample in batch])
    if targets.ndim == 1:
        targets = targets.long()
    return default_collate([sample[0] for sample in batch]), targets


def inner_loader(loader: Any) -> Any:
    """The DataLoader inside timm's PrefetchLoader, or the loader itself."""
    return loader.loader if isinstance(loader, PrefetchLoader) else loader


def is_fast(dataset: Any) -> bool:
    """True for a dataset that decodes fast, be it within another one."""
    while dataset is not None and not isinstance(dataset, (FastJpegDataset, SeededDataset)):
        dataset = getattr(dataset, 'dataset', None)
    return dataset is not None


def finish(loader: Any, seed: int) -> Any:
    """Seed and speed up a loader whose dataset decodes fast; others stay as timm's factory made them.

    Args:
        loader: As from timm's `create_loader`.
        seed: Seed of the run: the shuffle depends on it and the epoch alone, and no generator of the main process is
            drawn from, so that a resumed run sees what an unbroken one does.
    """
    inner = inner_loader(loader)
    if not is_fast(inner.dataset):
        return loader
    inner.generator = torch.Generator().manual_seed(key_of(WORKERS, seed) % 2 ** 63)
    if isinstance(inner.sampler, RandomSampler):
        inner.sampler.generator = torch.Generator()
    if isinstance(inner.collate_fn, FastCollateMixup):
        inner.collate_fn = SeededMixup.of(inner.collate_fn)
    elif inner.collate_fn is fast_collate and not isinstance(inner.dataset, SeededDataset):
        inner.collate_fn = collate
    set_epoch(loader, 0)
    return loader


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell dataset and sampler which epoch begins, so that samples and shuffle depend on it."""
    dataset, sampler = loader.dataset, loader.sampler
    if hasattr(dataset, 'set_epoch'):
        dataset.set_epoch(epoch)
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
    elif isinstance(sampler, RandomSampler) and sampler.generator is not None:
        sampler.generator.manual_seed(key_of(SHUFFLE, dataset.seeds.seed, epoch) % 2 ** 63)
