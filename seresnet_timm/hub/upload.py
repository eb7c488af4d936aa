"""What is pushed, as read from a run or a checkpoint."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import timm
import torch
import torch.nn as nn
import yaml
from timm.data.readers.img_extensions import get_img_extensions
from timm.models import parse_model_name, split_model_name_tag
from timm.utils import natural_key

from seresnet_timm.checkpoints import checkpoint as checkpoints_checkpoint
from seresnet_timm.checkpoints import fit as checkpoints_fit
from seresnet_timm.checkpoints import read as checkpoints
from seresnet_timm.checkpoints import recognise as inspection_recognise
from seresnet_timm.errors import UsageError, did_you_mean
from seresnet_timm.hub.pull import pull
from seresnet_timm.runs import report as results


@dataclass
class Source:
    """What is pushed, as read from a run or a file."""
    path: Path
    weights: Dict[str, torch.Tensor]
    model: nn.Module
    args: Dict[str, Any]
    run: Optional[Dict[str, Any]] = None
    row: Optional[Dict[str, float]] = None
    origin: Optional[str] = None
    labels: Optional[List[str]] = None
    weights_are: str = ''
    notes: List[str] = field(default_factory=list)


def read_source(
        source: Union[str, Path],
        model: Optional[str] = None,
        num_classes: Optional[int] = None,
        ema: Optional[bool] = None,
) -> Source:
    """Read what is to be pushed, without the network (a model that was trained from the Hub's excepted).

    Raises:
        UsageError: It cannot be read, or does not say what it is.
    """
    path, run = Path(source), None
    notes = []
    if path.is_dir():
        run = results.read_run(str(path))
        path = next((path / n for n in ('model_best.pth.tar', 'last.pth.tar') if (path / n).is_file()), None)
        if path is None:
            raise UsageError(f'{source} holds neither model_best.pth.tar nor last.pth.tar.')
        if path.name.startswith('last'):
            notes.append(f'{path}: the last epoch, as there is no model_best.pth.tar')
    checkpoint = checkpoints.read_checkpoint(path)
    args = _arguments(checkpoint, Path(source) if run else None)
    arch = model or args.get('model') or inspection_recognise.architecture(checkpoint)
    if arch is None:
        raise UsageError(f'{path} does not say what it is: name its architecture with --model.')

    evaluated_ema = bool(args.get('model_ema')) and not args.get('model_ema_force_cpu')
    has_ema = checkpoints_checkpoint.has_ema(checkpoint)
    if ema and not has_ema:
        raise UsageError(f'{path} holds no moving average: leave out --ema.')
    use_ema = ema if ema is not None else bool(run) and has_ema and evaluated_ema
    if has_ema:
        chosen = 'moving average of the weights' if use_ema else 'raw weights'
        why = ', whose top-1 the run reports; --no-ema takes the raw ones' if use_ema else '; --ema takes their average'
        notes.append(f'weights: the {chosen}{why if ema is None else ""}')

    meta = _model_without_memory(arch, num_classes or args.get('num_classes'), args)
    weights = checkpoints_fit.weights_of(checkpoint, meta, use_ema)
    outputs = inspection_recognise.num_classes(weights, meta.pretrained_cfg['architecture'])
    if num_classes is None and outputs is not None and outputs != meta.num_classes:
        meta = _model_without_memory(arch, outputs, args)
    misfit = checkpoints_fit.describe_misfit(weights, meta, checkpoints_fit.saved_arch(checkpoint, arch))
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit {arch}: {misfit}.')

    row = None
    if run and not (has_ema and use_ema != evaluated_ema):
        row = next((r for r in run['rows'] if r['epoch'] == checkpoint.get('epoch')), None)
    name = args.get('model') or ''
    origin = name if name.startswith('hf-hub:') or args.get('pretrained') else None
    labels = class_names(args, meta.num_classes)
    if labels is None and args:
        notes.append('label names: none, as the class folders of the training are not at hand')
    return Source(
        path, {k: v.contiguous() for k, v in weights.items()}, meta, args, run, row, origin, labels,
        ('moving average of the weights' if use_ema else ''), notes)


def _arguments(checkpoint: Dict[str, Any], run_dir: Optional[Path]) -> Dict[str, Any]:
    """Arguments of the training that wrote a checkpoint: from itself, else from its run's args.yaml."""
    args = checkpoint.get('args')
    if args is not None:
        return dict(args) if isinstance(args, dict) else dict(vars(args))
    if run_dir is not None and (run_dir / 'args.yaml').is_file():
        with open(run_dir / 'args.yaml') as f:
            return yaml.safe_load(f) or {}
    return {}


def _model_without_memory(name: str, num_classes: Optional[int], args: Dict[str, Any]) -> nn.Module:
    """A model whose parameters have shapes and no memory, as a training's arguments describe it."""
    try:
        source, rest = parse_model_name(name)
    except ValueError as e:
        raise UsageError(f'--model: {e}')
    if source == 'hf-hub':
        name = f'local-dir:{pull(rest, with_weights=False).folder}'
    elif source is None and not timm.is_model(split_model_name_tag(rest)[0]):
        arch = split_model_name_tag(rest)[0]
        raise UsageError(f"Unknown model '{name}': {did_you_mean(arch, timm.list_models(), 'name one with --model.')}")
    settings = {'num_classes': num_classes, 'global_pool': args.get('gp')}
    channels = args.get('in_chans') or (args.get('input_size') or [None])[0]
    if channels:
        settings['in_chans'] = channels
    with torch.device('meta'):
        return timm.create_model(
            name, **{k: v for k, v in settings.items() if v is not None}, **(args.get('model_kwargs') or {}))


def class_names(args: Dict[str, Any], num_classes: int) -> Optional[List[str]]:
    """Names of the classes by index: the class folders of a training's data, in timm's order; None if not at hand."""
    root = args.get('data_dir') or args.get('data')
    if not root or args.get('dataset') or args.get('class_map'):
        return None
    split = Path(root) / str(args.get('train_split') or 'train')
    if not split.is_dir():
        return None
    images = get_img_extensions(as_set=True)
    folders = [p for p in split.iterdir() if p.is_dir()]
    if not all(any(f.suffix.lower() in images for f in p.iterdir()) for p in folders):
        return None  # nested or empty ones, which timm numbers otherwise
    names = sorted((p.name for p in folders), key=natural_key)
    return names if len(names) == num_classes else None
