"""The fastest correct set-up of a step on each device, as measured in `benchmarks/`; `--fast-step off` is timm's set-up

| what | where | why |
|---|---|---|
| channels_last | timm's ResNets on cpu and cuda | the native layout of convolutions; operators of npu refuse it |
| fused optimizer, if torch has one | cpu and cuda | one pass over the weights; cuda: no wait for the loss scale |
| gradients as bucket views | DDP on cpu and cuda | no second copy of the gradients |
| freed memory is kept | cpu | no page faults for activations in every step |
| SE blocks in few kernels | the SE-ResNets of this package, everywhere | see `models/light_se.py` |
| or memory-saving SE blocks | where a step would not fit into memory | see `kept_memory` |

Not used: torch.compile (`--torchcompile` turns it on), DDP's static graph (it saves the search for unused parameters,
which timm's scripts do not request), flushing of denormals (no difference measured).
Flags and config files override this: `--channels-last`, `channels_last: false`, `--opt-kwargs fused=False`.
"""
import ctypes
import functools
import inspect
import os
from typing import Any, Dict, Mapping, Optional, Tuple

FAST_DEVICES = ('cpu', 'cuda')


def kind_of(device: Any) -> str:
    return str(device).partition(':')[0]


def wants_channels_last(model: str, device: str) -> Tuple[bool, str]:
    """Whether a model is faster in channels_last on a device, and why or why not."""
    kind = kind_of(device)
    if kind not in FAST_DEVICES:
        return False, f'operators of {kind} take contiguous tensors only'
    if not is_resnet(model):
        return False, "measured for timm's ResNets only"
    return True, 'the native layout of convolutions'


def is_resnet(model: str) -> bool:
    """Whether a name is one of timm's ResNets, or of this package's."""
    from timm.models import is_model, model_entrypoint

    from seresnet_timm.models import seresnet as models
    name = model.split('.')[0]
    return is_model(name) and model_entrypoint(name).__module__ in ('timm.models.resnet', models.__name__)


def to_channels_last(model):
    """`model.to(memory_format=torch.channels_last)`, which copies the weights of 1x1 convolutions too.

    Their values lie in the same order in both formats: other strides are enough for six of ten weights of a ResNet-50.
    """
    import torch
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and tensor.is_contiguous():
            channels = tensor.shape[1]
            tensor.data = tensor.data.as_strided(tensor.shape, (channels, 1, channels, channels))
    return model.to(memory_format=torch.channels_last)


# --- optimizer --------------------------------------------------------------------------------------------------------

def has_fused(opt: str) -> bool:
    """Whether torch has a fused implementation of a timm optimizer."""
    import torch
    from timm.optim import get_optimizer_class
    if opt.lower().startswith('lookahead_'):
        return False  # timm keeps its slow weights itself
    try:
        cls = get_optimizer_class(opt, bind_defaults=False)
    except ValueError:
        return False  # unknown: the script refuses it
    return cls in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) and (
        'fused' in inspect.signature(cls).parameters)


def wants_fused(opt: str, opt_kwargs: Mapping[str, Any], device: Any) -> bool:
    asked_for = any(opt_kwargs.get(k) is not None for k in ('fused', 'foreach', 'capturable', 'differentiable'))
    # with dampening the first step differs from later ones, see `_start_momentum`
    return kind_of(device) in FAST_DEVICES and not asked_for and not opt_kwargs.get('dampening') and has_fused(opt)


def create_optimizer(model, opt: str = 'sgd', fast: bool = True, **kwargs):
    """timm's `create_optimizer_v2`, with torch's fused implementation if there is one.

    Args:
        model: Model on its device.
        opt: timm's name of the optimizer.
        fast: False for the implementation that timm chooses.
        kwargs: Further arguments of timm's function.
    """
    import torch
    from timm.optim import create_optimizer_v2
    weight = next(model.parameters())
    if fast and weight.is_floating_point() and wants_fused(opt, kwargs, weight.device):
        kwargs['fused'] = True
    optimizer = create_optimizer_v2(model, opt=opt, **kwargs)
    base = getattr(optimizer, '_base_optimizer', optimizer)  # timm's Lookahead has no hooks of its own
    if base.defaults.get('fused') and isinstance(base, torch.optim.SGD):
        _start_momentum(base)
    if 'fused' in base.defaults:
        base.register_state_dict_post_hook(_save_as_timms)
        base.register_load_state_dict_pre_hook(_keep_implementation)
        base.register_load_state_dict_post_hook(_match_layout)
    return optimizer


