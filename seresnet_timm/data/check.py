"""`seresnet-timm check-data`: reads and decodes every image of a dataset, and lists what would harm a training

Three kinds of findings: on a file (`check_file`), on files with the same content (`_duplicates`), and on the classes
(`_class_findings`). What is known of a file is entered in a journal in the user's cache, so that an interrupted check
goes on; a check that has ended leaves no journal, and the next one reads every file again. The dataset is only read.
"""
import hashlib
import io
import json
import os
import sys
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, TextIO, Tuple

from filelock import Timeout
from PIL import Image

from seresnet_timm import process
from seresnet_timm.data.alike import describe_alike, is_written_twice, looks
from seresnet_timm.data.classes import ClassTree, is_foreign, read_classes, split_folder, split_names
from seresnet_timm.data.images import MAX_BYTES, ImageProgress, UnreadableImage, list_folder, read_file, read_image
from seresnet_timm.data.jpeg import MAX_PIXELS, Crop, decoders
from seresnet_timm.errors import RunError, UsageError, counted, first_names, printable, refuse
from seresnet_timm.files import acquire_lock, marker_hint, read_journal

FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.jpe': 'JPEG', '.jfif': 'JPEG', '.png': 'PNG', '.webp': 'WEBP',
           '.bmp': 'BMP', '.gif': 'GIF', '.tif': 'TIFF', '.tiff': 'TIFF', '.ppm': 'PPM', '.pgm': 'PPM', '.pbm': 'PPM',
           '.pnm': 'PPM', '.avif': 'AVIF'}
SIGNATURES = (b'\xff\xd8\xff', b'\x89PNG')  # of files that were images once

# kind of a finding -> whether something is wrong (exit code 1) or only worth knowing, and its heading
KINDS: Dict[str, Tuple[bool, str]] = {
    'unreadable': (True, 'cannot be read'),
    'empty': (True, 'empty: no bytes in the file'),
    'damaged': (True, 'damaged: cannot be decoded'),
    'wrong-type': (True, 'wrong type: the content is not what the suffix says'),
    'doubtful': (False, 'doubtful: it decodes, but libjpeg complains; parts of the picture may be wrong'),
    'giant': (True, f'giant: more than {MAX_PIXELS:,} pixels or {MAX_BYTES >> 30} GiB'),
    'leaked': (True, 'duplicate in training and validation (same content)'),
    'two-classes': (True, 'duplicate in two classes (same content)'),
    'class-mismatch': (True, 'class that not both splits have'),
    'empty-class': (True, 'class folder without images'),
    'odd-folder': (True, 'folder that timm reads otherwise than expected'),
    'duplicate': (False, 'duplicate in one class (same content)'),
    'few-images': (False, 'class with few images'),
    'left-out': (False, 'file or folder that is not read'),
}


class Finding(NamedTuple):
    """What was found: a key of `KINDS`, where, and what."""
    kind: str
    split: str
    class_name: Optional[str]
    path: str
    detail: str


class Entry(NamedTuple):
    """What is known of a file: bytes, time of its last change in ns, SHA-256, kind of finding ('' for none), detail."""
    size: int
    changed: int
    sha256: str
    kind: str
    detail: str


class Item(NamedTuple):
    """An image: its split, its class, and its path below the dataset."""
    split: str
    class_name: str
    path: str


@dataclass
class Result:
    """The outcome of a check.

    Attributes:
        folder: The dataset.
        classes: Number of images by class, by split.
        findings: Findings, in the order of `KINDS`, then by path.
        continued: Number of files that an interrupted check had read.
    """
    folder: Path
    classes: Dict[str, Dict[str, int]]
    findings: List[Finding] = field(default_factory=list)
    continued: int = 0

    @property
    def num_images(self) -> int:
        return sum(sum(counts.values()) for counts in self.classes.values())

    @property
    def faults(self) -> List[Finding]:
        """The findings by which something is wrong."""
        return [f for f in self.findings if KINDS[f.kind][0]]


