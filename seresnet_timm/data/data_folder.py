"""A data folder that is gone for a while, such as a network drive: wait for it, and take none of its images for bad

A file that is missing while its folder is there is a bad image. The folder is gone if it cannot be found itself, or if
the error is one of a connection. Who reads waits: a thread or a worker process, of each rank. One of those of a rank
says so, once, and again when the folder is back. Waiting is a sign of life for `--hang-timeout`.
"""
import errno
import logging
import multiprocessing
import os
import sys
import threading
import time
from typing import Any, Callable, List, NamedTuple, Optional

import torch

from seresnet_timm.data.images import UnreadableImage
from seresnet_timm.errors import printable
from seresnet_timm.step import heartbeat

_logger = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.  # seconds between two tries
OF_CONNECTION = frozenset(getattr(errno, name) for name in (
    'ESTALE', 'ENOTCONN', 'ETIMEDOUT', 'EHOSTDOWN', 'EHOSTUNREACH', 'ENETDOWN', 'ENETUNREACH', 'ECONNREFUSED',
    'ECONNRESET', 'ECONNABORTED', 'EREMOTEIO', 'ESHUTDOWN') if hasattr(errno, name))
NO_FILES = (errno.EMFILE, errno.ENFILE)
MAX_WAITS = 64  # that are remembered until they are taken


class DataFolderGone(RuntimeError):
    """The data folder did not come back in time; the text is a sentence."""

    def __init__(self, text: str = ''):
        # torch raises the error of a loader's worker process again, with the worker's traceback as its text
        super().__init__(text.rpartition(f'{__name__}.{type(self).__name__}: ')[2].strip())


class Wait(NamedTuple):
    """A time without the data folder.

    Attributes:
        began: Seconds since 1970.
        seconds: How long it was.
        came_back: False if it was longer than the limit.
    """
    began: float
    seconds: float
    came_back: bool

    def describe(self) -> str:
        end = '.' if self.came_back else ', and the run ended.'
        return f'The data folder was gone for {self.seconds:.1f} s{end}'


class DataFolder:
    """Reads files of a data folder, and waits for it; shared by all workers of a process.

    Args:
        timeout: Seconds to wait, at most; 0 for none.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        # when it was found to be gone, which thread says so, the last sign of one that waits
        self._gone = torch.zeros(3, dtype=torch.float64).share_memory_()
        self._waits = torch.zeros((MAX_WAITS, len(Wait._fields)), dtype=torch.float64).share_memory_()
        self._num_waits = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._taken = 0

    def read(self, read: Callable[[], Any], place: Optional[str]) -> Any:
        """Result of a function that reads a file, once the folder is there.

        Args:
            read: The function.
            place: Folder, or archive, of the file; None if not known.

        Raises:
            UnreadableImage: The folder is there, and the file cannot be read.
            DataFolderGone: The folder has not come back.
        """
        pause, has_waited, is_second = FIRST_PAUSE, False, False
        while True:
            try:
                result = read()
                break
            except UnreadableImage as e:
                reason = self._why_gone(e.__cause__, place)
                if reason is None and (is_second or not isinstance(e.__cause__, OSError)):
                    if has_waited:
                        self._say_back()
                    raise
                if reason is None:  # the folder may have come back after the file was tried
                    is_second = True
                    continue
            is_second = False
            self._wait(reason, pause)
            pause, has_waited = min(2 * pause, LONGEST_PAUSE), True
        if has_waited:
            self._say_back()
        return result

    def take_waits(self) -> List[Wait]:
        """The waits since the last call."""
        count = min(int(self._num_waits), MAX_WAITS)
        waits = [Wait(began, seconds, bool(back)) for began, seconds, back in self._waits[self._taken:count].tolist()]
        self._taken = count
        return waits

    @staticmethod
    def _why_gone(error: Optional[BaseException], place: Optional[str]) -> Optional[str]:
        """What is gone and why, e.g. '/data (Stale file handle)'; None if it is there."""
        if not isinstance(error, OSError) or place is None:
            return None
        if error.errno in NO_FILES:
            raise error
        try:
            os.stat(place)
        except OSError as e:
            if e.errno in NO_FILES:
                raise
            while not os.path.exists(os.path.dirname(place)) and os.path.dirname(place) != place:
                place = os.path.dirname(place)
            return f'{printable(place)} ({e.strerror})'
        return f'{printable(place)} ({error.strerror})' if error.errno in OF_CONNECTION else None

    def _wait(self, what: str, pause: float) -> None:
        """Pause before the next try.

        Raises:
            DataFolderGone: It was the last one.
        """
        now = time.monotonic()
        is_first = not self._gone[0] or now - self._gone[2] > 3 * LONGEST_PAUSE
        if is_first:
            self._gone.copy_(torch.tensor([now, threading.get_native_id(), now], dtype=torch.float64))
            time.sleep(FIRST_PAUSE / 2)  # of several that find it at the same time, the last one speaks
        seconds = now - float(self._gone[0])
        if seconds >= self.timeout:
            self._end_wait(came_back=False)
            since = f' for {seconds:.0f} s' if self.timeout else ''
            raise DataFolderGone(
                f'The data folder is gone{since}: {what}. Check its disk or network drive, or wait longer for it '
                f'(--data-timeout, {self.timeout:g} s now).')
        if is_first and self._speaks():
            _logger.warning(f'The data folder is gone: {what}. Waiting for it, for {self.timeout:g} s at most '
                            '(--data-timeout).')
        pause = min(pause, max(0.01, self.timeout - seconds))
        end = time.monotonic() + pause
        while time.monotonic() < end:
            self._gone[2] = time.monotonic()
            heartbeat.wait()
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                sys.exit(1)  # a worker whose process was killed
            time.sleep(min(1., max(0., end - time.monotonic())))

    def _speaks(self) -> bool:
        return int(self._gone[1]) == threading.get_native_id()

    def _say_back(self) -> None:
        if self._gone[0] and self._speaks():
            seconds = self._end_wait(came_back=True)
            _logger.warning(f'The data folder is back after {seconds:.1f} s.')

    def _end_wait(self, came_back: bool) -> float:
        """Note a wait that this thread spoke of; its seconds."""
        seconds = time.monotonic() - float(self._gone[0])
        if self._speaks():
            index = int(self._num_waits)
            if index < MAX_WAITS:
                self._waits[index] = torch.tensor([time.time() - seconds, seconds, came_back], dtype=torch.float64)
            self._num_waits += 1
            self._gone[1] = 0.
            if came_back:
                self._gone[0] = 0.
        return seconds
