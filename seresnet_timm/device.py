"""Devices: which of cpu, cuda and npu to use and why; precision, synchronisation, memory, random state."""
import os
import platform
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple

import torch

from seresnet_timm import process
from seresnet_timm.ascend import runtime as ascend_runtime
from seresnet_timm.errors import UsageError, counted


def select_device(requested: str = 'auto', must_exist: bool = True) -> Tuple[str, str]:
    """Choose the device: npu if there is one, else cuda, else cpu, unless one is named.

    Args:
        requested: 'auto', or a device with or without an index, e.g. 'npu', 'cuda:1', 'cpu'.
        must_exist: Refuse a named device that this machine lacks; a dry run does not.

    Returns:
        Device string for torch, and the reason for the choice.

    Raises:
        UsageError: The named device is unknown or not available here.
    """
    kind, _, index = requested.partition(':')
    if kind == 'auto':
        no_npu = ascend_runtime.why_unavailable()
        if no_npu is None:
            return 'npu', f'found {device_name("npu")}'
        if torch.cuda.is_available():
            return 'cuda', f'found {device_name("cuda")}; no npu: {no_npu}'
        return 'cpu', f'no npu: {no_npu}; no cuda: {_why_no_cuda()}'
    if kind not in ('cpu', 'cuda', 'npu') or (index and not index.isdigit()):
        raise UsageError(f'--device {requested} is unknown: use auto, npu, cuda or cpu, or one with an index (npu:0).')
    missing = why_unavailable(kind)
    if missing and not must_exist:
        return requested, f'asked for with --device; not on this machine: {missing}'
    if missing:
        raise UsageError(f'--device {requested} cannot be used here: {missing}; name another device or leave it out.')
    if index and int(index) >= device_count(kind):
        raise UsageError(f'--device {requested} does not exist: this machine has '
                         f'{counted(device_count(kind), f"{kind} device")}.')
    return requested, 'asked for with --device'


def why_unavailable(kind: str) -> Optional[str]:
    """What is missing for a kind of device, as a clause; None if it can be used."""
    if kind == 'npu':
        return ascend_runtime.why_unavailable()
    return _why_no_cuda() if kind == 'cuda' else None


def _why_no_cuda() -> Optional[str]:
    if torch.cuda.is_available():
        return None
    return 'torch sees no GPU' if torch.version.cuda else 'this torch is built without CUDA'


def device_module(kind: str) -> Optional[Any]:
    """`torch.cuda` or `torch.npu`; None for the CPU."""
    return None if kind == 'cpu' else getattr(torch, kind)


def device_count(kind: str) -> int:
    return 1 if kind == 'cpu' else device_module(kind).device_count()


def device_name(kind: str) -> str:
    return platform.processor() or platform.machine() if kind == 'cpu' else device_module(kind).get_device_name(0)


def limit_threads() -> None:
    """Let torch compute on the CPU with no more threads than cores that a container allows; OMP_NUM_THREADS wins."""
    if 'OMP_NUM_THREADS' not in os.environ and process.cores() < torch.get_num_threads():
        torch.set_num_threads(process.cores())


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    module = device_module(device.type)
    if module is not None:
        module.synchronize()


def empty_cache(device: torch.device) -> None:
    module = device_module(device.type)
    if module is not None:
        module.empty_cache()


def autocast(device: torch.device, amp: bool, amp_dtype: str) -> Callable[[], Any]:
    """Factory of the context in which the model runs: autocast in `amp_dtype` with amp, else nothing."""
    if not amp:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, amp_dtype))


def peak_memory(device: torch.device) -> Optional[Dict[str, float]]:
    """Memory of the device in GiB: the peak of what tensors used so far, and the total; None on the CPU."""
    module = device_module(device.type)
    if module is None:
        return None
    total = module.get_device_properties(device).total_memory
    peak = module.max_memory_allocated(device)
    if _holds_graphs(module):  # what a graph keeps for its replays is reserved, and counts as free of tensors
        peak = max(peak, module.memory_reserved(device))
    return {'peak_gib': round(peak / 2**30, 3), 'total_gib': round(total / 2**30, 3)}


def _holds_graphs(module: Any) -> bool:
    """Whether captured graphs have memory of their own."""
    snapshot = getattr(module, 'memory_snapshot', None)
    return snapshot is not None and any(any(segment.get('segment_pool_id', ())) for segment in snapshot())


def reset_peak_memory(device: torch.device) -> None:
    """The peak of the memory begins anew."""
    module = device_module(device.type)
    if module is not None:
        module.reset_peak_memory_stats(device)


def total_memory(device: str) -> Optional[int]:
    """Memory of a device in bytes, of the machine for the CPU; None for a device that is not here."""
    kind, _, index = device.partition(':')
    if why_unavailable(kind) is not None:
        return None
    module = device_module(kind)
    if module is None:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return module.get_device_properties(int(index or 0)).total_memory


def rng_state(device: torch.device) -> Optional[torch.Tensor]:
    """State of the device's random generator; None on the CPU, whose generator is torch's own."""
    module = device_module(device.type)
    return None if module is None else module.get_rng_state()


def seed(device: torch.device, number: int) -> None:
    """Seed the generator of a device only; torch.manual_seed seeds those of all devices."""
    module = device_module(device.type)
    (torch.default_generator if module is None else module).manual_seed(number)


def set_rng_state(device: torch.device, state: Optional[torch.Tensor]) -> None:
    module = device_module(device.type)
    if module is not None and state is not None:
        module.set_rng_state(state)
