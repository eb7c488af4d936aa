"""The only reader of class folders and class maps: the names of the classes, in timm's order

timm numbers the classes of a folder by the names of all folders with images in them, at any depth, sorted naturally.
`read_classes` lists the same without loading a dataset, with everything in a folder that its owner may not expect.
`names_of_dataset` asks timm's reader itself: that is what a run saves.
"""
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from timm.data.readers.class_map import load_class_map
from timm.utils.misc import natural_key

from seresnet_timm.errors import UsageError, first_line, first_names, printable
from seresnet_timm.images import (
    TIMM_EXTENSIONS,
    count_by_suffix,
    describe_kinds,
    describe_left_out,
    is_image,
)

TRAIN_NAMES = ('train', 'training')
EVAL_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')
# folders that other programs leave behind: thumbnails of a NAS, a Mac's archive
FOREIGN_FOLDERS = ('@eaDir', '__MACOSX', '#recycle', '$RECYCLE.BIN')
MAX_NAMED = 3  # names of classes that one sentence lists


@dataclass(frozen=True)
class ClassTree:
    """What timm finds below a folder of class folders.

    Attributes:
        folder: The folder, one split of a dataset.
        names: Name of every class, by index. Images outside of all class folders are a class ''.
        counts: Number of images by class.
        class_map: File with the folders that count, and their classes; None for all folders, in their natural order.
        empty: Folders without images, at the end of a branch; hidden ones are left out.
        stray: Images outside of all class folders, which timm makes a class of their own.
        hidden: Folders with images that other programs seem to have left: their name begins with a full stop, or is one
            of `FOREIGN_FOLDERS`, or a folder above them is so called. timm makes them classes.
        nested: Folders with images that are below the first level. timm takes the last folder's name for the class.
        ties: Pairs of names that are equal in timm's order, which is then another in each process.
        loops: Links that lead back to a folder above them. They are not followed here; timm follows them.
        unmapped: Names of folders with images that the class map leaves out.
        missing: Names in the class map for which there is no folder with images.
        suffixes: Number of images by suffix.
        left_out: Number of files by suffix that are no images by their suffix.
    """
    folder: Path
    names: List[str]
    counts: Dict[str, int]
    class_map: Optional[str]
    empty: List[str]
    stray: List[str]
    hidden: List[str]
    nested: List[str]
    ties: List[Tuple[str, str]]
    loops: List[str]
    unmapped: List[str]
    missing: List[str]
    suffixes: Dict[str, int]
    left_out: Dict[str, int]

    @property
    def num_images(self) -> int:
        return sum(self.counts.values())

    def describe_files(self) -> str:
        """Images that timm alone would leave out, and files that are left out, as a clause; '' for neither."""
        more = {suffix: n for suffix, n in self.suffixes.items() if suffix not in TIMM_EXTENSIONS}
        clauses = [f'with {describe_kinds(more)}, which timm alone leaves out'] if more else []
        return '; '.join(clauses + [describe_left_out(self.left_out)] * bool(self.left_out))


def read_classes(folder: Union[str, Path], class_map: Optional[str] = None) -> ClassTree:
    """List the classes of one split, as timm's reader of image folders finds them.

    Args:
        folder: Folder of the class folders.
        class_map: File with the folders that count, in the order of their indices (`--class-map`); timm looks for it
            in `folder` too.

    Raises:
        UsageError: The folder or the class map cannot be read.
    """
    walk = _Walk()
    try:
        walk.visit(str(folder), '', tuple(_identity(p) for p in Path(folder).resolve().parents))
    except OSError as e:
        raise UsageError(f'{printable(folder)} cannot be read ({printable(first_line(e))}).')
    keys = {}
    for name in walk.counts:
        try:
            keys[name] = natural_key(name)
        except ValueError:  # of '²' and the like, which are digits and no numbers
            raise UsageError(f"timm cannot sort a class called '{printable(name)}' (in {printable(folder)}): rename "
                             'the folder.')
    found = sorted(walk.counts, key=lambda name: (keys[name], name))
    names, unmapped, missing = found, [], []
    if class_map:
        indices = _read_class_map(class_map, str(folder))
        names = _by_index(indices)
        unmapped = [n for n in found if n not in indices]
        missing = [str(n) for n in indices if n not in walk.counts]
    return ClassTree(
        folder=Path(folder),
        names=names,
        counts={n: walk.counts[n] for n in found if n not in unmapped},
        class_map=class_map or None,
        empty=sorted(walk.empty),
        stray=sorted(walk.stray),
        hidden=sorted(walk.hidden),
        nested=sorted(walk.nested),
        ties=[(a, b) for a, b in zip(found, found[1:]) if keys[a] == keys[b]],
        loops=sorted(walk.loops),
        unmapped=unmapped,
        missing=missing,
        suffixes=dict(walk.suffixes),
        left_out=dict(walk.left_out),
    )


