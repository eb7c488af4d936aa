"""Errors that a user can act on. The command line prints their one sentence instead of a traceback."""
import difflib
import unicodedata
from pathlib import Path
from typing import Iterable, Optional, Union

_JOINERS = '\u200c\u200d'  # parts of words in some scripts, and of emojis


class UsageError(Exception):
    """The request is wrong: what, where, and what to do. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The request was right and the run failed: what happened, and what to do. Exit code 1."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str], fallback: Optional[str] = None) -> str:
    """The end of a sentence on an unknown name: the nearest known one, else `fallback`, else all known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f'did you mean {close[0]}?'
    return fallback or f'there are {", ".join(known)}.'


def first_names(names: Iterable[str], limit: int) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def printable(text: object) -> str:
    """A text of a file, as a terminal may show it: control characters and the like become escapes (`\\x1b`, `\\n`).

    Names of weights, classes, folders and architectures can come from a stranger. An escape sequence in them could
    change what the terminal shows; a line break could fake a line of a log.
    """
    return ''.join(c if c.isprintable() or c in _JOINERS else c.encode('unicode_escape').decode() for c in str(text))


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop, for use in a sentence; its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip('.') if lines else type(error).__name__


# Controls (C0, C1, DEL), line and paragraph separators, halves of surrogate pairs; and the marks that reorder text.
_ESCAPED_CATEGORIES = ('Cc', 'Zl', 'Zp', 'Cs')
_BIDI_CONTROLS = '\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'


def printable(text: str) -> str:
    r"""A text for one line of a terminal, a card or HTML: control characters as \x.. or \u.., all other text as it is.

    Names in files that others wrote may hold terminal commands or marks that show the text in another order.
    """
    return ''.join(_escape(c) if _is_control(c) else c for c in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in _ESCAPED_CATEGORIES or char in _BIDI_CONTROLS


def _escape(char: str) -> str:
    return f'\\x{ord(char):02x}' if ord(char) < 256 else f'\\u{ord(char):04x}'


def way_on(folder: Optional[Union[str, Path]]) -> str:
    """The end of a sentence on a failed run: how to go on with what it has saved, if anything."""
    last = Path(folder) / 'last.pth.tar' if folder is not None else None
    return f' Go on with --resume {last}' if last is not None and last.exists() else ''
