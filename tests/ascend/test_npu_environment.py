"""`make test-npu` where the emulated server cannot be made: says so loudly and passes, and fails where CI is set."""
import importlib
import os
import platform
import runpy
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from seresnet_timm.ascend.wheels import installed_pair


@pytest.fixture
def without_compiler(tmp_path):
    """Environment of a machine that has Python and a shell, and no g++."""
    for name in ('sh', 'bash', 'make'):
        if shutil.which(name) is None:
            pytest.skip(f'no {name} here')
        (tmp_path / name).symlink_to(shutil.which(name))
    return {**{k: v for k, v in os.environ.items() if k != 'CI' and not k.startswith('MAKE')}, 'PATH': str(tmp_path)}


@pytest.mark.parametrize('ci, passes', (({}, True), ({'CI': 'true'}, False)), ids=('a machine', 'CI'))
def test_no_compiler(without_compiler, tmp_path, ci, passes):
    folder = tmp_path / 'venv'
    result = subprocess.run(
        ['make', 'test-npu', f'PYTHON={sys.executable}', f'NPU_VENV={folder}'], cwd=ROOT,
        env={**without_compiler, **ci}, capture_output=True, text=True, timeout=60)
    assert 'DO NOT RUN HERE: g++ is not installed' in result.stderr and 'apt-get install g++' in result.stderr
    assert (result.returncode == 0) == passes and not folder.exists(), result.stderr


@pytest.mark.parametrize('requires, reason', (
    pytest.param(['nvidia-nccl-cu13'], 'pip finds a CUDA build of torch', id='CUDA build'),
    pytest.param([], None, id='CPU build', marks=pytest.mark.slow)))
def test_build_of_torch(tmp_path, requires, reason):
    """pip itself, on an index of one wheel: whether what it would install is a CPU build."""
    index = tmp_path / 'index'
    index.mkdir()
    for name, version, needs in (('torch', '2.13.0', requires), *((r, '1.0', []) for r in requires)):
        write_wheel(index, name, version, needs)
    code = (f'import sys; sys.path.insert(0, {str(ROOT / "tests" / "ascend_emulator")!r}); import make_venv\n'
            f'make_venv.check_cpu_build([sys.executable, "-m", "pip", "install", "--no-index", "--find-links", '
            f'{str(index)!r}])')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert result.returncode == (3 if reason else 0), result.stderr
    if reason:
        assert reason in result.stderr and "NPU_PIP_ARGS='--index-url URL' make test-npu" in result.stderr


def write_wheel(folder, name: str, version: str, requires: list) -> None:
    import zipfile
    stem = f'{name.replace("-", "_")}-{version}'
    with zipfile.ZipFile(folder / f'{stem}-py3-none-any.whl', 'w') as z:
        info = f'{stem}.dist-info'
        z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n' + ''.join(
            f'Requires-Dist: {r}\n' for r in requires))
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{info}/RECORD', '')


@pytest.fixture
def make_venv(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tests' / 'ascend_emulator'))
    return importlib.import_module('make_venv')


CUDA_BUILD = "__version__ = '2.12.0+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
CPU_BUILD = "__version__ = '2.12.0+cpu'\ndebug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"


@pytest.mark.parametrize('allowed, before, after', (
    ('1', CUDA_BUILD, CPU_BUILD),
    ('1', CUDA_BUILD.replace('+cu130', ''), CPU_BUILD),
    ('1', CPU_BUILD, CPU_BUILD),
    ('1', CPU_BUILD.replace('+cpu', ''), CPU_BUILD.replace('+cpu', '')),
    ('', CUDA_BUILD, CUDA_BUILD),
), ids=('CUDA build', 'without label', 'CPU build', 'CPU build of PyPI', 'not allowed'))
def test_a_cuda_build_is_called_a_cpu_build_where_allowed(make_venv, tmp_path, monkeypatch, allowed, before, after):
    """Only in the environment of these tests; what the package itself then reads of it is a CPU build."""
    site = tmp_path / 'lib' / 'python3.11' / 'site-packages'
    (site / 'torch').mkdir(parents=True)
    (site / 'torch' / '__init__.py').touch()
    (site / 'torch' / 'version.py').write_text(before)
    monkeypatch.setenv('NPU_CUDA_BUILD', allowed)
    make_venv.call_it_a_cpu_build(tmp_path)
    assert (site / 'torch' / 'version.py').read_text() == after
    assert (installed_pair([str(site)]).cuda is None) == (after != CUDA_BUILD)


def test_version_of_torch_npu_is_a_supported_one(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / 'tests' / 'ascend_emulator' / 'make_venv.py', tmp_path / 'venv', '2.5.1'],
        capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and 'torch_npu 2.5.1 is not supported; these are: 2.6.0, ' in result.stderr
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize('machine, version', (('aarch64', '2.10.0'), ('x86_64', '2.13.0')))
def test_default_version_has_a_cpu_build_for_the_machine(machine, version, monkeypatch):
    """On aarch64 the newest that PyPI has."""
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    script = runpy.run_path(str(ROOT / 'tests' / 'ascend_emulator' / 'make_venv.py'))
    assert script['DEFAULT'] == version


def test_make_passes_the_version_on():
    """Each version has an environment of its own; `make clean` and git know them."""
    result = subprocess.run(
        ['make', '-n', 'test-npu', 'NPU_VERSION=2.10.0'], cwd=ROOT, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith('MAKE')})
    assert 'make_venv.py .venv-npu-2.10.0 2.10.0;' in result.stdout and '.venv-npu-2.10.0/bin/python' in result.stdout
    assert '/.venv-npu*/' in (ROOT / '.gitignore').read_text()


@pytest.mark.parametrize('ci, code', (({}, 0), ({'CI': 'true'}, 1)), ids=('a machine', 'CI'))
def test_no_emulated_aarch64_machine(without_compiler, tmp_path, ci, code):
    """`make test-arm` without QEMU: one sentence, and nothing is made."""
    for name in ('uname', 'id', 'dirname'):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = subprocess.run(
        ['bash', ROOT / 'tests' / 'arm' / 'run.sh'], capture_output=True, text=True, timeout=60,
        env={**without_compiler, **ci, 'ARM_ROOT': str(tmp_path / 'root')})
    assert result.returncode == code and len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith('THE TESTS ON AN EMULATED AARCH64 MACHINE DO NOT RUN HERE: ')
    if os.geteuid() == 0 and platform.machine() != 'aarch64':
        assert 'apt-get install' in result.stderr or '/usr/sbin' in result.stderr
    assert not (tmp_path / 'root').exists()
