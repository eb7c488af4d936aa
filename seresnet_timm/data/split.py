"""`seresnet-timm split`: a dataset of class folders, divided into training and validation by links

The images stay where they are. The new folder has train/<class>/* and val/<class>/* of links, and split.json.
Which images are for validation follows from the seed and their paths alone: an image that is added later changes
nothing for the others of its class but a few at the limit. Files with the same content go to the same split.
"""
import errno
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Tuple

from seresnet_timm.data.classes import ClassTree, read_classes, split_folder
from seresnet_timm.data.images import UnreadableImage, describe_left_out, read_file
from seresnet_timm.errors import RunError, UsageError, counted, first_names, letter_widths, printable
from seresnet_timm.files import temporary_folder, why_not_writable, write_json

RECORD = 'split.json'
LINKS = ('symbolic', 'hard')
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
MAX_NAMED = 3


@dataclass
class Split:
    """Which images go where.

    Attributes:
        tree: The classes of the dataset.
        files: Paths of the images below the folder of the classes, by split and class.
        duplicates: Number of files that have the content of another one.
        two_classes: Files with the content of a file of another class, which are all for training.
    """
    tree: ClassTree
    files: Dict[str, Dict[str, List[str]]]
    duplicates: int = 0
    two_classes: List[str] = field(default_factory=list)

    @property
    def counts(self) -> Dict[str, Dict[str, int]]:
        """Number of images by class and split."""
        names = self.files['train']
        return {name: {split: len(classes.get(name, ())) for split, classes in self.files.items()} for name in names}


