"""ImageNet-like JPEGs for measurements, made of the photographs that scikit-learn and scikit-image ship"""
import io
import random
from pathlib import Path
from typing import List

import numpy as np
from PIL import Image

from seresnet_timm.errors import UsageError

SMALL, LARGE = (500, 375, 100_000), (1600, 1200, 530_000)  # width, height, bytes
SKIMAGE = ('coffee.png', 'astronaut.png', 'chelsea.png', 'rocket.jpg', 'motorcycle_left.png', 'ihc.png', 'retina.jpg')


def photographs() -> List[Image.Image]:
    """The photographs that are installed: two of scikit-learn, seven more with scikit-image.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise UsageError("The test images are made of scikit-learn's photographs: pip install scikit-learn, or name "
                         'a folder of images with --data-dir.')
    found = [Image.fromarray(image) for image in load_sample_images().images]
    try:
        import skimage
    except ImportError:
        return found
    folder = Path(skimage.__file__).parent / 'data'
    return found + [Image.open(folder / name).convert('RGB') for name in SKIMAGE if (folder / name).is_file()]


def write_images(folder: Path, count: int, seed: int = 0) -> List[Path]:
    """Write `count` JPEGs, nine of ten about 500x375 near 100 KB, the tenth 1600x1200 near 530 KB, all of them 4:2:0.

    An image is cut from a mosaic of photographs in their own resolution, mirrored at random, and saved at the quality
    that gives the size in bytes.
    """
    chance = random.Random(seed)
    sources = photographs()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        width, height, size = LARGE if i % 10 == 9 else SMALL
        if i % 10 != 9:
            width, height = width + chance.randint(-40, 40), height + chance.randint(-40, 40)
            if chance.random() < 0.25:
                width, height = height, width
        paths.append(folder / f'{i:05d}.jpg')
        paths[-1].write_bytes(_encode(_mosaic(sources, width, height, chance), size))
    return paths


def _mosaic(sources: List[Image.Image], width: int, height: int, chance: random.Random) -> Image.Image:
    canvas = Image.new('RGB', (width, height))
    y = -chance.randint(0, 60)
    while y < height:
        x, row = -chance.randint(0, 60), height
        while x < width:
            tile = chance.choice(sources)
            if chance.random() < 0.5:
                tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            canvas.paste(tile, (x, y))
            x, row = x + tile.width, min(row, tile.height)
        y += row
    return canvas


def _encode(image: Image.Image, size: int) -> bytes:
    """As JPEG of about `size` bytes."""
    low, high, best = 40, 99, b''
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, 'JPEG', quality=quality, subsampling=2)
        if not best or abs(buffer.tell() - size) < abs(len(best) - size):
            best = buffer.getvalue()
        low, high = (quality + 1, high) if buffer.tell() < size else (low, quality - 1)
    return best


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; 100 for equal ones."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 100. if error == 0 else float(10 * np.log10(255 ** 2 / error))
