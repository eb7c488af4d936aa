"""The file of a trace: what every module of a network was given and gave, and the gradients of it.

A safetensors file that is written piece by piece, so that a trace need not fit into memory. A tensor that several
modules share is stored once. Its metadata has one key, `trace`: JSON with `schema`, `stored` (place -> name of the
tensor) and what the caller adds.
"""
import json
import os
import shutil
import struct
import tempfile
import weakref
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple, Union

import torch
from safetensors import SafetensorError, safe_open

from seresnet_timm.errors import RunError, UsageError, first_line, printable
from seresnet_timm.files import as_json, atomic_path, from_json, why_not_readable

SCHEMA = 1
DTYPES = {
    torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16', torch.int64: 'I64',
    torch.int32: 'I32', torch.int16: 'I16', torch.int8: 'I8', torch.uint8: 'U8', torch.bool: 'BOOL',
}
REOPEN_BYTES = 64 << 20  # what is read of a mapped file counts as memory of the process until the file is closed


class Place(NamedTuple):
    """Where in a pass through a network a tensor is.

    Attributes:
        module: Name of the module; '' for the network itself.
        call: Number of the call, as a module may be used several times.
        what: 'input', 'output', 'input gradient', 'output gradient', 'weight gradient' or 'buffer'.
        item: Which of several tensors; the name of a weight or buffer.
    """
    module: str
    call: int
    what: str
    item: str

    def __str__(self) -> str:
        return f'{self.what}:{self.item}:{self.call}:{self.module}'

    @classmethod
    def read(cls, text: str) -> 'Place':
        what, item, call, module = text.split(':', 3)
        return cls(module, int(call), what, item)

    def gradient(self) -> 'Place':
        return self._replace(what=f'{self.what} gradient')


class TraceWriter:
    """Collects a trace in a temporary file, and writes it."""

    def __init__(self):
        self.stored: Dict[str, str] = {}
        self._entries: Dict[str, Any] = {}
        self._seen: Dict[int, Tuple[Any, int, str]] = {}
        self._size = 0
        self._data = tempfile.TemporaryFile()

    def __enter__(self) -> 'TraceWriter':
        return self

    def __exit__(self, *_error: Any) -> None:
        self._data.close()

    def add(self, name: Any, tensor: torch.Tensor) -> None:
        """Store a tensor, or note that it is one that is stored."""
        name = str(name)
        self.stored[name] = self._known(tensor) or name
        if self.stored[name] == name:
            data = tensor.detach().cpu().contiguous()
            try:
                data.flatten().view(torch.uint8).numpy().tofile(self._data)
            except OSError as e:
                raise RunError(
                    f'{tempfile.gettempdir()} cannot hold the trace, which has {self._size / 2 ** 30:.1f} GiB so far '
                    f'({e.strerror or first_line(e)}): name another folder with TMPDIR, or take a smaller -b.')
            end = self._size + data.numel() * data.element_size()
            self._entries[name] = {
                'dtype': DTYPES[data.dtype], 'shape': list(data.shape), 'data_offsets': [self._size, end]}
            self._size = end
        self.note(name, tensor)

    def note(self, name: Any, tensor: torch.Tensor) -> None:
        """Say that a tensor object holds, now, what is stored under a name."""
        self._seen[id(tensor)] = weakref.ref(tensor), tensor._version, self.stored[str(name)]

    def _known(self, tensor: torch.Tensor) -> Union[str, None]:
        reference, version, name = self._seen.get(id(tensor), (lambda: None, 0, None))
        return name if reference() is tensor and version == tensor._version else None

    def write(self, path: Union[str, Path], **metadata: Any) -> None:
        """Write what was collected to a file; more can follow, for another file."""
        trace = as_json({'schema': SCHEMA, 'stored': self.stored, **metadata})
        header = json.dumps({'__metadata__': {'trace': trace}, **self._entries}).encode()
        header += b' ' * (-len(header) % 8)
        try:
            self._data.flush()
            self._data.seek(0)
            with atomic_path(path) as tmp, open(tmp, 'wb') as f:
                f.write(struct.pack('<Q', len(header)) + header)
                shutil.copyfileobj(self._data, f, 16 << 20)
        except OSError as e:
            raise RunError(f'{printable(path)} cannot be written ({e.strerror or first_line(e)}).')


class TraceReader:
    """Reads a trace.

    Attributes:
        metadata: What the writer added.
        places: All places, in the order in which they were reached.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path)
        self._file, self._read = None, 0
        reason = why_not_readable(path, is_file=True)
        if reason:
            raise UsageError(f'{printable(path)} cannot be read: {reason}.')
        damaged = f'{printable(path)} is not a file that `seresnet-timm compare --dump` wrote, or it is damaged'
        try:
            self.metadata: Dict[str, Any] = from_json((self._open().metadata() or {})['trace'])
            self._stored: Dict[str, str] = self.metadata['stored']
            self.places: List[Place] = [Place.read(k) for k in self._stored if k.count(':') >= 3]
            complete = set(self._stored.values()) <= set(self._open().keys())
        except FileNotFoundError:
            raise UsageError(f'{printable(path)} does not exist.')
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as e:
            raise UsageError(f'{damaged} ({printable(first_line(e))}).')
        if not complete:
            raise UsageError(f'{damaged}: tensors are missing.')
        if self.metadata.get('schema') != SCHEMA:
            raise UsageError(f'{printable(path)} was written by another version of seresnet_timm: dump it again.')

    def __contains__(self, name: Any) -> bool:
        return str(name) in self._stored

    def get(self, name: Any) -> torch.Tensor:
        tensor = self._open().get_tensor(self._stored[str(name)]).clone()
        self._read += tensor.numel() * tensor.element_size()
        if self._read > REOPEN_BYTES:
            self._file, self._read = None, 0
        return tensor

    def names(self, prefix: str) -> List[str]:
        return [k for k in self._stored if k.startswith(prefix)]

    def _open(self):
        if self._file is None:
            if not os.path.isfile(self.path):
                raise FileNotFoundError(self.path)
            self._file = safe_open(self.path, framework='pt')
        return self._file
