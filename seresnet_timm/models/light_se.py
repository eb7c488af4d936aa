"""The end of a residual block in few launches: Squeeze-and-Excitation, shortcut and ReLU as one operation

timm's SE block is two convolutions on images of one pixel, and its gradients take 15 operators, each a kernel or more.
Here the layers are two matrix products, the bias of a layer is added by its product, the gate scales the branch while
the shortcut is added, and the gradient of the pooling is added while the gradient is scaled. The values that are kept
for the backward pass are those of timm's layers, and so are the numbers within rounding, the parameters and their
names. BatchNorm before it runs as a module, so that SyncBatchNorm, BatchNorm of O2 and a frozen one work.

What the operation does not know runs timm's layers, see `light_applies`. `lean_se` computes the output of BatchNorm a
second time instead of keeping it.
"""
from contextlib import nullcontext
from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, SEModule, Sigmoid
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module


def light_applies(x: torch.Tensor, se: Optional[nn.Module], act: nn.Module, drop_path: Optional[nn.Module]) -> bool:
    """Whether the operation does what these layers would, here and now.

    It does on layers of exactly the types it knows. It does not where something looks into the layers (hooks,
    scripting, tracing, torch.compile, torch.export, torch.fx, functional transforms) or replaces them.
    """
    return (
        type(x) is torch.Tensor and not is_watched() and is_known(se, act)
        and (drop_path is None or type(drop_path) is DropPath and not is_altered(drop_path))
    )


def is_known(se: Optional[nn.Module], act: nn.Module) -> bool:
    """True for an SE block with ReLU and sigmoid before a ReLU, none of them altered."""
    if type(se) is not SEModule or se.add_maxpool:
        return False
    # each block asks in each step, and a layer as an attribute takes nine times as long
    layers = fc1, bn, relu, fc2, gate = [se._modules[name] for name in ('fc1', 'bn', 'act', 'fc2', 'gate')]
    return (
        _is_conv(fc1) and type(bn) is nn.Identity and type(relu) is nn.ReLU
        and _is_conv(fc2) and type(gate) is Sigmoid and type(act) is nn.ReLU
        and not any(map(is_altered, (se, *layers, act)))
    )


def _is_conv(layer: nn.Module) -> bool:
    """True for nn.Conv2d, and for a class that computes it with weights that it rounds in each pass."""
    return type(layer) is nn.Conv2d or hasattr(type(layer), 'rounded_dtype')


def _weights_of(*layers: nn.Module) -> List[Optional[torch.Tensor]]:
    """Weight and bias of every layer, as it computes with them."""
    weights = [layer._parameters[name] for layer in layers for name in ('weight', 'bias')]
    dtype = getattr(type(layers[0]), 'rounded_dtype', None)
    return weights if dtype is None else [w if w is None else w.to(dtype) for w in weights]


def is_altered(module: nn.Module) -> bool:
    """True for a layer with hooks, or whose `forward` was replaced: its class alone does not tell what it does."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or 'forward' in module.__dict__)


def is_watched() -> bool:
    """True while something records or transforms the operations of modules."""
    return bool(
        torch.compiler.is_compiling() or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        or nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks or nn_module._global_backward_pre_hooks
    )


def light_tail(
        x: torch.Tensor,
        downsample: Optional[nn.Module],
        shortcut: torch.Tensor,
        bn: nn.Module,
        se: SEModule,
        drop_path: Optional[nn.Module] = None,
) -> torch.Tensor:
    """ReLU(drop_path(SE(BN(x))) + shortcut).

    Args:
        x: Output of the branch's last convolution (B, C, H, W).
        downsample: Layers that the shortcut passes through; None for none.
        shortcut: Input of the block.
        bn: The branch's last BatchNorm, or what stands in its place.
        se: The SE block.
        drop_path: Drops the branch of some images; None for none.

    Returns:
        Output of the block (B, C, H, W).
    """
    y = bn(x)
    kept = None
    if drop_path is not None and drop_path.training:
        kept = drop_path(y.new_ones(len(y), 1, 1, 1))
    if downsample is not None:
        shortcut = downsample(shortcut)
    weights = _weights_of(se._modules['fc1'], se._modules['fc2'])
    if torch.is_grad_enabled():
        # ReLU is torch's own, so that its backward pass frees what it has read before that of the rest begins
        return _LightTail.apply(y, shortcut, kept, *weights).relu_()
    gate = squeeze(y, *weights)[2]
    return _scale_and_add(y, _scale(gate, kept, y), shortcut).relu_()


def without_autocast(x: torch.Tensor) -> Any:
    return torch.autocast(x.device.type, enabled=False) if torch._C._is_any_autocast_enabled() else nullcontext()


def squeeze(y: torch.Tensor, w1, b1, w2, b2) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled input (B, C), hidden units (B, C / 16) and gate (B, C) of SE, in the precision of its weights."""
    with without_autocast(y):
        pooled = y.mean((2, 3), dtype=w1.dtype)
        hidden = F.linear(pooled, w1.flatten(1), b1).relu()
        return pooled, hidden, F.linear(hidden, w2.flatten(1), b2).sigmoid()


