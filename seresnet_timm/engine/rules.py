"""Rules for the values of flags and of keys of a config file; `values.py` says which flag has which

This file imports neither torch nor timm.
"""
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

from seresnet_timm.errors import counted, did_you_mean, printable

MAX_REVISION = 200  # characters; the revision becomes the name of a file in the cache


class Rule:
    """What a value must be. `read` may change it; `wrong` says why it is not one."""

    def read(self, value: Any) -> Any:
        return value

    def wrong(self, value: Any) -> Optional[str]:
        """The end of a sentence that begins with the flag and its value; None if the value is right."""

    def wrong_list(self, values: Sequence[Any]) -> Optional[str]:
        """Likewise, for all values of a flag that takes several, each right by itself."""

    def missing(self, value: Any) -> Optional[str]:
        """Likewise, why there is nothing of that name."""

    def likely_wrong(self, value: Any) -> Optional[str]:
        """Likewise, of a value that is judged later; it is said where something else is refused."""

    def describe(self) -> str:
        """What to give, for `seresnet-timm help VERB FLAG`."""
        return ''


@dataclass(frozen=True)
class Number(Rule):
    """A finite number of a range.

    Attributes:
        low: The least number.
        high: The largest number.
        above: The number must be larger than this one.
        below: The number must be less than this one.
        also: Further values with a meaning of their own.
        whole: The text of a whole number, where the parser itself reads text.
        counts: How many values a list may have.
        ascending: A value of a list is not less than the one before it.
    """
    low: Optional[float] = None
    high: Optional[float] = None
    above: Optional[float] = None
    below: Optional[float] = None
    also: Tuple[Any, ...] = ()
    whole: bool = False
    counts: Tuple[int, ...] = ()
    ascending: bool = False

    def wrong(self, value: Any) -> Optional[str]:
        if value in self.also:
            return None
        if self.whole and isinstance(value, str):
            if not re.fullmatch(r'[+-]?\d+', value):
                return f'is not a whole number: give {self.advice()}'
            value = int(value)
        if not math.isfinite(value):
            return f'is not a finite number: give {self.advice()}'
        if self.low is not None and value < self.low or self.above is not None and value <= self.above:
            return f'is too small: give {self.advice()}'
        if self.high is not None and value > self.high or self.below is not None and value >= self.below:
            return f'is too large: give {self.advice()}'
        return None

    def wrong_list(self, values: Sequence[Any]) -> Optional[str]:
        if self.counts and len(values) not in self.counts:
            return f'has {counted(len(values), "value")}: give {" or ".join(map(str, self.counts))}'
        if self.ascending and any(a > b for a, b in zip(values, values[1:])):
            return 'is not in ascending order: give the lower value first'
        return None

    def describe(self) -> str:
        counts = f'{" or ".join(map(str, self.counts))} numbers, ' if self.counts else ''
        order = ', in ascending order' if self.ascending else ''
        return f'{counts}{self.advice()}{order}'

    def advice(self) -> str:
        """What to give, in words."""
        if self.low is not None and self.high is not None:
            text = f'{self.low} to {self.high}'
        else:
            parts = [(self.low, 'at least {}'), (self.above, 'more than {}'),
                     (self.high, 'at most {}'), (self.below, 'less than {}')]
            text = ' and '.join(form.format(bound) for bound, form in parts if bound is not None) or 'a number'
        return ', or '.join([text, *map(str, self.also)])


class ShareOrCount(Rule):
    """A number of images, or their share in percent: '5' or '0.1%'."""

    def describe(self) -> str:
        return 'a number of images, or a share in percent such as 0.1%'

    def read(self, value: Any) -> Any:
        return value.replace(' ', '') if isinstance(value, str) else value

    def wrong(self, value: Any) -> Optional[str]:
        found = re.fullmatch(r'([0-9]+)|([0-9]+\.?[0-9]*|\.[0-9]+)%', str(value))
        if not found:
            return 'is neither a number of images nor a share in percent: give for example 5 or 0.1%'
        return 'is more than all images: give at most 100%' if found[2] and float(found[2]) > 100 else None