class _Walk:
    """One walk through a folder: what `ClassTree` holds, before it is sorted."""

    def __init__(self):
        self.counts: Dict[str, int] = {}
        self.empty: List[str] = []
        self.stray: List[str] = []
        self.hidden: List[str] = []
        self.nested: List[str] = []
        self.loops: List[str] = []
        self.suffixes: Counter = Counter()
        self.left_out: Counter = Counter()

    def visit(self, path: str, relative: str, above: Tuple[Tuple[int, int], ...]) -> None:
        """Visit a folder.

        Args:
            path: The folder.
            relative: Its path below the root; '' for the root.
            above: Device and inode of every folder above it.
        """
        identity = _identity(path)
        if identity in above:
            self.loops.append(path)
            return
        images, others, subfolders = [], [], []
        with os.scandir(path) as entries:
            for entry in entries:
                if _is_folder(entry):
                    subfolders.append(entry.name)
                else:
                    (images if is_image(entry.name) else others).append(entry.path)
        self.suffixes.update(count_by_suffix(images))
        self.left_out.update(count_by_suffix(others))
        parts = relative.split(os.sep) if relative else []
        hidden = any(p.startswith('.') or p in FOREIGN_FOLDERS for p in parts)
        if images:
            name = parts[-1] if parts else ''
            self.counts[name] = self.counts.get(name, 0) + len(images)
            if not parts:
                self.stray += images
            if hidden:
                self.hidden.append(path)
            if len(parts) > 1:
                self.nested.append(path)
        elif parts and not subfolders and not hidden:
            self.empty.append(path)
        for name in subfolders:
            self.visit(os.path.join(path, name), os.path.join(relative, name), above + (identity,))


def _identity(path: Union[str, Path]) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which os.walk takes for a file
        return False


def _read_class_map(path: str, folder: str) -> Dict[Any, int]:
    """Index by name of a class map, as timm reads it."""
    try:
        indices = load_class_map(path, folder)
    except Exception as e:  # of a pickle too, which timm reads with a restricted unpickler
        raise UsageError(f'Class map {printable(path)} cannot be read ({printable(first_line(e))}): timm takes .txt, a '
                         'name of a folder a line.')
    if not indices or not all(isinstance(i, int) and i >= 0 for i in indices.values()):
        raise UsageError(f'Class map {printable(path)} names no classes: timm takes .txt, a name of a folder a line.')
    odd = next((n for n in indices if isinstance(n, str) and (n.startswith('\ufeff') or not n)), None)
    if odd is not None:
        what = 'begins with a byte order mark' if odd else 'has an empty line'
        raise UsageError(f'Class map {printable(path)} {what}, which timm takes for a part of a name: save it as UTF-8 '
                         'without a byte order mark and without empty lines.')
    return indices


def _by_index(indices: Dict[Any, int]) -> List[str]:
    """Names by index; where several names have the same index, all of them; where none has it, the index."""
    names: Dict[int, List[str]] = {}
    for name, index in indices.items():
        names.setdefault(index, []).append(str(name))
    return [', '.join(names.get(i, [str(i)])) for i in range(max(names) + 1)]


def split_folder(root: Union[str, Path], split: str) -> Optional[Path]:
    """Folder of a split by its name or one of timm's synonyms; None if not found: timm takes the root then."""
    return next((Path(root) / n for n in split_names(split) if (Path(root) / n).exists()), None)


def split_names(split: str) -> List[str]:
    """Names of the folders that timm tries for a split, in its order."""
    name = split.split('[')[0]
    synonyms = next((s for s in (TRAIN_NAMES, EVAL_NAMES) if name in s), ())
    return [name] + [s for s in synonyms if s != name]


def names_of_dataset(dataset: Any) -> Optional[List[str]]:
    """Names of the classes by index as the reader of a dataset has them; None if it has no names.

    Args:
        dataset: As from timm's `create_dataset`, in wrappers or not.
    """
    while not hasattr(dataset, 'reader') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    reader = getattr(dataset, 'reader', dataset)
    for attribute in ('class_to_idx', 'class_name_to_idx'):
        indices = getattr(reader, attribute, None)
        if isinstance(indices, dict) and indices and all(isinstance(i, int) and i >= 0 for i in indices.values()):
            return _by_index(indices)
    return None


def read_class_names(path: Union[str, Path], num_classes: int) -> List[str]:
    """Names of classes from a file with one name a line, in the order of their indices.

    Raises:
        UsageError: The file cannot be read, or does not have as many names as the model has classes.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f'--class-names {path} cannot be read ({first_line(e)}).')
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != num_classes:
        raise UsageError(f'--class-names {path} has {len(names)} names, the model has {num_classes} classes.')
    return names


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
    only_a = [n for n in names_a if n not in set(names_b)]
    only_b = [n for n in names_b if n not in set(names_a)]
    if not only_a and not only_b:
        index = next((i for i, (a, b) in enumerate(zip(names_a, names_b)) if a != b), min(len(names_a), len(names_b)))
        a, b = (_quote(names[index]) if index < len(names) else 'none' for names in (names_a, names_b))
        return f'the same names in another order: class {index} is {a} in {where_a} and {b} in {where_b}'
    alike = next(((a, b) for a in only_a for b in only_b if _looks_like(a) == _looks_like(b)), None)
    if alike:
        return (f'{_quote(alike[0])} and {_quote(alike[1])} look alike and are not the same name (Unicode '
                'normalization, case or white space)')
    changed = [(a, b) for a, b in zip(names_a, names_b) if a != b]
    if len(names_a) == len(names_b) and len(changed) == len(only_a) == len(only_b):
        pairs = [f'{_quote(a)} in {where_a} is {_quote(b)} in {where_b}' for a, b in changed]
        return f'renamed: {first_names(pairs, MAX_NAMED)}'
    parts = [f'{first_names(map(_quote, names), MAX_NAMED)} only in {where}'
             for names, where in ((only_a, where_a), (only_b, where_b)) if names]
    return '; '.join(parts)


def _quote(name: str) -> str:
    return f"'{printable(name)}'"


def _looks_like(name: str) -> str:
    """What is left of a name without case, white space at its ends and the form of its accents."""
    return ' '.join(unicodedata.normalize('NFKC', name).casefold().split())
