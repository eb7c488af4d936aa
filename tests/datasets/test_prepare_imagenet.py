"""ImageNet's official archives, in miniature: unpacked as torchvision does, safely, and again after an interruption."""
import io
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
import scipy.io
import torchvision.datasets.imagenet as torchvision_imagenet
from conftest import sample_photos
from torchvision.datasets import ImageNet

from seresnet_timm import cli
from seresnet_timm.datasets import prepare_imagenet

TRAIN, VAL, DEVKIT = (prepare_imagenet.ARCHIVES[name][0] for name in ('train', 'val', 'devkit'))
# number in the devkit, WordNet id, names, children, training images; numbers are not in the order of the ids
SYNSETS = (
    (1, 'n02119789', 'kit fox, Vulpes macrotis', 0, 3),
    (2, 'n01440764', 'tench, Tinca tinca', 0, 4),
    (3, 'n02123045', 'tabby, tabby cat', 0, 2),
    (4, 'n02085374', 'toy dog, toy', 3, 0),  # a group of classes
)
VAL_NUMBERS = (3, 1, 2, 1, 3, 2, 2)
WNID = {number: wnid for number, wnid, *_ in SYNSETS}


@pytest.fixture(scope='module')
def pictures():
    """JPEGs, each another."""
    photo = sample_photos()[0]
    result = []
    for i in range(20):
        buffer = io.BytesIO()
        photo.crop((10 * i, 5 * i, 10 * i + 64, 5 * i + 48)).save(buffer, 'JPEG')
        result.append(buffer.getvalue())
    return result