@dataclass(frozen=True)
class Names(Rule):
    """One of the names that are known.

    Attributes:
        known: The names.
        empty: Empty text means that the flag is not given.
        first_part: The name is followed by settings, after a hyphen.
        ignores_case: Upper and lower case are one.
    """
    known: Tuple[str, ...]
    empty: bool = False
    first_part: bool = False
    ignores_case: bool = False

    def describe(self) -> str:
        more = ', followed by settings, e.g. rand-m7-mstd0.5' if self.first_part else ''
        return ', '.join(self.known) + more

    def wrong(self, value: Any) -> Optional[str]:
        name = value.lower() if self.ignores_case else value
        if self.first_part:
            name = name.partition('-')[0]
        if name in self.known or self.empty and not value:
            return None
        return f'is unknown: {did_you_mean(name, self.known).rstrip(".")}'


@dataclass(frozen=True)
class Text(Rule):
    """A text of a form.

    Attributes:
        form: Regular expression of the whole text.
        what: What it is, with its article.
        advice: Examples, or what to give.
        is_judged_later: A verb judges it, with more means; it is told here where something else is refused.
    """
    form: str
    what: str
    advice: str
    is_judged_later: bool = False

    def describe(self) -> str:
        return f'{self.what}: {self.advice}'

    def wrong(self, value: Any) -> Optional[str]:
        return None if self.is_judged_later else self._wrong(value)

    def likely_wrong(self, value: Any) -> Optional[str]:
        return self._wrong(value) if self.is_judged_later else None

    def _wrong(self, value: Any) -> Optional[str]:
        return None if not value or re.fullmatch(self.form, value) else f'is not {self.what}: give {self.advice}'


class GitName(Rule):
    """A branch, a tag or a commit."""

    def describe(self) -> str:
        return 'a name that git allows'

    def wrong(self, value: Any) -> Optional[str]:
        return None if is_revision(value) else 'is not a valid name: git does not allow it'


def is_revision(text: str) -> bool:
    """True if a text is a valid branch, tag or commit, by the rules of `git check-ref-format --allow-onelevel`."""
    parts = text.split('/')
    return (
        0 < len(text) <= MAX_REVISION
        and text == printable(text)
        and not re.search(r'[ ~^:?*\[\\]|\.\.|@\{', text)
        and not text.startswith('-')
        and not text.endswith('.')
        and text != '@'
        and not any(not p or p.startswith('.') or p.endswith('.lock') for p in parts)
    )


class Device(Rule):
    """A device, with or without an index."""

    def describe(self) -> str:
        return 'auto, npu, cuda (or gpu), cpu, or one with an index: npu:0'

    def wrong(self, value: Any) -> Optional[str]:
        if re.fullmatch(r'auto|(npu|cuda|gpu|cpu)(:\d+)?', value):
            return None
        return 'is unknown: use auto, npu, cuda or cpu, or one with an index (npu:0)'


class FilePath(Rule):
    """A path, or a name that may be one. `~` is the home folder, as in a shell, which does not look behind `=`."""

    def describe(self) -> str:
        return 'a path or a name'

    def read(self, value: Any) -> Any:
        scheme, colon, rest = value.partition(':')
        if colon and scheme == 'local-dir':
            return scheme + colon + os.path.expanduser(rest)
        return os.path.expanduser(value)

    def wrong(self, value: Any) -> Optional[str]:
        if '\0' in value:
            return 'holds a null character'
        reason = self.why_not_readable(value.removeprefix('local-dir:'))
        return f'cannot be read: {reason}' if reason else None

    def why_not_readable(self, path: str) -> Optional[str]:
        from seresnet_timm.files import why_not_readable  # here, so that a Python without packages gets its answer
        return why_not_readable(path)


@dataclass(frozen=True)
class Existing(FilePath):
    """A file or folder that is there.

    Attributes:
        also: Words with a meaning of their own; the empty one says that nothing is given.
        is_link_enough: A link to nothing, or a file without rights, is not missed: it counts as an image that cannot be
            read.
    """
    also: Tuple[str, ...] = ()
    is_link_enough: bool = False

    def why_not_readable(self, path: str) -> Optional[str]:
        reason = super().why_not_readable(path)
        is_counted = self.is_link_enough and os.path.isfile(path) and not os.access(path, os.R_OK)
        return None if is_counted else reason

    def missing(self, value: Any) -> Optional[str]:
        if not isinstance(value, str) or value in self.also:
            return None
        from seresnet_timm.files import why_missing
        return why_missing(value.removeprefix('local-dir:'), self.is_link_enough)


