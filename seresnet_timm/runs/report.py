"""The verb `report`: results tables, curves and files of runs."""
import sys
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, Sequence, TextIO

from seresnet_timm.errors import RunError, note_replaced, printable
from seresnet_timm.runs import read, report_rows
from seresnet_timm.runs.curves import Curves, draw_sheet
from seresnet_timm.runs.read import Run, output_file, read_run
from seresnet_timm.runs.record import read_record

__all__ = ['Run', 'format_table', 'read_record', 'read_run', 'report', 'table_row']  # for push and the model card too

# apex's names for the precision of a run
AMP_TYPES = {'float32': 'O0', 'amp float16': 'O1', 'amp bfloat16': 'O1 (bf16)', 'O2': 'O2'}
COLUMNS = ('NAME', 'Acc@1', 'FPS', 'Epochs', 'AMP_Type', 'Torch_Version')
KINDS = ('markdown', 'csv', 'json')
TITLES = {'markdown': 'Markdown', 'csv': 'CSV', 'json': 'JSON'}


def report(run_dirs: Sequence[str], files: Mapping[str, Optional[str]] = MappingProxyType({})) -> None:
    """Read runs, print their tables, and write files and pictures.

    Args:
        run_dirs: Folders of the runs.
        files: File by `KINDS`, '-' for stdout instead of the tables; and 'curves', the picture of all runs, None for
            one in the folder of each.

    Raises:
        UsageError: A run cannot be read, or matplotlib is missing.
        RunError: A file cannot be written.
    """
    runs = read.read_runs(run_dirs)
    names = read.names_of(runs)
    rows = [report_rows.row_of(run, name) for run, name in zip(runs, names)]
    texts = {
        'markdown': lambda: report_rows.as_markdown(rows) + '\n',
        'csv': lambda: report_rows.as_csv(rows),
        'json': lambda: report_rows.as_document(runs, rows, [None] * len(runs))}
    on_stdout = next((kind for kind in KINDS if files.get(kind) == '-'), None)
    told = sys.stderr if on_stdout else sys.stdout
    if on_stdout:
        report_rows.print_text(texts[on_stdout](), is_csv=on_stdout == 'csv')
    else:
        print(format_table([table_row(run) for run in runs]))
        print()
        print(report_rows.as_markdown(rows))
        print()
    for run, row in zip(runs, rows):
        if row['reason']:
            print(f'{printable(run.folder.path)} {_ended(row)} {printable(row["reason"])}', file=told)
    for kind in KINDS:
        path = files.get(kind)
        if path is not None and path != '-':
            note_replaced(path, f'--{kind}')
            write_text(path, texts[kind]())
            print(f'{TITLES[kind]}: {printable(path)}', file=told)
    draw(runs, names, files.get('curves'), told)


def write_text(path: str, text: str) -> None:
    with output_file(path) as tmp, open(tmp, 'w', encoding='utf-8', errors='surrogateescape', newline='') as f:
        f.write(text)


def _ended(row: Dict[str, Any]) -> str:
    words = {read.DIVERGED: 'diverged:', read.FAILED: 'failed:', read.STOPPED_EARLY: 'stopped early,'}
    return words[row['state']]


def draw(runs: List[Run], names: List[str], target: Optional[str], told: TextIO) -> None:
    """Draw the curves: of each run into its folder, and those of several on one sheet; or only the sheet, to a file."""
    drawable = [Curves(name, run.record, run.rows) for run, name in zip(runs, names) if run.rows]
    if not drawable:
        return
    if target is not None:
        note_replaced(target, '--curves')
        sheets = {target: drawable}
    else:
        folders = {run.folder.curves: [Curves(name, run.record, run.rows)]
                   for run, name in zip(runs, names) if run.rows}
        sheets = {str(path): curves for path, curves in folders.items()}
        if len(drawable) > 1:
            sheets[str(next(run for run in runs if run.rows).folder.comparison)] = drawable
    for path, curves in sheets.items():
        try:
            with output_file(path) as tmp:
                draw_sheet(curves, tmp)
        except RunError as e:
            raise RunError(f'{e}'.replace('another file', 'another file with --curves FILE'))
        print(f'Curves: {printable(path)}' if len(curves) == 1 or target else f'Curves of all runs: {printable(path)}',
              file=told)


def table_row(run: Run) -> Dict[str, str]:
    """A run as a row of the ModelZoo's table. Acc@1 is the best epoch's, FPS the median of the epochs'."""
    settings, best, fps = run.record['settings'], run.best, run.images_per_second
    return {
        'NAME': f'{settings["world_size"]}p-{settings["device"].split(":")[0].upper()}',
        'Acc@1': f'{best["eval_top1"]:.3f}' if best else '-',
        'FPS': f'{fps:.2f}' if fps is not None else '-',
        'Epochs': str(run.epochs_done),
        'AMP_Type': AMP_TYPES.get(settings['precision'].split(':')[0], settings['precision']),
        'Torch_Version': (run.record['versions'].get('torch') or '-').split('+')[0],
    }


def format_table(rows: List[Dict[str, str]]) -> str:
    """Rows as the ModelZoo's table."""
    return report_rows.format_table(rows, COLUMNS)
