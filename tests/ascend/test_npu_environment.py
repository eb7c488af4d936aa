"""`make test-npu` where the emulated server cannot be made: says so loudly and passes, and fails where CI is set."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


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
