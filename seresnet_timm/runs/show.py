"""How times, metrics and a status are written: for the bars and lines of a training, and for `seresnet-timm watch`"""
import os
import sys
import textwrap
import time
from datetime import datetime
from typing import Any, Optional, TextIO

from tqdm import tqdm

from seresnet_timm.runs.status import Status

COLORS = {'green': 32, 'red': 31, 'yellow': 33}


def is_terminal(stream: Optional[TextIO] = None) -> bool:
    """True if a stream (stderr) is a terminal that can move its cursor, and whose width is known.

    In some containers the width is not known, and no bar would show.
    """
    stream = stream or sys.stderr
    try:
        return (stream.isatty() and os.environ.get('TERM') != 'dumb'
                and os.get_terminal_size(stream.fileno()).columns > 0)
    except (OSError, ValueError, AttributeError):  # a stream without a file
        return False


def has_color(stream: Optional[TextIO] = None) -> bool:
    """True if a stream is a terminal and the user has not set NO_COLOR."""
    return not os.environ.get('NO_COLOR') and is_terminal(stream)


def painted(text: str, color: str, stream: Optional[TextIO] = None) -> str:
    """A text in a color, where the stream has colors."""
    return f'\033[{COLORS[color]}m{text}\033[0m' if has_color(stream) else text


def width_of(stream: TextIO) -> Optional[int]:
    """Columns of a terminal; None if the stream is none."""
    return os.get_terminal_size(stream.fileno()).columns if is_terminal(stream) else None


def fitted(label: str, text: str, stream: Optional[TextIO] = None) -> str:
    """A text beside its label: one line, on a terminal (stderr) as many as it needs, none of which breaks a word."""
    columns = width_of(stream or sys.stderr)
    if columns is None:
        return label + text
    indent = len(label) if columns >= 60 else min(len(label), 4)
    return '\n'.join(textwrap.wrap(
        text, max(columns - 1, 20), initial_indent=label, subsequent_indent=' ' * indent, break_long_words=False,
        break_on_hyphens=False))


def moment(when: str) -> str:
    """A time of run.json in local time, as '2026-11-27 14:32:05'; any other text as it is."""
    try:
        return datetime.strptime(when, '%Y-%m-%dT%H:%M:%S%z').astimezone().strftime('%Y-%m-%d %H:%M:%S')
    except (TypeError, ValueError):
        return str(when)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: '1:02:03', '02:03'."""
    return tqdm.format_interval(seconds)


def clock(when: float, now: Optional[float] = None) -> str:
    """A time of today as '14:32', of another day as 'Fri 27 Nov 14:32'."""
    today = time.strftime('%Y%j', time.localtime(now))
    is_today = time.strftime('%Y%j', time.localtime(when)) == today
    return time.strftime('%H:%M' if is_today else '%a %d %b %H:%M', time.localtime(when))


def left(status: Status, now: Optional[float] = None) -> str:
    """Time left, and the clock time of the end; '' if they are not known."""
    if status.ends is None:
        return ''
    now = time.time() if now is None else now
    return f'{duration(max(0., status.ends - now))} left, ends {clock(status.ends, now)}{early_end(status, now)}'


def early_end(status: Status, now: float) -> str:
    """When `--early-stop` ends the run if no epoch is better than the best; '' if it does not."""
    return '' if status.ends_early is None else f', or {clock(status.ends_early, now)} without a new best'


def metrics(status: Status) -> str:
    """The last and the best metric; '' if there is none."""
    parts = []
    if status.value is not None:
        parts.append(f'{status.metric} {number(status.value, status.metric)}')
    if status.best is not None:
        parts.append(f'best {number(status.best, status.metric)} (epoch {status.best_epoch})')
    return ', '.join(parts)


def number(value: float, metric: Optional[str]) -> str:
    """A metric with the digits that it deserves: percent with two, losses with four."""
    return f'{value:.4f}' if metric == 'loss' else f'{value:.2f}'


class RunBar(tqdm):
    """The bar of a run: how much of it is done, when it ends, and its metric.

    Args:
        status: Status of the run, whose values it shows whenever it is drawn.
        kwargs: Arguments of tqdm.
    """

    def __init__(self, status: Status, **kwargs: Any):
        self.status = status
        color = 'green' if has_color(kwargs.get('file')) else None
        super().__init__(bar_format='{l_bar}{bar}| {text}', dynamic_ncols=True, colour=color, **kwargs)

    @property
    def format_dict(self) -> Any:
        text = ', '.join(filter(None, (left(self.status), metrics(self.status))))
        return {**super().format_dict, 'text': text or 'time left not known yet'}
