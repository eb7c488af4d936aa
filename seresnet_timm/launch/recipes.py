"""Recipes: one YAML file each, with settings by timm's names and a `recipe:` block that says what is run."""
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional

from seresnet_timm.errors import UsageError, did_you_mean
from seresnet_timm.runs.settings import num_epochs

MOST_AT_ONCE = 256  # images of a process: SE-ResNet-50 at 224 pixels in mixed precision fits 32 GB with them


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        name: Name of the file, without its ending.
        settings: Settings of the script, by timm's names, those of the file that it extends included.
        verb: 'train' or 'validate'; None for a file that is a preset only.
        description: What it does, one line.
        source: The ModelZoo script that it replaces.
        global_batch_size: Images of a step, of all devices and accumulated batches; None leaves it to the settings.
        lr: Learning rate at that batch size.
        epochs: Epochs, warm-up included.
        processes: Processes on a node; None for one a device.
        max_restarts: Restarts of the processes after a failure, at most.
        cpu: Settings on a CPU, and `images`, the images of a process and step there.
        published: Top-1 that its source publishes, and of what.
        expected: Top-1 that it should give.
        measured: Top-1 that this package has reached with it; empty until it has.
        teacher_gmacs: Multiplications of the teacher for an image, in thousands of millions; 0 without one.
    """
    name: str
    settings: Dict[str, Any]
    verb: Optional[str] = None
    description: str = ''
    source: str = ''
    global_batch_size: Optional[int] = None
    lr: Optional[float] = None
    epochs: Optional[int] = None
    processes: Optional[int] = None
    max_restarts: int = 0
    cpu: Dict[str, Any] = field(default_factory=dict)
    published: str = ''
    expected: str = ''
    measured: str = ''
    teacher_gmacs: float = 0.

    @property
    def num_epochs(self) -> int:
        """All epochs, warm-up included."""
        if self.epochs is not None:
            return self.epochs
        return num_epochs(self.settings)


def recipes_dir() -> Path:
    """Folder of the recipes: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / 'recipes'
    return installed if installed.is_dir() else package.parent / 'recipes'


def recipe_path(name: str) -> Path:
    """Path of a recipe's YAML file.

    Args:
        name: File name in `recipes/`, with or without `.yaml`.

    Raises:
        UsageError: There is no such file.
    """
    files = {path.stem: path for path in sorted(recipes_dir().glob('*.yaml'))}
    path = files.get(name[:-len('.yaml')] if name.endswith('.yaml') else name)
    if path is None:
        raise UsageError(f"No preset '{name}': {did_you_mean(name.lower(), files)}")
    return path


def load_recipe(name: str) -> Recipe:
    """Read a recipe and the files that it extends.

    Raises:
        UsageError: There is no such recipe.
    """
    import yaml  # here, so that --help and a Python without it get their answer

    path = recipe_path(name)
    with open(path, encoding='utf-8') as f:
        settings = yaml.safe_load(f)
    block = settings.pop('recipe', {})
    base = load_recipe(block.pop('extends')) if 'extends' in block else Recipe('', {})
    cpu = {**base.cpu, **block.pop('cpu', {})}
    return Recipe(path.stem, {**base.settings, **settings}, cpu=cpu, **block)


def all_recipes() -> Dict[str, Recipe]:
    """All recipes and presets, by name."""
    return {path.stem: load_recipe(path.stem) for path in sorted(recipes_dir().glob('*.yaml'))}


def runnable_recipes() -> Dict[str, Recipe]:
    """The recipes that `seresnet-timm recipe NAME` runs, by name."""
    return {name: recipe for name, recipe in all_recipes().items() if recipe.verb is not None}


def header(name: str) -> str:
    """What a recipe's file says of it: the comment at its beginning."""
    lines = recipe_path(name).read_text(encoding='utf-8').splitlines()
    return '\n'.join(line[2:] for line in itertools.takewhile(lambda line: line.startswith('#'), lines))


def settings_text(name: str) -> str:
    """The settings of a recipe as its file has them, with their comments."""
    lines = recipe_path(name).read_text(encoding='utf-8').splitlines()
    settings = itertools.dropwhile(lambda line: line.startswith('#'), lines)
    return '\n'.join(itertools.takewhile(lambda line: not line.startswith('recipe:'), settings)).strip()


# --- the batch --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Batch:
    """How a global batch is divided.

    Attributes:
        images: Images of a process at once.
        accumulated: Batches that a process adds up for a step.
        total: Images of a step, of all processes.
    """
    images: int
    accumulated: int
    total: int


def divide_batch(total: int, world_size: int, accumulated: Optional[int] = None) -> Batch:
    """Divide a recipe's global batch among the processes.

    Args:
        total: Images of a step, of all processes.
        world_size: Number of processes.
        accumulated: Batches that a process adds up for a step; None for as few as keep a batch at `MOST_AT_ONCE`.

    Returns:
        The division; its total differs a little where the images do not divide. A batch is even, as mixup pairs images.
    """
    each = total / world_size
    if accumulated is None:
        accumulated = max(1, math.ceil(each / MOST_AT_ONCE))
        if round(each) == each:  # a little more steps if they divide then
            even = [n for n in range(accumulated, 2 * accumulated) if each % n == 0 and each // n % 2 == 0]
            accumulated = even[0] if even else accumulated
    images = max(2, 2 * round(each / accumulated / 2))
    return Batch(images, accumulated, images * accumulated * world_size)
