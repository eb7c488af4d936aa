"""Runs side by side: one row for each, as Markdown, CSV and JSON with the same names and numbers."""
import csv
import html
import io
import math
import re
import sys
from typing import Any, Dict, List, Optional, Sequence

from seresnet_timm.errors import letter_widths, printable
from seresnet_timm.files import as_json
from seresnet_timm.runs import read
from seresnet_timm.runs.predictions import Predictions
from seresnet_timm.runs.read import Run
from seresnet_timm.runs.show import duration

SCHEMA = 1
MAX_ROWS = 10  # of a table of classes
# columns of the CSV, and keys of a run in the JSON
FIELDS = (
    'name', 'folder', 'state', 'reason', 'model', 'device', 'soc', 'processes', 'precision', 'batch_size', 'epochs',
    'epochs_planned', 'top1', 'top5', 'best_epoch', 'images_per_second', 'wait_share', 'seconds', 'restarts', 'torch',
    'started', 'finished')
COLUMNS = ('Run', 'State', 'Model', 'Device', 'SoC', 'Processes', 'Precision', 'Batch', 'Epochs', 'Top-1', 'Top-5',
           'Images/s', 'Time')
ENDINGS = {read.DIVERGED: 'diverged:', read.FAILED: 'failed:', read.STOPPED_EARLY: 'stopped early,',
           read.UNFINISHED: 'is unfinished:'}


def ending(row: Dict[str, Any]) -> str:
    """How a run ended and why, to be read after its name."""
    return f'{ENDINGS[row["state"]]} {printable(row["reason"])}'


def row_of(run: Run, name: str) -> Dict[str, Any]:
    """A run as numbers and texts by `FIELDS`; None for what is not known.

    `batch_size` is that of all processes and one optimizer step; `top1` and `top5` (percent) are of the epoch with the
    highest top-1; `images_per_second` and `wait_share` are medians of the epochs; `seconds` is the sum of training and
    evaluation.
    """
    record, settings, best = run.record, run.record['settings'], run.best
    state, reason = run.state
    seconds = [e[k] for e in record['epochs'] for k in ('train_seconds', 'eval_seconds') if e[k] is not None]
    return {
        'name': name, 'folder': str(run.folder.path), 'state': state, 'reason': reason,
        'model': settings['args'].get('model'), 'device': settings['device'].split(':')[0],
        'soc': record['machine']['device'], 'processes': settings['world_size'], 'precision': settings['precision'],
        'batch_size': settings['global_batch_size'], 'epochs': run.epochs_done, 'epochs_planned': run.epochs_planned,
        'top1': best['eval_top1'] if best else None, 'top5': _finite(best.get('eval_top5')) if best else None,
        'best_epoch': int(best['epoch']) if best else None, 'images_per_second': run.images_per_second,
        'wait_share': _median(e['data_wait_share'] for e in record['epochs']),
        'seconds': round(sum(seconds), 3) if seconds else None,
        'restarts': sum(f['kind'] == 'restart' for f in record['faults']),
        'torch': record['versions'].get('torch'), 'started': record['started'], 'finished': record['finished'],
    }


def _finite(value: Optional[float]) -> Optional[float]:
    return value if value is not None and math.isfinite(value) else None


