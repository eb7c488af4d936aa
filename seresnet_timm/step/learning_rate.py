"""The learning rate that `--lr-base` gives, and how long a schedule is."""
import math
from typing import Any, Mapping, Tuple


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


def num_epochs(args: Mapping[str, Any]) -> int:
    """Epochs of a run, as timm's `create_scheduler_v2` has them: with cycles, warm-up and cooldown where they count.

    Args:
        args: Flags of train.py, with timm's default for what is missing.
    """
    sched, epochs = args.get('sched', 'cosine'), args.get('epochs', 300)
    cooldown = args.get('cooldown_epochs') or 0
    if sched in ('cosine', 'tanh', 'poly'):
        cycles, factor = max(1, args.get('lr_cycle_limit', 1)), args.get('lr_cycle_mul', 1.)
        epochs = epochs * cycles if factor == 1 else math.floor(-epochs * (factor ** cycles - 1) / (1 - factor))
    elif sched not in ('wsd', 'rsqrt'):
        cooldown = 0
    return epochs + cooldown + (args.get('warmup_epochs', 5) if args.get('warmup_prefix') else 0)
