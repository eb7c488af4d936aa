"""Whether weights fit a model, and why not; loads them all or not at all"""
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.layout import SPLIT_BN, Named, expected_names, names_for
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.recognise import input_channels
from seresnet_timm.errors import UsageError, counted, first_names, printable
from seresnet_timm.models.create import create_from_info, not_finite, why_not_plain
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.models.seresnet import SEResNet, checkpoint_filter_fn

_logger = logging.getLogger(__name__)
MAX_NAMED = 4  # names of weights that one sentence lists


def named_for(checkpoint: Checkpoint, model: nn.Module, use_ema: bool = False) -> Named:
    """The weights in a checkpoint, under the model's own names, and what was done to their names.

    Counters of BatchNorm that the file does not have are 0, as torch loads them; an evaluation does not use them.

    Args:
        checkpoint: As from `read_checkpoint`.
        model: Model to name them for; SE-ResNets accept the names of ModelZoo and torchvision.
        use_ema: Take the moving average if there is one.

    Raises:
        UsageError: The file holds several networks that fit.
    """
    def rename(weights: Dict[str, Any]) -> Dict[str, Any]:
        return checkpoint_filter_fn(weights, model) if isinstance(model, SEResNet) else weights
    own = model.state_dict()
    named = names_for(checkpoint.weights_or_ema(use_ema), own, classifier_keys(model),
                      f'Checkpoint {checkpoint.path}', rename)
    if named.weights.keys() != expected_names(own, named.weights).keys():
        return named
    counters = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in own.items() if k not in named.weights}
    return replace(named, weights={k: {**counters, **named.weights}[k] for k in own}) if counters else named


def weights_for(checkpoint: Checkpoint, model: nn.Module, use_ema: bool = False) -> Dict[str, torch.Tensor]:
    """The weights of `named_for`."""
    return named_for(checkpoint, model, use_ema).weights


def with_channels(checkpoint: Checkpoint, info: ModelInfo) -> ModelInfo:
    """What to make of a checkpoint, with the input channels of its weights, whatever else the file says of them."""
    channels = input_channels(checkpoint.network.weights, info.name)
    if channels is None or channels == (info.in_chans or 3):
        return info
    mean, std = (v if v is None or len(v) in (1, 3, channels) else None for v in (info.mean, info.std))
    size = [channels, *info.input_size[1:]] if info.input_size else None
    return replace(info, in_chans=channels, input_size=size, mean=mean, std=std)


def describe_not_finite(
        checkpoint: Checkpoint, weights: Dict[str, Any], model: Optional[nn.Module] = None) -> Optional[str]:
    """That weights of a checkpoint are not finite, or give no finite outputs, as a sentence; None if all is well.

    Args:
        checkpoint: The file.
        weights: Its weights, by the names of `model`.
        model: The network, which knows what its BatchNorm layers add to a variance; None for one that is not known.
    """
    names = not_finite(weights)
    if names:
        return (f'Checkpoint {checkpoint.path} has weights that are not finite (NaN or infinity): '
                f'{printable(first_names(names, MAX_NAMED))}. Its training diverged: take an earlier checkpoint.')
    names = [] if model is None else negative_variances(weights, model)
    if names:
        return (f'Checkpoint {checkpoint.path} has variances of BatchNorm below zero, whose square root is no number: '
                f'{printable(first_names(names, MAX_NAMED))}. What wrote it went wrong: take another checkpoint.')
    return None


