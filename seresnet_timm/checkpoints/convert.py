"""Convert checkpoints of the ModelZoo, torchvision style, timm and safetensors: bit for bit, unless a dtype is asked"""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from safetensors.torch import save_file

from seresnet_timm.checkpoints import inspect as inspection
from seresnet_timm.checkpoints.checkpoint import INFO_KEY, SHA256_KEY, Checkpoint, weights_sha256
from seresnet_timm.checkpoints.fit import describe_misfit, named_for, with_channels
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.recognise import classifier_rows
from seresnet_timm.checkpoints.save_errors import torch_errors_as_oserror
from seresnet_timm.checkpoints.target import check_target
from seresnet_timm.errors import UsageError, first_names, note_replaced, printable
from seresnet_timm.files import atomic_path
from seresnet_timm.models.create import check_model_name, create_from_info, is_known, not_finite, why_not_plain
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.models.seresnet import checkpoint_filter_fn

MAX_NAMED = 4  # names of weights that one sentence lists


def convert(
        source: Union[str, Path, Checkpoint],
        target: str,
        to: Optional[str] = None,
        use_ema: bool = False,
        dtype: Optional[str] = None,
        model: Optional[str] = None,
        network: Optional[str] = None,
) -> Dict[str, Any]:
    """Convert a checkpoint's weights; optimizer and random state stay behind.

    Args:
        source: Any file that `checkpoints.read_checkpoint` reads, or what it read.
        target: File to write; an existing one is replaced once the new one is complete.
        to: 'timm', 'modelzoo' or 'safetensors'; None takes it from the target's name.
        use_ema: Take the moving average of the weights.
        dtype: Precision of the floating point weights; None keeps them bit for bit.
        model: timm's name of the network, if the weights do not tell it.
        network: Key or prefix of the network to take, where the file holds several.

    Returns:
        Facts about the written file, as `inspect.inspect` gives them.

    Raises:
        UsageError: The source cannot be read or cannot be converted so.
    """
    to = check_target(target, to, dtype)
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    source = checkpoint.path
    if network is not None:
        checkpoint = checkpoint.only(network)
    if use_ema and not checkpoint.has_ema:
        raise UsageError(f'{source} holds no moving average of the weights: leave out --use-ema.')
    for note in checkpoint.notes_of_choice(use_ema):
        print(note, file=sys.stderr)
    arch = model or checkpoint.arch
    info, weights = network_and_weights(checkpoint, use_ema, model)
    if to == 'modelzoo' and not re.fullmatch(r'seresnet\d+_ascend', arch or ''):
        raise UsageError(f'{source} is {arch or "of an unknown architecture"}: the ModelZoo has only SE-ResNets '
                         'without bias in their SE layers.')
    kinds = {k: why_not_plain(v) for k, v in weights.items()}
    odd = [f'{k} ({kind})' for k, kind in kinds.items() if kind not in (None, 'complex')]
    if odd:
        raise UsageError(f'{source} cannot be converted, some of its weights are no plain numbers: '
                         f'{printable(first_names(odd, MAX_NAMED))}. Save them with to_dense() or dequantize().')
    if dtype is not None:
        weights = _in_precision(weights, dtype, source)

    note_replaced(target)
    with atomic_path(target) as tmp, torch_errors_as_oserror(tmp):
        if to == 'safetensors':
            metadata = {
                'architecture': arch, 'num_classes': info.num_classes, 'epochs': checkpoint.epochs,
                'metric': checkpoint.metric, 'metric_name': checkpoint.metric_name,
                INFO_KEY: json.dumps(info.to_dict(), sort_keys=True)}
            write_safetensors(weights, tmp, {k: str(v) for k, v in metadata.items() if v is not None})
        else:
            content = (as_modelzoo(weights, checkpoint.epochs, checkpoint.metric) if to == 'modelzoo' else
                       as_timm(weights, arch, checkpoint.epochs, checkpoint.metric, info, checkpoint.metric_name))
            with open(tmp, 'wb') as f:  # torch would write a path's name into the archive, here a random one
                torch.save(content, f)
    return inspection.inspect(target)