def _median(values: Any) -> Optional[float]:
    known = sorted(v for v in values if v is not None)
    return known[len(known) // 2] if known else None


# --- Markdown ---------------------------------------------------------------------------------------------------------

def as_markdown(rows: Sequence[Dict[str, Any]], width: Optional[int] = None) -> str:
    """A table with a row for each run; if that is wider than `width`, with a column for each run."""
    texts = [{k: markdown(v) for k, v in cells(row).items()} for row in rows]
    table = format_table(texts, COLUMNS)
    if width is None or _fits(table, width):
        return table
    tables: List[str] = []
    block: List[Dict[str, str]] = []
    for text in texts:
        if block and not _fits(_with_columns_of_runs([*block, text]), width):
            tables.append(_with_columns_of_runs(block))
            block = []
        block.append(text)
    return '\n\n'.join([*tables, _with_columns_of_runs(block)])


def _fits(table: str, width: int) -> bool:
    return letter_widths(table.partition('\n')[0]) <= width


def _with_columns_of_runs(texts: Sequence[Dict[str, str]]) -> str:
    first, *others = COLUMNS
    rows = [{first: column, **{text[first]: text[column] for text in texts}} for column in others]
    return format_table(rows, (first, *(text[first] for text in texts)))


def format_table(rows: List[Dict[str, str]], columns: Sequence[str]) -> str:
    """Rows as a Markdown table."""
    widths = {c: max(letter_widths(r[c]) for r in ({c: c}, *rows)) for c in columns}
    lines = [{c: c for c in columns}, {c: '-' * widths[c] for c in columns}, *rows]
    return '\n'.join(
        '| ' + ' | '.join(line[c] + ' ' * (widths[c] - letter_widths(line[c])) for c in columns) + ' |'
        for line in lines)


def cells(row: Dict[str, Any]) -> Dict[str, str]:
    """A row as texts by `COLUMNS`; '-' for what is not known."""
    planned = row['epochs_planned']
    epochs = row['epochs'] if planned in (None, row['epochs']) else f'{row["epochs"]} of {planned}'
    time = None if row['seconds'] is None else duration(row['seconds'])
    values = {
        'Run': row['name'], 'State': row['state'], 'Model': row['model'], 'Device': row['device'], 'SoC': row['soc'],
        'Processes': row['processes'], 'Precision': row['precision'].split(':')[0], 'Batch': row['batch_size'],
        'Epochs': epochs, 'Top-1': _number(row['top1'], 2), 'Top-5': _number(row['top5'], 2),
        'Images/s': _number(row['images_per_second'], 1), 'Time': time,
    }
    return {k: '-' if v is None else printable(v) for k, v in values.items()}


def _number(value: Optional[float], digits: int) -> Optional[str]:
    return None if value is None else f'{value:.{digits}f}'


def markdown(text: str) -> str:
    """A text from a file that others wrote, so that Markdown and HTML show it and do not interpret it."""
    return re.sub(r'([\\`*\[\]|~])', r'\\\1', html.escape(printable(text), quote=False))


def describe_predictions(name: str, found: Predictions) -> str:
    """Top-1, the most confused pairs and the classes with the lowest top-1, as Markdown."""
    lines = [f'{markdown(name)}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} % of {len(found.files):,} images in '
             f'{markdown(found.data)}, {markdown(found.model)}']
    if found.unreadable:
        lines.append(f'{len(found.unreadable):,} images cannot be read and count as wrong.')
    pairs = found.confused()
    if pairs:
        first = pairs[:MAX_ROWS]
        lines += ['', f'Most confused classes ({len(first)} of {len(pairs):,} pairs):', '', format_table([
            {'Class': markdown(p['class']), 'Taken for': markdown(p['predicted']), 'Images': str(p['images']),
             'Share': f'{100 * p["share"]:.1f} %'} for p in first], ('Class', 'Taken for', 'Images', 'Share'))]
        classes = lowest(found.per_class())
        first = classes[:MAX_ROWS]
        lines += ['', f'Lowest top-1 ({len(first)} of {len(classes):,} classes):', '', format_table([
            {'Class': markdown(c['class']), 'Images': str(c['images']), 'Top-1': f'{c["top1"]:.2f}',
             'Most often taken for': markdown(c['confused_with'] or '-')} for c in first],
            ('Class', 'Images', 'Top-1', 'Most often taken for'))]
    return '\n'.join(lines)


def lowest(classes: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The classes that have images, the lowest top-1 first."""
    return sorted((c for c in classes if c['images']), key=lambda c: (c['top1'], c['index']))


# --- CSV, JSON --------------------------------------------------------------------------------------------------------

def as_csv(rows: Sequence[Dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_document(
        runs: Sequence[Run], rows: Sequence[Dict[str, Any]], predictions: Sequence[Optional[Dict[str, Any]]]) -> str:
    """Everything as JSON in ASCII: names of any bytes are escapes, and null is what is not known.

    Args:
        runs: The runs.
        rows: As from `row_of`.
        predictions: What is known of the predictions of each, as from `Predictions.to_dict`.
    """
    content = {'schema': SCHEMA, 'runs': [
        {**row, 'per_epoch': per_epoch(run), 'faults': run.record['faults'], 'predictions': found}
        for run, row, found in zip(runs, rows, predictions)]}
    return as_json(content, indent=2) + '\n'


def per_epoch(run: Run) -> List[Dict[str, Optional[float]]]:
    """What the curves show, an entry an epoch."""
    by_epoch: Dict[int, Dict[str, Optional[float]]] = {}
    columns = {'train_loss': 'train_loss', 'eval_loss': 'eval_loss', 'eval_top1': 'top1', 'eval_top5': 'top5',
               'lr': 'lr'}
    figures = {'fps': 'images_per_second', 'data_wait_share': 'wait_share', 'loss_scale': 'loss_scale',
               'bad_steps': 'bad_steps'}
    for row in run.rows:
        by_epoch.setdefault(int(row['epoch']), {}).update({to: row.get(k) for k, to in columns.items()})
    for epoch in run.record['epochs']:
        by_epoch.setdefault(epoch['epoch'], {}).update({to: epoch[k] for k, to in figures.items()})
    names = [*columns.values(), *figures.values()]
    return [{'epoch': n, **{k: by_epoch[n].get(k) for k in names}} for n in sorted(by_epoch)]


def print_text(text: str, is_csv: bool = False) -> None:
    """Write a text to stdout. CSV is UTF-8 that gives back names of any bytes, but not to a terminal."""
    if not is_csv or sys.stdout.isatty() or not hasattr(sys.stdout, 'buffer'):
        sys.stdout.write(''.join(c if c == '\n' else printable(c) for c in text))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode('utf-8', 'surrogateescape'))
