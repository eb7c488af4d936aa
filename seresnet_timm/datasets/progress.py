"""Progress of a verb that goes through the images of a dataset"""
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30  # of progress, without a terminal


class ImageProgress:
    """A progress bar on a terminal, else a line every few seconds."""

    def __init__(self, total: int, start: int):
        self._bar = tqdm(total=total, initial=start, unit='image', disable=None, dynamic_ncols=True)
        self._count, self._total, self._said = start, total, time.monotonic()

    def __enter__(self) -> 'ImageProgress':
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def step(self) -> None:
        self._count += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f'{self._count} of {self._total} images', file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)
