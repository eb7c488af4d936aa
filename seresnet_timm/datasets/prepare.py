"""`seresnet-timm prepare`: a copy of an image tree in which large images are smaller, so that training decodes less.

Paths, names and classes stay the same. Small images are copied byte for byte; larger ones are decoded as a training
does (`images.read_image`: EXIF orientation and colour profiles are ignored, alpha is dropped), resized, and saved in
the format of their name; those in a format that would lose too much, such as GIF, are copied too. This changes the
pixels of a training.

A file gets its name when it is complete and has been read back; then it is entered in `.prepare/journal.jsonl`, once it
has reached the disk. The next run repeats all images that are not in the journal.
"""
import ctypes
import io
import json
import os
import shutil
import stat
import sys
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Set, TextIO, Tuple

import PIL
from PIL import Image

from seresnet_timm import process
from seresnet_timm.data.images import (
    EXTENSIONS,
    ImageProgress,
    UnreadableImage,
    count_by_suffix,
    describe_left_out,
    list_folder,
    read_file,
    read_image,
)
from seresnet_timm.errors import RunError, UsageError, counted, first_names, printable
from seresnet_timm.files import exclusive, from_json, read_journal, write_json
from seresnet_timm.version import __version__

SETTINGS_FILE = 'prepare.json'
STATE_FOLDER = '.prepare'
# Formats in which an image is saved when it is made smaller
FORMATS = {
    **dict.fromkeys(('.jpg', '.jpeg', '.jpe', '.jfif'), 'JPEG'), '.png': 'PNG', '.webp': 'WEBP', '.bmp': 'BMP',
    **dict.fromkeys(('.tif', '.tiff'), 'TIFF'), '.ppm': 'PPM', '.pnm': 'PPM',
}


class Item(NamedTuple):
    """An image of the source: path below the root, bytes, and time of its last change in ns."""
    path: str
    size: int
    changed: int


class Done(NamedTuple):
    """An entry of the journal: size and time of the source, bytes of the copy, and 'copied' or 'smaller'."""
    size: int
    changed: int
    copy_size: int
    kind: str


def prepare(
        src: str,
        dst: str,
        max_side: int = 512,
        quality: int = 95,
        workers: Optional[int] = None,
) -> Dict[str, int]:
    """Make the copy, or continue an unfinished one.

    Args:
        src: Root of the tree; only read.
        dst: Root of the copy: a new or empty folder, or an unfinished or older copy of the same tree.
        max_side: Longer side in pixels that an image may have.
        quality: JPEG quality of images made smaller (chroma at half resolution, Pillow's default).
        workers: Threads; by default one per core. Pillow releases Python's lock while it computes.

    Returns:
        Number of images `copied`, made `smaller`, `unreadable`, and of those `already` done before.

    Raises:
        UsageError: A folder cannot be used, or `dst` is a copy with other settings.
        RunError: Images could not be read (all others are done), or the disk is full.
    """
    source, target = check_folders(src, dst)
    settings = {'format': 1, 'source': str(source), 'max_side': max_side, 'quality': quality,
                'resample': 'bicubic', 'subsampling': '4:2:0'}
    versions = _check_settings(target, settings)
    items, others, empty = find_images(source, target)
    left_out = count_by_suffix(others)
    if not items:
        told = f'; {describe_left_out(left_out)}' if left_out else ''
        raise UsageError(f'{src} contains no image ({", ".join(EXTENSIONS)}){told}.')
    if left_out:
        print(printable(f'{src}: {describe_left_out(left_out)}'), file=sys.stderr)
    if empty:
        print(printable(f'{src}: {counted(len(empty), "folder")} without images left out: {first_names(empty, 3)}'),
              file=sys.stderr)

    workers = workers or process.cores()
    try:
        (target / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        with exclusive(target / STATE_FOLDER / 'lock', UsageError(f'{dst} is being written by another prepare.')):
            record = {**settings, 'versions': versions, 'finished': False}
            write_json(target / SETTINGS_FILE, record)
            with Journal(target) as journal:
                already = {i.path for i in items if journal.has(i)}
                unreadable = _copy_all(source, target, items, already, journal, settings, workers)
            done = journal.done
            names = {i.path for i in items}
            stale = [p for p in done if p not in names and (target / p).exists()]
            counts = {kind: sum(done[p].kind == kind for p in names if p in done) for kind in ('copied', 'smaller')}
            counts['unreadable'] = len(unreadable)
            write_json(target / SETTINGS_FILE, {**record, 'finished': not unreadable, 'images': counts})
    except OSError as e:
        raise RunError(_write_failed(dst, e)) from e
    except KeyboardInterrupt:
        raise RunError('Interrupted: run the same command again to continue.')

    before, after = sum(i.size for i in items), sum(done[p].copy_size for p in names if p in done)
    print(f'{printable(dst)}: {counts["copied"]} images copied unchanged, {counts["smaller"]} made smaller (longer '
          f'side {max_side}, JPEG quality {quality}); {_megabytes(before)} became {_megabytes(after)}'
          + (f'; {len(already)} were done before' if already else ''))
    if counts['smaller']:
        print('A training on the copy sees other pixels than one on the source: mention it with the results.')
    if stale:
        print(printable(f'{len(stale)} images in {dst} are no longer in {src}, e.g. {stale[0]}: remove them.'),
              file=sys.stderr)
    if unreadable:
        lost = sorted({os.path.dirname(p) for p in unreadable} - {os.path.dirname(p) for p in names if p in done})
        gone = f' No image of {", ".join(lost)} is left, which changes the numbers of the classes.' if lost else ''
        raise RunError(f'{len(unreadable)} of {len(items)} images could not be read, see above; the others are in '
                       f'{dst}.{gone}')
    return {**counts, 'already': len(already)}


def check_folders(src: str, dst: str) -> Tuple[Path, Path]:
    """Real paths of both folders.

    Raises:
        UsageError: The source is not a folder, or one folder contains the other.
    """
    if not os.path.isdir(src):
        raise UsageError(f'{src} {"is not a folder" if os.path.exists(src) else "does not exist"}: name the root of '
                         'the images.')
    source, target = Path(src).resolve(), Path(dst).resolve()
    if source == target:
        raise UsageError(f'{dst} and {src} are the same folder: the copy needs another one.')
    for inner, outer in ((target, source), (source, target)):
        if outer in inner.parents:
            raise UsageError(f'{inner} is inside {outer}: the copy needs a folder outside the source.')
    if target.exists() and not target.is_dir():
        raise UsageError(f'{dst} is a file: name a folder.')
    return source, target


def _check_settings(target: Path, settings: Dict[str, Any]) -> List[Dict[str, str]]:
    """Check that a target is new, or a copy of the same source with the same settings.

    Returns:
        Versions that have written to it, and the present ones.
    """
    versions = [{'seresnet_timm': __version__, 'pillow': PIL.__version__}]
    path = target / SETTINGS_FILE
    if not path.exists():
        entries = [p.name for p in target.iterdir() if p.name != STATE_FOLDER] if target.exists() else []
        if entries:
            raise UsageError(f'{target} is not empty and not a prepared copy (no {SETTINGS_FILE}): name a new folder.')
        return versions
    try:
        old = from_json(path.read_text())
        different = [k for k in settings if old[k] != settings[k]]
        old_versions = list(old['versions'])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f'{path} cannot be read: remove {target}, or name another folder.')
    if different:
        what = ', '.join(f'{k} {old[k]}, not {settings[k]}' for k in different)
        raise UsageError(f'{target} was made with {what}: use the same settings, or name another folder.')
    return old_versions + [v for v in versions if v not in old_versions]


