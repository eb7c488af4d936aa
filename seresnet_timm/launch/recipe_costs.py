"""What a recipe costs: NPU-hours, computed from published images/s

    hours = epochs x 1,281,167 images x (size / 224)^2 x teacher / (images/s of a device) / 3,600

`size` is that of the training images; where it changes, the mean of the squares counts. `teacher` is 1 without one; a
teacher adds its forward pass to the three passes' worth of a training step. Nobody has published images/s of these
recipes on an Ascend 910: the rates are those of SE-ResNet-50 at 224 pixels, the slowest and the fastest published
ones. Left out: evaluation (1 to 2 %), data loading that is slower than the device, moving averages.
"""
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from seresnet_timm.launch.recipes import Recipe

IMAGENET_IMAGES = 1_281_167
IMAGENET_CLASSES = 1000
DEVICES = 8  # of the published rates
# images/s of 8 Ascend 910, SE-ResNet-50 at 224 pixels: slowest first
RATES: Dict[str, float] = {
    'Ascend ModelZoo, torch 1.8': 5306.66,
    'MindSpore model zoo': 10400.,
}
GMACS = 4.09  # of SE-ResNet-50 for an image of 224 pixels, forward
FORMULA = 'epochs x 1,281,167 images x (size / 224)^2 x teacher / (images/s of a device) / 3,600'


@dataclass(frozen=True)
class Cost:
    """What the training of a recipe costs.

    Attributes:
        epochs: All epochs.
        sizes: Sides of the training images.
        teacher: Factor for the forward pass of a teacher.
        hours: NPU-hours by the name of the rate they are computed from.
    """
    epochs: int
    sizes: Tuple[int, ...]
    teacher: float
    hours: Dict[str, float]


def cost_of(recipe: Recipe) -> Optional[Cost]:
    """What a recipe costs; None where it is not a training on ImageNet."""
    settings = recipe.settings
    if recipe.verb == 'validate' or settings.get('num_classes') != IMAGENET_CLASSES:
        return None
    sizes = tuple(settings.get('train_img_sizes') or [settings.get('img_size') or 224])
    area = sum((size / 224) ** 2 for size in sizes) / len(sizes)
    teacher = 1 + recipe.teacher_gmacs / (3 * GMACS)
    images = recipe.num_epochs * IMAGENET_IMAGES * area * teacher
    hours = {name: images / (rate / DEVICES) / 3600 for name, rate in RATES.items()}
    return Cost(recipe.num_epochs, sizes, teacher, hours)


def describe(cost: Optional[Cost]) -> str:
    """The NPU-hours as text, lowest first."""
    if cost is None:
        return ''
    low, high = sorted(cost.hours.values())
    return f'{number(low)} to {number(high)}'


def number(hours: float) -> str:
    return f'{hours:,.1f}' if hours < 10 else f'{hours:,.0f}'


def basis() -> List[str]:
    """What the NPU-hours are computed from, as lines."""
    rates = '; '.join(f'{rate:,.0f} ({name})' for name, rate in RATES.items())
    return [f'NPU-hours are computed, not measured: {FORMULA}.',
            f'Published images/s of SE-ResNet-50 on {DEVICES} Ascend 910: {rates}.']


def as_json(recipe: Recipe) -> Dict[str, Any]:
    """A recipe as JSON values."""
    cost = cost_of(recipe)
    return {
        'name': recipe.name,
        'description': recipe.description,
        'source': recipe.source,
        'verb': recipe.verb,
        'model': recipe.settings.get('model'),
        'epochs': None if recipe.verb == 'validate' else recipe.num_epochs,
        'global_batch_size': recipe.global_batch_size,
        'img_size': list(cost.sizes) if cost else None,
        'npu_hours': cost.hours if cost else None,
        'published': recipe.published or None,
        'expected': recipe.expected or None,
        'measured': recipe.measured or None,
        'settings': recipe.settings,
    }
