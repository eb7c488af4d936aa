"""How many outputs a model gets for its data, and which class each of them is"""
from dataclasses import replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from seresnet_timm.errors import UsageError, counted, first_names, printable
from seresnet_timm.launch.dataset import MAX_NAMED, DataFacts, named
from seresnet_timm.runs.settings import RunSettings


def name_outputs(verb: str, sources: Any, args: Dict[str, Any], data: DataFacts) -> DataFacts:
    """Let an evaluation number the classes as the training of its model did, by their names.

    Without names of the model's outputs, or where the data has other names, nothing changes; the checks compare them.

    Args:
        verb: 'train' or 'validate'.
        sources: Where the settings come from, as in `plan`; reasons and notes are added.
        args: Flags of the script.
        data: What the data folder holds.
    """
    if verb != 'validate' or data.class_names is None or data.problems:
        return data
    outputs, origin = _names_of_outputs(sources, args)
    if data.mapped and outputs and not sources.checkpoints:  # whose classes the checks compare
        return replace(data, problems=[*data.problems, *_other_order(outputs, data.class_names, args)])
    if data.mapped or data.is_fixed:
        return data
    if outputs is None or not _can_name(outputs, data.class_names):
        return _numbered_folders(sources, args, data, outputs)
    sources.notes += _numbered_by(outputs, data.class_names, origin)
    if len(outputs) > len(data.class_names):
        sources.reasons['class_names'] = f'{len(data.class_names)} of the classes {origin} in the data'
    return replace(data, class_names=outputs)


def _numbered_folders(sources: Any, args: Dict[str, Any], data: DataFacts, outputs: Optional[List[str]]) -> DataFacts:
    """Let the folders 0, 1, 2 ... be the classes with these indices, as in ImageNet-V2.

    For a model of ImageNet, or one whose classes have no names. Folders that count from 1 could be meant otherwise.
    """
    from seresnet_timm.engine.model_info import imagenet_names
    names = data.class_names or []
    count = len(outputs) if outputs else args.get('num_classes') or _outputs_of(args['model'])
    by_number = {int(n): n for n in names if n.isascii() and n.isdigit()}
    if len(by_number) < len(names) or args.get('valid_labels') or not count:
        return data
    if outputs and set(outputs) != set(imagenet_names(len(outputs)) or ()):
        return data  # a checkpoint with names of its own, which the checks compare
    if 0 not in by_number or max(by_number) >= count:
        if outputs is None and len(names) == count:
            return data
        problem = (f'The class folders of {printable(args["data_dir"])} are numbers ({min(by_number)} to '
                   f'{max(by_number)}), the outputs of the model have the numbers 0 to {count - 1}: which folder is '
                   'which class is not known. Rename them to 0, 1, 2 ..., or list them in the order of the outputs in '
                   'a file for --class-map.')
        return replace(data, problems=[*data.problems, problem])
    if len(names) < count or [by_number[i] for i in range(count)] != names or outputs:
        sources.notes.append(f'The class folders are numbers: folder {by_number[0]} is taken for class 0 of the model, '
                             f'and so on to {by_number[max(by_number)]}.')
    if len(names) < count:
        sources.reasons['class_names'] = f'{len(names)} of {count} classes in the data, by number'
    return replace(data, class_names=[by_number.get(i, str(i)) for i in range(count)])


def _other_order(outputs: List[str], names: List[str], args: Dict[str, Any]) -> List[str]:
    """That a class map gives outputs the names of others, as a sentence."""
    from seresnet_timm.engine.model_info import difference_by_map
    difference = difference_by_map(outputs, names, 'the model')
    return [f'{printable(args["model"])} was trained with other classes than --class-map names ({difference}): list '
            'the folders in the order of its outputs; or leave --class-map out, which evaluates the folders by name.'
            ] if difference else []


def name_outputs_of_hub(settings: RunSettings) -> Tuple[RunSettings, List[str]]:
    """The same for a pretrained model whose folder is there only when it was pulled.

    Args:
        settings: Settings of the run.

    Returns:
        The settings with the names of the outputs, and faults, each a sentence.
    """
    from seresnet_timm.data.classes import describe_difference
    from seresnet_timm.models.create import read_model_config
    args, found = settings.args, settings.class_names
    local = args['model'].partition('local-dir:')[2]
    folder = settings.model_folder or local
    if settings.verb != 'validate' or args.get('checkpoint') or not (folder and found):
        return settings, []
    try:
        config = read_model_config(folder)
    except UsageError:
        return settings, []  # the checks create the model and say so
    names = config.get('label_names') or config.get('pretrained_cfg', {}).get('label_names')
    if not isinstance(names, list):
        return settings, []
    if args.get('valid_labels'):
        try:
            from seresnet_timm.data.label_files import read_valid_labels
            names = [names[i] for i in read_valid_labels(args['valid_labels'], len(names))]
        except UsageError:
            return settings, []  # the checks say so
    if args.get('class_map'):
        return settings, _other_order(names, found, args)
    if not _can_name(names, found):
        difference = describe_difference(names, found, 'the model')
        return settings, [f'{printable(args["model"])} was trained with other classes than {args["data_dir"]} has '
                          f'({difference}): rename the class folders, or list them in the order of the outputs in a '
                          'file for --class-map.'] if difference else []
    notes = _numbered_by(names, found, 'of the model')
    return replace(settings, class_names=names, notes=settings.notes + notes), []


