"""SE-ResNet as trained on Ascend NPUs by the ModelZoo, on timm's ResNet

The network of Ascend ModelZoo's `SE-ResNet-50 for PyTorch` and of moskomule/senet.pytorch, from which its weights
come: torchvision's ResNet v1.5 (stride in the 3x3 convolution) with a Squeeze-and-Excitation block after the last
BatchNorm of every residual branch.

It differs from timm's own `seresnet50` in three ways, all of which change the numbers:
  * both layers of the SE block have no bias (28,071,976 parameters instead of 28,088,024 at 50 layers)
  * the SE bottleneck has exactly channels / 16 units (timm rounds up to 8, which matters at 18 and 34 layers)
  * the last BatchNorm of a residual branch starts at one, and the SE layers start as `torch.nn.Linear` does

Paper: `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507
"""
import re
from functools import partial
from typing import Any, Dict, List, Optional

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SEModule
from timm.models import ResNet, build_model_with_cfg, clean_state_dict, generate_default_cfgs, register_model

from seresnet_timm.models.batch_counters import NAME, countable, counted_together
from seresnet_timm.models.lean_se import LeanBasicBlock, LeanBottleneck, counts_together
from seresnet_timm.models.light_se import is_altered

__all__ = ['SEResNet', 'checkpoint_filter_fn']


class SEResNet(ResNet):
    """timm's ResNet, initialised as the reference is.

    The reference writes the SE layers as `nn.Linear`, which torchvision's ResNet leaves at PyTorch's default
    initialisation; timm writes them as 1x1 convolutions, which its ResNet would initialise like all others.
    """

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = False) -> None:
        """Initialize weights: Kaiming normal (fan out) for convolutions, uniform +-1/sqrt(fan in) for SE layers.

        Args:
            zero_init_last: Zero-initialize the last BN in each residual branch (the reference does not).
        """
        if next(self.parameters()).is_meta:  # which has no values, and computes random ones in Python
            return
        super().init_weights(zero_init_last=zero_init_last)
        for m in self.modules():
            if isinstance(m, SEModule):
                m.fc1.reset_parameters()
                m.fc2.reset_parameters()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through feature extraction layers."""
        if not torch.jit.is_scripting():
            counters = self._batch_counters() if self.training and counts_together(x) else []
            if len(counters) < 2:
                return super().forward_features(x)
            with counted_together(counters):
                return super().forward_features(x)
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[operator]

    @torch.jit.ignore
    def _batch_counters(self) -> List[torch.Tensor]:
        """The counters of the BatchNorm layers that most probably run once, on the device of the first.

        A layer that something looks into counts by itself: a hook may read the counter.
        """
        holders: List[Any] = [self]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if type(stage) is nn.Sequential and not is_altered(stage):
                for block in stage._modules.values():
                    if type(block) in (LeanBasicBlock, LeanBottleneck) and not is_altered(block):
                        holders.append(block)
                        if type(block.downsample) is nn.Sequential and not is_altered(block.downsample):
                            holders.append(block.downsample)
        layers = [m for holder in holders for m in holder._modules.values() if countable(m) and not is_altered(m)]
        found = {id(m._buffers[NAME]): m._buffers[NAME] for m in layers}  # a layer can be there twice
        counters = list(found.values())
        return [c for c in counters if c.device == counters[0].device]


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: Optional[nn.Module]) -> Dict[str, torch.Tensor]:
    """Rename the weights of any known SE-ResNet checkpoint to timm's names.

    Accepts timm's names, torchvision-style names with linear SE layers (`layer1.0.se.fc.0.weight`: ModelZoo,
    moskomule), the prefixes that DDP and torch.compile add, and whole training checkpoints with the weights under
    `state_dict` or `model` (ModelZoo's `.pth.tar`, timm's).

    Args:
        state_dict: Checkpoint dictionary as loaded.
        model: The model to load into (unused, part of timm's signature).

    Returns:
        State dict of timm's ResNet; SE weights reshaped from (out, in) to (out, in, 1, 1).
    """
    for key in ('state_dict', 'model'):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
            break
    out = {}
    for k, v in clean_state_dict(state_dict).items():
        k, is_linear = re.subn(r'\.se\.fc\.([02])\.', lambda m: '.se.fc1.' if m[1] == '0' else '.se.fc2.', k)
        if is_linear and v.ndim == 2:
            v = v[:, :, None, None]
        out[k] = v
    return out


def _cfg(url: str = '', **kwargs) -> Dict[str, Any]:
    return {
        'url': url,
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': 'apache-2.0',
        'paper_name': 'Squeeze-and-Excitation Networks', 'paper_ids': 'arXiv:1709.01507',
        'origin_url': 'https://gitee.com/ascend/ModelZoo-PyTorch',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    'seresnet18_ascend.untrained': _cfg(),
    'seresnet34_ascend.untrained': _cfg(),
    # 77.06 top-1 by its README: 90 epochs, lr 0.6 at batch 1024, x0.1 at epochs 50 and 70
    'seresnet50_ascend.moskomule_in1k': _cfg(
        url='https://github.com/moskomule/senet.pytorch/releases/download/archive/seresnet50-60a8950a85b2b.pkl',
        license='mit', origin_url='https://github.com/moskomule/senet.pytorch',
    ),
    'seresnet101_ascend.untrained': _cfg(),
    'seresnet152_ascend.untrained': _cfg(),
})


def _create_seresnet(variant: str, pretrained: bool = False, **kwargs) -> SEResNet:
    attn_layer = partial(SEModule, rd_ratio=1. / 16, rd_divisor=1, bias=False)
    model_args = dict(block_args=dict(attn_layer=attn_layer), zero_init_last=False)
    return build_model_with_cfg(
        SEResNet, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **dict(model_args, **kwargs),
    )


@register_model
def seresnet18_ascend(pretrained: bool = False, **kwargs) -> SEResNet:
    """SE-ResNet-18, bias-free SE."""
    model_args = dict(block=LeanBasicBlock, layers=(2, 2, 2, 2))
    return _create_seresnet('seresnet18_ascend', pretrained, **dict(model_args, **kwargs))


@register_model
def seresnet34_ascend(pretrained: bool = False, **kwargs) -> SEResNet:
    """SE-ResNet-34, bias-free SE."""
    model_args = dict(block=LeanBasicBlock, layers=(3, 4, 6, 3))
    return _create_seresnet('seresnet34_ascend', pretrained, **dict(model_args, **kwargs))


@register_model
def seresnet50_ascend(pretrained: bool = False, **kwargs) -> SEResNet:
    """SE-ResNet-50, bias-free SE: the network of Ascend ModelZoo's recipe."""
    model_args = dict(block=LeanBottleneck, layers=(3, 4, 6, 3))
    return _create_seresnet('seresnet50_ascend', pretrained, **dict(model_args, **kwargs))


@register_model
def seresnet101_ascend(pretrained: bool = False, **kwargs) -> SEResNet:
    """SE-ResNet-101, bias-free SE."""
    model_args = dict(block=LeanBottleneck, layers=(3, 4, 23, 3))
    return _create_seresnet('seresnet101_ascend', pretrained, **dict(model_args, **kwargs))


@register_model
def seresnet152_ascend(pretrained: bool = False, **kwargs) -> SEResNet:
    """SE-ResNet-152, bias-free SE."""
    model_args = dict(block=LeanBottleneck, layers=(3, 8, 36, 3))
    return _create_seresnet('seresnet152_ascend', pretrained, **dict(model_args, **kwargs))
