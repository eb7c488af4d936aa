"""What a checkpoint file is: architecture, classes, epoch, metric, precision, whether it is whole"""
import hashlib
import os
from collections import Counter
from typing import Any, Dict, List

import torch

from seresnet_timm.checkpoints import checkpoint as checkpoints_checkpoint
from seresnet_timm.checkpoints import fit as checkpoints_fit
from seresnet_timm.checkpoints import read as checkpoints
from seresnet_timm.checkpoints.checkpoint import epochs, loss_scale, metric, source
from seresnet_timm.checkpoints.recognise import architecture, network_for, num_classes
from seresnet_timm.errors import UsageError


def inspect(path: str) -> Dict[str, Any]:
    """Facts about a checkpoint file; what it does not tell is None.

    Raises:
        UsageError: It cannot be read.
    """
    checkpoint = checkpoints.read_checkpoint(path)
    kind = checkpoints.file_format(path)
    weights = checkpoints_checkpoint.state_dict_of(checkpoint)
    tensors = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise UsageError(f'{path} holds no weights: it has {", ".join(map(str, list(checkpoint)[:5])) or "nothing"}.')
    arch = architecture(checkpoint)
    says = checkpoint.get('arch')
    dtypes = Counter()
    for t in tensors.values():
        dtypes[str(t.dtype)[len('torch.'):]] += t.numel()
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    return {
        'file': path,
        'format': {'zip': 'torch.save', 'legacy': 'torch.save from before torch 1.6'}.get(kind, kind),
        'written_by': source(checkpoint, kind),
        'architecture': arch,
        'says_it_is': says if isinstance(says, str) and says != arch else None,
        'num_classes': num_classes(weights, arch),
        'parameters': sum(t.numel() for k, t in tensors.items() if not k.endswith(statistics)),
        'dtype': dict(dtypes.most_common()),
        'epochs': epochs(checkpoint),
        'metric': metric(checkpoint),
        'moving_average': checkpoints_checkpoint.has_ema(checkpoint),
        'optimizer': 'optimizer' in checkpoint,
        'loss_scale': loss_scale(checkpoint),
        'not_finite': sum(int((~t.float().isfinite()).sum()) for t in tensors.values() if t.is_floating_point()),
        'integrity': _integrity(checkpoint, kind),
        'bytes': os.path.getsize(path),
        'sha256': file_sha256(path),
    }


def _integrity(checkpoint: Dict[str, Any], kind: str) -> str:
    if isinstance(checkpoint.get(checkpoints_checkpoint.SHA256_KEY), dict):
        return 'SHA-256 of the weights verified'
    if checkpoints_checkpoint.holds_checksum(checkpoint, kind):
        return 'CRC-32 of every part verified'
    return 'the file holds no checksum: compare its SHA-256'


def file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe(facts: Dict[str, Any]) -> List[str]:
    """Facts of `inspect` as lines."""
    def yes(value):
        return 'yes' if value else 'no'
    arch = facts['architecture'] or 'unknown'
    if facts['says_it_is']:
        arch += f' (told by its weights; it calls itself {facts["says_it_is"]})' if facts['architecture'] else (
            f' (it calls itself {facts["says_it_is"]})')
    return [f'{label:<15} {text}' for label, text in [
        ('file', f'{facts["file"]}: {facts["written_by"]}, {facts["format"]}'),
        ('architecture', arch),
        ('classes', facts['num_classes'] if facts['num_classes'] is not None else 'unknown'),
        ('parameters', f'{facts["parameters"]:,}'),
        ('precision', ', '.join(f'{d} ({n:,})' for d, n in facts['dtype'].items())
         + (f'; {facts["not_finite"]:,} values are not finite' if facts['not_finite'] else '')),
        ('epochs', 'unknown' if facts['epochs'] is None else facts['epochs']),
        ('metric', 'unknown' if facts['metric'] is None else f'{facts["metric"]:.3f}'),
        ('moving average', yes(facts['moving_average'])),
        ('optimizer', yes(facts['optimizer'])
         + ('' if facts['loss_scale'] is None else f'; loss scale {facts["loss_scale"]:g}')),
        ('integrity', facts['integrity']),
        ('size', f'{facts["bytes"]:,} bytes'),
        ('SHA-256', facts['sha256']),
        *(('does not fit', line) for line in facts.get('misfits', [])),
    ]]


def misfits(path: str, model_name: str) -> List[str]:
    """Every weight in a file that does not fit a model, a line each.

    Raises:
        UsageError: The file cannot be read, or timm does not know the model.
    """
    checkpoint = checkpoints.read_checkpoint(path)
    model = network_for(checkpoints_checkpoint.state_dict_of(checkpoint), model_name)
    found = checkpoints_fit.misfits(checkpoints_fit.weights_of(checkpoint, model), model)
    return [f'{what}: {key}' for what, keys in found.items() for key in keys]
