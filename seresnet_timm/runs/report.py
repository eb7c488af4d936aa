"""The verb `report`: results tables, curves and files of runs."""
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from seresnet_timm.errors import RunError, note_replaced, printable
from seresnet_timm.runs import read, report_page, report_rows
from seresnet_timm.runs.curves import Curves, draw_sheet, pyplot
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.prediction_pictures import draw_matrix, draw_worst
from seresnet_timm.runs.predictions import Predictions
from seresnet_timm.runs.read import Run, output_file, read_run
from seresnet_timm.runs.record import read_record
from seresnet_timm.runs.show import width_of

# for push and the model card too
__all__ = ['Run', 'format_table', 'pyplot', 'read_record', 'read_run', 'report', 'table_row']

# apex's names for the precision of a run
AMP_TYPES = {'float32': 'O0', 'amp float16': 'O1', 'amp bfloat16': 'O1 (bf16)', 'O2': 'O2'}
COLUMNS = ('NAME', 'Acc@1', 'FPS', 'Epochs', 'AMP_Type', 'Torch_Version')
KINDS = ('markdown', 'csv', 'json', 'html')
TITLES = {'markdown': 'Markdown', 'csv': 'CSV', 'json': 'JSON', 'html': 'Page'}


@dataclass(frozen=True)
class Outputs:
    """What is written.

    Attributes:
        files: File by `KINDS`, '-' for stdout instead of the tables.
        folder: Folder of all pictures; None for the folders of the runs.
        worst: Number of worst images to show.
    """
    files: Mapping[str, Optional[str]] = field(default_factory=dict)
    folder: Optional[str] = None
    worst: int = 24


def report(run_dirs: Sequence[str], outputs: Outputs = Outputs()) -> None:
    """Report runs by their folders, without predictions, see `report_runs`."""
    runs = read.read_runs(run_dirs)
    report_runs(runs, [None] * len(runs), outputs)


def report_runs(runs: Sequence[Run], predictions: Sequence[Optional[Predictions]], outputs: Outputs) -> None:
    """Print the tables of runs, and write files and pictures.

    Args:
        runs: The runs.
        predictions: For the validation images, of each run; None if not known.
        outputs: What is written.

    Raises:
        UsageError: matplotlib is missing.
        RunError: A file cannot be written.
    """
    rows = [report_rows.row_of(run, name) for run, name in zip(runs, read.names_of(runs))]
    validations = [
        report_rows.describe_predictions(row['name'], found) for row, found in zip(rows, predictions) if found]
    texts = {
        'markdown': lambda: '\n\n'.join((report_rows.as_markdown(rows), *validations)) + '\n',
        'csv': lambda: report_rows.as_csv(rows),
        'json': lambda: report_rows.as_document(
            runs, rows, [found.to_dict(outputs.worst) if found else None for found in predictions]),
        'html': lambda: report_page.make_page(runs, rows, predictions, outputs.worst)}
    on_stdout = next((kind for kind in KINDS if outputs.files.get(kind) == '-'), None)
    told = sys.stderr if on_stdout else sys.stdout
    if on_stdout:
        report_rows.print_text(texts[on_stdout](), is_csv=on_stdout == 'csv')
    else:
        print(format_table([table_row(run) for run in runs]))
        print()
        report_rows.print_text('\n\n'.join((report_rows.as_markdown(rows, width_of(sys.stdout)), *validations)) + '\n')
        print()
    for run, row in zip(runs, rows):
        if row['reason']:
            print(f'{printable(run.folder.path)} {report_rows.ending(row)}', file=told)
    for kind in KINDS:
        path = outputs.files.get(kind)
        if path is not None and path != '-':
            note_replaced(path, f'--{kind}')
            write_text(path, texts[kind]())
            print(f'{TITLES[kind]}: {printable(path)}', file=told)
    for title, target, draw in pictures(runs, rows, predictions, outputs):
        try:
            with output_file(target) as tmp:
                draw(tmp)
        except RunError as e:
            raise RunError(str(e) if outputs.folder else f'{e}'.replace(
                'name another file', 'name a folder for the pictures with --output'))
        print(f'{title}: {printable(target)}', file=told)


def make_folder(path: str) -> None:
    """Make the folder of the pictures."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as e:
        raise RunError(f'--output {path} cannot be made ({e.strerror}): name another folder.')


def write_text(path: str, text: str) -> None:
    with output_file(path) as tmp, open(tmp, 'w', encoding='utf-8', errors='surrogateescape', newline='') as f:
        f.write(text)


Picture = Tuple[str, Path, Callable[[str], None]]  # what it shows, its file, and what draws it


def pictures(
        runs: Sequence[Run],
        rows: Sequence[Dict[str, Any]],
        predictions: Sequence[Optional[Predictions]],
        outputs: Outputs,
) -> Iterator[Picture]:
    """The pictures to draw: curves of each run, of all runs on one sheet, confusion matrices, worst images."""
    curves = [Curves(row['name'], run.record, run.rows) for run, row in zip(runs, rows) if run.rows]
    drawn = [run.folder for run in runs if run.rows]
    folder = None if outputs.folder is None else RunFolder(outputs.folder)
    if folder is None:
        for own, one in dict(zip(drawn, curves)).items():
            yield 'Curves', own.curves, partial(draw_sheet, [one])
    if len(curves) > 1 or folder is not None and curves:
        title = 'Curves of all runs' if len(curves) > 1 else 'Curves'
        yield title, folder.curves if folder else drawn[0].comparison, partial(draw_sheet, curves)
    for number, (run, row, found) in enumerate(zip(runs, rows, predictions)):
        if found is None:
            continue
        own = run.folder if folder is None else folder
        prefix = f'{number + 1}_' if folder and len(runs) > 1 else ''
        of_run = f' of {printable(row["name"])}' if len(runs) > 1 else ''
        yield (f'Confusion matrix{of_run}', own.confusion.with_name(prefix + own.confusion.name),
               partial(draw_matrix, found))
        worst = found.worst(outputs.worst)
        if worst:
            yield (f'Worst images{of_run}', own.worst_images.with_name(prefix + own.worst_images.name),
                   partial(draw_worst, found, worst))


def table_row(run: Run) -> Dict[str, str]:
    """A run as a row of the ModelZoo's table. Acc@1 is the best epoch's, FPS the median of the epochs'."""
    settings, best, fps = run.record['settings'], run.best, run.images_per_second
    row = {
        'NAME': f'{settings["world_size"]}p-{settings["device"].split(":")[0].upper()}',
        'Acc@1': f'{best["eval_top1"]:.3f}' if best else '-',
        'FPS': f'{fps:.2f}' if fps is not None else '-',
        'Epochs': str(run.epochs_done),
        'AMP_Type': AMP_TYPES.get(settings['precision'].split(':')[0], settings['precision']),
        'Torch_Version': (run.record['versions'].get('torch') or '-').split('+')[0],
    }
    return {k: printable(v) for k, v in row.items()}


def format_table(rows: List[Dict[str, str]]) -> str:
    """Rows as the ModelZoo's table."""
    return report_rows.format_table(rows, COLUMNS)