def _start_momentum(optimizer) -> None:
    """Begin with momentum of zero, which gives the same first step.

    torch's fused SGD takes uninitialised memory for the momentum at its first step, and fills it in that step. If a
    loss scaler skips the step because gradients overflow, as is usual for the first one in fp16, the next step
    computes with what was in that memory: weights become NaN (torch 2.11 and 2.14, cuda and cpu).

    The memory is taken at the first step: what lies there when loader workers are forked is copied page by page when
    it is next written (0.2 s of a first step on two CPU cores).
    """
    import torch
    is_started = False

    def start(optimizer, *_) -> None:
        nonlocal is_started
        if is_started:
            return
        is_started = True
        for group in optimizer.param_groups:
            if group['momentum'] and not group['dampening']:
                for param in group['params']:
                    if optimizer.state[param].get('momentum_buffer') is None:
                        optimizer.state[param]['momentum_buffer'] = torch.zeros_like(param)

    optimizer.register_step_pre_hook(start)


def _save_as_timms(_optimizer, state_dict: Dict[str, Any]) -> Dict[str, Any]:
    """Leave implementation and memory format out of checkpoints: other devices and scripts cannot take them."""
    import torch
    groups = [dict(group, fused=None) for group in state_dict['param_groups']]
    state = {i: {k: v.contiguous() if torch.is_tensor(v) else v for k, v in s.items()}
             for i, s in state_dict['state'].items()}
    return dict(state_dict, param_groups=groups, state=state)


def _keep_implementation(optimizer, state_dict: Dict[str, Any]) -> Dict[str, Any]:
    """Use the optimizer implementation of this run, not the one stored in the checkpoint."""
    groups = [dict(saved, fused=own['fused'], foreach=own['foreach'])
              for saved, own in zip(state_dict['param_groups'], optimizer.param_groups)]
    return dict(state_dict, param_groups=groups + state_dict['param_groups'][len(groups):])


