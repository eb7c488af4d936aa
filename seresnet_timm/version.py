"""The version of this package, and the oldest timm that it works with."""
import importlib.util
import re
import sys
from pathlib import Path

__version__ = '0.1.0'
OLDEST_TIMM = '1.0.31'  # as in setup.cfg


class OldTimm(ImportError):
    """The timm that Python finds is older: which, where, and how to install a newer one."""


def refuse_old_timm() -> None:
    """Read timm's version from its file, as an import takes seconds; do nothing if it is not installed."""
    spec = importlib.util.find_spec('timm')
    file = Path(spec.origin).with_name('version.py') if spec is not None and spec.origin else None
    found = re.search(r'''^__version__ = ['"]([\d.]+)''', file.read_text(), re.M) if file and file.exists() else None
    if found and _numbers(found[1]) < _numbers(OLDEST_TIMM):
        raise OldTimm(f'seresnet_timm needs timm {OLDEST_TIMM} or newer, {file.parent} is {found[1]}: '
                      f"{sys.executable} -m pip install 'timm>={OLDEST_TIMM},<2'")


def _numbers(version: str) -> list:
    return [int(n) for n in version.split('.') if n]
