"""Results of runs: the ModelZoo's table, and the curves."""
import csv
from pathlib import Path
from statistics import median
from typing import Any, Dict, List

from seresnet_timm.errors import UsageError
from seresnet_timm.runs.curves import draw_curves
from seresnet_timm.runs.record import read_record

# apex's names for the precision of a plan
AMP_TYPES = {'float32': 'O0', 'amp float16': 'O1', 'amp bfloat16': 'O1 (bf16)', 'O2': 'O2'}
COLUMNS = ('NAME', 'Acc@1', 'FPS', 'Epochs', 'AMP_Type', 'Torch_Version')


def report(run_dirs: List[str]) -> None:
    """Print the table of runs, draw each run's curves beside its `summary.csv`, and say where they are."""
    runs = [read_run(d) for d in run_dirs]
    print(format_table([table_row(run) for run in runs]))
    print()
    for run in runs:
        path = Path(run['dir']) / 'curves.png'
        draw_curves(run, path)
        print(f'Curves: {path}')


def read_run(run_dir: str) -> Dict[str, Any]:
    """Read a run: its record, and the rows of `summary.csv` as numbers by column.

    Raises:
        UsageError: The folder is not that of a run, or the run has not finished an epoch.
    """
    record = read_record(run_dir)
    path = Path(run_dir) / 'summary.csv'
    if not path.is_file():
        raise UsageError(f'{run_dir} holds no summary.csv yet: no epoch was evaluated.')
    with open(path, newline='') as f:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    if not rows:
        raise UsageError(f'{path} has no epoch in it yet.')
    return {'dir': run_dir, 'record': record, 'rows': rows}


def table_row(run: Dict[str, Any]) -> Dict[str, str]:
    """A run as a row of the ModelZoo's table. Acc@1 is the best epoch's, FPS the median of the epochs'."""
    plan, epochs = run['record']['plan'], run['record']['epochs']
    top1 = [row['eval_top1'] for row in run['rows'] if 'eval_top1' in row]
    return {
        'NAME': f'{plan["world_size"]}p-{plan["device"].split(":")[0].upper()}',
        'Acc@1': f'{max(top1):.3f}' if top1 else '-',
        'FPS': f'{median(e["fps"] for e in epochs):.2f}',
        'Epochs': str(len(epochs)),
        'AMP_Type': AMP_TYPES.get(plan['precision'].split(':')[0], plan['precision']),
        'Torch_Version': run['record']['versions']['torch'].split('+')[0],
    }


def format_table(rows: List[Dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    widths = {c: max(len(c), *(len(r[c]) for r in rows)) for c in COLUMNS}
    lines = [{c: c for c in COLUMNS}, {c: '-' * widths[c] for c in COLUMNS}, *rows]
    return '\n'.join('| ' + ' | '.join(f'{line[c]:<{widths[c]}}' for c in COLUMNS) + ' |' for line in lines)
