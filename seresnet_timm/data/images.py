"""The only reader of image files: which files are images, and from a file to a picture in 8 bits

A picture has the pixels that timm's loader gives (`Image.open(file).convert(mode)`): no rotation by EXIF, no colour
profile, no alpha; of an animation the first picture. Two things differ, because Pillow alone gives wrong pixels or
none: values of more than 8 bits are scaled, where Pillow clips them at 255; and a PNG is read without its texts and
profiles if they alone are at fault.
"""
import io
import os
import re
import stat
import struct
import sys
import time
import warnings
from collections import Counter
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from seresnet_timm.errors import first_line, first_names, printable

# The suffixes of timm (the first three) and of the other formats that Pillow reads and people train on. The list does
# not depend on the machine: all nodes of a run must count the same files.
EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.ppm', '.pgm',
              '.pbm', '.pnm', '.avif')
TIMM_EXTENSIONS = EXTENSIONS[:3]
MAX_BYTES = 1 << 30  # of a file; larger ones are not read
FOREIGN_FILES = '.'  # hidden: what a Mac writes beside a file ('._1.jpg'), a phone's bin, parts of a copy under way
MAX_KINDS = 8  # suffixes that a sentence lists
SECONDS_BETWEEN_LINES = 30  # of progress, without a terminal
LITTER = ('thumbs.db', 'desktop.ini')  # of Windows; hidden files are never counted

PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_PIXELS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')  # the chunks that pixels depend on
KNOWN_STARTS = (  # of files that are often called like images
    (b'\x00\x05\x16\x07', 'it is a companion file of macOS (AppleDouble), not an image'),
    (b'version https://git-lfs', 'it is a pointer of Git LFS, not the image: git lfs pull brings it'),
    (b'%PDF', 'it is a PDF, not an image'),
    (b'PK\3\4', 'it is a zip archive, not an image'),
    (b'\x1f\x8b', 'it is compressed with gzip'),
    (b'\x93NUMPY', 'it is a NumPy array (.npy), not an image'),
    (b'\xff\x0a', 'it is a JPEG XL image, which Pillow does not read: save it as JPEG or PNG'),
    (b'\0\0\0\x0cJXL ', 'it is a JPEG XL image, which Pillow does not read: save it as JPEG or PNG'),
    *((start, 'it is damaged at its beginning') for start in (PNG_START, b'\xff\xd8\xff', b'GIF8', b'RIFF')),
    *((start, 'it is a TIFF that is damaged, or of channels or bits that Pillow does not read: save it with 8 bits a '
       'channel') for start in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')),
)
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF, and a value


# what a frame of a JPEG is by its marker; None for those that libjpeg decodes
JPEG_FRAMES = {
    0xc0: None, 0xc1: None, 0xc2: None, 0xc9: None, 0xca: None,
    **dict.fromkeys((0xc3, 0xc7, 0xcb, 0xcf), 'a lossless JPEG'),
    **dict.fromkeys((0xc5, 0xc6, 0xcd, 0xce), 'a hierarchical JPEG')}
POSTSCRIPT = (b'%!PS', b'\xc5\xd0\xd3\xc6')  # which Pillow gives to Ghostscript, a program that executes it
HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')


class UnreadableImage(Exception):
    """A file cannot be used as an image; the text says why, as a clause."""


# --- which files ------------------------------------------------------------------------------------------------------

def is_image(name: str) -> bool:
    """Whether a file counts as an image, by its suffix in any case."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_folder(entry: os.DirEntry) -> bool:
    """True for a folder, and for a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which os.walk takes for a file
        return False


class Entries(NamedTuple):
    """What a folder holds, unsorted."""
    images: List[os.DirEntry]
    others: List[os.DirEntry]
    folders: List[os.DirEntry]


def list_folder(path: Union[str, os.PathLike]) -> Entries:
    """List a folder: images, other files, and folders with the links to such."""
    found = Entries([], [], [])
    with os.scandir(path) as entries:
        for entry in entries:
            if is_folder(entry):
                found.folders.append(entry)
            elif is_image(entry.name) and not entry.name.startswith(FOREIGN_FILES):
                found.images.append(entry)
            else:
                found.others.append(entry)
    return found


def extend_timm() -> None:
    """Let timm's readers of this process take all `EXTENSIONS`; before a dataset is made."""
    from timm.data.readers.img_extensions import add_img_extensions, get_img_extensions
    add_img_extensions([e for e in EXTENSIONS if e not in get_img_extensions()])


def count_by_suffix(names: Iterable[str]) -> Dict[str, int]:
    """Number of files by their suffix in small letters, without hidden files and those of Windows's Explorer."""
    names = (name for name in map(os.path.basename, names) if not name.startswith('.') and name.lower() not in LITTER)
    return dict(Counter(os.path.splitext(name)[1].lower() for name in names))


def describe_kinds(counts: Dict[str, int]) -> str:
    """Such as '9 .txt, 3 .heic', the most frequent first."""
    kinds = [f'{n} {suffix or "without a suffix"}' for suffix, n in sorted(
        counts.items(), key=lambda item: (-item[1], item[0]))]
    return printable(first_names(kinds, MAX_KINDS))


def describe_left_out(counts: Dict[str, int]) -> str:
    """Such as '12 files are left out: 9 .txt, 3 .heic'; '' for none."""
    total = sum(counts.values())
    return f'{total} {"file is" if total == 1 else "files are"} left out: {describe_kinds(counts)}' if total else ''


# --- from a file to a picture -----------------------------------------------------------------------------------------

def read_file(path: Union[str, os.PathLike]) -> bytes:
    """The bytes of a file.

    Raises:
        UnreadableImage: There is none, it may not be read, or it is a folder or pipe.
    """
    try:
        with open(path, 'rb', opener=_open_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnreadableImage('it is a pipe or a device, not a file')
            if found.st_size > MAX_BYTES:
                raise UnreadableImage(f'it has {found.st_size / 1e9:.1f} GB, more than any image')
            return file.read()
    except (OSError, MemoryError) as e:
        if isinstance(e, FileNotFoundError) and os.path.islink(path):
            raise UnreadableImage(f'it is a link to {os.readlink(path)}, which does not exist') from e
        raise UnreadableImage(why(e)) from e


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))  # opening a pipe waits for its writer otherwise


