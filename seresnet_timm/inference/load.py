"""The model that a command line means: a timm name, a Hub repository, a checkpoint file or the folder of a run.

With it come the preprocessing that its validation used, and the names of its classes where they are known.
"""
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import timm
import torch.nn as nn
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import get_pretrained_cfg, parse_model_name, split_model_name_tag

from seresnet_timm.checkpoints.fit import model_of
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import RunError, UsageError, did_you_mean, first_line
from seresnet_timm.hub.pull import folder_of
from seresnet_timm.models.create import check_model_name, create_model
from seresnet_timm.models.info import ModelInfo

# of a run's folder, the first that is there
RUN_CHECKPOINTS = ('model_best.pth.tar', 'last.pth.tar')
# what decides how validation saw the images
PREPROCESSING = ('in_chans', 'input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


@dataclass
class LoadedModel:
    """A model in eval mode on the CPU, float32, and what is known of it.

    Attributes:
        model: The network.
        name: timm's name of it.
        origin: Where its weights came from.
        data_config: Preprocessing, as from timm's `resolve_data_config`.
        labels: Name of every class by index (WordNet ids for ImageNet), None if unknown.
        descriptions: What the names mean, where that is known.
        labels_origin: Where the names came from, or why there are none.
    """
    model: nn.Module
    name: str
    origin: str
    data_config: Dict[str, Any]
    labels: Optional[List[str]]
    descriptions: Optional[List[str]]
    labels_origin: str

    def describe(self) -> List[str]:
        """Model, preprocessing and classes, a line each."""
        cfg = self.data_config
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        return [
            f'Model: {self.name} ({millions:.2f} M parameters), {self.origin}',
            f'Preprocessing: resize and crop to {cfg["input_size"][1]} x {cfg["input_size"][2]} '
            f'({cfg["interpolation"]}, crop {cfg["crop_pct"]:g}, {cfg["crop_mode"]}), '
            f'mean {_numbers(cfg["mean"])}, std {_numbers(cfg["std"])}',
            f'Classes: {self.model.num_classes}, {self.labels_origin}',
        ]


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
        source: timm name, `hf-hub:org/name`, checkpoint file, folder of a run, or folder with a `config.json`.
        model_name: Architecture of a checkpoint file that does not name its own.
        num_classes: Number of classes that the checkpoint must have; by default as many as it has.
        img_size: Image size in pixels, over what the model or the checkpoint says.
        crop_pct: Share of the resized image that the crop keeps, likewise.
        use_ema: Take the moving average of a checkpoint.
        class_names: File with the name of a class a line, in the order of the indices.

    Raises:
        UsageError: There is no such model, or the file cannot be read or does not fit.
        RunError: Its weights cannot be had.
    """
    path = Path(source)
    is_name = not path.exists() and (timm.is_model(split_model_name_tag(source)[0]) or ':' in source)
    if path.is_dir():
        file = next((path / n for n in RUN_CHECKPOINTS if (path / n).is_file()), None)
        if file is not None:
            path = file
        elif (path / 'config.json').is_file():
            source, is_name = f'local-dir:{path}', True
        else:
            raise UsageError(f'{source} is neither the folder of a run ({" or ".join(RUN_CHECKPOINTS)}) nor one with a '
                             'config.json: name a checkpoint file.')
    requested = {'img_size': img_size, 'crop_pct': crop_pct}
    if is_name:
        for flag, value in (('--model', model_name), ('--use-ema', use_ema or None), ('--num-classes', num_classes)):
            if value is not None:
                raise UsageError(f'{flag} is for checkpoint files, {source} is the name of a model: leave it out.')
        model, name, origin = _load_named(source, img_size)
        info = ModelInfo()
    elif path.exists():
        model, info, origin = _load_file(path, model_name, num_classes, img_size, use_ema)
        name = info.name
    else:
        looks_like_path = os.sep in source or '.' in source
        hint = 'check the path' if looks_like_path else did_you_mean(
            source, timm.list_models(), 'timm knows no such name.')
        raise UsageError(f"There is no file and no model '{source}': {hint.rstrip('.')}.")

    # flags win over what the run was trained with, that over the model's own
    settings = {k: getattr(info, k) for k in PREPROCESSING}
    if img_size is not None:
        settings['input_size'] = None
    settings.update({k: v for k, v in requested.items() if v is not None})
    try:
        data_config = resolve_data_config(settings, model=model, use_test_size=True)
    except (AssertionError, TypeError, ValueError):
        raise UsageError(f'{path} holds preprocessing settings that make no sense '
                         f'({ {k: v for k, v in settings.items() if v is not None} }): the file is damaged.')
    labels, descriptions, labels_origin = _labels(model, info, class_names)
    return LoadedModel(model.float().eval(), name, origin, data_config, labels, descriptions, labels_origin)


def _load_named(source: str, img_size: Optional[int]) -> Tuple[nn.Module, str, str]:
    """A model of timm's with its pretrained weights."""
    try:
        kind, name = parse_model_name(source)
    except ValueError as e:
        raise UsageError(str(e))
    if kind is None:
        check_model_name(name)
        cfg = get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is None or not cfg.has_weights:
            raise UsageError(f'There are no pretrained weights of {source}: name a checkpoint file, and --model '
                             f'{source} if it does not say so itself.')
    folder = folder_of(source)
    try:
        model = create_model(source, folder, pretrained=True, exportable=True, **_size_argument(source, img_size))
    except UsageError:
        raise
    except Exception as e:  # of the download: HTTP clients and the file system have their own
        raise RunError(f'{source} cannot be loaded ({first_line(e)}): check the name and the connection, or download '
                       'the weights elsewhere and name the file.') from e
    cfg = model.pretrained_cfg
    commit = f'{name.split("@")[0]}@{folder.name}' if folder else ''
    where = {'hf-hub': f'pretrained, from {commit} on the Hub', 'local-dir': f'from {name}'}
    own_name = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))
    return model, own_name or name, where.get(kind or cfg.get('source'), f'pretrained, {cfg.get("url")}')


