"""`seresnet-timm split`: which images go where, the links, and what is refused with nothing written."""
import errno
import json
import os
import shlex
import shutil
import unicodedata
from pathlib import Path

import pytest
from conftest import run_here
from PIL import Image

from seresnet_timm.data import split as splitting
from seresnet_timm.data.split import divide, find_images
from seresnet_timm.errors import UsageError


def draw(folder: Path, name: str, number: int) -> Path:
    """A picture of its own for every number, all of the same size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 4), (number % 256, number // 256, 7)).save(folder / f'{name}.bmp')
    return folder / f'{name}.bmp'


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """30 cats and 11 dogs."""
    monkeypatch.chdir(tmp_path)
    for name, count, first in (('cat', 30, 0), ('dog', 11, 100)):
        for i in range(count):
            draw(tmp_path / 'photos' / name, str(i), first + i)
    return tmp_path / 'photos'


def contents(folder: Path) -> dict:
    """Bytes of every file by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def refused(*argv) -> str:
    """The sentence with which a split is refused, with and without --dry-run; nothing is written."""
    def everything():
        return sorted(map(str, Path('.').rglob('*')))
    before = everything()
    result, dry = run_here('split', *argv), run_here('split', *argv, '--dry-run')
    assert result.returncode == dry.returncode == 2 and result.stderr == dry.stderr and everything() == before
    return result.stderr


def test_every_class_is_divided_and_every_image_is_in_one_split(photos):
    before = contents(photos)
    result = run_here('split', 'photos', '--val', '0.1')
    assert result.returncode == 0, result.stderr
    out = Path('photos-split')
    train, val = contents(out / 'train'), contents(out / 'val')
    assert not set(train) & set(val) and {**train, **val} == before == contents(photos)
    counts = {'cat': {'train': 27, 'val': 3}, 'dog': {'train': 10, 'val': 1}}
    record = json.loads((out / 'split.json').read_text())
    assert record == {'source': str(photos), 'val': 0.1, 'seed': 42, 'links': 'symbolic', 'classes': counts}
    assert [line.split() for line in result.stdout.splitlines()[:4]] == [
        ['class', 'train', 'val'], ['cat', '27', '3'], ['dog', '10', '1'], ['all', '37', '4']]
    assert 'train --preset finetune --data-dir photos-split' in result.stdout
    assert all(p.is_symlink() for p in out.rglob('*.bmp'))
    assert sorted(p.name for p in Path('.').iterdir()) == ['photos', 'photos-split']


def test_both_folders_can_be_moved_together_and_the_new_one_lies_anywhere(photos, tmp_path):
    run_here('split', 'photos', 'deep/er/out')
    assert len(contents(tmp_path / 'deep' / 'er' / 'out' / 'val')) == 4
    (tmp_path / 'elsewhere').mkdir()
    for name in ('photos', 'deep'):
        shutil.move(tmp_path / name, tmp_path / 'elsewhere' / name)
    assert len(contents(tmp_path / 'elsewhere' / 'deep' / 'er' / 'out' / 'val')) == 4
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere' / 'deep' / 'er')
    assert run_here('split', 'elsewhere/photos', 'link/second').returncode == 0
    assert len(contents(tmp_path / 'link' / 'second' / 'train')) == 37


def test_the_same_seed_chooses_the_same_images_wherever_they_lie(photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'other')
    for argv in (('photos', 'a'), ('other', 'b'), ('photos', 'c', '--seed', '7'), ('photos/', 'd', '--links', 'hard')):
        assert run_here('split', *argv).returncode == 0
    a, b, c, d = (set(contents(Path(name) / 'val')) for name in 'abcd')
    assert a == b == d and a != c
    link = next(Path('d/val').rglob('*.bmp'))
    assert not link.is_symlink() and os.stat(link).st_nlink >= 2


def test_further_images_leave_the_others_where_they_were(photos):
    before = divide(*find_images('photos'), 0.2)
    for i in range(30):
        draw(photos / 'cat', f'new{i}', 300 + i)
    after = divide(*find_images('photos'), 0.2)
    moved = set(before.files['train']['cat']) & set(after.files['val']['cat'])
    assert len(moved) <= 6 and before.files['val']['dog'] == after.files['val']['dog']
    assert len(after.files['val']['cat']) == 12


def test_the_same_content_is_never_in_both_splits(photos):
    """Copies in a class, a link, a copy of a copy, and a picture in two classes."""
    for i in range(10):
        shutil.copy(photos / 'cat' / f'{i}.bmp', photos / 'cat' / f'copy{i}.bmp')
    os.link(photos / 'cat' / '11.bmp', photos / 'cat' / 'hard.bmp')
    (photos / 'cat' / 'soft.bmp').symlink_to('12.bmp')
    shutil.copy(photos / 'cat' / '0.bmp', photos / 'cat' / 'third.bmp')
    shutil.copy(photos / 'cat' / '20.bmp', photos / 'dog' / 'cat.bmp')
    for seed in range(5):
        divided = divide(*find_images('photos'), 0.3, seed)
        bytes_of = {split: {(photos / p).read_bytes() for paths in classes.values() for p in paths}
                    for split, classes in divided.files.items()}
        assert not bytes_of['train'] & bytes_of['val']
        assert sorted(divided.two_classes) == ['cat/20.bmp', 'dog/cat.bmp'] and divided.duplicates == 14
        assert 8 <= divided.counts['cat']['val'] <= 13
    text = run_here('split', 'photos').stdout
    assert '14 files have the same content' in text and 'in two classes, all in train: cat/20.bmp' in text


@pytest.mark.parametrize('share, counts', ((0.001, (29, 1)), (0.5, (15, 15)), (0.999, (1, 29)), (0.1, (27, 3))))
def test_both_splits_have_every_class(photos, share, counts):
    found = divide(*find_images('photos'), share).counts['cat']
    assert (found['train'], found['val']) == counts


