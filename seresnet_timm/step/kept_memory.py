"""What a training step of this package's networks keeps in memory, and whether its blocks have to save some of it

Blocks that save memory compute some activations twice (`models/lean_se.py`): they start more kernels, and keep a fifth
less. With `--lean-se auto` a run takes them where its step would not fit into the memory of its device.
"""
from typing import Any, Optional, Tuple

# MiB that the activations of an image of 224 pixels take in float32 until the backward pass, and millions of parameters
KEPT = {
    'seresnet18_ascend': (24.1, 11.8),
    'seresnet34_ascend': (36.1, 22.),
    'seresnet50_ascend': (103.2, 28.1),
    'seresnet101_ascend': (155.5, 49.3),
    'seresnet152_ascend': (220., 66.8),
}
SHARE = 0.85  # of the memory that a step may take; the rest is for workspaces of convolutions, and for gaps


def decide_lean_se(
        args: Any, architecture: str, pixels: int, device: str, memory: Optional[float],
        fast: bool) -> Tuple[bool, str]:
    """Whether a training with `--lean-se auto` takes the blocks that save memory, and why or why not.

    Args:
        args: Flags of train.py.
        architecture: timm's name of the network.
        pixels: Pixels of the largest batch of a process.
        device: Device of the run.
        memory: Bytes that the device has for one process; None if not known.
        fast: False for timm's set-up of the step.
    """
    if not fast:
        return False, '--fast-step off'
    needed = step_gib(args, architecture, pixels)
    if needed is None:
        return False, 'for the SE-ResNets of this package'
    if getattr(args, 'torchcompile', None):
        return False, '--torchcompile'
    if getattr(args, 'grad_checkpointing', False):
        return False, '--grad-checkpointing saves more'
    if memory is None:
        return False, f'the memory of {device} is not known here'
    total = memory / 2**30
    if needed > SHARE * total:
        return True, f'a step needs about {needed:.1f} GiB without them, of {total:.1f}'
    return False, f'a step needs about {needed:.1f} of {total:.1f} GiB'


def step_gib(args: Any, architecture: str, pixels: int) -> Optional[float]:
    """Memory of a training step with the blocks that start few kernels, about; None for another network.

    Weights, their gradients, momentum and moving average are in float32; channels and layers are those of the name.
    """
    if architecture not in KEPT:
        return None
    kept, millions = KEPT[architecture]
    is_half = getattr(args, 'amp', False) or getattr(args, 'model_dtype', None) not in (None, 'float32')
    activations = kept * 2**20 * pixels / 224**2 / (2 if is_half else 1)
    weights = 4e6 * millions * (4 if getattr(args, 'model_ema', False) else 3)
    return (activations + weights) / 2**30
