"""Checkpoints: read any SE-ResNet checkpoint safely, load it or say why not, and save a run's atomically."""
import argparse
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from timm.utils import CheckpointSaver

from seresnet_timm import device as devices
from seresnet_timm.errors import UsageError
from seresnet_timm.files import fsync
from seresnet_timm.models import SEResNet, checkpoint_filter_fn


def read_checkpoint(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a checkpoint file without running code from it; tensors stay mapped from the file until used.

    Args:
        path: `.safetensors`, or anything that `torch.save` wrote.

    Returns:
        The file's dictionary: a state dict, or one that holds it under `state_dict` or `model`.

    Raises:
        UsageError: The file is missing, incomplete, not a checkpoint, or needs more than tensors and plain values.
    """
    path = str(path)
    if os.path.isdir(path):
        raise UsageError(f'Checkpoint {path} is a folder: name a file in it, e.g. model_best.pth.tar.')
    if not os.path.isfile(path):
        raise UsageError(f'Checkpoint {path} does not exist.')
    if os.path.getsize(path) == 0:
        raise UsageError(f'Checkpoint {path} is empty.')
    try:
        if path.endswith('.safetensors'):
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm saves its arguments as one
            mapped = _is_zip(path)  # files older than torch 1.6 are no zip archives and cannot be mapped
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        needs = re.search(r'(?i)unsupported global:? (?:GLOBAL )?(\S+)', str(e))  # torch's words for it
        if needs:
            raise UsageError(f'Checkpoint {path} is refused: to load it would run code from the file ({needs[1]}).')
        raise UsageError(f'{path} is not a checkpoint, or a damaged one.')
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, SafetensorError) as e:
        raise UsageError(f'Checkpoint {path} is incomplete or damaged ({_first_line(e)}): copy or download it again.')
    if not isinstance(checkpoint, dict):
        raise UsageError(f'{path} holds a {type(checkpoint).__name__}, not the weights of a model.')
    return checkpoint


def _is_zip(path: str) -> bool:
    with open(path, 'rb') as f:
        return f.read(2) == b'PK'


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip('.') if lines else type(error).__name__


def weights_of(checkpoint: Dict[str, Any], model: nn.Module, use_ema: bool = False) -> Dict[str, torch.Tensor]:
    """The weights in a checkpoint, under the model's own names.

    Args:
        checkpoint: As from `read_checkpoint`.
        model: Model to name them for; SE-ResNets accept the names of ModelZoo and torchvision.
        use_ema: Take the moving average if there is one.
    """
    for key in ('state_dict_ema', 'model_ema'):
        if use_ema and checkpoint.get(key) is not None:
            checkpoint = {'state_dict': checkpoint[key]}
    if isinstance(model, SEResNet):
        return checkpoint_filter_fn(checkpoint, model)
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    return clean_state_dict(checkpoint)


def describe_misfit(weights: Dict[str, torch.Tensor], model: nn.Module, arch: Optional[str] = None) -> Optional[str]:
    """Why weights do not fit a model, as a clause; None if they fit."""
    own = model.state_dict()
    missing = [k for k in own if k not in weights]
    unexpected = [k for k in weights if k not in own]
    shapes = [k for k in own if k in weights and own[k].shape != getattr(weights[k], 'shape', None)]
    if not (missing or unexpected or shapes):
        return None

    classifier = 'fc.weight' if 'fc.weight' in own else None
    if not missing and not unexpected and classifier and set(shapes) <= {'fc.weight', 'fc.bias'}:
        return f'it has {weights[classifier].shape[0]} classes (--num-classes {weights[classifier].shape[0]})'
    parts = [f'it was saved from {arch} (--model {arch})'] if arch else []
    parts += [
        f'{len(keys)} {what}, e.g. {keys[0]}'
        for what, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes)) if keys
    ]
    return '; '.join(parts)


def saved_arch(checkpoint: Dict[str, Any], model_name: str) -> Optional[str]:
    """Architecture that a checkpoint names, where it is another than `model_name`."""
    arch = checkpoint.get('arch')
    return arch if isinstance(arch, str) and arch.split('.')[0] != model_name.split('.')[0] else None


def load_weights(model: nn.Module, path: Union[str, Path], model_name: str, use_ema: bool = False) -> Dict[str, Any]:
    """Load a checkpoint's weights into a model, all or nothing.

    Returns:
        The checkpoint dictionary.

    Raises:
        UsageError: The file cannot be read, or does not fit the model.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, model, use_ema)
    misfit = describe_misfit(weights, model, saved_arch(checkpoint, model_name))
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit {model_name}: {misfit}.')
    model.load_state_dict(weights)
    return checkpoint


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
    """timm's CheckpointSaver whose files are never half written, and whose checkpoints hold `run_state`.

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
    """The task as the saver sees it: its checkpoint entries with contiguous weights, plus the run state."""

    def __init__(self, task, saver: AtomicCheckpointSaver):
        self._task, self._saver = task, saver

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn=None) -> Dict[str, Any]:
        state = self._task.get_checkpoint_state(ema=ema, unwrap_fn=unwrap_fn)
        for key in {'state_dict', 'state_dict_ema'} & set(state):
            state[key] = {k: v.contiguous() for k, v in state[key].items()}  # whatever memory format the run has
        if not ema:
            state['run_state'] = self._saver.run_state
        return state