def test_a_training_split_alone_and_deeper_classes_are_divided_too(photos, tmp_path):
    (tmp_path / 'data' / 'train' / 'animals').mkdir(parents=True)
    for name in ('cat', 'dog'):
        shutil.move(photos / name, tmp_path / 'data' / 'train' / 'animals' / name)
    assert run_here('split', 'data').returncode == 0
    assert sorted(p.name for p in Path('data-split/val/animals').iterdir()) == ['cat', 'dog']
    result = run_here('train', '--data-dir', 'data-split', '--model', 'seresnet18_ascend', '--img-size', 32, '-b', 4,
                      '--device', 'cpu', '--dry-run', '--workers', 0)
    assert result.returncode == 0 and '37' in result.stderr and 'cat' in result.stderr, result.stderr


def test_the_current_folder_is_divided_beside_itself(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    assert run_here('split', '.').returncode == 0
    assert len(contents(tmp_path / 'photos-split' / 'val')) == 4


def test_what_is_refused(photos, tmp_path):
    assert 'nothing does not exist' in refused('nothing')
    assert 'is a file' in refused('photos/cat/0.bmp')
    for value, words in (('0', 'is too small'), ('1', 'is too large'), ('10', 'is too large'), ('x', 'not a number')):
        assert words in refused('photos', '--val', value)
    assert 'is in photos' in refused('photos', 'photos/out')
    (tmp_path / 'full' / 'x').mkdir(parents=True)
    assert 'full exists' in refused('photos', 'full')
    (tmp_path / 'link').symlink_to('nowhere')
    assert 'link is not a folder' in refused('photos', 'link')
    for name in ('val', 'valid', 'validation'):
        (photos / name).mkdir()
        assert f'has a validation split (photos/{name})' in refused('photos')
        (photos / name).rmdir()
    draw(photos / 'bird', 'one', 900)
    draw(photos / 'fish', 'one', 901)
    shutil.copy(photos / 'fish' / 'one.bmp', photos / 'fish' / 'two.bmp')
    assert 'bird (1), fish (2)' in refused('photos')
    shutil.rmtree(photos / 'bird')
    shutil.rmtree(photos / 'fish')
    draw(photos, 'stray', 902)
    (photos / 'empty').mkdir()
    error = refused('photos')
    assert 'stray.bmp is outside the class folders' in error and 'empty has no image in it' in error


@pytest.mark.parametrize('links, code, words', (
    ('hard', errno.EXDEV, 'hard links cannot be made there'), ('symbolic', errno.EPERM, 'or give --links hard')))
def test_a_file_system_without_links_is_one_sentence_and_leaves_nothing(photos, monkeypatch, links, code, words):
    def fail(source, target):
        raise OSError(code, os.strerror(code), source, None, str(target))
    monkeypatch.setattr(os, 'link' if links == 'hard' else 'symlink', fail)
    result = run_here('split', 'photos', '--links', links)
    assert result.returncode == 2 and words in result.stderr and result.stderr.count('\n') == 1
    assert sorted(p.name for p in Path('.').iterdir()) == ['photos']


def test_a_full_disk_leaves_nothing(photos, monkeypatch):
    made, symlink = [], os.symlink

    def fill(source, target):
        if len(made) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        made.append(symlink(source, target))
    monkeypatch.setattr(os, 'symlink', fill)
    result = run_here('split', 'photos')
    assert result.returncode == 1 and 'nothing was made' in result.stderr
    assert sorted(p.name for p in Path('.').iterdir()) == ['photos']


def test_an_image_that_cannot_be_read_is_named(photos):
    (photos / 'cat' / 'gone.bmp').symlink_to('nowhere.bmp')
    assert 'cat/gone.bmp cannot be read' in refused('photos')


def test_a_pipe_is_no_image(photos):
    os.mkfifo(photos / 'cat' / 'pipe.bmp')
    assert 'cat/pipe.bmp cannot be read (it is a pipe or a device' in refused('photos')


def test_next_commands_can_be_pasted_and_faults_name_no_flag_of_train(photos):
    result = run_here('split', 'photos', "the 'new' 5%")
    command = result.stdout.splitlines()[-1]
    assert shlex.split(command)[-1] == "the 'new' 5%"
    for name in ('x/dog', 'y/dog'):
        draw(photos / name, '0', 950)
    shutil.rmtree(photos / 'dog')
    assert 'would be one class' in refused('photos') and '--class-map' not in refused('photos')


def test_files_of_the_same_size_alone_are_read(photos, monkeypatch):
    read = []
    monkeypatch.setattr(splitting, 'read_file', lambda path: read.append(path) or b'%d' % len(read))
    for path in (photos / 'dog').iterdir():
        path.write_bytes(path.read_bytes() + b'\0' * (2 + int(path.stem)))
    divide(*find_images('photos'), 0.1)
    assert len(read) == 30 and {p.parent.name for p in read} == {'cat'}


def test_too_few_images_are_told_for_all_classes_at_once(photos):
    tree, files = find_images('photos')
    with pytest.raises(UsageError, match='2 class'):
        divide(tree, {name: paths[:1] for name, paths in files.items()}, 0.1)


def test_counts_are_in_columns_under_names_of_wide_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(('cat', '猫', '犬ｶﾅ')):
        for i in range(4):
            draw(tmp_path / 'photos' / name, str(i), 10 * k + i)
    lines = run_here('split', 'photos', '--dry-run').stdout.splitlines()[:5]
    ends = {sum(1 + (unicodedata.east_asian_width(letter) in 'WF') for letter in line) for line in lines}
    assert len(ends) == 1, lines
