"""recipes/wheelhouse.sh refuses what it cannot collect; what it collects installs offline on the other machine."""
import os
import platform
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from wheel_indexes import make_indexes, pip_would_install


def wheelhouse(*arguments, **environ) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', str(ROOT / 'recipes' / 'wheelhouse.sh'), *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, 'PYTHON': sys.executable, **environ}, timeout=900)


def test_all_mistakes_at_once(tmp_path):
    """Before pip is started."""
    (tmp_path / 'mine').touch()
    result = wheelhouse('--machine', 'arm64', '--python', '2.7', '--torch-npu', '2.5.1', '--out', tmp_path)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.splitlines() == [
        'wheelhouse.sh: --machine arm64: Ascend servers are aarch64 or x86_64',
        'wheelhouse.sh: --python 2.7: name 3.10 or newer as X.Y',
        'wheelhouse.sh: --torch-npu 2.5.1: name one of 2.6.0 2.7.1 2.8.0 2.9.0 2.9.1 2.10.0 2.11.0 2.12.0 2.13.0 2.14.0'
        ', or a post release of one, e.g. 2.10.0.post7',
        f'wheelhouse.sh: --out {tmp_path} exists and is not a folder that this script has filled: name a new one']
    assert [p.name for p in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize('arguments, message', (
    (['--out', 'new'], '--torch-npu is missing: name one of'),
    (['--torch-npu', '2.10.0'], '--out is missing'),
    (['--torch-npu'], '--torch-npu needs a value'),
    (['--torch-npu='], '--torch-npu needs a value'),
    (['--torch-npu', '2.10', '--out', 'new'], '--torch-npu 2.10: name one of'),
    (['--torch-npu', '2.10.0.post7; true', '--out', 'new'], 'true: name one of'),
    (['--python', '3.9', '--torch-npu', '2.10.0', '--out', 'new'], '--python 3.9: name 3.10 or newer'),
    (['--torch_npu', '2.10.0'], 'unknown option --torch_npu; --help lists them'),
    (['2.10.0'], 'unknown option 2.10.0'),
    (['--extras', 'demo,foo', '--torch-npu', '2.10.0', '--out', 'new'], '--extras: foo is none of npu demo export'),
    (['--torch-npu', '2.10.0', '--out', __file__], 'is not a folder that this script has filled'),
))
def test_a_mistake(arguments, message):
    result = wheelhouse(*arguments)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_python_without_pip(tmp_path):
    (tmp_path / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    result = wheelhouse('--torch-npu', '2.10.0', '--out', tmp_path / 'new', PYTHON=str(tmp_path / 'python'))
    assert result.returncode == 2 and f'{tmp_path}/python has no pip' in result.stderr
    assert not (tmp_path / 'new').exists()


def test_help():
    result = wheelhouse('--help')
    assert result.returncode == 0 and '--torch-npu 2.10.0.post7' in result.stdout
    code = (ROOT / 'recipes' / 'wheelhouse.sh').read_text()
    options = set(re.findall(r'--[a-z-]+', code.split('# All mistakes')[0].split('while ((')[1])) - {'--help'}
    assert options and all(o in result.stdout for o in options), options


@pytest.mark.slow
@pytest.mark.parametrize('machine, torch_npu, label', (
    ('aarch64', '2.10.0', ''), ('aarch64', '2.12.0', '+cpu'), ('x86_64', '2.10.0', '+cpu')))
def test_what_is_collected_installs_offline(machine, torch_npu, label, tmp_path):
    """With the wheels of the machine that collects, which is another, the printed command works; no CUDA library."""
    indexes = make_indexes(tmp_path)
    out = tmp_path / 'wheels'
    result = wheelhouse(
        '--machine', machine, '--torch-npu', torch_npu, '--also=decorator', '--out', out, '--python',
        '.'.join(platform.python_version_tuple()[:2]), '--cpu-index', 'file:///none', PIP_NO_INDEX='1',
        PIP_FIND_LINKS=f'{indexes[machine]} {indexes["cpu"] if label else ""}', PIP_NO_BUILD_ISOLATION='0')
    assert result.returncode == 0, result.stderr
    names = {p.name.split('-')[0] for p in out.glob('*.whl')}
    assert {'torch', 'torchvision', 'torch_npu', 'timm', 'simplejpeg', 'decorator', 'setuptools'} <= names
    assert 'nvidia' not in names and (out / 'constraints.txt').is_file()
    line = next(line for line in result.stdout.splitlines() if "'seresnet_timm[npu]'" in line)
    words = [w.replace('DIR', str(out)) for w in shlex.split(line)]
    assert words[:5] == ['pip', 'install', '--no-index', '--find-links', str(out)]
    found = pip_would_install(machine, [out], *words[5:])
    assert (found['torch'], found['torch_npu']) == (torch_npu + label, torch_npu)
