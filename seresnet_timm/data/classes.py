"""The only reader of class folders: the names of the classes, in timm's order

timm numbers the classes of a folder by the names of all folders with images in them, at any depth, sorted naturally.
`read_classes` lists the same without loading a dataset, with everything in a folder that its owner may not expect.
Folders and files that other programs have left are no classes and no images: `name_classes` takes them out of timm's
dataset too. `names_of_dataset` asks timm's reader itself: that is what a run saves.
"""
import os
import tarfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import numpy as np
from timm.utils.misc import natural_key

from seresnet_timm.data.alike import describe_alike, looks
from seresnet_timm.data.images import FOREIGN_FILES, count_by_suffix, is_image, list_folder
from seresnet_timm.data.label_files import quote, read_class_map
from seresnet_timm.errors import RunError, UsageError, first_line, first_names, printable

TRAIN_NAMES = ('train', 'training')
EVAL_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')
# folders that other programs leave behind, whatever their case: of a NAS, a Mac's archive, Windows, Linux
FOREIGN_FOLDERS = (
    '@eadir', '@tmp', '@recycle', '@recently-snapshot', '#recycle', '#snapshot', '__macosx', '$recycle.bin',
    'system volume information', 'lost+found', '__pycache__')
NO_NAMES = ('', '.', '..')  # parts of a path in a tar that are no folder's name
COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')  # first bytes: gzip, bzip2, xz, zstd
MAX_NAMED = 3  # names of classes that one sentence lists


@dataclass(frozen=True)
class ClassTree:
    """What timm finds below a folder of class folders, or in a tar of them.

    Attributes:
        folder: The folder, one split of a dataset; or the tar.
        names: Name of every class, by index. Images outside of all class folders are a class ''.
        counts: Number of images by class.
        class_map: File with the folders that count, and their classes; None for all folders, in their natural order.
        empty: Folders without images, at the end of a branch; hidden ones are left out.
        stray: Images outside of all class folders, which timm makes a class of their own.
        hidden: Folders with images that other programs seem to have left: their name begins with a full stop, or is one
            of `FOREIGN_FOLDERS`, or a folder above them is so called. They are no classes, unless a class map names
            them.
        foreign_files: Hidden files that are called like images; they are left out.
        nested: Folders with images that are below the first level. timm takes the last folder's name for the class.
        inside: Folders with images inside of a class folder that holds images too: classes of their own for timm.
        merged: Several folders by their name, which is one class for timm.
        ties: Pairs of names that are equal in timm's order, which is then another in each process.
        alike: Pairs of names that look the same.
        same: Pairs of class folders that are one folder, by a link.
        loops: Links that lead back to a folder above them. They are not followed here; timm follows them.
        dangling: Links to what does not exist, where class folders are; one may have been a class.
        left_in_tar: Images in a tar that timm leaves out because they are links, or counts twice.
        tars: Tar files in the folder, which timm does not read there.
        unmapped: Names of folders with images that the class map leaves out, and their number of images.
        missing: Names in the class map for which there is no folder with images.
        unnamed: Indices below the largest one of the class map that it gives to no name.
        identities: Every class folder by device and inode.
        suffixes, left_out: Number of images and of other files by suffix, whatever a class map leaves out.
    """
    folder: Path
    names: List[str]
    counts: Dict[str, int]
    class_map: Optional[str]
    empty: List[str]
    stray: List[str]
    hidden: List[str]
    foreign_files: List[str]
    nested: List[str]
    inside: List[str]
    merged: Dict[str, List[str]]
    ties: List[Tuple[str, str]]
    alike: List[Tuple[str, str]]
    same: List[Tuple[str, str]]
    loops: List[str]
    dangling: List[str]
    left_in_tar: List[str]
    tars: List[str]
    unmapped: Dict[str, int]
    missing: List[str]
    unnamed: List[int]
    identities: Dict[Tuple[int, int], str]
    suffixes: Dict[str, int]
    left_out: Dict[str, int]

    @property
    def num_images(self) -> int:
        return sum(self.counts.values())


