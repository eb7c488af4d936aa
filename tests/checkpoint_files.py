"""Small checkpoints in every format that people have, as their writers write them."""
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Dict

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.task import ClassificationTask

from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.models.info import ModelInfo

TINY = dict(num_classes=3, channels=(8, 8, 8, 16), stem_width=8)  # of 60 kB


def tiny_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model('seresnet18_ascend', **TINY)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_()
    return model


def linear_se_names(weights: Dict[str, torch.Tensor], prefix: str = '') -> 'OrderedDict[str, torch.Tensor]':
    """Names and shapes of the ModelZoo's and moskomule's network, whose SE layers are linear."""
    renamed = OrderedDict()
    for k, v in weights.items():
        name = k.replace('.se.fc1.', '.se.fc.0.').replace('.se.fc2.', '.se.fc.2.')
        renamed[prefix + name] = v.flatten(1).clone() if name != k else v.clone()
    return renamed


class OldNpuTensor:
    """Pickles as a tensor of old torch_npu does: by torch_npu's function, data on the host, its format number last."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        t = self.tensor
        return _rebuild_npu_tensor, (t.storage(), 0, tuple(t.shape), t.stride(), False, OrderedDict(), 2)


def _rebuild_npu_tensor():
    raise AssertionError('only its name is used')


_rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = 'torch_npu.utils.storage', '_rebuild_npu_tensor'


def as_modelzoo_saves(model: torch.nn.Module, wrap=lambda v: v) -> dict:
    """The dictionary of the ModelZoo's main.py after 100 epochs with apex's O2, by its own names and types.

    The network is wrapped in DDP and called resnext101_32x8d, as all of its networks are; NumPy computed the learning
    rate; the accuracy is a tensor.
    """
    weights = linear_se_names(model.state_dict(), 'module.')
    parameters = list(model.parameters())
    group = dict(lr=0.6 * (0.5 * (1 + np.cos(np.pi * 94 / 95))), momentum=0.9, dampening=0, weight_decay=1e-4,
                 nesterov=False, params=list(range(len(parameters))))
    assert isinstance(group['lr'], np.float64)
    momenta = {i: {'momentum_buffer': wrap(torch.full_like(p.detach(), 0.5))} for i, p in enumerate(parameters)}
    return {
        'epoch': 100, 'arch': 'resnext101_32x8d', 'state_dict': OrderedDict((k, wrap(v)) for k, v in weights.items()),
        'best_acc1': torch.tensor([77.5]), 'optimizer': {'state': momenta, 'param_groups': [group]},
        'amp': OrderedDict(loss_scaler0={'loss_scale': 1024., 'unskipped': 7}),
    }


def save_modelzoo(model: torch.nn.Module, path: Path, old_npu: bool = False) -> None:
    """Write what the ModelZoo's main.py writes: torch 1.8's format, or with `old_npu` that of torch 1.5 on an NPU."""
    if not old_npu:
        torch.save(as_modelzoo_saves(model), path)
        return
    import sys
    import types
    module = sys.modules['torch_npu.utils.storage'] = types.ModuleType('torch_npu.utils.storage')
    parents = [sys.modules.setdefault(n, types.ModuleType(n)) for n in ('torch_npu', 'torch_npu.utils')]
    try:  # pickle looks the function up
        module._rebuild_npu_tensor = _rebuild_npu_tensor
        torch.save(as_modelzoo_saves(model, OldNpuTensor), path, _use_new_zipfile_serialization=False)
    finally:
        for name in ('torch_npu.utils.storage', 'torch_npu.utils', 'torch_npu'):
            del sys.modules[name]
    assert parents and b'torch_npu.utils.storage' in path.read_bytes()


def save_run(model: torch.nn.Module, folder: Path) -> Path:
    """The checkpoint of a training of ours, moving average and all."""
    task = ClassificationTask(model, verbose=False)
    task.setup_ema(decay=0.5)
    for p in task.get_trainable_module(ema=True).parameters():
        p.data += 1
    saver = AtomicCheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=np.float64(0.1), momentum=0.9), task=task,
        args=Namespace(model='seresnet18_ascend', num_classes=3), checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.run_state = {'epoch': 5, 'world_size': 1}
    saver.model_info = ModelInfo.of_model(model, class_names=['a', 'b', 'c']).to_dict()
    saver.save_checkpoint(4, metric=61.5)
    return folder / 'last.pth.tar'


def save_timm(model: torch.nn.Module, path: Path) -> None:
    """As timm's own saver writes it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = timm.utils.CheckpointSaver(
        model, optimizer, args=Namespace(model='seresnet18_ascend'), checkpoint_dir=str(path.parent))
    theirs._save(str(path), 4, 61.5)


def save_foreign_safetensors(model: torch.nn.Module, path: Path) -> None:
    save_file({k: v.clone() for k, v in model.state_dict().items()}, path)


def save_moskomule(model: torch.nn.Module, path: Path) -> None:
    """A bare state dict in torch's format from before 1.6."""
    torch.save(linear_se_names(model.state_dict()), path, _use_new_zipfile_serialization=False)
