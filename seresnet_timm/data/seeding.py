"""Randomness of data by (seed, epoch, index): the same for any number of workers, in a resumed run, in any order

A crop is drawn from a generator of its own. Transforms that draw from Python's, NumPy's and torch's global generators
(timm's auto-augment, torchvision's colour jitter) run with these seeded for the sample; in the main process the state
is restored afterwards, so that loading there does not change the training.
"""
import hashlib
import random
import struct
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from timm.data import FastCollateMixup
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from torch.utils.data import Dataset, get_worker_info

from seresnet_timm import device as devices
from seresnet_timm.data import augment

# what a number is drawn for: part of the seed, so that different draws are independent
SAMPLE, BATCH, SHUFFLE, WORKERS, ERASING = range(5)


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed that depends on all of the numbers."""
    packed = struct.pack(f'<{len(numbers)}q', *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), 'little')


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU; restore them in the main process. Not for threads."""
    is_main = get_worker_info() is None
    state = global_state() if is_main else None
    seed_global_generators(seed)
    try:
        yield
    finally:
        if state is not None:
            set_global_state(state)


def seed_global_generators(seed: int) -> None:
    """Seed the global generators of the CPU."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.default_generator.manual_seed(seed % 2 ** 63)


def global_state() -> Tuple[Any, ...]:
    """State of the global generators of the CPU."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_global_state(state: Tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


class SampleSeeds:
    """Seeds of the samples of a dataset.

    Args:
        seed: Seed of the run, the same on all ranks.
        stream: Different on each rank if ranks must augment the same image differently (repeated augmentation).
    """

    def __init__(self, seed: int, stream: int = 0):
        self.seed, self.stream = seed, stream
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # running workers see it change

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def derive(self, purpose: int, *numbers: int) -> int:
        """Seed of the current epoch for a purpose (SAMPLE, BATCH) and numbers."""
        return derive_seed(purpose, self.seed, self.stream, self.epoch, *numbers)

    def of_sample(self, index: int, repeat: int = 0) -> int:
        """Seed of an image; `repeat` counts its earlier occurrences in the batch."""
        return self.derive(SAMPLE, index, repeat)


class Batch(list):
    """Samples of a batch.

    Attributes:
        seed: Seed of what is drawn for all of them together (mixup); None if nothing is random.
        images: Their images as one tensor (N, 3, H, W), if there is one.
    """

    def __init__(self, samples: Sequence, seed: Optional[int] = None, images: Optional[torch.Tensor] = None):
        super().__init__(samples)
        self.seed, self.images = seed, images


def repeats(indices: Sequence[int]) -> List[int]:
    """How often each index has occurred before in the batch."""
    seen, result = {}, []
    for i in indices:
        result.append(seen.get(i, 0))
        seen[i] = result[-1] + 1
    return result


class DatasetWrapper(Dataset):
    """A dataset around another one, with seeds: attributes that it does not define are those of the inner one.

    Args:
        dataset: The inner dataset.
        seeds: Seeds of the samples; None if nothing is random.
    """

    def __init__(self, dataset: Dataset, seeds: Optional[SampleSeeds]):
        self.dataset, self.seeds = dataset, seeds

    def __getattr__(self, name: str) -> Any:
        if name in ('dataset', 'seeds'):  # not set yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def transform(self):
        return self.dataset.transform

    @transform.setter
    def transform(self, transform) -> None:  # as create_loader sets it
        self.dataset.transform = transform

    def set_epoch(self, epoch: int) -> None:
        if self.seeds is not None:
            self.seeds.set_epoch(epoch)

    def batch_seed(self, indices: Sequence[int]) -> Optional[int]:
        return None if self.seeds is None else self.seeds.derive(BATCH, indices[0])


class SeededDataset(DatasetWrapper):
    """A dataset that draws from the global generators, which are seeded for every sample."""

    def __getitem__(self, index: int):
        return self._sample(index, 0)

    def __getitems__(self, indices: List[int]) -> Batch:
        return Batch([self._sample(i, r) for i, r in zip(indices, repeats(indices))], self.batch_seed(indices))

    def _sample(self, index: int, repeat: int):
        with global_generators(self.seeds.of_sample(index, repeat)):
            return self.dataset[index]


class SeededMixup(FastCollateMixup):
    """timm's mixup in the collate function, which draws from the batch's seed; running workers see it switched off."""

    @classmethod
    def from_mixup(cls, mixup: FastCollateMixup) -> 'SeededMixup':
        seeded = cls.__new__(cls)
        settings = dict(vars(mixup))
        seeded._enabled = torch.tensor([settings.pop('mixup_enabled')]).share_memory_()
        vars(seeded).update(settings)
        return seeded

    @property
    def mixup_enabled(self) -> bool:
        return bool(self._enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._enabled.fill_(enabled)

    def __call__(self, batch: Batch, _=None):
        with global_generators(batch.seed):
            return super().__call__(batch)

    def _mix_batch_collate(self, output: torch.Tensor, batch: Batch) -> float:
        """timm's, with the same draws and results; the sums are made in C where it is built."""
        images = [np.asarray(sample[0]) for sample in batch]
        if augment._augment is None or any(image.dtype != np.uint8 or not image.flags.c_contiguous for image in images):
            return super()._mix_batch_collate(output, batch)
        lam, use_cutmix = self._params_per_batch()
        if use_cutmix:
            (top, bottom, left, right), lam = cutmix_bbox_and_lam(
                output.shape, lam, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam)
        for out, image, other in zip(output.numpy(), images, reversed(images)):
            if use_cutmix or lam == 1.:
                out[...] = image
                if lam != 1.:
                    out[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            else:
                augment._augment.mix(image, other, out, lam)
        return lam


class SeededErasing(RandomErasing):
    """timm's random erasing on the device, which draws from the seed of each image.

    Attributes:
        indices: Of the images of the next batch.
    """

    @classmethod
    def from_erasing(cls, erasing: RandomErasing, seeds: SampleSeeds) -> 'SeededErasing':
        seeded = cls.__new__(cls)
        vars(seeded).update(vars(erasing), seeds=seeds, indices=[])
        return seeded

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        device, draws_there = images.device, self.per_pixel or self.rand_color
        state, device_state = global_state(), devices.rng_state(device) if draws_there else None
        samples = list(zip(self.indices, repeats(self.indices)))
        first = len(images) // self.num_splits if self.num_splits > 1 else 0
        for i in range(first, len(images)):
            split, place = divmod(i, len(samples))
            seed = self.seeds.derive(ERASING, *samples[place], split)
            random.seed(seed)
            if draws_there:
                devices.seed(device, seed % 2 ** 63)
            self._erase(images[i], *images.shape[1:], images.dtype)
        set_global_state(state)
        devices.set_rng_state(device, device_state)
        return images
