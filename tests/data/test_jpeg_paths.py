"""The C decoder's vector code, its plain C and its Huffman decoder: the same bits, on every machine."""
import base64
import math
import random

import numpy as np
import pytest
from photographs import photographs
from test_jpeg import encode, needs_c, pillows_files, random_cut, whole

from seresnet_timm.data import jpeg
from seresnet_timm.data.images import read_image
from seresnet_timm.data.jpeg import Crop

pytestmark = needs_c


@pytest.fixture(autouse=True)
def choice():
    """The choice of the import comes back after each test."""
    yield
    jpeg._jpeg.use(jpeg._jpeg.paths[0], jpeg._jpeg.huffman)


def ways():
    return [(path, huffman) for path in jpeg._jpeg.paths for huffman in (True, False)]


def decode(data: bytes, crop: Crop, path: str, huffman: bool):
    jpeg._jpeg.use(path, huffman)
    return jpeg._decode_c(data, crop, True)


@pytest.fixture(scope='module')
def photo():
    return photographs()[0]


def weights(low: float, high: float, size: int, window, bicubic: bool) -> np.ndarray:
    """Pillow's antialiased filter as a matrix of integers with 14 bits behind the point, whose rows have the sum 1."""
    def shape(x: float) -> float:
        x = abs(x)
        if not bicubic:
            return 1 - x if x < 1 else 0.
        return (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.
    scale = (high - low) / size
    stretch = max(1., scale)
    support = (2. if bicubic else 1.) * stretch
    matrix = np.zeros((window[1], math.ceil(high)), np.int64)
    for o in range(window[1]):
        center = low + (window[0] + o + 0.5) * scale
        first, last = max(math.floor(low), int(center - support + .5)), min(math.ceil(high), int(center + support + .5))
        real = [shape((i - center + .5) / stretch) for i in range(first, last)]
        row = [math.floor(w / sum(real) * 2 ** 14 + .5) for w in real]
        row[row.index(max(row))] += 2 ** 14 - sum(row)
        matrix[o, first:last] = row
    return matrix


def resized(image: np.ndarray, crop: Crop) -> np.ndarray:
    """The result of `decode` from all pixels of the file, by NumPy's integers."""
    x, y, width, height = crop.box
    bicubic = crop.interpolation == 'bicubic'
    rows = weights(y, y + height, crop.size[1], crop.window[1::2], bicubic)
    columns = weights(x, x + width, crop.size[0], crop.window[0::2], bicubic)
    blended = (np.einsum('oh,hwc->owc', rows, image[:rows.shape[1]].astype(np.int64)) + 2 ** 7) >> 8
    result = (np.einsum('ow,hwc->hoc', columns, blended[:, :columns.shape[1]]) + 2 ** 19) >> 20
    result = np.clip(result, 0, 255).astype(np.uint8)[::-1 if crop.vflip else 1, ::-1 if crop.hflip else 1]
    return result.transpose(2, 0, 1)


@pytest.mark.parametrize('interpolation', ('bilinear', 'bicubic'))
def test_results_are_those_of_integers(photo, interpolation):
    """Every way to compute gives the bits of the independent statement, which is the same on every machine."""
    chance = random.Random(3)
    data = encode(photo.resize((213, 160)), quality=90)
    image = np.asarray(read_image(data, 'RGB'))
    for out in (107, 24, 64, 3, 150):
        crop = random_cut(213, 160, chance, out, interpolation)
        if min(crop.box[2:]) >= 2 * out:  # then the DCT reduces as well
            crop = crop._replace(box=(*crop.box[:2], *(min(v, 2 * out - 1) for v in crop.box[2:])))
        expected = resized(image, crop)
        for way in ways():
            assert np.array_equal(decode(data, crop, *way), expected), (way, crop)


def test_huffman_decoder_is_used():
    """It was tried at the import and gave libjpeg's pixels; else every image would cost a third more, unseen."""
    assert jpeg._jpeg.huffman == 1 and jpeg._jpeg.paths[-1] == 'scalar'


SMALL = ((1, 1), (2, 3), (7, 5), (8, 8), (9, 17), (33, 31), (100, 75))


@pytest.mark.parametrize('options', (
    {}, {'subsampling': 0}, {'subsampling': 1}, {'optimize': True, 'quality': 99}, {'quality': 3},
    {'progressive': True}, {'restart_marker_blocks': 2}, {'restart_marker_rows': 1, 'optimize': True}, {'mode': 'L'},
    {'keep_rgb': True, 'subsampling': 0}), ids=str)
def test_huffman_decoder_gives_libjpegs_pixels(photo, options):
    """Images of all sizes, with and without a reduction by the DCT; the crop skips blocks in all directions."""
    options, chance = dict(options), random.Random(5)
    mode = options.pop('mode', 'RGB')
    for size in SMALL:
        data = encode(photo.resize(size).convert(mode), **options)
        for _ in range(6):
            w, h = chance.randint(1, size[0]), chance.randint(1, size[1])
            out = chance.choice(((w, h), (1, 1), (5, 9), (max(1, w // 3), max(1, h // 2))))
            box = (chance.randint(0, size[0] - w), chance.randint(0, size[1] - h), w, h)
            crop = Crop(box, out, (0, 0, *out), 'bicubic')
            found = [decode(data, crop, *way) for way in ways()]
            assert found[0] is not None and all(np.array_equal(found[0], other) for other in found[1:]), (size, crop)


@pytest.mark.parametrize('subsampling', ('411', '440', '422', '420', '444'))
def test_other_subsamplings(photo, subsampling):
    simplejpeg = pytest.importorskip('simplejpeg')
    image = np.ascontiguousarray(np.asarray(photo.resize((61, 47))))
    data = simplejpeg.encode_jpeg(image, 90, 'RGB', subsampling)
    crop = Crop((13, 9, 40, 37), (40, 37), (0, 0, 40, 37), 'bilinear')
    expected = np.asarray(read_image(data, 'RGB'))[9:46, 13:53].transpose(2, 0, 1)
    for way in ways():
        assert np.array_equal(decode(data, crop, *way), expected), way


# 400 x 48 pixels, with 4x2 and 2x4 samples of brightness to one of colour, as libjpeg writes them and Pillow does not
RARE_HEAD = (
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeX'
    'BkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAw'
    'AZAD')
RARE = {
    '4x2': (
        'AUIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAQMABgT/xAAWEAEBAQAAAAAAAAAAAAAAAAAAERL/xAAZAQEBAQEBAQAAAAAAAAAAAA'
        'ABAgMGAAX/xAAXEQEBAQEAAAAAAAAAAAAAAAAAARIR/9oADAMBAAIRAxEAPwD3U001GtTTXy8OUkUpppqNammnDSRSmmtUaaaacLkUpprV'
        'GmmmnC5FKaa1Rppppw0kUpprVGmmmnC5FKaa1RpprU4aSK01qajTTWpwuRWmtTUaaa1OFyK01qajTTWpw0kVprU1GmtTThcitammo01qac'
        'NJFa1Zk6azHC+OXprU1GmmtXsObkVrU01GmtTThpIrWppqNNamnC5Fa1NNRprU04XIrWppqNNamnDSRWtTo1GtTTThcilNNNRrU004aSKU'
        '001GtTTThcilNNNRrU004XIpTTWqNNNNOGkilNNao00004XIpTTWqNNNNOGkilNZkqazHC+OXpprVGmmmnDm5FKaa1Rppppw0kUpprVGmm'
        'mnC5FKaa1RpprU4aSK01qajTTWpwuRWmtTUaaa1OFyK01qajTTWpw0kVprU1GmnTU4XIrTWpqNNamnDSRWtTTUaa1NOFyK1qaajTWppwuR'
        'WtTTUdNo6OnsNJFa1ZktHTMcry//2Q=='),
    '2x4': (
        'ASQAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAAMBBAb/xAAWEAEBAQAAAAAAAAAAAAAAAAAAERL/xAAYAQEBAQEBAAAAAAAAAAAAAA'
        'ABAgAEBv/EABgRAQEBAQEAAAAAAAAAAAAAAAASARMR/9oADAMBAAIRAxEAPwDuranSp1tSra4eDy0OytqVbUq2p0rcFQ7K2p0qdKnW08DD'
        'sralW1KtqVbW4Kh2VtSranSp1tPBUOylTralW1KtrcDDsralW1OlTraeCodlKnW1KtqVbW4Kh2VtSranSp1tPAw7KVOtqVbUq2twVDsral'
        'W1OlTpTwVDtpU62pabUq2twVDsralW1KtqdKeBh20qdKnW1KtrcFQ7K2pVtSranSngqHZW1OlTralW1uBh2VtSralW1OlPBUOytqdKnW1K'
        'trcFQ7K2pVtSralW08DDsranSp0qdbW4Kh2VtSralW1Ktp4Kh2VtSranSp1tbgqHZSp1tSralW08DDsralW1OlTra3BUOylTralW1Ktp4K'
        'h5etqVbQB0xjz3mK0qdbQAxivMUralW0AaMV5itKnW0AMYfFK2pVtAGjFeYrSp1tADGK8UralW0AaMV5itKnSgDRhzMVralW0AMYrzFK2p'
        '0oA0YrzFa2pVtADGHzFK2p0oA0YrxWtqVbQAxivMUranSgDRh8xWtqVbQAxivMUranooA0YrzFa2pVtADGK8xStqVbQBow+YrSp1tADGK8'
        'xStqVbQBoxXitKnW0AMYfMUralW0AaMV5itKno0ANOK8xWtqWm6AGnFeYrSpaboAacV5j/2Q=='),
}


@pytest.mark.parametrize('sampling', RARE)
def test_rare_subsamplings(sampling):
    """Whose colours the DCT reduces less than their brightness: libjpeg crops columns of them wrongly."""
    data = base64.b64decode(RARE_HEAD + RARE[sampling])
    image = read_image(data, 'RGB')
    for box, size in (((0, 0, 400, 48), (200, 24)), ((60, 0, 340, 48), (170, 24)), ((201, 5, 199, 43), (199, 43))):
        crop = Crop(box, size, (0, 0, *size), 'bilinear')
        expected = np.asarray(jpeg.crop_and_resize(image, crop), np.int16).transpose(2, 0, 1)
        for way in ways():
            found = decode(data, crop, *way)
            assert (found is None) == (box[0] == 60), (way, box)  # Pillow's, where it is cropped and reduced
            assert found is None or np.abs(found - expected).mean() < 3, (way, box)


def test_a_subsampling_without_a_name_goes_to_pillow(photo):
    """simplejpeg ends with a KeyError for 1x4, to which 4x1 is changed here."""
    simplejpeg = pytest.importorskip('simplejpeg')
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(np.asarray(photo.resize((64, 64)))), 90, 'RGB', '411')
    frame = data.index(b'\xff\xc0')
    assert data[frame + 11] == 0x41
    data = data[:frame + 11] + b'\x14' + data[frame + 12:]
    decoder = next(d for d in jpeg.decoders() if d.name == 'simplejpeg')
    assert decoder.size(data) is None and decoder.decode(data, whole(64, 64), True, None) is None


def test_damaged_files_go_to_pillow(photo):
    """What libjpeg would warn of is handed back; where both accept a file with changed bytes, pixels are the same."""
    for kind, data in pillows_files(photo).items():
        for way in ways():
            assert decode(data, whole(160, 120), *way) is None, (kind, way)
    chance, accepted, stricter = random.Random(2), 0, 0
    sources = [encode(photo.resize((96, 64)), subsampling=s, **o)
               for s in (0, 2) for o in ({}, {'restart_marker_blocks': 2})]
    for _ in range(400):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(600, len(data))] = chance.randrange(256)
        if jpeg._jpeg.size(bytes(data)) != (96, 64):
            continue
        ours, libjpegs = (decode(bytes(data), whole(96, 64), jpeg._jpeg.paths[0], huffman) for huffman in (True, False))
        if ours is not None:
            assert libjpegs is not None and np.array_equal(ours, libjpegs)
        accepted += ours is not None
        stricter += ours is None and libjpegs is not None
    assert accepted > 100 and stricter < 10


def test_extreme_shapes(photo):
    """A line of pixels, and a reduction by more than the integers' weights allow: Pillow's."""
    for size in ((20000, 1), (1, 20000)):
        data = encode(photo.resize(size))
        for way in ways():
            assert decode(data, whole(*size, (9, 9)), *way) is None, way
            assert decode(data, whole(*size, (100, 1) if size[0] > 1 else (1, 100)), *way).shape[0] == 3
