"""The model that a command line means: a timm name, a Hub repository, a checkpoint file or the folder of a run.

With it come the preprocessing that its validation used, and the names of its classes where they are known.
"""
import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import timm
import torch.nn as nn
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.data.readers.class_map import load_class_map
from timm.data.readers.img_extensions import get_img_extensions
from timm.models import get_pretrained_cfg, parse_model_name, split_model_name_tag
from timm.utils.misc import natural_key

from seresnet_timm.checkpoints.checkpoint import has_ema
from seresnet_timm.checkpoints.fit import load_weights, weights_of
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.recognise import architecture
from seresnet_timm.errors import RunError, UsageError, did_you_mean, first_line
from seresnet_timm.hub.pull import pull_pinned
from seresnet_timm.models import seresnet as models  # noqa: F401  (models registers itself with timm)

# of a run's folder, the first that is there
RUN_CHECKPOINTS = ('model_best.pth.tar', 'last.pth.tar')
# flags of a training that decide how its validation saw the images
PREPROCESSING_FLAGS = ('in_chans', 'input_size', 'img_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


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
        trained = {}
    elif path.exists():
        model, name, origin, trained = _load_file(path, model_name, num_classes, img_size, use_ema)
    else:
        looks_like_path = os.sep in source or '.' in source
        hint = 'check the path' if looks_like_path else did_you_mean(
            source, timm.list_models(), 'timm knows no such name.')
        raise UsageError(f"There is no file and no model '{source}': {hint.rstrip('.')}.")

    # flags win over what the run was trained with, that over the model's own
    settings = {k: trained.get(k) for k in PREPROCESSING_FLAGS}
    if img_size is not None:
        settings['input_size'] = None
    settings.update({k: v for k, v in requested.items() if v is not None})
    try:
        data_config = resolve_data_config(settings, model=model, use_test_size=True)
    except (AssertionError, TypeError, ValueError):
        raise UsageError(f'{path} holds preprocessing settings that make no sense '
                         f'({ {k: v for k, v in settings.items() if v is not None} }): the file is damaged.')
    labels, descriptions, labels_origin = _labels(model, trained, class_names)
    return LoadedModel(model.float().eval(), name, origin, data_config, labels, descriptions, labels_origin)


def _load_named(source: str, img_size: Optional[int]) -> Tuple[nn.Module, str, str]:
    """A model of timm's with its pretrained weights."""
    try:
        kind, name = parse_model_name(source)
    except ValueError as e:
        raise UsageError(str(e))
    if kind is None:
        arch, tag = split_model_name_tag(name)
        tags = [n.split('.', 1)[1] for n in timm.list_models(f'{arch}.*', include_tags=True)]
        if tag and tag not in tags:
            raise UsageError(f"Model {arch} has no weights '{tag}': there are {', '.join(tags) or 'none'}.")
        cfg = get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is None or not cfg.has_weights:
            raise UsageError(f'There are no pretrained weights of {source}: name a checkpoint file, and --model '
                             f'{source} if it does not say so itself.')
    pinned = pull_pinned(name) if kind == 'hf-hub' else source
    try:
        model = timm.create_model(pinned, pretrained=True, exportable=True, **_size_argument(source, img_size))
    except Exception as e:  # of the download: HTTP clients and the file system have their own
        raise RunError(f'{source} cannot be loaded ({first_line(e)}): check the name and the connection, or download '
                       'the weights elsewhere and name the file.') from e
    cfg = model.pretrained_cfg
    where = {'hf-hub': f'pretrained, from {cfg.get("hf_hub_id")} on the Hub', 'local-dir': f'from {name}'}
    own_name = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))
    return model, own_name or name, where.get(kind or cfg.get('source'), f'pretrained, {cfg.get("url")}')


