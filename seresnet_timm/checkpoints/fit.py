"""Whether weights fit a model, and why not; loads them all or not at all."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
import torch.nn as nn
from timm.models import clean_state_dict

from seresnet_timm.checkpoints.checkpoint import holds_checksum, state_dict_of
from seresnet_timm.checkpoints.read import MAX_NAMED, _logger, file_format, read_checkpoint
from seresnet_timm.errors import UsageError, first_names
from seresnet_timm.models.seresnet import SEResNet, checkpoint_filter_fn


def weights_of(checkpoint: Dict[str, Any], model: nn.Module, use_ema: bool = False) -> Dict[str, torch.Tensor]:
    """The weights in a checkpoint, under the model's own names.

    Args:
        checkpoint: As from `read_checkpoint`.
        model: Model to name them for; SE-ResNets accept the names of ModelZoo and torchvision.
        use_ema: Take the moving average if there is one.
    """
    weights = state_dict_of(checkpoint, use_ema)
    return checkpoint_filter_fn(weights, model) if isinstance(model, SEResNet) else clean_state_dict(weights)


def misfits(weights: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, List[str]]:
    """Where weights do not fit a model, by key.

    Returns:
        Names that are `missing`, `unexpected`, and `of another shape` (with both shapes).
    """
    own = model.state_dict()
    shapes = {k: getattr(weights[k], 'shape', None) for k in own if k in weights}
    return {
        'missing': [k for k in own if k not in weights],
        'unexpected': [k for k in weights if k not in own],
        'of another shape': [
            f'{k} {"x".join(map(str, s)) if s is not None else "no tensor"} for {"x".join(map(str, own[k].shape))}'
            for k, s in shapes.items() if s != own[k].shape],
    }


def describe_misfit(weights: Dict[str, torch.Tensor], model: nn.Module, arch: Optional[str] = None) -> Optional[str]:
    """Why weights do not fit a model, as a clause; None if they fit."""
    found = misfits(weights, model)
    if not any(found.values()):
        return None
    head = classifier_keys(model)
    if not found['missing'] and not found['unexpected'] and head and all(
            k.split()[0] in head for k in found['of another shape']):
        classes = weights[head[0]].shape[0]
        return f'it has {classes} classes (--num-classes {classes})'
    parts = [f'it was saved from {arch} (--model {arch})'] if arch else []
    parts += [f'{len(keys)} {what}: {first_names(keys, MAX_NAMED)}' for what, keys in found.items() if keys]
    return '; '.join(parts)


def classifier_keys(model: nn.Module) -> List[str]:
    """Names of the classifier's weights."""
    name = getattr(model, 'pretrained_cfg', {}).get('classifier') or 'fc'
    return [k for k in model.state_dict() if isinstance(name, str) and k.startswith(name + '.')]


def saved_arch(checkpoint: Dict[str, Any], model_name: str) -> Optional[str]:
    """Architecture that a checkpoint names, where it is another than `model_name`.

    None for the ModelZoo's, which all call themselves `resnext101_32x8d`.
    """
    arch = checkpoint.get('arch')
    if not isinstance(arch, str) or 'best_acc1' in checkpoint:
        return None
    return arch if arch.split('.')[0] != model_name.split('.')[0] else None


def load_weights(
        model: nn.Module,
        path: Union[str, Path],
        model_name: str,
        use_ema: bool = False,
        adapt_head: bool = False,
        checkpoint: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Load a checkpoint's weights into a model, all or nothing.

    Args:
        model: The model.
        path: File of the checkpoint.
        model_name: timm's name of the model, for messages.
        use_ema: Take the moving average if there is one.
        adapt_head: Keep the model's own classifier where the checkpoint's has another number of classes.
        checkpoint: The file as `read_checkpoint` gave it, where it was read before: reading checks all of it.

    Returns:
        The checkpoint dictionary.

    Raises:
        UsageError: The file cannot be read, or does not fit the model.
    """
    if checkpoint is None:
        checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, model, use_ema)
    if adapt_head:
        own = model.state_dict()
        for key in classifier_keys(model):
            if key in weights and weights[key].shape != own[key].shape:
                _logger.info(f'{key} of {path} has {weights[key].shape[0]} classes: the model keeps its own.')
                weights = dict(weights, **{key: own[key]})
    misfit = describe_misfit(weights, model, saved_arch(checkpoint, model_name))
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit {model_name}: {misfit}.')
    model.load_state_dict(weights)
    if not holds_checksum(checkpoint, file_format(str(path))):
        _logger.info(f'{path} holds no checksum: that its values are whole is not known.')
    return checkpoint
