"""Which network weights belong to, told by their names and shapes."""
import re
from typing import Any, Dict, Optional

import timm
import torch
import torch.nn as nn
from timm.models import clean_state_dict

from seresnet_timm.checkpoints import checkpoint as checkpoints_checkpoint
from seresnet_timm.checkpoints import fit as checkpoints_fit
from seresnet_timm.errors import UsageError, did_you_mean
from seresnet_timm.models.seresnet import checkpoint_filter_fn

# (has bottlenecks, blocks of each stage) -> layers in the name
DEPTHS = {
    (False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50, (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def recognise(weights: Dict[str, Any]) -> Optional[str]:
    """timm's name of the (SE-)ResNet that weights are of, told from their names and shapes alone.

    Args:
        weights: State dict with timm's, torchvision's or the ModelZoo's names.

    Returns:
        `seresnet50_ascend` (SE without bias), `seresnet50` (with), `resnet50`, or another depth; None for any other
        network.
    """
    weights = checkpoint_filter_fn(dict(weights), None)
    stages = []
    for stage in range(1, 5):
        blocks = {m[1] for k in weights if (m := re.match(rf'layer{stage}\.(\d+)\.', k))}
        stages.append(len(blocks))
    depth = DEPTHS.get(('layer1.0.conv3.weight' in weights, tuple(stages)))
    head = weights.get('fc.weight')
    if depth is None or getattr(head, 'ndim', None) != 2 or 'conv1.weight' not in weights:
        return None
    if 'layer1.0.se.fc1.weight' not in weights:
        name = f'resnet{depth}'
    else:
        name = f'seresnet{depth}' if 'layer1.0.se.fc1.bias' in weights else f'seresnet{depth}_ascend'
    if not timm.is_model(name):
        return None
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=head.shape[0], in_chans=weights['conv1.weight'].shape[1])
    return name if checkpoints_fit.describe_misfit(weights, model) is None else None


def architecture(checkpoint: Dict[str, Any]) -> Optional[str]:
    """timm's name of a checkpoint's network: told by its weights, else what it says itself if timm knows that.

    All of the ModelZoo's call themselves `resnext101_32x8d`: their word does not count.
    """
    recognised = recognise(checkpoints_checkpoint.state_dict_of(checkpoint))
    arch = checkpoint.get('arch')
    if recognised is None and isinstance(arch, str) and timm.is_model(arch.split('.')[0]):
        return None if 'best_acc1' in checkpoint else arch
    return recognised


def num_classes(weights: Dict[str, Any], arch: Optional[str] = None) -> Optional[int]:
    """Number of classes: rows of the classifier."""
    name = 'fc'
    if arch is not None and timm.is_model(arch.split('.')[0]):
        config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
        name = config.classifier if config is not None and isinstance(config.classifier, str) else name
    head = clean_state_dict(weights).get(f'{name}.weight')
    return int(head.shape[0]) if isinstance(head, torch.Tensor) and head.ndim >= 2 else None


def check_known(model_name: str) -> None:
    """Refuse a name that timm does not know."""
    if not timm.is_model(model_name.split('.')[0]):
        hint = did_you_mean(model_name, timm.list_models(), 'timm.list_models() names them all.')
        raise UsageError(f"Unknown model '{model_name}': {hint}")


def network_for(weights: Dict[str, Any], model_name: str) -> nn.Module:
    """A network of timm's with as many classes as weights have, of shapes only: it takes no memory.

    Raises:
        UsageError: timm does not know the name.
    """
    check_known(model_name)
    classes = num_classes(weights, model_name)
    with torch.device('meta'):
        return timm.create_model(model_name, **({} if classes is None else dict(num_classes=classes)))
