"""What a run saves: checkpoints that are never half written, with the random state that a resumed run needs"""
import os
import random
from typing import Any, Dict, List, Optional

import numpy as np
import torch
import torch.distributed as dist
from timm.utils import CheckpointSaver

from seresnet_timm import device as devices
from seresnet_timm.checkpoints import SHA256_KEY, weights_sha256
from seresnet_timm.files import fsync


def capture_rng(device: torch.device) -> Optional[List[Dict[str, Any]]]:
    """State of every random generator of every rank, on rank 0 (None elsewhere). All ranks must call it."""
    version, keys, position, has_gauss, cached = np.random.get_state()
    device_state = devices.rng_state(device)
    state = {
        'torch': torch.get_rng_state().numpy(),
        'device': None if device_state is None else device_state.numpy(),
        'python': random.getstate(),
        'numpy': (version, keys.astype(np.int64), position, has_gauss, cached),
    }
    if not dist.is_initialized():
        return [_with_tensors(state)]
    gathered = [None] * dist.get_world_size()
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


class AtomicCheckpointSaver(CheckpointSaver):
    """timm's CheckpointSaver whose files are never half written, and whose checkpoints hold `run_state` and a SHA-256.

    timm's unlinks the old file before it renames the new one and does not flush to disk: a crash in between loses
    both. Set `run_state` before every save.
    """

    def __init__(self, *args, task, **kwargs):
        super().__init__(*args, task=task, **kwargs)
        self.run_state: Dict[str, Any] = {}
        self.task = _WithRunState(task, self)

    def _save(self, save_path: str, epoch: int, metric: Optional[float] = None) -> None:
        super()._save(save_path, epoch, metric)
        fsync(save_path)

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)
        fsync(os.path.dirname(dst) or '.')

    def _duplicate(self, src: str, dst: str) -> None:
        tmp = dst + '.tmp'
        if os.path.exists(tmp):
            os.unlink(tmp)
        super()._duplicate(src, tmp)
        fsync(tmp)
        self._replace(tmp, dst)


class _WithRunState:
    """The task as the saver sees it: its entries with contiguous weights, the run state, the SHA-256 of the weights."""

    def __init__(self, task, saver: AtomicCheckpointSaver):
        self._task, self._saver = task, saver
        self._sha256: Dict[str, str] = {}

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn=None) -> Dict[str, Any]:
        state = self._task.get_checkpoint_state(ema=ema, unwrap_fn=unwrap_fn)
        if not ema:
            state['run_state'] = self._saver.run_state
            self._sha256 = {}
        key = 'state_dict_ema' if ema else 'state_dict'
        if key in state:
            state[key] = {k: v.contiguous() for k, v in state[key].items()}  # whatever memory format the run has
            self._sha256 = dict(self._sha256, **{key: weights_sha256(state[key])})
            state[SHA256_KEY] = self._sha256
        return state
