"""What the overrides of train.py and validate.py have in common: names of timm's scripts that are replaced

The functions in `TrainOverrides.names()` and `ValidateOverrides.names()` replace names in the namespace of the executed
script. Each is called with the arguments of the script; `load` checks that before a run. An object of these classes
belongs to one run: it holds the settings, and what one call leaves for a later one.

Line numbers in these files are those of v1.0.28 (train.py 1fb02d26, validate.py 1ff87867).
"""
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, NamedTuple

import torch
from torch.utils.data import Dataset

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.data import loaders, loading
from seresnet_timm.data.fast_jpeg import choose_decoder, with_fast_decoding
from seresnet_timm.data.image_files import count_unreadable
from seresnet_timm.engine.model import short_name
from seresnet_timm.files import as_json
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.timm_scripts.meters import DeviceMeter


class Override(NamedTuple):
    """A name that is replaced: the function of the script that must call it, and what it calls instead."""
    function: str
    replacement: Callable


def replace_names(module: ModuleType, replacements: Dict[str, Any]) -> None:
    """Replace names of a module and attributes of its objects; of modules that it imported in a copy for itself."""
    for name, replacement in replacements.items():
        root, _, attribute = name.partition('.')
        if not attribute:
            setattr(module, root, replacement)
            continue
        owner = getattr(module, root)
        if isinstance(owner, ModuleType):
            owner = SimpleNamespace(**vars(owner))
            setattr(module, root, owner)
        setattr(owner, attribute, replacement)


class Overrides:
    """What the overrides of both scripts have in common.

    Attributes:
        settings: Settings of the run.
        args: The flags as the script has them, which it adds to (`rank`, `world_size`, `distributed` ...).
        checkpoints: Checkpoints that this process has read, by their path.
        names: The names that are replaced, by a class for each script.
    """
    names: Callable[[], Dict[str, Override]]

    def __init__(self, settings: RunSettings):
        self.settings = settings
        self.args = settings.namespace()
        self.checkpoints: Dict[str, Checkpoint] = {}
        self._originals: Dict[str, Any] = {}

    def install(self, module: ModuleType) -> None:
        """Put the replacements into the script's module."""
        replacements = {name: override.replacement for name, override in self.names().items()}
        self._originals = {name: getattr(module, name) for name in replacements if '.' not in name}
        replace_names(module, replacements)
        if hasattr(module, 'safe_model_name'):  # timm's does not know ModelScope
            module.safe_model_name = short_name
        module._seresnet_timm = self

    def create_model(self, model_name: str, *args, **kwargs) -> torch.nn.Module:
        """Create a model of the Hub from the folder that the launcher has pulled and verified (lines 519 and 222).

        Without: every rank would download it, and timm loads whatever has arrived.
        Checked by: test_overrides.py, a model in a folder and no network.
        """
        if self.settings.model_folder and model_name == self.settings.args['model']:
            model_name = f'local-dir:{self.settings.model_folder}'
        return self._originals['create_model'](model_name, *args, **kwargs)

    def create_dataset(self, name: str, root: str, split: str, class_map: str = '', **kwargs) -> Dataset:
        """Create a dataset with the classes of the plan (lines 632, 651 and 278).

        Without: timm numbers the folders that lie there, those of other programs too; an evaluation of some classes
        has other labels than the training; a byte order mark of a class map is a part of the first name.
        Checked by: test_overrides.py, datasets of both scripts.
        """
        return loaders.create_dataset(
            name, root, split, class_map=class_map, class_names=self.settings.class_names, **kwargs)

    def device_meter(self, device: torch.device) -> DeviceMeter:
        return DeviceMeter(device)

    def _decode_fast(self, dataset: Dataset, is_training: bool) -> Dataset:
        decoder, _ = choose_decoder(self.args, self.settings.fast_jpeg)
        dataset = count_unreadable(dataset, is_training, self.settings.data_timeout)
        return with_fast_decoding(dataset, decoder, loaders.sample_seeds(self.args) if is_training else None)

    def normalization(self, kwargs: Dict[str, Any]) -> Dict[str, Any]:
        """Arguments of `create_loader` whose mean and standard deviation have as many values as the input channels."""
        size = kwargs.get('input_size')
        channels = size[0] if isinstance(size, (tuple, list)) and len(size) == 3 else 3
        return {**kwargs, **{name: loading.for_channels(kwargs[name], channels)
                             for name in ('mean', 'std') if kwargs.get(name) is not None}}

    @staticmethod
    def as_json(value: Any, **kwargs: Any) -> str:
        """Write the results as JSON that every reader takes (line 1173 of train.py, line 551 of validate.py).

        Without: a loss that is not finite is printed as NaN, which JSON does not have.
        Checked by: test_divergence.py ends a run with such a loss.
        """
        return as_json(value, **kwargs)

    def run(self, main: Callable[[], None]) -> None:
        """Run the script's `main`."""
        main()
