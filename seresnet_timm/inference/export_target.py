"""The file of an export, judged before a model is loaded for it"""
import importlib.util
from pathlib import Path
from typing import Optional, Union

from seresnet_timm.errors import UsageError
from seresnet_timm.files import is_utf8

SUFFIXES = {'.onnx': 'onnx', '.pt2': 'torch'}


def check_target(out: Union[str, Path], format: Optional[str]) -> str:
    """Format of the file to write, before a model is loaded for it.

    Raises:
        UsageError: The format is not known, the file cannot be written, or a package is missing.
    """
    out = Path(out)
    format = format or SUFFIXES.get(out.suffix)
    if format is None:
        raise UsageError(f'{out}: name it .onnx or .pt2, or choose the format with --format.')
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f'Cannot write {out}: ' + (
            'it is a folder.' if out.is_dir() else f'the folder {out.parent} does not exist.'))
    if not is_utf8(out.absolute()):
        raise UsageError(f'Cannot write {out}: its path is not UTF-8, which exporters need; name another.')
    if format == 'onnx':
        require_onnx()
    return format


def require_onnx() -> None:
    for package in ('onnx', 'onnxruntime'):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'ONNX needs {package}: pip install "seresnet-timm[export]".')