def add(tar, name, data=b'', **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def class_tar(files: dict) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, data in files.items():
            add(tar, name, data)
    return buffer.getvalue()


def train_files(pictures) -> dict:
    """Name and content of every training image, by class."""
    pictures = iter(pictures)
    return {wnid: {f'{wnid}_{10 * i + 7}.JPEG': next(pictures) for i in range(count)}
            for _, wnid, _, children, count in SYNSETS if not children}


def write_archives(folder, train: dict, val: list) -> None:
    folder.mkdir()
    with tarfile.open(folder / TRAIN, 'w') as tar:
        for wnid, files in train.items():
            add(tar, f'{wnid}.tar', class_tar(files))
    with tarfile.open(folder / VAL, 'w') as tar:
        for i, data in reversed(list(enumerate(val, 1))):
            add(tar, f'ILSVRC2012_val_{i:08d}.JPEG', data)
    table = np.zeros(len(SYNSETS), dtype=[(k, object) for k in (
        'ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children', 'wordnet_height', 'num_train_images')])
    for i, (number, wnid, words, children, count) in enumerate(SYNSETS):
        table[i] = (number, wnid, words, 'a gloss', children, np.arange(children), 0 if not children else 1, count)
    mat = io.BytesIO()
    scipy.io.savemat(mat, {'synsets': table})
    with tarfile.open(folder / DEVKIT, 'w:gz') as tar:
        add(tar, 'ILSVRC2012_devkit_t12', type=tarfile.DIRTYPE, mode=0o755)
        add(tar, 'ILSVRC2012_devkit_t12/data', type=tarfile.DIRTYPE, mode=0o755)
        add(tar, 'ILSVRC2012_devkit_t12/data/meta.mat', mat.getvalue())
        add(tar, 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt',
            ''.join(f'{n}\n' for n in VAL_NUMBERS).encode())


@pytest.fixture
def archives(pictures, tmp_path):
    folder = tmp_path / 'archives'
    write_archives(folder, train_files(pictures), pictures[10:10 + len(VAL_NUMBERS)])
    return folder


def tree(root) -> dict:
    """Content of every file of the splits."""
    return {str(p.relative_to(root)): p.read_bytes() for s in ('train', 'val') for p in (root / s).rglob('*')
            if p.is_file()}


def fail(capsys, *argv, code=1) -> str:
    with pytest.raises(SystemExit) as e:
        cli.main(['prepare-imagenet', *map(str, argv)])
    assert e.value.code == code
    text = capsys.readouterr().err
    assert text.count('error:') == 1
    return text


def test_equals_torchvisions_parser(archives, tmp_path, monkeypatch, capsys):
    """torchvision, told that these archives are the official ones, makes the same tree; and it reads ours."""
    dst = tmp_path / 'ImageNet'
    cli.main(['prepare-imagenet', '--from', str(archives), str(dst)])
    printed = capsys.readouterr().out
    assert f'{dst}/train: 9 images in 3 classes' in printed and f'{dst}/val: 7 images in 3 classes' in printed

    theirs = tmp_path / 'torchvision'
    shutil.copytree(archives, theirs)
    monkeypatch.setattr(torchvision_imagenet, 'ARCHIVE_META', {
        k: (name, torchvision_imagenet.ARCHIVE_META[k][1]) for k, (name, _) in prepare_imagenet.ARCHIVES.items()})
    monkeypatch.setattr(torchvision_imagenet, 'check_integrity', lambda path, md5=None: os.path.isfile(path))
    for split in ('train', 'val'):
        expected, ours = ImageNet(theirs, split), ImageNet(dst, split)
        assert ours.classes == expected.classes and ours.wnids == expected.wnids
        assert [(os.path.relpath(p, dst), t) for p, t in ours.samples] == [
            (os.path.relpath(p, theirs), t) for p, t in expected.samples]
    assert tree(dst) == tree(theirs) and len(tree(dst)) == 16
    assert sorted(os.listdir(dst)) == ['meta.bin', 'train', 'val']


def test_names_and_sums_are_torchvisions():
    assert prepare_imagenet.ARCHIVES == torchvision_imagenet.ARCHIVE_META


def test_goes_on_where_it_stopped(archives, tmp_path, capsys):
    """Archives that end early, as after a download that broke off: what is whole stays, and is not done again."""
    reference, dst = tmp_path / 'reference', tmp_path / 'ImageNet'
    cli.main(['prepare-imagenet', '--from', str(archives), str(reference)])
    cut = tmp_path / 'cut'
    shutil.copytree(archives, cut)
    with tarfile.open(cut / TRAIN) as tar:
        second = tar.getmembers()[1]
    os.truncate(cut / TRAIN, second.offset_data + second.size - 3000)
    text = fail(capsys, '--from', cut, dst)
    assert f'{cut / TRAIN} is damaged or incomplete' in text and 'download it again' in text
    assert os.listdir(dst / 'train') == ['n02119789']
    inode = (dst / 'train/n02119789').stat().st_ino

    shutil.copy(archives / TRAIN, cut)
    os.truncate(cut / VAL, (cut / VAL).stat().st_size // 2)
    assert str(cut / VAL) in fail(capsys, '--from', cut, dst)
    assert len(os.listdir(dst / 'train')) == 3 and os.listdir(dst / 'val') == []
    staged = {p.name: p.stat().st_ino for p in (dst / '.prepare-imagenet/val').glob('*/*.JPEG')}
    assert staged

    cli.main(['prepare-imagenet', '--from', str(archives), str(dst)])
    assert tree(dst) == tree(reference) and sorted(os.listdir(dst)) == ['meta.bin', 'train', 'val']
    assert (dst / 'train/n02119789').stat().st_ino == inode
    assert all(p.stat().st_ino == staged[p.name] for p in (dst / 'val').glob('*/*') if p.name in staged)
    before = {p: p.stat().st_mtime_ns for p in (dst / 'train').rglob('*')}
    cli.main(['prepare-imagenet', '--from', str(archives), str(dst)])
    assert {p: p.stat().st_mtime_ns for p in (dst / 'train').rglob('*')} == before


def test_says_what_is_missing(pictures, archives, tmp_path, capsys):
    train, val = train_files(pictures), pictures[10:10 + len(VAL_NUMBERS)]
    del train['n02123045']
    del train['n01440764']['n01440764_7.JPEG']
    short = tmp_path / 'short'
    write_archives(short, train, val[:-1])
    dst = tmp_path / 'ImageNet'
    text = fail(capsys, '--from', short, dst)
    assert 'the archive of train lacks 1 of 3 classes (n02123045)' in text and 'n01440764 3 of 4' in text
    assert 'the archive of val lacks images of 1 classes' in text and 'n01440764 2 of 3' in text
    assert os.listdir(dst / 'train') == ['n02119789'] and not (dst / 'val/n01440764').exists()
    cli.main(['prepare-imagenet', '--from', str(archives), str(dst)])
    assert len(tree(dst)) == 16
    (dst / 'train/n01440764/n01440764_7.JPEG').unlink()
    assert 'n01440764 has 3 of 4 images: remove that folder' in fail(capsys, '--from', archives, dst)


HOSTILE = {
    'up': dict(name='../../escaped.JPEG'),
    'absolute': dict(name='/tmp/seresnet_timm_escaped.JPEG'),
    'sideways': dict(name='n01440764/../../../escaped.JPEG'),
    'symlink': dict(name='n02119789_1.JPEG', type=tarfile.SYMTYPE, linkname='/etc/passwd'),
    'hard link': dict(name='n02119789_1.JPEG', type=tarfile.LNKTYPE, linkname='../../../victim'),
    'device': dict(name='n02119789_1.JPEG', type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    'fifo': dict(name='n02119789_1.JPEG', type=tarfile.FIFOTYPE),
    'folder': dict(name='n02119789_1.JPEG', type=tarfile.DIRTYPE),
    'another class': dict(name='n01440764_1.JPEG', data=b'x'),
    'other name': dict(name='setup.py', data=b'import os'),
}


@pytest.mark.parametrize('where', ('train', 'class', 'val'))
@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_archives(kind, where, archives, tmp_path, capsys):
    """Nothing is written but ImageNet's images below the tree, whatever an archive holds."""
    (tmp_path / 'victim').write_text('untouched')
    member = HOSTILE[kind]
    if where == 'class':
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode='w') as tar:
            add(tar, **member)
        member = dict(name='n02119789.tar', data=buffer.getvalue())
    with tarfile.open(archives / (VAL if where == 'val' else TRAIN), 'w') as tar:
        add(tar, **member)
    before = set(tmp_path.rglob('*'))
    dst = tmp_path / 'deep' / 'down' / 'ImageNet'
    text = fail(capsys, '--from', archives, dst, '--split', 'val' if where == 'val' else 'train')
    assert 'which the official archive does not contain' in text or 'of another class' in text
    new = set(tmp_path.rglob('*')) - before
    assert all(p == dst or dst in p.parents or p in dst.parents for p in new)
    assert not tree(dst) and not any(p.is_symlink() for p in new) and not [p for p in new if p.name.endswith('.JPEG')]
    assert (tmp_path / 'victim').read_text() == 'untouched'
    assert not os.path.exists('/tmp/seresnet_timm_escaped.JPEG')


def test_bad_requests(archives, tmp_path, capsys, monkeypatch):
    dst = tmp_path / 'ImageNet'
    assert 'its MD5 sum is' in fail(capsys, '--from', archives, dst, '--check-md5')
    (tmp_path / 'file').write_text('')
    assert 'is a file' in fail(capsys, '--from', archives, tmp_path / 'file', code=2)
    assert '--from none does not exist' in fail(capsys, '--from', 'none', dst, code=2)
    assert f'lacks {TRAIN}, {VAL}, {DEVKIT}' in fail(capsys, '--from', tmp_path, dst, code=2)
    with monkeypatch.context() as m:
        m.setitem(sys.modules, 'scipy.io', None)
        assert 'pip install "seresnet-timm[imagenet]"' in fail(capsys, '--from', archives, dst, code=2)
    size = (archives / TRAIN).stat().st_size
    os.truncate(archives / TRAIN, 10 << 40)  # sparse: ten TiB by its size
    assert 'GB free: free disk space' in fail(capsys, '--from', archives, dst, code=2)
    os.truncate(archives / TRAIN, size)
    (archives / DEVKIT).write_bytes((archives / DEVKIT).read_bytes()[:-100])
    assert 'is damaged, or not the development kit' in fail(capsys, '--from', archives, dst)
    with tarfile.open(archives / DEVKIT, 'w:gz') as tar:
        add(tar, 'x', b'y')
    assert "it lacks 'meta.mat'" in fail(capsys, '--from', archives, dst)
    assert not dst.exists()