def read_image(source: Union[str, os.PathLike, bytes], mode: Optional[str] = 'RGB') -> Image.Image:
    """Decode an image.

    Args:
        source: Its path, or its bytes.
        mode: Pillow's mode of the result; None or '' for that of the file.

    Raises:
        UnreadableImage: It cannot be read or decoded.
    """
    data = source if isinstance(source, bytes) else read_file(source)
    try:
        return _decode(data, mode)
    except UnreadableImage:
        raise
    except Exception as e:  # decoders raise anything on a damaged file: ValueError, SyntaxError, struct.error ...
        pixels = _only_pixels_of_png(data)
        if pixels is not None:
            try:
                return _decode(pixels, mode)
            except Exception:  # the pixels are damaged too
                pass
        raise UnreadableImage(why(e, data)) from e


def silence_pillow() -> None:
    """Switch off Pillow's warnings on odd but readable files, which name no file. Not for threads."""
    warnings.filterwarnings('ignore', module=r'PIL\.')


def _decode(data: bytes, mode: Optional[str]) -> Image.Image:
    if data.startswith(POSTSCRIPT):
        raise UnreadableImage('it is a PostScript file (EPS), not an image')
    image = Image.open(io.BytesIO(data))
    if not mode:
        image.load()
        return image
    if image.mode in ('I', 'F') or image.mode.startswith('I;'):
        if mode not in ('I', 'F') and not mode.startswith('I;'):
            image = _in_8_bits(image)
    return image.convert(mode)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits or of floating point numbers, scaled to 8 bits.

    The range of 12 and 16 bits is known; that of the others is the smallest usual one that holds all values: 0 to 1
    (only floating point), 0 to 255, 0 to 65535.
    """
    values = np.asarray(image)
    tags = getattr(image, 'tag_v2', {})  # of a TIFF
    if image.mode.startswith('I;16'):
        values = values >> (tags.get(TIFF_BITS, (16,))[0] - 8)  # Pillow leaves 12 bits as they are
    elif image.mode == 'I' and image.format == 'PPM':  # Pillow scales all of more than 8 bits to 16
        values = values >> 8
    else:
        values = _scaled(values, image.mode)
    values = values.astype(np.uint8)
    # Pillow turns black and white only where there are 8 bits or fewer
    return Image.fromarray(255 - values if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO else values)


def _scaled(values: np.ndarray, mode: str) -> np.ndarray:
    """Values of an unknown range from 0 to 255."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableImage('it has values that are not finite numbers')
    if low < 0 or high > 65535:
        raise UnreadableImage(
            f'its values ({low:g} to {high:g}) are in no usual range (0 to 1, 0 to 255, 0 to 65535): save it with 8 or '
            '16 bits')
    if high > 255:
        values = values // 256
    elif mode == 'F':
        values = np.rint(values * 255 if high <= 1 else values)
    return values


