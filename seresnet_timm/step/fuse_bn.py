"""Fold BatchNorm into the convolution before it, for evaluation: `--fuse-bn auto|on|off`"""
import logging
from typing import Any, Mapping, Optional, Tuple

import torch.nn as nn
from timm.models import ResNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch.nn.utils.fusion import fuse_conv_bn_eval

from seresnet_timm.errors import UsageError
from seresnet_timm.models.lean_se import LeanBasicBlock, LeanBottleneck

BLOCKS = (BasicBlock, Bottleneck, LeanBasicBlock, LeanBottleneck)


def apply_fuse_bn(
        model: nn.Module,
        mode: str,
        device: str,
        args: Mapping[str, Any],
        logger: Optional[logging.Logger] = None,
) -> nn.Module:
    """Fold BatchNorm into the convolutions where the mode and the precision say so.

    Args:
        model: Model to evaluate, in float32; changed in place.
        mode: 'auto', 'on' or 'off'.
        device: Where it is evaluated, 'npu:1'.
        args: Flags of validate.py, of which the name of the model and the precision count.
        logger: Where the decision goes; None on ranks that do not log.
    """
    wanted, reason = decide_fuse_bn(model, mode, device, args)
    count = fuse_batch_norms(model) if wanted else 0
    if logger is not None:
        what = f'{count} BatchNorm layers folded into their convolutions' if wanted else 'BatchNorm layers not folded'
        logger.info(f'{what} ({reason}).')
    return model


def decide_fuse_bn(model: nn.Module, mode: str, device: str, args: Mapping[str, Any]) -> Tuple[bool, str]:
    """Whether to fold, and why or why not; the arguments are those of `apply_fuse_bn`.

    Raises:
        UsageError: The mode is 'on', and the model is not one for which it is known how.
    """
    if mode == 'off':
        return False, '--fuse-bn off'
    if not isinstance(model, ResNet):
        if mode == 'on':
            raise UsageError(f"--fuse-bn on is for timm's ResNets, {args['model']} is a {type(model).__name__}: leave "
                             'it out.')
        return False, "known for timm's ResNets only"
    if mode == 'on':
        return True, '--fuse-bn on'
    if args.get('amp') or args.get('model_dtype') not in (None, 'float32'):
        return False, 'lower precision would round the folded weights differently; --fuse-bn on does it'
    if device.partition(':')[0] == 'npu':
        return False, 'not measured on an NPU; --fuse-bn on does it'
    return True, 'the same network with fewer passes over its activations'


def fuse_batch_norms(model: ResNet) -> int:
    """Fold every BatchNorm that directly follows a convolution into it, in place.

    Args:
        model: One of timm's ResNets, in float32; put into eval mode.

    Returns:
        Number of BatchNorm layers that were folded.
    """
    model.eval()
    count = 0
    for module in model.modules():
        if isinstance(module, ResNet) or type(module) in BLOCKS:
            pairs = [(f'conv{i}', f'bn{i}') for i in (1, 2, 3)]
        elif type(module) is nn.Sequential:
            names = list(module._modules)
            pairs = list(zip(names, names[1:]))
        else:
            continue
        for conv, bn in pairs:
            count += _fold(module, conv, bn)
    return count


def _fold(parent: nn.Module, conv_name: str, bn_name: str) -> int:
    conv, bn = getattr(parent, conv_name, None), getattr(parent, bn_name, None)
    holder, name = parent, conv_name
    if type(conv) is nn.Sequential and len(conv):  # the deep stems: the last of several convolutions
        holder, name = conv, list(conv._modules)[-1]
        conv = getattr(conv, name)
    if type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d or bn.running_mean is None:
        return 0
    setattr(holder, name, fuse_conv_bn_eval(conv, bn))
    setattr(parent, bn_name, nn.Identity())
    return 1
