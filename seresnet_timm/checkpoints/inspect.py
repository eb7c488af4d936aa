"""What a checkpoint file is: architecture, classes, preprocessing, epoch, metric, precision, integrity"""
import hashlib
import os
from collections import Counter
from dataclasses import replace
from typing import Any, Dict, List, Tuple, Union

import torch

from seresnet_timm.checkpoints import fit
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.recognise import classifier_rows
from seresnet_timm.errors import UsageError, counted, first_names, printable
from seresnet_timm.models.create import check_model_name, count_not_finite, create_from_info, not_finite, why_not_plain

MAX_KEYS = 12  # of a file, in one line


def inspect(path: str) -> Dict[str, Any]:
    """Facts about a checkpoint file; None for what is not known.

    Raises:
        UsageError: It cannot be read.
    """
    return facts_of(read_checkpoint(path))


def facts_of(checkpoint: Checkpoint) -> Dict[str, Any]:
    """Facts about a checkpoint; None for what is not known.

    Raises:
        UsageError: It holds no weights.
    """
    tensors = {k: v for k, v in checkpoint.weights.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        keys = printable(first_names(map(str, checkpoint.content), 5)) or 'nothing'
        raise UsageError(f'{checkpoint.path} holds no weights: it has {keys}.')
    dtypes: Counter[str] = Counter()
    for t in tensors.values():
        dtypes[str(t.dtype)[len('torch.'):]] += t.numel()
    declared = checkpoint.declared_architecture
    declared = declared if declared != checkpoint.arch else None
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    return {
        'file': checkpoint.path,
        'format': {'zip': 'torch.save', 'legacy': 'torch.save from before torch 1.6',
                   'python2': 'torch.save of Python 2'}.get(
            checkpoint.format, checkpoint.format),
        'written_by': checkpoint.written_by,
        'architecture': checkpoint.arch,
        'declared_architecture': declared,
        'says_it_is': declared,  # the key's old name
        'num_classes': checkpoint.num_classes,
        **_settings(checkpoint),
        'parameters': sum(t.numel() for k, t in tensors.items() if not k.endswith(statistics)),
        'dtype': dict(dtypes.most_common()),
        'epochs': checkpoint.epochs,
        'metric': checkpoint.metric,
        'metric_name': checkpoint.metric_name,
        'moving_average': checkpoint.has_ema,
        'average_under': checkpoint.ema_key,
        'not_finite_in_average': not_finite(checkpoint.ema or {}),
        'optimizer': checkpoint.has_optimizer,
        'loss_scale': checkpoint.loss_scale,
        'weights_under': checkpoint.weights_key,
        'prefix': _prefix(checkpoint),
        'also_in_it': checkpoint.others,
        'not_finite_weights': not_finite(tensors),
        'not_finite': sum(count_not_finite(t) for t in tensors.values()),
        'negative_variances': [k for k, t in tensors.items() if k.endswith('running_var') and not why_not_plain(t)
                               and bool((t < 0).any())],
        'integrity': checkpoint.integrity,
        'bytes': os.path.getsize(checkpoint.path),
        'sha256': file_sha256(checkpoint.path),
    }


def _settings(checkpoint: Checkpoint) -> Dict[str, Any]:
    """Settings of network and preprocessing in the file; `refused` is the reason if they are not accepted."""
    try:
        info = checkpoint.info
    except UsageError as e:
        return {'refused': str(e)}
    names, outputs = info.class_names, checkpoint.num_classes
    if names is not None and outputs and len(names) != outputs:
        return {'refused': f'{checkpoint.path} names {len(names)} classes, its weights have {outputs}.'}
    return {'class_names': info.class_names, 'model_kwargs': info.kwargs, 'input_size': info.input_size,
            'mean': info.mean, 'std': info.std, 'interpolation': info.interpolation, 'crop_pct': info.crop_pct,
            'crop_mode': info.crop_mode, 'image_mode': info.image_mode, 'refused': None,
            'not_in_it': info.unknown_preprocessing() + (['class names'] if info.class_names is None else [])}


def _prefix(checkpoint: Checkpoint) -> str:
    """What comes before the network's own names of the weights; '' if nothing does."""
    first, own = next(iter(checkpoint.weights), ''), next(iter(checkpoint.network.weights), '')
    return first[:len(first) - len(own)] if first.endswith(own) else ''


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
    arch, declared = facts['architecture'] or 'unknown', facts['declared_architecture']
    if declared:
        arch += f' (recognised by its weights; the file calls it {declared})' if facts['architecture'] else (
            f' (the file calls it {declared})')
    return [f'{label:<15} {printable(text)}' for label, text in [
        ('file', f'{facts["file"]}: {facts["written_by"]}, {facts["format"]}'),
        ('architecture', arch),
        *_describe_settings(facts),
        ('parameters', f'{facts["parameters"]:,}'),
        ('precision', ', '.join(f'{d} ({n:,})' for d, n in facts['dtype'].items())
         + (f'; {facts["not_finite"]:,} values are not finite (NaN or infinity), in '
            + first_names(facts['not_finite_weights'], fit.MAX_NAMED) if facts['not_finite'] else '')
         + (f'; variances of BatchNorm are below zero in {first_names(facts["negative_variances"], fit.MAX_NAMED)}'
            if facts['negative_variances'] else '')),
        ('epochs', 'unknown' if facts['epochs'] is None else facts['epochs']),
        ('metric', 'unknown' if facts['metric'] is None else ' '.join(
            filter(None, (facts['metric_name'], f'{facts["metric"]:.3f}')))),
        ('moving average', yes(facts['moving_average'])
         + (f', under {facts["average_under"]}' if facts['average_under'] not in (None, 'state_dict_ema') else '')
         + (f'; values are not finite (NaN or infinity) in '
            f'{first_names(facts["not_finite_in_average"], fit.MAX_NAMED)}' if facts['not_finite_in_average'] else '')),
        ('optimizer', yes(facts['optimizer'])
         + ('' if facts['loss_scale'] is None else f'; loss scale {facts["loss_scale"]:g}')),
        *_describe_rest(facts),
        ('integrity', facts['integrity']),
        ('size', f'{facts["bytes"]:,} bytes'),
        ('SHA-256', facts['sha256']),
        *(('does not fit', line) for line in facts.get('misfits', [])),
    ]]


def _describe_rest(facts: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Lines of where the weights are, of what else is in the file, and of what is not."""
    lines = []
    where = [f'under {facts["weights_under"]}'] if facts['weights_under'] not in (None, 'state_dict') else []
    where += [f'their names begin with {facts["prefix"]}'] if facts['prefix'] else []
    if where:
        lines.append(('weights', ', '.join(where)))
    if facts['also_in_it']:
        lines.append(('also in it', first_names(facts['also_in_it'], MAX_KEYS)))
    if facts.get('not_in_it'):
        lines.append(('not in it', ', '.join(facts['not_in_it'])))
    return lines


def _describe_settings(facts: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Lines of the classes, of the arguments of the network and of the preprocessing."""
    classes = 'unknown' if facts['num_classes'] is None else str(facts['num_classes'])
    names = facts.get('class_names')
    if names:
        classes += f': {names[0]}' + (f' to {names[-1]}' if len(names) > 1 else '')
    lines = [('classes', classes)]
    if facts.get('model_kwargs'):
        lines.append(('model kwargs', ', '.join(f'{k}={v}' for k, v in facts['model_kwargs'].items())))
    size = facts.get('input_size')
    images = [f'{size[1]} x {size[2]}' + (f', {counted(size[0], "channel")}' if size[0] != 3 else '')] if size else []
    images += [f'{label} {facts[key]}' for key, label in (
        ('interpolation', 'interpolation'), ('crop_pct', 'crop'), ('crop_mode', 'crop mode'), ('image_mode', 'mode'))
        if facts.get(key) is not None]
    images += [f'{key} {", ".join(f"{v:.4g}" for v in facts[key])}' for key in ('mean', 'std') if facts.get(key)]
    if images:
        lines.append(('images', '; '.join(images)))
    if facts.get('refused'):
        lines.append(('refused', facts['refused']))
    return lines


def wrong_model(name: str) -> List[UsageError]:
    """What is wrong with the name of a model to compare with; nothing if timm knows it."""
    try:
        check_model_name(name)
    except UsageError as e:
        return [e]
    return []


def misfits(source: Union[str, Checkpoint], model_name: str) -> List[str]:
    """Every weight in a file that does not fit a model, a line each.

    Raises:
        UsageError: The file cannot be read, or timm does not know the model.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    check_model_name(model_name)
    classes = classifier_rows(checkpoint.network.weights, model_name)
    info = fit.with_channels(checkpoint, replace(checkpoint.info, name=model_name, num_classes=classes))
    model = create_from_info(info, checkpoint.path, meta=True)
    found = fit.misfits(fit.weights_for(checkpoint, model), model)
    return [f'{what}: {key}' for what, keys in found.items() for key in keys]
