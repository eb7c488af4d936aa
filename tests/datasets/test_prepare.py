"""The prepared copy: same names, classes and order, smaller pictures; whole at any instant; the source untouched."""
import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import file_size_limit, sample_photos
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

from seresnet_timm import cli

SIDE = 160


@pytest.fixture(scope='module')
def photos():
    return sample_photos()


@pytest.fixture
def tree(photos, tmp_path):
    """A dataset with every kind of image that occurs, each in a small and a large version."""
    root = tmp_path / 'data'
    for split in ('train', 'val'):
        for name in ('n2', 'n10', 'a b'):
            (root / split / name).mkdir(parents=True)
    china, flower = photos
    small = china.resize((SIDE, 107))
    train = root / 'train'
    china.save(train / 'n2' / 'large.JPEG', quality=90)
    small.save(train / 'n2' / 'small.JPEG', quality=60)
    small.save(train / 'n2' / 'small.png')
    flower.rotate(90, expand=True).save(train / 'n10' / 'tall.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: timm does not turn it back
    flower.save(train / 'n10' / 'turned.jpg', exif=exif.tobytes(), icc_profile=b'not a profile')
    small.save(train / 'n10' / 'turned_small.jpg', exif=exif.tobytes())
    flower.convert('CMYK').save(train / 'n10' / 'cmyk.jpg')
    small.convert('CMYK').save(train / 'n10' / 'cmyk_small.jpg')
    flower.convert('L').save(train / 'a b' / 'grey.jpg')
    transparent = flower.convert('RGBA')
    transparent.putalpha(100)
    transparent.save(train / 'a b' / 'alpha.png')
    flower.quantize(64).save(train / 'a b' / 'palette.PNG')
    Image.fromarray(np.asarray(flower.convert('L')).astype(np.uint16) * 100).save(train / 'a b' / 'sixteen.png')
    flower.save(train / 'a b' / 'png_by_content.JPEG', format='PNG')
    for name in ('n2', 'n10', 'a b'):
        flower.save(root / 'val' / name / 'v.jpg')
    (root / 'classes.txt').write_text('n2\n')
    return root


def digest(root) -> str:
    """Hash of names, contents and times of all that lies in a folder."""
    h = hashlib.sha256()
    for path in sorted(root.rglob('*')):
        h.update(f'{path.relative_to(root)} {path.lstat().st_mtime_ns}'.encode())
        h.update(path.read_bytes() if path.is_file() else b'')
    return h.hexdigest()


def images(root) -> dict:
    """Inode and time of its last change, by path, of every file of a copy: an inode's number is used again."""
    return {str(p.relative_to(root)): (p.lstat().st_ino, p.lstat().st_ctime_ns) for p in root.rglob('*')
            if not p.is_dir() and '.prepare' not in p.parts and p.name != 'prepare.json'}


def fail(capsys, *argv, code=2) -> str:
    with pytest.raises(SystemExit) as e:
        cli.main(['prepare', *map(str, argv)])
    assert e.value.code == code
    return capsys.readouterr().err


def psnr(a, b) -> float:
    error = np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2)
    return 99. if error == 0 else 10 * np.log10(255 ** 2 / error)


def test_copy_is_what_timm_would_see(tree, tmp_path, capsys):
    before = digest(tree)
    dst = tmp_path / 'copy'
    cli.main(['prepare', str(tree), str(dst), '--max-side', str(SIDE)])
    printed = capsys.readouterr()
    assert '4 images copied unchanged, 12 made smaller' in printed.out and 'other pixels' in printed.out
    assert f'{tree}: 1 file is left out: 1 .txt' in printed.err
    assert digest(tree) == before

    for split in ('train', 'val'):  # files, classes and their numbers in timm's order
        (old, old_classes), (new, new_classes) = (find_images_and_targets(str(r / split)) for r in (tree, dst))
        assert old_classes == new_classes == {'a b': 0, 'n2': 1, 'n10': 2}
        assert [(os.path.relpath(p, tree), t) for p, t in old] == [(os.path.relpath(p, dst), t) for p, t in new]
    for path in images(dst):
        source = Image.open(tree / path)
        if source.mode == 'I;16':
            source = Image.fromarray((np.asarray(source) >> 8).astype(np.uint8))
        source = source.convert('RGB')
        copy = Image.open(dst / path)
        if max(source.size) <= SIDE:
            assert (dst / path).read_bytes() == (tree / path).read_bytes()
            continue
        width, height = source.size
        scale = SIDE / max(width, height)
        expected = source.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        assert copy.size == expected.size and max(copy.size) == SIDE
        assert copy.format == ('PNG' if path.lower().endswith('.png') else 'JPEG')
        assert copy.mode == 'RGB' and not copy.getexif()
        if copy.format == 'PNG':
            assert np.array_equal(copy, expected), path
        else:
            assert psnr(copy.convert('L'), expected.convert('L')) > 40 and psnr(copy, expected) > 34, path


