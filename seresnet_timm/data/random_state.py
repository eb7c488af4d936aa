"""Random generators of every rank: capture and restore."""
import random
from typing import Any, Dict

import numpy as np
import torch

from seresnet_timm import device as devices


def own_state(device: torch.device) -> Dict[str, Any]:
    """State of every random generator of this process, of types that a checkpoint may hold."""
    numpy_state: Any = np.random.get_state()
    version, keys, position, has_gauss, cached = numpy_state
    return {
        'torch': torch.get_rng_state(),
        'device': devices.rng_state(device),
        'python': random.getstate(),
        'numpy': (version, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
    }


def set_own_state(state: Dict[str, Any], device: torch.device) -> None:
    """Set this process's random generators as `own_state` found them."""
    torch.set_rng_state(state['torch'])
    devices.set_rng_state(device, state['device'])
    random.setstate(state['python'])
    version, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))


# --- the generators of a loader's worker, which has no device: as bytes, to be sent with every batch ------------------

_TORCH_BYTES = 5056
_PACKED = np.dtype([
    ('torch', np.uint8, _TORCH_BYTES), ('python', np.uint32, 625), ('python_gauss', np.float64),
    ('python_has_gauss', np.uint8), ('numpy', np.uint32, 624), ('position', np.int32), ('has_gauss', np.uint8),
    ('gauss', np.float64)])


def pack_cpu_state() -> bytes:
    """State of the generators of the CPU."""
    packed = np.zeros((), _PACKED)
    packed['torch'] = torch.get_rng_state().numpy()
    _, packed['python'], gauss = random.getstate()
    packed['python_has_gauss'], packed['python_gauss'] = gauss is not None, gauss or 0.
    _, packed['numpy'], packed['position'], packed['has_gauss'], packed['gauss'] = np.random.get_state()
    return packed.tobytes()


def set_packed_cpu_state(data: bytes) -> None:
    packed = np.frombuffer(data, _PACKED)[0]
    torch.set_rng_state(torch.from_numpy(packed['torch'].copy()))
    random.setstate((3, tuple(packed['python'].tolist()), float(packed['python_gauss']) if packed[
        'python_has_gauss'] else None))
    np.random.set_state(
        ('MT19937', packed['numpy'], int(packed['position']), int(packed['has_gauss']), float(packed['gauss'])))
