"""Which torch stands beside which torch_npu is read from files alone, and the pairs that cannot work are named."""
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_here
from packaging.requirements import Requirement
from wheel_indexes import make_indexes, pip_would_install

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
        assert f'{sys.executable} -m pip install torch=={release}' in why


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


CPU, ARM_CUDA = '--extra-index-url https://download.pytorch.org/whl/cpu', '2.14.1+cu130'


@pytest.mark.parametrize('machine, kwargs, command', (
    # on aarch64 PyPI's torch is a CPU build up to 2.10
    ('aarch64', dict(torch_version=ARM_CUDA, cuda='13.0', torch_npu='2.10.0.post7', requires='torch==2.10.0'),
     'install torch==2.10.0 torchvision==0.25.0 torch_npu==2.10.0.post7'),
    ('aarch64', dict(torch_version='2.12.0+cu130', cuda='13.0', torch_npu='2.12.0.post3', requires='torch==2.12.0'),
     f'install torch==2.12.0+cpu torchvision==0.27.0+cpu torch_npu==2.12.0.post3 {CPU}'),
    ('aarch64', dict(torch_version='2.14.0+cu130', cuda='13.0', torch_npu='2.14.0', requires='torch==2.14.0.*'),
     f'install torch==2.14.0+cpu torchvision==0.29.0+cpu torch_npu==2.14.0 {CPU}'),
    ('aarch64', dict(torch_version='2.9.1+cpu', torch_npu='2.9.0.post9', requires='torch==2.9.0'),
     'install torch==2.9.0 torchvision==0.24.0 torch_npu==2.9.0.post9'),
    # pip would keep a CUDA build of the right release
    ('aarch64', dict(torch_version='2.10.0+cu126', cuda='12.6', torch_npu='2.10.0', requires='torch==2.10.0'),
     'uninstall -y torch torchvision && PIP install torch==2.10.0 torchvision==0.25.0 torch_npu==2.10.0'),
    # on x86-64 it is a CUDA build always
    ('x86_64', dict(torch_version='2.10.0+cu128', cuda='12.8', torch_npu='2.10.0.post7', requires='torch==2.10.0+cpu'),
     f'install torch==2.10.0+cpu torchvision==0.25.0+cpu torch_npu==2.10.0.post7 {CPU}'),
    ('x86_64', dict(torch_version='2.14.1+cu130', cuda='13.0', torch_npu='2.13.0', requires='torch==2.13.0.*'),
     f'install torch==2.13.0+cpu torchvision==0.28.0+cpu torch_npu==2.13.0 {CPU}'),
    # of a release that the table does not have yet, built by its user
    ('aarch64', dict(torch_version='2.15.0+cu130', cuda='13.0', torch_npu='2.15.0+gitabc', requires='torch==2.15.0'),
     f'install torch==2.15.0+cpu torchvision {CPU}'),
    # too old for this package, whatever torch is there
    ('aarch64', dict(torch_version='2.5.1', torch_npu='2.5.1.post1', requires='torch==2.5.1'),
     "install torch==2.10.0 torchvision==0.25.0 'torch_npu==2.10.0.*'"),
    ('x86_64', dict(torch_version=ARM_CUDA, cuda='13.0', torch_npu='2.1.0.post17', requires='torch==2.1.0'),
     f"install torch==2.14.0+cpu torchvision==0.29.0+cpu 'torch_npu==2.14.0.*' {CPU}"),
    # a release without a line in the table, and one of torch's nightly builds
    ('aarch64', dict(torch_version='2.14.1', torch_npu='2.7.0', requires='torch==2.7.0'),
     'install torch==2.7.0 torchvision torch_npu==2.7.0'),
    ('x86_64', dict(torch_version='2.15.0.dev20261101+cu130', cuda='13.0', torch_npu='2.14.0'),
     f'install torch==2.14.0+cpu torchvision==0.29.0+cpu torch_npu==2.14.0 {CPU}'),
    # no torch beside it, as after `pip install --no-deps`
    ('aarch64', dict(torch_npu='2.10.0.post7', requires='torch==2.10.0'),
     'install torch==2.10.0 torchvision==0.25.0 torch_npu==2.10.0.post7'),
), ids=str)
def test_wrong_pairs_are_told_by_machine(machine, kwargs, command, tmp_path, monkeypatch):
    """doctor's remedy and the refusal of `train` hold the command as it is typed."""
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    found = wheels.incompatibility(wheels.installed_pair([str(install(tmp_path / 'site', **kwargs))]))
    pip = f'{sys.executable} -m pip'
    assert found.remedy == f'{pip} {command.replace("PIP", pip)}'


@pytest.mark.parametrize('machine, torch_version, command', (
    ('aarch64', '2.10.0+cpu', "install torch==2.10.0 torchvision==0.25.0 'torch_npu==2.10.0.*'"),
    ('aarch64', None, "install torch==2.10.0 torchvision==0.25.0 'torch_npu==2.10.0.*'"),
    ('aarch64', ARM_CUDA, f"install torch==2.14.0+cpu torchvision==0.29.0+cpu 'torch_npu==2.14.0.*' {CPU}"),
    ('x86_64', '2.9.1+cpu', f"install torch==2.9.1+cpu torchvision==0.24.1+cpu 'torch_npu==2.9.1.*' {CPU}"),
    ('x86_64', '2.15.0+cpu', f"install torch==2.10.0+cpu torchvision==0.25.0+cpu 'torch_npu==2.10.0.*' {CPU}"),
))
def test_command_without_torch_npu(machine, torch_version, command):
    pair = Pair(torch_version, '13.0' if torch_version == ARM_CUDA else None, None, None)
    assert wheels.install_command(pair, machine) == f'{sys.executable} -m pip {command}'


