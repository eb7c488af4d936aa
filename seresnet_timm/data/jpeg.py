"""Decode what a crop needs of a JPEG, and resize it: three ways, one description of the work

`Crop` says what becomes of an image, in the terms of its full resolution. A decoder does it on a file's bytes:

    c           the package's own extension, `_jpeg.c`: only the region, at the DCT scale that suffices (level B)
    simplejpeg  the whole image at the DCT scale that suffices, then torch's antialiased resize (level A)
    pillow      `crop_and_resize`: timm's way, and the way of every file that the other two hand back
"""
import io
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
TAIL = 64  # bytes at the end of a whole file, in which the end-of-image marker lies
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a decompression bomb


class Crop(NamedTuple):
    """What becomes of an image: `box` of it is resized to `size`, and `window` of that is kept, mirrored or not."""
    box: Tuple[int, int, int, int]  # left, top, width, height, in pixels of the image
    size: Tuple[int, int]  # width, height
    window: Tuple[int, int, int, int]  # x, y, width, height, in pixels of the resized box
    interpolation: str  # bilinear or bicubic, both with antialias
    hflip: bool = False
    vflip: bool = False


class Decoder(NamedTuple):
    """A way to decode.

    Attributes:
        name: For messages.
        size: Function of a file's bytes: (width, height), None for a file that is Pillow's to read.
        decode: Function of bytes, Crop, `planar` and an array to write into or None: uint8 array (3, H, W) or (H, W, 3)
            if not planar; None for a file that is Pillow's to read.
        releases_gil: Threads decode side by side: Python's lock is not held, no threads of torch's are started.
    """
    name: str
    size: Callable[[bytes], Optional[Tuple[int, int]]]
    decode: Callable[[bytes, Crop, bool, Optional[np.ndarray]], Optional[np.ndarray]]
    releases_gil: bool


def open_image(data: bytes, mode: Optional[str]) -> Image.Image:
    """Decode a file as timm's datasets do.

    Raises:
        OSError: It is no image, or a damaged one.
    """
    image = Image.open(io.BytesIO(data))
    return image.convert(mode) if mode else image


def crop_and_resize(image: Image.Image, cut: Crop) -> Image.Image:
    """Crop, resize and mirror with Pillow, as torchvision's transforms do."""
    left, top, width, height = cut.box
    if (left, top, width, height) != (0, 0, *image.size):
        image = image.crop((left, top, left + width, top + height))
    if image.size != cut.size:
        image = image.resize(cut.size, RESAMPLING[cut.interpolation])
    x, y, width, height = cut.window
    if (x, y, width, height) != (0, 0, *image.size):
        image = image.crop((x, y, x + width, y + height))
    if cut.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if cut.vflip:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


# --- the C extension --------------------------------------------------------------------------------------------------

def _decode_c(data: bytes, cut: Crop, planar: bool, out: Optional[np.ndarray] = None) -> Optional[np.ndarray]:
    if out is None:
        _, _, width, height = cut.window
        out = np.empty((3, height, width) if planar else (height, width, 3), np.uint8)
    done = _jpeg.decode(
        data, out, cut.box, cut.size, cut.window, cut.interpolation == 'bicubic', cut.hflip, cut.vflip, planar)
    return out if done else None


# --- simplejpeg -------------------------------------------------------------------------------------------------------

def _size_simplejpeg(data: bytes) -> Optional[Tuple[int, int]]:
    if data[:3] != b'\xff\xd8\xff' or b'\xff\xd9' not in data[-TAIL:]:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in ('YCbCr', 'RGB', 'Gray') and width * height <= MAX_PIXELS else None


def _decode_simplejpeg(
        data: bytes, cut: Crop, planar: bool, out: Optional[np.ndarray] = None) -> Optional[np.ndarray]:
    (left, top, width, height), (full_width, full_height) = cut.box, cut.size
    size = _size_simplejpeg(data)
    if size is None:
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
        result = _resize_torch(image, cut)
    else:  # torch's resize takes whole pixels only
        result = Image.fromarray(image).resize(
            cut.size, RESAMPLING[cut.interpolation], (x0 - first_x, y0 - first_y, x1 - first_x, y1 - first_y))
        result = np.asarray(result)
    x, y, width, height = cut.window
    result = result[y:y + height, x:x + width]
    result = result[::-1 if cut.vflip else 1, ::-1 if cut.hflip else 1]
    result = result.transpose(2, 0, 1) if planar else result
    if out is None:
        return np.ascontiguousarray(result)
    out[...] = result
    return out


def _resize_torch(image: np.ndarray, cut: Crop) -> np.ndarray:
    """Resize an image (H, W, 3) with antialias; torch's code for bytes is faster than Pillow's."""
    width, height = cut.size
    if image.shape[:2] == (height, width):
        return image
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    tensor = F.interpolate(tensor, size=(height, width), mode=cut.interpolation, antialias=True)
    return tensor[0].permute(1, 2, 0).numpy()


# --- choice -----------------------------------------------------------------------------------------------------------

def _none_size(data: bytes) -> None:
    return None


def _none_decode(data: bytes, cut: Crop, planar: bool, out: Optional[np.ndarray] = None) -> None:
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
        return f"the package's C decoder (libjpeg-turbo {_jpeg.libjpeg_turbo})"
    if decoder.name == 'simplejpeg':
        return f'simplejpeg {simplejpeg.__version__}; the C decoder is not built'
    return f'Pillow {Image.__version__}'
