"""The model that a command line means: a timm name, a Hub repository, a checkpoint file or the folder of a run.

With it come the preprocessing of its validation and the names of its classes, both from the file or the repository:
the data of its training is not looked at.
"""
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import timm
import torch
import torch.nn as nn
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.models import get_pretrained_cfg, parse_model_name, split_model_name_tag

from seresnet_timm.checkpoints.checkpoint import INFO_KEY, Checkpoint
from seresnet_timm.checkpoints.fit import model_of
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.data.label_files import read_class_names
from seresnet_timm.errors import RunError, UsageError, did_you_mean, first_line, printable
from seresnet_timm.hub import modelscope, weights
from seresnet_timm.hub.client import hub_name
from seresnet_timm.hub.pull import folder_of, network_of
from seresnet_timm.hub.repository import WEIGHTS
from seresnet_timm.models.create import (
    WRONG_ARGUMENT,
    check_model_name,
    create_model,
    read_model_config,
    refuse_wrong_kinds,
)
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.folder import RunFolder

# what decides how validation saw the images
PREPROCESSING = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


@dataclass
class LoadedModel:
    """A model in eval mode on the CPU, float32, and what is known of it.

    Attributes:
        model: The network.
        info: Its name, arguments, classes and preprocessing, as they are used.
        origin: Where its weights came from.
        class_descriptions: What the class names mean, where that is known.
        class_names_origin: Where the class names came from, or why there are none.
        flags: Flags that override the file, as they were given.
        unknown: What of the preprocessing the file does not hold, so that timm's values are taken.
        image_mode: Pillow's mode that images are read in; None for grey or RGB by the channels.
    """
    model: nn.Module
    info: ModelInfo
    origin: str
    class_descriptions: Optional[List[str]] = None
    class_names_origin: str = ''
    flags: List[str] = field(default_factory=list)
    unknown: List[str] = field(default_factory=list)
    image_mode: Optional[str] = None

    @property
    def data_config(self) -> Dict[str, Any]:
        """Preprocessing, as timm's `create_transform` takes it."""
        values = {k: getattr(self.info, k) for k in PREPROCESSING}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    def describe(self) -> List[str]:
        """Model, preprocessing and classes, a line each."""
        info = self.info
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        mode = f'images as {printable(self.image_mode)}, ' if self.image_mode else ''
        lines = [
            f'Model: {info.name} ({millions:.2f} M parameters), {self.origin}',
            f'Preprocessing: {mode}resize and crop to {info.input_size[1]} x {info.input_size[2]} '
            f'({info.interpolation}, crop {info.crop_pct:g}, {info.crop_mode}), '
            f'mean {_numbers(info.mean)}, std {_numbers(info.std)}',
            f'Classes: {info.num_classes}, {self.class_names_origin}',
        ]
        if self.unknown:
            lines.append(f"Not in the file, timm's values of {info.name} are taken: {', '.join(self.unknown)}. If it "
                         'was trained with others, its predictions are wrong.')
        if self.flags:
            lines.append(f'From the command line, not from the file: {", ".join(self.flags)}')
        return [printable(line) for line in lines]


def load_model(
        source: str,
        model_name: Optional[str] = None,
        num_classes: Optional[int] = None,
        img_size: Optional[int] = None,
        crop_pct: Optional[float] = None,
        use_ema: bool = False,
        class_names: Optional[str] = None,
) -> LoadedModel:
    """Load the model that an argument names.

    Args:
        source: timm name, `hf-hub:org/name`, `modelscope:org/name`, checkpoint file, folder of a run, or folder with a
            `config.json`.
        model_name: Architecture of a checkpoint file, over the one that the file names.
        num_classes: Number of classes that the checkpoint must have; by default as many as it has.
        img_size: Image size in pixels, over that of the model or the checkpoint.
        crop_pct: Share of the resized image that the crop keeps, likewise.
        use_ema: Take the moving average of a checkpoint.
        class_names: File with the name of a class a line, in the order of the indices.

    Raises:
        UsageError: There is no such model, or the file cannot be read or does not fit.
        RunError: Its weights cannot be downloaded or read.
    """
    if modelscope.is_name(source):
        source = f'local-dir:{folder_of(source)}'
    source, path = _resolve(source)
    if path is None:
        for flag, value in (('--model', model_name), ('--use-ema', use_ema or None), ('--num-classes', num_classes)):
            if value is not None:
                raise UsageError(f'{flag} is for checkpoint files, {source} is the name of a model: leave it out.')
        model, name, origin = _load_named(source, img_size)
        info, names, descriptions = ModelInfo(), *_names_of_config(model)
    else:
        model, info, origin = _load_file(path, model_name, num_classes, img_size, use_ema)
        name, names, descriptions = info.name, info.class_names, None
    data_config = _preprocessing(model, info, source, img_size, crop_pct)
    if class_names is not None:
        names, names_origin = read_class_names(class_names, model.num_classes), f'names from {class_names}'
        descriptions = None
    elif names is not None:
        names_origin = 'names from the file' if path is not None else 'names from its configuration'
    else:
        names, descriptions, names_origin = _guess_names(model.num_classes)
    if names is not None:
        descriptions = descriptions or _wordnet(names)
    given = (('--model', model_name), ('--img-size', img_size), ('--crop-pct', crop_pct),
             ('--class-names', class_names))
    return LoadedModel(
        model=model.float().eval(),
        info=replace(ModelInfo.of_model(model, data_config, names), name=name, num_classes=model.num_classes,
                     class_names=names),
        origin=origin,
        class_descriptions=descriptions,
        class_names_origin=names_origin,
        flags=[f'{flag} {value}' for flag, value in given if value is not None],
        unknown=[] if path is None else info.unknown_preprocessing(),
        image_mode=info.image_mode,
    )


