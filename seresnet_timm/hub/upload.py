"""What is pushed, as read from a run or a checkpoint."""
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
import torch.nn as nn
import yaml

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import describe_misfit, weights_for
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import UsageError
from seresnet_timm.hub.pull import folder_of
from seresnet_timm.models.create import check_model_name, create_from_info
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
    checkpoint = read_checkpoint(path)
    args = _arguments(checkpoint, Path(source) if run else None)
    if not checkpoint.args and args:
        checkpoint = replace(checkpoint, content=dict(checkpoint.content, args=args))
    info = checkpoint.info
    if model is not None:
        check_model_name(model)
        info = replace(info, name=model)
    arch = info.name
    if arch is None:
        raise UsageError(f'{path} does not say what it is: name its architecture with --model.')
    if num_classes is not None:
        info = replace(info, num_classes=num_classes, class_names=None)

    evaluated_ema = bool(args.get('model_ema')) and not args.get('model_ema_force_cpu')
    has_ema = checkpoint.has_ema
    if ema and not has_ema:
        raise UsageError(f'{path} holds no moving average: leave out --ema.')
    use_ema = ema if ema is not None else bool(run) and has_ema and evaluated_ema
    if has_ema:
        chosen = 'moving average of the weights' if use_ema else 'raw weights'
        why = ', whose top-1 the run reports; --no-ema takes the raw ones' if use_ema else '; --ema takes their average'
        notes.append(f'weights: the {chosen}{why if ema is None else ""}')

    meta = create_from_info(info, str(path), meta=True, folder=folder_of(arch, with_weights=False))
    weights = weights_for(checkpoint, meta, use_ema)
    misfit = describe_misfit(weights, meta, checkpoint.arch_unlike(arch))
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit {arch}: {misfit}.')

    row = None
    if run and not (has_ema and use_ema != evaluated_ema):
        row = next((r for r in run['rows'] if r['epoch'] == checkpoint.epoch), None)
    name = args.get('model') or ''
    origin = name if name.startswith('hf-hub:') or args.get('pretrained') else None
    labels = info.class_names
    if labels is None and args:
        notes.append('label names: none, as the checkpoint does not hold them')
    return Source(
        path, {k: v.contiguous() for k, v in weights.items()}, meta, args, run, row, origin, labels,
        ('moving average of the weights' if use_ema else ''), notes)


def _arguments(checkpoint: Checkpoint, run_dir: Optional[Path]) -> Dict[str, Any]:
    """Arguments of the training that wrote a checkpoint: from itself, else from its run's args.yaml."""
    if checkpoint.content.get('args') is not None:
        return checkpoint.args
    if run_dir is not None and (run_dir / 'args.yaml').is_file():
        with open(run_dir / 'args.yaml') as f:
            return yaml.safe_load(f) or {}
    return {}
