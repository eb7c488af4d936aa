"""Atomic writes, locks, and temporary folders."""
import atexit
import errno
import fcntl
import glob
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Union

from filelock import FileLock, Timeout

FICLONE = 0x40049409  # ioctl of Linux: share the blocks of a file
LOCK_SUFFIX = '.lock'
# what a file system says that has no locks, no rights of its own, no flushing of folders
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NO_RIGHTS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
NO_FLUSH_OF_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.EISDIR)
MOST_BYTES_OF_TEXT = 10 ** 7  # the labels of ImageNet's images as JSON have 0.4 MB
MOST_BYTES_OF_CONFIG = 2 * 10 ** 5  # yaml needs seconds for this


@contextmanager
def suppress_errors(*codes: int) -> Iterator[None]:
    """Suppress an OSError of one of these numbers."""
    try:
        yield
    except OSError as e:
        if e.errno not in codes:
            raise


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[str]:
    """Temporary path beside `path` to write to; becomes `path` when the block ends without an error.

    The content is on disk (fsync) before it gets the name: after a crash `path` has the old content or the new.
    A device such as /dev/null or /dev/stdout is not replaced: it gets the content when the block ends.
    """
    path = Path(path)
    try:
        with _atomic_path(path) as tmp:
            yield tmp
    except OSError as e:
        if e.filename is None and e.errno is not None:  # of writing to an open file, which does not name it
            e.filename = str(path)
        raise


@contextmanager
def _atomic_path(path: Path) -> Iterator[str]:
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            tmp = os.path.join(folder, f'file{path.suffix}')
            yield tmp
            with open(tmp, 'rb') as src, open(path, 'wb') as dst:
                shutil.copyfileobj(src, dst)
        return
    fd, tmp = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=path.suffix, dir=path.parent)
    try:
        os.close(fd)
        yield tmp
        umask = os.umask(0)
        os.umask(umask)
        with suppress_errors(*NO_RIGHTS):
            os.chmod(tmp, 0o666 & ~umask)  # mkstemp's 0600 would deny other users the result
        fsync(tmp)
        os.replace(tmp, path)
    except BaseException:
        if os.path.exists(tmp):
            os.unlink(tmp)
        raise
    fsync(path.parent)


def remove_left_behind(path: Union[str, Path]) -> None:
    """Remove what `atomic_path` was writing when its process was killed. No other process must write this file."""
    path = Path(path)
    for tmp in path.parent.glob(f'.{glob.escape(path.name)}.*{glob.escape(path.suffix)}'):
        with suppress(OSError):
            tmp.unlink()


def set_aside(path: Union[str, Path]) -> str:
    """Give a damaged file another name, which is returned; one that has it already is replaced."""
    moved = f'{path}.damaged'
    os.replace(path, moved)
    return moved


@contextmanager
def temporary_folder(parent: Union[str, Path], prefix: str) -> Iterator[Path]:
    """A folder `parent/prefix...` that is removed when the block ends, or by the next call if this process is killed.

    The lock file beside it is locked while this process runs: if its lock is free, the process was killed.
    """
    parent = Path(parent)
    for path in parent.glob(f'{glob.escape(prefix)}*{LOCK_SUFFIX}'):
        if not path.is_symlink() and path.stat().st_uid == os.getuid():
            lock = try_lock(path)
            if lock is not None:
                _remove_folder(path.with_suffix(''), path, lock)
    while True:
        path = parent / f'{prefix}{secrets.token_hex(4)}{LOCK_SUFFIX}'
        try:
            lock = acquire_lock(path)
        except Timeout:  # another call checks whether it was left behind
            continue
        if path.exists() or not lock.is_locked:
            break
    folder = path.with_suffix('')
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove_folder(folder, path, lock)


