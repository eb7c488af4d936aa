"""error.json: the exception that a rank leaves for torchrun, which names the file"""
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Optional

from seresnet_timm.files import from_json

OWN_ERRORS = ('UsageError', 'RunError')  # whose text tells all


ENVIRONMENT = 'TORCHELASTIC_ERROR_FILE'  # names the file of a rank


class RankError(NamedTuple):
    """An exception of a rank.

    Attributes:
        kind: Its class; '' if the file does not tell it.
        sentence: Its text.
        traceback: Its traceback; the text, if there is none.
        when: Seconds since the epoch; None if the file does not tell it.
    """
    kind: str
    sentence: str
    traceback: str
    when: Optional[int] = None

    def text(self) -> str:
        """What to print: a sentence of this package, else the traceback."""
        return self.sentence if self.kind in OWN_ERRORS else self.traceback


def record_error(error: Exception, folder: Path, local_rank: int) -> None:
    """Leave the exception of a rank for torchrun; the folder of the logs may be full or read-only by now.

    Args:
        error: The exception, while it is handled.
        folder: Folder on another disk, where the launcher looks too.
        local_rank: Number of the rank on its node.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler
    try:
        get_error_handler().record_exception(error)
    except OSError:
        with suppress(OSError):  # an empty file, which torchrun would take for JSON
            os.unlink(os.environ[ENVIRONMENT])
        os.environ[ENVIRONMENT] = str(other_error_file(folder, local_rank))
        get_error_handler().record_exception(error)


def other_error_file(folder: Path, local_rank: int) -> Path:
    """Where `record_error` leaves an exception that it cannot leave beside the logs."""
    return folder / f'error{local_rank}.json'


def parse_error(text: str) -> Optional[RankError]:
    """The exception in the content of an error.json; None if there is none."""
    try:
        message = from_json(text)['message']
        if isinstance(message, str):
            return RankError('', message, message)
        kind, _, sentence = message['message'].partition(': ')
        extra = message['extraInfo']
        return RankError(kind, sentence, str(extra['py_callstack']), int(extra['timestamp']))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