def _load_file(
        path: Path,
        model_name: Optional[str],
        num_classes: Optional[int],
        img_size: Optional[int],
        use_ema: bool,
) -> Tuple[nn.Module, str, str, Dict[str, Any]]:
    """A model with the weights of a checkpoint file, and the settings that the checkpoint was trained with."""
    checkpoint = read_checkpoint(path)
    trained = checkpoint.get('args')
    trained = vars(trained) if isinstance(trained, argparse.Namespace) else trained
    trained = dict(trained) if isinstance(trained, dict) else {}
    name = model_name or _saved_name(path, checkpoint, trained)
    if not timm.is_model(split_model_name_tag(name)[0]) and ':' not in name:
        hint = did_you_mean(name, timm.list_models(), 'timm knows no such name.')
        raise UsageError(f"Unknown --model '{name}': {hint}")
    if use_ema and not has_ema(checkpoint):
        raise UsageError(f'{path} holds no moving average: leave out --use-ema.')

    kwargs = trained.get('model_kwargs') or {}
    # fine-tuned from a model of the Hub: the network is in its configuration
    made_as = pull_pinned(name.split(':', 1)[1], with_weights=False) if name.startswith('hf-hub:') else name
    try:
        model = timm.create_model(
            made_as, num_classes=num_classes, in_chans=trained.get('in_chans'), global_pool=trained.get('gp'),
            exportable=True, **{**_size_argument(name, img_size or trained.get('img_size')), **kwargs})
    except (TypeError, ValueError, RuntimeError, AssertionError) as e:
        raise UsageError(f'{name} cannot be made with the settings in {path} ({first_line(e)}).')
    if num_classes is None:
        classifier = model.pretrained_cfg.get('classifier')
        weight = weights_of(checkpoint, model, use_ema).get(f'{classifier}.weight')
        if weight is not None and weight.ndim and weight.shape[0] != model.num_classes:
            model.reset_classifier(weight.shape[0])
    load_weights(model, path, name, use_ema, checkpoint=checkpoint)

    epoch = checkpoint.get('epoch')
    parts = [f'from {path}'] + ([f'epoch {epoch}'] if isinstance(epoch, int) else [])
    return model, name, ', '.join(parts + (['moving average'] if use_ema else [])), trained


def _saved_name(path: Path, checkpoint: Dict[str, Any], trained: Dict[str, Any]) -> str:
    """Architecture that a checkpoint names, or that its weights tell."""
    names = [n for n in (trained.get('model'), architecture(checkpoint)) if isinstance(n, str)]
    known = next((n for n in names if timm.is_model(split_model_name_tag(n)[0]) or n.startswith('hf-hub:')), None)
    if known is None:
        named = names[0] if names else checkpoint.get('arch') if 'best_acc1' not in checkpoint else None
        says = f"names the model '{named}', unknown to timm" if named else 'does not say what model it is of'
        raise UsageError(f'{path} {says}: name it with --model, e.g. --model seresnet50_ascend.')
    return known


def _size_argument(name: str, img_size: Optional[int]) -> Dict[str, int]:
    """`img_size` for the models that are made for one, such as transformers."""
    cfg = get_pretrained_cfg(name, allow_unregistered=True) if ':' not in name else None
    return {'img_size': img_size} if img_size is not None and cfg is not None and cfg.fixed_input_size else {}


def _labels(
        model: nn.Module,
        trained: Dict[str, Any],
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

    folder = _training_folder(trained)
    if folder is not None:
        labels = class_folders(folder, trained.get('class_map') or None)
        if labels is not None and len(labels) == count:
            return labels, _wordnet(labels), f'names from {folder}, on which it was trained'

    subset = infer_imagenet_subset({'num_classes': count})
    if subset is not None:
        info = ImageNetInfo(subset)
        return list(info.label_names()), info.label_descriptions(), f'taken to be those of {subset}'
    return None, None, 'of which no names are known (--class-names FILE)'


def _training_folder(trained: Dict[str, Any]) -> Optional[Path]:
    """Folder of the classes that a run was trained on, if it is still there."""
    root, split = trained.get('data_dir') or trained.get('data'), trained.get('train_split')
    if not isinstance(root, str) or trained.get('dataset'):
        return None
    names = [n for n in (split, 'train', 'training') if isinstance(n, str) and n]
    return next((Path(root) / n for n in names if (Path(root) / n).is_dir()), None)


def class_folders(folder: Path, class_map: Optional[str] = None) -> Optional[List[str]]:
    """Names of the classes in a folder in timm's order, without a look at more than one image of each."""
    if class_map:
        try:
            by_name = load_class_map(class_map, str(folder.parent))
        except (AssertionError, OSError, ValueError):
            return None
        return [name for name, _ in sorted(by_name.items(), key=lambda item: item[1])]
    extensions, names = get_img_extensions(as_set=True), set()

    def visit(path: str, is_root: bool) -> None:
        subfolders, has_image = [], False
        with os.scandir(path) as entries:
            for entry in entries:
                if not has_image and os.path.splitext(entry.name)[1].lower() in extensions:
                    has_image = True
                    if not is_root:
                        break
                elif entry.is_dir():
                    subfolders.append(entry.path)
        if has_image:
            names.add('' if is_root else os.path.basename(path))
        for subfolder in subfolders:
            visit(subfolder, is_root=False)

    try:
        visit(str(folder), is_root=True)
    except OSError:
        return None
    return sorted(names, key=natural_key)


def _wordnet(labels: List[str]) -> Optional[List[str]]:
    """Descriptions of WordNet ids; None if the labels are something else."""
    info = ImageNetInfo()
    try:
        return [info.label_name_to_description(label) for label in labels]
    except KeyError:
        return None


def _numbers(values) -> str:
    return ', '.join(f'{v:.4g}' for v in values)
