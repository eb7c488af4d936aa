"""The wheel holds everything a user needs, presets, recipes and the C decoder too, and nothing else."""
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


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


def python_files() -> set:
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / 'seresnet_timm').rglob('*.py')}
    recipes = {f'seresnet_timm/recipes/{p.name}' for p in (ROOT / 'recipes').iterdir() if p.suffix in ('.yaml', '.sh')}
    return sources | recipes | {'seresnet_timm/hub/card.md.j2'}


def test_contents(wheel):
    extension = contents(wheel) - python_files()
    assert contents(wheel) >= python_files()
    if not os.path.exists('/usr/include/jpeglib.h') or shutil.which('cc') is None:
        assert not extension and wheel.name.endswith('-py3-none-any.whl')
        pytest.skip('the C decoder is not built here: no C compiler, or no libjpeg-turbo header')
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    assert extension == {f'seresnet_timm/data/_jpeg{suffix}'} and 'none-any' not in wheel.name


def test_without_a_compiler_the_wheel_is_pure(source, tmp_path):
    """No C compiler: the install works, for every machine, and says what it leaves out."""
    wheel = build(source, tmp_path, CC='/nonexistent/cc')
    assert contents(wheel) == python_files() and wheel.name.endswith('-py3-none-any.whl')
    result = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=source,
                            env={**os.environ, 'CC': '/nonexistent/cc'}, capture_output=True, text=True)
    assert 'built without the C decoder' in result.stdout


def test_source_distribution_holds_the_c_source(source, tmp_path):
    subprocess.run([sys.executable, 'setup.py', '-q', 'sdist', '-d', tmp_path], cwd=source, check=True,
                   capture_output=True, env={**os.environ, 'CC': '/nonexistent/cc'})
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as t:
        names = {n.split('/', 1)[1] for n in t.getnames() if '/' in n}
    assert names >= {'seresnet_timm/data/_jpeg.c', 'setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE',
                     'recipes/train_1p.sh', 'recipes/seresnet50_ascend.yaml'}


def test_installed_package_trains_from_its_preset(wheel, few_digits, tmp_path):
    """Installed beside no checkout, from another folder."""
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', tmp_path / 'site', wheel],
        check=True, capture_output=True)
    result = subprocess.run(
        [sys.executable, '-m', 'seresnet_timm', 'train', '--preset', 'digits_demo', '--model', 'seresnet18_ascend',
         '--data-dir', str(few_digits), '--output', 'out', '--experiment', 'run', '--epochs', '1', '--workers', '0',
         '--device', 'cpu'],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'out' / 'run' / 'model_best.pth.tar').exists()
    where = subprocess.run(
        [sys.executable, '-c', 'import seresnet_timm.launch.flags as o; print(o.__file__, o.recipes_dir())'],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}, capture_output=True, text=True).stdout
    assert where.split() == [f'{tmp_path}/site/seresnet_timm/launch/flags.py', f'{tmp_path}/site/seresnet_timm/recipes']
