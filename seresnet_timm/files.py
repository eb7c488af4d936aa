"""Files that appear whole or not at all."""
import fcntl
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional, Union


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[str]:
    """Temporary path beside `path` to write to; becomes `path` when the block ends without an error.

    The content is on disk (fsync) before the name is: after a crash `path` holds the old content or the new.
    """
    path = Path(path)
    fd, tmp = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=path.suffix, dir=path.parent)
    os.close(fd)
    try:
        yield tmp
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(tmp, 0o666 & ~umask)  # mkstemp's 0600 would hide the result from other users
        fsync(tmp)
        os.replace(tmp, path)
    except BaseException:
        if os.path.exists(tmp):
            os.unlink(tmp)
        raise
    fsync(path.parent)


@contextmanager
def temporary_folder(parent: Union[str, Path], prefix: str) -> Iterator[Path]:
    """A folder `parent/prefix...` that goes with the block, or with the next call if this process is killed in it.

    The folder is locked while its process lives: what is found unlocked was left by one that was killed.
    """
    parent = Path(parent)
    for left in parent.glob(f'{prefix}*'):
        if left.is_dir() and not left.is_symlink() and left.stat().st_uid == os.getuid():
            lock = try_lock(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = try_lock(folder)
        if lock is not None and folder.exists():  # else another process took it for left behind, just before the lock
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def try_lock(path: Union[str, Path]) -> Optional[int]:
    """Open descriptor that holds the lock (flock) of a file or folder; None if another process does, or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def fsync(path: Union[str, Path]) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Union[str, Path], value: Any) -> None:
    with atomic_path(path) as tmp:
        with open(tmp, 'w') as f:
            json.dump(value, f, indent=2)
            f.write('\n')
