"""Damaged and strange input for the C extensions that a folder has; run as a script by test_c_code_fuzz.py.

`python fuzz_c_code.py FOLDER SEED COUNT`: COUNT JPEGs go through FOLDER's `_jpeg`, and a tenth as many pictures through
its `_augment`. A file that is decoded without a resize must have Pillow's pixels ('other pixels'). Two things are not
counted as faults: damage behind the rows of a crop is not seen ('not by Pillow'), and of a progressive file that lacks
scans each release of libjpeg-turbo smooths the blocks in its own way ('other smoothing'). Prints the counts as JSON; a
crash leaves the file FOLDER/last.jpg.
"""
import importlib.machinery
import importlib.util
import io
import json
import math
import random
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

MARKERS = bytes.fromhex('c0 c1 c2 c3 c4 c9 ca cc d0 d7 d8 d9 da db dc dd e0 ee fe 00')
SAMPLING = (0x11, 0x21, 0x12, 0x22, 0x41, 0x14, 0x31, 0x44, 0, 1, 3, 12, 16)


def load(folder: Path, name: str):
    """The extension NAME of FOLDER, without the package, which imports torch."""
    path = next(folder.glob(f'{name}*.so'))
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def pixels(chance: random.Random, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(chance.randrange(1 << 30)).integers(0, 256, (height, width, 3), np.uint8)


def picture(chance: random.Random, width: int, height: int) -> Image.Image:
    small = pixels(chance, width // 6 + 2, height // 6 + 2)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def sources(chance: random.Random) -> list:
    """Sound files of every kind that Pillow and simplejpeg write."""
    kinds = [dict(subsampling=s, **o) for s in (0, 1, 2) for o in (
        {}, {'restart_marker_blocks': 2}, {'restart_marker_rows': 1}, {'progressive': True},
        {'optimize': True, 'quality': 97})]
    kinds += [{'keep_rgb': True, 'subsampling': 0}, {'mode': 'L'}, {'mode': 'L', 'progressive': True}, {'mode': 'CMYK'}]
    files = []
    for kind in kinds:
        for low, high in ((1, 20), (20, 90)):
            options, buffer = dict(kind), io.BytesIO()
            image = picture(chance, chance.randint(low, high), chance.randint(low, high))
            image.convert(options.pop('mode', 'RGB')).save(buffer, 'JPEG', **options)
            files.append(buffer.getvalue())
    try:
        import simplejpeg
    except ImportError:
        return files
    for subsampling in ('411', '440', '422', '420'):
        image = np.ascontiguousarray(np.asarray(picture(chance, chance.randint(9, 90), chance.randint(9, 90))))
        files.append(simplejpeg.encode_jpeg(image, 90, 'RGB', subsampling))
    return files


def places(data: bytes, wanted=None) -> list:
    """Where markers are."""
    found = [i for i in range(len(data) - 1) if data[i] == 255 and data[i + 1] not in (0, 255)]
    return [i for i in found if data[i + 1] in wanted] if wanted else found


def change(data: bytearray, chance: random.Random, files: list) -> bytearray:
    """One change of a random kind."""
    kind, at = chance.randrange(12), chance.randrange(max(1, len(data)))
    frame = next(iter(places(data, (0xC0, 0xC1, 0xC2))), None)
    if kind == 0 and data:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and data:
        data[at] = chance.choice((0, 255, 127, 128, chance.randrange(256)))
    elif kind == 2:  # cut, with or without the end of the image
        data = data[:at] + (b'\xff\xd9' if chance.random() < 0.8 else b'')
    elif kind == 3:
        del data[at:at + chance.randint(1, 40)]
    elif kind == 4:
        data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 12)))
    elif kind == 5 and (found := places(data)):  # another marker
        data[chance.choice(found) + 1] = chance.choice(MARKERS)
    elif kind == 6:  # a marker in the data
        data[at:at] = bytes((255, chance.choice(MARKERS)))
    elif kind == 7 and frame is not None and frame + 18 < len(data):  # sampling factors, tables, precision, size
        field = chance.choice((11, 14, 17, 12, 15, 18, 4, 9, 10, 13))
        data[frame + field] = chance.choice((*SAMPLING, chance.randrange(256)))
    elif kind == 8 and frame is not None and frame + 9 < len(data):
        data[frame + 5:frame + 9] = struct.pack('>HH', *(chance.choice((0, 1, 7, 8, 17, 100, 700)) for _ in range(2)))
    elif kind == 9 and (found := places(data, (0xC4, 0xDB, 0xDD, 0xDA))):  # tables, restarts, scan
        at = min(chance.choice(found) + chance.randint(2, 30), len(data) - 1)
        data[at] = chance.choice((0, 1, 2, 16, 17, 255, chance.randrange(256)))
    elif kind == 10 and (found := places(data)):  # a segment twice, or from another file
        other = chance.choice(files)
        start = chance.choice(places(other))
        at = chance.choice(found)
        data[at:at] = other[start:start + chance.randint(4, 200)]
    elif kind == 11 and (found := places(data, range(0xD0, 0xD8))):  # restart markers in another order
        data[chance.choice(found) + 1] = chance.randrange(0xD0, 0xD8)
    return data