def _remove_folder(folder: Path, lock_path: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock_path.unlink(missing_ok=True)
    lock.release()


def acquire_lock(path: Union[str, Path]) -> FileLock:
    """Lock a lock file, which is created if it does not exist, without waiting.

    Returns:
        The lock, to be released. It is not locked where the file system has no locks, as some network file systems.

    Raises:
        filelock.Timeout: Another process holds it.
    """
    lock = FileLock(path)
    # NotImplementedError is filelock's word for ENOSYS; Timeout is an OSError without a number
    with suppress_errors(*NO_LOCKS), suppress(NotImplementedError), warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # filelock makes a marker, see `marker_hint`
        lock.acquire(timeout=0)
    return lock


def marker_hint(path: Union[str, Path]) -> str:
    """The end of a sentence on a lock file that is held, where the kernel does not give it back; '' where it does.

    Where flock is not implemented (ENOSYS), filelock 4 writes process and machine into the file, which then stands for
    the lock. After a SIGKILL the file stays, and only the same machine can see that the process has ended.
    """
    try:
        process, machine = Path(path).read_text(encoding='ascii').split()[:2]
    except (OSError, ValueError):
        return ''
    return (f' If process {process} of {machine} has ended, remove the file {path}: this file system has no locks that '
            'end with their process.')


def try_lock(path: Union[str, Path]) -> Optional[FileLock]:
    """`acquire_lock`, but None if another process holds the lock, or may hold it."""
    try:
        lock = acquire_lock(path)
    except Timeout:
        return None
    return lock if lock.is_locked else None


@contextmanager
def exclusive(path: Union[str, Path], busy: Optional[Exception] = None) -> Iterator[bool]:
    """Hold a lock file while the block runs, and remove it then; a process that is killed gives its lock back too.

    Loader workers that this process forks do not keep the lock. The block is told whether the file is locked: some file
    systems have no locks.

    Args:
        path: The lock file.
        busy: What is raised when another process holds it; filelock.Timeout without it.
    """
    tries = 3
    while True:
        try:
            lock = acquire_lock(path)
        except Timeout:  # perhaps `is_locked` of another process, for an instant
            tries -= 1
            if not tries:
                if busy is not None:
                    raise type(busy)(f'{busy}{marker_hint(path)}') from None
                raise
            time.sleep(0.1)
            continue
        if not lock.is_locked or _locks(lock, path):
            break
        lock.release()  # its holder removed the file meanwhile
    fd = lock._context.lock_file_fd if lock.is_locked else None
    identity = os.fstat(fd)[1:3] if fd is not None else None  # inode and device

    def forget() -> None:  # filelock does so itself since version 4
        with suppress(OSError):
            if fd is not None and lock.is_locked and os.fstat(fd)[1:3] == identity:
                os.close(fd)
    os.register_at_fork(after_in_child=forget)

    def remove() -> None:
        with suppress(OSError):  # its folder became read-only, or its drive is away: it is free all the same
            os.unlink(path)
    try:
        with at_end(remove) if lock.is_locked else nullcontext():
            yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def at_end(call: Callable[[], None]) -> Iterator[None]:
    """Call a function when the block ends, or with what `atexit` calls if the process ends inside of it."""
    atexit.register(call)
    try:
        yield
    finally:
        atexit.unregister(call)
        call()


def _locks(lock: FileLock, path: Union[str, Path]) -> bool:
    """Whether a lock is on the file that has the name now."""
    fd = lock._context.lock_file_fd
    try:
        return fd is None or os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def is_locked(path: Union[str, Path]) -> bool:
    """Whether another process holds a lock file. Nothing is created."""
    if not os.path.exists(path):
        return False
    try:
        acquire_lock(path).release()
    except Timeout:
        return True
    except OSError:  # somebody else's file
        return False
    return False


def copy_file(source: Union[str, Path], target: Union[str, Path]) -> None:
    """Copy a file to a new one that shares its blocks where the file system can (Btrfs, XFS), and no fate."""
    with open(source, 'rb') as src, open(target, 'wb') as dst, suppress(OSError):
        fcntl.ioctl(dst.fileno(), FICLONE, src.fileno())
        return
    shutil.copyfile(source, target)


def fsync(path: Union[str, Path]) -> None:
    """Flush a file, or the entries of a folder, to disk. Some file systems flush no folders."""
    with suppress_errors(*(NO_FLUSH_OF_FOLDERS if os.path.isdir(path) else ())):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_journal(path: Union[str, Path], entry: Callable[..., Any]) -> Dict[str, Any]:
    """Read a journal, one line of JSON for each path, and cut off a last line that was not written whole.

    Args:
        path: The journal; it need not exist.
        entry: Makes an entry of what follows the path in its line.

    Returns:
        The entries by path. What follows a line that is not understood is dropped, from the file too.
    """
    done: Dict[str, Any] = {}
    whole = 0
    if os.path.exists(path):
        with open(path, 'rb') as f:
            for line in f:
                try:
                    name, *fields = from_json(line)
                    made = entry(*fields)
                except (ValueError, TypeError):
                    break  # the process was killed, or the disk full, while it wrote this line
                if not line.endswith(b'\n'):
                    break
                done[name] = made
                whole += len(line)
        os.truncate(path, whole)
    return done


def from_json(text: Union[str, bytes]) -> Any:
    """Content of JSON text, which may come from a stranger.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def as_json(value: Any, **kwargs: Any) -> str:
    """JSON that every reader takes: null for NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(value), allow_nan=False, **kwargs)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Union[str, Path], value: Any) -> None:
    with atomic_path(path) as tmp:
        with open(tmp, 'w') as f:
            f.write(as_json(value, indent=2) + '\n')


NO_RIGHT = 'permission denied, give this user the rights'
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)  # nothing can be there
# file systems of the kernel, which hold no files of users
_KERNEL = ('/proc', '/sys', '/sys/fs/cgroup', '/dev/pts')


