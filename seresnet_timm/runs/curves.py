"""Curves of runs as a picture: one run, or several on one sheet."""
import io
import logging
import math
import os
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from seresnet_timm.errors import UsageError, letter_widths, printable
from seresnet_timm.files import atomic_path
from seresnet_timm.runs import fonts

# what is marked: its kind in run.json, and how
FAULTS = {
    'restart': ('restart', 'v'), 'resume': ('resume', '>'), 'skipped steps': ('bad_steps', 'x'),
    'bad images': ('bad_images', 's'), 'wait for data': ('data_wait', 'd'), 'new worker': ('worker', '^'),
    'failed save': ('save', 'P'), 'loss not finite': ('', '*')}
# Okabe and Ito's palette, which colour-blind people tell apart, without its yellow, which is too light for a line
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#000000', '#E69F00', '#56B4E9')
# as many as have no common divisor with the colours: the looks repeat after 56 runs
STYLES = (('-', 'o'), ('--', 's'), ('-.', '^'), (':', 'D'), ((0, (6, 1, 1, 1, 1, 1)), 'v'), ((0, (8, 2)), 'P'),
          ((0, (3, 1)), 'X'), ((0, (1, 1)), '*'))
MARKERS = 12  # on a line

FPS = 'Training images/s'
Target = Union[str, Path, io.BytesIO]  # of a picture: a file, or memory


class Curves(NamedTuple):
    """A run on the sheet: its name, its record as from `read_record`, and the rows of its summary.csv as numbers."""
    name: str
    record: Dict[str, Any]
    rows: List[Dict[str, float]]


def draw_curves(record: Dict[str, Any], rows: List[Dict[str, float]], path: Path) -> None:
    """Draw the curves of one run as PNG, see `draw_sheet`."""
    draw_sheet([Curves('', record, rows)], path)


def draw_sheet(runs: Sequence[Curves], target: Target) -> None:
    """Draw loss, top-1, learning rate and images/s over epochs as PNG, and mark the epochs with faults and resumes.

    The share of waiting and the loss scale are drawn too where a run has them.

    Args:
        runs: The runs; each with at least one row.
        target: The picture.

    Raises:
        UsageError: matplotlib is missing.
    """
    plt = pyplot()
    panels = [(_draw_loss, 'Loss'), (_draw_top1, 'Top-1 (%)'), (_draw_lr, 'Learning rate'), (_draw_fps, FPS)]
    if any(figures_of(run, 'data_wait_share')[1] for run in runs):
        panels.append((_draw_wait, 'Waiting for data (% of the time)'))
    if any(figures_of(run, 'loss_scale')[1] for run in runs):
        panels.append((_draw_scale, 'Loss scale'))
    columns = 2 if len(panels) == 4 else 3
    rows_of_names = math.ceil(len(runs) / 2) if len(runs) > 1 else 0
    size = (10, 6.5) if len(runs) == 1 else (13, 8 + 0.22 * rows_of_names)
    figure, axes = plt.subplots(2, columns, figsize=size, layout='constrained')
    for ax in axes.flat[len(panels):]:
        ax.remove()
    epochs = [epoch for run in runs for epoch in (
        *(r['epoch'] for r in run.rows), *(e['epoch'] for e in run.record['epochs']), *chain(*_faults(run).values()))]
    first, last = min(epochs), max(epochs)
    margin = max(0.5 if last == first else 0., 0.04 * (last - first))
    for ax, (draw, title) in zip(axes.flat, panels):
        ax.set_title(title)
        ax.set_xlabel('epoch')
        ax.grid(visible=True, alpha=0.3)
        ax.xaxis.get_major_locator().set_params(integer=True)
        draw(ax, runs)
        ax.set_xlim(first - margin, last + margin)
        if first == last:
            ax.set_xticks([first])
    _explain_marks(figure, axes.flat[3], runs)
    if len(runs) == 1:
        figure.suptitle(describe(runs[0].record, 50), parse_math=False)
    else:
        lines = [axes.flat[0].plot([], [], **_look(i), label=plain_label(run.name))[0] for i, run in enumerate(runs)]
        figure.legend(handles=lines, loc='outside upper center', ncols=2 if len(runs) > 2 else len(runs),
                      handlelength=4)
    save_figure(figure, target, 120)