def find_images(folder: str) -> Tuple[ClassTree, Dict[str, List[str]]]:
    """The classes of a dataset that has no validation split, and the images of each.

    Args:
        folder: Folder with a folder for each class in it, or with train/<class>/*.

    Raises:
        UsageError: It is no such folder, or has a validation split.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f'{printable(folder)} {"is a file" if root.exists() else "does not exist"}: name the folder '
                         'with a folder of images for each class in it.')
    val = split_folder(root, 'validation')
    if val is not None:
        raise UsageError(f'{printable(folder)} has a validation split ({printable(val)}): it is divided already. Train '
                         'with it as it is; or rename that folder, if it is a class or something else.')
    train = split_folder(root, 'train')
    files: Dict[str, List[str]] = {}
    tree = read_classes(root if train is None else train, None, files)
    files.pop(None, None)
    start = len(str(tree.folder).rstrip(os.sep)) + 1
    return tree, {name: sorted((path[start:] for path in files[name]), key=os.fsencode) for name in tree.names}


def divide(tree: ClassTree, files: Dict[str, List[str]], share: float, seed: int = 42) -> Split:
    """Choose the images for validation, of every class the same share.

    Args:
        tree: The classes.
        files: Paths of the images of each class, below the folder of the classes.
        share: Share of the images of a class for validation. Both splits get at least one image of every class.
        seed: Another number chooses other images.

    Raises:
        UsageError: A class has not enough images for two splits.
    """
    groups = _same_content(tree.folder, files)
    class_of = {path: name for name, paths in files.items() for path in paths}
    result = Split(tree, {'train': {}, 'val': {}}, sum(len(group) - 1 for group in groups))
    by_class: Dict[str, List[List[str]]] = {name: [] for name in files}
    for group in groups:
        if len({class_of[path] for path in group}) > 1:
            result.two_classes += group
        else:
            by_class[class_of[group[0]]].append(group)
    small = []
    for name, paths in files.items():
        own = sorted(by_class[name], key=lambda group: _place(seed, group[0]))
        in_both = set(paths).intersection(result.two_classes)
        if len(own) + bool(in_both) < 2 or not own:
            small.append(f'{printable(name)} ({len(paths)})')
            continue
        chosen = _choose(own, max(1, round(len(paths) * share)), keep_one=not in_both)
        result.files['val'][name] = sorted(chosen, key=os.fsencode)
        result.files['train'][name] = sorted(set(paths).difference(chosen), key=os.fsencode)
    if small:
        raise UsageError(f'{counted(len(small), "class has", "classes have")} fewer than two different images, '
                         f'and each split needs one: {first_names(small, 10)}. '
                         'Add images to these folders, or move the folders away.')
    return result


def _choose(groups: List[List[str]], wanted: int, keep_one: bool) -> List[str]:
    """Files of the first groups that fit; at least one group, and not all if one must remain."""
    chosen: List[str] = []
    left = len(groups) - keep_one
    for group in groups:
        if left and len(chosen) + len(group) <= wanted:
            chosen += group
            left -= 1
    return chosen or min(groups, key=len)


def _place(seed: int, path: str) -> bytes:
    """Where a path stands in the order of a seed; the same on every machine."""
    return hashlib.sha256(b'%d/' % seed + os.fsencode(path)).digest()


def _same_content(folder: Path, files: Dict[str, List[str]]) -> List[List[str]]:
    """All files, those with the same content together. Only files of the same size are read."""
    by_size: Dict[int, List[str]] = {}
    for paths in files.values():
        for path in paths:
            by_size.setdefault(_size(folder / path), []).append(path)
    groups: List[List[str]] = []
    for paths in by_size.values():
        same: Dict[str, List[str]] = {}
        for path in paths:
            same.setdefault(_hash(folder / path) if len(paths) > 1 else '', []).append(path)
        groups += same.values()
    return groups


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else len(read_file(path))  # which says what else it is
    except (OSError, UnreadableImage) as e:
        raise _unreadable(path, e)


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except UnreadableImage as e:
        raise _unreadable(path, e)


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, 'strerror', None) or error
    return UsageError(f'{printable(path)} cannot be read ({reason}): remove it, or make it readable.')


# --- the new folder ---------------------------------------------------------------------------------------------------

def check_target(folder: str, out: str) -> Path:
    """The folder to make.

    Raises:
        UsageError: It exists, cannot be made, or is in the dataset.
    """
    target = Path(os.path.abspath(out))
    source = Path(folder).resolve()
    if source in (target.resolve(), *target.resolve().parents):
        raise UsageError(f'{printable(out)} is in {printable(folder)}, where its links would count as further images: '
                         'name a folder outside.')
    is_empty_folder = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if os.path.lexists(target) and not is_empty_folder:
        raise UsageError(f'{printable(out)} exists: name another folder as second argument, or remove it first.')
    reason = why_not_writable(target) or why_not_writable(target.parent)
    if reason:
        raise UsageError(f'{printable(out)} cannot be written: {reason}; name another folder as second argument.')
    return target


def write(split: Split, target: Path, links: str, facts: Dict[str, object]) -> None:
    """Make the new folder: complete, or not at all.

    Args:
        split: Which images go where.
        target: The new folder.
        links: One of `LINKS`.
        facts: What split.json says of it, beside the counts.

    Raises:
        UsageError: The file system has no such links.
        RunError: It cannot be written.
    """
    source = Path(os.path.realpath(split.tree.folder))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent, f'.{target.name}-') as tmp:
            # links are relative, so that both folders can be moved, or mounted elsewhere, together
            back = os.path.relpath(source, os.path.join(os.path.realpath(target.parent), target.name))
            for name, classes in split.files.items():
                for paths in classes.values():
                    for path in paths:
                        link = tmp / name / path
                        link.parent.mkdir(parents=True, exist_ok=True)
                        if links == 'hard':
                            os.link(source / path, link)
                        else:
                            depth = len(Path(name, path).parts) - 1
                            os.symlink(os.path.join(*['..'] * depth, back, path), link)
            write_json(tmp / RECORD, {**facts, 'links': links, 'classes': split.counts})
            umask = os.umask(0)
            os.umask(umask)
            tmp.chmod(0o777 & ~umask)
            os.rename(tmp, target)
    except OSError as e:
        where = printable(e.filename2 or e.filename or target)
        if e.errno in _NO_LINKS:
            other = 'name a folder on the file system of the images' if links == 'hard' else (
                'name a folder on another one')
            raise UsageError(f'{where}: {links} links cannot be made there ({e.strerror}): {other}, or give --links '
                             f'{LINKS[links == "symbolic"]}.')
        raise RunError(f'{where} cannot be written ({e.strerror}): nothing was made.')
    except KeyboardInterrupt:
        raise RunError('Interrupted: nothing was made.')


def describe(split: Split) -> List[str]:
    """The counts of every class, and what a user may not expect, as lines."""
    counts = split.counts
    names = {name: printable(name) for name in counts}
    width = max(map(letter_widths, ('class', *names.values())))
    lines = [f'{"class":<{width}}  train    val']
    lines += [f'{names[name]}{" " * (width - letter_widths(names[name]))}  {c["train"]:>5}  {c["val"]:>5}'
              for name, c in counts.items()]
    total = [sum(c[s] for c in counts.values()) for s in ('train', 'val')]
    lines.append(f'{"all":<{width}}  {total[0]:>5}  {total[1]:>5}')
    if split.duplicates:
        lines.append(f'{counted(split.duplicates, "file has", "files have")} the same content as another '
                     'one; files with the same content are in the same split.')
    if split.two_classes:
        lines.append(f'{counted(len(split.two_classes), "file")} with the same content in two classes, all in train: '
                     f'{printable(first_names(split.two_classes, MAX_NAMED))}. check-data lists them.')
    if split.tree.left_out:
        lines.append(describe_left_out(split.tree.left_out) + '.')
    return lines