def _in_precision(weights: Dict[str, torch.Tensor], dtype: str, source: str) -> Dict[str, torch.Tensor]:
    found = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in weights.items()}
    too_large = sorted(set(not_finite(found)).difference(not_finite(weights)))
    if too_large:
        raise UsageError(f'{source} has values that are too large for {dtype}, in '
                         f'{printable(first_names(too_large, MAX_NAMED))}: take --dtype bfloat16.')
    return found


def network_and_weights(
        checkpoint: Checkpoint,
        use_ema: bool,
        model: Optional[str],
) -> Tuple[ModelInfo, Dict[str, torch.Tensor]]:
    """Model info of the written file, and the weights under timm's names.

    Raises:
        UsageError: The file holds no weights, or those of several networks, or they do not fit the model that was
            named; or a setting of the source is not one that is taken from a file.
    """
    info = checkpoint.info
    if model is not None:
        check_model_name(model)
        info = replace(info, name=model)
    if info.name is not None and is_known(info.name):
        rows = classifier_rows(checkpoint.network.weights, info.name)
        info = with_channels(checkpoint, _with_rows(info, rows))
        try:
            shapes = create_from_info(info, checkpoint.path, meta=True)
        except UsageError:
            if model is not None:
                raise
            shapes = None  # the weights can be converted all the same, under the names that they have
        named = None if shapes is None else named_for(checkpoint, shapes, use_ema)
        misfit = describe_misfit(named.weights, shapes) if named and shapes is not None else None
        if misfit and model is not None:
            raise UsageError(f'Checkpoint {checkpoint.path} does not fit {info.name}: {misfit}.')
        if named and not misfit:
            return info, named.weights
    weights = Checkpoint(checkpoint.path, checkpoint.format, checkpoint.weights_or_ema(use_ema)).network.weights
    if not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise UsageError(f'{checkpoint.path} holds no state_dict of tensors alone: there is nothing to convert.')
    weights = checkpoint_filter_fn(weights, None)
    return _with_rows(info, classifier_rows(weights, info.name)), weights


def _with_rows(info: ModelInfo, rows: Optional[int]) -> ModelInfo:
    """Model info with as many classes as the classifier has."""
    return info if rows in (None, info.num_classes) else replace(info, num_classes=rows, class_names=None)


def write_safetensors(weights: Dict[str, torch.Tensor], path: str, metadata: Dict[str, str]) -> None:
    """Write weights as safetensors, with their SHA-256 in the metadata.

    Args:
        weights: State dict.
        path: File to write; see `files.atomic_path`.
        metadata: Further entries.
    """
    weights = separate(weights)
    sha256 = {SHA256_KEY: weights_sha256(weights)}
    save_file(weights, path, metadata={'format': 'pt', **metadata, **sha256})
    _sort_metadata(path)


def separate(weights: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Weights as safetensors take them: on the CPU, contiguous, and no two of them in one memory."""
    separated, storages = {}, set()
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        separated[name] = value.clone() if place in storages else value
        storages.add(place)
    return separated


def _sort_metadata(path: str) -> None:
    """Bring the metadata of safetensors, whose order is random, into an order: equal weights make equal files."""
    with open(path, 'r+b') as f:
        size = int.from_bytes(f.read(8), 'little')
        header = json.loads(f.read(size))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        if len(text) <= size:
            f.seek(8)
            f.write(text.ljust(size))


def as_timm(
        weights: Dict[str, torch.Tensor],
        arch: Optional[str],
        epochs: Optional[int],
        metric: Optional[float],
        info: ModelInfo,
        metric_name: Optional[str] = None,
) -> Dict[str, Any]:
    """A checkpoint as timm's scripts load it."""
    last = None if epochs is None else epochs - 1
    facts = dict(arch=arch, epoch=last, metric=metric, metric_name=metric_name)
    checkpoint: Dict[str, Any] = {'version': 2, 'state_dict': weights}
    checkpoint.update((k, v) for k, v in facts.items() if v is not None)
    checkpoint[INFO_KEY] = info.to_dict()
    checkpoint[SHA256_KEY] = {'state_dict': weights_sha256(weights)}
    return checkpoint


def as_modelzoo(
        weights: Dict[str, torch.Tensor],
        epochs: Optional[int],
        metric: Optional[float],
) -> Dict[str, Any]:
    """A checkpoint as the ModelZoo's main.py resumes from and evaluates it.

    Its network is wrapped in DDP and has linear SE layers. It needs the state of an optimizer and of apex: here
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