def check_data(
        folder: str,
        splits: Tuple[str, str] = ('train', 'validation'),
        class_map: Optional[str] = None,
        min_images: int = 10,
        workers: Optional[int] = None,
        restart: bool = False,
) -> Result:
    """Check a dataset of class folders, or go on with a check that was interrupted.

    Args:
        folder: Root with a folder for each split in it, or one folder of class folders.
        splits: Names of the training and the validation split; timm's synonyms are found too.
        class_map: File with the folders that count (`--class-map`).
        min_images: A class of the training split with fewer images is named.
        workers: Threads; None for one per core. Pillow and libjpeg release Python's lock while they decode.
        restart: Forget what an interrupted check had read.

    Raises:
        UsageError: The folder is not a dataset, or another process checks it.
        RunError: The check was interrupted.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f'{folder} {"is not a folder" if root.exists() else "does not exist"}: name the root of the '
                         'dataset, with train/<class>/* and val/<class>/* in it.')
    items: List[Item] = []
    trees: Dict[str, ClassTree] = {}
    left_out: List[Finding] = []
    folders = _split_folders(root, splits)
    if 'all' not in folders:
        left_out += [Finding('left-out', '', None, entry.name, 'a folder that is neither the training nor the '
                             'validation split: name it with --val-split to check it')
                     for entry in list_folder(root).folders
                     if not is_foreign([entry.name]) and not any(os.path.samefile(entry, f) for f in folders.values())]
    for split, path in folders.items():
        files: Dict[Optional[str], List[str]] = {}
        trees[split] = read_classes(path, class_map, files)
        left_out += [Finding('left-out', split, None, os.path.relpath(f, root), '') for f in files.pop(None, [])]
        items += [Item(split, name, os.path.relpath(f, root)) for name in files for f in files[name]]
    if not items:
        raise UsageError(f'{folder} has no image in it: name the root of the dataset, with train/<class>/* and '
                         'val/<class>/* in it.')
    items.sort(key=lambda item: item.path)
    with Journal(root, restart) as journal:
        continued = _check_files(root, items, journal, workers or process.cores())
        known = journal.done
        journal.remove()
    found = [Finding(known[i.path].kind, i.split, i.class_name, i.path, known[i.path].detail)
             for i in items if known[i.path].kind]
    found += _duplicates(items, known) + _class_findings(root, trees, min_images) + left_out
    order = list(KINDS)
    found.sort(key=lambda f: (order.index(f.kind), f.path, f.class_name or ''))
    return Result(root, {split: dict(tree.counts) for split, tree in trees.items()}, found, continued)


def _split_folders(root: Path, names: Tuple[str, str]) -> Dict[str, Path]:
    """Folder of each split; the root itself as 'all' if it has none of them.

    Raises:
        UsageError: There is no folder of a split that is not called as usual, or both are one.
    """
    found = {short: split_folder(root, name) for short, name in zip(('train', 'val'), names)}
    folders = {split: path for split, path in found.items() if path is not None and path.is_dir()}
    refuse(f'--{short}-split {printable(name)}: {printable(root)} has no such folder.'
           for short, name in zip(('train', 'val'), names)
           if short not in folders and len(split_names(name)) == 1)
    if len(folders) == 2 and os.path.samefile(*folders.values()):
        raise UsageError(f'--train-split {printable(names[0])} and --val-split {printable(names[1])} are one folder, '
                         f'{printable(folders["val"])}: name two.')
    return folders or {'all': root}


# --- files ------------------------------------------------------------------------------------------------------------

def _check_files(root: Path, items: List[Item], journal: 'Journal', workers: int) -> int:
    """Check what the journal does not know; the number of files that it knew."""
    todo = [item for item in items if not journal.knows(root, item.path)]
    running: Dict[Future, Item] = {}

    def finish() -> None:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            journal.add(running[future].path, future.result())
            del running[future]
            progress.step()

    pool = ThreadPoolExecutor(workers)
    with ImageProgress(len(items), len(items) - len(todo)) as progress, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of Pillow, on unusual but readable files
        try:
            for item in todo:
                while len(running) >= 4 * workers:
                    finish()
                running[pool.submit(check_file, root / item.path)] = item
            while running:
                finish()
        except KeyboardInterrupt:
            for future, item in running.items():
                if future.done() and future.exception() is None:
                    journal.add(item.path, future.result())
            raise RunError('Interrupted: run the same command again to continue.')
        finally:
            pool.shutdown(cancel_futures=True)
    return len(items) - len(todo)


def check_file(path: Path) -> Entry:
    """Read and decode a file."""
    size = changed = 0
    try:
        info = os.stat(path)
        size, changed = info.st_size, info.st_mtime_ns
    except OSError:
        pass  # `read_file` says why
    if size > MAX_BYTES:
        return Entry(size, changed, '', 'giant', f'{size / 2**30:.1f} GiB')
    try:
        data = read_file(path)
    except UnreadableImage as e:
        return Entry(size, changed, '', 'unreadable', str(e))
    if not data:
        return Entry(size, changed, '', 'empty', '')
    return Entry(size, changed, hashlib.sha256(data).hexdigest(), *_check_image(data, path.suffix.lower()))


def _check_image(data: bytes, suffix: str) -> Tuple[str, str]:
    """Kind of the finding and its detail; ('', '') for a sound image."""
    kind = None
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, (width, height) = image.format, image.size
    except Image.DecompressionBombError:
        return 'giant', 'so many pixels that Pillow refuses to decode it'
    except Exception:  # decoders raise anything; `read_image` says why, if it cannot read it either
        pass
    if kind is not None and width * height > MAX_PIXELS:
        return 'giant', f'{width} x {height} pixels'
    is_clean = _decodes_cleanly(data) if kind == 'JPEG' else None
    if not is_clean:
        try:
            read_image(data)
        except UnreadableImage as e:
            is_image = kind is not None or data.startswith(SIGNATURES) or not data.strip(b'\0')
            return 'damaged' if is_image else 'wrong-type', str(e)
    wanted = FORMATS.get(suffix)
    if kind is not None and wanted and kind not in (wanted, 'MPO' if wanted == 'JPEG' else wanted):
        return 'wrong-type', f'it is a {kind}'  # MPO: a JPEG of several pictures
    return ('doubtful', '') if is_clean is False else ('', '')


def _decodes_cleanly(data: bytes) -> Optional[bool]:
    """Whether the first fast decoder takes every pixel of a JPEG without a complaint, in half of Pillow's time.

    None if it does not know this sort of JPEG. Bytes that were changed in the middle need not lead to a complaint.
    """
    decoder = next(iter(decoders()), None)
    size = decoder.size(data) if decoder else None
    if size is None:
        return None
    width, height = max(1, size[0] // 8), max(1, size[1] // 8)
    crop = Crop((0, 0, *size), (width, height), (0, 0, width, height), 'bilinear')
    return decoder.decode(data, crop, True, None) is not None


# --- same content -----------------------------------------------------------------------------------------------------

def _duplicates(items: List[Item], known: Dict[str, Entry]) -> List[Finding]:
    """Files with the same content, each named with the first that it equals; a file of the other split comes first."""
    same: Dict[str, List[Item]] = {}
    for item in items:
        sha256 = known[item.path].sha256
        if sha256:
            same.setdefault(sha256, []).append(item)
    found = []
    for group in same.values():
        for index, item in enumerate(group[1:], 1):
            before = group[:index]
            other = next((o for o in before if o.split != item.split), None)
            if other is None:
                other = next((o for o in before if o.class_name != item.class_name), before[0])
                kind = 'duplicate' if other.class_name == item.class_name else 'two-classes'
            else:
                kind = 'leaked'
            note = f', of class {other.class_name}' if other.class_name != item.class_name else ''
            found.append(Finding(kind, item.split, item.class_name, item.path, f'same content as {other.path}{note}'))
    return found


# --- classes ----------------------------------------------------------------------------------------------------------

def _class_findings(root: Path, trees: Dict[str, ClassTree], min_images: int) -> List[Finding]:
    found = []
    for split, tree in trees.items():
        def add(kind: str, name: Optional[str], path: Any, detail: str, split=split) -> None:
            found.append(Finding(kind, split, name, os.path.relpath(path, root), detail))
        for path in [] if tree.class_map else tree.empty:
            add('empty-class', os.path.basename(path), path, '')
        for path in tree.stray:
            add('odd-folder', None, path, 'an image outside of all class folders, which timm makes a class')
        for path in tree.hidden:
            add('left-out', None, path, 'another program seems to have left this folder')
        for path in tree.loops:
            add('odd-folder', None, path, 'a link to a folder above it, which timm follows without end')
        for path in tree.dangling:
            add('odd-folder', None, path, 'a link to what does not exist, which may have been a class')
        for pair in tree.same:
            names = ' and '.join(sorted(os.path.relpath(path, root) for path in pair))
            add('odd-folder', None, tree.folder, f'{names} are one folder, by a link: its images count twice')
        for name, detail in _odd_names(root, tree):
            add('odd-folder', name, tree.folder, detail)
        for name in tree.missing:
            add('class-mismatch', name, tree.folder, 'the class map names it; it has no folder with images')
        for name, count in tree.counts.items():
            if split != 'val' and count < min_images:
                add('few-images', name, tree.folder, counted(count, 'image'))
    if len(trees) == 2:
        for split, other in (('train', 'val'), ('val', 'train')):
            for name, count in trees[split].counts.items():
                if name not in trees[other].counts:
                    alike = next((n for n in trees[other].counts if looks(n, fold=True) == looks(name, fold=True)), '')
                    told = f'; {describe_alike(name, alike, split, other)}' if alike else ''
                    found.append(Finding(
                        'class-mismatch', split, name, os.path.relpath(trees[split].folder, root),
                        f'{counted(count, "image")} in {split}, none in {other}{told}'))
    return found


def _odd_names(root: Path, tree: ClassTree) -> Iterator[Tuple[Optional[str], str]]:
    """Names of one split that `train` refuses, unless a class map names the classes: the class, and what is odd."""
    if tree.class_map:
        return
    for pair in tree.ties:
        yield None, f'the order of {pair[0]} and {pair[1]} is undefined'
    for pair in tree.alike:
        if is_written_twice(*pair):
            yield None, 'a class twice: ' + describe_alike(*pair, 'one folder', 'another')
    for path in tree.inside:
        yield None, (f'{os.path.relpath(path, root)} is inside of a class folder with images: for timm it is a class '
                     'of its own')
    for name, paths in tree.merged.items():
        folders = first_names((os.path.relpath(path, root) for path in paths), 3)
        yield name, f'{folders} are one class for timm, which takes the name of the last folder'


# --- the journal ------------------------------------------------------------------------------------------------------

class Journal:
    """What an unfinished check knows, one line of JSON a file, in the user's cache: a dataset may be read-only."""

    def __init__(self, root: Path, restart: bool):
        base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'seresnet_timm' / 'check_data'
        real = os.path.realpath(root)
        self.path = base / f'{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}.jsonl'
        self.done: Dict[str, Entry] = {}
        self._root, self._restart = root, restart
        self._file: Optional[TextIO] = None  # none where the cache cannot be written
        self._lock: Any = None
        self._due = 0.

    def __enter__(self) -> 'Journal':
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.path.with_suffix('.lock'))
            if self._restart:
                self.path.unlink(missing_ok=True)
            self.done = read_journal(self.path, Entry)
            self._file = open(self.path, 'a', encoding='ascii')
        except Timeout:
            raise UsageError(f'{printable(self._root)} is being checked by another process.'
                             f'{marker_hint(self.path.with_suffix(".lock"))}')
        except OSError as e:
            print(f'Cannot write to the cache {self.path.parent} ({e.strerror}): a check that is interrupted starts '
                  'anew. XDG_CACHE_HOME names another.', file=sys.stderr)
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):  # it costs time only
            if self._file is not None:
                self._file.close()
        if self._lock is not None:
            self._lock.release()

    def knows(self, root: Path, path: str) -> bool:
        """Whether a file was checked and has not changed since."""
        entry = self.done.get(path)
        if entry is None:
            return False
        try:
            info = os.stat(root / path)
        except OSError:
            return False
        return (entry.size, entry.changed) == (info.st_size, info.st_mtime_ns) and entry.kind != 'unreadable'

    def add(self, path: str, entry: Entry) -> None:
        self.done[path] = entry
        if self._file is None:
            return
        self._file.write(json.dumps([path, *entry]) + '\n')
        if time.monotonic() > self._due:
            self._file.flush()
            self._due = time.monotonic() + 1

    def remove(self) -> None:
        """Forget everything: the check has ended."""
        with suppress(OSError):  # it costs time only
            self.path.unlink()
