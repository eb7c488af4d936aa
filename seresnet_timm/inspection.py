"""What a checkpoint file is: architecture, classes, epoch, metric, precision, whether it is whole"""
import hashlib
import os
import re
from collections import Counter
from typing import Any, Dict, List, Optional, Union

import timm
import torch
import torch.nn as nn
from timm.models import clean_state_dict

from seresnet_timm import checkpoints
from seresnet_timm.errors import UsageError, suggest
from seresnet_timm.models import checkpoint_filter_fn

# (has bottlenecks, blocks of each stage) -> layers in the name
DEPTHS = {
    (False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50, (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def recognise(weights: Dict[str, Any]) -> Optional[str]:
    """timm's name of the (SE-)ResNet that weights are of, told from their names and shapes alone.

    Args:
        weights: State dict with timm's, torchvision's or the ModelZoo's names.

    Returns:
        `seresnet50_ascend` (SE without bias), `seresnet50` (with), `resnet50`, or another depth; None for any other
        network.
    """
    weights = checkpoint_filter_fn(dict(weights), None)
    stages = []
    for stage in range(1, 5):
        blocks = {m[1] for k in weights if (m := re.match(rf'layer{stage}\.(\d+)\.', k))}
        stages.append(len(blocks))
    depth = DEPTHS.get(('layer1.0.conv3.weight' in weights, tuple(stages)))
    head = weights.get('fc.weight')
    if depth is None or getattr(head, 'ndim', None) != 2 or 'conv1.weight' not in weights:
        return None
    if 'layer1.0.se.fc1.weight' not in weights:
        name = f'resnet{depth}'
    else:
        name = f'seresnet{depth}' if 'layer1.0.se.fc1.bias' in weights else f'seresnet{depth}_ascend'
    if not timm.is_model(name):
        return None
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=head.shape[0], in_chans=weights['conv1.weight'].shape[1])
    return name if checkpoints.describe_misfit(weights, model) is None else None


def architecture(checkpoint: Dict[str, Any]) -> Optional[str]:
    """timm's name of a checkpoint's network: told by its weights, else what it says itself if timm knows that.

    All of the ModelZoo's call themselves `resnext101_32x8d`: their word does not count.
    """
    recognised = recognise(checkpoints.state_dict_of(checkpoint))
    arch = checkpoint.get('arch')
    if recognised is None and isinstance(arch, str) and timm.is_model(arch.split('.')[0]):
        return None if 'best_acc1' in checkpoint else arch
    return recognised


def num_classes(weights: Dict[str, Any], arch: Optional[str] = None) -> Optional[int]:
    """Number of classes: rows of the classifier."""
    name = 'fc'
    if arch is not None and timm.is_model(arch.split('.')[0]):
        config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
        name = config.classifier if config is not None and isinstance(config.classifier, str) else name
    head = clean_state_dict(weights).get(f'{name}.weight')
    return int(head.shape[0]) if isinstance(head, torch.Tensor) and head.ndim >= 2 else None


def source(checkpoint: Dict[str, Any], kind: str) -> str:
    """Who wrote a checkpoint, as far as it tells."""
    if 'best_acc1' in checkpoint:
        return 'ModelZoo checkpoint'
    if 'run_state' in checkpoint:
        return 'checkpoint of seresnet-timm'
    if 'version' in checkpoint or 'saver' in checkpoint:
        return 'timm checkpoint'
    return 'weights' if kind == 'safetensors' or checkpoints.state_dict_of(checkpoint) is checkpoint else 'checkpoint'


def inspect(path: str) -> Dict[str, Any]:
    """Facts about a checkpoint file; what it does not tell is None.

    Raises:
        UsageError: It cannot be read.
    """
    checkpoint = checkpoints.read_checkpoint(path)
    kind = checkpoints.file_format(path)
    weights = checkpoints.state_dict_of(checkpoint)
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
        'moving_average': checkpoints.has_ema(checkpoint),
        'optimizer': 'optimizer' in checkpoint,
        'loss_scale': loss_scale(checkpoint),
        'not_finite': sum(int((~t.float().isfinite()).sum()) for t in tensors.values() if t.is_floating_point()),
        'integrity': _integrity(checkpoint, kind),
        'bytes': os.path.getsize(path),
        'sha256': file_sha256(path),
    }


def _integrity(checkpoint: Dict[str, Any], kind: str) -> str:
    if isinstance(checkpoint.get(checkpoints.SHA256_KEY), dict):
        return 'SHA-256 of the weights verified'
    if checkpoints.holds_checksum(checkpoint, kind):
        return 'CRC-32 of every part verified'
    return 'the file holds no checksum: compare its SHA-256'


def epochs(checkpoint: Dict[str, Any]) -> Optional[int]:
    """Epochs that a checkpoint has been trained for. timm counts the last one from 0, others how many there were."""
    if isinstance(checkpoint.get('epochs'), int):
        return checkpoint['epochs']
    epoch, version = checkpoint.get('epoch'), checkpoint.get('version', 1)
    return epoch + (version == 2) if isinstance(epoch, int) else None


def metric(checkpoint: Dict[str, Any]) -> Optional[float]:
    """Metric that a checkpoint was saved with, top1 (percent) as a rule."""
    return _number(checkpoint.get('metric', checkpoint.get('best_acc1')))


def loss_scale(checkpoint: Dict[str, Any]) -> Optional[float]:
    """Loss scale of fp16 training that a checkpoint was saved with, by timm's names and by apex's."""
    scaler = checkpoint.get('amp_scaler', checkpoint.get('amp'))
    if not isinstance(scaler, dict):
        return None
    scaler = scaler.get('loss_scaler0', scaler)
    return _number(scaler.get('scale', scaler.get('loss_scale'))) if isinstance(scaler, dict) else None


def check_known(model_name: str) -> None:
    """Refuse a name that timm does not know."""
    if not timm.is_model(model_name.split('.')[0]):
        hint = suggest(model_name, timm.list_models(), 'timm.list_models() names them all.')
        raise UsageError(f"Unknown model '{model_name}': {hint}")


def network_for(weights: Dict[str, Any], model_name: str) -> nn.Module:
    """A network of timm's with as many classes as weights have, of shapes only: it takes no memory.

    Raises:
        UsageError: timm does not know the name.
    """
    check_known(model_name)
    classes = num_classes(weights, model_name)
    with torch.device('meta'):
        return timm.create_model(model_name, **({} if classes is None else dict(num_classes=classes)))


def _number(value: Any) -> Union[int, float, None]:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, (int, float)) else None


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
    model = network_for(checkpoints.state_dict_of(checkpoint), model_name)
    found = checkpoints.misfits(checkpoints.weights_of(checkpoint, model), model)
    return [f'{what}: {key}' for what, keys in found.items() for key in keys]
