"""The confusion matrix and the worst images of a validation split as pictures."""
import io
import math
from typing import Any, List, Optional

import numpy as np
from PIL import Image

from seresnet_timm.errors import letter_widths
from seresnet_timm.runs.curves import Target, plain_label, pyplot, save_figure
from seresnet_timm.runs.predictions import Predictions

WITH_NUMBERS, WITH_NAMES = 20, 60  # classes, at most
PIXELS = 200  # of a large matrix, at most: a cell of several classes shows the highest of them
THUMBNAIL = 160
COLUMNS = 6


def draw_matrix(predictions: Predictions, target: Target) -> None:
    """Draw the confusion matrix as PNG: with numbers for few classes, with names for some, as a picture for many."""
    plt = pyplot()
    counts = predictions.matrix()
    size = len(counts)
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    side = 8.5 if size > WITH_NAMES else max(4.5, 2.5 + size * (0.55 if size <= WITH_NUMBERS else 0.2))
    figure, ax = plt.subplots(figsize=(side + 1, side), layout='constrained')
    image = ax.imshow(
        shrink(shares), cmap='Blues', norm=_norm(size), extent=(-0.5, size - 0.5, size - 0.5, -0.5),
        interpolation='nearest')
    bar = figure.colorbar(image, ax=ax, shrink=0.8, format=lambda value, _: f'{100 * value:g} %')
    bar.set_label("share of the class's images")
    ax.set_xlabel('predicted class')
    ax.set_ylabel('class')
    ax.set_title(f'{predictions.top1:.2f} % of {len(predictions.files):,} images are right')
    if size <= WITH_NAMES:
        names = short_names(predictions.class_names)
        font = 9 if size <= WITH_NUMBERS else 7
        is_wide = max(map(letter_widths, names)) * 0.65 * font > 72 * (side - 2.5) / size  # than a cell, in points
        ax.set_xticks(range(size), names, rotation=90 if is_wide else 0, fontsize=font)
        ax.set_yticks(range(size), names, fontsize=font)
    else:
        ax.set_xlabel('predicted class (index)')
        ax.set_ylabel('class (index)')
    if size <= WITH_NUMBERS:
        font = 9 if counts.max() < 1e5 or size <= 5 else 7
        for (i, j), count in np.ndenumerate(counts):
            if count:
                ax.text(j, i, str(count), ha='center', va='center', fontsize=font,
                        color='white' if shares[i, j] > 0.5 else 'black')
    save_figure(figure, target, 110)


def short_names(class_names: List[str]) -> List[str]:
    """Names for the axes; with their index where two would look the same without their middle."""
    names = [plain_label(name, 32) for name in class_names]
    if len(set(names)) == len(set(class_names)):
        return names
    return [f'{i}: {plain_label(name, 27)}' for i, name in enumerate(class_names)]


def _norm(size: int) -> Any:
    """Few errors among many classes are pale on a linear scale."""
    from matplotlib.colors import Normalize, PowerNorm
    return Normalize(0, 1) if size <= WITH_NUMBERS else PowerNorm(0.5 if size <= WITH_NAMES else 0.35, 0, 1)


def shrink(shares: np.ndarray) -> np.ndarray:
    """A matrix of at most `PIXELS` rows and columns, each the highest of several."""
    step = math.ceil(len(shares) / PIXELS)
    edge = -len(shares) % step
    padded = np.pad(shares, ((0, edge), (0, edge)))
    blocks = len(padded) // step
    return padded.reshape(blocks, step, blocks, step).max(axis=(1, 3))


def thumbnail(image: Optional[Image.Image]) -> Optional[Image.Image]:
    """A small picture of an image on a square; None for None."""
    if image is None:
        return None
    longest = max(image.size)
    width, height = (max(1, round(side * THUMBNAIL / longest)) for side in image.size)  # a line stays a line
    square = Image.new('RGB', (THUMBNAIL, THUMBNAIL), '#dddddd')
    method = Image.Resampling.NEAREST if longest < THUMBNAIL / 2 else Image.Resampling.BICUBIC
    square.paste(image.resize((width, height), method), ((THUMBNAIL - width) // 2, (THUMBNAIL - height) // 2))
    return square


def as_jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=88)
    return stream.getvalue()


def draw_worst(predictions: Predictions, images: List[int], target: Target) -> None:
    """Draw images with their class, what they were taken for and the probability, as a contact sheet (PNG)."""
    plt = pyplot()
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.45 * rows), squeeze=False,
                                layout='constrained')
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, i in zip(axes.flat, images):
        image = thumbnail(predictions.open_image(predictions.files[i]))
        if image is not None:
            ax.imshow(image)
        names = predictions.class_names
        ax.set_title(f'{plain_label(names[predictions.targets[i]], 28)}\n'
                     f'taken for {plain_label(names[predictions.predicted[i]], 19)}\n'
                     f'{100 * predictions.probability[i]:.0f} %', fontsize=8)
    save_figure(figure, target, 110)
