"""Every recipe plans 8 processes, and trains an epoch of the demo digits with each script."""
import pytest
from conftest import run_cli, run_here
from recipe_runs import NEW_PRESETS, PRESETS, SCRIPTS, check_preset_run, preset_run, write_teacher

pytestmark = pytest.mark.preloaded

WITHOUT_DOWNLOAD = {'finetune': ('--model', 'seresnet50')}


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
    """Function: flags that name a small teacher, for the recipe that has one."""
    flags = write_teacher(tmp_path_factory.mktemp('teacher'))
    return lambda name: flags if name == 'distill' else ()


@pytest.mark.parametrize(
    'name', [n if n == 'torchvision_v2' else pytest.param(n, marks=pytest.mark.slow) for n in PRESETS])
def test_dry_run_on_eight_processes(few_digits, taught, name):
    result = run_here('train', '--preset', name, '--data-dir', few_digits, '--device', 'cpu', '--nproc', 8, '--dry-run',
                      *WITHOUT_DOWNLOAD.get(name, ()), *taught(name))
    assert result.returncode == 0, result.stderr
    assert 'x 8 processes' in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scripts', SCRIPTS[:1] + SCRIPTS[2:])
@pytest.mark.parametrize('name', NEW_PRESETS)
def test_an_epoch_of_the_demo(few_digits, tmp_path, taught, name, scripts):
    if name == 'progressive' and scripts != 'bundled':
        pytest.skip("timm's newest release has no --train-img-sizes")
    result = run_cli(*preset_run(
        name, few_digits, tmp_path, '--device', 'cpu', '--nproc', 2, '--scripts', scripts, *taught(name)))
    assert result.returncode == 0, result.stderr
    check_preset_run(tmp_path, 2)


def test_a_batch_of_ones_own_is_told(few_digits, tmp_path):
    """The learning rate is the recipe's; the plan says so, unless that is given too."""
    flags = preset_run('rsb_a2', few_digits, tmp_path, '--nproc', 2, '--device', 'cpu', '--dry-run', '-b', 16)
    told = "The batch is 32 images per step, the preset's learning rate is for 2,048"
    assert told in run_here(*flags).stderr and told not in run_here(*flags, '--lr', 1e-3).stderr


def test_processes_that_do_not_divide_the_batch(few_digits, tmp_path):
    flags = ('train', '--preset', 'torchvision_v2', '--data-dir', few_digits, '--device', 'cpu', '--dry-run')
    result = run_here(*flags, '--nproc', 3, '--val-split', '')
    assert '-b 32, not 170: the training split has 100 images' in result.stderr, result.stderr
    assert "1,020 images per step, not the preset's 1,024, which do not divide by 3 processes" in result.stderr


def test_one_process_has_no_repeated_augmentation(few_digits, tmp_path):
    flags = preset_run('rsb_a1', few_digits, tmp_path, '--device', 'cpu', '--dry-run')
    result = run_here(*flags)
    assert result.returncode == 0 and 'One process shows an image once an epoch: rsb_a1' in result.stderr
    result = run_here(*flags, '--aug-repeats', 3)
    assert result.returncode == 2 and '--aug-repeats shows an image to several processes' in result.stderr