def _only_pixels_of_png(data: bytes) -> Optional[bytes]:
    """A PNG without texts, colour profiles and the like, which its pixels do not need; None if there are none.

    Pillow refuses a whole file for a text of more than 1 MB (`PngImagePlugin.MAX_TEXT_CHUNK`), and for a wrong checksum
    of a text. To raise its limit would take the memory that the limit protects.
    """
    if not data.startswith(PNG_START):
        return None
    kept = [PNG_START]
    for kind, chunk in _png_chunks(data):
        if kind in PNG_PIXELS:
            kept.append(chunk)
    pixels = b''.join(kept)
    return pixels if len(pixels) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[Tuple[bytes, bytes]]:
    """Type and bytes of each chunk; the last one may be incomplete."""
    start = len(PNG_START)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, start)
        end = start + 12 + length
        yield kind, data[start:end]
        if kind == b'IEND':
            return
        start = end


def why(error: BaseException, data: Optional[bytes] = None) -> str:
    """Why a file cannot be read, as a clause.

    Args:
        error: What reading or decoding raised.
        data: The file, if it could be read.
    """
    if isinstance(error, MemoryError):
        return 'there is too little memory to decode it'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    unusual = None if data is None else _unusual_jpeg(data)
    if unusual and not isinstance(error, Image.DecompressionBombError):
        return f'it is {unusual}, which Pillow does not read: save it as an ordinary JPEG or PNG'
    if isinstance(error, UnidentifiedImageError):
        return _what_else(data) if data is not None else 'it is not an image, or its format is unknown'
    if isinstance(error, NotImplementedError) or 'not available' in str(error):
        return f'it is of a kind that this Pillow does not read ({first_line(error)})'
    what = 'too large' if isinstance(error, Image.DecompressionBombError) else 'damaged'
    return f'it is {what} ({first_line(error)})'


def _unusual_jpeg(data: bytes) -> Optional[str]:
    """What a JPEG is by its frame header, if it is of a kind that libjpeg does not decode to 8 bits."""
    if not data.startswith(b'\xff\xd8\xff'):
        return None
    at = 2
    while at + 5 <= len(data) and data[at] == 0xff:
        marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], 'big')
        if marker == 0xf7:
            return 'a JPEG-LS image'
        if marker in JPEG_FRAMES:
            bits = data[at + 4]
            return JPEG_FRAMES[marker] or (f'a JPEG of {bits} bits a channel' if bits != 8 else None)
        at += 1 if marker == 0xff else 2 + length
    return None


def _what_else(data: bytes) -> str:
    """What a file is that no decoder of Pillow knows."""
    if not data:
        return 'it is empty'
    for start, text in KNOWN_STARTS:
        if data.startswith(start):
            return text
    if data[4:8] == b'ftyp':
        return _what_media(data[8:12])
    if data[128:132] == b'DICM':
        return 'it is a DICOM file, which Pillow does not read: save it as PNG'
    beginning = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if beginning.startswith((b'<!doctype html', b'<html')):
        return 'it is a web page (HTML), not an image'
    if beginning.startswith((b'<?xml', b'<svg')):
        return 'it is an XML or SVG file, which Pillow does not read'
    if not data.strip(b'\0'):
        return 'it contains only zeros'
    if not re.search(rb'[^\t\n\r -~]', beginning):
        return 'it is a text file, not an image'
    return 'it is not an image, or its format is unknown'


def _what_media(brand: bytes) -> str:
    """What a file in the container of MP4 is, by its brand."""
    if brand in HEIC_BRANDS:
        return 'it is a HEIC image, as phones save them, which Pillow does not read: save it as JPEG'
    return 'it is damaged' if brand in (b'avif', b'avis') else 'it is a video, not an image'


# --- a verb that goes through them -----------------------------------------------------------------------------------

class ImageProgress:
    """A progress bar on a terminal, else a line every few seconds."""

    def __init__(self, total: int, start: int):
        self._bar = tqdm(total=total, initial=start, unit='image', disable=None, dynamic_ncols=True)
        self._count, self._total, self._said = start, total, time.monotonic()

    def __enter__(self) -> 'ImageProgress':
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def step(self) -> None:
        self._count += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f'{self._count} of {self._total} images', file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)