@dataclass
class _Folder:
    """A folder with images or without folders in it.

    Attributes:
        path: The folder.
        parts: Names of the folders from the root to it.
        images: Number of images in it.
        is_end: No folder is in it.
        identity: Device and inode; None in a tar.
    """
    path: str
    parts: Tuple[str, ...]
    images: int
    is_end: bool
    identity: Optional[Tuple[int, int]]

    @property
    def name(self) -> str:
        """Name of its class."""
        return self.parts[-1] if self.parts else ''


def read_classes(
        folder: Union[str, Path],
        class_map: Optional[str] = None,
        files: Optional[Dict[Optional[str], List[str]]] = None,
) -> ClassTree:
    """List the classes of one split, as timm's reader of image folders or tars finds them.

    Args:
        folder: Folder of the class folders, or a tar of them.
        class_map: File with the folders that count, in the order of their indices (`--class-map`); timm looks for it
            in `folder` too.
        files: Gets the paths of the images of each class, and under None those of all other files; not of a tar.

    Raises:
        UsageError: The folder or the class map cannot be read.
    """
    walk = _Walk(files is not None)
    try:
        if os.path.isfile(folder):
            walk.visit_tar(str(folder))
        else:
            walk.visit(str(folder), (), tuple(_identity(p) for p in Path(folder).resolve().parents))
    except (OSError, tarfile.TarError) as e:
        raise UsageError(f'{printable(folder)} cannot be read ({printable(first_line(e))}).')
    filled = {f.name for f in walk.folders if f.images}
    indices = read_class_map(class_map, str(folder), filled) if class_map else None
    own = [f for f in walk.folders if not is_foreign(f.parts, indices or ())]
    by_name: Dict[str, List[_Folder]] = {}
    for f in own:
        if f.images:
            by_name.setdefault(f.name, []).append(f)
    keys = _sort_keys(by_name, folder)
    natural = sorted(by_name, key=lambda name: (keys[name], name))
    sizes = {n: sum(f.images for f in by_name[n]) for n in natural}
    counts = {n: size for n, size in sizes.items() if indices is None or n in indices}
    used = [f for f in own if f.images and f.name in counts]
    if files is not None:
        files[None] = walk.paths.get(None, [])
        for f in used:
            files.setdefault(f.name, []).extend(walk.paths[f.parts])
    places = {f.parts for f in used}
    return ClassTree(
        folder=Path(folder),
        names=natural if indices is None else by_index(indices),
        counts=counts,
        class_map=class_map or None,
        empty=sorted(f.path for f in own if not f.images and f.is_end and f.parts),
        stray=sorted(walk.stray),
        hidden=sorted(f.path for f in walk.folders if f.images and is_foreign(f.parts, indices or ())),
        foreign_files=sorted(walk.foreign_files),
        nested=sorted(f.path for f in used if len(f.parts) > 1),
        inside=sorted(f.path for f in used if any(f.parts[:i] in places for i in range(1, len(f.parts)))),
        merged={n: sorted(f.path for f in by_name[n]) for n in counts if len(by_name[n]) > 1},
        ties=[(a, b) for a, b in zip(natural, natural[1:]) if keys[a] == keys[b]],
        alike=_pairs((looks(n), n) for n in counts),
        same=_pairs((f.identity, f.path) for f in used if f.identity),
        loops=sorted(walk.loops),
        dangling=sorted(walk.dangling),
        left_in_tar=sorted(walk.left_in_tar),
        tars=sorted(walk.tars),
        unmapped={n: size for n, size in sizes.items() if n not in counts},
        missing=[str(n) for n in indices or () if n not in by_name],
        unnamed=sorted(set(range(max(indices.values()))) - set(indices.values())) if indices else [],
        identities={f.identity: f.path for f in used if f.identity},
        suffixes=dict(walk.suffixes),
        left_out=dict(walk.left_out),
    )


def _sort_keys(names: Collection[str], folder: Union[str, Path]) -> Dict[str, Any]:
    keys = {}
    for name in names:
        try:
            keys[name] = natural_key(name)
        except ValueError:  # of '²' and the like, which are digits and no numbers
            raise UsageError(f"timm cannot sort a class called '{printable(name)}' (in {printable(folder)}): rename "
                             'the folder.')
    return keys


