"""The wheel holds everything a user needs, presets and recipes too, and nothing else."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """A wheel of the sources alone, without what builds may have left in the checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('seresnet_timm', 'recipes'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    result = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', folder, source],
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(folder.glob('*.whl'))


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = {n for n in z.namelist() if '.dist-info' not in n}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / 'seresnet_timm').rglob('*.py')}
    recipes = {f'seresnet_timm/recipes/{p.name}' for p in (ROOT / 'recipes').iterdir() if p.suffix in ('.yaml', '.sh')}
    assert names == sources | recipes


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
        [sys.executable, '-c', 'import seresnet_timm.options as o; print(o.__file__, o.recipes_dir())'],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}, capture_output=True, text=True).stdout
    assert where.split() == [f'{tmp_path}/site/seresnet_timm/options.py', f'{tmp_path}/site/seresnet_timm/recipes']
