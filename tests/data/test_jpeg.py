"""Decoding of JPEG regions, by the C extension and by simplejpeg, against Pillow."""
import io
import math
import random
import resource
import struct
import threading

import numpy as np
import pytest
from photographs import photographs, psnr
from PIL import Image

from seresnet_timm.data import jpeg
from seresnet_timm.data.images import read_image
from seresnet_timm.data.jpeg import Crop

DECODERS = {d.name: d for d in jpeg.decoders()}
MINIMUM = {'c': 36, 'simplejpeg': 31}  # dB
needs_c = pytest.mark.skipif('c' not in DECODERS, reason='the C extension is not built: no libjpeg-turbo header')


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop('format', 'JPEG'), **options)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def photo() -> Image.Image:
    return photographs()[0]


def whole(width: int, height: int, size=(32, 32)) -> Crop:
    return Crop((0, 0, width, height), size, (0, 0, *size), 'bilinear')


def random_cut(width: int, height: int, chance: random.Random, out: int = 224, interpolation='bilinear') -> Crop:
    area, ratio = chance.uniform(0.08, 1) * width * height, math.exp(chance.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    box = (chance.randint(0, width - w), chance.randint(0, height - h), w, h)
    return Crop(box, (out, out), (0, 0, out, out), interpolation, chance.random() < 0.5, chance.random() < 0.5)


@needs_c
@pytest.mark.parametrize('options', (
    {}, {'subsampling': 0}, {'subsampling': 1}, {'progressive': True}, {'quality': 30}, {'restart_marker_blocks': 3},
    {'grey': True}, {'keep_rgb': True, 'subsampling': 0}), ids=str)
def test_region_is_pillows_bit_for_bit(photo, options):
    """A crop that is not resized: what is decoded of it are Pillow's pixels, wherever it begins and ends."""
    options = dict(options)
    image = photo.resize((301, 223)).convert('L' if options.pop('grey', False) else 'RGB')
    data = encode(image, **options)
    expected = np.asarray(read_image(data, 'RGB'))
    chance = random.Random(0)
    for _ in range(60):
        w, h = chance.randint(1, 301), chance.randint(1, 223)
        x, y = chance.randint(0, 301 - w), chance.randint(0, 223 - h)
        out = DECODERS['c'].decode(data, Crop((x, y, w, h), (w, h), (0, 0, w, h), 'bilinear'), False)
        assert np.array_equal(out, expected[y:y + h, x:x + w]), (x, y, w, h)


@pytest.mark.parametrize('name', DECODERS)
@pytest.mark.parametrize('interpolation', ('bilinear', 'bicubic'))
def test_quality(photo, name, interpolation):
    """Random crops of a small and a large photograph, whose DCT scale is 1/1 to 1/4."""
    chance, values = random.Random(0), {}
    for width, height in ((500, 375), (1600, 1200)):
        data = encode(photo.resize((width, height)), quality=90)
        image = read_image(data, 'RGB')
        values[width] = []
        for _ in range(12):
            cut = random_cut(width, height, chance, interpolation=interpolation)
            expected = np.asarray(jpeg.crop_and_resize(image, cut))
            values[width].append(psnr(DECODERS[name].decode(data, cut, False), expected))
    assert np.mean(values[500]) > 50 and min(values[500]) > 50  # no reduction by the DCT: rounding only
    assert min(values[1600]) > MINIMUM[name] - (3 if interpolation == 'bicubic' else 0)


@pytest.mark.parametrize('name', DECODERS)
def test_layouts_mirrors_and_windows(photo, name):
    """Each is a rearrangement of the plain result."""
    data, decode = encode(photo.resize((320, 240))), DECODERS[name].decode
    plain = Crop((10, 20, 290, 210), (120, 90), (0, 0, 120, 90), 'bicubic')
    expected = decode(data, plain, False)
    assert expected.shape == (90, 120, 3) and expected.dtype == np.uint8
    assert np.array_equal(decode(data, plain, True), expected.transpose(2, 0, 1))
    assert np.array_equal(decode(data, plain._replace(hflip=True), False), expected[:, ::-1])
    assert np.array_equal(decode(data, plain._replace(vflip=True), True), expected[::-1].transpose(2, 0, 1))
    window = decode(data, plain._replace(window=(7, 5, 64, 48)), False)
    assert np.array_equal(window, expected[5:53, 7:71])
    out = np.zeros((3, 90, 120), np.uint8)
    assert decode(data, plain, True, out) is out and np.array_equal(out, expected.transpose(2, 0, 1))


def pillows_files(photo) -> dict:
    small = photo.resize((160, 120))
    data = encode(small)
    twelve_bits = bytearray(data)
    frame = data.index(b'\xff\xc0')
    twelve_bits[frame + 4] = 12
    huge = bytearray(data)
    huge[frame + 5:frame + 9] = struct.pack('>HH', 65000, 65000)
    huge_progressive = bytearray(encode(small, progressive=True))
    frame = huge_progressive.index(b'\xff\xc2')
    huge_progressive[frame + 5:frame + 9] = struct.pack('>HH', 9000, 9000)
    return {
        'PNG': encode(small, format='PNG'), 'PNG of 16 bits': encode(Image.new('I;16', (8, 8), 999), format='PNG'),
        'CMYK': encode(small.convert('CMYK')), 'truncated': data[:len(data) // 2], 'without its end': data[:-2],
        'twelve bits': bytes(twelve_bits), 'huge': bytes(huge), 'huge and progressive': bytes(huge_progressive),
        'header only': data[:300], 'empty': b'', 'text': b'no image at all' * 20, 'marker': b'\xff\xd8\xff\xd9',
        'damaged inside': data[:len(data) // 2] + b'\xff\xd3' * 40 + data[len(data) // 2 + 80:],
    }


@pytest.mark.parametrize('name', DECODERS)
def test_files_for_pillow_are_handed_back(photo, name):
    decoder = DECODERS[name]
    for kind, data in pillows_files(photo).items():
        size = decoder.size(data)
        if kind not in ('damaged inside', 'huge and progressive', 'twelve bits'):
            assert size is None, kind
        if size is not None:
            assert decoder.decode(data, whole(*size), True) is None, kind


@pytest.mark.parametrize('name', DECODERS)
def test_no_file_does_harm(photo, name):
    """Bytes changed at random: a picture or a refusal, never a crash; and no memory is lost on the way."""
    decoder = DECODERS[name]
    sources = [encode(photo.resize((96, 64)), progressive=p, subsampling=s) for p in (False, True) for s in (0, 2)]
    chance = random.Random(1)
    outcomes = {True: 0, False: 0}
    peak = 0
    for i in range(1600):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.randint(1, 12)):
            data[chance.randrange(2, len(data))] = chance.randrange(256)
        size = decoder.size(bytes(data))
        done = size is not None and size[0] * size[1] < 10 ** 7 and (
            decoder.decode(bytes(data), whole(*size), True) is not None)
        outcomes[done] += 1
        if i == 400:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcomes[True] > 50 and outcomes[False] > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 60_000  # KiB


@needs_c
def test_arguments_that_do_not_fit_are_refused(photo):
    data, out = encode(photo.resize((64, 48))), np.empty((3, 8, 8), np.uint8)
    fit = ((0, 0, 64, 48), (8, 8), (0, 0, 8, 8))
    assert jpeg._jpeg.decode(data, out, *fit) is True and jpeg._jpeg.decode(data, None, *fit) is True
    for box, size, window in (
            ((-1, 0, 64, 48), (8, 8), (0, 0, 8, 8)), ((0, 0, 0, 48), (8, 8), (0, 0, 8, 8)),
            ((0, 0, 64, 48), (8, 8), (1, 0, 8, 8)), ((0, 0, 64, 48), (0, 8), (0, 0, 8, 8)),
            ((0, 0, 64, 48), (8, 8), (0, 0, 2 ** 31 - 1, 8)), ((0, 0, 64, 48), (10 ** 6, 8), (0, 0, 8, 8))):
        with pytest.raises(ValueError):
            jpeg._jpeg.decode(data, out, box, size, window)
    with pytest.raises(ValueError, match='bytes'):
        jpeg._jpeg.decode(data, np.empty((3, 8, 9), np.uint8), *fit)
    with pytest.raises(TypeError):
        jpeg._jpeg.decode('text', out, *fit)
    with pytest.raises(BufferError):
        jpeg._jpeg.decode(data, bytes(192), *fit)
    # a box that the image does not have is the file's fault: it may have changed since its header was read
    assert jpeg._jpeg.decode(data, out, (0, 0, 65, 48), (8, 8), (0, 0, 8, 8)) is False


@needs_c
def test_decoding_lets_other_threads_run(photo):
    """Python runs while a large image is decoded."""
    data = encode(photo.resize((2500, 2000)), quality=95)
    ticks, done = [0], threading.Event()

    def count():
        while not done.is_set():
            ticks[0] += 1
    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = ticks[0]
        out = np.empty((3, 2000, 2500), np.uint8)
        box = (0, 0, 2500, 2000)
        assert jpeg._jpeg.decode(data, out, box, (2500, 2000), box)
        assert ticks[0] - before > 500
    finally:
        done.set()
        thread.join()
