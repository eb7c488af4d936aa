"""`seresnet-timm prepare-imagenet`: ImageNet's (ILSVRC2012) official tar files as train/<class>/* and val/<class>/*.

torchvision's parser accepts only archives with the official MD5 sums, unpacks them with `extractall`, which follows the
paths and links in them, needs twice the space of the training set, and cannot continue after an interruption. Here
members are read as files, and only those with the name of an ImageNet image are written, to a path made from that name.
A class folder gets its name when it is complete, by the counts of the development kit, and on disk. `meta.bin` has
torchvision's format, so that `torchvision.datasets.ImageNet(DST)` reads the result.
"""
import io
import os
import re
import shutil
import sys
import tarfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Tuple

from tqdm import tqdm

from seresnet_timm.datasets.prepare import sync
from seresnet_timm.errors import RunError, UsageError, first_names, printable
from seresnet_timm.files import atomic_path, exclusive

# names and MD5 sums as in torchvision.datasets.imagenet
ARCHIVES = {
    'train': ('ILSVRC2012_img_train.tar', '1d675b47d978889d74fa0da5fadfb00e'),
    'val': ('ILSVRC2012_img_val.tar', '29b22e2961454d5413ddabcf34fc5622'),
    'devkit': ('ILSVRC2012_devkit_t12.tar.gz', 'fa75699e90414af021442c21a62c3abf'),
}
STATE_FOLDER = '.prepare-imagenet'
CLASS_TAR = re.compile(r'(n\d{8})\.tar')
TRAIN_IMAGE = re.compile(r'(n\d{8})_\d+\.JPEG')
VAL_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')
DEVKIT_LIMIT = 50 << 20  # bytes per file; meta.mat has 0.8 MB


class Devkit(NamedTuple):
    """Content of the development kit.

    Attributes:
        names: The names of every class, by WordNet id.
        train_counts: Number of training images of every class, likewise.
        val_ids: WordNet id of every validation image, in the order of their numbers, from 1.
    """
    names: Dict[str, Tuple[str, ...]]
    train_counts: Dict[str, int]
    val_ids: List[str]


def prepare_imagenet(source: str, dst: str, split: str = 'both', check_md5: bool = False) -> Dict[str, int]:
    """Unpack the archives, or continue an interrupted run.

    Args:
        source: Folder of the archives; it is not changed.
        dst: Root of the tree.
        split: 'train', 'val' or 'both'.
        check_md5: Compare the archives with the official MD5 sums first.

    Returns:
        Number of images by split.

    Raises:
        UsageError: Archives are missing, or the disk has too little free space.
        RunError: An archive is damaged or not ImageNet's, the tree is not complete, or the disk is full.
    """
    splits = ['train', 'val'] if split == 'both' else [split]
    needed = [*splits, 'devkit']
    archives = {name: Path(source) / ARCHIVES[name][0] for name in needed}
    missing = [path.name for path in archives.values() if not path.is_file()]
    if not Path(source).is_dir():
        raise UsageError(f'--from {source} {"is not a folder" if os.path.exists(source) else "does not exist"}: name '
                         'the folder of the tar files.')
    if missing:
        raise UsageError(f'{source} lacks {", ".join(missing)}: download it from image-net.org (an account is needed), '
                         'or name the folder that contains it with --from.')
    target = Path(dst)
    if target.exists() and not target.is_dir():
        raise UsageError(f'{dst} is a file: name a folder.')
    if check_md5:
        _check_md5(archives)
    devkit = read_devkit(archives['devkit'])
    _check_space(target, {s: archives[s] for s in splits}, devkit)
    try:
        state = target / STATE_FOLDER
        state.mkdir(parents=True, exist_ok=True)
        with exclusive(state / 'lock', UsageError(f'{dst} is being written by another prepare-imagenet.')):
            counts, problems = {}, []
            for name in splits:
                unpack, wanted = (_unpack_train, devkit.train_counts) if name == 'train' else (
                    _unpack_val, Counter(devkit.val_ids))
                incomplete = unpack(archives[name], target / name, state / name, devkit)
                counts[name], wrong = _check_counts(target / name, wanted, incomplete)
                problems += wrong
            if not problems:
                _write_meta(target / 'meta.bin', devkit)
                shutil.rmtree(state)
    except OSError as e:
        raise RunError(f'Cannot write to {dst} ({e.strerror or e}): all finished classes are complete; free disk space '
                       'or fix the problem, and run the same command again to continue.') from e
    except KeyboardInterrupt:
        raise RunError('Interrupted: run the same command again to continue.')
    for name in splits:
        print(f'{printable(target / name)}: {counts[name]} images in {len(devkit.names)} classes')
    if problems:
        raise RunError(f'{dst} is not complete: {"; ".join(problems)}. --check-md5 checks whether the archives are the '
                       'official ones.')
    return counts


