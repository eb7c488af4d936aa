"""Run the shell recipes and read what they print and write."""
import csv
import subprocess
from pathlib import Path

import preloaded
import pytest
from conftest import ROOT
from timm_scripts import TIMM_SCRIPTS

SMALL = ROOT / 'tests' / 'small_scripts'
SCRIPTS = [
    pytest.param('bundled', id='bundled'), pytest.param(SMALL, id='small', marks=pytest.mark.slow),
    *([pytest.param(Path(TIMM_SCRIPTS), id='timm')] if TIMM_SCRIPTS else [])]
LINES = ('Final Performance images/sec', 'Final Train Accuracy', 'E2E Training Duration sec')


def recipe(name, *argv, cwd, python=None, timeout=280):
    """Run a shell recipe; with a Python that has torch imported (preloaded/__init__.py) unless one is named."""
    env = {**preloaded.environment(), 'PYTHON': python or preloaded.python(), 'TIMM_SCRIPTS': ''}
    return subprocess.run(
        ['bash', str(ROOT / 'recipes' / f'{name}.sh'), *map(str, argv)],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def final_lines(result) -> dict:
    """The closing lines, which must be the last that a recipe prints."""
    lines = result.stdout.splitlines()[-4:]
    assert lines[0] == '------------------ Final result ------------------'
    found = dict(line.split(' : ') for line in lines[1:])
    assert tuple(found) == LINES
    return {k: float(v) for k, v in found.items()}


def rows(folder: Path) -> list:
    with open(folder / 'summary.csv', newline='') as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
