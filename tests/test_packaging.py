"""The wheel holds everything a user needs, presets, recipes and the C decoder too, and nothing else."""
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv as venv_module
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """The sources alone, without what builds may have left in the checkout."""
    source = tmp_path_factory.mktemp('source')
    for name in ('seresnet_timm', 'recipes'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', '*.so'))
    for name in ('setup.cfg', 'setup.py', 'MANIFEST.in', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    return source


def build(source: Path, folder: Path, **environment) -> Path:
    result = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', folder, source],
        env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    return build(source, tmp_path_factory.mktemp('wheel'))


def contents(wheel: Path) -> set:
    with zipfile.ZipFile(wheel) as z:
        return {n for n in z.namelist() if '.dist-info' not in n}


def package_files() -> set:
    """Sources, templates and schemas of the package, and the recipes."""
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / 'seresnet_timm').rglob('*') if p.suffix in (
        '.py', '.j2', '.json', '.html')}
    recipes = {f'seresnet_timm/recipes/{p.name}' for p in (ROOT / 'recipes').iterdir() if p.suffix in ('.yaml', '.sh')}
    constraints = {str(p.relative_to(ROOT)) for p in (ROOT / 'seresnet_timm' / 'ascend' / 'constraints').iterdir()}
    return sources | recipes | constraints | {'seresnet_timm/hub/card.md.j2'}


def test_contents(wheel):
    extension = contents(wheel) - package_files()
    assert contents(wheel) >= package_files()
    if not os.path.exists('/usr/include/jpeglib.h') or shutil.which('cc') is None:
        assert not extension and wheel.name.endswith('-py3-none-any.whl')
        pytest.skip('the C decoder is not built here: no C compiler, or no libjpeg-turbo header')
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    assert extension == {f'seresnet_timm/data/_{name}{suffix}' for name in ('augment', 'jpeg')}
    assert 'none-any' not in wheel.name


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_pure(source, tmp_path):
    """No C compiler: the install works, for every machine, and says what it leaves out."""
    wheel = build(source, tmp_path, CC='/nonexistent/cc')
    assert contents(wheel) == package_files() and wheel.name.endswith('-py3-none-any.whl')
    result = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=source,
                            env={**os.environ, 'CC': '/nonexistent/cc'}, capture_output=True, text=True)
    assert 'built without the C decoder' in result.stdout


def test_source_distribution_holds_the_c_source(source, tmp_path):
    subprocess.run([sys.executable, 'setup.py', '-q', 'sdist', '-d', tmp_path], cwd=source, check=True,
                   capture_output=True, env={**os.environ, 'CC': '/nonexistent/cc'})
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as t:
        names = {n.split('/', 1)[1] for n in t.getnames() if '/' in n}
    assert names >= {'seresnet_timm/data/_jpeg.c', 'seresnet_timm/data/_resize.h',
                     'seresnet_timm/data/_huffman.h', 'seresnet_timm/data/_huffman_check.h',
                     'seresnet_timm/data/_augment.c', 'setup.py', 'setup.cfg',
                     'pyproject.toml', 'README.md', 'LICENSE',
                     'recipes/train_1p.sh', 'recipes/run.sh', 'recipes/seresnet50_ascend.yaml'}


@pytest.fixture(scope='module')
def venv(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel; torch and the rest are found in the one that runs the tests."""
    folder = tmp_path_factory.mktemp('installed') / 'venv'
    venv_module.create(folder, symlinks=True)
    site = Path(sysconfig.get_path('purelib', vars={'base': str(folder)}))
    others = [p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))]
    (site / 'others.pth').write_text('\n'.join(others) + '\n')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site, wheel],
                   check=True, capture_output=True)
    return folder


def installed(venv: Path) -> Path:
    return Path(sysconfig.get_path('purelib', vars={'base': str(venv)})) / 'seresnet_timm'


def outside() -> dict:
    """Environment variables without the folders in which the tests find the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}


