"""`--graph`: the kernels of the network's forward and backward pass are captured once, and started together

A device waits while its host starts many short kernels slowly. `make_graphed_callables` of torch.cuda and of torch_npu
records them as one graph; a step copies its batch into the tensor of the capture and replays it. Loss, optimizer and
moving average run as always, and so does evaluation.
"""
import logging
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional

import torch
import torch.nn as nn

NEEDED = 'make_graphed_callables'
# flags whose random numbers a graph would draw in another order
RANDOM = ('drop', 'drop_connect', 'drop_path', 'drop_block')


def why_not_captured(args: Any, device: str, module: Optional[Any], bundled: bool, half_weights: bool) -> Optional[str]:
    """Why the steps of a training run kernel by kernel although `--graph` is given, as a clause; None if captured.

    Args:
        args: Flags of train.py.
        device: Device of the run.
        module: `torch.cuda` or `torch.npu`; None for the CPU, or where the device is not.
        bundled: The script is the package's own.
        half_weights: The network computes with fp16 copies of its weights (O2).
    """
    kind = device.partition(':')[0]
    if kind == 'cpu':
        return 'a CPU has no graphs of kernels'
    if not bundled:
        return "timm's train.py has no place for it (--scripts bundled has)"
    if module is None:
        return f'there is no {kind} here'
    if not hasattr(module, NEEDED):
        return f'the installed release has no torch.{kind}.{NEEDED}'
    if (args.grad_accum_steps or 1) > 1:
        return 'a replay would overwrite the gradients that --grad-accum-steps collects'
    if getattr(args, 'train_img_sizes', None):
        return 'the images of --train-img-sizes are of several sizes'
    if half_weights:
        return '--amp-level O2 has hooks on the network (--amp has none)'
    if args.kd_model_name:
        return '--kd-model-name calls parts of the network'
    if args.grad_checkpointing:
        return '--grad-checkpointing runs parts of the network again'
    if args.sync_bn and args.distributed:
        return '--sync-bn exchanges values between the ranks'
    random = [name for name in RANDOM if getattr(args, name, None)]
    if random:
        return f'the random numbers of --{random[0].replace("_", "-")} would be others'
    return None


def capture(model: nn.Module, images: torch.Tensor, context: Any, logger: logging.Logger) -> Optional[str]:
    """Have a network replay a captured graph for batches like `images` in training.

    Other batches, evaluation and passes without gradients run kernel by kernel. The network is in training mode, and on
    its device; it must not be copied afterwards, as the copy would replay the graph of the original.

    Args:
        model: The network; its `forward` is replaced.
        images: A batch of the shape, dtype and memory format of the training.
        context: Context of the forward pass: autocast without its cache, or nothing.
        logger: Where the outcome goes.

    Returns:
        None if it was captured; else why not, of which a warning tells, and the network is as it was.
    """
    eager: Callable = model.forward
    buffers = [(b, b.clone()) for b in model.buffers()]  # the passes before the capture are none of the training's
    kind = images.device.type
    try:
        # nor is what a capture does to the device's random numbers
        with context, torch.random.fork_rng([] if kind == 'cpu' else [images.device], device_type=kind), _quiet():
            getattr(getattr(torch, kind), NEEDED)(model, (images,))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as e:
        model.__dict__.pop('forward', None)
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        logger.warning(f'--graph: the step could not be captured ({reason}): its kernels are started one by one.')
        return reason
    finally:
        with torch.no_grad():
            for b, before in buffers:
                b.copy_(before)
    replay = model.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        fits = x.shape == images.shape and x.dtype == images.dtype and torch.is_grad_enabled()
        return replay(x) if fits else eager(x)
    model.forward = forward  # type: ignore[method-assign]
    logger.info(f'Captured the kernels of a step on {len(images)} images: they are started together (--graph).')
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about what a capture does on purpose: it runs on a stream of its own."""
    ignore = getattr(torch.autograd.graph, 'set_warn_on_accumulate_grad_stream_mismatch', None)  # torch 2.11
    if ignore is not None:
        ignore(False)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Attempting to run cuBLAS, but there was no current CUDA context')
        yield
