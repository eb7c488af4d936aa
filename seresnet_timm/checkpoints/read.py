"""Reads any SE-ResNet checkpoint safely, and checks that it is complete"""
import argparse
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors
from timm.utils import natural_key

from seresnet_timm.checkpoints import safe_pickle
from seresnet_timm.checkpoints.checkpoint import (
    INFO_KEY,
    SHA256_KEY,
    Checkpoint,
    weights_sha256,
)
from seresnet_timm.checkpoints.file_kind import other_kind
from seresnet_timm.checkpoints.layout import EMA_KEYS, TIMM_KEYS, WEIGHTS_KEYS, find_weights
from seresnet_timm.errors import UsageError, first_line, first_names, printable
from seresnet_timm.files import from_json, is_utf8

MAX_NAMED = 4  # names that one sentence lists
SMALL = 1 << 28  # bytes of tensors that any file may hold
MAX_VALUES = 10 ** 7  # plain values, a tensor is one: a hundred times an optimizer and the names of 20,000 classes


def read_checkpoint(path: Union[str, Path]) -> Checkpoint:
    """Read a checkpoint file without running code from it, and check that it is complete.

    Formats: timm's, the ModelZoo's and torchvision-style files of `torch.save` (also from before torch 1.6), and
    safetensors. What is checked: the checksum of every part (CRC-32) where torch wrote a zip archive, the SHA-256 of
    the weights where this package wrote the file. Older files and foreign safetensors hold no checksum: there damage is
    found only outside of the weights' values.

    Args:
        path: The file.

    Returns:
        The checkpoint. Tensors may stay mapped from the file until they are used.

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
    try:
        other = other_kind(path)
        kind = file_format(path)
    except OSError as e:
        raise UsageError(f'Checkpoint {path} cannot be read: {e.strerror or first_line(e)}.') from e
    if other is not None:
        raise UsageError(f'Checkpoint {path} is {other}.')
    try:
        if kind == 'safetensors':
            checkpoint = _read_safetensors(path)
        else:
            checkpoint, kind = _unpickle(path, kind)
    except UsageError:
        raise
    except Exception as e:  # a damaged file can raise anything
        raise _explain(path, e) from e
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        article = 'an' if kind[0] in 'aeiou' else 'a'
        raise UsageError(f'{path} holds {article} {kind}, not the weights of a model.')
    reason = why_endless(checkpoint, os.path.getsize(path))
    if reason:
        raise UsageError(f'Checkpoint {path} is refused: {reason}. Save the state_dict of the model instead.')
    _check_weights(path, checkpoint, kind)
    return Checkpoint(path, kind, checkpoint)


def why_endless(content: Any, size: int) -> Optional[str]:
    """Why values from a file have no end, or nearly none, when they are written out; None if they have one.

    A file of some bytes can hold a list of lists that are all the same one, ten levels deep, and a tensor of 10 ** 12
    values that are all the same one.

    Args:
        content: Content of the file.
        size: Bytes of the file.
    """
    sizes: Dict[int, int] = {}
    num_bytes = 0

    def count(value: Any) -> int:
        nonlocal num_bytes
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
            num_bytes += value.numel() * value.element_size()
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if not isinstance(value, (dict, list, tuple, set)):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = 0
            sizes[id(value)] = 1 + sum(map(count, value.values() if isinstance(value, dict) else value))
        if not sizes[id(value)]:
            raise RecursionError
        return sizes[id(value)]
    try:
        found = count(content)
    except RecursionError:
        return 'its values are nested too deeply, or hold themselves'
    if found > MAX_VALUES:
        return f'it holds the same values again and again, {found:.0e} in all'
    if num_bytes > 4 * size + SMALL:  # weights may share memory
        return f'its tensors repeat the same values to {num_bytes / 1e9:,.1f} GB, the file has {size / 1e9:,.3f} GB'
    return None


def read_once(path: Union[str, Path], read: Mapping[str, Checkpoint]) -> Checkpoint:
    """As `read_checkpoint`; a file that this process has read and checked before is taken from `read`, by its path."""
    found = read.get(str(path))
    return read_checkpoint(path) if found is None else found


def checkpoints_in(folder: Union[str, Path]) -> List[str]:
    """Paths of the checkpoints in a folder, in natural order: what `--checkpoint FOLDER` evaluates.

    Raises:
        UsageError: There is none.
    """
    unfinished = ('tmp.pth.tar', 'recovery_tmp.pth.tar')  # of timm's saver, in a run that was killed
    paths = [path for path in Path(folder).iterdir() if path.name not in unfinished and path.is_file()
             and path.name.endswith(('.pth.tar', '.pth', '.safetensors'))]
    if not paths:
        raise UsageError(f'{printable(folder)} holds no checkpoint (.pth.tar, .pth or .safetensors).')
    return sorted(map(str, paths), key=natural_key)


def file_format(path: str) -> str:
    """Format of a checkpoint file: 'safetensors', 'zip' (torch.save since 1.6), or 'legacy' (before)."""
    with open(path, 'rb') as f:
        head = f.read(9)
    if head[8:] == b'{' and head[5:8] == bytes(3):
        return 'safetensors'
    if head[:2] == b'PK':
        return 'zip'
    return 'safetensors' if path.endswith('.safetensors') and head[:2] != b'\x80\x02' else 'legacy'


def _unpickle(path: str, kind: str) -> Tuple[Any, str]:
    """Content of a file of torch.save, and its format; 'python2' where strings had to be decoded."""
    if kind == 'zip':
        _check_zip(path)
    with torch.serialization.safe_globals(safe_pickle.allowed()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns of formats that it supports nevertheless
        try:
            if path.endswith('.safetensors') or not is_utf8(path):  # torch goes by the name, and takes only UTF-8
                with open(path, 'rb') as f:
                    return torch.load(f, map_location='cpu', weights_only=True), kind
            # files from before torch 1.6 are no zip archives and cannot be mapped
            return torch.load(path, map_location='cpu', weights_only=True, mmap=kind == 'zip'), kind
        except (UnicodeDecodeError, pickle.UnpicklingError):
            decoded = safe_pickle.with_text_strings(path) if kind == 'legacy' else None
            if decoded is None:
                raise
            return torch.load(decoded, map_location='cpu', weights_only=True), 'python2'


def _explain(path: str, error: Exception) -> UsageError:
    """Why a file could not be read."""
    if isinstance(error, pickle.UnpicklingError):  # whose text advises to run the file
        foreign = safe_pickle.foreign_names(path)
        if foreign:
            return UsageError(
                f'Checkpoint {path} is refused, and no code in it was run: beside weights it holds '
                f'{printable(first_names(foreign, MAX_NAMED))}, which only running code from the file would load. '
                'Save the state_dict of the model instead.')
        protocol = safe_pickle.protocol(path)
        if protocol is not None and protocol > 2 and 'operand' in str(error):
            return UsageError(f'Checkpoint {path} was pickled with protocol {protocol}, which torch reads only by '
                              'running code from the file. Save its state_dict again without pickle_protocol.')
        return UsageError(f'{path} is not a checkpoint, or it is damaged.')
    if isinstance(error, OSError) and error.errno is not None:
        return UsageError(f'Checkpoint {path} cannot be read: {error.strerror or first_line(error)}.')
    if isinstance(error, MemoryError):
        return UsageError(f'Checkpoint {path} does not fit into the memory of this machine.')
    if isinstance(error, ValueError) and 'NumPy scalar' in str(error):
        return UsageError(f'Checkpoint {path} is refused: beside weights it holds {first_line(error)}, which is not '
                          'read. Save the state_dict of the model instead.')
    return _damaged(path, f'{type(error).__name__}: {printable(first_line(error)[:200])}')


def _read_safetensors(path: str) -> Dict[str, Any]:
    if is_utf8(path):
        with safe_open(path, framework='pt') as f:
            weights = {k: f.get_tensor(k) for k in f.keys()}
            metadata = f.metadata() or {}
    else:  # which safe_open does not take
        data = Path(path).read_bytes()
        weights = load_safetensors(data)
        metadata = from_json(data[8:8 + int.from_bytes(data[:8], 'little')]).get('__metadata__') or {}
    checkpoint: Dict[str, Any] = {'state_dict': weights}
    if 'architecture' in metadata:
        checkpoint['arch'] = metadata['architecture']
    if SHA256_KEY in metadata:
        checkpoint[SHA256_KEY] = {'state_dict': metadata[SHA256_KEY]}
    if INFO_KEY in metadata:
        checkpoint[INFO_KEY] = from_json(metadata[INFO_KEY])
    for key, kind in (('epochs', int), ('metric', float), ('metric_name', str)):
        if key in metadata:
            checkpoint[key] = kind(metadata[key])
    return checkpoint


def _check_zip(path: str) -> None:
    """Refuse an archive whose parts are compressed, which torch never does, or do not match their checksums."""
    with zipfile.ZipFile(path) as z:
        if any(i.compress_type != zipfile.ZIP_STORED for i in z.infolist()):
            raise UsageError(f'Checkpoint {path} is refused: it is a compressed archive, which torch does not write; '
                             'its size in memory cannot be known before it is unpacked.')
        names = z.namelist()
        if len(set(names)) < len(names) or sum(i.file_size for i in z.infolist()) > os.path.getsize(path):
            raise _damaged(path, 'parts of the archive overlap')
        bad = z.testzip()
        if bad is not None:
            raise _damaged(path, f'checksum of {printable(bad)}')


def _check_weights(path: str, checkpoint: Dict[str, Any], kind: str) -> None:
    """Check the weights in a checkpoint: they have names, memory of their own, and the SHA-256 that was saved."""
    known = checkpoint.get(SHA256_KEY)
    found = {k: checkpoint[k] for k in TIMM_KEYS if isinstance(checkpoint.get(k), dict)}
    others = (find_weights(checkpoint, WEIGHTS_KEYS), find_weights(checkpoint, EMA_KEYS))
    found.update(pair for pair in others if pair)
    for key, weights in (found or {'': checkpoint}).items():
        if not all(isinstance(k, str) for k in weights):
            raise UsageError(f'{path} does not name its weights: it is not the checkpoint of a model.')
        if isinstance(known, dict) and key in known and weights_sha256(weights) != known[key]:
            raise _damaged(path, f'SHA-256 of {key}')
        if kind in ('legacy', 'python2'):
            # a damaged name of a storage lets two weights share one
            tensors = [v for v in weights.values() if isinstance(v, torch.Tensor) and v.numel()]
            if len({t.untyped_storage().data_ptr() for t in tensors}) < len(tensors):
                raise _damaged(path, 'two of its weights are in the same memory')


def _damaged(path: str, what: str) -> UsageError:
    return UsageError(f'Checkpoint {path} is incomplete or damaged ({what}): copy or download it again.')