def _can_name(outputs: Sequence[str], found: Sequence[str]) -> bool:
    """Every class of the data is one output, by its name."""
    return len(set(outputs)) == len(outputs) and set(found) <= set(outputs)


def _numbered_by(outputs: Sequence[str], found: Sequence[str], origin: str) -> List[str]:
    """What is to be told where the classes are numbered by the outputs of a model."""
    absent = [n for n in outputs if n not in set(found)]
    if absent:
        return [f'The data has {len(found)} of the {len(outputs)} classes {origin}; they are evaluated by name. '
                f'Without images: {named(absent)}.']
    if list(outputs) != list(found):
        return [f'The classes are numbered in the order {origin}, not in that of the folders.']
    return []


def _names_of_outputs(sources: Any, args: Dict[str, Any]) -> Tuple[Optional[List[str]], str]:
    """Names of what the model distinguishes, by index, and where they come from; None if not known."""
    from seresnet_timm.data.label_files import read_valid_labels
    from seresnet_timm.engine.model_info import class_names_in, imagenet_names
    checkpoint = next(iter(sources.checkpoints.values()), None)
    names, origin = (class_names_in(checkpoint) if checkpoint else None), 'of the checkpoint'
    if names is None:
        names = imagenet_names(args.get('num_classes') or _outputs_of(args['model']))
        origin = 'of ImageNet, of which the model has the number'
    if names is not None and args.get('valid_labels'):
        try:
            names = [names[i] for i in read_valid_labels(args['valid_labels'], len(names))]
        except UsageError:
            return None, ''  # the checks say so
        origin += ', by --valid-labels'
    return names, origin


def decide_classes(verb: str, sources: Any, args: Dict[str, Any], data: DataFacts) -> List[str]:
    """Set the number of outputs where the user leaves it open; faults, each a sentence.

    Args:
        verb: 'train' or 'validate'.
        sources: Where the settings come from, as in `plan`; a reason is added.
        args: Flags of the script; `num_classes` may be set.
        data: What the data folder holds.
    """
    sources.notes += data.notes
    if data.class_names is None or data.problems:
        return []
    count = len(data.class_names)
    asked = sources.asked('num_classes')
    if args.get('num_classes'):
        sources.reasons.setdefault('num_classes', '--num-classes' if 'num_classes' in sources.flags else (
            '--config' if asked else 'the preset'))
    outputs = args.get('num_classes') or _outputs_of(args['model'])
    if verb == 'train' and not asked:
        if outputs != count:
            owner = 'the recipe' if args.get('num_classes') else args['model']
            was = f', where {owner} has {outputs}' if outputs else ''
            args['num_classes'] = count
            sources.reasons['num_classes'] = f'as many as the data has classes{was}'
        return []
    labels = _valid_labels(args)
    if labels is not None and len(labels) < count:
        return [f'--valid-labels {printable(args["valid_labels"])} has {counted(len(labels), "index", "indices")}, the '
                f'data {count} classes: give the index of each, in the order of their folders.']
    if outputs is None:
        return []
    if outputs < count and not args.get('valid_labels'):
        what = f'--class-map has {count} classes' if data.mapped else f'The data has {count} classes'
        nested = (f' The last folder is the class: {first_names(data.nested, MAX_NAMED)}; timm does not take the first '
                  'one.' if data.nested else '')
        return [f'{what}, the model {outputs} outputs: give --num-classes {count}.{nested}']
    has_weights = any(args.get(k) for k in ('resume', 'initial_checkpoint', 'pretrained_path'))
    if verb == 'train' and outputs > count and not has_weights and not data.mapped:
        return [f'--num-classes {outputs}, but the data has {count} classes: give --num-classes {count}, or leave it '
                'out.']
    if outputs > count and not args.get('valid_labels'):
        sources.notes.append(f'The model has {outputs} outputs, the data {count} classes: the first {count} outputs '
                             'are compared with them.')
    return []


def _valid_labels(args: Dict[str, Any]) -> Optional[List[int]]:
    """Indices of `--valid-labels`; None without it, or if they cannot be read, which the checks say."""
    from seresnet_timm.data.label_files import read_valid_labels
    try:
        return read_valid_labels(args['valid_labels']) if args.get('valid_labels') else None
    except UsageError:
        return None


def _outputs_of(model: str) -> Optional[int]:
    """Outputs of a model by default; None where only its creation tells."""
    import timm
    from timm.models import get_pretrained_cfg, split_model_name_tag
    arch = split_model_name_tag(model)[0]
    if not timm.is_model(arch):
        return None
    cfg = get_pretrained_cfg(arch, allow_unregistered=True)
    return cfg.num_classes if cfg else None
