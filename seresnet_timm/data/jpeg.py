"""Decode the region of a JPEG that a crop needs, and resize it: three decoders, one description of the work

`Crop` describes the work in pixels of the full resolution. A decoder does it on the bytes of a file:

    c           the package's C extension, `_jpeg.c`: the region only, at the smallest sufficient DCT scale (level B)
    simplejpeg  the whole image at the smallest sufficient DCT scale, then torch's antialiased resize (level A)
    pillow      `crop_and_resize`: as timm does it, also for every file that the other two do not decode
"""
import math
from typing import Callable, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

try:
    from seresnet_timm.data import _jpeg
except ImportError:
    _jpeg = None
try:
    import simplejpeg
except ImportError:
    simplejpeg = None

RESAMPLING = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
MAX_REDUCTION = 8  # of the DCT: 1, 2, 4, 8
TAIL = 64  # bytes at the end of a whole file, which contain the end-of-image marker
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a decompression bomb
MAX_SIDE = 65500  # of libjpeg


class Crop(NamedTuple):
    """`box` of the image is resized to `size`; `window` of the result is kept, and mirrored if asked for."""
    box: Tuple[int, int, int, int]  # left, top, width, height, in pixels of the image
    size: Tuple[int, int]  # width, height
    window: Tuple[int, int, int, int]  # x, y, width, height, in pixels of the resized box
    interpolation: str  # bilinear or bicubic, both with antialias
    hflip: bool = False
    vflip: bool = False

    @property
    def is_usual(self) -> bool:
        """False for what only Pillow resizes: a box without pixels, or a size that no JPEG has."""
        # boxes of an image of 1 x 1, sizes of one of 10,000 x 1
        return min(self.box[2:]) > 0 and max(self.size) <= MAX_SIDE


class Decoder(NamedTuple):
    """A decoder.

    Attributes:
        name: For messages.
        size: Function of a file's bytes: (width, height), None for a file that Pillow must read.
        decode: Function of bytes, Crop, `planar` and an array to write into or None: uint8 array (3, H, W) or (H, W, 3)
            if not planar; None for a file or crop that is left to Pillow.
        releases_gil: Threads can decode in parallel: Python's lock is released, and torch starts no threads.
    """
    name: str
    size: Callable[[bytes], Optional[Tuple[int, int]]]
    decode: Callable[[bytes, Crop, bool, Optional[np.ndarray]], Optional[np.ndarray]]
    releases_gil: bool


def crop_and_resize(image: Image.Image, crop: Crop) -> Image.Image:
    """Crop, resize and mirror with Pillow, as torchvision's transforms do."""
    left, top, width, height = crop.box
    if (left, top, width, height) != (0, 0, *image.size):
        image = image.crop((left, top, left + width, top + height))
    x, y, width, height = crop.window
    if crop.size[0] * crop.size[1] > MAX_PIXELS:  # only the window, for a thin image would fill the memory
        scale_x, scale_y = image.width / crop.size[0], image.height / crop.size[1]
        box = (x * scale_x, y * scale_y, (x + width) * scale_x, (y + height) * scale_y)
        image = image.resize((width, height), RESAMPLING[crop.interpolation], box)
        x = y = 0
    elif image.size != crop.size:
        image = image.resize(crop.size, RESAMPLING[crop.interpolation])
    if (x, y, width, height) != (0, 0, *image.size):
        image = image.crop((x, y, x + width, y + height))
    if crop.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if crop.vflip:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


# --- the C extension --------------------------------------------------------------------------------------------------

def _decode_c(data: bytes, crop: Crop, planar: bool, out: Optional[np.ndarray] = None) -> Optional[np.ndarray]:
    if not crop.is_usual:
        return None
    if out is None:
        _, _, width, height = crop.window
        out = np.empty((3, height, width) if planar else (height, width, 3), np.uint8)
    done = _jpeg.decode(
        data, out, crop.box, crop.size, crop.window, crop.interpolation == 'bicubic', crop.hflip, crop.vflip, planar)
    return out if done else None


