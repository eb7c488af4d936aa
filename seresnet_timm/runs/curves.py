"""Curves of a run as a picture."""
from pathlib import Path
from typing import Any, Dict, List

from seresnet_timm.errors import UsageError
from seresnet_timm.files import atomic_path

# what is marked: its kind in run.json, and how
FAULTS = {
    'restart': ('restart', 'v'), 'skipped steps': ('bad_steps', 'x'), 'bad images': ('bad_images', 's'),
    'wait for data': ('data_wait', 'd'), 'new worker': ('worker', '^'), 'failed save': ('save', 'P')}


def draw_curves(record: Dict[str, Any], rows: List[Dict[str, float]], path: Path) -> None:
    """Draw loss, top-1, learning rate and images/s over epochs as PNG, and mark the epochs with faults.

    Args:
        record: The run's record, as from `read_record`.
        rows: Rows of its summary.csv, as numbers by column; at least one.
        path: The picture.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError('The curves need matplotlib: pip install "seresnet-timm[demo]".')
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout='constrained')
    (loss, top1), (lr, fps) = axes
    x = [row['epoch'] for row in rows]
    _plot(loss, 'Loss', x, {'train': [row['train_loss'] for row in rows]})
    if 'eval_loss' in rows[0]:
        _plot(loss, 'Loss', x, {'validation': [row['eval_loss'] for row in rows]})
    loss.set_yscale('log')
    _plot(top1, 'Top-1 (%)', x, {'validation': [row['eval_top1'] for row in rows]} if 'eval_top1' in rows[0] else {})
    if 'eval_top1' in rows[0]:
        value, epoch = max((row['eval_top1'], row['epoch']) for row in rows)
        side = 'right' if epoch == x[-1] else 'center'  # within the frame
        top1.annotate(f'{value:.2f}', (epoch, value), textcoords='offset points', xytext=(0, -14), ha=side)
    _plot(lr, 'Learning rate', x, {'': [row['lr'] for row in rows]})
    measured = [e for e in record['epochs'] if e['fps'] is not None]
    _plot(fps, 'Training images/s', [e['epoch'] for e in measured], {'': [e['fps'] for e in measured]})
    if measured:
        fps.set_ylim(0, 1.1 * max(e['fps'] for e in measured))
    _mark_faults(figure, fps, faults_by_kind(record, x))
    settings = record['settings']
    figure.suptitle(f'{settings["args"]["model"]}: {settings["world_size"]} x {settings["device"]}, '
                    f'{settings["precision"]}, global batch size {settings["global_batch_size"]}', parse_math=False)
    with atomic_path(path) as tmp:
        figure.savefig(tmp, dpi=120)
    plt.close(figure)


def faults_by_kind(record: Dict[str, Any], epochs: List[float]) -> Dict[str, List[float]]:
    """Epochs in which something went wrong and did not end the run, by what it was."""
    found: Dict[str, List[float]] = {label: [] for label in FAULTS}
    for fault in record.get('faults') or ():
        label = next((label for label, (kind, _) in FAULTS.items() if kind == fault['kind']), None)
        if label is not None:
            found[label].append(epochs[-1] if fault['epoch'] is None else fault['epoch'])
    for epoch in record['epochs']:
        if epoch.get('bad_steps'):
            found['skipped steps'].append(epoch['epoch'])
        if any((epoch.get(key) or {}).get('count') for key in ('unreadable_train', 'unreadable_val')):
            found['bad images'].append(epoch['epoch'])
    return {label: sorted(set(places)) for label, places in found.items() if places}


def _mark_faults(figure: Any, ax: Any, faults: Dict[str, List[float]]) -> None:
    """Mark epochs at the bottom of a panel, each kind in a row of its own."""
    lines = []
    for row, (label, places) in enumerate(faults.items()):
        line, = ax.plot(
            places, [0.03 + 0.06 * row] * len(places), FAULTS[label][1], color=f'C{3 + row}', markersize=6, label=label,
            transform=ax.get_xaxis_transform(), clip_on=False)
        lines.append(line)
    if lines:
        figure.legend(handles=lines, loc='outside lower center', ncols=len(lines), title='Faults (below images/s)')


def _plot(ax: Any, title: str, x: List[float], lines: Dict[str, List[float]]) -> None:
    """Draw lines over epochs into one panel.

    Args:
        ax: The panel.
        title: Its title.
        x: Epochs.
        lines: Values by label; '' draws no label.
    """
    for label, values in lines.items():
        ax.plot(x, values, marker='o', markersize=3, label=label)
    ax.set_title(title)
    ax.set_xlabel('epoch')
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(visible=True, alpha=0.3)
    if any(lines):
        ax.legend()
