"""Trainings as `report` and `push` read them: their record, their summary, how they ended."""
import csv
import math
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from seresnet_timm.errors import RunError, UsageError, first_line, refuse
from seresnet_timm.files import atomic_path, why_not_text
from seresnet_timm.runs.error_file import parse_error
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import read_record
from seresnet_timm.runs.settings import num_epochs
from seresnet_timm.runs.status import read_status

FINISHED, STOPPED_EARLY, RUNNING, UNFINISHED, FAILED, DIVERGED = (
    'finished', 'stopped early', 'running', 'unfinished', 'failed', 'diverged')
ERROR_SECONDS = 5  # run.json may be written after the error of a rank, when the run ends
ENDING_FAULTS = ('bad_steps', 'bad_images')  # kinds that are noted only when they end a run


@dataclass(frozen=True)
class Run:
    """A training; what compares several can have one without an epoch.

    Attributes:
        folder: Its folder.
        record: Its record, as from `read_record`.
        rows: Rows of summary.csv, as numbers by column.
    """
    folder: RunFolder
    record: Dict[str, Any]
    rows: List[Dict[str, float]]

    @property
    def divergence(self) -> Optional[str]:
        """Why the run has no finite numbers at its end; None if it has."""
        if self.record['diverged']:
            return self.record['diverged']
        last = self.rows[-1] if self.rows else {}
        bad = [name for name in ('train_loss', 'eval_loss') if not math.isfinite(last.get(name, 0.))]
        return f'{bad[0]} is {last[bad[0]]} in epoch {last["epoch"]:g}.' if bad else None

    @property
    def epochs_done(self) -> int:
        return len(self.record['epochs'])

    @property
    def epochs_planned(self) -> Optional[int]:
        args = self.record['settings']['args']
        return num_epochs(args) if isinstance(args.get('epochs'), int) else None

    @property
    def state(self) -> Tuple[str, Optional[str]]:
        """How the run ended, or that it did not, and why where that is known."""
        if self.divergence:
            return DIVERGED, self.divergence
        last = self.record['epochs'][-1]['epoch'] if self.record['epochs'] else -1
        if self.record['early_stop']:
            stop = self.record['early_stop']
            return STOPPED_EARLY, f'{stop["metric"]} had not been better for {stop["patience"]} epochs.'
        if self.record['finished']:
            early = self.epochs_planned is not None and last + 1 < self.epochs_planned
            return (STOPPED_EARLY, f'after {last + 1} of {self.epochs_planned} epochs.') if early else (FINISHED, None)
        if self.folder.why_busy():
            return RUNNING, None
        ending = [f for f in self.record['faults'] if f['kind'] in ENDING_FAULTS]
        if ending and (ending[-1]['epoch'] is None or ending[-1]['epoch'] > last):
            return FAILED, ending[-1]['text']
        error = self._error_of_a_rank()
        if error:
            return FAILED, error
        try:
            status = read_status(self.folder.status)
        except UsageError as e:
            return UNFINISHED, str(e)
        if status is None or status.state not in ('failed', 'stopped'):
            return UNFINISHED, None
        if status.state == 'failed':
            return FAILED, status.text
        return UNFINISHED, f'stopped by {status.text}.' if status.text else None

    def _error_of_a_rank(self) -> Optional[str]:
        """The sentence of the error that ended a run of several processes; None if it went on, or there is none."""
        written = self.folder.record.stat().st_mtime if self.folder.record.exists() else 0
        errors = []
        for path in sorted(self.folder.logs.rglob('error.json')):
            if why_not_text(path):
                continue
            with suppress(OSError, ValueError):
                error = parse_error(path.read_text(encoding='utf-8'))
                if error and error.when and error.when >= written - ERROR_SECONDS:
                    errors.append((error.when, error.sentence.strip().split('\n')[0] or error.kind))
        return min(errors)[1] if errors else None

    @property
    def best(self) -> Optional[Dict[str, float]]:
        """The row of the highest top-1; None if there is no evaluation."""
        rows = [row for row in self.rows if math.isfinite(row.get('eval_top1', math.nan))]
        return max(rows, key=lambda row: row['eval_top1']) if rows else None

    @property
    def images_per_second(self) -> Optional[float]:
        """The median of the epochs."""
        fps = [e['fps'] for e in self.record['epochs'] if e['fps'] is not None]
        return median(fps) if fps else None


