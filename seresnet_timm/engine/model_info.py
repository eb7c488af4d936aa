"""What a run knows about its model and its classes, for checkpoints and run.json"""
from typing import Any, Dict, List, Optional

import torch.nn as nn
from timm.data import ImageNetInfo, infer_imagenet_subset

from seresnet_timm.checkpoints.checkpoint import INFO_KEY, Checkpoint
from seresnet_timm.data.classes import describe_difference, names_of_dataset
from seresnet_timm.data.label_files import read_valid_labels
from seresnet_timm.errors import RunError, UsageError, printable
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
        RunError: They differ: the folder has changed since, or the two readers of folders do not agree. Or a dataset
            that only its own reader knows has more classes than the model has outputs.
    """
    names, outputs = names_of_dataset(dataset), settings.args.get('num_classes')
    if settings.class_names is None and names is not None and outputs and len(names) > outputs and not (
            settings.args.get('valid_labels')):
        raise RunError(f'The dataset has {len(names)} classes, the model {outputs} outputs: give --num-classes '
                       f'{len(names)}.')
    difference = describe_difference(
        settings.class_names, names, 'the plan of this run', 'the data folder now')
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
    * an evaluation of a model of ImageNet on folders whose names are the indices, as in ImageNet-V2

    Args:
        checkpoint: As from `read_checkpoint`.
        names: Names of the data's classes, by index; None if not known.
        args: Flags: `data_dir`, `class_map`, and `valid_labels` of validate.py.
    """
    difference = _difference(checkpoint, names, args)
    if not difference:
        return None
    return (f'Checkpoint {printable(checkpoint.path)} was trained with other classes than {printable(args.data_dir)} '
            f'has ({difference}): name its own data with --data-dir; or rename the class folders; or, if they are '
            'the same classes under other names, list the folders in the order of the checkpoint in a file for '
            '--class-map.')


def refuse_other_classes(checkpoint: Optional[Checkpoint], dataset: Any, args: Any) -> None:
    """Refuse data whose classes cannot be those of a checkpoint, if there is one.

    Raises:
        UsageError: `describe_other_classes` says why.
    """
    difference = describe_other_classes(checkpoint, names_of_dataset(dataset), args) if checkpoint else None
    if difference:
        raise UsageError(difference)


def describe_other_start(checkpoint: Checkpoint, names: Optional[List[str]], args: Any) -> Optional[str]:
    """Why a training cannot start from the classifier of a checkpoint, with the remedy; None if it can."""
    difference = _difference(checkpoint, names, args)
    if not difference:
        return None
    path = printable(checkpoint.path)
    return (f'--initial-checkpoint {path} was trained with other classes than {printable(args.data_dir)} has '
            f'({difference}), and --initial-checkpoint keeps its classifier: to take its other weights and train a new '
            f'classifier, give --pretrained-path {path} instead; if they are the same classes, list the folders in '
            'the order of the checkpoint in a file for --class-map.')


def describe_unnamed(path: str, checkpoint: Checkpoint, settings: RunSettings) -> Optional[str]:
    """That the classes of a checkpoint cannot be compared with those of the data, as a sentence; None if they can."""
    if class_names_in(checkpoint) is not None or settings.class_names is None:
        return None
    return (f'{printable(path)} holds no class names: its classes cannot be compared with those of the data; their '
            'order is taken to be the same.')


def _difference(checkpoint: Checkpoint, names: Optional[List[str]], args: Any) -> Optional[str]:
    known = class_names_in(checkpoint)
    if known is None or names is None:
        return None
    is_evaluation = hasattr(args, 'valid_labels')
    if is_evaluation and are_indices(names) and set(known) == set(imagenet_names(len(known)) or ()):
        return None  # the folders 0, 1, 2 ... of ImageNet-V2 are the classes with these indices
    if getattr(args, 'valid_labels', None):
        known = [known[i] for i in read_valid_labels(args.valid_labels) if i < len(known)]
    return difference_by_map(known, names) if args.class_map else describe_difference(known[:len(names)], names)


def difference_by_map(known: List[str], names: List[str], where: str = 'the checkpoint') -> Optional[str]:
    """`describe_difference` of outputs and the names of a class map, which may give an output another name.

    It cannot give one the name of another output.
    """
    in_file, in_data = set(known), set(names)
    renamed = [n if k not in in_data and n not in in_file else k for k, n in zip(known, names)]
    return describe_difference(renamed, names, where)


def are_indices(names: List[str]) -> bool:
    """The names of the classes are their indices."""
    return all(n.isascii() and n.isdigit() and int(n) == i for i, n in enumerate(names))


def class_names_in(checkpoint: Checkpoint) -> Optional[List[str]]:
    """Class names in a file, if any. The rest of its `model_info` does not matter where flags describe the model."""
    info = checkpoint.content.get(INFO_KEY)
    names = info.get('class_names') if isinstance(info, dict) else None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def imagenet_names(num_classes: Optional[int]) -> Optional[List[str]]:
    """Names of the classes of ImageNet, or of a larger set that timm knows, if a model has as many outputs."""
    subset = infer_imagenet_subset({'num_classes': num_classes}) if num_classes else None
    return None if subset is None else list(ImageNetInfo(subset).label_names())
