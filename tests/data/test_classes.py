"""Class names are those of timm's reader, which is the oracle, on any tree; what would surprise is told."""
import os
import pickle
import sys
import tarfile
import unicodedata
from pathlib import Path

import pytest
import timm.data
from timm.data import create_dataset

from seresnet_timm.data.classes import describe_difference, is_foreign, names_of_dataset, read_classes, split_folder
from seresnet_timm.data.images import extend_timm
from seresnet_timm.data.label_files import read_class_names, read_valid_labels
from seresnet_timm.data.loaders import create_dataset as create_named
from seresnet_timm.errors import RunError, UsageError


@pytest.fixture(autouse=True)
def timm_as_in_a_run():
    """timm's readers take the suffixes that they take in a run."""
    extend_timm()


def make(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    return root


TREES = {
    'plain': ('b/1.png', 'a/1.jpg', 'c/1.jpeg', 'c/2.PNG'),
    'natural order': ('c10/1.png', 'c9/1.png', 'C11/1.png', '010/1.png', '9/1.png', '-dash/1.png', ' x/1.png'),
    'unicode': ('кот/1.png', '猫/1.png', 'é/1.png', unicodedata.normalize('NFD', 'è') + '/1.png', 'ß/1.png',
                '🐱/1.png'),
    'odd characters': ('two\nlines/1.png', 'a,b/1.png', '"q"/1.png', '\x1b[31mred/1.png', '.../1.png'),
    'nested': ('ant/day1/1.png', 'ant/day2/1.png', 'bee/day3/1.png', 'cow/1.png', 'cow/extra/1.png'),
    'same leaf': ('a/x/1.png', 'b/x/1.png', 'b/y/1.png'),
    'empty and hidden': ('a/1.png', 'b/notes.txt', '.ipynb_checkpoints/1.png', '@eaDir/a/1.png', 'c/.hidden/1.png'),
    'outside of class folders': ('a/1.png', '1.png', 'readme.txt'),
    'other files': ('a/1.png', 'a/1.gif', 'a/png', 'a/.png', 'a/1.png.txt', 'b/1.webp', 'c/1.svg', 'd/2.TIFF'),
    'a folder called like an image': ('a/1.png/x.jpg', 'b/1.png'),
    'nothing': ('a/readme.txt',),
}


@pytest.mark.parametrize('name', TREES)
def test_equals_timms_reader(tmp_path, name):
    root = make(tmp_path / 'train', *TREES[name])
    (root / 'without anything').mkdir()
    tree = read_classes(root)
    if name == 'nothing':
        assert tree.names == [] and tree.num_images == 0
        return
    reader = create_dataset('', root=str(root)).reader
    names = {i: n for n, i in reader.class_to_idx.items()}
    samples = [(path, names[label]) for path, label in reader.samples
               if not is_foreign(Path(path).relative_to(root).parts[:-1])]
    found = sorted({n for _, n in samples}, key=list(reader.class_to_idx).index)
    assert tree.names == found and tree.num_images == len(samples)
    assert tree.counts == {n: sum(name == n for _, name in samples) for n in found}
    for planned in (None, found):
        dataset = create_named('', str(root), 'validation', '', planned)
        assert dataset.reader.samples == [(path, found.index(n)) for path, n in samples]
        assert names_of_dataset(dataset) == found


def test_links(tmp_path):
    """Links are followed and dangling ones count as images, as for timm; those that lead back up are named."""
    root = make(tmp_path / 'train', 'a/1.png', 'b/1.png')
    make(tmp_path / 'elsewhere', '1.png', '2.png')
    (root / 'linked').symlink_to(tmp_path / 'elsewhere')
    (root / 'a' / '2.png').symlink_to(tmp_path / 'not there.png')
    (root / 'b' / 'self.png').symlink_to('self.png')
    reader = create_dataset('', root=str(root)).reader
    tree = read_classes(root)
    assert {n: i for i, n in enumerate(tree.names)} == reader.class_to_idx and tree.num_images == len(reader.samples)
    for folder, target in (('a', '..'), ('b', '../..'), ('a', '.')):
        (root / folder / f'up{len(target)}').symlink_to(target)
    again = read_classes(root)
    assert again.num_images == tree.num_images and again.names == tree.names
    assert len(again.loops) == 3 and not tree.loops


def test_what_would_surprise(tmp_path):
    root = make(tmp_path / 'train', *TREES['empty and hidden'], '1.png', 'x/deep/1.png')
    tree = read_classes(root)
    assert tree.empty == [str(root / 'b')]
    assert tree.stray == [str(root / '1.png')] and tree.names == ['', 'a', 'deep']
    assert tree.hidden == [str(root / p) for p in ('.ipynb_checkpoints', '@eaDir/a', 'c/.hidden')]
    assert str(root / 'x/deep') in tree.nested and str(root / 'a') not in tree.nested
    twins = read_classes(make(tmp_path / 'twins', 'Cat/1.png', 'cat/1.png', '1/1.png', '01/1.png', 'dog/1.png'))
    assert twins.ties == [('01', '1'), ('Cat', 'cat')]
    with pytest.raises(UsageError, match='cannot sort a class called .*²'):
        read_classes(make(tmp_path / 'power', '²/1.png'))
    with pytest.raises(UsageError, match='cannot be read'):
        read_classes(tmp_path / 'not there')


def test_class_map(tmp_path):
    root = make(tmp_path / 'train', 'ant/1.png', 'bee/1.png', 'cow/1.png', 'cow/2.png')
    (tmp_path / 'map.txt').write_text('cow\nant\nzebra\n')
    (tmp_path / 'map.pkl').write_bytes(pickle.dumps({'cow': 1, 'ant': 0, 'bee': 1}))
    for name in ('map.txt', 'map.pkl'):
        tree = read_classes(root, str(tmp_path / name))
        dataset = create_dataset('', root=str(root), class_map=str(tmp_path / name))
        assert tree.names == names_of_dataset(dataset) and tree.num_images == len(dataset)
    assert tree.names == ['ant', 'cow, bee']
    tree = read_classes(root, str(tmp_path / 'map.txt'))
    assert tree.names == ['cow', 'ant', 'zebra'] and tree.missing == ['zebra'] and tree.unmapped == {'bee': 1}
    (root / 'inside.txt').write_text('bee\n')
    assert read_classes(root, 'inside.txt').names == ['bee']


@pytest.mark.parametrize('content', (
    b'\xef\xbb\xbfcow\r\nant\r\n\r\n', 'cow\r\nant'.encode('utf-16'), b'cow  \n\n \nant\t\n',
    b'ant\t1\r\ncow\t0\r\n', b'0\tcow\n1\tant\n',
    b'\xef\xbb\xbfcow\t0\nant\t1', b'cow\rant\r', 'cow\nant'.encode('utf-16-be'),
))
def test_maps_are_read_as_meant(tmp_path, content):
    """As editors on Windows and old Macs save them; the dataset has the same numbers as the plan."""
    if content.startswith(b'\0'):
        content = b'\xfe\xff' + content
    root = make(tmp_path / 'train', 'ant/1.png', 'bee/1.png', 'cow/1.png')
    (tmp_path / 'map.txt').write_bytes(content)
    tree = read_classes(root, str(tmp_path / 'map.txt'))
    assert tree.names == ['cow', 'ant'] and tree.unmapped == {'bee': 1}
    dataset = create_named('', str(root), 'train', str(tmp_path / 'map.txt'), tree.names)
    assert dataset.reader.samples == [(f'{root}/ant/1.png', 1), (f'{root}/cow/1.png', 0)]
    assert read_class_names(tmp_path / 'map.txt', 2) == ['cow', 'ant']


def test_indices_that_a_map_leaves_out(tmp_path):
    """Counted from 1, or with a gap: outputs without a class are told by the reader of folders."""
    root = make(tmp_path / 'train', 'ant/1.png', 'bee/1.png')
    for content, names, unnamed in (('ant\t1\nbee\t2\n', ['0', 'ant', 'bee'], [0]),
                                    ('ant\t0\nbee\t3\n', ['ant', '1', '2', 'bee'], [1, 2])):
        (tmp_path / 'map.txt').write_text(content)
        tree = read_classes(root, str(tmp_path / 'map.txt'))
        assert tree.names == names and tree.unnamed == unnamed
    (tmp_path / 'map.txt').write_text('ant\nbee\n')
    assert read_classes(root, str(tmp_path / 'map.txt')).unnamed == []


def test_names_with_white_space_are_those_of_the_folders(tmp_path):
    root = make(tmp_path / 'train', ' ant /1.png', 'bee/1.png', 'hot\u2028dog/1.png')
    (tmp_path / 'map.txt').write_text('bee\n ant \nhot\u2028dog\n')
    assert read_classes(root, str(tmp_path / 'map.txt')).names == ['bee', ' ant ', 'hot\u2028dog']


def test_files_of_labels(tmp_path):
    path = tmp_path / 'labels.txt'
    path.write_bytes('2\r\n\r\n0 \r\n'.encode('utf-16'))
    assert read_valid_labels(path, 3) == [2, 0]
    for content, message in ((b'0\n0\n', 'more than once'), (b'3\n', "below 3, one per line, got '3'"), (b'', 'got'),
                             (b'one\n', "got 'one'"), (b'\xff\xff', 'save it as UTF-8')):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_valid_labels(path, 3)
    path.write_text('b\t1\na\t0\n')
    assert read_class_names(path, 2) == ['a', 'b']
    path.write_text('b\t1\na\t1\n')
    with pytest.raises(UsageError, match='are not 0 to 1'):
        read_class_names(path, 2)


def test_classes_are_numbered_by_the_plan(tmp_path):
    """In a folder and in a tar: some of the classes, in another order, beside what other programs left."""
    root = make(tmp_path / 'val', 'bee/1.png', 'cow/1.png', '__MACOSX/cow/1.png', 'cow/._1.png', '.x/1.png')
    with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
        tar.add(root, arcname='.')
    planned = ['cow', 'ant', 'bee']
    for path in (root, tmp_path / 'val.tar'):
        dataset = create_named('', str(path), 'validation', '', planned)
        reader = dataset.reader
        labels = list(getattr(reader, 'targets', None) if path.suffix else [label for _, label in reader.samples])
        assert names_of_dataset(dataset) == planned and labels == [2, 0] and len(dataset) == 2
        assert [dataset.filename(i, basename=False) for i in range(2)][0].endswith('bee/1.png')
        with pytest.raises(RunError, match="are not those of the plan .*'cow' only in"):
            create_named('', str(path), 'validation', '', ['ant', 'bee'])


@pytest.mark.parametrize('content', (
    '0 ant\n1 bee\n', '0: ant\n1: bee\n', 'ant,0\nbee,1\n', 'ant: 0\nbee: 1\n'))
def test_tables_are_no_class_names(tmp_path, content):
    (tmp_path / 'names.txt').write_text(content)
    with pytest.raises(UsageError, match='has an index in each line'):
        read_class_names(tmp_path / 'names.txt', 2)
    (tmp_path / 'names.txt').write_text('digit 0\ndigit 1\n')  # which are names
    assert read_class_names(tmp_path / 'names.txt', 2) == ['digit 0', 'digit 1']


@pytest.mark.parametrize('name, content, message', [
    ('some.txt', b'ant\t0\nbee\ncow\t2\n', "lines with an index .'ant.t0'. and without one .'bee'."),
    ('comment.txt', b'# my classes\nant\n', 'has a comment'), ('line.txt', b'x' * 1000, 'x{300}\\.\\.\\.'),
    ('twice.txt', b'ant\nbee\nant\n', "names 'ant' more than once"), ('far.txt', b'ant\t5000\n', 'indices begin at 0'),
    ('map.csv', b'ant\n', 'cannot be read'), ('none.txt', b'', 'names no classes'),
    ('code.pkl', b"cos\nsystem\n(S'touch ran'\ntR.", 'cannot be read'), ('list.pkl', pickle.dumps(['ant']), 'dict'),
    ('latin.txt', 'ä\n'.encode('latin-1'), 'cannot be read'),
])
def test_bad_class_maps(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, 'train/ant/1.png')
    Path(name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        from seresnet_timm.launch.dataset import faults_of_classes
        raise UsageError('\n'.join(faults_of_classes(read_classes('train', name))))
    assert not Path('ran').exists()


def test_names_of_other_readers(tmp_path, monkeypatch):
    make(tmp_path / 'data', 'c10/1.png', 'c9/1.png')
    with tarfile.open(tmp_path / 'data.tar', 'w') as tar:
        tar.add(tmp_path / 'data', arcname='.')
    dataset = create_dataset('', root=str(tmp_path / 'data.tar'))
    assert names_of_dataset(dataset) == ['c9', 'c10']
    assert names_of_dataset(timm.data.AugMixDataset(dataset)) == ['c9', 'c10']
    assert names_of_dataset([1, 2]) is None


def test_split_folder(tmp_path):
    """The folders that timm's own search finds."""
    from timm.data.dataset_factory import _search_split
    for names in (('train', 'validation'), ('training', 'eval'), ('train', 'training', 'val', 'valid'), ('other',)):
        root = tmp_path / '-'.join(names)
        for name in names:
            (root / name).mkdir(parents=True)
        for split in ('train', 'training', 'val', 'validation', 'eval', 'other', 'val[:10%]', 'test'):
            found = split_folder(root, split)
            assert str(found or root) == _search_split(str(root), split)


def test_differences():
    assert describe_difference(['a', 'b'], ['a', 'b']) is None and describe_difference(None, ['a']) is None
    assert describe_difference(['ant', 'bee'], ['ann', 'bee']) == (
        "renamed: 'ant' in the checkpoint is 'ann' in the data")
    assert describe_difference(['ant', 'bee', 'cow'], ['bee', 'cow', 'zebra']) == (
        "'ant' only in the checkpoint; 'zebra' only in the data")
    assert describe_difference(['a', 'b'], ['a', 'b', 'c'], 'train', 'val') == "'c' only in val"
    assert describe_difference(['a', 'b'], ['b', 'a']) == (
        "the same names in another order: class 0 is 'a' in the checkpoint and 'b' in the data")
    accents = [unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD')]
    assert 'look alike' in describe_difference([accents[0]], [accents[1]])
    assert describe_difference(['\x1b[2J'], ['b']) == r"renamed: '\x1b[2J' in the checkpoint is 'b' in the data"
    assert describe_difference(list('abcde'), []).startswith("'a', 'b', 'c' and 2 more only in")


@pytest.mark.skipif(os.getuid() == 0 or sys.platform != 'linux', reason='root reads everything')
def test_unreadable_folder(tmp_path):
    make(tmp_path, 'a/1.png', 'b/1.png')
    (tmp_path / 'b').chmod(0)
    with pytest.raises(UsageError, match='cannot be read'):
        read_classes(tmp_path)
    (tmp_path / 'b').chmod(0o700)
