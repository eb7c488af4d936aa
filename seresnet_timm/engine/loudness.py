"""How much a run prints: `--quiet` and `--verbose`, for the loggers of both engines"""
import logging
from contextlib import contextmanager
from typing import Iterator

# lines that stay with --quiet; warnings and errors do too
KEPT = (
    'Epoch ', 'New best', 'No new best', 'Early stop', '*** Best', ' * Acc', 'Stopped', 'Interrupted', 'Nothing left')
SCRIPTS = ('train', 'validate')  # loggers of the scripts, timm's too


@contextmanager
def loudness(verbosity: int) -> Iterator[None]:
    """Print less or more while the block runs.

    Args:
        verbosity: As in RunSettings: -1 for results and warnings only, 1 for debugging too.
    """
    if not verbosity:
        yield
        return
    loggers = [logging.getLogger(name) for name in (*SCRIPTS, 'timm', 'seresnet_timm')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        if verbosity > 0:
            logger.setLevel(logging.DEBUG)
        elif logger.name in SCRIPTS:
            logger.addFilter(is_kept)
        else:
            logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.removeFilter(is_kept)
            logger.setLevel(level)


def is_kept(record: logging.LogRecord) -> bool:
    """Whether a line is printed with --quiet. A colour may come before its text."""
    text = record.getMessage()
    if text.startswith('\033['):
        text = text.partition('m')[2]
    return record.levelno > logging.INFO or text.startswith(KEPT)