def untrained_model(
        name: str,
        num_classes: Optional[int],
        img_size: Optional[int],
        seed: int,
        kwargs: Dict[str, Any],
) -> LoadedModel:
    """A network with the random weights of a seed.

    Raises:
        UsageError: There is no such network, or it does not take one of the arguments.
    """
    check_model_name(name)
    name = split_model_name_tag(name)[0]
    torch.manual_seed(seed)
    arguments = {'num_classes': num_classes, **_size_argument(name, img_size), **kwargs}
    try:
        model = create_model(name, pretrained=False, exportable=True, **arguments)
    except WRONG_ARGUMENT as e:
        if not kwargs:
            raise
        raise UsageError(f'{name} cannot be made with --model-kwargs ({printable(first_line(e))}): check them.') from e
    refuse_wrong_kinds(kwargs, model)
    data_config = _preprocessing(model, ModelInfo(), name, img_size, None)
    info = replace(ModelInfo.of_model(model, data_config), name=name, num_classes=model.num_classes)
    return LoadedModel(model.float(), info, f'random weights of seed {seed}')


def read_model_file(source: str) -> Checkpoint:
    """The checkpoint that a file, the folder of a run or a model on the Hub means.

    Raises:
        UsageError: There is no such file, or it cannot be read.
        RunError: The model on the Hub cannot be pulled.
    """
    folder = folder_of(source)
    if folder is not None:
        return _of_folder(folder)
    path = Path(source.removeprefix('local-dir:'))
    if not path.exists() and timm.is_model(split_model_name_tag(source)[0]):
        raise UsageError(f'{source} is the name of a model, not a checkpoint: name a file, the folder of a run or a '
                         'model on the Hub (hf-hub:org/name).')
    if not path.is_dir():
        return read_checkpoint(path)
    file = RunFolder(path).checkpoint()
    if file is not None:
        return read_checkpoint(file)
    if (path / 'config.json').is_file():
        return _of_folder(path)
    _, found = _resolve(str(path))  # says what is wrong
    return read_checkpoint(found or path)


def _of_folder(folder: Path) -> Checkpoint:
    """The weights in a folder as the Hub has it, with the network and preprocessing that its config.json says."""
    config = read_model_config(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f'{folder} holds no weights ({" or ".join(WEIGHTS)}).')
    checkpoint = read_checkpoint(path)
    if checkpoint.content.get(INFO_KEY) is not None:
        return checkpoint
    settings = {**config, **config.get('pretrained_cfg', {})}
    names, count = settings.get('label_names'), config.get('num_classes', settings.get('num_classes'))
    size = settings.get('input_size')
    info = {
        'name': config['architecture'], 'kwargs': config.get('model_args'), 'num_classes': count,
        'in_chans': size[0] if isinstance(size, list) and size else None,
        'class_names': names if isinstance(names, list) and len(names) == count else None,
        **{k: settings.get(k) for k in PREPROCESSING}}
    return replace(checkpoint, content={'state_dict': checkpoint.weights, INFO_KEY: info})


def _resolve(source: str) -> Tuple[str, Optional[Path]]:
    """timm's name of a model and None, or the argument and the checkpoint file that it means."""
    path = Path(source)
    if not path.exists():
        repository = hub_name(source)
        if repository is not None:
            return f'hf-hub:{repository}', None
        if timm.is_model(split_model_name_tag(source)[0]) or ':' in source:
            return source, None
        looks_like_path = os.sep in source or '.' in source
        hint = 'check the path, or write hf-hub:org/name for a model on the Hub.' if looks_like_path else did_you_mean(
            source, timm.list_models(), 'timm knows no such name.')
        raise UsageError(f"There is no file and no model '{printable(source)}': {hint}")
    if not path.is_dir():
        return source, path
    folder = RunFolder(path)
    file = folder.checkpoint()
    if file is None and (path / 'config.json').is_file():
        return f'local-dir:{path}', None
    if file is None:
        raise UsageError(f'{source} is neither the folder of a run ({folder.best.name} or {folder.last.name}) nor one '
                         'with a config.json: name a checkpoint file.')
    return source, file


