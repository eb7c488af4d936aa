"""Run the shell recipes and read what they print and write."""
import csv
import json
import math
import subprocess
from pathlib import Path

import preloaded
import pytest
from conftest import NARROW, ROOT
from timm_scripts import TIMM_SCRIPTS

from seresnet_timm.launch.recipes import all_recipes

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


# --- presets ----------------------------------------------------------------------------------------------------------

PRESETS = [name for name, recipe in all_recipes().items() if recipe.verb is None]
NEW_PRESETS = [name for name in PRESETS if name not in ('seresnet50_ascend', 'digits_demo', 'finetune')]
# without downloads; an eighth of the channels of 18 layers, of which an epoch takes a second
SMALL_RUN = ('--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)', '--img-size', 32, '-j', 0)
# one epoch of these learning rates on a network that has just started
ONE_EPOCH = ('--epochs', 1, '--warmup-epochs', 0)
SIZES = {'progressive': ('--train-img-sizes', 24, 32)}
EPOCHS = {'large_batch': ('--epochs', 1, '--warmup-epochs', 1)}  # 25 without warm-up is too much for any network


def write_teacher(folder: Path) -> tuple:
    """Flags that name a teacher of ten classes, in a folder as the Hub has it."""
    import timm  # here: tests on the NPU start before torch is imported
    from timm.models._hub import save_for_hf
    save_for_hf(timm.create_model('seresnet18_ascend', num_classes=10, **NARROW), folder, safe_serialization=True)
    return '--kd-model-name', f'local-dir:{folder}'


def preset_run(name: str, data, folder, *more) -> list:
    """Flags of a small training by a preset."""
    length = *EPOCHS.get(name, ONE_EPOCH), *SIZES.get(name, ())
    return ['train', '--preset', name, '--data-dir', data, *SMALL_RUN, *length,
            '--amp-level', 'O0', '--output', folder, '--experiment', 'run', *more]


def check_preset_run(folder, num_processes: int) -> None:
    with open(folder / 'run' / 'summary.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert rows and all(math.isfinite(float(r['train_loss'])) and 0 <= float(r['eval_top1']) <= 100 for r in rows)
    record = json.loads((folder / 'run' / 'run.json').read_text())
    assert record['settings']['world_size'] == num_processes and record['finished']
