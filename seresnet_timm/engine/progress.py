"""A progress bar on a terminal, plain log lines everywhere else."""
import os
import sys
from contextlib import contextmanager
from typing import Any, Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class _Lines:
    """Without a terminal: every log line is printed."""

    def __init__(self, logger: Any):
        self._logger = logger

    def update(self) -> None:
        pass

    def log(self, line: str, short: str, is_last: bool) -> None:
        if self._logger is not None:
            self._logger.info(line)


class _Bar:
    """On a terminal: the bar shows the latest figures; the last line of a pass is printed."""

    def __init__(self, bar: tqdm, logger: Any):
        self._bar, self._logger = bar, logger

    def update(self) -> None:
        self._bar.update()

    def log(self, line: str, short: str, is_last: bool) -> None:
        if is_last:
            self._logger.info(line)
        else:
            self._bar.set_postfix_str(short, refresh=False)


def _is_terminal() -> bool:
    """True if stderr is a terminal whose width is known. In some containers it is not, and no bar would show."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


@contextmanager
def progress_bar(total: int, name: str, logger: Any) -> Iterator[Any]:
    """Progress of one pass over a loader.

    Args:
        total: Number of batches.
        name: Label of the bar.
        logger: Where lines go; None on ranks that do not log.
    """
    if logger is None or not _is_terminal():
        yield _Lines(logger)
        return
    with logging_redirect_tqdm(), tqdm(total=total, desc=name, leave=False, dynamic_ncols=True) as bar:
        yield _Bar(bar, logger)
