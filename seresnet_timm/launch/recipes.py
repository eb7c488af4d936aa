"""Recipes: one YAML file each, with settings by timm's names and a `recipe:` block that says what is run."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional

from seresnet_timm.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        name: Name of the file, without its ending.
        settings: Settings of the script, by timm's names, those of the file that it extends included.
        verb: 'train' or 'validate'; None for a file that is a preset only.
        description: What it does, one line.
        source: The ModelZoo script that it replaces.
        global_batch_size: Images of a step, of all devices; None leaves it to the settings.
        lr: Learning rate at that batch size.
        epochs: Epochs, warm-up included.
        processes: Processes on a node; None for one a device.
        max_restarts: Restarts of the processes after a failure, at most.
        cpu: Settings on a CPU, and `images`, the images of a process and step there.
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
        raise UsageError(f"No preset '{name}': {did_you_mean(name, files)}")
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


def runnable_recipes() -> Dict[str, Recipe]:
    """The recipes that `seresnet-timm recipe NAME` runs, by name."""
    recipes = {path.stem: load_recipe(path.stem) for path in sorted(recipes_dir().glob('*.yaml'))}
    return {name: recipe for name, recipe in recipes.items() if recipe.verb is not None}
