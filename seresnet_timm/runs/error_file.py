"""error.json: the exception that a rank leaves for torchrun, which names the file"""
import json
from typing import NamedTuple, Optional

OWN_ERRORS = ('UsageError', 'RunError')  # whose text tells all


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


def parse_error(text: str) -> Optional[RankError]:
    """The exception in the content of an error.json; None if there is none."""
    try:
        message = json.loads(text)['message']
        if isinstance(message, str):
            return RankError('', message, message)
        kind, _, sentence = message['message'].partition(': ')
        extra = message['extraInfo']
        return RankError(kind, sentence, str(extra['py_callstack']), int(extra['timestamp']))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