def per_image(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return gate.to(x.dtype).view(*gate.shape, 1, 1)


def _scale(gate: torch.Tensor, kept: Optional[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """What the branch is multiplied by, (B, C, 1, 1)."""
    return per_image(gate, y) if kept is None else per_image(gate * kept.flatten(1), y)


def _scale_and_add(y: torch.Tensor, scale: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
    """y * scale + shortcut in y's dtype."""
    if shortcut.dtype == y.dtype:
        return torch.addcmul(shortcut, y, scale)
    return torch.mul(y, scale).add_(shortcut)


def grad_squeeze(grad_gate: torch.Tensor, squeezed: Tuple, w1, w2, area: int, need: Sequence[bool]) -> Tuple:
    """Gradients of a `squeeze`.

    Args:
        grad_gate: Gradient of the gate.
        squeezed: As from `squeeze`.
        w1: Weight of the first layer.
        w2: Weight of the second layer.
        area: Pixels that were pooled.
        need: Which of weight and bias of both layers need one.

    Returns:
        Gradient of each of the pooled pixels, and of weights and biases.
    """
    pooled, hidden, gate = squeezed
    grad_logit = torch.ops.aten.sigmoid_backward(grad_gate, gate)
    grad_hidden = torch.ops.aten.threshold_backward(grad_logit @ w2.flatten(1), hidden, 0)
    # the product divides by the area; what it would add is multiplied by zero
    share = torch.addmm(gate, grad_hidden, w1.flatten(1), beta=0, alpha=1 / area)
    return (
        share,
        (grad_hidden.T @ pooled).view_as(w1) if need[0] else None,
        grad_hidden.sum(0) if need[1] else None,
        (grad_logit.T @ hidden).view_as(w2) if need[2] else None,
        grad_logit.sum(0) if need[3] else None,
    )


class _LightTail(torch.autograd.Function):

    @staticmethod
    def forward(ctx, y, shortcut, kept, w1, b1, w2, b2):
        pooled, hidden, gate = squeeze(y, w1, b1, w2, b2)
        scale = _scale(gate, kept, y)
        ctx.save_for_backward(y, kept, w1, b1, w2, b2, pooled, hidden, gate, scale)
        ctx.shortcut_dtype = shortcut.dtype
        return _scale_and_add(y, scale, shortcut)

    @staticmethod
    def backward(ctx, grad):
        y, kept, w1, b1, w2, b2, pooled, hidden, gate, scale = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: a gradient of the gradient will be asked for
            def branch(y, w1, b1, w2, b2):
                return y * _scale(squeeze(y, w1, b1, w2, b2)[2], kept, y)
            grad_y, *grads, grad_shortcut = differentiable_gradients(
                branch, (y, w1, b1, w2, b2), grad, ctx.shortcut_dtype)
            return (grad_y, grad_shortcut if need[1] else None, None, *grads)
        with without_autocast(y):
            grad_shortcut = grad.to(ctx.shortcut_dtype) if need[1] else None
            grad = grad.to(y.dtype)
            product = y * grad
            grad_gate = product.sum((2, 3), dtype=gate.dtype)
            if kept is not None:
                grad_gate = grad_gate * kept.flatten(1)
            share, *grads = grad_squeeze(
                grad_gate, (pooled, hidden, gate), w1, w2, y.shape[2] * y.shape[3], need[3:])
            grad_y = torch.addcmul(per_image(share, y), grad, scale, out=product) if need[0] else None
        return (grad_y, grad_shortcut, None, *grads)


def differentiable_gradients(
        branch: Callable[..., torch.Tensor],
        inputs: Sequence[Optional[torch.Tensor]],
        grad: torch.Tensor,
        shortcut_dtype: torch.dtype,
) -> Tuple[Optional[torch.Tensor], ...]:
    """Gradients of a branch by operations that have gradients themselves, and the gradient of the shortcut.

    Args:
        branch: What is added to the shortcut, as a function of the inputs.
        inputs: Its inputs.
        grad: Gradient of the sum.
        shortcut_dtype: Dtype of the shortcut.
    """
    wanted = [i for i, t in enumerate(inputs) if t is not None and t.requires_grad]
    scaled = branch(*inputs)
    grads = torch.autograd.grad(
        scaled, [inputs[i] for i in wanted], grad_outputs=grad.to(scaled.dtype), create_graph=True)
    result = [None] * len(inputs)
    for i, g in zip(wanted, grads):
        result[i] = g
    return (*result, grad.to(shortcut_dtype))