def _pairs(items: Iterator[Tuple[Any, str]]) -> List[Tuple[str, str]]:
    """Names that have the same key, two by two."""
    first: Dict[Any, str] = {}
    return [(first[key], name) for key, name in items if first.setdefault(key, name) != name]


def is_foreign(parts: Sequence[str], named: Collection[str] = ()) -> bool:
    """True for a folder that another program has left, or that is in one.

    Args:
        parts: Names of the folders from the root to it.
        named: Names of folders that are classes, whatever they look like.
    """
    return any((p.startswith('.') or p.lower() in FOREIGN_FOLDERS) and p not in named for p in parts)


class _Walk:
    """One walk through a folder or a tar: what `ClassTree` holds, before it is sorted."""

    def __init__(self, keeps_paths: bool = False):
        self._keeps_paths = keeps_paths
        self.paths: Dict[Optional[Tuple[str, ...]], List[str]] = {}  # of images by folder, of other files under None
        self.folders: List[_Folder] = []
        self.stray: List[str] = []
        self.loops: List[str] = []
        self.dangling: List[str] = []
        self.left_in_tar: List[str] = []
        self.tars: List[str] = []
        self.foreign_files: List[str] = []
        self.suffixes: Counter = Counter()
        self.left_out: Counter = Counter()

    def visit(self, path: str, parts: Tuple[str, ...], above: Tuple[Tuple[int, int], ...]) -> None:
        """Visit a folder.

        Args:
            path: The folder.
            parts: Names of the folders from the root to it.
            above: Device and inode of every folder above it.
        """
        identity = _identity(path)
        if identity in above:
            self.loops.append(path)
            return
        found = list_folder(path)
        names, others, subfolders = ([entry.name for entry in entries] for entries in found)
        if self._keeps_paths:
            for key, entries in ((parts, found.images), (None, found.others)):
                if entries:
                    self.paths.setdefault(key, []).extend(entry.path for entry in entries)
        if not parts:
            self.stray += [entry.path for entry in found.images]
        for entry in found.images:
            if not entry.name.isascii():
                _check_sortable(entry.path)
        self.foreign_files += [entry.path for entry in found.others if is_image(entry.name)]
        self.tars += [entry.path for entry in found.others if entry.name.lower().endswith('.tar')]
        if not names:  # beside images a link is a file
            self.dangling += [entry.path for entry in found.others if entry.is_symlink()
                              and not is_foreign([*parts, entry.name]) and not os.path.exists(entry.path)]
        if not is_foreign(parts):
            self.suffixes.update(count_by_suffix(names))
            self.left_out.update(count_by_suffix(others))
        if names or not subfolders:
            self.folders.append(_Folder(path, parts, len(names), not subfolders, identity))
        for name in subfolders:
            self.visit(os.path.join(path, name), parts + (name,), above + (identity,))

    def visit_tar(self, path: str) -> None:
        """Visit a tar; tars in it are folders, as for timm."""
        counts: Dict[Tuple[str, ...], int] = {}
        with open(path, 'rb') as file:
            if file.read(4).startswith(COMPRESSED):
                raise tarfile.ReadError('it is compressed, which timm does not read: unpack it first')
        with tarfile.open(path, 'r:') as tar:
            for parts, name in self._files_of_tar(tar, ()):
                counts[parts] = counts.get(parts, 0) + 1
                if not parts:
                    self.stray.append(f'{path}:{name}')
        self.folders = [_Folder(f'{path}:{"/".join(p)}', p, n, True, None) for p, n in counts.items()]

    def _files_of_tar(self, tar: tarfile.TarFile, above: Tuple[str, ...]) -> Iterator[Tuple[Tuple[str, ...], str]]:
        seen: Set[Tuple[str, ...]] = set()
        for member in tar:
            folder, name = os.path.split(member.path)
            if member.isdir():
                continue
            parts = tuple(p for p in folder.split('/') if p not in NO_NAMES)
            if self._is_image(member.path, name):
                if not member.isfile() or (*parts, name) in seen:
                    self.left_in_tar.append(member.path)
                    continue
                seen.add((*parts, name))
                self.suffixes.update(count_by_suffix([name]))
                yield above + parts, member.path
            elif member.isfile() and name.lower().endswith('.tar') and not above:
                with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as child:
                    yield from self._files_of_tar(child, (name[:-len('.tar')],))
            elif member.issym() and not os.path.splitext(name)[1] and not is_foreign([*parts, name]):
                self.left_in_tar.append(member.path)  # it may be a class
            elif not is_foreign(parts):
                self.left_out.update(count_by_suffix([name]))
        _check_end_of_tar(tar)

    def _is_image(self, path: str, name: str) -> bool:
        if is_image(name) and name.startswith(FOREIGN_FILES):
            self.foreign_files.append(path)
            return False
        return is_image(name)