def test_second_run_does_only_what_is_missing(tree, tmp_path, capsys):
    dst = tmp_path / 'copy'
    argv = ['prepare', str(tree), str(dst), '--max-side', str(SIDE)]
    cli.main(argv)
    first = images(dst)
    cli.main(argv)
    assert images(dst) == first and '16 were done before' in capsys.readouterr().out

    (dst / 'train/n2/large.JPEG').unlink()
    os.truncate(dst / 'train/n10/tall.jpg', 1000)
    Image.new('RGB', (300, 200)).save(tree / 'train/n2/small.png')  # changed in the source
    Image.new('RGB', (9, 9)).save(tree / 'val/n2/new.jpg')
    (dst / 'val/n2/new.jpg').write_bytes(b'')  # there, but unknown to the journal
    (tree / 'val/n10/v.jpg').unlink()
    with open(dst / '.prepare/journal.jsonl', 'ab') as f:
        f.write(b'["val/a b/v.jpg", 1')  # the line at which a crash hit
    cli.main(argv)
    printed = capsys.readouterr()
    again = images(dst)
    assert {p for p in again if again[p] != first.get(p)} == {
        'train/n2/large.JPEG', 'train/n10/tall.jpg', 'train/n2/small.png', 'val/n2/new.jpg'}
    assert '12 were done before' in printed.out and 'no longer in' in printed.err and 'val/n10/v.jpg' in printed.err
    assert Image.open(dst / 'train/n2/small.png').size == (160, 107)
    cli.main(argv)
    assert images(dst) == again


