"""The shell recipes, run as the README says, on the demo digits."""
import functools
import json
import platform
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_cli
from recipe_runs import SCRIPTS, final_lines, recipe, rows

from seresnet_timm.launch.modelzoo_report import write_log
from seresnet_timm.launch.recipes import runnable_recipes

pytestmark = pytest.mark.preloaded

RECIPES = runnable_recipes()
# the shell scripts are one line each, see test_scripts_are_thin_and_all_there
ONE_RECIPE = [r if r == 'train_8p' else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES]
COMMON = ('--device', 'cpu', '--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)',
          '--output', 'out', '--experiment', 'run')


@pytest.fixture(scope='module')
def trained(few_digits, tmp_path_factory):
    """Function: train_8p on two processes with these scripts, once."""
    @functools.lru_cache
    def run(scripts):
        cwd = tmp_path_factory.mktemp(Path(scripts).name)
        result = recipe('train_8p', f'--data_path={few_digits}', *COMMON, '--nproc', 2, '--train_epochs', 2,
                        '--scripts', scripts, cwd=cwd)
        assert result.returncode == 0, result.stderr
        return cwd / 'out' / 'run', result
    return run


@pytest.mark.xdist_group('trained')
@pytest.mark.parametrize('scripts', SCRIPTS)
def test_train_8p(trained, scripts):
    """Closing lines and log by the definitions of the ModelZoo; equal losses with every script."""
    folder, result = trained(scripts)
    lines, last = final_lines(result), rows(folder)[-1]
    epochs = json.loads((folder / 'run.json').read_text())['epochs']
    assert lines['Final Train Accuracy'] == pytest.approx(last['eval_top1'], abs=1e-3)
    assert lines['Final Performance images/sec'] == pytest.approx(epochs[-1]['fps'], abs=0.01)
    assert lines['E2E Training Duration sec'] > sum(e['train_seconds'] for e in epochs) - 1

    log = dict(line.split(' = ') for line in (folder / 'SE_Resnet50_bs64_2p_acc.log').read_text().splitlines())
    assert list(log) == ['Network', 'RankSize', 'BatchSize', 'DeviceType', 'CaseName', 'ActualFPS', 'TrainingTime',
                         'TrainAccuracy', 'ActualLoss', 'E2ETrainingTime']
    assert (log['Network'], log['RankSize'], log['BatchSize']) == ('SE_Resnet50', '2', '64')
    assert (log['DeviceType'], log['CaseName']) == (platform.machine(), 'SE_Resnet50_bs64_2p_acc')
    assert float(log['TrainingTime']) == pytest.approx(64_000 / float(log['ActualFPS']), abs=0.01)
    assert float(log['ActualLoss']) == pytest.approx(last['train_loss'], rel=1e-3)

    # warm-up epochs 0 and 1 of the ModelZoo's schedule, the learning rate scaled with the CPU's batch
    assert [r['lr'] for r in rows(folder)] == pytest.approx([0.6 * 64 / 1024 * (e + 1) / 6 for e in (0, 1)])
    for own, bundled in zip(rows(folder), rows(trained('bundled')[0])):
        assert own == pytest.approx(bundled, rel=1e-5)


@pytest.mark.xdist_group('trained')
@pytest.mark.parametrize('scripts', SCRIPTS)
def test_eval_8p(trained, few_digits, tmp_path, scripts):
    """Evaluates what train_8p saved to the same top-1."""
    folder, _ = trained(scripts)
    result = recipe('eval_8p', f'--data_path={few_digits}', *COMMON[:6], '--nproc', 3, '--scripts', scripts,
                    f'--resume={folder}/last.pth.tar', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = final_lines(result)
    assert lines['Final Train Accuracy'] == pytest.approx(rows(folder)[-1]['eval_top1'], abs=1e-3)
    assert lines['Final Performance images/sec'] > 0
    assert len(list((tmp_path / 'output' / 'validate').glob('*/SE_Resnet50_bs96_3p_acc.log'))) == 1


def test_an_evaluation_without_a_finite_loss_has_a_log(tmp_path):
    """run.json has null there: weights that overflow."""
    log = write_log(tmp_path, 2, 64, {'fps': 50., 'top1': 9.75, 'loss': None, 'seconds': 14.2})
    assert 'ActualLoss = -\n' in log.read_text() and 'TrainAccuracy = 9.750\n' in log.read_text()


@pytest.mark.parametrize('name, batch, processes, epochs', (
    ('train_1p', 32, 1, 1), pytest.param('train_performance_8p', 64, 2, 2, marks=pytest.mark.slow)))
def test_performance(few_digits, tmp_path, name, batch, processes, epochs):
    nproc = ('--nproc', processes) if processes > 1 else ()
    result = recipe(name, f'--data_path={few_digits}', *COMMON, *nproc, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    final_lines(result)
    assert len(rows(tmp_path / 'out' / 'run')) == epochs
    assert (tmp_path / 'out' / 'run' / f'SE_Resnet50_bs{batch}_{processes}p_acc.log').exists()


def test_flags_of_the_user_win(few_digits, tmp_path):
    result = recipe('train_1p', f'--data_path={few_digits}', *COMMON, '--batch_size=10', '--img-size', 48,
                    '--epochs', 2, '--lr', 0.03, '-j', 0, '--dry-run', cwd=tmp_path)
    assert 'batch          global batch size 10 = 10 x 1 process' in result.stderr, result.stderr
    assert 'learning rate  0.03' in result.stderr and 'over 2 epochs' in result.stderr
    assert 'workers        0 loader workers' in result.stderr and 'img_size 32' not in result.stderr


@pytest.mark.parametrize('name', ONE_RECIPE)
def test_data_path_is_required(tmp_path, name):
    result = recipe(name, cwd=tmp_path)
    assert result.returncode == 2
    assert f'--data_path is missing. Usage: bash recipes/{name}.sh --data_path=DIR' in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ONE_RECIPE)
def test_help(tmp_path, name):
    result = recipe(name, '--help', cwd=tmp_path)
    assert result.returncode == 0 and f'usage: bash recipes/{name}.sh' in result.stdout
    for flag in ('--data_path', '--batch_size', '--train_epochs', '--nnodes', '--master_addr', '--scripts', '--nproc'):
        assert flag in result.stdout


def test_python_without_the_packages(tmp_path):
    """A Python that has none of the dependencies: says what to do."""
    (tmp_path / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: no site-packages
    (tmp_path / 'python').chmod(0o755)
    result = recipe('train_8p', '--data_path=x', cwd=tmp_path, python=str(tmp_path / 'python'))
    assert result.returncode == 1 and 'is not installed for' in result.stderr and 'activate' in result.stderr
    assert 'Traceback' not in result.stderr


def test_scripts_are_thin_and_all_there(tmp_path):
    files = {p.stem: p for p in (ROOT / 'recipes').glob('*.sh')}
    assert set(files) == {'run', 'wheelhouse', *RECIPES}  # run.sh: what they share; wheelhouse.sh trains nothing
    for name in RECIPES:
        code = [line for line in files[name].read_text().splitlines() if line and not line.startswith('#')]
        assert len(code) == 1 and f' {name} ' in code[0], name
    result = run_cli('recipe')
    assert all(re.search(rf'\b{name}\b', result.stdout) for name in RECIPES)
    result = run_cli('recipe', 'train_8')
    assert result.returncode == 2 and 'did you mean train_8p?' in result.stderr