def pyplot() -> Any:
    """matplotlib's module, which draws into files.

    Raises:
        UsageError: It is missing.
    """
    if not os.environ.get('MPLCONFIGDIR'):
        logging.getLogger('matplotlib').addFilter(_is_not_on_own_folder)
    try:
        import matplotlib
    except ImportError:
        raise UsageError('The curves need matplotlib: pip install "seresnet-timm[demo]".')
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib import font_manager
    plt.rcParams['font.family'] = fonts.families(font_manager)
    return plt


def _is_not_on_own_folder(record: logging.LogRecord) -> bool:
    """False for what matplotlib says where it cannot write to the home folder: it uses a temporary one then."""
    return record.funcName != '_get_config_or_cache_dir'


def save_figure(figure: Any, target: Target, dpi: int) -> None:
    """Write a figure as PNG and close it; letters that no font has are drawn as boxes, which one line says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if isinstance(target, io.BytesIO):
            figure.savefig(target, dpi=dpi, format='png')
        else:
            with atomic_path(target) as tmp:
                figure.savefig(tmp, dpi=dpi, format='png')
    pyplot().close(figure)
    if fonts.take_missing(caught):
        fonts.warn_of_missing_letters()


def describe(record: Dict[str, Any], length: int = 500) -> str:
    """Model, devices, precision and batch size of a run, a line; the model's name has at most `length` letters."""
    settings = record['settings']
    model = shorten(settings['args'].get('model', '?'), length)
    return printable(f'{model}: {settings["world_size"]} x {settings["device"]}, '
                     f'{settings["precision"]}, global batch size {settings["global_batch_size"]}')


def plain_label(text: str, length: int = 60) -> str:
    """A name as matplotlib shows it: no formula, no line of its own kind; short enough for a legend."""
    text = shorten(printable(text), length)
    return (' ' if text.startswith('_') else '') + text.replace('$', r'\$')


def shorten(text: str, length: int) -> str:
    """A text without its middle, if it is wider than so many letters; a Chinese letter is as wide as two."""
    if letter_widths(text) <= length:
        return text
    half = (length - 5) // 2
    begin = next(i for i in range(len(text)) if letter_widths(text[:i + 1]) > half)
    end = next(i for i in range(len(text)) if letter_widths(text[i:]) <= half)
    return f'{text[:begin]} ... {text[end:]}'


def figures_of(run: Curves, key: str) -> Tuple[List[float], List[float]]:
    """Epochs and values of a figure in run.json, where it is known."""
    known = [e for e in run.record['epochs'] if e.get(key) is not None]
    return [e['epoch'] for e in known], [e[key] for e in known]


# --- panels -----------------------------------------------------------------------------------------------------------

def _draw_loss(ax: Any, runs: Sequence[Curves]) -> None:
    """Losses on a logarithmic axis; those of the training are the thin lines."""
    seen: List[float] = []
    for i, run in enumerate(runs):
        look = _look(i)
        for column, label in (('train_loss', 'train'), ('eval_loss', 'validation')):
            values = [row.get(column, math.nan) for row in run.rows]
            if column not in run.rows[0]:
                continue
            seen += [v for v in values if math.isfinite(v)]
            if label == 'train':
                thin = dict(look, linewidth=1, marker='' if len(values) > 1 else 'o', markersize=4, alpha=0.7)
                if len(runs) == 1:
                    thin.update(color=COLORS[1], linestyle='--', alpha=1)
            _line(ax, [row['epoch'] for row in run.rows], values, thin if label == 'train' else look)
    grey: Dict[str, Any] = dict(color='#444444')
    point = 'o' if len(runs[0].rows) == 1 else ''
    handles = [ax.plot([], [], **style, label=label)[0] for label, style in (
        ('train', dict(linewidth=1, linestyle='--', color=COLORS[1], marker=point, markersize=4) if len(runs) == 1 else
         dict(grey, linewidth=1)),
        ('validation', _look(0) if len(runs) == 1 else dict(grey, linewidth=2, marker='o', markersize=4)))]
    has_validation = any('eval_loss' in run.rows[0] for run in runs)
    ax.legend(handles=handles[:1 + has_validation], loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=2,
              frameon=False)
    above = [v for v in seen if v > 0]  # a loss of 0 is a line that leaves the panel below
    if above:
        _logarithmic(ax, min(above), max(above))
    elif not seen:
        _say(ax, 'no finite loss')