@dataclass(frozen=True)
class Model(Existing):
    """A file or folder that is there, or a model elsewhere: on the Hub or, where they are taken, by timm's name.

    Attributes:
        takes_names: timm's names are taken.
        is_judged_later: The verb says itself which of several are missing, after what it says of the others.
    """
    takes_names: bool = True
    is_judged_later: bool = False

    def missing(self, value: Any) -> Optional[str]:
        return None if self.is_judged_later else self._missing(value)

    def likely_wrong(self, value: Any) -> Optional[str]:
        return self._missing(value) if self.is_judged_later else None

    def _missing(self, value: Any) -> Optional[str]:
        reason = super().missing(value)
        if reason is None or _is_path(value):
            return reason
        if ':' in value or '/' in value:
            return None
        return ModelName().missing(value) if self.takes_names else reason


SUFFIXES_OF_CHECKPOINTS = ('.pth', '.pt', '.tar', '.pkl', '.bin', '.ckpt', '.safetensors', '.npz', '.npy')


def _is_path(value: str) -> bool:
    """Whether a text can only be a path: neither timm's name of a model nor an address."""
    if not value or value.startswith(('/', './', '../', 'local-dir:')):
        return True
    first, slash, _ = value.partition('/')
    return ':' not in value and (value.endswith(SUFFIXES_OF_CHECKPOINTS) or bool(slash) and '.' not in first)


class ModelName(Rule):
    """timm's name of a network. Of some names only timm itself can judge, later."""

    def describe(self) -> str:
        return "timm's name of a network"

    def missing(self, value: Any) -> Optional[str]:
        from seresnet_timm.engine import timm_names
        return timm_names.why_no_model(value) if isinstance(value, str) else None


class TextFile(FilePath):
    """A text that a user writes."""

    def describe(self) -> str:
        return 'a text file'

    def why_not_readable(self, path: str) -> Optional[str]:
        from seresnet_timm.files import why_not_text
        return why_not_text(path)


class ExistingText(Existing, TextFile):
    """Likewise, that is there."""


class ConfigFile(TextFile):
    """A YAML file of settings."""

    def describe(self) -> str:
        return 'a YAML file'

    def why_not_readable(self, path: str) -> Optional[str]:
        from seresnet_timm.files import MOST_BYTES_OF_CONFIG, why_not_text
        return why_not_text(path, MOST_BYTES_OF_CONFIG)


MAX_NAME = 255  # bytes of a name, on all usual file systems


class FolderName(Rule):
    """The name of a folder that is made, perhaps in others."""

    def wrong(self, value: Any) -> Optional[str]:
        if '\0' in value:
            return 'holds a null character'
        if any(len(os.fsencode(part)) > MAX_NAME for part in value.split(os.sep)):
            return f'is longer than {MAX_NAME} bytes, which file systems allow'
        return None


@dataclass(frozen=True)
class Output(FilePath):
    """A file or folder to write.

    Attributes:
        is_folder: It is a folder.
        holds_runs: It holds the folders of runs: if it exists, that of the run tells whether it can be written.
        may_be_empty: Empty text means that the flag is not given.
    """
    is_folder: bool = True
    holds_runs: bool = False
    may_be_empty: bool = False

    def describe(self) -> str:
        return 'a folder to write to' if self.is_folder else 'a file to write'

    def wrong(self, value: Any) -> Optional[str]:
        if '\0' in value:
            return 'holds a null character'
        if self.holds_runs and os.path.isdir(value) and os.access(value, os.X_OK):
            return None
        from seresnet_timm.files import why_not_writable  # here, so that a Python without packages gets its answer
        if not value:
            return None if self.may_be_empty else f'is not a name: give {self.describe()}'
        reason = why_not_writable(value, self.is_folder)
        return f'cannot be written: {reason}; name another' if reason else None
