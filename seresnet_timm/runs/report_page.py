"""The report as one HTML page that needs no network: tables, pictures inside, and how each run was set up."""
import base64
import html
import io
from pathlib import Path
from string import Template
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from seresnet_timm.errors import printable, shell_line
from seresnet_timm.runs import read, report_rows
from seresnet_timm.runs.curves import Curves, describe, draw_sheet
from seresnet_timm.runs.prediction_pictures import as_jpeg, draw_matrix, thumbnail
from seresnet_timm.runs.predictions import Predictions
from seresnet_timm.runs.read import Run

TEMPLATE = Path(__file__).with_name('report_page.html')
NUMBERS = ('Processes', 'Batch', 'Epochs', 'Top-1', 'Top-5', 'Images/s', 'Time')
MAX_PAIRS = 200


def make_page(
        runs: Sequence[Run],
        rows: Sequence[Dict[str, Any]],
        predictions: Sequence[Optional[Predictions]],
        worst: int,
) -> str:
    """The page.

    Args:
        runs: The runs.
        rows: As from `report_rows.row_of`.
        predictions: Predictions of each, where they are known.
        worst: Number of images to show.
    """
    names = [row['name'] for row in rows]
    title = f'Report of {names[0]}' if len(runs) == 1 else f'Report of {len(runs)} runs'
    parts = [f'<h1>{text(title)}</h1>', '<h2>Results</h2>', results(rows), *endings(rows), '<h2>Curves</h2>']
    curves = [Curves(name, run.record, run.rows) for name, run in zip(names, runs) if run.rows]
    if curves:
        alt = f'Loss, top-1, learning rate and images per second over the epochs of {", ".join(c.name for c in curves)}'
        shown = picture(lambda stream: draw_sheet(curves, stream), alt)
        parts.append(f'<figure class="curves" tabindex="0">{shown}</figure>')
    else:
        parts.append('<p>No epoch has been finished.</p>')
    for number, (run, row, found) in enumerate(zip(runs, rows, predictions)):
        parts.append(f'<h2 id="run-{number}">{text(row["name"])}</h2>')
        parts.append(f'<p class="soft">{text(describe(run.record))}</p>')
        if found is not None:
            parts += validation(found, worst)
        parts += set_up(run)
    return Template(TEMPLATE.read_text(encoding='utf-8')).substitute(title=text(title), body='\n'.join(parts))


def text(value: Any) -> str:
    """A text as HTML shows it, whatever is in it."""
    return html.escape(printable(value))


def table(
        columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str] = (), wide: bool = False) -> str:
    """A table that scrolls in its own box; the first column names the rows."""
    def cell(column: str, value: Any, is_head: bool) -> str:
        kind = ' class="number"' if column in numbers else ''
        shown = '-' if value is None else value if isinstance(value, Html) else text(value)
        return f'<th scope="row"{kind}><div>{shown}</div></th>' if is_head else f'<td{kind}>{shown}</td>'
    head = ''.join(f'<th scope="col"{" class=number" if c in numbers else ""}>{text(c)}</th>' for c in columns)
    body = '\n'.join('<tr>' + ''.join(cell(c, v, not i) for i, (c, v) in enumerate(zip(columns, row))) + '</tr>'
                     for row in rows)
    kind = ' class="wide"' if wide else ''
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(columns[0])}: table">'
            f'<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')


class Html(str):
    """A text that is HTML already."""