def test_unreadable_images(tree, tmp_path, capsys):
    dst = tmp_path / 'copy'
    whole = (tree / 'train/n2/large.JPEG').read_bytes()
    (tree / 'train/n2/large.JPEG').write_bytes(whole[:len(whole) // 2])
    (tree / 'train/n2/small.JPEG').write_bytes(b'')
    os.symlink(tmp_path / 'nowhere', tree / 'val/n10/link.jpg')
    (tree / 'val/a b/v.jpg').write_text('text')
    text = fail(capsys, tree, dst, '--max-side', SIDE, code=1)
    bad = ['train/n2/large.JPEG', 'train/n2/small.JPEG', 'val/n10/link.jpg', 'val/a b/v.jpg']
    for path in bad:
        assert text.count(f'{tree / path}: cannot be read: ') == 1 and not (dst / path).exists()
    assert '4 of 17 images could not be read' in text and 'No image of val/a b is left' in text
    assert len(images(dst)) == 13 and json.loads((dst / 'prepare.json').read_text())['finished'] is False

    (tree / 'train/n2/large.JPEG').write_bytes(whole)
    for path in bad[1:]:
        (tree / path).unlink()
    cli.main(['prepare', str(tree), str(dst), '--max-side', str(SIDE)])
    assert '13 were done before' in capsys.readouterr().out and len(images(dst)) == 14
    assert json.loads((dst / 'prepare.json').read_text())['finished'] is True


@pytest.mark.slow
def test_killed_at_any_time(photos, tmp_path):
    """Killed twice while it writes: every file there is whole, and none that the journal names is done again."""
    src, dst, reference = tmp_path / 'data', tmp_path / 'copy', tmp_path / 'reference'
    buffer = io.BytesIO()
    photos[0].save(buffer, 'JPEG', quality=90)
    for i in range(400):
        folder = src / 'train' / f'c{i % 4}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{i}.jpg').write_bytes(buffer.getvalue())
    Image.open(buffer).resize((512, 342), Image.Resampling.BICUBIC).save(reference, 'JPEG', quality=95)
    command = [sys.executable, '-m', 'seresnet_timm', 'prepare', src, dst, '-j', '2']
    rng, kept = random.Random(0), {}
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = dst / '.prepare' / 'journal.jsonl'
        size = journal.stat().st_size if journal.exists() else 0
        while not journal.exists() or journal.stat().st_size == size:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = images(dst)
        assert 0 < len(there) < 400
        assert all((dst / p).read_bytes() == reference.read_bytes() for p in there)
        done = [json.loads(line)[0] for line in journal.read_text().splitlines() if line.endswith(']')]
        assert set(done) <= set(there) and all(there[p] == kept[p] for p in kept)
        kept = {p: there[p] for p in done}
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and f'{len(kept)} were done before' in result.stdout, result.stderr
    there = images(dst)
    assert len(there) == 400 and all((dst / p).read_bytes() == reference.read_bytes() for p in there)
    assert all(there[p] == kept[p] for p in kept)
    assert sorted(os.listdir(dst / '.prepare')) == ['journal.jsonl']


def test_disk_full(tree, tmp_path, capsys):
    """A write that fails, here beyond the file size limit: one sentence, nothing half-written, the next goes on."""
    dst = tmp_path / 'copy'
    with file_size_limit(20_000):
        text = fail(capsys, tree, dst, '--max-side', SIDE, code=1)
    assert f'Cannot write to {dst} (File too large)' in text and 'run the same command again to continue' in text
    assert all(Image.open(dst / p).convert('RGB') for p in images(dst)) and not list(dst.rglob('*.part'))
    cli.main(['prepare', str(tree), str(dst), '--max-side', str(SIDE)])
    assert len(images(dst)) == 16


def test_source_cannot_be_written_to(tree, tmp_path, capsys):
    before = digest(tree)
    (tmp_path / 'link').symlink_to(tree)
    for dst in (tree, tree / 'copy', tmp_path / 'link', tmp_path / 'link' / 'x' / 'y', tmp_path):
        assert 'the copy needs a' in fail(capsys, tree, dst)
    assert not (tree / 'copy').exists() and digest(tree) == before

    dst = tmp_path / 'copy'  # a folder of the copy that leads into the source
    cli.main(['prepare', str(tree), str(dst), '--max-side', str(SIDE)])
    shutil.rmtree(dst / 'train')
    (dst / 'train').symlink_to(tree / 'train')
    assert f'leads to {tree}/train' in fail(capsys, tree, dst, '--max-side', SIDE)
    (dst / 'train').unlink()
    (dst / 'train/n2').mkdir(parents=True)
    (dst / 'train/n2/large.JPEG').symlink_to(tree / 'train/n2/large.JPEG')  # a file of it, likewise: replaced
    cli.main(['prepare', str(tree), str(dst), '--max-side', str(SIDE)])
    assert digest(tree) == before and not (dst / 'train/n2/large.JPEG').is_symlink()

    (tree / 'train' / 'more').symlink_to(dst)  # and the source into the copy, or into itself
    assert 'the copy' in fail(capsys, tree, dst, '--max-side', SIDE)
    (tree / 'train' / 'more').unlink()
    (tree / 'train' / 'loop').symlink_to(tree)
    assert 'a link to a folder above it' in fail(capsys, tree, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_links_in_the_source_are_followed(tree, tmp_path):
    """As timm follows them; the copy holds files."""
    shutil.move(tree / 'val', tmp_path / 'elsewhere')
    (tree / 'val').symlink_to(tmp_path / 'elsewhere')
    cli.main(['prepare', str(tree), str(tmp_path / 'copy')])
    assert (tmp_path / 'copy/val/n2/v.jpg').is_file() and not (tmp_path / 'copy/val').is_symlink()


def test_folders_without_images_are_named(tree, tmp_path, capsys):
    (tree / 'train' / 'nothing').mkdir()
    cli.main(['prepare', str(tree), str(tmp_path / 'copy')])
    assert '1 folder without images left out: train/nothing' in capsys.readouterr().err


def test_refused(tree, tmp_path, capsys):
    dst = tmp_path / 'copy'
    cli.main(['prepare', str(tree), str(dst), '--max-side', str(SIDE)])
    with open(dst / '.prepare/lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert 'another prepare' in fail(capsys, tree, dst, '--max-side', SIDE)
    before = digest(dst)
    for argv in ((tree, dst), (tree, dst, '--max-side', SIDE, '--quality', 90)):
        assert 'use the same settings, or name another folder' in fail(capsys, *argv)
    assert 'was made with source' in fail(capsys, tree / 'train', dst, '--max-side', SIDE)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'x').write_text('')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'prepare.json').write_text('{"for')
    (tmp_path / 'empty').mkdir()
    for argv, message in (
            ((tree, tmp_path / 'full'), 'not empty and not a prepared copy'),
            ((tree, tmp_path / 'full' / 'x'), 'is a file'),
            ((tree, tmp_path / 'broken'), 'cannot be read'),
            ((tmp_path / 'no', tmp_path / 'new'), 'does not exist'),
            ((tmp_path / 'empty', tmp_path / 'new'), 'contains no image'),
            ((tree, tmp_path / 'new', '--quality', '0'), '--quality 0 is too small: give 1 to 100'),
    ):
        assert message in fail(capsys, *argv)
    assert digest(dst) == before and not (tmp_path / 'new').exists()