def _check_md5(archives: Dict[str, Path]) -> None:
    """Compare with the sums that torchvision knows."""
    from torchvision.datasets.utils import calculate_md5
    for name, path in archives.items():
        print(f'MD5 of {printable(path.name)} ...', file=sys.stderr, flush=True)
        found = calculate_md5(path)
        if found != ARCHIVES[name][1]:
            raise RunError(f'{path} is not the official file, or damaged: its MD5 sum is {found}, not '
                           f'{ARCHIVES[name][1]}. Download it again.')


def read_devkit(path: Path) -> Devkit:
    """Read the development kit.

    Raises:
        UsageError: scipy is missing.
        RunError: It is damaged, or another file.
    """
    try:
        import scipy.io
    except ImportError:
        raise UsageError('The classes are in a MATLAB file, which scipy reads: pip install "seresnet-timm[imagenet]".')
    found: Dict[str, bytes] = {}
    try:
        with tarfile.open(path, 'r:gz') as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and name in (
                        'meta.mat', 'ILSVRC2012_validation_ground_truth.txt') and member.size <= DEVKIT_LIMIT:
                    found.setdefault(name, tar.extractfile(member).read())
        table = scipy.io.loadmat(io.BytesIO(found['meta.mat']), squeeze_me=True)['synsets']
        # fields: ILSVRC2012_ID, WNID, words, gloss, num_children, children, wordnet_height, num_train_images
        rows = [tuple(row) for row in table]
        classes = {int(row[0]): row for row in rows if int(row[4]) == 0}  # the others are groups of classes
        ids = {number: str(row[1]) for number, row in classes.items()}
        text = found['ILSVRC2012_validation_ground_truth.txt'].decode('ascii')
        devkit = Devkit(
            names={ids[n]: tuple(str(row[2]).split(', ')) for n, row in classes.items()},
            train_counts={ids[n]: int(row[7]) for n, row in classes.items()},
            val_ids=[ids[int(line)] for line in text.split()],
        )
        if not all(re.fullmatch(r'n\d{8}', i) for i in devkit.names):
            raise ValueError('the name of a class is not a WordNet id')
        return devkit
    except KeyError as e:
        raise RunError(f'{path} is not the development kit of ILSVRC2012: it lacks {e}.') from e
    except Exception as e:  # readers of tar, gzip and MATLAB files raise anything on a damaged one
        raise RunError(f'{path} is damaged, or not the development kit of ILSVRC2012 ({e}): download it again.') from e


def _write_meta(path: Path, devkit: Devkit) -> None:
    """torchvision's `meta.bin`: names by class, and the class of every validation image."""
    import torch
    with atomic_path(path) as tmp:
        torch.save((devkit.names, devkit.val_ids), tmp)


