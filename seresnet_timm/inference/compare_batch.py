"""The batch of `seresnet-timm compare`: random numbers, or images."""
from dataclasses import dataclass
from typing import Tuple

import torch

from seresnet_timm.errors import UsageError, counted
from seresnet_timm.inference.predict import ImageFiles


@dataclass(frozen=True)
class Batch:
    """Images of the network's input, a class for each, and where they are from."""
    images: torch.Tensor
    targets: torch.Tensor
    origin: str


def synthetic_batch(size: Tuple[int, int, int], count: int, seed: int, num_classes: int) -> Batch:
    """Normal random numbers, as normalised images are."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *size, generator=generator)
    return Batch(images, _targets(count, num_classes, generator), f'random numbers, seed {seed}')


def image_batch(images: ImageFiles, count: int, seed: int, num_classes: int) -> Batch:
    """Images from all over a list of files, preprocessed as in validation; their classes are random.

    Raises:
        UsageError: There are too few, or one cannot be read.
    """
    total = len(images)
    if total < count:
        raise UsageError(f'-b {count}: --data-dir has only {total} images.')
    chosen = [i * total // count for i in range(count)]
    found = [images[i][1] for i in chosen]
    files = [images.files[i] for i in chosen]
    for file, image in zip(files, found):
        if isinstance(image, str):
            raise UsageError(f'{file}: cannot be read: {image}')
    generator = torch.Generator().manual_seed(seed)
    source = f'{counted(count, "image")}, e.g. {files[0]}'
    return Batch(torch.stack(found), _targets(count, num_classes, generator), source)


def _targets(count: int, num_classes: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(max(1, num_classes), (count,), generator=generator)