def _check_end_of_tar(tar: tarfile.TarFile) -> None:
    """Refuse a tar that Python reads without an error, though only in part.

    Raises:
        TarError: It ends without the empty blocks that a tar ends with, or others follow them.
    """
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or rest[:tarfile.BLOCKSIZE].strip(b'\0'):
        raise tarfile.ReadError('it is cut off or damaged behind its last file: copy it again')
    if rest.strip(b'\0'):
        raise tarfile.ReadError('more follows its end, as where several tars were joined: unpack them one by one')


def _check_sortable(path: str) -> None:
    try:
        natural_key(path)
    except ValueError:
        raise UsageError(f'timm cannot sort a file called {printable(path)}: rename it.')


def _identity(path: Union[str, Path]) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def by_index(indices: Dict[Any, int]) -> List[str]:
    """Names by index; where several names have the same index, all of them; where none has it, the index."""
    names: Dict[int, List[str]] = {}
    for name, index in indices.items():
        names.setdefault(index, []).append(str(name))
    return [', '.join(names.get(i, [str(i)])) for i in range(max(names) + 1)]


# --- splits -----------------------------------------------------------------------------------------------------------

def split_folder(root: Union[str, Path], split: str) -> Optional[Path]:
    """Folder of a split by its name or one of timm's synonyms; None if not found: timm takes the root then."""
    return next((Path(root) / n for n in split_names(split) if (Path(root) / n).exists()), None)


def split_names(split: str) -> List[str]:
    """Names of the folders that timm tries for a split, in its order."""
    name = split.split('[')[0]
    synonyms = next((s for s in (TRAIN_NAMES, EVAL_NAMES) if name in s), ())
    return [name] + [s for s in synonyms if s != name]


# --- timm's datasets --------------------------------------------------------------------------------------------------

def names_of_dataset(dataset: Any) -> Optional[List[str]]:
    """Names of the classes by index as the reader of a dataset has them; None if it has no names.

    Args:
        dataset: As from timm's `create_dataset`, in wrappers or not.
    """
    indices = _indices_of(_reader_of(dataset))
    return None if indices is None else by_index(indices)


def _reader_of(dataset: Any) -> Any:
    while not hasattr(dataset, 'reader') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return getattr(dataset, 'reader', dataset)


def _indices_of(reader: Any) -> Optional[Dict[str, int]]:
    for attribute in ('class_to_idx', 'class_name_to_idx'):
        indices = getattr(reader, attribute, None)
        if isinstance(indices, dict) and indices and all(isinstance(i, int) and i >= 0 for i in indices.values()):
            return indices
    return None


def name_classes(dataset: Any, class_names: Optional[Sequence[str]], class_map: Optional[Dict[str, int]]) -> None:
    """Number the classes of timm's dataset as a run has planned, and leave out what other programs left in its folder.

    Args:
        dataset: As from timm's `create_dataset`, of a folder or a tar.
        class_names: Name of every class, by index; None to keep timm's numbers.
        class_map: Index by name as timm got it; the numbers are kept then.

    Raises:
        RunError: A class folder is not in `class_names`: the folder has changed since.
    """
    reader = dataset.reader
    is_tar = hasattr(reader, 'targets')
    labels = reader.targets.tolist() if is_tar else [label for _, label in reader.samples]
    keep = list(_belong(reader, is_tar, class_map or ()))
    indices = dict(_indices_of(reader) or {})
    if class_map is None:
        remaining = {label for label, kept in zip(labels, keep) if kept}
        indices = {name: i for name, i in indices.items() if i in remaining}
        wanted = {name: i for i, name in enumerate(class_names or sorted(indices, key=indices.get))}
        if class_names is not None and not indices.keys() <= wanted.keys():
            difference = describe_difference(class_names, list(indices), 'the plan of this run', 'the data folder now')
            raise RunError(f'The classes of {printable(reader.root)} are not those of the plan ({difference}): start '
                           'the run again.')
        new_label = {i: wanted[name] for name, i in indices.items()}
        labels = [new_label.get(label, -1) for label in labels]
        indices = wanted
    if is_tar:
        reader.samples, reader.targets = reader.samples[keep], np.array(labels)[keep]
        reader.class_name_to_idx = indices
        reader.class_idx_to_name = {i: name for name, i in indices.items()}
    else:
        reader.samples = [(path, label) for (path, _), label, kept in zip(reader.samples, labels, keep) if kept]
        reader.class_to_idx = indices


