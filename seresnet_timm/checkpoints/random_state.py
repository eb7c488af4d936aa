"""Random generators of every rank: capture and restore."""
import random
from typing import Any, Dict, List, Optional

import numpy as np
import torch
import torch.distributed as dist

from seresnet_timm import device as devices


def capture_rng(device: torch.device) -> Optional[List[Dict[str, Any]]]:
    """State of every random generator of every rank, on rank 0 (None elsewhere). All ranks must call it."""
    numpy_state: Any = np.random.get_state()
    version, keys, position, has_gauss, cached = numpy_state
    device_state = devices.rng_state(device)
    state = {
        'torch': torch.get_rng_state().numpy(),
        'device': None if device_state is None else device_state.numpy(),
        'python': random.getstate(),
        'numpy': (version, keys.astype(np.int64), position, has_gauss, cached),
    }
    if not dist.is_initialized():
        return [_with_tensors(state)]
    gathered: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, state)  # HCCL has no gather
    return [_with_tensors(s) for s in gathered] if dist.get_rank() == 0 else None


def _with_tensors(state: Dict[str, Any]) -> Dict[str, Any]:
    """Arrays, which travel between ranks as bytes, as tensors, which a checkpoint may hold."""
    def convert(value):
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
    return {k: tuple(map(convert, v)) if k == 'numpy' else convert(v) for k, v in state.items()}


def restore_rng(states: List[Dict[str, Any]], rank: int, device: torch.device) -> None:
    """Set this rank's random generators as `capture_rng` found them."""
    state = states[rank]
    torch.set_rng_state(state['torch'])
    devices.set_rng_state(device, state['device'])
    random.setstate(state['python'])
    version, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