def find_images(source: Path, target: Path) -> Tuple[List[Item], List[str], List[str]]:
    """Images below a folder, other files and empty folders, sorted; links to folders are followed, as timm does.

    Raises:
        UsageError: A link leads into the copy, or to a folder above it.
    """
    images: List[Item] = []
    others: List[str] = []
    empty: List[str] = []

    def visit(path: str, relative: str, above: Tuple[str, ...]) -> None:
        real = os.path.realpath(path)
        if real == str(target) or target in Path(real).parents:
            raise UsageError(f'{path} leads into {target}, the copy: remove that link, or name another folder.')
        if real in above:
            raise UsageError(f'{path} is a link to a folder above it: remove it.')
        found = list_folder(path)
        for entry in found.folders:
            visit(entry.path, os.path.join(relative, entry.name), (*above, real))
        for entry in found.images:
            name = os.path.join(relative, entry.name)
            try:
                info = entry.stat()
                images.append(Item(name, info.st_size, info.st_mtime_ns))
            except OSError:  # a broken link: reported when it is read
                images.append(Item(name, 0, 0))
        others.extend(os.path.join(relative, entry.name) for entry in found.others)
        if not found.images and not found.folders and relative:
            empty.append(relative)

    try:
        visit(str(source), '', ())
    except OSError as e:
        raise UsageError(f'{e.filename} cannot be read ({e.strerror}).')
    return sorted(images), sorted(others), sorted(empty)


