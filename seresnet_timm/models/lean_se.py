"""Residual blocks whose last BatchNorm, Squeeze-and-Excitation, shortcut and ReLU are one memory-lean operation

timm's blocks keep the output of the last BatchNorm for the backward pass: four of the sixteen activations of a
bottleneck. Here it is computed anew from the input of that BatchNorm, which is kept anyway. The numbers are timm's
within rounding, the parameters and their names are timm's, and what the operation does not know runs as in `light_se`,
which is the default: it starts fewer kernels.

Paper: `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507
"""
import os
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, SEModule
from timm.models.resnet import BasicBlock, Bottleneck

from seresnet_timm.models.light_se import (
    differentiable_gradients,
    grad_squeeze,
    is_altered,
    is_known,
    is_watched,
    light_applies,
    light_tail,
    per_image,
    squeeze,
    without_autocast,
)

__all__ = ['LeanBasicBlock', 'LeanBottleneck', 'set_block_end', 'set_lean_se']

BLOCK_ENDS = ('light', 'lean', 'timm')
_block_end = 'light'


def set_block_end(name: str = 'light') -> None:
    """Choose how blocks end, for every model of this process.

    `SERESNET_TIMM_LEAN_SE=0` in the environment keeps timm's layers, where there is no launcher too; there, 1 chooses
    'lean'.

    Args:
        name: 'light': in few launches, see `light_se`; 'lean': with less memory; 'timm': timm's layers.
    """
    global _block_end
    assert name in BLOCK_ENDS, name
    _block_end = 'timm' if os.environ.get('SERESNET_TIMM_LEAN_SE') == '0' else name


def set_lean_se(enable: bool = True) -> None:
    """Choose between the memory-lean operation and timm's layers, for every model of this process."""
    set_block_end('lean' if enable else 'timm')


set_block_end('lean' if os.environ.get('SERESNET_TIMM_LEAN_SE') == '1' else 'light')


def counts_together(x: torch.Tensor) -> bool:
    """Whether the BatchNorm layers of a network are counted by one addition for this input."""
    return _block_end != 'timm' and type(x) is torch.Tensor and not is_watched()


class LeanBasicBlock(BasicBlock):
    """timm's BasicBlock with a memory-lean end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x

        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)

        x = self.conv2(x)

        if not torch.jit.is_scripting():
            if lean_applies(x, self.bn2, self.se, self.act2, self.drop_path):
                return lean_tail(x, self.downsample, shortcut, self.bn2, self.se)
            if _block_end != 'timm' and light_applies(x, self.se, self.act2, self.drop_path):
                return light_tail(x, self.downsample, shortcut, self.bn2, self.se, self.drop_path)

        x = self.bn2(x)

        if self.se is not None:
            x = self.se(x)

        if self.drop_path is not None:
            x = self.drop_path(x)

        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        x = self.act2(x)

        return x


class LeanBottleneck(Bottleneck):
    """timm's Bottleneck with a memory-lean end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x

        x = self.conv1(x)
        x = self.bn1(x)
        x = self.act1(x)

        x = self.conv2(x)
        x = self.bn2(x)
        x = self.drop_block(x)
        x = self.act2(x)
        x = self.aa(x)

        x = self.conv3(x)

        if not torch.jit.is_scripting():
            if lean_applies(x, self.bn3, self.se, self.act3, self.drop_path):
                return lean_tail(x, self.downsample, shortcut, self.bn3, self.se)
            if _block_end != 'timm' and light_applies(x, self.se, self.act3, self.drop_path):
                return light_tail(x, self.downsample, shortcut, self.bn3, self.se, self.drop_path)

        x = self.bn3(x)

        if self.se is not None:
            x = self.se(x)

        if self.drop_path is not None:
            x = self.drop_path(x)

        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        x = self.act3(x)

        return x


def lean_applies(
        x: torch.Tensor,
        bn: nn.Module,
        se: Optional[nn.Module],
        act: nn.Module,
        drop_path: Optional[nn.Module],
) -> bool:
    """Whether the lean operation does what these layers would, here and now.

    It does in training if it was chosen, and in evaluation without gradients, on layers of exactly the types it knows.
    It does not where something looks into the layers, or replaces them (SyncBatchNorm, O2's layers, parametrisations,
    tensor subclasses).
    """
    if _block_end == 'timm' or type(x) is not torch.Tensor or is_watched() or torch.is_grad_enabled() != bn.training:
        return False
    if bn.training and not (
            _block_end == 'lean'
            and type(bn) is nn.BatchNorm2d and bn.affine and bn.track_running_stats and bn.momentum is not None
            and drop_path is None and x.numel() > x.shape[1]):  # BatchNorm refuses a single value
        return False
    if drop_path is not None and (type(drop_path) is not DropPath or drop_path.training or is_altered(drop_path)):
        return False
    return (
        is_known(se, act) and type(se.fc1) is nn.Conv2d and type(se.fc2) is nn.Conv2d
        and not is_altered(bn)
    )


