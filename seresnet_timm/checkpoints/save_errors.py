"""Files that cannot be saved, for example because the disk is full: the training goes on, and tries again later"""
import errno
import logging
import os
import re
import time
from contextlib import contextmanager, suppress
from glob import escape, glob
from typing import Callable, Iterator, List, Optional, Tuple

from safetensors import SafetensorError

from seresnet_timm.errors import printable

_logger = logging.getLogger('train')
WRITE_ERRORS = ('PytorchStreamWriter', 'inline_container')  # torch.save raises RuntimeError if a write fails
PROBE = 1 << 20  # bytes


class SaveErrors:
    """Errors of the saves of a run.

    Attributes:
        last: Why the last save failed, as a sentence; None if it did not.
    """

    def __init__(self):
        self.last: Optional[str] = None
        self._failures: List[Tuple[int, str, float]] = []

    def take(self) -> List[Tuple[int, str, float]]:
        """Epoch, reason and time of the saves that failed since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def attempt(self, what: str, folder: str, save: Callable[[], None], epoch: int) -> bool:
        """Save; an error of the file system is logged and leaves no temporary file behind.

        Args:
            what: What is saved, for the message.
            folder: Where.
            save: Saves it, or raises OSError.
            epoch: Epoch of what is saved.

        Returns:
            Whether it was saved.
        """
        try:
            save()
        except OSError as e:
            remove_temporary_files(folder)
            self.last = f'{what} could not be saved in {printable(folder)} ({describe(e)}).'
            self._failures.append((epoch, self.last, time.time()))
            _logger.error(f'NOT SAVED: {self.last} {_kept(folder)}The training goes on, and the next save is tried as '
                          f'usual: {remedy(e)} now.')
            return False
        if self.last:
            _logger.warning(f'Saved again: {what} is in {printable(folder)}, after: {self.last}')
            self.last = None
        return True


def remedy(error: OSError) -> str:
    """What the user does about it."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return 'create the folder again, or move it back,'
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return 'move the folder away that has the name of the file'
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return 'make the folder writable'
    if error.errno in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT):
        return 'check the disk or network drive'
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return 'let more files be open (ulimit -n)'
    if error.errno == errno.EDQUOT:
        return 'free disk space, or have the quota raised,'
    if error.errno == errno.ENAMETOOLONG:
        return 'move the folder to a shorter path'
    return 'free disk space'


def explain(error: OSError) -> Optional[str]:
    """The sentence for an error of a disk or of rights, whatever was read or written; None for another error."""
    name = printable(error.filename or 'A file')
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f'{name} cannot be written ({describe(error)}): {remedy(error).rstrip(",")}.'
    if error.errno in (errno.EACCES, errno.EPERM):
        return (f'{name} cannot be read or written ({error.strerror}): give this user the rights to the file '
                'and to the folders above it.')
    if error.errno in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EROFS, errno.ENAMETOOLONG):
        return f'{name} cannot be read or written ({error.strerror}): {remedy(error)}.'
    return None


def _kept(folder: str) -> str:
    return 'The checkpoints of before are intact. ' if os.path.isdir(folder) else ''


def describe(error: OSError) -> str:
    """What the file system said."""
    text = error.strerror or str(error)
    return f'{text}: the limit of this process on the size of a file, see `ulimit -f`' if (
        error.errno == errno.EFBIG) else text


@contextmanager
def torch_errors_as_oserror(path: str) -> Iterator[None]:
    """Raise OSError where torch.save raises RuntimeError, or safetensors its own error, for a write that failed."""
    try:
        yield
    except (RuntimeError, SafetensorError) as e:
        told = re.search(r'\(os error (\d+)\)', str(e))
        reason = OSError(int(told[1]), os.strerror(int(told[1]))) if told else _reason(path)
        if reason is None and not any(words in str(e) for words in WRITE_ERRORS):
            raise
        raise reason or OSError(errno.EIO, 'the file could not be written completely') from e


def _reason(path: str) -> Optional[OSError]:
    """The error of the file system that torch does not tell: that of writing more to the file. None without one."""
    try:
        with open(path, 'ab') as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        return e
    return None


def temporary_files(folder: str) -> List[str]:
    """Files of saves that are going on, failed, or were killed."""
    patterns = ('tmp.pth.tar', 'recovery_tmp.pth.tar', '*.pth.tar.tmp')
    return [path for pattern in patterns for path in glob(os.path.join(escape(folder), pattern))]


def remove_temporary_files(folder: str) -> None:
    """Remove what a save that failed, or was killed, has left behind. No other process writes into the folder."""
    for path in temporary_files(folder):
        with suppress(OSError):
            os.unlink(path)
