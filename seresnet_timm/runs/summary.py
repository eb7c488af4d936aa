"""summary.csv: one row per epoch; a row that cannot be written, for example to a full disk, is written later"""
import csv
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional

from timm.utils import update_summary
from timm.utils.summary import trim_summary

from seresnet_timm.errors import UsageError, counted, first_line, printable
from seresnet_timm.files import atomic_path, set_aside

_logger = logging.getLogger('train')


def trim(path: Path, start_epoch: int, saved: Optional[str] = None) -> None:
    """Drop the rows of a run that goes on from its start, by timm's `trim_summary`.

    Args:
        path: The file.
        start_epoch: Epoch at which the run goes on.
        saved: The file as the checkpoint holds it; its rows take the place of those that are missing or damaged.

    Raises:
        UsageError: The file is no table, and the checkpoint holds none.
    """
    moved = ''
    try:
        trim_summary(str(path), start_epoch)
    except (ValueError, csv.Error) as e:  # UnicodeDecodeError is a ValueError
        if not saved:
            raise UsageError(f'{printable(path)} is no table of a run ({first_line(e)}): move it away, to start a '
                             'new one.')
        moved = f' (moved to {printable(set_aside(path))})'
    lines = (saved or '').splitlines()
    if not set(lines) <= set(read(path).splitlines()):
        _logger.warning(f'Rows of {printable(path)} are missing or damaged{moved}: they are those that the checkpoint '
                        'holds.')
        with atomic_path(path) as tmp, open(tmp, 'w', newline='') as file:
            file.write(str(saved))


def read(path: Path) -> str:
    """The text of the file; '' without one."""
    with suppress(OSError, ValueError), open(path, newline='') as file:
        return file.read()
    return ''


class Summary:
    """Writes rows by timm's `update_summary`.

    Attributes:
        error: Why rows are missing in the file, as a sentence; None if none are.
    """

    def __init__(self):
        self.error: Optional[str] = None
        self._rows: List[Dict[str, Any]] = []
        self._whole: Optional[int] = None  # bytes of the file before a row that could not be written

    def add(self, filename: str, log_wandb: bool = False, **row) -> None:
        """Add a row, after those that could not be written before.

        Args:
            filename: The file.
            log_wandb: Log the row to W&B too.
            row: Further arguments of timm's function.
        """
        self._rows.append(dict(row, log_wandb=log_wandb))
        self.error = None
        while self._rows:
            try:
                self._remove_half_row(filename)
                update_summary(filename=filename, **self._rows[0])
            except OSError as e:
                self._rows[0]['log_wandb'] = False  # it was logged before the file was opened
                with suppress(OSError):
                    self._remove_half_row(filename)
                self.error = f'{counted(len(self._rows), "row")} of {filename} could not be written ({e.strerror}).'
                _logger.error(f'NOT SAVED: {self.error} They are written after the next epoch.')
                return
            del self._rows[0]
            self._whole = None

    def _remove_half_row(self, filename: str) -> None:
        if self._whole is None:
            self._whole = os.path.getsize(filename) if os.path.exists(filename) else 0
        elif os.path.exists(filename) and os.path.getsize(filename) > self._whole:
            os.truncate(filename, self._whole)