def _load_named(source: str, img_size: Optional[int]) -> Tuple[nn.Module, str, str]:
    """A model with the weights that timm has for its name, its name with their tag, and where they came from."""
    try:
        kind, name = parse_model_name(source)
    except ValueError as e:
        raise UsageError(printable(first_line(e)))
    if kind is None:
        check_model_name(name)
        cfg = get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is None or not cfg.has_weights:
            raise UsageError(f'There are no pretrained weights of {source}: name a checkpoint file, and --model '
                             f'{source} if the file does not name the model.')
    folder = folder_of(source)
    try:
        with weights.downloaded(source):
            model = create_model(source, folder, pretrained=True, exportable=True, **_size_argument(source, img_size))
    except (UsageError, RunError):
        raise
    except Exception as e:  # torch, safetensors and timm have their own
        raise RunError(f'The weights of {printable(source)} do not load ({printable(first_line(e))}): if they are '
                       'damaged, remove them from the cache.') from e
    cfg = model.pretrained_cfg
    commit = f'{name.split("@")[0]}@{folder.name}' if folder else ''
    where = {'hf-hub': f'pretrained, from {commit} on the Hub', 'local-dir': f'from {name}'}
    own_name = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))
    source = weights.source_of(name) if kind is None else None
    from_timm = f'pretrained, from {source.where}' if source else 'pretrained'
    return model, own_name or name, where.get(kind or cfg.get('source'), from_timm)


def _load_file(
        path: Path,
        model_name: Optional[str],
        num_classes: Optional[int],
        img_size: Optional[int],
        use_ema: bool,
) -> Tuple[nn.Module, ModelInfo, str]:
    """A model with the weights of a checkpoint file, what it was made from, and where the weights came from."""
    checkpoint = read_checkpoint(path)
    info = checkpoint.typed_info()
    if model_name is not None:
        check_model_name(model_name)
        info = replace(info, name=model_name)
    if use_ema and not checkpoint.has_ema:
        raise UsageError(f'{path} holds no moving average: leave out --use-ema.')
    info, folder = network_of(checkpoint, info)
    model, info = model_of(
        checkpoint, info, use_ema, num_classes=num_classes, img_size=img_size, folder=folder, exportable=True)
    parts = [f'from {path}'] + ([f'epoch {checkpoint.epoch}'] if checkpoint.epoch is not None else [])
    return model, info, ', '.join(filter(None, (*parts, checkpoint.describe_choice(use_ema))))


def _size_argument(name: str, img_size: Optional[int]) -> Dict[str, int]:
    """`img_size` for the models that are made for one, such as transformers."""
    cfg = get_pretrained_cfg(name, allow_unregistered=True) if ':' not in name else None
    return {'img_size': img_size} if img_size is not None and cfg is not None and cfg.fixed_input_size else {}


def _preprocessing(
        model: nn.Module,
        info: ModelInfo,
        source: str,
        img_size: Optional[int],
        crop_pct: Optional[float],
) -> Dict[str, Any]:
    """Preprocessing of validation: flags override the file, and the file overrides timm's configuration."""
    settings = {k: getattr(info, k) for k in ('in_chans', 'input_size', 'interpolation', 'crop_pct', 'crop_mode')}
    if img_size is not None:
        settings.update(input_size=None, img_size=img_size)
    if crop_pct is not None:
        settings['crop_pct'] = crop_pct
    try:
        config = resolve_data_config(settings, model=model, use_test_size=True)
        if info.in_chans is not None:  # timm leaves 3 in the size of its own configuration
            config['input_size'] = (info.in_chans, *config['input_size'][1:])
        for key in ('mean', 'std'):
            config[key] = adapt_to_chs(getattr(info, key) or config[key], config['input_size'][0])  # as timm's loader
        return config
    except (AssertionError, TypeError, ValueError):
        given = {k: v for k, v in settings.items() if v is not None}
        raise UsageError(printable(f'{source} holds invalid preprocessing settings ({given}): the file is damaged.'))


def _names_of_config(model: nn.Module) -> Tuple[Optional[List[str]], Optional[List[str]]]:
    """Names and descriptions of the classes in the configuration of pretrained weights."""
    cfg, count = model.pretrained_cfg, model.num_classes
    names, texts = cfg.get('label_names'), cfg.get('label_descriptions')
    if not isinstance(names, (list, tuple)) or len(names) != count:
        return None, None
    if isinstance(texts, dict):
        texts = [texts.get(name, name) for name in names]
    return list(names), list(texts) if texts and len(texts) == count else None


def _guess_names(num_classes: int) -> Tuple[Optional[List[str]], Optional[List[str]], str]:
    """Names and descriptions of ImageNet's classes, if there are as many; and what to do if not."""
    subset = infer_imagenet_subset({'num_classes': num_classes})
    if subset is None:
        return None, None, 'names unknown: the file does not hold them, name them with --class-names FILE'
    info = ImageNetInfo(subset)
    return list(info.label_names()), info.label_descriptions(), f'names taken from {subset}, by their number'


def _wordnet(names: List[str]) -> Optional[List[str]]:
    """Descriptions of WordNet ids; None for other names."""
    info = ImageNetInfo()
    try:
        return [info.label_name_to_description(name) for name in names]
    except KeyError:
        return None


def _numbers(values) -> str:
    return ', '.join(f'{v:.4g}' for v in values)
