"""`import seresnet_timm` registers the models however Python was started, except for this package's command line."""
import configparser
import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import preloaded
import pytest
from conftest import ROOT

from seresnet_timm.version import OLDEST_TIMM

OURS = '-m seresnet_timm', '-um seresnet_timm', '-mseresnet_timm', '-W ignore -m seresnet_timm', \
    '-Wdefault::FutureWarning -m seresnet_timm', '-X utf8 -m seresnet_timm', '-Xutf8 -m seresnet_timm', \
    '-W ignore -ubm seresnet_timm -c x', '--check-hash-based-pycs never -OO -m seresnet_timm', \
    '-m seresnet_timm.doctor', 'bin/seresnet-timm', '-u -X utf8 bin/seresnet-timm --version', '-- bin/seresnet-timm'
STRANGERS = '-m pkg.x', '-um pkg.x', '-mpkg.x', '-W ignore -m pkg.x', '-m pkg.x -m seresnet_timm', \
    '-m pkg.x bin/seresnet-timm', 'script.py', 'script.py seresnet-timm', '-u script.py -m seresnet_timm', \
    '-W seresnet-timm script.py', '-X seresnet-timm -m pkg.x', '-c import_seresnet_timm', '-uc import_seresnet_timm', \
    '-cimport_seresnet_timm', '-c import_seresnet_timm -m seresnet_timm', '-', '- -m seresnet_timm', 'app.pyz', \
    'folder', '-m seresnet_timm_fork', '-m cProfile -m seresnet_timm'


@pytest.fixture(scope='module')
def places(tmp_path_factory) -> Path:
    """This package's __init__.py with models that print a line, the console script, and programs that import it."""
    root = tmp_path_factory.mktemp('registration')
    package = root / 'seresnet_timm'
    for folder in (package / 'doctor', root / 'pkg', root / 'seresnet_timm_fork', root / 'folder', root / 'bin'):
        folder.mkdir(parents=True)
    for name in ('__init__.py', 'old_names.py', 'version.py'):
        shutil.copy(ROOT / 'seresnet_timm' / name, package)
    (package / 'models.py').write_text('print("registered")')
    for file in (package / '__main__.py', package / 'doctor' / '__init__.py', package / 'doctor' / '__main__.py',
                 root / 'pkg' / 'x.py', root / 'seresnet_timm_fork' / '__main__.py'):
        file.write_text('')
    for file in (root / 'pkg' / '__init__.py', root / 'seresnet_timm_fork' / '__init__.py', root / 'script.py',
                 root / 'folder' / '__main__.py', root / 'bin' / 'seresnet-timm'):
        file.write_text('import seresnet_timm')
    zipapp.create_archive(root / 'folder', root / 'app.pyz')
    return root


def start(places: Path, arguments: str) -> str:
    words = [word.replace('import_seresnet_timm', 'import seresnet_timm') for word in arguments.split()]
    result = subprocess.run(
        [sys.executable, *words], cwd=places, env={**os.environ, 'PYTHONPATH': str(places)},
        input='import seresnet_timm', capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('arguments', OURS)
def test_our_command_line_imports_no_models(places, arguments):
    assert start(places, arguments) == ''


@pytest.mark.parametrize('arguments', STRANGERS)
def test_models_are_registered_in_every_other_process(places, arguments):
    assert start(places, arguments).startswith('registered\n')


def test_models_are_registered_in_spawned_and_embedded_processes(places):
    """multiprocessing's processes, as a loader's workers; and a Python that knows no command line."""
    (places / 'spawn.py').write_text(
        'import multiprocessing\nif __name__ == "__main__":\n'
        '    multiprocessing.get_context("spawn").Process(target=__import__, args=("seresnet_timm",)).start()\n')
    assert start(places, 'spawn.py') == 'registered\n'
    (places / 'embedded.py').write_text('import sys\nsys.orig_argv.clear()\nimport seresnet_timm')
    assert start(places, 'embedded.py') == 'registered\n'


@pytest.mark.parametrize('version, is_old', (
    ('1.0.30', True), ('0.9.16', True), ('1.0', True), ('1.0.31', False), ('1.0.32.dev0', False), ('1.10.0', False)))
def test_an_older_timm_is_refused_with_the_command_that_installs_a_newer_one(places, tmp_path, version, is_old):
    (tmp_path / 'timm').mkdir()
    (tmp_path / 'timm' / '__init__.py').write_text('')
    (tmp_path / 'timm' / 'version.py').write_text(f"__version__ = '{version}'\n")
    sentence = (f"seresnet_timm needs timm 1.0.31 or newer, {tmp_path / 'timm'} is {version}: "
                f"{sys.executable} -m pip install 'timm>=1.0.31,<2'")
    result = subprocess.run([sys.executable, '-c', 'import seresnet_timm'], cwd=places, capture_output=True, text=True,
                            env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert (result.returncode, result.stdout) == ((1, '') if is_old else (0, 'registered\n'))
    assert result.stderr.rpartition('OldTimm: ')[2].strip() == (sentence if is_old else '')
    if version == '1.0.30':  # the command line
        result = subprocess.run([sys.executable, '-m', 'seresnet_timm', 'recipes'], cwd=ROOT, capture_output=True,
                                text=True, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
        assert (result.returncode, result.stderr) == (1, f'seresnet-timm: error: {sentence}\n')


def test_the_oldest_timm_is_the_one_of_the_requirements():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert f'timm >= {OLDEST_TIMM}, < 2' in config['options']['install_requires'].splitlines()


@pytest.mark.parametrize('launcher', (
    pytest.param([], id='python'),
    pytest.param(['torch.distributed.run', '--standalone', '--nproc-per-node=1', '-m'], id='torchrun',
                 marks=pytest.mark.slow)))
def test_a_strangers_package_finds_the_models(tmp_path, launcher):
    """`python -m pkg.x` and `torchrun -m pkg.x` of a package whose __init__ imports this one."""
    (tmp_path / 'pkg').mkdir()
    (tmp_path / 'pkg' / '__init__.py').write_text('import seresnet_timm\n')
    (tmp_path / 'pkg' / 'x.py').write_text(
        'import timm\nprint(sum(p.numel() for p in timm.create_model("seresnet18_ascend").parameters()))\n')
    result = subprocess.run([sys.executable, '-m', *launcher, 'pkg.x'], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 10_000_000


def test_modules_are_found_under_their_old_names_with_a_warning():
    program = (
        'import warnings; warnings.simplefilter("error"); import seresnet_timm, sys\n'
        'try: import seresnet_timm.preflight\n'
        'except DeprecationWarning as e: print(e)\n'
        'warnings.simplefilter("ignore")\n'
        'from seresnet_timm.old_names import OLD_NAMES; from importlib import import_module\n'
        'for old, new in OLD_NAMES.items():\n'
        '    assert import_module(f"seresnet_timm.{old}") is import_module(f"seresnet_timm.{new}"), old\n'
        'from seresnet_timm import checkpoints\n'
        'print(checkpoints.read_checkpoint.__module__)\n'
        'try: import seresnet_timm.nonsense\n'
        'except ModuleNotFoundError as e: print(e)\n')
    result = subprocess.run([preloaded.python(), '-c', program], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        'seresnet_timm.preflight is now seresnet_timm.launch.checks: import that',
        'seresnet_timm.checkpoints.read', "No module named 'seresnet_timm.nonsense'"], result.stderr