# --- simplejpeg -------------------------------------------------------------------------------------------------------

def _size_simplejpeg(data: bytes) -> Optional[Tuple[int, int]]:
    if data[:3] != b'\xff\xd8\xff' or b'\xff\xd9' not in data[-TAIL:]:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: a subsampling that it has no name for
        return None
    return (width, height) if colours in ('YCbCr', 'RGB', 'Gray') and width * height <= MAX_PIXELS else None


def _decode_simplejpeg(
        data: bytes, crop: Crop, planar: bool, out: Optional[np.ndarray] = None) -> Optional[np.ndarray]:
    (left, top, width, height), (full_width, full_height) = crop.box, crop.size
    size = _size_simplejpeg(data)
    if size is None or not crop.is_usual:
        return None
    reduction = 1
    while reduction < MAX_REDUCTION and min(
            width / full_width, height / full_height) >= 2 * reduction:
        reduction *= 2
    try:
        image = simplejpeg.decode_jpeg(
            data, min_width=math.ceil(size[0] / reduction), min_height=math.ceil(size[1] / reduction))
    except ValueError:  # libjpeg warned or failed
        return None
    # the box in pixels of the reduced image, and the whole pixels that it touches
    x0, y0, x1, y1 = (v / reduction for v in (left, top, left + width, top + height))
    first_x, first_y = math.floor(x0), math.floor(y0)
    image = image[first_y:math.ceil(y1), first_x:math.ceil(x1)]
    if image.shape[:2] == (y1 - y0, x1 - x0):
        result = _resize_torch(image, crop)
    else:  # torch's resize takes whole pixels only
        result = Image.fromarray(image).resize(
            crop.size, RESAMPLING[crop.interpolation], (x0 - first_x, y0 - first_y, x1 - first_x, y1 - first_y))
        result = np.asarray(result)
    x, y, width, height = crop.window
    result = result[y:y + height, x:x + width]
    result = result[::-1 if crop.vflip else 1, ::-1 if crop.hflip else 1]
    result = result.transpose(2, 0, 1) if planar else result
    if out is None:
        return np.ascontiguousarray(result)
    out[...] = result
    return out


def _resize_torch(image: np.ndarray, crop: Crop) -> np.ndarray:
    """Resize an image (H, W, 3) with antialias; torch's code for bytes is faster than Pillow's."""
    width, height = crop.size
    if image.shape[:2] == (height, width):
        return image
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    tensor = F.interpolate(tensor, size=(height, width), mode=crop.interpolation, antialias=True)
    return tensor[0].permute(1, 2, 0).numpy()


# --- choice -----------------------------------------------------------------------------------------------------------

def _none_size(data: bytes) -> None:
    return None


def _none_decode(data: bytes, crop: Crop, planar: bool, out: Optional[np.ndarray] = None) -> None:
    return None


PILLOW = Decoder('pillow', _none_size, _none_decode, releases_gil=False)


def decoders() -> Tuple[Decoder, ...]:
    """The fast decoders that are installed, best first."""
    found = []
    if _jpeg is not None:
        found.append(Decoder('c', _jpeg.size, _decode_c, releases_gil=True))
    if simplejpeg is not None:
        found.append(Decoder('simplejpeg', _size_simplejpeg, _decode_simplejpeg, releases_gil=False))
    return tuple(found)


def describe(decoder: Decoder) -> str:
    if decoder.name == 'c':
        slower = '' if _jpeg.huffman else ', its own Huffman decoder: ours is not for this release or system'
        return f"the package's C decoder (libjpeg-turbo {_jpeg.libjpeg_turbo}{slower})"
    if decoder.name == 'simplejpeg':
        return f'simplejpeg {simplejpeg.__version__}; the C decoder is not built'
    return f'Pillow {Image.__version__}'