def _draw_top1(ax: Any, runs: Sequence[Curves]) -> None:
    best = []
    for i, run in enumerate(runs):
        if 'eval_top1' in run.rows[0]:
            _line(ax, [row['epoch'] for row in run.rows], [row['eval_top1'] for row in run.rows], _look(i))
            best += [(row['eval_top1'], row['epoch']) for row in run.rows if math.isfinite(row['eval_top1'])]
    if best and len(runs) == 1:
        value, epoch = max(best, key=lambda pair: pair[0])
        ax.set_title(f'Top-1 (%): best {value:.2f} in epoch {epoch:g}')
    elif not best:
        _say(ax, 'not evaluated')


def _draw_lr(ax: Any, runs: Sequence[Curves]) -> None:
    """Learning rates; on a logarithmic axis if those of a run were a line at 0 beside those of another."""
    highest, above = [], []
    for run in runs:
        positive = [row['lr'] for row in run.rows if row['lr'] > 0]
        highest += [max(positive)] if positive else []
        above += positive
    low = 0.
    if highest and max(highest) > 20 * min(highest):
        low = max(min(highest) / 50, min(above))
        _logarithmic(ax, low, max(highest))
    else:
        ax.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    for i, run in enumerate(runs):
        # on a logarithmic axis a schedule that ends at 0 leaves the panel below, by a slope
        _line(ax, [row['epoch'] for row in run.rows], [row['lr'] if row['lr'] > 0 else low / 10 for row in run.rows],
              _look(i))


def _draw_fps(ax: Any, runs: Sequence[Curves]) -> None:
    """Images a second from 0 on; below 0 are the rows of faults."""
    highest = 0.
    for i, run in enumerate(runs):
        x, values = figures_of(run, 'fps')
        _line(ax, x, values, _look(i))
        highest = max([highest, *values])
    highest = 1.1 * highest or 1.
    if _kinds(runs):
        ax.axhline(0, color='#444444', linewidth=0.8)
    ax.set_ylim(-highest * len(_kinds(runs)) * _row_height(runs), highest)
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= highest])


def _draw_wait(ax: Any, runs: Sequence[Curves]) -> None:
    highest = 0.
    for i, run in enumerate(runs):
        x, values = figures_of(run, 'data_wait_share')
        _line(ax, x, [100 * v for v in values], _look(i))
        highest = max([highest, *values])
    ax.set_ylim(0, min(100., max(5., 115 * highest)))


def _draw_scale(ax: Any, runs: Sequence[Curves]) -> None:
    seen: List[float] = []
    for i, run in enumerate(runs):
        x, values = figures_of(run, 'loss_scale')
        _line(ax, x, values, dict(_look(i), drawstyle='steps-post'))
        seen += [v for v in values if v > 0]
    if seen:
        ax.set_yscale('log', base=2)
        ax.set_ylim(min(seen) / 2, max(seen) * 2)
        low, high = math.floor(math.log2(min(seen))) - 1, math.ceil(math.log2(max(seen))) + 1
        powers = range(low, high + 1, max(1, math.ceil((high - low) / 6)))
        is_plain = min(seen) >= 1 and high < 20
        _set_ticks(ax, [2. ** n for n in powers], [f'{2. ** n:g}' if is_plain else f'$2^{{{n}}}$' for n in powers])


def _say(ax: Any, text: str) -> None:
    ax.text(0.5, 0.5, text, ha='center', va='center', transform=ax.transAxes)
    ax.set_yticks([])


def _look(index: int) -> Dict[str, Any]:
    style, marker = STYLES[index % len(STYLES)]
    return dict(color=COLORS[index % len(COLORS)], linestyle=style, marker=marker, markersize=4, linewidth=1.6)