def results(rows: Sequence[Dict[str, Any]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        cells = report_rows.cells(row)
        name = Html(f'<a href="#run-{number}">{text(row["name"])}</a>')
        state = text(row['state'])
        good = row['state'] in (read.FINISHED, read.STOPPED_EARLY, read.RUNNING)
        shown = {**cells, 'Run': name, 'State': Html(state if good else f'<span class="bad">{state}</span>')}
        lines.append([shown[c] for c in report_rows.COLUMNS])
    return table(report_rows.COLUMNS, lines, NUMBERS, wide=True)


def endings(rows: Sequence[Dict[str, Any]]) -> List[str]:
    """Why runs ended, where that is known."""
    known = [f'<li>{text(row["name"])} {text(report_rows.ending(row))}</li>'
             for row in rows if row['reason']]
    return ['<ul>', *known, '</ul>'] if known else []


def picture(draw: Callable[[io.BytesIO], None], alt: str) -> str:
    stream = io.BytesIO()
    draw(stream)
    return image(stream.getvalue(), 'png', alt)


def image(data: bytes, kind: str, alt: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{text(alt)}">'


# --- one run ----------------------------------------------------------------------------------------------------------

def validation(found: Predictions, worst: int) -> List[str]:
    """Top-1, confusion matrix, classes, pairs, and the worst images."""
    confused, classes = found.confused(), found.per_class()
    parts = [
        '<h3>Validation</h3>',
        f'<p>Top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} % of {len(found.files):,} images in {text(found.data)}, '
        f'{text(found.model)}.</p>',
        '<figure class="matrix">', picture(
            lambda stream: draw_matrix(found, stream),
            f'Confusion matrix of {len(found.class_names)} classes; the table of pairs has its largest errors'),
        '</figure>', '<h3>Most confused classes</h3>']
    pairs = [(p['class'], p['predicted'], f'{p["images"]:,}', f'{100 * p["share"]:.1f} %') for p in confused]
    numbers = ('Images', 'Right', 'Top-1', 'Share', 'Times')
    parts.append(table(('Class', 'Taken for', 'Images', 'Share'), pairs[:MAX_PAIRS], numbers) if pairs else
                 '<p>No image was taken for another class.</p>')
    if len(pairs) > MAX_PAIRS:
        parts.append(f'<p class="soft">The {MAX_PAIRS} most frequent of {len(pairs):,} pairs.</p>')
    parts.append('<h3>Classes, the lowest top-1 first</h3>')
    lines = [(c['class'], f'{c["images"]:,}', f'{c["correct"]:,}', f'{c["top1"]:.2f} %', c['confused_with'],
              c['confused_images'] or None) for c in report_rows.lowest(classes)]
    parts.append(table(('Class', 'Images', 'Right', 'Top-1', 'Most often taken for', 'Times'), lines, numbers))
    parts += worst_images(found, worst)
    if found.unreadable:
        parts += [f'<h3>Images that cannot be read: {len(found.unreadable):,}, counted as wrong</h3>',
                  table(('File',), [(file,) for file in found.unreadable[:MAX_PAIRS]])]
    return parts


def worst_images(found: Predictions, limit: int) -> List[str]:
    parts = ['<h3>Worst images</h3>']
    chosen = found.worst(limit)
    if not chosen:
        return [*parts, '<p>No image was taken for another class.</p>']
    parts += ['<p class="soft">Wrong, and their own class has the lowest probability.</p>', '<div class="sheet">']
    for i in chosen:
        small = thumbnail(found.open_image(found.files[i]))
        own, taken = found.class_names[found.targets[i]], found.class_names[found.predicted[i]]
        shown = image(as_jpeg(small), 'jpeg', f'Image of class {own}, taken for {taken}') if small else ''
        parts.append(
            f'<figure>{shown}<figcaption><b>{text(own)}</b>, taken for <b>{text(taken)}</b> '
            f'({100 * found.probability[i]:.0f}&nbsp;%)<br>{text(Path(found.files[i]).name)}</figcaption></figure>')
    return [*parts, '</div>']


def set_up(run: Run) -> List[str]:
    """Command, decisions, settings, environment and faults of a run."""
    record, settings = run.record, run.record['settings']
    decided = [(k, settings.get(k), settings['reasons'].get(k)) for k in (
        'device', 'world_size', 'precision', 'global_batch_size', 'recipe', 'loss_scale', 'fast_jpeg', 'fast_step',
        'lean_se', 'fuse_bn', 'freeze', 'output')]
    decided += [(k, None, v) for k, v in settings['reasons'].items() if k not in dict.fromkeys(d[0] for d in decided)]
    environment: List[Tuple[str, Any]] = [*record['versions'].items(), *record['machine'].items(), (
        'started', record['started']), ('finished', record['finished'])]
    parts = ['<h3>Set-up</h3>']
    if record['command']:
        parts.append(f'<pre tabindex="0"><code>{html.escape(printable(shell_line(record["command"])))}</code></pre>')
    parts += [
        details('Plan', table(('Setting', 'Value', 'Why'), [d for d in decided if d[1] is not None or d[2]])),
        details('Settings', table(('Flag', 'Value'), sorted(
            (k, v) for k, v in settings['args'].items() if v not in (None, '', [], {})))),
        details('Environment', table(('What', 'Value'), environment))]
    if record['faults']:
        lines = [(f['time'], f['kind'], f['epoch'], f['text']) for f in record['faults']]
        parts.append(details(f'Faults: {len(lines)}', table(('Time', 'Kind', 'Epoch', 'What'), lines, ('Epoch',))))
    return parts


def details(summary: str, content: str) -> str:
    return f'<details><summary>{text(summary)}</summary>\n{content}\n</details>'