def read_runs(run_dirs: Sequence[str]) -> List[Run]:
    """Read trainings. Beside others, one may have no epoch: it failed, or has only begun.

    Raises:
        UsageError: A folder is not that of a training, or none has finished an epoch.
    """
    runs: List[Run] = []
    problems: List[UsageError] = []
    without: List[UsageError] = []
    for run_dir in run_dirs:
        try:
            runs.append(read_run(run_dir))
        except NoEpoch as e:
            runs.append(e.run)
            without.append(e)
        except UsageError as e:
            problems.append(e)
    refuse([*problems, *(without if problems or len(without) == len(runs) else ())])
    return runs


class NoEpoch(UsageError):
    """A training has not finished an epoch."""

    def __init__(self, text: str, run: Run):
        super().__init__(text)
        self.run = run


def read_run(run_dir: Union[str, Path]) -> Run:
    """Read a training: its record, of any schema, and its summary.

    Raises:
        UsageError: The folder is not that of a training, or the training has not finished an epoch.
    """
    folder = RunFolder(run_dir)
    record = read_record(folder.path)
    if record['evaluation'] is not None:
        raise UsageError(f'{run_dir} is the folder of an evaluation: name the folder of a training.')
    if not folder.summary.is_file() and record['diverged']:
        return Run(folder, record, [])
    if not folder.summary.is_file():
        raise NoEpoch(f'{run_dir} has no {folder.summary.name} yet: no epoch was evaluated.', Run(folder, record, []))
    reason = why_not_text(folder.summary)
    if reason:
        raise UsageError(f'{folder.summary} cannot be read: {reason}.')
    try:
        with open(folder.summary, newline='', encoding='utf-8-sig') as f:  # Excel writes a byte order mark
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
        complete = all({'epoch', 'train_loss', 'lr'} <= set(row) for row in rows)
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise UsageError(f'{folder.summary} is damaged ({first_line(e)}).')
    if not complete:
        raise UsageError(f'{folder.summary} is not the summary of a run: it lacks the column epoch, train_loss or lr.')
    if not all(row['epoch'] >= 0 and row['epoch'].is_integer() for row in rows):
        raise UsageError(f'{folder.summary} is damaged (an epoch is no whole number).')
    if not rows:
        raise NoEpoch(f'{folder.summary} has no epoch in it yet.', Run(folder, record, []))
    return Run(folder, record, rows)


def names_of(runs: Sequence[Run]) -> List[str]:
    """A name for each run: the last folders of its path, as many as tell it from the other runs."""
    paths = [Path(os.path.abspath(run.folder.path)).parts for run in runs]
    names: List[str] = []
    seen: Dict[str, int] = {}
    for path in paths:
        length = next((n for n in range(1, len(path)) if not any(
            other != path and other[-n:] == path[-n:] for other in paths)), len(path))
        name = os.path.join(*path[-length:])
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f'{name} ({seen[name]})')  # the same folder again
    return names


@contextmanager
def output_file(path: Union[str, Path]) -> Iterator[str]:
    """Temporary path beside `path` to write to, as `atomic_path`.

    Raises:
        RunError: It cannot be written; nothing is left of it.
    """
    try:
        with atomic_path(path) as tmp:
            yield tmp
    except OSError as e:
        raise RunError(f'{path} cannot be written ({e.strerror or first_line(e)}): free disk space or make its folder '
                       'writable, or name another file.')
