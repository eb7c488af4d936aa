"""check-data: every kind of fault is found in real files, a sound dataset has none, an interrupted check goes on."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from seresnet_timm import cli
from seresnet_timm.data import check


def picture(path, seed, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **kwargs)
    return path


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A sound dataset of two classes."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    root = tmp_path / 'data'
    seed = 0
    for split in ('train', 'val'):
        for name in 'ab':
            for i in range(3):
                seed += 1
                picture(root / split / name / f'{i}.jpg', seed)
    return root


def run(capsys, *argv, code=0):
    if code:
        with pytest.raises(SystemExit) as e:
            cli.main(['check-data', *map(str, argv)])
        assert e.value.code == code
    else:
        cli.main(['check-data', *map(str, argv)])
    return capsys.readouterr()


def found(root, **kwargs):
    """Kind, path and detail of each finding, without notes on small classes."""
    result = check.check_data(str(root), **kwargs)
    return {(f.kind, f.path): f.detail for f in result.findings if f.kind != 'few-images'}


def test_sound_dataset(data, capsys):
    picture(data / 'train' / 'a' / 'grey.png', 100)
    Image.open(data / 'train' / 'a' / 'grey.png').convert('CMYK').save(data / 'train' / 'a' / 'cmyk.JPEG')
    Image.open(data / 'train' / 'a' / 'grey.png').quantize(8).save(data / 'train' / 'a' / 'palette.PNG')
    picture(data / 'train' / 'a' / 'progressive.jpg', 101, progressive=True)
    before = sorted(os.walk(data))
    printed = run(capsys, data)
    assert 'nothing wrong with 16 images' in printed.out
    assert 'train: 10 images in 2 classes; 3 (b) to 7 (a) images per class, median 5' in printed.out
    assert '2 x class with few images (a note)' in printed.out
    assert 'few images' not in run(capsys, data, '--min-images', 3).out
    assert sorted(os.walk(data)) == before


def test_every_kind_of_file(data, capsys, tmp_path):
    a, content = data / 'train' / 'a', (data / 'train' / 'a' / '0.jpg').read_bytes()
    (a / 'cut.jpg').write_bytes(content[:len(content) // 2])
    (a / 'zeros.jpg').write_bytes(bytes(5000))
    (a / 'head.jpg').write_bytes(content[:10])
    (a / 'empty.jpg').touch()
    (a / 'page.jpg').write_text('<!DOCTYPE html><title>404</title>')
    (a / 'text.png').write_text('not an image')
    picture(a / 'inner.jpg', 50, format='PNG')
    picture(a / 'inner.png', 51, format='JPEG')
    Image.new('1', (10000, 9000)).save(a / 'large.png')
    Image.new('1', (20000, 10000)).save(a / 'bomb.png')
    (a / 'lost.jpg').symlink_to('/nowhere/x.jpg')
    os.mkfifo(a / 'pipe.jpg')
    (a / 'notes.txt').touch()
    png = picture(tmp_path / 'x.png', 52).read_bytes()
    (a / 'broken.png').write_bytes(png[:200] + bytes(100) + png[300:])
    kinds = {path.removeprefix('train/a/'): kind for kind, path in found(data)}
    assert kinds == {
        'cut.jpg': 'damaged', 'zeros.jpg': 'damaged', 'head.jpg': 'damaged', 'broken.png': 'damaged',
        'empty.jpg': 'empty', 'page.jpg': 'wrong-type', 'text.png': 'wrong-type', 'inner.jpg': 'wrong-type',
        'inner.png': 'wrong-type', 'large.png': 'giant', 'bomb.png': 'giant', 'lost.jpg': 'unreadable',
        'pipe.jpg': 'unreadable', 'notes.txt': 'left-out'}

    printed = run(capsys, data, '--json', tmp_path / 'f.json', '--csv', tmp_path / 'f.csv', '-j', 2, code=1)
    assert 'train/a/inner.jpg [a]: it is a PNG' in printed.out and '13 findings' in printed.err
    record = json.loads((tmp_path / 'f.json').read_text())
    with open(tmp_path / 'f.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert record['wrong'] == sum(row['wrong'] == 'True' for row in rows) == 13
    assert [(r['kind'], r['path']) for r in rows] == [(r['kind'], r['path']) for r in record['findings']]
    assert record['images'] == 25 and record['splits']['train']['counts'] == {'a': 16, 'b': 3}
    assert record['splits']['train']['fewest'] == {'name': 'b', 'images': 3}
    kinds = ('damaged', 'empty', 'wrong-type', 'giant', 'unreadable')
    assert 'nothing wrong' in run(capsys, data, '--ignore', *kinds).out


def test_duplicates_and_classes(data, capsys):
    shutil.copy(data / 'train' / 'a' / '0.jpg', data / 'val' / 'a' / 'again.jpg')
    os.link(data / 'train' / 'a' / '1.jpg', data / 'val' / 'b' / 'other.jpg')
    shutil.copy(data / 'train' / 'a' / '2.jpg', data / 'train' / 'b' / 'two.jpg')
    shutil.copy(data / 'train' / 'b' / '2.jpg', data / 'train' / 'b' / '2b.jpg')
    picture(data / 'val' / 'c' / 'new.jpg', 60)
    (data / 'train' / 'd').mkdir()
    assert found(data) == {
        ('leaked', 'val/a/again.jpg'): 'same content as train/a/0.jpg',
        ('leaked', 'val/b/other.jpg'): 'same content as train/a/1.jpg, of class a',
        ('two-classes', 'train/b/two.jpg'): 'same content as train/a/2.jpg, of class a',
        ('duplicate', 'train/b/2b.jpg'): 'same content as train/b/2.jpg',
        ('class-mismatch', 'val'): '1 image in val, none in train',
        ('empty-class', 'train/d'): ''}
    run(capsys, data, code=1)
    run(capsys, data, '--ignore', 'leaked', 'two-classes', 'class-mismatch', 'empty-class')


def test_other_layouts(data, tmp_path, capsys):
    (data / 'val').rename(data / 'test_split')
    assert list(check.check_data(str(data), ('train', 'test_split')).classes) == ['train', 'val']
    assert list(check.check_data(str(data)).classes) == ['train']
    assert list(check.check_data(str(data / 'train')).classes) == ['all']
    (tmp_path / 'map.txt').write_text('b\n')
    assert check.check_data(str(data), class_map=str(tmp_path / 'map.txt')).classes == {'train': {'b': 3}}
    picture(data / 'train' / 'stray.jpg', 70)
    assert ('odd-folder', 'train/stray.jpg') in found(data)


@pytest.mark.parametrize('folders, words', (
    (('x/a', 'y/a', 'z'), 'x/a, y/a are one class'),
    (('caf\u00e9', 'cafe\u0301'), 'NFD and NFC'),
    (('a', 'a\u200b'), 'a class twice'),
    (('a', 'a/inner'), 'a/inner is inside of a class folder'),
    (('Cat', 'cat'), 'the order of'),
))
def test_names_that_train_refuses_are_wrong(tmp_path, monkeypatch, folders, words):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for seed, name in enumerate(folders):
        picture(tmp_path / 'data' / name / '0.png', seed)
    (finding,) = check.check_data(str(tmp_path / 'data'), min_images=1).faults
    assert finding.kind == 'odd-folder' and words in finding.detail
    (tmp_path / 'map.txt').write_text('\n'.join(sorted({name.rpartition('/')[2] for name in folders})))
    assert check.check_data(str(tmp_path / 'data'), class_map=str(tmp_path / 'map.txt')).faults == []


def test_a_class_folder_that_is_two_by_a_link(data):
    (data / 'train' / 'c').symlink_to('a')
    assert found(data)['odd-folder', 'train'] == 'train/a and train/c are one folder, by a link: its images count twice'


@pytest.mark.parametrize('name, other', (('e\u0301', '\u00e9'), ('a ', 'a'), ('A', 'a'), ('\uff41', 'a')))
def test_a_class_that_is_written_otherwise_in_the_other_split_is_shown(data, name, other):
    for split, folder in (('train', other), ('val', name)):
        (data / split / 'a').rename(data / split / folder)
    details = [f.detail for f in check.check_data(str(data)).findings if f.kind == 'class-mismatch']
    assert len(details) == 2 and all('look alike and are not the same name' in d and 'U+' in d for d in details)


def test_splits_that_are_not_there_and_folders_that_no_split_names(data, capsys):
    error = run(capsys, data, '--train-split', 'trian', '--val-split', 'tset', code=2).err
    assert '--train-split trian:' in error and '--val-split tset:' in error
    assert 'are one folder' in run(capsys, data, '--val-split', 'train', code=2).err
    picture(data / 'test' / 'a' / '0.jpg', 200)
    assert 'neither the training nor the validation split' in found(data)['left-out', 'test']
    assert ('left-out', 'val') in found(data, splits=('train', 'test'))


def test_bad_requests(data, tmp_path, capsys):
    assert 'does not exist' in run(capsys, tmp_path / 'none', code=2).err
    (tmp_path / 'nothing').mkdir()
    assert 'has no image in it' in run(capsys, tmp_path / 'nothing', code=2).err
    assert 'there are unreadable, empty' in run(capsys, data, '--ignore', 'x', code=2).err
    assert 'cannot both' in run(capsys, data, '--json', '--csv', code=2).err
    assert 'f.csv cannot be written' in run(capsys, data, '--csv', tmp_path / 'no' / 'f.csv', code=2).err
    assert json.loads(run(capsys, data, '--json').out)['wrong'] == 0  # the text goes to stderr


def test_interrupted_check_goes_on(data, capsys, monkeypatch):
    """What was read stays known after Ctrl-C, unless the file changes; the check after that reads all files again."""
    done, real = [], check.check_file

    def spy(path):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(path.name)
        return real(path)
    monkeypatch.setattr(check, 'check_file', spy)
    assert 'Interrupted: run the same command again' in run(capsys, data, '-j', 1, code=1).err
    monkeypatch.setattr(check, 'check_file', lambda path: done.append(path) or real(path))
    (data / 'train' / 'a' / '0.jpg').write_bytes(b'')
    done.clear()
    printed = run(capsys, data, code=1)
    assert 'train/a/0.jpg' in printed.out and '4 files were read by a check that was interrupted' in printed.out
    assert len(done) == 8
    done.clear()
    run(capsys, data, code=1)
    assert len(done) == 12


def test_a_cache_that_cannot_be_written(data, capsys, monkeypatch, tmp_path):
    """The check needs it for a start after an interruption only."""
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    printed = run(capsys, data)
    assert 'a check that is interrupted starts anew' in printed.err and 'Traceback' not in printed.err
    assert 'nothing wrong with 12 images' in printed.out


@pytest.mark.slow
def test_killed_check_goes_on_and_a_second_one_is_refused(data, capsys):
    for i in range(3000):
        shutil.copy(data / 'train' / 'a' / '1.jpg', data / 'train' / 'a' / f'x{i}.jpg')
    process = subprocess.Popen([sys.executable, '-m', 'seresnet_timm', 'check-data', str(data), '-j', '1'],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = data.parent / 'cache' / 'seresnet_timm' / 'check_data'
    while not any(p.stat().st_size > 1000 for p in folder.glob('*.jsonl')):
        time.sleep(0.01)
    assert 'is being checked by another process' in run(capsys, data, code=2).err
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 'files were read by a check that was interrupted' in run(capsys, data, code=0).out
