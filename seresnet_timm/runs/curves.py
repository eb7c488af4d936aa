"""Curves of a run as a picture."""
from pathlib import Path
from typing import Any, Dict

from seresnet_timm.errors import UsageError


def draw_curves(run: Dict[str, Any], path: Path) -> None:
    """Draw loss, top-1, learning rate and images/s over epochs as PNG.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError('The curves need matplotlib: pip install "seresnet-timm[demo]".')
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    from seresnet_timm.files import atomic_path

    rows, epochs, plan = run['rows'], run['record']['epochs'], run['record']['plan']
    x = [row['epoch'] for row in rows]
    panels = [
        ('Loss', [('train', x, [r['train_loss'] for r in rows])]
         + ([('validation', x, [r['eval_loss'] for r in rows])] if 'eval_loss' in rows[0] else []), True),
        ('Top-1 (%)', [('validation', x, [r['eval_top1'] for r in rows])] if 'eval_top1' in rows[0] else [], False),
        ('Learning rate', [('', x, [r['lr'] for r in rows])], False),
        ('Training images/s', [('', [e['epoch'] for e in epochs], [e['fps'] for e in epochs])], False),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout='constrained')
    for ax, (title, lines, log_scale) in zip(axes.flat, panels):
        for label, xs, ys in lines:
            ax.plot(xs, ys, marker='o', markersize=3, label=label)
        ax.set_title(title)
        ax.set_xlabel('epoch')
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        if log_scale:
            ax.set_yscale('log')
        if any(label for label, _, _ in lines):
            ax.legend()
        if title.startswith('Top-1') and lines:
            best = max(zip(lines[0][2], lines[0][1]))
            side = 'right' if best[1] == x[-1] else 'center'  # within the frame
            ax.annotate(f'{best[0]:.2f}', (best[1], best[0]), textcoords='offset points', xytext=(0, -14), ha=side)
        if title.startswith('Training images/s'):
            ax.set_ylim(0, 1.1 * max(lines[0][2]))
    figure.suptitle(f'{plan["model"]}: {plan["world_size"]} x {plan["device"]}, {plan["precision"]}, '
                    f'global batch size {plan["global_batch_size"]}')
    with atomic_path(path) as tmp:
        figure.savefig(tmp, dpi=120)
    plt.close(figure)