@pytest.mark.parametrize('machine, pair, command', (
    ('aarch64', Pair('2.10.0+cpu', None, '2.10.0', None), 'torch==2.10.0 torchvision==0.25.0'),
    ('aarch64', Pair('2.12.0+cpu', None, '2.12.0', None), f'torch==2.12.0 torchvision==0.27.0+cpu {CPU}'),
    ('x86_64', Pair('2.10.0+cpu', None, '2.10.0', None), f'torch==2.10.0 torchvision==0.25.0+cpu {CPU}'),
    ('x86_64', Pair('2.13.0+cu130', '13.0', None, None), 'torch==2.13.0 torchvision==0.28.0'),
    ('x86_64', Pair('2.14.1+cu130', '13.0', None, None), 'torch==2.14.1 torchvision'),
))
def test_command_for_torchvision_leaves_torch(machine, pair, command):
    assert wheels.add_package_command('torchvision', pair, machine) == f'{sys.executable} -m pip install {command}'
    version = wheels.dotted(wheels.release(pair.torch))
    assert wheels.add_package_command('timm', pair, machine).endswith(f' torch=={version} timm')


def test_command_that_installs_torch_anew():
    start = f'{sys.executable} -m pip install --force-reinstall --no-deps torch=='
    for machine, torch_npu, command in (
            ('aarch64', '2.11.0', f'2.11.0+cpu {CPU}'), ('x86_64', '2.11.0', f'2.11.0+cpu {CPU}'),
            ('aarch64', None, '2.11.0')):  # no torch_npu: any build
        assert wheels.reinstall_torch_command(Pair('2.11.0', None, torch_npu, None), machine) == start + command


def test_train_refuses_the_wrong_pair(tmp_path, monkeypatch):
    """Before torch_npu is imported; its import would end this process."""
    site = install(tmp_path / 'site', torch_npu='2.10.0.post7', requires='torch==2.10.0')
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    monkeypatch.setattr(wheels, '_constant', lambda package, name, path: {
        'torch': {'__version__': ARM_CUDA, 'cuda': '13.0'}}.get(package, {}).get(name))
    monkeypatch.setenv('TORCH_DEVICE_BACKEND_AUTOLOAD', '0')
    result = run_here('train', '--data-dir', tmp_path, '--model', 'seresnet18_ascend', '--device', 'npu')
    assert result.returncode == 2 and 'torch_npu' not in sys.modules
    assert 'pip install torch==2.10.0 torchvision==0.25.0 torch_npu==2.10.0.post7)' in result.stderr, result.stderr


@pytest.mark.parametrize('version', wheels.TORCHVISION)
def test_constraints_file_has_the_tables_versions(version):
    assert wheels.constraints_file(version).read_text() == wheels.constraints(version)


def test_every_release_has_its_constraints_file():
    """The table is that of the wheels which were read, see tests/read_torch_npu_wheels.py."""
    extract = json.loads((ROOT / 'tests' / 'golden' / 'torch_npu_names.json').read_text())
    releases = {wheels.dotted(wheels.release(version)) for version in extract['wheels']}
    assert set(wheels.TORCHVISION) == releases
    files = (ROOT / 'seresnet_timm' / 'ascend' / 'constraints').iterdir()
    assert sorted(f.name for f in files) == sorted(f'torch_npu-{v}.txt' for v in releases)


@pytest.fixture(scope='module')
def indexes(tmp_path_factory) -> dict:
    return make_indexes(tmp_path_factory.mktemp('indexes'))


@pytest.mark.parametrize('machine, version, from_pypi', (
    ('aarch64', '2.10.0', True), ('aarch64', '2.11.0', False),
    pytest.param('aarch64', '2.6.0', True, marks=pytest.mark.slow),
    pytest.param('aarch64', '2.13.0', False, marks=pytest.mark.slow),
    pytest.param('x86_64', '2.9.1', False, marks=pytest.mark.slow), ('x86_64', '2.14.0', False),
))
def test_constraints_never_bring_a_cuda_build(machine, version, from_pypi, indexes):
    """pip itself, on indexes that offer what the real ones do: the CPU build and its torchvision, or nothing at all."""
    command = ('seresnet_timm[npu]', '-c', str(wheels.constraints_file(version)))
    label = '' if from_pypi else '+cpu'
    right = {'torch': version + label, 'torchvision': wheels.TORCHVISION[version] + label, 'torch_npu': version,
             'seresnet_timm': '1'}
    assert pip_would_install(machine, [indexes[machine]], *command) == (right if from_pypi else {})
    if not from_pypi:
        assert pip_would_install(machine, [indexes[machine], indexes['cpu']], *command) == right


@pytest.mark.slow
def test_what_the_constraints_prevent(indexes):
    """Without them pip moves torch to the release that the newest torchvision needs, a CUDA build."""
    found = pip_would_install('aarch64', [indexes['aarch64']], 'seresnet_timm')
    assert found['torch'] == '2.14.1' and 'nvidia' in found


def test_remedy_is_what_the_constraints_say():
    for version in wheels.TORCHVISION:
        for machine in ('aarch64', 'x86_64'):
            lines = [Requirement(line) for line in wheels.constraints(version).splitlines() if line[0] != '#']
            allowed = {str(r.name): r.specifier for r in lines
                       if r.marker is None or r.marker.evaluate({'platform_machine': machine})}
            words = shlex.split(wheels.install_command(Pair(version, None, version, None), machine))
            pins = [Requirement(w) for w in words if '==' in w]
            assert [p.name for p in pins] == ['torch', 'torchvision', 'torch_npu']
            assert all(str(p.specifier)[2:] in allowed[p.name] for p in pins)
            assert (CPU in ' '.join(words)) == ('+cpu' in str(pins[0]))
