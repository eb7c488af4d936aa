"""Which torch stands beside which torch_npu is read from files alone, and the pairs that cannot work are named."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from seresnet_timm.ascend import wheels
from seresnet_timm.ascend.wheels import Pair

TORCH_VERSION = '''from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'xpu']
__version__ = '{version}'
debug = False
cuda: Optional[str] = {cuda!r}
hip: Optional[str] = None
'''


def install(folder: Path, torch_version=None, cuda=None, torch_npu=None, requires=None) -> Path:
    """Packages as pip leaves them, of which an import would fail."""
    if torch_version:
        (folder / 'torch').mkdir(parents=True)
        (folder / 'torch' / '__init__.py').write_text('raise SystemExit("imported")')
        (folder / 'torch' / 'version.py').write_text(TORCH_VERSION.format(version=torch_version, cuda=cuda))
    if torch_npu:
        (folder / 'torch_npu').mkdir(parents=True)
        (folder / 'torch_npu' / '__init__.py').write_text('raise SystemExit("imported")')
        info = folder / f'torch_npu-{torch_npu}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Name: torch_npu\nVersion: {torch_npu}\nRequires-Dist: numpy\n' + (
            f'Requires-Dist: {requires}\n' if requires else ''))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize('kwargs, pair, problem', (
    # pins as the wheels have them
    (dict(torch_version='2.9.0+cpu', torch_npu='2.9.0.post9', requires='torch ==2.9.0+cpu'),
     Pair('2.9.0+cpu', None, '2.9.0.post9', 'torch==2.9.0+cpu'), None),
    (dict(torch_version='2.6.0', torch_npu='2.6.0.post5', requires='torch (==2.6.0+cpu)'),
     Pair('2.6.0', None, '2.6.0.post5', 'torch==2.6.0+cpu'), None),
    (dict(torch_version='2.13.0+cpu', torch_npu='2.13.0', requires='torch==2.13.0.*'),
     Pair('2.13.0+cpu', None, '2.13.0', 'torch==2.13.0.*'), None),
    (dict(torch_version='2.9.1+cpu', torch_npu='2.9.0.post9', requires='torch ==2.9.0+cpu'),
     Pair('2.9.1+cpu', None, '2.9.0.post9', 'torch==2.9.0+cpu'), 'torch_npu 2.9.0.post9 is built for torch 2.9.0'),
    (dict(torch_version='2.9.0+cu128', cuda='12.8', torch_npu='2.9.0.post9', requires='torch ==2.9.0+cpu'),
     Pair('2.9.0+cu128', '12.8', '2.9.0.post9', 'torch==2.9.0+cpu'), None),
    (dict(torch_version='2.10.0+cu128', cuda='12.8', torch_npu='2.10.0.post7', requires='torch ==2.10.0+cpu'),
     Pair('2.10.0+cu128', '12.8', '2.10.0.post7', 'torch==2.10.0+cpu'), 'torch 2.10.0+cu128 is a CUDA build'),
    (dict(torch_version='2.14.1+cu130', cuda='13.0', torch_npu='2.14.0'),  # says nothing of torch
     Pair('2.14.1+cu130', '13.0', '2.14.0', None), 'torch_npu 2.14.0 is built for torch 2.14.0'),
    (dict(torch_version='2.9.0+cpu'), Pair('2.9.0+cpu', None, None, None), 'torch_npu is not installed'),
    (dict(torch_npu='2.9.0', requires='torch==2.9.0'), Pair(None, None, '2.9.0', 'torch==2.9.0'),
     'torch is not installed'),
    ({}, Pair(None, None, None, None), 'torch_npu is not installed'),
), ids=lambda v: '-'.join(map(str, v.values())) if isinstance(v, dict) else '')
def test_pairs(kwargs, pair, problem, tmp_path):
    found = wheels.installed_pair([str(install(tmp_path / 'site', **kwargs))])
    assert found == pair
    why = wheels.describe_incompatibility(found)
    assert (why is None) == (problem is None) and (problem is None or why.startswith(problem)), why
    if problem and 'not installed' not in problem:
        release = wheels.dotted(wheels.wanted_torch(pair))
        assert f'pip install torch=={release}' in why


def test_version_of_torch_npu_without_metadata(tmp_path):
    """Built from source and put on PYTHONPATH."""
    install(tmp_path, torch_version='2.9.0+cpu')
    (tmp_path / 'torch_npu').mkdir()
    (tmp_path / 'torch_npu' / '__init__.py').touch()
    (tmp_path / 'torch_npu' / 'version.py').write_text("__version__ = '2.9.0.post9+gitabc'\n")
    pair = wheels.installed_pair([str(tmp_path)])
    assert pair.torch_npu == '2.9.0.post9+gitabc' and wheels.incompatibility(pair) is None


def test_agrees_with_torch_itself():
    pair = wheels.installed_pair()
    assert (pair.torch, pair.cuda) == (torch.__version__, torch.version.cuda)


def test_imports_nothing():
    code = ('import sys; sys.orig_argv = ["python", "seresnet-timm"]; from seresnet_timm.ascend import wheels\n'
            'assert wheels.installed_pair().torch; wheels.describe_incompatibility()\n'
            'assert not {"torch", "torch_npu"} & set(sys.modules)')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