def negative_variances(weights: Dict[str, Any], model: nn.Module) -> List[str]:
    """Names of the variances that are below zero by more than the small number that BatchNorm adds to them."""
    small = {f'{name}.running_var': layer.eps for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    return [name for name, eps in small.items() if isinstance(weights.get(name), torch.Tensor)
            and not why_not_plain(weights[name]) and bool((weights[name].double() + eps < 0).any())]


def misfits(weights: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, List[str]]:
    """Where weights do not fit a model, by key.

    Returns:
        Names that are `missing`, `unexpected`, `of another shape` (with both shapes), and `of another kind` than a
        network takes.
    """
    own = model.state_dict()
    shapes = {k: getattr(weights[k], 'shape', None) for k in own if k in weights}
    return {
        'missing': [k for k in own if k not in weights],
        'unexpected': [k for k in weights if k not in own],
        'of another shape': [
            f'{k} {"x".join(map(str, s)) if s is not None else "no tensor"} for {"x".join(map(str, own[k].shape))}'
            for k, s in shapes.items() if s != own[k].shape],
        'of another kind': [f'{k} ({kind})' for k, kind in ((k, _other_kind(weights[k], own[k])) for k in shapes)
                            if kind],
    }


def _other_kind(values: Any, own: torch.Tensor) -> Optional[str]:
    """What values are that a network cannot take for its own without changing them; None if it can."""
    if not isinstance(values, torch.Tensor):
        return None  # which has no shape
    dtype = str(values.dtype).removeprefix('torch.')
    if why_not_plain(values) or own.is_floating_point() and not values.is_floating_point():
        return why_not_plain(values) or dtype
    is_beyond = values.dtype == torch.float64 and bool((values.abs() > torch.finfo(torch.float32).max).any())
    return f'{dtype} beyond float32' if is_beyond and bool(values.isfinite().all()) else None


def describe_misfit(weights: Dict[str, torch.Tensor], model: nn.Module, arch: Optional[str] = None) -> Optional[str]:
    """Why weights do not fit a model, as a clause; None if they fit.

    Args:
        weights: As from `weights_for`.
        model: The model.
        arch: Architecture that the file names, if it is another one (`Checkpoint.arch_unlike`).
    """
    found = misfits(weights, model)
    if not any(found.values()):
        return None
    if not any(isinstance(v, torch.Tensor) for v in weights.values()):
        return f'it holds no weights, only {printable(first_names(map(str, weights), MAX_NAMED)) or "nothing"}'
    head = classifier_keys(model)
    if not found['missing'] and not found['unexpected'] and not found['of another kind'] and head and all(
            k.split()[0] in head for k in found['of another shape']) and (
            weights[head[0]].shape[:1] != model.state_dict()[head[0]].shape[:1]):
        classes = weights[head[0]].shape[0]
        return f'it has {classes} classes (--num-classes {classes})'
    stem = f'{getattr(model, "pretrained_cfg", {}).get("first_conv")}.weight'
    if [k.split()[0] for k in found['of another shape']] == [stem] and sum(map(len, found.values())) == 1:
        wanted, own = weights[stem].shape, model.state_dict()[stem].shape
        if wanted[:1] + wanted[2:] == own[:1] + own[2:]:
            return f'it takes images of {counted(wanted[1], "channel")} (--in-chans {wanted[1]})'
    parts = [f'it was saved from {printable(arch)} (--model {printable(arch)})'] if arch else []
    if any(SPLIT_BN in k for k in found['unexpected']):
        parts.append('it was trained with --split-bn')
    if any(SPLIT_BN in k for k in found['missing']):
        parts.append('it was trained without --split-bn')
    parts += [f'{len(keys)} {what}: {printable(first_names(keys, MAX_NAMED))}' for what, keys in found.items() if keys]
    prefix = shared_prefix(weights)
    if prefix and len(found['missing']) == len(model.state_dict()):
        parts.append(f'the names of its weights begin with {printable(prefix)}')
    return '; '.join(parts)


def shared_prefix(weights: Dict[str, Any]) -> str:
    """What comes before the first dot in the names of all weights, with the dot; '' if it is not the same in all."""
    firsts = {k.partition('.')[0] for k in weights}
    return f'{firsts.pop()}.' if len(firsts) == 1 and all('.' in k for k in weights) else ''


def classifier_keys(model: nn.Module) -> List[str]:
    """Names of the classifier's weights."""
    name = getattr(model, 'pretrained_cfg', {}).get('classifier') or 'fc'
    return [k for k in model.state_dict() if isinstance(name, str) and k.startswith(name + '.')]


def load_weights(
        model: nn.Module,
        checkpoint: Union[Checkpoint, str, Path],
        model_name: str,
        use_ema: bool = False,
        adapt_head: bool = False,
) -> None:
    """Load a checkpoint's weights into a model, all or nothing.

    Args:
        model: The model.
        checkpoint: As from `read_checkpoint`, or a file.
        model_name: timm's name of the model, for messages.
        use_ema: Take the moving average if there is one.
        adapt_head: Keep the model's own classifier where the checkpoint's has another number of classes.

    Raises:
        UsageError: The weights do not fit the model, or are not finite.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    path = checkpoint.path
    named = named_for(checkpoint, model, use_ema)
    weights = named.weights
    if adapt_head:
        own = model.state_dict()
        for key in classifier_keys(model):
            if key in weights and weights[key].shape != own[key].shape:
                _logger.info(f'{key} of {path} has {weights[key].shape[0]} classes: the model keeps its own.')
                weights = dict(weights, **{key: own[key]})
    refuse_misfit(checkpoint, weights, model, model_name)
    model.load_state_dict(weights)
    if named.describe():
        _logger.info(f'{path}: {named.describe()}.')
    if not checkpoint.holds_checksum:
        _logger.info(f'{path} holds no checksum: whether its values are intact is not known.')


def model_of(
        checkpoint: Checkpoint,
        info: Optional[ModelInfo] = None,
        use_ema: bool = False,
        **kwargs: Any,
) -> Tuple[nn.Module, ModelInfo]:
    """The network that a checkpoint holds, with its weights.

    No memory is taken before it is known that the weights fit: a file cannot ask for more than it holds.

    Args:
        checkpoint: As from `read_checkpoint`.
        info: What to make, if it is not `checkpoint.info` alone (`dataclasses.replace(checkpoint.info, name=...)`).
        use_ema: Take the moving average if there is one.
        kwargs: `num_classes`, `img_size`, `folder` and `exportable` of `models.create.create_from_info`.

    Returns:
        The model, and what it was made from.

    Raises:
        UsageError: A setting of the file is refused, or the weights do not fit.
    """
    info = with_channels(checkpoint, info or checkpoint.info)
    shapes = create_from_info(info, checkpoint.path, meta=True, **kwargs)
    name = info.name or 'the model'
    refuse_misfit(checkpoint, weights_for(checkpoint, shapes, use_ema), shapes, name)
    model = create_from_info(info, checkpoint.path, **kwargs)
    load_weights(model, checkpoint, name, use_ema)
    return model, info


def refuse_misfit(checkpoint: Checkpoint, weights: Dict[str, Any], model: nn.Module, model_name: str) -> None:
    """Refuse weights that do not fit a model, or that are not finite.

    Raises:
        UsageError: Says what differs.
    """
    misfit = describe_misfit(weights, model, checkpoint.arch_unlike(model_name))
    if misfit:
        raise UsageError(f'Checkpoint {checkpoint.path} does not fit {model_name}: {misfit}.')
    problem = describe_not_finite(checkpoint, weights, model)
    if problem:
        raise UsageError(problem)