def pillows(data: bytes):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    except Exception:  # any: Pillow's plugins raise many kinds
        return None


def try_decoder(jpeg, data: bytes, chance: random.Random, counts: dict, folder: Path) -> None:
    size = jpeg.size(data)
    for path in jpeg.paths:
        for huffman in (True, False) if jpeg.huffman else (False,):
            jpeg.use(path, huffman)
            state = chance.getstate()
            try_crops(jpeg, data, size or (64, 48), chance, counts, folder)
            chance.setstate(state)
    chance.random()
    counts['files'] += 1
    counts['known'] += size is not None


def try_crops(jpeg, data: bytes, size, chance: random.Random, counts: dict, folder: Path) -> None:
    width, height = size
    if width * height > 4_000_000:
        return
    w, h = chance.randint(1, width), chance.randint(1, height)
    x, y = chance.randint(0, width - w), chance.randint(0, height - h)
    out = np.empty((h, w, 3), np.uint8)
    if jpeg.decode(data, out, (x, y, w, h), (w, h), (0, 0, w, h), planar=False):
        counts['decoded'] += 1
        expected = pillows(data)
        if expected is None:
            counts['not by Pillow'] += 1
        elif not np.array_equal(out, expected[y:y + h, x:x + w]):
            kind = 'other smoothing' if places(data, (0xC2, 0xCA)) else 'other pixels'
            counts[kind] += 1
            (folder / f'{kind}-{counts[kind]}.jpg').write_bytes(data)
    full = chance.choice((1, 2, 7, 32, 65, 300)), chance.choice((1, 3, 8, 33, 64, 257))
    window = tuple(chance.randint(1, n) for n in full)
    start = tuple(chance.randint(0, n - m) for n, m in zip(full, window))
    out = np.empty((3, *window[::-1]), np.uint8)
    flags = [chance.random() < 0.5 for _ in range(4)]
    # a box may be larger than the image: it is refused
    box = (x, y, w + chance.choice((0, 0, 0, 9)), h)
    jpeg.decode(data, out, box, full, (*start, *window), *flags, chance.choice((1, 2, 4, 8)))


def try_augment(augment, chance: random.Random) -> None:
    """Every function on a picture of any size, with any numbers."""
    long, width, height = (chance.randint(1, n) for n in (3000, 70, 70))
    size = chance.choice(((1, 1), (1, long), (long, 1), (2, 2), (3, 3), (width, height), (700, 500)))
    image = pixels(chance, *size)
    out = np.empty_like(image)

    def number() -> float:
        return chance.choice((
            0., 1., -1., 0.5, math.inf, -math.inf, math.nan, 1e300, -1e300, 1e-300, 1e9, -2.5, float(size[0]),
            chance.uniform(-3, 3), chance.uniform(-300, 300)))
    fill = tuple(chance.randrange(256) for _ in range(3))
    for bicubic in (False, True):
        augment.affine(image, out, size, tuple(number() for _ in range(6)), fill, bicubic)
        small = tuple(chance.uniform(-1.2, 1.2) for _ in range(6))
        matrix = (*small[:2], small[2] * size[0], *small[3:5], small[5] * size[1])
        augment.affine(image, out, size, matrix, fill, bicubic)
    for factor in (number(), chance.uniform(-2, 2)):
        augment.saturate(image, out, factor)
        augment.sharpen(image, out, size, factor)
    augment.look_up(image, out, bytes(chance.randrange(256) for _ in range(768)))
    assert np.frombuffer(augment.histogram(image), np.uint32).sum() == 4 * size[0] * size[1]
    augment.planes(image, out.reshape(3, size[1], size[0]))
    augment.mix(image, image[::-1].copy(), out, chance.random())
    for wrong in ((size[0] + 1, size[1]), (0, size[1]), (-1, -1), (1 << 30, 4), (size[1] + 7, size[0])):
        for name, arguments in (('sharpen', (1.,)), ('affine', ((1., 0., 0., 0., 1., 0.), fill, False))):
            try:
                getattr(augment, name)(image, out, wrong, *arguments)
            except ValueError:
                continue
            raise AssertionError(f'{wrong} was taken for {size}')


def main(folder: Path, seed: int, count: int) -> None:
    jpeg, augment, chance = load(folder, '_jpeg'), load(folder, '_augment'), random.Random(seed)
    counts = dict.fromkeys(('files', 'known', 'decoded', 'not by Pillow', 'other smoothing', 'other pixels'), 0)
    for i in range(count):
        if i % 500 == 0:
            files = sources(chance)
        data = bytearray(chance.choice(files))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 6))):
            data = change(data, chance, files)
        (folder / 'last.jpg').write_bytes(data)
        try_decoder(jpeg, bytes(data), chance, counts, folder)
        if i % 10 == 0:
            try_augment(augment, chance)
    print(json.dumps({'huffman': jpeg.huffman, **counts}))


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