def renumber_torchvision(dataset: Any, class_names: Sequence[str]) -> None:
    """Number the classes of a dataset of torchvision as a run has planned, if it has them all."""
    indices = _indices_of(dataset) or {}
    wanted = {name: i for i, name in enumerate(class_names)}
    if indices == wanted or not indices or not indices.keys() <= wanted.keys():
        return
    dataset.target_transform = {index: wanted[name] for name, index in indices.items()}.__getitem__
    dataset.classes = list(class_names)
    with suppress(AttributeError):  # some compute it from the classes
        dataset.class_to_idx = wanted


def _belong(reader: Any, is_tar: bool, named: Collection[str]) -> Iterator[bool]:
    """For every sample of a reader whether it is an image of the dataset, and not what another program has left."""
    start = 0 if is_tar else len(reader.root.rstrip(os.sep)) + 1
    known: Dict[str, bool] = {}
    for sample in reader.samples:
        path = '/'.join(filter(None, (sample[2] and sample[2].path, sample[0].path))) if is_tar else sample[0][start:]
        folder, name = os.path.split(path)
        if folder not in known:
            known[folder] = not is_foreign([p for p in folder.split('/') if p not in NO_NAMES], named)
        yield known[folder] and not name.startswith(FOREIGN_FILES)


# --- comparison -------------------------------------------------------------------------------------------------------

def describe_difference(
        names_a: Optional[Sequence[str]],
        names_b: Optional[Sequence[str]],
        where_a: str = 'the checkpoint',
        where_b: str = 'the data',
) -> Optional[str]:
    """How two lists of class names differ, as a clause; None if they are equal or one is not known.

    Args:
        names_a: Names by index, of a checkpoint for instance.
        names_b: Names by index of what is compared with it, of a data folder for instance.
        where_a: What has `names_a`, for the clause.
        where_b: What has `names_b`.
    """
    if names_a is None or names_b is None or list(names_a) == list(names_b):
        return None
    in_a, in_b = set(names_a), set(names_b)
    only_a = [n for n in names_a if n not in in_b]
    only_b = [n for n in names_b if n not in in_a]
    if not only_a and not only_b:
        index = next((i for i, (a, b) in enumerate(zip(names_a, names_b)) if a != b), min(len(names_a), len(names_b)))
        a, b = (quote(names[index]) if index < len(names) else 'none' for names in (names_a, names_b))
        return f'the same names in another order: class {index} is {a} in {where_a} and {b} in {where_b}'
    by_look = {looks(n, fold=True): n for n in only_b}
    alike = next(((a, by_look[looks(a, fold=True)]) for a in only_a if looks(a, fold=True) in by_look), None)
    if alike:
        return describe_alike(*alike, where_a, where_b)
    changed = [(a, b) for a, b in zip(names_a, names_b) if a != b]
    if len(names_a) == len(names_b) and len(changed) == len(only_a) == len(only_b):
        pairs = [f'{quote(a)} in {where_a} is {quote(b)} in {where_b}' for a, b in changed]
        return f'renamed: {first_names(pairs, MAX_NAMED)}'
    parts = [f'{first_names(map(quote, names), MAX_NAMED)} only in {where}'
             for names, where in ((only_a, where_a), (only_b, where_b)) if names]
    return '; '.join(parts)
