"""Errors that a user can act on. The command line prints their one sentence instead of a traceback."""
import atexit
import contextlib
import difflib
import os
import re
import shlex
import sys
import unicodedata
from typing import Callable, Iterable, Iterator, List, Optional, Sequence, TextIO, Union


class UsageError(Exception):
    """The request is wrong: what, where, and what to do. Exit code 2.

    Attributes:
        problems: The sentences, where there are several.
    """

    exit_code = 2
    problems: Sequence[str] = ()


class RunError(Exception):
    """The request was right and the run failed: what happened, and what to do. Exit code 1."""

    exit_code = 1

    def __init__(self, text: str = ''):
        # torch raises the error of a loader's worker process again, with the worker's traceback as its text
        if text.startswith('Caught RunError in '):
            text = text.rpartition(f'{__name__}.RunError: ')[2].strip()
        super().__init__(text)


def refuse(problems: Iterable[Union[str, UsageError]]) -> None:
    """Refuse a request for all its problems at once; do nothing if there are none.

    Raises:
        UsageError: There is a problem.
    """
    found: List[str] = []
    for problem in problems:
        found += [problem] if isinstance(problem, str) else problem.problems or [str(problem)]
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        raise UsageError(found[0])
    if found:
        error = UsageError(f'{len(found)} problems:\n' + '\n'.join(f'  - {p}' for p in found))
        error.problems = tuple(found)
        raise error


@contextlib.contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """Raise a UsageError of the block with each of its sentences changed."""
    try:
        yield
    except UsageError as e:
        refuse([change(problem) for problem in e.problems or [str(e)]])


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


def counted(count: int, name: str, plural: str = '') -> str:
    """A number of things: '1 process', '2 processes'; `plural` where it is not the name with an s."""
    return f'{count:,} {name if count == 1 else plural or f"{name}s"}'


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop, for use in a sentence; its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip('.') if lines else type(error).__name__


def print_any_text() -> None:
    """Let stdout and stderr print text that their encoding does not have, such as names of any bytes: as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            with contextlib.suppress(OSError):  # a stream whose file was replaced
                stream.reconfigure(errors='backslashreplace')


def print_closing(*values: object) -> None:
    """Print the closing lines of a run that is saved. A stdout that does not take them is no failure of the run."""
    try:
        print(*values, flush=True)
    except OSError as e:
        discard(sys.stdout)
        with contextlib.suppress(OSError):
            print(f'Note: the closing lines cannot be printed to stdout ({e.strerror}).', file=sys.stderr, flush=True)


def keep_exit_code() -> None:
    """Let this process end with its exit code also if stderr takes no more text; Python would end with 120."""
    def flush() -> None:
        try:
            sys.stderr.flush()
        except OSError:
            discard(sys.stderr)
    atexit.register(flush)


def discard(stream: TextIO) -> None:
    """Drop what stdout or stderr still holds, so that Python does not try again to write it at its end, and fails."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# controls (C0, C1, DEL), invisible marks such as those that reorder text, line and paragraph separators, surrogates
_ESCAPED_CATEGORIES = ('Cc', 'Cf', 'Zl', 'Zp', 'Cs')
_JOINERS = '\u200c\u200d'  # words of several languages hold them


def printable(text: object) -> str:
    """A text for one line of output: control characters become escapes of Python, all other text is kept.

    A name in a file of unknown origin may contain terminal commands, or marks that show the text in another order.
    """
    return ''.join(c.encode('unicode_escape').decode() if _is_control(c) else c for c in str(text))


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in _ESCAPED_CATEGORIES and char not in _JOINERS


# of environment variables
_SECRET_VARIABLE = re.compile('TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE', re.IGNORECASE)
_SECRETS = (
    (re.compile(r'\bhf_(?!hub_)\w{4,}'), 'hf_***'),  # names of settings begin with hf_hub_
    (re.compile(r'//[^/\s@]+@'), '//***@'),
    (re.compile(r'(https?://[^\s?\'"]+)\?[^\s\'")]+'), r'\1'),
)


SHORTEST_SECRET = 6  # characters


def is_secret(variable: str) -> bool:
    """Whether an environment variable may hold a secret, by its name."""
    return bool(_SECRET_VARIABLE.search(variable))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """A text without secrets that are known, tokens, passwords in addresses, and query strings of signed addresses."""
    for secret in secrets:
        if len(secret) < SHORTEST_SECRET:  # it would be found in words
            continue
        text = text.replace(secret, '***')
    for pattern, to in _SECRETS:
        text = pattern.sub(to, text)
    return text


def shell_line(words: Iterable[str]) -> str:
    """A command for bash or zsh to be pasted from one printed line: what would be escaped there is quoted as $'...'."""
    return ' '.join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    encoding = getattr(sys.stderr, 'encoding', None) or 'utf-8'
    if printable(word) == word and word.encode(encoding, 'replace').decode(encoding) == word:
        return shlex.quote(word)
    plain = ''.join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f'\\{b:03o}' for b in os.fsencode(word))
    return f"$'{plain}'"


def note_replaced(path: Optional[str], flag: str = '') -> None:
    """Say on stderr that a file exists which a command is about to replace."""
    if path and os.path.isfile(path):
        print(f'Note: {flag} {printable(path)} exists and is replaced.'.replace('  ', ' '), file=sys.stderr)


def letter_widths(text: str) -> int:
    """The width of a text in Latin letters."""
    return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)
