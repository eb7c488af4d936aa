"""The names that a checkpoint's pickle may use, and those that a refused one uses

`torch.load(weights_only=True)` builds tensors and plain values and refuses everything else. Real checkpoints hold a
little more: timm's the arguments of the run, the ModelZoo's a learning rate that NumPy computed, and tensors in the
format of old torch_npu. NumPy's and torch_npu's names get stand-ins here, so that their code never runs on the
content of a file.
"""
import argparse
import io
import pickletools
import re
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from typing import Any, BinaryIO, Iterator, List, Optional, Tuple, Union

import torch

# dictionaries of other packages, read as dictionaries; none of their code is used
DICTIONARIES = (
    'easydict.EasyDict', 'addict.addict.Dict', 'addict.Dict', 'munch.Munch', 'bunch.Bunch', 'yacs.config.CfgNode',
    'fvcore.common.config.CfgNode', 'detectron2.config.config.CfgNode', 'mmcv.utils.config.ConfigDict',
    'mmengine.config.config.ConfigDict', 'pytorch_lightning.utilities.parsing.AttributeDict',
    'lightning_fabric.utilities.data.AttributeDict', 'lightning.fabric.utilities.data.AttributeDict',
    'lightning.pytorch.utilities.parsing.AttributeDict')
PATHS = ('PosixPath', 'PurePosixPath', 'WindowsPath', 'PureWindowsPath', 'Path', 'PurePath')
NUM_LEGACY_PICKLES = 5  # magic number, version, machine, the object, its storages: torch's format before 1.6


class _NumpyDtype:
    """Stand-in for `numpy.dtype`: of numbers only."""

    def __init__(self, name: str, *_flags):
        if not re.fullmatch('[iufb][1248]', name):
            raise ValueError(f'a NumPy scalar of type {name}')
        self.name, self.byte_order = name, '<'

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = '>' if state[1] == '>' else '<'


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> Union[int, float, bool]:
    """Stand-in for `numpy.core.multiarray.scalar`: the number as Python's own."""
    kind, size = tuple(dtype.name)
    codes = {'b': {'1': '?'}, 'f': {'2': 'e', '4': 'f', '8': 'd'}, 'i': {'1': 'b', '2': 'h', '4': 'i', '8': 'q'},
             'u': {'1': 'B', '2': 'H', '4': 'I', '8': 'Q'}}
    return struct.unpack(dtype.byte_order + codes[kind][size], data)[0]


def _path(*parts) -> str:
    """Stand-in for the classes of `pathlib`: the path as text."""
    return '/'.join(map(str, parts))


def _npu_tensor(storage, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: Any, _npu_format: Any):
    """Stand-in for old torch_npu's `_rebuild_npu_tensor`: data that was copied to the host before it was saved."""
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)


def allowed() -> List[Any]:
    """What is allowed beyond torch's own list, for `torch.serialization.safe_globals`."""
    result = [
        argparse.Namespace,  # timm saves its arguments as one
        (_NumpyDtype, 'numpy.dtype'),
        (_numpy_scalar, 'numpy.core.multiarray.scalar'),
        (_numpy_scalar, 'numpy._core.multiarray.scalar'),  # since NumPy 2
        (_npu_tensor, 'torch_npu.utils.storage._rebuild_npu_tensor'),
        (_npu_tensor, 'torch._utils._rebuild_npu_tensor'),  # Ascend's torch 1.5
    ]
    result += [(OrderedDict, name) for name in DICTIONARIES]
    result += [(_path, f'{module}.{name}') for module in ('pathlib', 'pathlib._local') for name in PATHS]
    for name in ('Float', 'Half', 'BFloat16', 'Double', 'Long', 'Int', 'Short', 'Char', 'Byte', 'Bool'):
        # storages are typed by the device they were on
        result += [(torch.serialization.StorageType(f'{name}Storage'), f'torch.{device}.{name}Storage')
                   for device in ('npu', 'cuda')]
    return result


def foreign_names(path: str) -> List[str]:
    """Names in a checkpoint's pickle that are neither tensors nor plain values; no code in the file is run.

    Those before the first damage, where the pickle is damaged.
    """
    from torch._weights_only_unpickler import _get_allowed_globals
    known = set(_get_allowed_globals())
    known |= {g[1] if isinstance(g, tuple) else f'{g.__module__}.{g.__name__}' for g in allowed()}
    names = []
    try:
        for module, name in _named(path):
            full = f'{IMPORT_MAPPING.get(module, module)}.{name}'  # pickles have Python 2's names of modules
            if full not in known and full not in names:
                names.append(full)
    except Exception:  # a damaged pickle fails in any way
        pass
    return names


def protocol(path: str) -> Optional[int]:
    """The highest pickle protocol in a file; None if it cannot be told."""
    found: List[int] = []
    try:
        for f in _pickles(path):
            found += [argument or 0 for opcode, argument, _ in pickletools.genops(f) if opcode.name == 'PROTO']
    except Exception:  # a damaged pickle fails in any way
        pass
    return max(found, default=None)


def with_text_strings(path: str) -> Optional[io.BytesIO]:
    """A file from before torch 1.6 with text in place of the byte strings that Python 2 pickled; None if it has none.

    Bytes that are not UTF-8 are taken for Latin-1, in which every byte is a character.
    """
    with open(path, 'rb') as f:
        data = f.read()
    source, result, has_bytes = io.BytesIO(data), io.BytesIO(), False
    try:
        for _ in range(NUM_LEGACY_PICKLES):
            ops = list(pickletools.genops(source))
            ends = [position for _, _, position in ops[1:]] + [source.tell()]
            for (opcode, argument, start), end in zip(ops, ends):
                if opcode.name not in ('SHORT_BINSTRING', 'BINSTRING'):
                    result.write(data[start:end])
                    continue
                has_bytes = True
                text = _text(str(argument).encode('latin-1')).encode()
                result.write(b'X' + struct.pack('<I', len(text)) + text)
    except Exception:  # a damaged pickle fails in any way
        return None
    if not has_bytes:
        return None
    result.write(data[source.tell():])
    result.seek(0)
    return result


def _text(data: bytes) -> str:
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data.decode('latin-1')


def _named(path: str) -> Iterator[Tuple[str, str]]:
    for f in _pickles(path):
        yield from _named_in(f)


def _pickles(path: str) -> Iterator[BinaryIO]:
    """The pickles of a file, each to be read to its end before the next."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            for record in z.namelist():
                if record == 'data.pkl' or record.endswith('/data.pkl'):
                    yield io.BytesIO(z.read(record))
        return
    with open(path, 'rb') as f:
        for _ in range(NUM_LEGACY_PICKLES):
            yield f


def _named_in(f: BinaryIO) -> Iterator[Tuple[str, str]]:
    """(module, name) of everything that one pickle names."""
    strings: List[str] = []
    for opcode, argument, _ in pickletools.genops(f):
        if opcode.name in ('GLOBAL', 'INST'):
            module, _, name = str(argument).partition(' ')
            yield module, name
        elif opcode.name == 'STACK_GLOBAL' and len(strings) >= 2:
            yield strings[-2], strings[-1]
        elif isinstance(argument, str):
            strings.append(argument)
