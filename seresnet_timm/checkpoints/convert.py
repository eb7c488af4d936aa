"""Convert checkpoints of the ModelZoo, torchvision style, timm and safetensors: bit for bit, unless a dtype is asked"""
import re
from typing import Any, Dict, Optional

import torch
from safetensors.torch import save_file

from seresnet_timm.checkpoints import checkpoint as checkpoints_checkpoint
from seresnet_timm.checkpoints import checkpoint as inspection_checkpoint
from seresnet_timm.checkpoints import fit as checkpoints_fit
from seresnet_timm.checkpoints import inspect as inspection
from seresnet_timm.checkpoints import read as checkpoints
from seresnet_timm.checkpoints import recognise as inspection_recognise
from seresnet_timm.errors import UsageError, did_you_mean
from seresnet_timm.files import atomic_path
from seresnet_timm.models.seresnet import checkpoint_filter_fn

FORMATS = ('timm', 'modelzoo', 'safetensors')
DTYPES = ('float32', 'float16', 'bfloat16')


def convert(
        source: str,
        target: str,
        to: Optional[str] = None,
        use_ema: bool = False,
        dtype: Optional[str] = None,
        model: Optional[str] = None,
) -> Dict[str, Any]:
    """Convert a checkpoint's weights; optimizer and random state stay behind.

    Args:
        source: Any file that `checkpoints.read_checkpoint` reads.
        target: File to write; an existing one is replaced once the new one is whole.
        to: 'timm', 'modelzoo' or 'safetensors'; None tells it from the target's name.
        use_ema: Take the moving average of the weights.
        dtype: Precision of the floating point weights; None keeps them bit for bit.
        model: timm's name of the network, where the weights do not tell it.

    Returns:
        Facts about the written file, as `inspection.inspect` gives them.

    Raises:
        UsageError: The source cannot be read or cannot be what is asked for.
    """
    if to is None:
        to = 'safetensors' if target.endswith('.safetensors') else 'timm'
    if to not in FORMATS:
        raise UsageError(f"Unknown format --to '{to}': {did_you_mean(to, FORMATS)}")
    if (to == 'safetensors') != target.endswith('.safetensors'):
        raise UsageError(f'{target} has the wrong ending for --to {to}: safetensors end in .safetensors, others do '
                         'not.')
    if dtype not in (None, *DTYPES):
        raise UsageError(f"Unknown --dtype '{dtype}': {did_you_mean(dtype, DTYPES)}")
    checkpoint = checkpoints.read_checkpoint(source)
    if use_ema and not checkpoints_checkpoint.has_ema(checkpoint):
        raise UsageError(f'{source} holds no moving average of the weights: leave out --ema.')
    weights = checkpoints_checkpoint.state_dict_of(checkpoint, use_ema)
    if not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise UsageError(f'{source} holds no state_dict of tensors alone: there is nothing to convert.')
    arch = model or inspection_recognise.architecture(checkpoint)
    weights = checkpoint_filter_fn(weights, None)  # timm's names
    if model is not None:
        _check_fits(source, weights, model)
    if to == 'modelzoo' and not re.fullmatch(r'seresnet\d+_ascend', arch or ''):
        raise UsageError(f'{source} is {arch or "of an unknown architecture"}: the ModelZoo has only SE-ResNets '
                         'without bias in their SE layers.')
    if dtype is not None:
        weights = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in weights.items()}

    epochs, metric = inspection_checkpoint.epochs(checkpoint), inspection_checkpoint.metric(checkpoint)
    with atomic_path(target) as tmp:
        if to == 'safetensors':
            metadata = {
                'architecture': arch, 'num_classes': inspection_recognise.num_classes(weights, arch), 'epochs': epochs,
                'metric': metric}
            write_safetensors(weights, tmp, {k: str(v) for k, v in metadata.items() if v is not None})
        elif to == 'modelzoo':
            torch.save(as_modelzoo(weights, epochs, metric), tmp)
        else:
            torch.save(as_timm(weights, arch, epochs, metric), tmp)
    return inspection.inspect(target)


def _check_fits(source: str, weights: Dict[str, torch.Tensor], model: str) -> None:
    misfit = checkpoints_fit.describe_misfit(weights, inspection_recognise.network_for(weights, model))
    if misfit:
        raise UsageError(f'Checkpoint {source} does not fit {model}: {misfit}.')


def write_safetensors(weights: Dict[str, torch.Tensor], path: str, metadata: Dict[str, str]) -> None:
    """Write weights as safetensors, with their SHA-256 in the metadata.

    Args:
        weights: State dict.
        path: File to write; see `files.atomic_path`.
        metadata: Further entries.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    sha256 = {checkpoints_checkpoint.SHA256_KEY: checkpoints_checkpoint.weights_sha256(weights)}
    save_file(weights, path, metadata={'format': 'pt', **metadata, **sha256})


def as_timm(
        weights: Dict[str, torch.Tensor],
        arch: Optional[str],
        epochs: Optional[int],
        metric: Optional[float],
) -> Dict[str, Any]:
    """A checkpoint as timm's scripts load it."""
    epoch = None if epochs is None else epochs - 1  # the last one
    checkpoint = {'version': 2, 'state_dict': weights}
    checkpoint.update((k, v) for k, v in (('arch', arch), ('epoch', epoch), ('metric', metric)) if v is not None)
    checkpoint[checkpoints_checkpoint.SHA256_KEY] = {'state_dict': checkpoints_checkpoint.weights_sha256(weights)}
    return checkpoint


def as_modelzoo(
        weights: Dict[str, torch.Tensor],
        epochs: Optional[int],
        metric: Optional[float],
) -> Dict[str, Any]:
    """A checkpoint as the ModelZoo's main.py resumes from and evaluates it.

    Its network is wrapped in DDP and names its SE layers as linear ones; it wants an optimizer's and apex's state: here
    those of a run that is about to begin.
    """
    names = {}
    for k, v in weights.items():
        k, is_se = re.subn(r'\.se\.fc([12])\.', lambda m: f'.se.fc.{0 if m[1] == "1" else 2}.', k)
        names['module.' + k] = v.flatten(1) if is_se else v
    trained = [k for k in weights if not k.endswith(('running_mean', 'running_var', 'num_batches_tracked'))]
    group = dict(lr=0.6, momentum=0.9, dampening=0, weight_decay=1e-4, nesterov=False, params=list(range(len(trained))))
    return {
        'epoch': epochs or 0,
        'arch': 'se_resnet50',
        'state_dict': names,
        'best_acc1': torch.tensor([float(metric or 0.)]),
        'optimizer': {'state': {}, 'param_groups': [group]},
        'amp': {'loss_scaler0': {'loss_scale': 1024., 'unskipped': 0}},
    }
