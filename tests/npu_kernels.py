"""Operators of torch with a kernel for the NPU, by release of torch_npu; read by tests/read_torch_npu_wheels.py."""
import json
from pathlib import Path
from typing import Dict, Set

from seresnet_timm.ascend import wheels

GOLDEN = Path(__file__).resolve().parent / 'golden'


def kernels() -> Dict[str, Set[str]]:
    """Names, as 'add.Tensor', by version of the wheel."""
    data = json.loads((GOLDEN / 'npu_kernels.json').read_text())
    (newest, names), = data['newest'].items()
    return {newest: set(names), **{
        version: (set(names) - set(other['lacks'])) | set(other['has']) for version, other in data['others'].items()}}


def same_release(version: str) -> str:
    """The wheel that was read of an installed release, which may be another post release of it."""
    return next(v for v in kernels() if wheels.release(v) == wheels.release(version))


def reached() -> Dict[str, str]:
    """Operators that `doctor --operators` reached on the emulator, and one of the steps that reach each."""
    return json.loads((GOLDEN / 'npu_operators.json').read_text())
