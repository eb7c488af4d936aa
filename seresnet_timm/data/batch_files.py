"""The files of a batch, found again from the order of the images"""
from typing import Any, List, Optional

from torch.utils.data import RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from seresnet_timm.data.loading import inner_loader, set_epoch


def files_of_batch(loader: Any, epoch: int, batch_idx: int, rank: Optional[int] = None) -> Optional[List[str]]:
    """Names of the files of a batch of this process, or of another rank; None if its order or its files are not known.

    Only for a loader that is not used any more: it may shuffle again.
    """
    inner = inner_loader(loader)
    sampler, dataset = getattr(inner, 'sampler', None), getattr(inner, 'dataset', None)
    batches = getattr(inner, 'batch_sampler', None)
    if any(getattr(b, 'draws_seed', False) for b in (batches, getattr(batches, 'sampler', None))):
        return None
    is_repeatable = isinstance(sampler, (DistributedSampler, SequentialSampler)) or (
        isinstance(sampler, RandomSampler) and sampler.generator is not None)
    while dataset is not None and not hasattr(dataset, 'filename'):
        dataset = getattr(dataset, 'dataset', None)
    if not is_repeatable or dataset is None:
        return None
    if rank is not None:
        if not isinstance(sampler, DistributedSampler):
            return None
        sampler.rank = rank
    if hasattr(inner.dataset, 'set_epoch') or isinstance(sampler, DistributedSampler):
        set_epoch(loader, epoch)
    for index, indices in enumerate(inner.batch_sampler):
        if index == batch_idx:
            return [str(dataset.filename(i, absolute=True)) for i in indices]
    return None
