"""Read any SE-ResNet checkpoint safely, say whether it is whole, and load it or say why it does not fit"""
import hashlib
import logging
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
import torch.nn as nn
from safetensors import safe_open
from timm.models import clean_state_dict

from seresnet_timm import safe_pickle
from seresnet_timm.errors import UsageError, few, first_line
from seresnet_timm.models import SEResNet, checkpoint_filter_fn

_logger = logging.getLogger(__name__)

SHA256_KEY = 'weights_sha256'  # in our checkpoints: SHA-256 of the weights, by the name under which they lie
WEIGHTS_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')
MAX_NAMED = 4  # names of weights that one sentence lists


def read_checkpoint(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a checkpoint file without running code from it, and check that it is whole.

    Formats: timm's, the ModelZoo's and torchvision-style files of `torch.save` (also from before torch 1.6), and
    safetensors. What is checked: the checksum of every part (CRC-32) where torch wrote a zip archive, the SHA-256 of
    the weights where this package wrote the file. Older files and foreign safetensors hold no checksum; what is damaged
    beyond their weights' values is found.

    Args:
        path: The file.

    Returns:
        The file's dictionary: a state dict, or one that holds it under `state_dict` or `model`. Tensors may stay
        mapped from the file until they are used.

    Raises:
        UsageError: The file is missing, incomplete, damaged, not a checkpoint, or needs more than tensors and plain
            values.
    """
    path = str(path)
    if os.path.isdir(path):
        raise UsageError(f'Checkpoint {path} is a folder: name a file in it, e.g. model_best.pth.tar.')
    if not os.path.isfile(path):
        raise UsageError(f'Checkpoint {path} does not exist.')
    if os.path.getsize(path) == 0:
        raise UsageError(f'Checkpoint {path} is empty.')
    kind = file_format(path)
    try:
        if kind == 'safetensors':
            checkpoint = _read_safetensors(path)
        else:
            if kind == 'zip':
                _check_zip(path)
            with torch.serialization.safe_globals(safe_pickle.allowed()), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch's words on formats that are for it to support
                # files from before torch 1.6 are no zip archives and cannot be mapped
                checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=kind == 'zip')
    except UsageError:
        raise
    except Exception as e:  # what is damaged fails in any way
        foreign = safe_pickle.foreign_names(path) if isinstance(e, pickle.UnpicklingError) else []
        if foreign:
            raise UsageError(
                f'Checkpoint {path} is refused, and nothing of it was run: beside weights it holds '
                f'{few(foreign, MAX_NAMED)}, which only running code from the file would load. Save the state_dict of '
                'the model instead.') from e
        if isinstance(e, pickle.UnpicklingError):  # whose text advises to run the file
            raise UsageError(f'{path} is not a checkpoint, or a damaged one.') from e
        raise _damaged(path, f'{type(e).__name__}: {first_line(e)[:200]}') from e
    if not isinstance(checkpoint, dict):
        raise UsageError(f'{path} holds a {type(checkpoint).__name__}, not the weights of a model.')
    _check_weights(path, checkpoint, kind)
    return checkpoint


def file_format(path: str) -> str:
    """Format of a checkpoint file: 'safetensors', 'zip' (torch.save since 1.6), or 'legacy' (before)."""
    with open(path, 'rb') as f:
        head = f.read(9)
    if path.endswith('.safetensors') or (head[8:] == b'{' and head[5:8] == bytes(3)):
        return 'safetensors'
    return 'zip' if head[:2] == b'PK' else 'legacy'


def _read_safetensors(path: str) -> Dict[str, Any]:
    with safe_open(path, framework='pt') as f:
        weights = {k: f.get_tensor(k) for k in f.keys()}
        metadata = f.metadata() or {}
    checkpoint = {'state_dict': weights}
    if 'architecture' in metadata:
        checkpoint['arch'] = metadata['architecture']
    if SHA256_KEY in metadata:
        checkpoint[SHA256_KEY] = {'state_dict': metadata[SHA256_KEY]}
    for key, kind in (('epochs', int), ('metric', float)):
        if key in metadata:
            checkpoint[key] = kind(metadata[key])
    return checkpoint


def _check_zip(path: str) -> None:
    """Refuse an archive whose parts are compressed, which torch never does, or not what their checksums say."""
    with zipfile.ZipFile(path) as z:
        if any(i.compress_type != zipfile.ZIP_STORED for i in z.infolist()):
            raise UsageError(f'Checkpoint {path} is refused: it is a compressed archive, which torch does not write; '
                             'its size in memory is not known before it is there.')
        names = z.namelist()
        if len(set(names)) < len(names) or sum(i.file_size for i in z.infolist()) > os.path.getsize(path):
            raise _damaged(path, 'parts of the archive overlap')
        bad = z.testzip()
        if bad is not None:
            raise _damaged(path, f'checksum of {bad}')


def _check_weights(path: str, checkpoint: Dict[str, Any], kind: str) -> None:
    """Check the weights in a checkpoint: tensors under names, in memory of their own, with the SHA-256 they had."""
    known = checkpoint.get(SHA256_KEY)
    found = {k: checkpoint[k] for k in WEIGHTS_KEYS + EMA_KEYS if isinstance(checkpoint.get(k), dict)}
    for key, weights in (found or {'': checkpoint}).items():
        if not all(isinstance(k, str) for k in weights):
            raise UsageError(f'{path} does not name its weights: it is not the checkpoint of a model.')
        if isinstance(known, dict) and key in known and weights_sha256(weights) != known[key]:
            raise _damaged(path, f'SHA-256 of {key}')
        if kind == 'legacy':
            # a damaged name of a storage lets two weights share one
            tensors = [v for v in weights.values() if isinstance(v, torch.Tensor) and v.numel()]
            if len({t.untyped_storage().data_ptr() for t in tensors}) < len(tensors):
                raise _damaged(path, 'two of its weights lie in the same memory')


def _damaged(path: str, what: str) -> UsageError:
    return UsageError(f'Checkpoint {path} is incomplete or damaged ({what}): copy or download it again.')




def weights_sha256(weights: Dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def has_ema(checkpoint: Dict[str, Any]) -> bool:
    """True if a checkpoint holds the moving average of the weights."""
    return any(checkpoint.get(k) is not None for k in EMA_KEYS)


def state_dict_of(checkpoint: Dict[str, Any], use_ema: bool = False) -> Dict[str, Any]:
    """The weights in a checkpoint under the names that they have there; the moving average if asked for and there."""
    for key in (EMA_KEYS if use_ema else ()) + WEIGHTS_KEYS:
        if isinstance(checkpoint.get(key), dict):
            return checkpoint[key]
    return checkpoint


def weights_of(checkpoint: Dict[str, Any], model: nn.Module, use_ema: bool = False) -> Dict[str, torch.Tensor]:
    """The weights in a checkpoint, under the model's own names.

    Args:
        checkpoint: As from `read_checkpoint`.
        model: Model to name them for; SE-ResNets accept the names of ModelZoo and torchvision.
        use_ema: Take the moving average if there is one.
    """
    weights = state_dict_of(checkpoint, use_ema)
    return checkpoint_filter_fn(weights, model) if isinstance(model, SEResNet) else clean_state_dict(weights)


def misfits(weights: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, List[str]]:
    """Where weights do not fit a model, by key.

    Returns:
        Names that are `missing`, `unexpected`, and `of another shape` (with both shapes).
    """
    own = model.state_dict()
    shapes = {k: getattr(weights[k], 'shape', None) for k in own if k in weights}
    return {
        'missing': [k for k in own if k not in weights],
        'unexpected': [k for k in weights if k not in own],
        'of another shape': [
            f'{k} {"x".join(map(str, s)) if s is not None else "no tensor"} for {"x".join(map(str, own[k].shape))}'
            for k, s in shapes.items() if s != own[k].shape],
    }


def describe_misfit(weights: Dict[str, torch.Tensor], model: nn.Module, arch: Optional[str] = None) -> Optional[str]:
    """Why weights do not fit a model, as a clause; None if they fit."""
    found = misfits(weights, model)
    if not any(found.values()):
        return None
    head = classifier_keys(model)
    if not found['missing'] and not found['unexpected'] and head and all(
            k.split()[0] in head for k in found['of another shape']):
        classes = weights[head[0]].shape[0]
        return f'it has {classes} classes (--num-classes {classes})'
    parts = [f'it was saved from {arch} (--model {arch})'] if arch else []
    parts += [f'{len(keys)} {what}: {few(keys, MAX_NAMED)}' for what, keys in found.items() if keys]
    return '; '.join(parts)


def classifier_keys(model: nn.Module) -> List[str]:
    """Names of the classifier's weights."""
    name = getattr(model, 'pretrained_cfg', {}).get('classifier') or 'fc'
    return [k for k in model.state_dict() if isinstance(name, str) and k.startswith(name + '.')]


def saved_arch(checkpoint: Dict[str, Any], model_name: str) -> Optional[str]:
    """Architecture that a checkpoint names, where it is another than `model_name`.

    None for the ModelZoo's, which all call themselves `resnext101_32x8d`.
    """
    arch = checkpoint.get('arch')
    if not isinstance(arch, str) or 'best_acc1' in checkpoint:
        return None
    return arch if arch.split('.')[0] != model_name.split('.')[0] else None


def load_weights(
        model: nn.Module,
        path: Union[str, Path],
        model_name: str,
        use_ema: bool = False,
        adapt_head: bool = False,
        checkpoint: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Load a checkpoint's weights into a model, all or nothing.

    Args:
        model: The model.
        path: File of the checkpoint.
        model_name: timm's name of the model, for messages.
        use_ema: Take the moving average if there is one.
        adapt_head: Keep the model's own classifier where the checkpoint's has another number of classes.
        checkpoint: The file as `read_checkpoint` gave it, where it was read before: reading checks all of it.

    Returns:
        The checkpoint dictionary.

    Raises:
        UsageError: The file cannot be read, or does not fit the model.
    """
    if checkpoint is None:
        checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, model, use_ema)
    if adapt_head:
        own = model.state_dict()
        for key in classifier_keys(model):
            if key in weights and weights[key].shape != own[key].shape:
                _logger.info(f'{key} of {path} has {weights[key].shape[0]} classes: the model keeps its own.')
                weights = dict(weights, **{key: own[key]})
    misfit = describe_misfit(weights, model, saved_arch(checkpoint, model_name))
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit {model_name}: {misfit}.')
    model.load_state_dict(weights)
    if not holds_checksum(checkpoint, file_format(str(path))):
        _logger.info(f'{path} holds no checksum: that its values are whole is not known.')
    return checkpoint


def holds_checksum(checkpoint: Dict[str, Any], kind: str) -> bool:
    """True if `read_checkpoint` could check every value of a file, of the format that `file_format` tells."""
    return kind == 'zip' or isinstance(checkpoint.get(SHA256_KEY), dict)
