"""Recognises the network that weights belong to by their names and shapes"""
import re
from typing import Any, Dict, Optional, Tuple

import timm
import torch
from timm.models import clean_state_dict

from seresnet_timm.checkpoints.layout import SPLIT_BN, expected_names, prefixes_of, under
from seresnet_timm.models.create import create_model, is_known
from seresnet_timm.models.seresnet import checkpoint_filter_fn

# (has bottlenecks, blocks of each stage) -> layers in the name
DEPTHS: Dict[Tuple[bool, Tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50, (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def recognise(weights: Dict[str, Any]) -> Optional[str]:
    """timm's name of the (SE-)ResNet that weights belong to, from their names and shapes alone.

    Args:
        weights: State dict with timm's, torchvision's or the ModelZoo's names.

    Returns:
        `seresnet50_ascend` (SE without bias), `seresnet50` (with), `resnet50`, or another depth; None for any other
        network.
    """
    return _recognise(weights) or _recognise_under_prefix(weights)


def _recognise_under_prefix(weights: Dict[str, Any]) -> Optional[str]:
    """The network beside which the file holds other weights, such as those of a loss; None if there are several."""
    prefixes = [p for p in prefixes_of(weights, ['conv1.weight']) if p and f'{p}layer1.0.conv1.weight' in weights]
    names = {_recognise(under(weights, p)) for p in prefixes}
    return names.pop() if len(names) == 1 else None


def _recognise(weights: Dict[str, Any]) -> Optional[str]:
    weights = {k: v for k, v in checkpoint_filter_fn(dict(weights), None).items() if SPLIT_BN not in k}
    stages = []
    for stage in range(1, 5):
        blocks = {m[1] for k in weights if (m := re.match(rf'layer{stage}\.(\d+)\.', k))}
        stages.append(len(blocks))
    depth = DEPTHS.get(('layer1.0.conv3.weight' in weights, tuple(stages)))
    head, stem = weights.get('fc.weight'), weights.get('conv1.weight')
    if depth is None or head is None or stem is None:
        return None
    if getattr(head, 'ndim', None) != 2 or getattr(stem, 'ndim', None) != 4:
        return None
    if 'layer1.0.se.fc1.weight' not in weights:
        name = f'resnet{depth}'
    else:
        name = f'seresnet{depth}' if 'layer1.0.se.fc1.bias' in weights else f'seresnet{depth}_ascend'
    if not timm.is_model(name):
        return None
    own = create_model(name, meta=True, num_classes=head.shape[0], in_chans=stem.shape[1]).state_dict()
    own = expected_names(own, weights)
    fits = own.keys() == weights.keys() and all(getattr(v, 'shape', None) == own[k].shape for k, v in weights.items())
    return name if fits else None


def classifier_rows(weights: Dict[str, Any], arch: Optional[str] = None) -> Optional[int]:
    """Number of classes: rows of the classifier's weights."""
    name = 'fc'
    if arch is not None and is_known(arch):
        config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
        name = config.classifier if config is not None and isinstance(config.classifier, str) else name
    weights = clean_state_dict(weights)
    key = f'{name}.weight'
    heads = [weights[key]] if key in weights else [v for k, v in weights.items() if k.endswith(f'.{key}')]
    rows = {int(h.shape[0]) for h in heads if isinstance(h, torch.Tensor) and h.ndim >= 2}
    return rows.pop() if len(rows) == 1 else None


def input_channels(weights: Dict[str, Any], arch: Optional[str]) -> Optional[int]:
    """Channels of the images that the weights of an architecture are for; None if they do not tell."""
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True) if arch is not None and is_known(arch) else None
    if arch is None or config is None or not isinstance(config.first_conv, str):
        return None
    key = f'{config.first_conv}.weight'
    kernel, usual = weights.get(key), config.input_size[0]
    if not isinstance(kernel, torch.Tensor) or kernel.ndim != 4 or kernel.shape[1] == usual:
        return usual if isinstance(kernel, torch.Tensor) and kernel.ndim == 4 else None
    own = create_model(arch, meta=True).state_dict().get(key)
    # the first convolution of some networks takes blocks of pixels as channels, or groups
    return int(kernel.shape[1]) if own is not None and own.shape[1] == usual else None