def sync(folder: Path) -> None:
    """Flush the file system of a folder to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        if getattr(ctypes.CDLL(None), 'syncfs', lambda _: -1)(fd) != 0:
            os.sync()
    finally:
        os.close(fd)


class Journal:
    """Images that are done, one line of JSON each, written when their copies have reached the disk."""

    def __init__(self, target: Path):
        self.target = target
        self.path = target / STATE_FOLDER / 'journal.jsonl'
        self.done: Dict[str, Done] = {}
        self._new: Dict[str, Done] = {}
        self._due = time.monotonic() + 1
        self._file: Optional[TextIO] = None

    def __enter__(self) -> 'Journal':
        self.done = read_journal(self.path, Done)
        self._file = open(self.path, 'a', encoding='ascii')
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.write()
            self._file.close()
        except OSError:
            if kind is None:
                raise
            with suppress(OSError):
                self._file.close()

    def has(self, item: Item) -> bool:
        """Whether the copy of an image exists and the image has not changed since."""
        done = self.done.get(item.path)
        if done is None or (done.size, done.changed) != (item.size, item.changed):
            return False
        try:
            info = os.lstat(self.target / item.path)
        except OSError:
            return False
        return stat.S_ISREG(info.st_mode) and info.st_size == done.copy_size

    def add(self, item: Item, copy_size: int, kind: str) -> None:
        self._new[item.path] = Done(item.size, item.changed, copy_size, kind)
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Flush the copies to disk, then the lines about them."""
        if not self._new:
            return
        start = time.monotonic()
        sync(self.target)
        self._file.writelines(json.dumps([path, *done]) + '\n' for path, done in self._new.items())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.update(self._new)
        self._new = {}
        # at most a tenth of the time goes into this
        self._due = time.monotonic() + max(1., 10 * (time.monotonic() - start))


def _copy_all(
        source: Path,
        target: Path,
        items: List[Item],
        already: Set[str],
        journal: Journal,
        settings: Dict[str, Any],
        workers: int,
) -> List[str]:
    """Copy what is not there yet.

    Returns:
        Paths of the images that could not be read; each has been reported.
    """
    temporary = target / STATE_FOLDER / 'tmp'  # one file system with the copy, so that a file moves in one step
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed run has left
    temporary.mkdir()
    unreadable: List[str] = []
    folders: Set[str] = set()
    running: Dict[Future, Item] = {}

    def finish(return_when=FIRST_COMPLETED) -> None:
        for future in wait(running, return_when=return_when).done:
            item = running.pop(future)
            try:
                journal.add(item, *future.result())
            except UnreadableImage as e:
                unreadable.append(item.path)
                journal.done.pop(item.path, None)
                (target / item.path).unlink(missing_ok=True)  # of what it was before
                progress.line(printable(f'{source / item.path}: cannot be read: {e}'))
            progress.step()

    pool = ThreadPoolExecutor(workers)
    with ImageProgress(len(items), len(already)) as progress, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of Pillow, on unusual but readable files
        try:
            for number, item in enumerate(items):
                if item.path in already:
                    continue
                folder = os.path.dirname(item.path)
                if folder not in folders:
                    _make_folder(target, folder)
                    folders.add(folder)
                while len(running) >= 4 * workers:
                    finish()
                running[pool.submit(
                    _copy, source / item.path, target / item.path, temporary / f'{number}.part',
                    settings['max_side'], settings['quality'])] = item
            while running:
                finish()
        finally:
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(temporary, ignore_errors=True)
    return unreadable


def _make_folder(target: Path, folder: str) -> None:
    """Make a folder of the copy; refuse a link that leads out of the copy, for example into the source."""
    real = os.path.realpath(target / folder)
    if real != str(target) and target not in Path(real).parents:
        raise UsageError(f'{target / folder} leads to {real}, outside the copy: remove the link.')
    os.makedirs(real, exist_ok=True)


def _copy(source: Path, target: Path, temporary: Path, max_side: int, quality: int) -> Tuple[int, str]:
    """Copy an image, or make it smaller, and read back what was written.

    Returns:
        Bytes of the copy; 'copied' or 'smaller'.

    Raises:
        UnreadableImage: The image cannot be decoded.
        OSError: The copy cannot be written.
    """
    data = read_file(source)
    rgb = read_image(data)
    kind, suffix = 'copied', target.suffix.lower()
    if max(rgb.size) > max_side and suffix in FORMATS:
        kind = 'smaller'
        scale = max_side / max(rgb.size)
        rgb = rgb.resize([max(1, round(side * scale)) for side in rgb.size], Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        if FORMATS[suffix] == 'JPEG':
            rgb.save(buffer, 'JPEG', quality=quality, subsampling='4:2:0')
        else:
            rgb.save(buffer, FORMATS[suffix], **({'quality': quality} if suffix == '.webp' else {}))
        data = buffer.getvalue()
    try:
        temporary.write_bytes(data)
        written = temporary.read_bytes()
        if written != data:
            raise OSError(f'{target} reads back differently from what was written')
        if kind == 'smaller':
            try:
                size = read_image(written).size
            except UnreadableImage as e:
                raise OSError(f'{target} does not decode: {e}') from e
            if size != rgb.size:
                raise OSError(f'{target} decodes to a size other than the written one')
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return len(data), kind


def _megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'


def _write_failed(dst: str, error: OSError) -> str:
    return (f'Cannot write to {dst} ({error.strerror or error}): all files copied so far are complete; free disk space '
            'or fix the problem, and run the same command again to continue.')
