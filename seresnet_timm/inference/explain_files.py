"""What `explain` writes: the pictures of gates and maps, and the gates as JSON, in a new folder."""
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from PIL import Image

from seresnet_timm.errors import RunError, UsageError, first_line, printable
from seresnet_timm.files import temporary_folder, why_not_writable, write_json
from seresnet_timm.inference.explain import Block, Explainer, Seen, class_names
from seresnet_timm.runs.curves import COLORS, STYLES, plain_label, pyplot, save_figure

SCHEMA = 1
MAX_CLASSES = 5  # lines in a panel
MAX_CHANNELS = 64  # on a panel; more cannot be told apart
GATES, GATES_JSON = 'gates.png', 'explain.json'


def check_folder(out: str) -> Path:
    """The folder to write.

    Raises:
        UsageError: It exists and is not empty, or cannot be made.
    """
    target = Path(out)
    is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if os.path.lexists(target) and not is_empty:
        raise UsageError(f'{printable(out)} exists and is not an empty folder: name another with --output, or remove '
                         'it first.')
    reason = why_not_writable(target)
    if reason:
        raise UsageError(f'--output {printable(out)} cannot be written: {reason}; name another.')
    return target


def write(
        explainer: Explainer, files: Sequence[str], groups: Optional[List[int]], target: Path, maps: int) -> List[str]:
    """Look at the images and write what the network sees into a folder, all of it or nothing.

    Args:
        explainer: Looks at the images.
        files: The images.
        groups: As for `Explainer.run`.
        target: The folder; it does not exist, or is empty.
        maps: Number of maps to draw, of images from all over the list.

    Returns:
        The names of the files.

    Raises:
        RunError: No image can be read, or the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent, f'.{target.name}.') as folder:
            inside = folder / 'new'
            inside.mkdir()
            drawn = {files[i * len(files) // maps] for i in range(maps)} if maps < len(files) else set(files)
            images = [_write_image(explainer, seen, inside if seen.file in drawn else None, number)
                      for number, seen in enumerate(explainer.run(files, groups), 1)]
            if not images:
                raise RunError(f'None of the {len(files)} images can be read, the first because '
                               f'{explainer.errors[files[0]].rstrip(".")}.')
            if explainer.blocks:
                draw_gates(explainer, inside / GATES)
            write_json(inside / GATES_JSON, as_document(explainer, images, 'folder' if groups else 'predicted'))
            os.replace(inside, target)
    except OSError as e:
        raise RunError(f'{printable(target)} cannot be written ({e.strerror or first_line(e)}): free disk space, or '
                       'name another folder with --output.')
    return sorted(p.name for p in target.iterdir())


def _write_image(explainer: Explainer, seen: Seen, folder: Optional[Path], number: int) -> Dict[str, Any]:
    """Draw the map of an image, if a folder is given, and say what was seen in it."""
    names, picture = class_names(explainer.loaded), None
    if seen.map is not None and folder is not None:
        stem = re.sub('[^A-Za-z0-9.-]+', '_', Path(os.fsencode(seen.file).decode('ascii', 'ignore')).stem)[:60]
        picture = f'map_{number:04d}_{stem}'.rstrip('_') + '.png'  # the stem may be in other letters only
        draw_map(seen, names, folder / picture)
    return {'file': seen.file, 'class': names[seen.group], 'predicted': names[seen.predicted],
            'probability': seen.probability, 'target': names[seen.target], 'map': picture}


def as_document(explainer: Explainer, images: List[Dict[str, Any]], grouped_by: str) -> Dict[str, Any]:
    """Everything but the pictures; the gates of every channel as a mean over the images of a class, and of all."""
    names = class_names(explainer.loaded)
    return {
        'schema': SCHEMA, 'model': explainer.loaded.info.name, 'weights': explainer.loaded.origin,
        'grouped_by': grouped_by, 'map_layer': explainer.layer, 'images': images,
        'classes': [{'class': names[i], 'images': explainer.counts[i]} for i in sorted(explainer.counts)],
        'blocks': [{
            'name': block.name, 'stage': block.stage, 'channels': len(mean_gates(explainer, block)),
            'mean': mean_gates(explainer, block).tolist(),
            'by_class': {names[i]: (block.sums[i] / explainer.counts[i]).tolist() for i in sorted(block.sums)},
        } for block in explainer.blocks],
    }


def mean_gates(explainer: Explainer, block: Block) -> np.ndarray:
    total = sum(explainer.counts.values())
    return sum(block.sums.values()).numpy() / total  # type: ignore[union-attr]


# --- pictures ---------------------------------------------------------------------------------------------------------

def draw_gates(explainer: Explainer, path: Path) -> None:
    """Draw the gates as PNG: their mean by depth, and by channel in the last block of each stage, a line a class."""
    plt = pyplot()
    last = list({block.stage: block for block in explainer.blocks}.values())
    shown = sorted(explainer.counts, key=lambda i: (-explainer.counts[i], i))[:MAX_CLASSES]
    columns = 2
    rows = -(-(len(last) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 3.2 * rows + 0.6), layout='constrained', squeeze=False)
    for ax in axes.flat[len(last) + 1:]:
        ax.remove()
    names = class_names(explainer.loaded)
    _draw_depth(axes.flat[0], explainer, shown)
    for ax, block in zip(axes.flat[1:], last):
        _draw_channels(ax, explainer, block, shown)
    handles = [axes.flat[0].plot([], [], **_look(n), label=f'{plain_label(names[i], 30)} ({explainer.counts[i]})')[0]
               for n, i in enumerate(shown)]
    handles.append(axes.flat[0].plot([], [], **_all(), label=f'all ({sum(explainer.counts.values())})')[0])
    figure.legend(handles=handles, loc='outside lower center', ncols=3, title='Class (number of images)',
                  handlelength=3)
    figure.suptitle(f'Gates of Squeeze-and-Excitation: {plain_label(explainer.loaded.info.name or "")}')
    save_figure(figure, path, 120)


def _draw_depth(ax: Any, explainer: Explainer, shown: List[int]) -> None:
    """The mean over the channels of every block, from the first to the last; their spread as a band."""
    x = range(1, len(explainer.blocks) + 1)
    gates = [mean_gates(explainer, block) for block in explainer.blocks]
    mean, spread = np.array([g.mean() for g in gates]), np.array([g.std() for g in gates])
    ax.fill_between(x, np.clip(mean - spread, 0, None), mean + spread, color='#000000', alpha=0.12, linewidth=0)
    for n, i in enumerate(shown):
        ax.plot(x, [float((b.sums[i] / explainer.counts[i]).mean()) for b in explainer.blocks], **_look(n), marker='o',
                markersize=3)
    ax.plot(x, mean, **_all())
    ax.set_title('Mean of the channels; band: their spread', fontsize=10)
    ax.set_xlabel('SE block, by depth')
    ax.xaxis.get_major_locator().set_params(integer=True)
    _finish(ax)


def _draw_channels(ax: Any, explainer: Explainer, block: Block, shown: List[int]) -> None:
    mean = mean_gates(explainer, block)
    chosen = np.unique(np.linspace(0, len(mean) - 1, MAX_CHANNELS).round().astype(int))
    for n, i in enumerate(shown):
        ax.plot(chosen, (block.sums[i] / explainer.counts[i]).numpy()[chosen], **_look(n))
    ax.plot(chosen, mean[chosen], **_all())
    some = f', one in {len(mean) // MAX_CHANNELS} is drawn' if len(mean) > MAX_CHANNELS else ''
    ax.set_title(f'{plain_label(block.name)}: {len(mean)} channels{some}', fontsize=10)
    ax.set_xlabel('channel')
    _finish(ax)


def _finish(ax: Any) -> None:
    ax.set_ylabel('gate')
    ax.set_ylim(bottom=0, top=max(1., ax.get_ylim()[1]))
    ax.grid(visible=True, alpha=0.3)


def _look(n: int) -> Dict[str, Any]:
    colors = [color for color in COLORS if color != '#000000']
    return dict(color=colors[n], linestyle=STYLES[n][0], linewidth=1.3)


def _all() -> Dict[str, Any]:
    return dict(color='#000000', linewidth=2, alpha=0.8)


def draw_map(seen: Seen, names: List[str], path: Path) -> None:
    """Draw an image as the network gets it, and its class activation map over it, as PNG."""
    plt = pyplot()
    image = seen.image if seen.image.shape[2] == 3 else np.repeat(seen.image[..., :1], 3, axis=2)
    height, width = image.shape[:2]
    size = (max(width, 320), max(height, 320 * height // width))
    large = np.asarray(Image.fromarray((255 * image).round().astype(np.uint8)).resize(
        size, Image.Resampling.NEAREST if width < 160 else Image.Resampling.BICUBIC))
    heat = np.asarray(Image.fromarray(np.asarray(seen.map, np.float32)).resize(size, Image.Resampling.BILINEAR))
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 4.4), layout='constrained')
    for ax in axes:
        ax.imshow(large)
        ax.set_axis_off()
    shown = axes[1].imshow(heat, cmap='inferno', vmin=0, vmax=1, alpha=0.25 + 0.5 * heat)
    bar = figure.colorbar(plt.cm.ScalarMappable(shown.norm, 'inferno'), ax=axes[1], shrink=0.85)
    bar.set_label('evidence for the class')
    axes[0].set_title(
        f'Predicted: {plain_label(names[seen.predicted], 26)}, {100 * seen.probability:.1f} %', fontsize=10)
    empty = '' if heat.any() else ': no evidence for it'
    axes[1].set_title(f'Grad-CAM of {plain_label(names[seen.target], 30)}{empty}', fontsize=10)
    save_figure(figure, path, 100)
