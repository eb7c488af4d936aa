"""What a run knows about its model and its classes, for checkpoints and run.json"""
from typing import Any, Dict, List, Optional

import torch.nn as nn

from seresnet_timm.checkpoints.checkpoint import INFO_KEY, Checkpoint
from seresnet_timm.data.classes import describe_difference, names_of_dataset
from seresnet_timm.errors import RunError, printable
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.settings import RunSettings


def model_info_of(model: nn.Module, data_config: Dict[str, Any], dataset: Any) -> ModelInfo:
    """The model of a run.

    Args:
        model: As `models.create` made it.
        data_config: Preprocessing, as timm's `resolve_data_config` gave it.
        dataset: Dataset whose reader names the classes.
    """
    return ModelInfo.of_model(model, data_config, names_of_dataset(dataset))


def check_planned_classes(settings: RunSettings, dataset: Any) -> None:
    """Refuse a dataset whose classes are not those of the plan.

    Raises:
        RunError: They differ: the folder has changed since, or the two readers of folders do not agree.
    """
    difference = describe_difference(
        settings.class_names, names_of_dataset(dataset), 'the plan of this run', 'the data folder now')
    if difference:
        raise RunError(f'The classes of {printable(settings.args["data_dir"])} are not those of the plan '
                       f'({difference}): start the run again.')


def describe_other_classes(checkpoint: Checkpoint, names: Optional[List[str]], args: Any) -> Optional[str]:
    """Why the classes of a checkpoint cannot be those of the data, as a sentence with the remedy; None if they can.

    The outputs of a model have no names, only indices: in data with other classes, or in another order, an output would
    be taken for another class. These differences are allowed:
      * the data has fewer classes, and those are the first of the checkpoint
      * `--valid-labels` picks the outputs of the data's classes
      * a name that only the data has, where the user says with `--class-map` which class it is

    Args:
        checkpoint: As from `read_checkpoint`.
        names: Names of the data's classes, by index; None if not known.
        args: Flags: `data_dir`, `class_map`, and `valid_labels` of validate.py.
    """
    known = _class_names_in(checkpoint)
    if known is None or names is None:
        return None
    if getattr(args, 'valid_labels', None):
        known = [known[i] for i in read_valid_labels(args.valid_labels) if i < len(known)]
    known = known[:len(names)]
    if args.class_map:
        in_file, in_data = set(known), set(names)
        known = [n if k not in in_data and n not in in_file else k for k, n in zip(known, names)]
    difference = describe_difference(known, names)
    if not difference:
        return None
    return (f'Checkpoint {printable(checkpoint.path)} was trained with other classes than {printable(args.data_dir)} '
            f'has ({difference}): name its own data with --data-dir; or rename the class folders; or, if they are '
            'the same classes under other names, list the folders in the order of the checkpoint in a file for '
            '--class-map.')


def _class_names_in(checkpoint: Checkpoint) -> Optional[List[str]]:
    """Class names in a file, if any. The rest of its `model_info` does not matter where flags describe the model."""
    info = checkpoint.content.get(INFO_KEY)
    names = info.get('class_names') if isinstance(info, dict) else None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def read_valid_labels(path: str) -> List[int]:
    """Class indices that count in an evaluation, from the file of `--valid-labels`."""
    with open(path) as f:
        return [int(line) for line in f if line.strip()]
