"""Results of runs: the ModelZoo's table, and the curves."""
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional, Union

from seresnet_timm.errors import UsageError, first_line, printable
from seresnet_timm.runs.curves import draw_curves
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import read_record

# apex's names for the precision of a run
AMP_TYPES = {'float32': 'O0', 'amp float16': 'O1', 'amp bfloat16': 'O1 (bf16)', 'O2': 'O2'}
COLUMNS = ('NAME', 'Acc@1', 'FPS', 'Epochs', 'AMP_Type', 'Torch_Version')


@dataclass(frozen=True)
class Run:
    """A training that has finished an epoch.

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


def report(run_dirs: List[str]) -> None:
    """Print the table of runs, draw the curves of each into its folder, and print where they are."""
    runs = [read_run(d) for d in run_dirs]
    print(format_table([table_row(run) for run in runs]))
    print()
    for run in runs:
        if run.divergence:
            print(f'{printable(run.folder.path)} diverged: {run.divergence}')
        if not run.rows:
            continue
        draw_curves(run.record, run.rows, run.folder.curves)
        print(f'Curves: {printable(run.folder.curves)}')


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
        raise UsageError(f'{run_dir} has no {folder.summary.name} yet: no epoch was evaluated.')
    try:
        with open(folder.summary, newline='') as f:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
        complete = all({'epoch', 'train_loss', 'lr'} <= set(row) for row in rows)
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise UsageError(f'{folder.summary} is damaged ({first_line(e)}).')
    if not complete:
        raise UsageError(f'{folder.summary} is not the summary of a run: it lacks the column epoch, train_loss or lr.')
    if not rows:
        raise UsageError(f'{folder.summary} has no epoch in it yet.')
    return Run(folder, record, rows)


def table_row(run: Run) -> Dict[str, str]:
    """A run as a row of the ModelZoo's table. Acc@1 is the best epoch's, FPS the median of the epochs'."""
    settings = run.record['settings']
    top1 = [row['eval_top1'] for row in run.rows if math.isfinite(row.get('eval_top1', math.nan))]
    fps = [e['fps'] for e in run.record['epochs'] if e['fps'] is not None]
    return {
        'NAME': f'{settings["world_size"]}p-{settings["device"].split(":")[0].upper()}',
        'Acc@1': f'{max(top1):.3f}' if top1 else '-',
        'FPS': f'{median(fps):.2f}' if fps else '-',
        'Epochs': str(len(run.record['epochs'])),
        'AMP_Type': AMP_TYPES.get(settings['precision'].split(':')[0], settings['precision']),
        'Torch_Version': (run.record['versions'].get('torch') or '-').split('+')[0],
    }


def format_table(rows: List[Dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    widths = {c: max(len(c), *(len(r[c]) for r in rows)) for c in COLUMNS}
    lines = [{c: c for c in COLUMNS}, {c: '-' * widths[c] for c in COLUMNS}, *rows]
    return '\n'.join('| ' + ' | '.join(f'{line[c]:<{widths[c]}}' for c in COLUMNS) + ' |' for line in lines)