def is_utf8(path: Union[str, Path]) -> bool:
    """Whether the bytes of a path are UTF-8, as torch, safetensors and the exporters need them."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def why_not_readable(path: Union[str, Path], most_bytes: Optional[int] = None, is_file: bool = False) -> Optional[str]:
    """Why a path that exists is no file or folder to read, as a clause; None if it may be one. Nothing is opened.

    Opening a pipe waits for the program that writes to it, and a device may have no end.

    Args:
        path: The path. Of one that does not exist, its reader tells.
        most_bytes: The size that no file of this purpose has.
        is_file: It must not be a folder.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode) and is_file:
            return 'it is a folder, not a file'
        if stat.S_ISDIR(found.st_mode):
            return None if os.access(path, os.R_OK | os.X_OK) else f'{NO_RIGHT} to the folder'
        if not stat.S_ISREG(found.st_mode):
            return f'it is {_kind(found.st_mode)}, not a file: write its content to a file and name that'
        if _is_of_kernel(found.st_dev):
            return 'it is a file of the kernel: write its content to a file and name that'
    except PermissionError:
        return f'{NO_RIGHT} to the folders above it'
    except OSError as e:
        return (e.strerror or str(e)).lower() if e.errno in NO_PATH else None
    except ValueError:  # a zero byte
        return None
    if not os.access(path, os.R_OK):
        return f'{NO_RIGHT} to the file'
    if most_bytes is not None and found.st_size > most_bytes:
        return f'it has {found.st_size / 1e6:,.1f} MB, and such a file has at most {most_bytes / 1e6:,.1f} MB'
    return None


def why_not_text(path: Union[str, Path], most_bytes: int = MOST_BYTES_OF_TEXT) -> Optional[str]:
    """Likewise, of a text that a user writes."""
    return why_not_readable(path, most_bytes, is_file=True)


def is_address(path: Union[str, Path]) -> bool:
    """Whether a text is the address of something elsewhere, such as https://... or s3://..."""
    return re.match(r'[A-Za-z][\w+.-]*://', str(path)) is not None


def why_missing(path: Union[str, Path], is_link_enough: bool = False) -> Optional[str]:
    """Why there is nothing at a path, as the end of a sentence that begins with it; None if there is something.

    Args:
        path: The path.
        is_link_enough: Say nothing of a link to nothing.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if is_address(path):
            return 'is an address, not a path on this machine: download it, and name the file or folder'
        if not os.path.islink(path):
            return 'does not exist: check the path'
        return None if is_link_enough else f'is a link to {os.readlink(path)}, which does not exist: check the path'
    except OSError as e:
        return f'cannot be read: {(e.strerror or str(e)).lower()}'
    except ValueError:  # a zero byte
        return 'does not exist: check the path'
    return None


def _kind(mode: int) -> str:
    return 'a pipe' if stat.S_ISFIFO(mode) else 'a socket' if stat.S_ISSOCK(mode) else 'a device'


def _why_no_stream(path: Path) -> Optional[str]:
    """Why nothing can be written to a path that is no file, as a clause: it would wait, or lose what a disk holds."""
    mode = path.stat().st_mode
    is_open_here = os.fspath(path).startswith(('/dev/std', '/dev/fd/', '/proc/self/fd/'))
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) and is_open_here:
        return None
    return f'{path} is {_kind(mode)}, not a file'


def _is_of_kernel(device: int) -> bool:
    """A device is a file system of the kernel; a folder that is not mounted, as in a chroot, is one like others."""
    return any(os.path.ismount(k) and os.stat(k).st_dev == device for k in _KERNEL)


def why_not_writable(path: Union[str, Path], is_folder: bool = True) -> Optional[str]:
    """Why a file or folder cannot be made at a path, as a clause; None if it can. Nothing is created.

    Args:
        path: The path. Folders above a folder may not exist yet.
        is_folder: It is to be a folder. A file replaces one that exists.
    """
    path = Path(path).absolute()
    try:
        if path.exists():
            if is_folder != path.is_dir():
                return f'{path} is {"a file, not a folder" if is_folder else "a folder, not a file"}'
            if not is_folder and not path.is_file():
                return _why_no_stream(path)
        if not is_folder and not path.parent.exists():
            return f'the folder {path.parent} does not exist'
        parent = next(p for p in ((path, *path.parents) if is_folder else path.parents) if os.path.lexists(p))
        if not parent.is_dir():
            return f'{parent} is not a folder'
        if _is_of_kernel(os.stat(parent).st_dev):
            return f'{parent} is a file system of the kernel, which holds no files'
        if os.statvfs(parent).f_flag & os.ST_RDONLY:
            return f'{parent} is read-only'
        if not os.access(parent, os.W_OK | os.X_OK):
            return f'{parent} is not writable'
        longest = os.pathconf(parent, 'PC_NAME_MAX')
        name = next((p for p in path.relative_to(parent).parts if len(os.fsencode(p)) > longest), None)
        return f'a name in it is longer than {longest} bytes' if name else None
    except OSError as e:
        return (e.strerror or str(e)).lower()
