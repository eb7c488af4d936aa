"""The learning rate that `--lr-base` gives."""
from typing import Tuple


def scaled_lr(args, global_batch_size: float) -> Tuple[float, str]:
    """Learning rate scaled by the global batch size (Goyal et al., https://arxiv.org/abs/1706.02677).

    Args:
        args: Flags; `lr_base`, `lr_base_size`, `lr_base_scale` and `opt` are read.
        global_batch_size: Images of an optimizer step, of all processes, on average.

    Returns:
        The learning rate, and how it was computed.
    """
    scale = args.lr_base_scale or ('sqrt' if any(o in args.opt.lower() for o in ('ada', 'lamb')) else 'linear')
    ratio = global_batch_size / args.lr_base_size
    lr = args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
    return lr, f'{args.lr_base} at {args.lr_base_size} images, {scale} scaling to {global_batch_size:.10g}'