def _check_space(target: Path, archives: Dict[str, Path], devkit: Devkit) -> None:
    """Check that the disk has space for the missing classes, estimated by their share."""
    needed = 0
    for split, path in archives.items():
        there = sum((target / split / wnid).is_dir() for wnid in devkit.names)
        started = sum(f.stat().st_size for f in (target / STATE_FOLDER / split).glob('*/*'))
        # 2 % for the blocks that files do not fill
        needed += max(0, int(1.02 * path.stat().st_size * (1 - there / len(devkit.names))) - started)
    existing = next(p for p in (target.absolute(), *target.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(f'{target} needs {needed / 1e9:.1f} GB more, {existing} has {free / 1e9:.1f} GB free: free '
                         'disk space, or name a folder on another disk.')


@contextmanager
def _open_tar(path: Path) -> Iterator[Tuple[tarfile.TarFile, tqdm]]:
    """An uncompressed archive, with a progress bar over its bytes; a damaged one is a RunError."""
    try:
        with tarfile.open(path, 'r:') as tar, tqdm(
                total=path.stat().st_size, unit='B', unit_scale=True, desc=path.name, disable=None) as bar:
            yield tar, bar
    except tarfile.TarError as e:
        raise RunError(f'{path} is damaged or incomplete ({e}): compare its size, and download it again; '
                       'finished classes are kept.') from e


def _files(tar: tarfile.TarFile, pattern: re.Pattern, archive: str) -> Iterator[Tuple[tarfile.TarInfo, re.Match]]:
    """Members of an archive, which must all be plain files with the expected names.

    Raises:
        RunError: One is a link or a device, or has another path.
    """
    for member in tar:
        name = member.name[2:] if member.name.startswith('./') else member.name
        if member.isdir() and name in ('.', ''):
            continue
        match = pattern.fullmatch(name)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or match is None:
            what = 'a link' if member.islnk() or member.issym() else 'a file' if member.isfile() else 'an entry'
            raise RunError(f"{archive} holds {what} '{member.name}', which the official archive does not "
                           'contain: unpacking stopped.')
        yield member, match


def _write(source: BinaryIO, size: int, path: Path) -> None:
    """Write a member to a file, atomically."""
    part = path.with_name(path.name + '.part')
    with open(part, 'wb') as f:
        shutil.copyfileobj(source, f)
    if part.stat().st_size != size:
        raise tarfile.ReadError(f'{path.name} is incomplete')
    os.replace(part, path)


def _unpack_train(archive: Path, folder: Path, staging: Path, devkit: Devkit) -> Dict[str, int]:
    """Unpack the training archive, which contains one archive per class.

    Returns:
        Number of images of each incomplete class; these classes are left out.
    """
    folder.mkdir(exist_ok=True)
    incomplete = {}
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    staging.mkdir()
    with _open_tar(archive) as (tar, bar):
        for member, match in _files(tar, CLASS_TAR, archive.name):
            wnid = match[1]
            if wnid not in devkit.names:
                raise RunError(f'{archive.name} holds {member.name}, a class that is not in the development kit.')
            if not (folder / wnid).exists():
                (staging / wnid).mkdir()
                count = 0
                with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as images:
                    for image, name in _files(images, TRAIN_IMAGE, f'{member.name} in {archive.name}'):
                        if name[1] != wnid:
                            raise RunError(f'{member.name} in {archive.name} holds {image.name}, of another class.')
                        _write(images.extractfile(image), image.size, staging / wnid / name[0])
                        count += 1
                if count == devkit.train_counts[wnid]:
                    sync(staging)
                    os.rename(staging / wnid, folder / wnid)
                else:
                    incomplete[wnid] = count
                    shutil.rmtree(staging / wnid)
            bar.update(member.offset_data + member.size - bar.n)
    return incomplete


def _unpack_val(archive: Path, folder: Path, staging: Path, devkit: Devkit) -> Dict[str, int]:
    """Unpack the validation images, which are not sorted by class; the class folders get their names at the end.

    Returns:
        As `_unpack_train`; the images of incomplete classes are kept for the next run.
    """
    folder.mkdir(exist_ok=True)
    missing = {wnid for wnid in set(devkit.val_ids) if not (folder / wnid).exists()}
    if not missing:
        return {}
    for wnid in missing:
        (staging / wnid).mkdir(parents=True, exist_ok=True)
    with _open_tar(archive) as (tar, bar):
        for member, match in _files(tar, VAL_IMAGE, archive.name):
            number = int(match[1])
            if not 1 <= number <= len(devkit.val_ids):
                raise RunError(f'{archive.name} holds {member.name}, the development kit has {len(devkit.val_ids)} '
                               'validation images.')
            wnid = devkit.val_ids[number - 1]
            path = staging / wnid / match[0]
            if wnid in missing and not _is_complete(path, member.size):
                _write(tar.extractfile(member), member.size, path)
            bar.update(member.offset_data + member.size - bar.n)
    sync(staging)
    wanted, incomplete = Counter(devkit.val_ids), {}
    for wnid in sorted(missing):
        count = _count(staging / wnid)
        if count == wanted[wnid]:
            os.rename(staging / wnid, folder / wnid)
        else:
            incomplete[wnid] = count
    return incomplete


def _is_complete(path: Path, size: int) -> bool:
    """Whether an earlier run has written the whole file."""
    return path.is_file() and path.stat().st_size == size


def _check_counts(folder: Path, wanted: Dict[str, int], incomplete: Dict[str, int]) -> Tuple[int, List[str]]:
    """Count the images of every class in place, and compare with the development kit."""
    found = {wnid: _count(folder / wnid) for wnid in wanted}
    absent = sorted(wnid for wnid, n in found.items() if n is None and wnid not in incomplete)
    wrong = [f'{wnid} has {found[wnid]} of {n} images' for wnid, n in sorted(wanted.items())
             if found[wnid] not in (None, n)]
    short = [f'{wnid} {n} of {wanted[wnid]}' for wnid, n in sorted(incomplete.items())]
    problems = []
    if absent:
        problems.append(f'the archive of {folder.name} lacks {len(absent)} of {len(wanted)} classes '
                        f'({first_names(absent, 5)})')
    if short:
        problems.append(f'the archive of {folder.name} lacks images of {len(short)} classes, which were left out '
                        f'({first_names(short, 5)})')
    if wrong:
        problems.append(f'in {folder} {first_names(wrong, 5)}: remove that folder and run the command again')
    return sum(n or 0 for n in found.values()), problems


def _count(folder: Path) -> Optional[int]:
    return sum(1 for _ in os.scandir(folder)) if folder.is_dir() else None
