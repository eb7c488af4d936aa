"""Residual blocks whose last BatchNorm, Squeeze-and-Excitation, shortcut and ReLU are one memory-lean operation

timm's blocks keep the output of the last BatchNorm for the backward pass: four of the sixteen activations of a
bottleneck. Here it is computed anew from the input of that BatchNorm, which is kept anyway, and the gradient of the
pooling is added in the pass that scales the gradient. The numbers are timm's within rounding, the parameters and their
names are timm's, and whatever the operation does not know runs timm's own layers: see `lean_tail`.

Paper: `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507
"""
import os
from contextlib import nullcontext
from typing import Any, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import SEModule, Sigmoid
from timm.models.resnet import BasicBlock, Bottleneck
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

__all__ = ['LeanBasicBlock', 'LeanBottleneck', 'set_lean_se']

_enabled = True


def set_lean_se(enable: bool = True) -> None:
    """Choose between the memory-lean operation and timm's layers, for every model of this process.

    `SERESNET_TIMM_LEAN_SE=0` in the environment keeps timm's layers, where there is no launcher too.
    """
    global _enabled
    _enabled = enable and os.environ.get('SERESNET_TIMM_LEAN_SE') != '0'


set_lean_se()


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

    It does in training, and in evaluation without gradients, on layers of exactly the types it knows. It does not where
    something looks into the layers (hooks, scripting, tracing, torch.compile, torch.export, torch.fx, functional
    transforms), or replaces them (SyncBatchNorm, O2's layers, parametrisations, tensor subclasses).
    """
    if not (_enabled and type(x) is torch.Tensor and torch.is_grad_enabled() == bn.training) or _is_watched():
        return False
    if bn.training and not (
            type(bn) is nn.BatchNorm2d and bn.affine and bn.track_running_stats and bn.momentum is not None
            and drop_path is None and x.numel() > x.shape[1]):  # BatchNorm refuses a single value
        return False
    return (
        type(se) is SEModule and not se.add_maxpool
        and type(se.fc1) is nn.Conv2d and type(se.bn) is nn.Identity and type(se.act) is nn.ReLU
        and type(se.fc2) is nn.Conv2d and type(se.gate) is Sigmoid and type(act) is nn.ReLU
        and not any(map(_has_hooks, (bn, se, se.fc1, se.bn, se.act, se.fc2, se.gate, act)))
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _is_watched() -> bool:
    return bool(
        torch.compiler.is_compiling() or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        or nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks or nn_module._global_backward_pre_hooks
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
    bn.num_batches_tracked.add_(1)
    return _LeanTail.apply(
        x, shortcut, bn.weight, bn.bias, se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias,
        bn.running_mean, bn.running_var, bn.momentum, bn.eps)


def _without_autocast(x: torch.Tensor) -> Any:
    return torch.autocast(x.device.type, enabled=False) if torch._C._is_any_autocast_enabled() else nullcontext()


def _squeeze(y: torch.Tensor, w1, b1, w2, b2) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled input (B, C), hidden units (B, C / 16) and gate (B, C) of SE, in the precision of its weights."""
    with _without_autocast(y):
        pooled = y.mean((2, 3), dtype=w1.dtype)
        hidden = F.linear(pooled, w1.flatten(1), b1).relu()
        return pooled, hidden, F.linear(hidden, w2.flatten(1), b2).sigmoid()


def _per_image(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return gate.to(x.dtype)[:, :, None, None]


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
        pooled, hidden, gate = _squeeze(y, w1, b1, w2, b2)
        out = _scale_and_add_(y, _per_image(gate, y), shortcut)
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
        grad = torch.ops.aten.threshold_backward(grad_out, out, 0)  # ReLU's
        grad_shortcut = grad.to(ctx.shortcut_dtype) if need[1] else None
        grad = grad.to(x.dtype)

        y = F.batch_norm(x, mean, invstd.pow(-2) - ctx.eps, weight, bias, eps=ctx.eps)
        grad_gate = y.mul_(grad).sum((2, 3), dtype=gate.dtype)
        grad_logit = grad_gate * gate * (1 - gate)
        grad_hidden = (grad_logit @ w2.flatten(1)) * (hidden > 0)
        grad_pooled = grad_hidden @ w1.flatten(1)
        grad_w1 = (grad_hidden.T @ pooled).view_as(w1) if need[4] else None
        grad_b1 = grad_hidden.sum(0) if need[5] else None
        grad_w2 = (grad_logit.T @ hidden).view_as(w2) if need[6] else None
        grad_b2 = grad_logit.sum(0) if need[7] else None

        area = x.shape[2] * x.shape[3]
        grad_y = torch.addcmul(_per_image(grad_pooled / area, x), grad, _per_image(gate, x), out=y)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, weight, running_mean, running_var, mean, invstd, True, ctx.eps, [need[0], need[2], need[3]])
        return (grad_x, grad_shortcut, grad_weight, grad_bias, grad_w1, grad_b1, grad_w2, grad_b2,
                None, None, None, None)


def _differentiable_backward(ctx, grad_out, x, weight, bias, w1, b1, w2, b2, out):
    """The same gradients by differentiable operations."""
    grad = grad_out * (out > 0)
    inputs = [x, weight, bias, w1, b1, w2, b2]
    wanted = [i for i, t in enumerate(inputs) if t is not None and t.requires_grad]
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=ctx.eps)
    scaled = y * _per_image(_squeeze(y, w1, b1, w2, b2)[2], y)
    grads = torch.autograd.grad(
        scaled, [inputs[i] for i in wanted], grad_outputs=grad.to(scaled.dtype), create_graph=True)
    result = [None] * len(inputs)
    for i, g in zip(wanted, grads):
        result[i] = g
    grad_shortcut = grad.to(ctx.shortcut_dtype) if ctx.needs_input_grad[1] else None
    return (result[0], grad_shortcut, *result[1:], None, None, None, None)
