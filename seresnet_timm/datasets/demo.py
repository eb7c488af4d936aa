"""Demo dataset: scikit-learn's handwritten digits as an ImageNet-style tree of JPEG files.

1,797 real scans (8x8 pixels, 10 classes) from the UCI "Optical Recognition of Handwritten Digits" test set, which
scikit-learn contains: real images without a download.
"""
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from seresnet_timm.errors import UsageError

VAL_FRACTION = 0.2
IMAGE_SIZE = 32  # pixels a side
SEED = 42


def write_demo_data(root: str, seed: int = SEED) -> dict:
    """Write the digits as `root/train/<class>/*.jpg` and `root/val/<class>/*.jpg`.

    The split is stratified and depends on `seed` only. The tree is written beside `root` and renamed (atomic).

    Args:
        root: Folder to create; must not exist or be empty.
        seed: Seed of the split.

    Returns:
        Number of images by split: `{'train': n, 'val': m}`.

    Raises:
        UsageError: scikit-learn is missing, or `root` cannot be created.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f'{root} exists and is not an empty folder: name a new folder, or remove it first.')
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError('demo-data needs scikit-learn, which contains the images: pip install "seresnet-timm[demo]".')
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    except OSError as e:
        raise UsageError(f'Cannot write to {root.parent}: {e.strerror}.')

    digits = load_digits()
    rng = np.random.RandomState(seed)
    counts = {'train': 0, 'val': 0}
    try:
        for label in np.unique(digits.target):
            indices = rng.permutation(np.flatnonzero(digits.target == label))
            num_val = round(len(indices) * VAL_FRACTION)
            for position, index in enumerate(indices):
                split = 'val' if position < num_val else 'train'
                folder = tmp / split / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                # the scans have 17 grey levels, 0 to 16
                pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
                image = Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
                image.convert('RGB').save(folder / f'{index:04d}.jpg', quality=95)
                counts[split] += 1
        tmp.chmod(0o755)  # mkdtemp's 0700 would deny other users the data
        if root.exists():
            root.rmdir()
        os.rename(tmp, root)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    return counts
