"""AMP level O2: fp16 weights and activations, float32 masters, float32 BatchNorm, fp16 gradients between ranks

What apex's O2 does, in the reference's recipe, without apex. The model's parameters stay float32: they are the masters
that the optimizer, the moving average and checkpoints see. Every convolution and linear layer computes with an fp16
copy of its weights, which is made in each forward pass; the network runs in fp16 from the first layer to the logits,
except for BatchNorm's parameters and statistics; and DDP exchanges gradients as fp16, half the bytes.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from seresnet_timm.errors import UsageError


class _HalfConv2d(nn.Conv2d):
    rounded_dtype = torch.float16  # for SE blocks, see `models.light_se`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.half()
        return self._conv_forward(x.half(), self.weight.half(), bias)


class _HalfLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.half()
        return F.linear(x.half(), self.weight.half(), bias)


_HALF = {nn.Conv2d: _HalfConv2d, nn.Linear: _HalfLinear}


def use_half_weights(model: nn.Module) -> nn.Module:
    """Make a float32 model compute in fp16.

    Args:
        model: Network of Conv2d, Linear and BatchNorm layers; changed in place, names and parameters kept.

    Returns:
        The model; takes and returns float32.

    Raises:
        UsageError: The model has parameters in other layers.
    """
    check_half_weights(model)
    for module in model.modules():
        if type(module) in _HALF:
            module.__class__ = _HALF[type(module)]
    model.register_forward_pre_hook(_input_to_half)
    model.register_forward_hook(_output_to_float)
    return model


def check_half_weights(model: nn.Module) -> None:
    """Check that a model can compute in fp16; it may be one without memory.

    Raises:
        UsageError: The model has parameters in other layers.
    """
    for name, module in model.named_modules():
        if type(module) in _HALF or isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if any(True for _ in module.parameters(recurse=False)):
            raise UsageError(f'--amp-level O2 is for networks of convolutions, BatchNorm and linear layers; '
                             f'{name or "the model"} is a {type(module).__name__}: use --amp-level O1.')


def _input_to_half(_module: nn.Module, args: tuple) -> tuple:
    return (args[0].half(), *args[1:])


def _output_to_float(_module: nn.Module, _args: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def exchange_in_half(module: nn.Module) -> None:
    """Have DDP exchange gradients as fp16."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
    if isinstance(module, DistributedDataParallel):
        module.register_comm_hook(None, fp16_compress_hook)