def lean_tail(
        x: torch.Tensor,
        downsample: Optional[nn.Module],
        shortcut: torch.Tensor,
        bn: nn.Module,
        se: SEModule,
) -> torch.Tensor:
    """ReLU(SE(BN(x)) + shortcut).

    Args:
        x: Output of the branch's last convolution (B, C, H, W).
        downsample: Layers that the shortcut passes through; None for none.
        shortcut: Input of the block.
        bn: The branch's last BatchNorm, or what stands in its place when it has been folded away.
        se: The SE block.

    Returns:
        Output of the block (B, C, H, W).
    """
    if downsample is not None:
        shortcut = downsample(shortcut)
    if not bn.training:
        y = bn(x)
        gate = se.gate(se.fc2(se.act(se.fc1(y.mean((2, 3), keepdim=True)))))
        return _scale_and_add_(y.clone() if y is x else y, gate, shortcut)
    if bn.num_batches_tracked is not None:  # it is counted with those of the network, see `batch_counters`
        bn.num_batches_tracked.add_(1)
    return _LeanTail.apply(
        x, shortcut, bn.weight, bn.bias, se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias,
        bn.running_mean, bn.running_var, bn.momentum, bn.eps)


def _scale_and_add_(y: torch.Tensor, gate: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
    """ReLU(y * gate + shortcut) in y's place and dtype."""
    if shortcut.dtype == y.dtype:
        return torch.addcmul(shortcut, y, gate, out=y).relu_()
    return y.mul_(gate).add_(shortcut).relu_()


class _LeanTail(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, shortcut, weight, bias, w1, b1, w2, b2, running_mean, running_var, momentum, eps):
        y, mean, invstd = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps)
        pooled, hidden, gate = squeeze(y, w1, b1, w2, b2)
        out = _scale_and_add_(y, per_image(gate, y), shortcut)
        ctx.save_for_backward(
            x, weight, bias, w1, b1, w2, b2, running_mean, running_var, mean, invstd, pooled, hidden, gate, out)
        ctx.eps, ctx.shortcut_dtype = eps, shortcut.dtype
        return out

    @staticmethod
    def backward(ctx, grad_out):
        (x, weight, bias, w1, b1, w2, b2, running_mean, running_var, mean, invstd, pooled, hidden, gate,
         out) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a gradient of the gradient will be asked for
            return _differentiable_backward(ctx, grad_out, x, weight, bias, w1, b1, w2, b2, out)
        need = ctx.needs_input_grad
        with without_autocast(x):
            grad = torch.ops.aten.threshold_backward(grad_out, out, 0)  # ReLU's
            grad_shortcut = grad.to(ctx.shortcut_dtype) if need[1] else None
            grad = grad.to(x.dtype)

            y = F.batch_norm(x, mean, invstd.pow(-2) - ctx.eps, weight, bias, eps=ctx.eps)
            grad_gate = y.mul_(grad).sum((2, 3), dtype=gate.dtype)
            share, *grads = grad_squeeze(
                grad_gate, (pooled, hidden, gate), w1, w2, x.shape[2] * x.shape[3], need[4:8])
            grad_y = torch.addcmul(per_image(share, x), grad, per_image(gate, x), out=y)
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad_y, x, weight, running_mean, running_var, mean, invstd, True, ctx.eps, [need[0], need[2], need[3]])
        return (grad_x, grad_shortcut, grad_weight, grad_bias, *grads, None, None, None, None)


def _differentiable_backward(ctx, grad_out, x, weight, bias, w1, b1, w2, b2, out):
    """The same gradients by differentiable operations."""
    def branch(x, weight, bias, w1, b1, w2, b2):
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=ctx.eps)
        return y * per_image(squeeze(y, w1, b1, w2, b2)[2], y)
    grad_x, *grads, grad_shortcut = differentiable_gradients(
        branch, (x, weight, bias, w1, b1, w2, b2), grad_out * (out > 0), ctx.shortcut_dtype)
    return (grad_x, grad_shortcut if ctx.needs_input_grad[1] else None, *grads, None, None, None, None)