def _line(ax: Any, x: Sequence[float], y: Sequence[float], look: Dict[str, Any]) -> None:
    ax.plot(x, y, **look, markevery=max(1, len(x) // MARKERS))


def _logarithmic(ax: Any, low: float, high: float) -> None:
    """A logarithmic axis with numbers that people read: 0.2, 0.5, 1, 2, 5 or, in a small range, equal steps."""
    from matplotlib.ticker import MaxNLocator
    ax.set_yscale('log')
    room = max((high / low) ** 0.06, 1.01)
    low, high = low / room, high * room
    ax.set_ylim(low, high)
    if high / low < 6:
        ticks = [float(t) for t in MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=4).tick_values(low, high) if t > 0]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ratio = high / low
        steps = (1, 2, 3, 5, 7) if ratio < 30 else (1, 2, 5) if ratio < 1000 else (1, 3) if ratio < 1e5 else (1,)
        every = max(1, len(decades) // 7)
        ticks = [step * 10. ** n for n in decades for step in steps if n % every == 0]
    _set_ticks(ax, [t for t in ticks if low <= t <= high])


def _set_ticks(ax: Any, ticks: List[float], labels: Optional[List[str]] = None) -> None:
    from matplotlib.ticker import NullLocator
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticks(ticks, labels or [f'{t:g}' for t in ticks])


# --- faults -----------------------------------------------------------------------------------------------------------

def faults_by_kind(record: Dict[str, Any], epochs: List[float]) -> Dict[str, List[float]]:
    """Epochs in which something went wrong and did not end the run, and in which it was resumed, by what it was."""
    found: Dict[str, List[float]] = {label: [] for label in FAULTS}
    for fault in record.get('faults') or ():
        label = next((label for label, (kind, _) in FAULTS.items() if kind == fault['kind']), None)
        if label is not None:
            found[label].append(epochs[-1] if fault['epoch'] is None else fault['epoch'])
    found['resume'] += [resume['epoch'] for resume in record.get('resumes') or ()]
    for epoch in record['epochs']:
        if epoch.get('bad_steps'):
            found['skipped steps'].append(epoch['epoch'])
        if any((epoch.get(key) or {}).get('count') for key in ('unreadable_train', 'unreadable_val')):
            found['bad images'].append(epoch['epoch'])
    return {label: sorted(set(places)) for label, places in found.items() if places}


def _row_height(runs: Sequence[Curves]) -> float:
    """Height of a row of faults, as a share of the height of the curves."""
    return 0.06 if len(runs) == 1 else 0.09


def _faults(run: Curves) -> Dict[str, List[float]]:
    found = faults_by_kind(run.record, [row['epoch'] for row in run.rows])
    lost = [row['epoch'] for row in run.rows
            if not all(math.isfinite(row.get(column, 0.)) for column in ('train_loss', 'eval_loss'))]
    return {**found, 'loss not finite': lost[:1]} if lost else found


def _kinds(runs: Sequence[Curves]) -> List[str]:
    """The kinds of faults that a run has, in the order of `FAULTS`."""
    found = {kind for run in runs for kind in _faults(run)}
    return [kind for kind in FAULTS if kind in found]


def _explain_marks(figure: Any, ax: Any, runs: Sequence[Curves]) -> None:
    """Mark epochs below the curves of a panel: a row for each kind, the colour of the run; a later run's is larger."""
    kinds = _kinds(runs)
    if not kinds:
        return
    height = _row_height(runs)
    height /= 1 + height * len(kinds)  # as a share of the panel, see `_draw_fps`
    for i, run in enumerate(runs):
        for kind, places in _faults(run).items():
            ax.plot(places, [height * (kinds.index(kind) + 0.5)] * len(places), FAULTS[kind][1],
                    color=_look(i)['color'], markersize=5 + 2 * min(i, 3), markerfacecolor='none' if i else None,
                    transform=ax.get_xaxis_transform(), clip_on=False)
    lines = [ax.plot([], [], FAULTS[kind][1], color='#444444', label=kind)[0] for kind in kinds]
    figure.legend(handles=lines, loc='outside lower center', ncols=min(len(lines), 4 if len(lines) > 7 else 7),
                  title='Below images/s')