def _load_file(
        path: Path,
        model_name: Optional[str],
        num_classes: Optional[int],
        img_size: Optional[int],
        use_ema: bool,
) -> Tuple[nn.Module, ModelInfo, str]:
    """A model with the weights of a checkpoint file, what it was made from, and where the weights came from."""
    checkpoint = read_checkpoint(path)
    info = checkpoint.info
    if model_name is not None:
        try:
            check_model_name(model_name)
        except UsageError as e:
            raise UsageError(str(e).replace('Unknown model', 'Unknown --model'))
        info = replace(info, name=model_name)
    if use_ema and not checkpoint.has_ema:
        raise UsageError(f'{path} holds no moving average: leave out --use-ema.')
    folder = folder_of(info.name, with_weights=False) if info.name else None
    model, info = model_of(
        checkpoint, info, use_ema, num_classes=num_classes, img_size=img_size, folder=folder, exportable=True)
    parts = [f'from {path}'] + ([f'epoch {checkpoint.epoch}'] if checkpoint.epoch is not None else [])
    return model, info, ', '.join(parts + (['moving average'] if use_ema else []))


def _size_argument(name: str, img_size: Optional[int]) -> Dict[str, int]:
    """`img_size` for the models that are made for one, such as transformers."""
    cfg = get_pretrained_cfg(name, allow_unregistered=True) if ':' not in name else None
    return {'img_size': img_size} if img_size is not None and cfg is not None and cfg.fixed_input_size else {}


def _labels(
        model: nn.Module,
        info: ModelInfo,
        class_names: Optional[str],
) -> Tuple[Optional[List[str]], Optional[List[str]], str]:
    """Names and descriptions of the classes, and where they come from."""
    count = model.num_classes
    if class_names is not None:
        try:
            lines = Path(class_names).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f'--class-names {class_names} cannot be read ({first_line(e)}).')
        labels = [line.strip() for line in lines if line.strip()]
        if len(labels) != count:
            raise UsageError(f'--class-names {class_names} has {len(labels)} names, the model has {count} classes.')
        return labels, _wordnet(labels), f'names from {class_names}'

    cfg = model.pretrained_cfg
    if cfg.get('label_names') and len(cfg['label_names']) == count:
        labels, texts = list(cfg['label_names']), cfg.get('label_descriptions')
        if isinstance(texts, dict):
            texts = [texts.get(label, label) for label in labels]
        return labels, list(texts) if texts and len(texts) == count else _wordnet(labels), 'names that came with it'

    if info.class_names is not None and len(info.class_names) == count:
        return info.class_names, _wordnet(info.class_names), 'names of the classes it was trained on'

    subset = infer_imagenet_subset({'num_classes': count})
    if subset is not None:
        info = ImageNetInfo(subset)
        return list(info.label_names()), info.label_descriptions(), f'taken to be those of {subset}'
    return None, None, 'of which no names are known (--class-names FILE)'


def _wordnet(labels: List[str]) -> Optional[List[str]]:
    """Descriptions of WordNet ids; None if the labels are something else."""
    info = ImageNetInfo()
    try:
        return [info.label_name_to_description(label) for label in labels]
    except KeyError:
        return None


def _numbers(values) -> str:
    return ', '.join(f'{v:.4g}' for v in values)
