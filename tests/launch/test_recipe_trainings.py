"""Every recipe plans 8 processes, and trains an epoch of the demo digits with each script."""
import csv
import json
import math

import pytest
from conftest import run_cli, run_here
from recipe_runs import SCRIPTS

from seresnet_timm.launch.recipes import all_recipes

pytestmark = pytest.mark.preloaded

PRESETS = [name for name, recipe in all_recipes().items() if recipe.verb is None]
NEW = [name for name in PRESETS if name not in ('seresnet50_ascend', 'digits_demo', 'finetune')]
# without downloads; an eighth of the channels of 18 layers, of which an epoch takes a second
SMALL = ('--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)', '--img-size', 32, '-j', 0)
WITHOUT_DOWNLOAD = {'finetune': ('--model', 'seresnet50')}
# one epoch of these learning rates on a network that has just started
ONE_EPOCH = ('--epochs', 1, '--warmup-epochs', 0)
EPOCHS = {'large_batch': ('--epochs', 1, '--warmup-epochs', 1)}  # 25 without warm-up is too much for any network


def small_run(name: str, data, folder, *more) -> list:
    return ['train', '--preset', name, '--data-dir', data, *SMALL, *EPOCHS.get(name, ONE_EPOCH), '--amp-level', 'O0',
            '--output', folder, '--experiment', 'run', *more]


def check_run(folder, num_processes: int) -> None:
    with open(folder / 'run' / 'summary.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert rows and all(math.isfinite(float(r['train_loss'])) and 0 <= float(r['eval_top1']) <= 100 for r in rows)
    record = json.loads((folder / 'run' / 'run.json').read_text())
    assert record['settings']['world_size'] == num_processes and record['finished']


@pytest.mark.parametrize(
    'name', [n if n == 'torchvision_v2' else pytest.param(n, marks=pytest.mark.slow) for n in PRESETS])
def test_dry_run_on_eight_processes(few_digits, name):
    result = run_here('train', '--preset', name, '--data-dir', few_digits, '--device', 'cpu', '--nproc', 8, '--dry-run',
                      *WITHOUT_DOWNLOAD.get(name, ()))
    assert result.returncode == 0, result.stderr
    assert 'x 8 process(es)' in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scripts', SCRIPTS[:1] + SCRIPTS[2:])
@pytest.mark.parametrize('name', NEW)
def test_an_epoch_of_the_demo(few_digits, tmp_path, name, scripts):
    result = run_cli(*small_run(name, few_digits, tmp_path, '--device', 'cpu', '--nproc', 2, '--scripts', scripts))
    assert result.returncode == 0, result.stderr
    check_run(tmp_path, 2)


def test_a_batch_of_ones_own_is_told(few_digits, tmp_path):
    """The learning rate is the recipe's; the plan says so, unless that is given too."""
    flags = small_run('rsb_a2', few_digits, tmp_path, '--nproc', 2, '--device', 'cpu', '--dry-run', '-b', 16)
    told = "The batch is 32 images a step, the preset's learning rate is for 2,048"
    assert told in run_here(*flags).stderr and told not in run_here(*flags, '--lr', 1e-3).stderr


def test_processes_that_do_not_divide_the_batch(few_digits, tmp_path):
    flags = ('train', '--preset', 'torchvision_v2', '--data-dir', few_digits, '--device', 'cpu', '--dry-run')
    result = run_here(*flags, '--nproc', 3, '--val-split', '')
    assert '-b 32, not 170: the training split has 100 images' in result.stderr, result.stderr
    assert "1,020 images a step, not the preset's 1,024, which do not divide by 3 processes" in result.stderr


def test_one_process_has_no_repeated_augmentation(few_digits, tmp_path):
    flags = small_run('rsb_a1', few_digits, tmp_path, '--device', 'cpu', '--dry-run')
    result = run_here(*flags)
    assert result.returncode == 0 and 'One process shows an image once an epoch: rsb_a1' in result.stderr
    result = run_here(*flags, '--aug-repeats', 3)
    assert result.returncode == 2 and '--aug-repeats shows an image to several processes' in result.stderr