def test_installed_package_trains_from_its_preset(venv, few_digits, tmp_path):
    """Installed beside no checkout, from another folder."""
    result = subprocess.run(
        [venv / 'bin' / 'python', '-m', 'seresnet_timm', 'train', '--preset', 'digits_demo', '--model',
         'seresnet18_ascend', '--data-dir', str(few_digits), '--output', 'out', '--experiment', 'run', '--epochs', '1',
         '--workers', '0', '--device', 'cpu', '--model-kwargs', 'channels=(8,16,24,32)'],
        cwd=tmp_path, env=outside(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'out' / 'run' / 'model_best.pth.tar').exists()
    where = subprocess.run(
        [venv / 'bin' / 'python', '-c', 'import seresnet_timm.launch.recipes as o; print(o.__file__, o.recipes_dir())'],
        cwd=tmp_path, env=outside(), capture_output=True, text=True).stdout
    assert where.split() == [f'{installed(venv)}/launch/recipes.py', f'{installed(venv)}/recipes']


def package_of(result) -> str:
    """Folder of the package that runs, by the plan."""
    assert result.returncode == 0, result.stderr
    return re.search(r'^  package +seresnet_timm \S+ from (.*)$', result.stderr, re.MULTILINE)[1]


def run_recipe(source: Path, python: Path, cwd: Path, data: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', source / 'recipes' / 'train_1p.sh', f'--data_path={data}', '--device', 'cpu', '--dry-run'],
        cwd=cwd, env={**outside(), 'PYTHON': str(python)}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason='Python 3.10 takes a package from the current folder first')
def test_recipe_of_a_checkout_runs_the_installed_package(source, venv, few_digits, tmp_path):
    """From another folder and from the checkout itself, whose package has no compiled decoder."""
    for folder in (tmp_path, source):
        result = run_recipe(source, venv / 'bin' / 'python', folder, few_digits)
        assert package_of(result) == str(installed(venv)), folder


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason='Python 3.10 takes a package from the current folder first')
def test_ranks_run_the_package_of_the_launcher(venv, few_digits, tmp_path):
    """Not another copy in the current folder, which `python -m` would take."""
    (tmp_path / 'seresnet_timm').mkdir()
    (tmp_path / 'seresnet_timm' / '__init__.py').write_text('raise SystemExit("the package of the current folder")')
    start = 'import sys; sys.path.pop(0); from seresnet_timm.cli.main import main; main(sys.argv[1:])'
    result = subprocess.run(
        [venv / 'bin' / 'python', '-c', start, 'train', '--preset', 'digits_demo', '--model', 'seresnet18_ascend',
         '--data-dir', few_digits, '--output', 'out', '--experiment', 'run', '--epochs', '1', '--workers', '0',
         '--device', 'cpu', '--nproc', '2'],
        cwd=tmp_path, env=outside(), capture_output=True, text=True)
    assert result.returncode == 0 and (tmp_path / 'out' / 'run' / 'model_best.pth.tar').exists(), result.stderr


@pytest.mark.slow
def test_recipe_of_a_checkout_runs_the_checkout_where_nothing_is_installed(source, few_digits, tmp_path):
    venv_module.create(tmp_path / 'venv', symlinks=True)
    site = Path(sysconfig.get_path('purelib', vars={'base': str(tmp_path / 'venv')}))
    (site / 'others.pth').write_text('\n'.join(p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))))
    for folder in (tmp_path, source):
        result = run_recipe(source, tmp_path / 'venv' / 'bin' / 'python', folder, few_digits)
        assert package_of(result) == str(source / 'seresnet_timm'), folder


def test_benchmarks_need_a_checkout(venv, tmp_path):
    """They are not in the wheel, and the installed command says where they are."""
    assert not any('bench' in name and not name.startswith('seresnet_timm/cli/') for name in contents_of_site(venv))
    result = subprocess.run([venv / 'bin' / 'python', '-m', 'seresnet_timm', 'bench', 'step'],
                            cwd=tmp_path, env=outside(), capture_output=True, text=True)
    assert result.returncode == 2 and 'The benchmarks are not part of the installed package' in result.stderr
    assert 'from a checkout of the source code' in result.stderr and 'Traceback' not in result.stderr


def contents_of_site(venv: Path) -> set:
    return {str(p.relative_to(installed(venv).parent)) for p in installed(venv).rglob('*')}


def test_oldest_versions_are_the_lower_bounds():
    """`make test-oldest` tests what setup.cfg promises: each bound, and nothing newer."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    required = [Requirement(line) for line in config['options']['install_requires'].splitlines()
                if line and not line.startswith('#')]
    tested = dict(re.findall(r'^(\S+) == (\S+)$', (ROOT / 'tests' / 'oldest.txt').read_text(), re.M))
    bounds = {r.name: next(s.version for s in r.specifier if s.operator == '>=') for r in required}
    assert bounds.keys() == tested.keys()
    for name, bound in bounds.items():
        assert f'{tested[name]}.'.startswith(f'{bound}.'), (name, bound)