def _match_layout(optimizer) -> None:
    """Lay the loaded state out as the parameters are.

    Fused kernels walk through parameter, gradient and state in memory order: state that was saved by a run in another
    memory format would be paired with the wrong weights, without an error (torch 2.14).
    """
    import torch
    for param, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == param.shape and value.stride() != param.stride():
                state[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


# --- DDP --------------------------------------------------------------------------------------------------------------

def ddp_arguments(device: Any, fast: bool = True) -> Dict[str, Any]:
    """Arguments of DistributedDataParallel beyond timm's; none if not `fast`."""
    return dict(gradient_as_bucket_view=True) if fast and kind_of(device) in FAST_DEVICES else {}


def in_terms_of_this_torch(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of DistributedDataParallel by the names that the installed torch has.

    torch 2.13 renames `broadcast_buffers`, and warns about the old name, which timm's train.py gives. By the new name
    the buffers are sent once, from rank 0, when the module is wrapped. Both scripts restore the buffers of a rank after
    that, so that no run differs.
    """
    from torch.nn.parallel import DistributedDataParallel
    old, new = 'broadcast_buffers', 'forward_sync_buffers'
    if new not in inspect.signature(DistributedDataParallel).parameters:
        return arguments
    return {new if name == old else name: value for name, value in arguments.items()}


def match_gradient_strides(module: Any) -> None:
    """Give gradients of 1 x 1 convolutions the strides of their weights, before DDP wraps the module.

    In channels_last a weight (out, in, 1, 1) has other strides in the dimensions of size 1 than the gradient that SE
    blocks get. The memory is the same; DDP compares the strides, and would warn.
    """
    for param in module.parameters():
        is_1x1 = param.requires_grad and param.dim() == 4 and param.shape[2:] == (1, 1)
        if is_1x1 and not param.stride()[2:] == (1, 1):
            param.register_hook(functools.partial(_with_strides, stride=param.stride()))


def _with_strides(grad: Any, stride: Tuple[int, ...]) -> Any:
    return grad.as_strided(grad.shape, stride) if grad.stride()[:2] == stride[:2] else grad


# --- memory of the CPU ------------------------------------------------------------------------------------------------

ALLOCATOR_VARIABLES = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES')


def why_not_keep_memory(environ: Mapping[str, str]) -> Optional[str]:
    """Why the allocator is left as it is; None if it can be set."""
    for name in ALLOCATOR_VARIABLES:
        if environ.get(name):
            return f'{name} is set'
    if any(lib in environ.get('LD_PRELOAD', '') for lib in ('jemalloc', 'tcmalloc', 'mimalloc')):
        return 'LD_PRELOAD names another allocator'
    return None if hasattr(ctypes.CDLL(None), 'mallopt') else 'the C library is not glibc'


def keep_freed_memory() -> bool:
    """Have glibc's malloc keep what is freed, so that a step's activations do not fault in their pages every step.

    By default glibc maps every block of more than 32 MiB anew, and gives the end of the heap back. Takes effect for
    allocations from here on; worker processes inherit it.
    """
    if why_not_keep_memory(os.environ) is not None:
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Give freed memory back to the system, before loader workers are forked.

    What is shared with a fork is copied page by page when it is next written: by activations and gradients, in what
    setting up the model has freed (140 ms of CPU in the first step of a ResNet-50).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):  # glibc
        libc.malloc_trim(0)


# --- a process, and what the plan says --------------------------------------------------------------------------------

def set_up(device: str, fast: bool = True, block_end: str = 'light') -> None:
    """Set up a process that trains or evaluates on a device.

    Args:
        device: Device of the run.
        fast: False for timm's set-up.
        block_end: How residual blocks end, as for `set_block_end`.
    """
    from seresnet_timm.models.lean_se import set_block_end
    set_block_end(block_end)
    if fast and kind_of(device) == 'cpu':
        keep_freed_memory()


def describe(
        verb: str,
        args,
        architecture: str,
        device: str,
        world_size: int,
        fast: bool,
        block_end: Tuple[str, str],
) -> str:
    """What is set up for speed, each with its reason, as a line of the plan.

    Args:
        verb: 'train' or 'validate'.
        args: Flags of the script.
        architecture: timm's name of the network, without a tag.
        device: Device of the run.
        world_size: Number of processes.
        fast: False for timm's set-up.
        block_end: How residual blocks end, as for `set_block_end`, and why.
    """
    channels_last = getattr(args, 'channels_last', False)
    layout = 'channels_last' if channels_last else 'contiguous'
    wanted, why = wants_channels_last(architecture, device)
    kinds = {'lean': 'memory-saving SE blocks', 'light': 'SE blocks in few kernels'}
    blocks = [f'{kinds[block_end[0]]} ({block_end[1]})'] if block_end[0] in kinds and (
        verb == 'train' and architecture.endswith('_ascend')
        and not getattr(args, 'torchcompile', None)) else []  # which compiles timm's layers
    if not fast:
        return ', '.join([f"timm's own, {layout} (--fast-step off)", *blocks])
    parts = [f'{layout} ({why if wanted == channels_last else "as asked for"})']
    if verb == 'train':
        if wants_fused(args.opt, args.opt_kwargs, device):
            parts.append(f"fused {args.opt} (torch's, one pass over the weights)")
        if world_size > 1 and ddp_arguments(device):
            parts.append('gradients as bucket views (no second copy)')
        parts += blocks
        if not getattr(args, 'torchcompile', None):
            parts.append('not compiled (--torchcompile does)')
    if kind_of(device) == 'cpu':
        reason = why_not_keep_memory(os.environ)
        parts.append('the allocator keeps freed memory (no page faults)' if reason is None else
                     f'allocator unchanged ({reason})')
    return ', '.join(parts)
