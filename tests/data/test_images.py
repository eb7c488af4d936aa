"""Which files are images, and their pixels: right values of odd formats, one clause for what cannot be read."""
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from seresnet_timm.data import images
from seresnet_timm.data.images import UnreadableImage, list_folder, read_image

PIXELS = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
RGB = Image.fromarray(PIXELS)
GREY = np.asarray(RGB.convert('L'))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def why(source) -> str:
    with pytest.raises(UnreadableImage) as e:
        read_image(source)
    return str(e.value)


def ordinary_files():
    """Files of 8 bits a channel or less, whose pixels are those of Pillow's `convert`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    yield 'progressive', encode(RGB, 'JPEG', progressive=True)
    yield 'turned by EXIF', encode(RGB, 'JPEG', exif=exif)
    yield 'CMYK', encode(RGB.convert('CMYK'), 'JPEG')
    yield 'transparent palette', encode(RGB.quantize(16), 'PNG', transparency=3)
    yield 'one pixel', encode(RGB.resize((1, 1)), 'PNG')
    yield 'animation', encode(RGB, 'GIF', save_all=True, append_images=[RGB.rotate(180)])
    yield 'two pictures', encode(RGB, 'MPO', save_all=True, append_images=[RGB.rotate(180)])
    for mode in ('1', 'L', 'LA', 'RGBA'):
        yield mode, encode(RGB.convert(mode), 'PNG')
    for kind in ('WEBP', 'BMP', 'TIFF', 'PPM'):
        yield kind, encode(RGB, kind)


@pytest.mark.parametrize('mode', ('RGB', 'L'))
def test_ordinary_files_have_pillows_pixels(mode):
    for name, data in ordinary_files():
        assert np.array_equal(read_image(data, mode), Image.open(io.BytesIO(data)).convert(mode)), name


@pytest.mark.parametrize('values, kind, mode', (
    (GREY.astype(np.uint16) * 257, 'PNG', 'I;16'), (GREY.astype(np.uint16) * 257, 'TIFF', 'I;16'),
    (GREY.astype('>u2') * 257, 'TIFF', 'I;16B'), (GREY.astype(np.uint16) * 257, 'PPM', 'I'),
    (GREY.astype(np.int32), 'TIFF', 'I'), (GREY.astype(np.int32) * 257, 'TIFF', 'I'),
    (GREY.astype(np.float32) / 255, 'TIFF', 'F'), (GREY.astype(np.float32), 'TIFF', 'F'),
    (GREY.astype(np.float32) * 257, 'TIFF', 'F')))
def test_more_than_8_bits_are_scaled(values, kind, mode):
    """To the picture of 8 bits that the values were made from; Pillow alone clips them at 255."""
    if mode == 'I;16B':
        image = Image.frombytes(mode, values.shape[::-1], values.astype('>u2').tobytes())
    else:
        image = Image.fromarray(values)
    # Pillow before 11 cannot write PPM files of 16 bits
    data = b'P5 %d %d 65535\n' % image.size + values.astype('>u2').tobytes() if kind == 'PPM' else encode(image, kind)
    assert Image.open(io.BytesIO(data)).mode == mode
    assert np.array_equal(read_image(data, 'L'), GREY)
    assert np.array_equal(read_image(data, 'RGB'), np.repeat(GREY[..., None], 3, axis=2))


def tiff(values: bytes, bits: int, photometric: int = 1, kind: int = 1) -> bytes:
    """A TIFF of one grey channel of 30 x 20 pixels that Pillow would not write."""
    tags = ((256, 30), (257, 20), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 20),
            (279, len(values)), (339, kind))
    table = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    return b'II*\0' + struct.pack('<I', 8 + len(values)) + values + struct.pack('<H', len(tags)) + table + bytes(4)


def test_tiffs_of_12_bits_and_with_white_as_zero():
    """Pillow gives 12 bits as they are, and turns black and white only up to 8 bits."""
    twelve = GREY.astype(np.uint16).reshape(-1, 2) * 16
    packed = np.stack([twelve[:, 0] >> 4, (twelve[:, 0] & 15) << 4 | twelve[:, 1] >> 8, twelve[:, 1] & 255], axis=1)
    sixteen = GREY.astype('<u2') * 257
    for data in (tiff(packed.astype(np.uint8).tobytes(), 12), tiff(sixteen.tobytes(), 16),
                 tiff((65535 - sixteen).tobytes(), 16, photometric=0), tiff((255 - GREY).tobytes(), 8, photometric=0)):
        assert np.array_equal(read_image(data, 'L'), GREY)
    assert 'a TIFF that is damaged, or of channels or bits' in why(tiff(GREY.astype('<f8').tobytes(), 64, kind=3))


@pytest.mark.parametrize('marker, bits, words', (
    (0xc1, 12, 'a JPEG of 12 bits a channel'), (0xc3, 8, 'a lossless JPEG'), (0xf7, 8, 'a JPEG-LS image'),
    (0xc5, 8, 'a hierarchical JPEG')))
def test_jpegs_that_nobody_has_damaged(marker, bits, words):
    """Of scanners and hospitals: they are called what they are."""
    data = bytearray(encode(RGB, 'JPEG'))
    frame = data.index(b'\xff\xc0')
    data[frame + 1], data[frame + 4] = marker, bits
    assert f'it is {words}, which Pillow does not read' in why(bytes(data))


@pytest.mark.parametrize('value', (-1., 1e9, float('nan')))
def test_values_of_no_known_range_are_refused(value):
    assert 'values' in why(encode(Image.fromarray(np.full((3, 3), value, np.float32)), 'TIFF'))


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    checksum = (zlib.crc32(kind + content) + wrong) % 2 ** 32
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


def test_texts_do_not_cost_a_png_its_pixels():
    """3 MB of text in 3 kB, a profile like that, a wrong checksum of a text: Pillow refuses the file, we read it."""
    png, large = encode(RGB, 'PNG'), zlib.compress(b' ' * 3_000_000, 9)
    for extra in (
            chunk(b'zTXt', b'a\0\0' + large), chunk(b'iTXt', b'a\0\1\0\0\0' + large), chunk(b'iCCP', b'a\0\0' + large),
            chunk(b'tEXt', b'a\0b', wrong=1), chunk(b'acTL', b'short')):
        data = png[:33] + extra + png[33:]
        with pytest.raises((ValueError, OSError)):
            Image.open(io.BytesIO(data)).convert('RGB')
        assert np.array_equal(read_image(data), PIXELS)
        assert 'it is damaged' in why(data[:-200])  # its pixels are incomplete
    transparent = encode(RGB.quantize(16), 'PNG', transparency=3)
    data = transparent[:33] + chunk(b'zTXt', b'a\0\0' + large) + transparent[33:]
    assert np.array_equal(read_image(data), Image.open(io.BytesIO(transparent)).convert('RGB'))


def test_what_is_no_image_is_named(tmp_path):
    for content, text in (
            (b'', 'it is empty'), (b' \n<!DOCTYPE html><html>', 'a web page'), (b'<?xml version="1.0"?>', 'XML or SVG'),
            (b'\0\5\x16\7' + bytes(50), 'AppleDouble'), (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
            (bytes(2000), 'only zeros'), (b'hello', 'a text file'), (b'\1\2\3', 'its format is unknown'),
            (bytes(4) + b'ftypheic' + bytes(99), 'a HEIC image'), (bytes(4) + b'ftypmif1' + bytes(99), 'a HEIC image'),
            (bytes(4) + b'ftypisom' + bytes(99), 'a video'), (bytes(4) + b'ftypavif' + bytes(99), 'it is damaged'),
            (b'\xff\x0a' + bytes(99), 'a JPEG XL image'), (bytes(128) + b'DICM' + bytes(99), 'a DICOM file'),
            (b'PK\3\4' + bytes(99), 'a zip archive'), (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'a PostScript file'),
            (encode(RGB, 'JPEG')[:600], 'it is damaged'), (encode(RGB, 'PNG')[:600], 'it is damaged'),
            (b'P6 x\xff 1 255\n', 'it is damaged'), (encode(Image.new('1', (20000, 20000)), 'PNG'), 'it is too large')):
        assert text in why(content)
    (tmp_path / 'link.jpg').symlink_to('gone.jpg')
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    for name, text in (('link.jpg', 'a link to gone.jpg, which does not exist'), ('none.jpg', 'No such file'),
                       ('pipe.jpg', 'a pipe or a device'), ('folder.jpg', 'directory')):
        assert text in why(tmp_path / name)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('kind', ('PNG', 'JPEG', 'TIFF', 'GIF', 'WEBP', 'BMP', 'PPM'))
def test_any_damage_is_one_error(kind):
    """Bytes are changed and files are cut: a picture, or UnreadableImage with one line."""
    data, chance, unreadable = encode(RGB, kind), np.random.RandomState(1), 0
    for i in range(120):
        damaged = bytearray(data[:chance.randint(len(data))] if i % 3 == 0 else data)
        for _ in range(i % 3 * 3):
            damaged[chance.randint(min(200, len(damaged)))] = chance.randint(256)
        try:
            assert read_image(bytes(damaged)).mode == 'RGB'
        except UnreadableImage as e:
            unreadable += 1
            assert str(e) and '\n' not in str(e)
    assert unreadable > 20


def test_no_program_is_started_for_a_picture(monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(Image, 'open', lambda *_: pytest.fail('Pillow was asked'))
    for start in (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n', b'\xc5\xd0\xd3\xc6' + bytes(30)):
        assert 'PostScript' in why(start)


def test_suffixes():
    assert all(map(images.is_image, ('a.JPEG', 'a.jpg', 'a.b.PNG', 'a.webp', 'a.bmp', 'a.TIF', 'a.gif', 'a.ppm')))
    assert not any(map(images.is_image, ('jpg', '.jpg', 'a.txt', 'a.jpg.bak', 'a.svg')))
    counts = images.count_by_suffix(['a.txt', 'b.TXT', 'c.heic', 'README', '.DS_Store', 'Thumbs.db', 'x/desktop.ini'])
    assert images.describe_left_out(counts) == '4 files are left out: 2 .txt, 1 without a suffix, 1 .heic'
    assert images.describe_left_out({'.txt': 1}) == '1 file is left out: 1 .txt' and not images.describe_left_out({})
    before = get_img_extensions()
    images.extend_timm()
    images.extend_timm()
    assert get_img_extensions() == before + tuple(e for e in images.EXTENSIONS if e not in before)


def test_a_folder_has_one_listing(tmp_path):
    (tmp_path / 'below').mkdir()
    for name in ('1.PNG', '._1.png', 'notes.txt', 'below/2.png'):
        (tmp_path / name).touch()
    (tmp_path / 'link').symlink_to('below')
    (tmp_path / 'itself.jpg').symlink_to('itself.jpg')
    found = list_folder(tmp_path)
    assert [sorted(e.name for e in kind) for kind in found] == [
        ['1.PNG', 'itself.jpg'], ['._1.png', 'notes.txt'], ['below', 'link']]
