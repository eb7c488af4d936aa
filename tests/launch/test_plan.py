"""The plan: RunSettings are made once, equal for all, and say what was decided and why."""
import json
import os
import shutil
from argparse import Namespace

import pytest
from conftest import run_cli, run_here, subset, train_flags
from terminal import run_in_terminal

from seresnet_timm.errors import UsageError
from seresnet_timm.launch.plan import make_plan, plan_prediction
from seresnet_timm.launch.sources import plain
from seresnet_timm.runs.settings import RunSettings

pytestmark = pytest.mark.preloaded


@pytest.fixture
def tree(few_digits, tmp_path):
    return subset(few_digits, tmp_path / 'data', 2, 2)


def plan(*argv, verb='train', recipe=None):
    return make_plan(verb, [str(a) for a in argv], recipe)


def flags(data, output, *more):
    return train_flags(data, output, *more)[1:]


def test_settings_survive_json(tree, tmp_path):
    """What ranks read is what the launcher decided."""
    settings = plan(*flags(tree, tmp_path, '--opt-kwargs', 'betas=(0.9, 0.99)', '--scale', 0.5, 1)).settings
    assert RunSettings.from_json(settings.to_json()) == settings
    assert settings.args['opt_kwargs'] == {'betas': [0.9, 0.99]} and settings.args['scale'] == [0.5, 1.0]
    assert settings.command[:2] == ['seresnet-timm', 'train'] and str(tree) in settings.command
    assert isinstance(settings.namespace(), Namespace)
    with pytest.raises(UsageError, match='not a plain value'):
        plain({1, 2})


def test_settings_cannot_be_changed(tree, tmp_path):
    settings = plan(*flags(tree, tmp_path)).settings
    with pytest.raises(AttributeError):
        settings.device = 'npu'
    settings.namespace().epochs = 99
    assert settings.args['epochs'] == 2


@pytest.mark.parametrize('verb, more, size', (
    ('train', ('--in-chans', 1), [1, 160, 160]),
    ('validate', ('--in-chans', 4, '--input-img-mode', 'RGBA'), [4, 160, 160]),
    ('train', ('--in-chans', 1, '--img-size', 32), None), ('train', ('--in-chans', 3), None), ('train', (), None)))
def test_channels_alone_are_those_of_the_input(tree, verb, more, size):
    """timm takes 3 with the size of the model's configuration, and ends in its first convolution."""
    argv = ('--data-dir', tree, '--model', 'test_resnet', '--device', 'cpu', *more)
    assert plan(*argv, verb=verb).settings.args['input_size'] == size


@pytest.mark.parametrize('more, count, reason', (
    ((), 10, ''),
    (('--preset', 'seresnet50_ascend'), 10, 'as many as the data has classes, where the recipe has 1000'),
))
def test_number_of_outputs_comes_from_the_data(tree, tmp_path, more, count, reason):
    typed = flags(tree, tmp_path, *more)
    at = typed.index('--num-classes')
    del typed[at:at + 2]
    settings = plan(*typed).settings
    assert settings.args['num_classes'] == count and reason in settings.reasons['num_classes']
    assert settings.class_names == [str(i) for i in range(10)] and settings.num_images == {'train': 20, 'val': 20}


def test_plan_has_lines_for_data_classes_and_weights(tree, tmp_path):
    result = run_here(*train_flags(tree, tmp_path / 'out', '--dry-run'))
    assert result.returncode == 0, result.stderr
    lines = {line[2:16].strip(): line[17:] for line in result.stderr.splitlines() if line.startswith('  ')}
    assert lines['data'] == f'{tree}: 20 training images and 20 validation images'
    assert lines['classes'] == '10 outputs (--num-classes); 10 classes in the data, 0 to 9'
    assert lines['weights'] == 'random, seed 42'
    assert 'seresnet_timm' in lines['package']


def test_class_folders_that_differ_in_case_only_are_refused(tree, tmp_path):
    """timm sorts them as equals, in the order of a set: labels would depend on the hash seed of each rank."""
    for split in ('train', 'val'):
        (tree / split / 'a').mkdir()
        (tree / split / 'A').mkdir()
        for name in 'aA':
            shutil.copy(next((tree / split / '0').iterdir()), tree / split / name)
    assert 'whose order is undefined' in plan(*flags(tree, tmp_path)).problems[0]


# --- a checkpoint that is evaluated -----------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def run(few_digits, tmp_path_factory):
    """A run with settings that differ from the defaults, of a network that its flags alone describe."""
    folder = tmp_path_factory.mktemp('run')
    result = run_here(*train_flags(
        few_digits, folder, '--epochs', 1, '--model-kwargs', 'channels=(8,16,24,32)', '--mean', 0.3, 0.3, 0.3,
        '--std', 0.2, 0.2, 0.2, '--interpolation', 'bilinear', '--crop-pct', 0.9))
    assert result.returncode == 0, result.stderr
    return folder / 'run'


def top1(result) -> float:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.partition('--result')[2])['top1']


def best(run) -> float:
    return json.loads((run / 'run.json').read_text())['best']['value']


def test_validate_takes_network_and_preprocessing_from_the_checkpoint(run, few_digits):
    result = run_here('validate', '--checkpoint', run / 'model_best.pth.tar', '--data-dir', few_digits,
                     '--workers', 0, '--device', 'cpu')
    assert top1(result) == pytest.approx(best(run), abs=1e-3)
    assert 'model, input_size, mean, std, interpolation, crop_pct, num_classes are those of the file' in result.stderr


def test_a_flag_overrides_the_checkpoint(run, few_digits):
    settings = plan('--checkpoint', run / 'last.pth.tar', '--data-dir', few_digits, '--img-size', 48, '--mean', 0.5,
                    0.5, 0.5, '--device', 'cpu', verb='validate').settings
    args = settings.args
    assert (args['img_size'], args['input_size'], args['mean']) == (48, None, [0.5, 0.5, 0.5])
    assert args['model'] == 'seresnet18_ascend' and args['std'] == [0.2, 0.2, 0.2] and args['crop_pct'] == 0.9
    assert settings.notes == ['From the command line or --config, not from the checkpoint: mean, input_size.']


def test_checkpoint_of_other_classes_is_told_apart(run, few_digits, tmp_path):
    data = subset(few_digits, tmp_path / 'renamed', 2, 2)
    for split in ('train', 'val'):
        (data / split / '3').rename(data / split / 'three')
    result = run_here('validate', '--checkpoint', run / 'last.pth.tar', '--data-dir', data, '--device', 'cpu')
    assert result.returncode == 2 and 'was trained with other classes' in result.stderr, result.stderr
    assert 'three' in result.stderr and '--class-map' in result.stderr
    result = run_here(*train_flags(data, tmp_path / 'out', '--resume', run / 'last.pth.tar', '--model-kwargs',
                                  'channels=(8,16,24,32)'))
    assert result.returncode == 2 and 'was trained with other classes' in result.stderr, result.stderr


# --- ranks that somebody else started ---------------------------------------------------------------------------------

def test_ranks_of_ones_own_torchrun_take_the_settings_of_local_rank_0(few_digits, tmp_path):
    """Only local rank 0 plans: a module that its plan imports is imported before the run by nobody else.

    `--device_list` limits every rank to the devices, not local rank 0 alone.
    """
    (tmp_path / 'who.py').write_text(
        'import os, traceback\n'
        'plans = any(f.name == "check" for f in traceback.extract_stack())\n'
        f'with open(f"{tmp_path}/import-{{plans}}-" + os.environ["RANK"], "w") as f:\n'
        '    f.write(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))\n')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '-b', 8, '--epochs', 1, '--device-modules', 'who',
                                  '--device_list', '4,5'),
                     torchrun=2, env={'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert {p.read_text() for p in tmp_path.glob('import-*')} == {'4,5'}
    assert sorted(p.name for p in tmp_path.glob('import-*')) == ['import-False-1', 'import-True-0']
    assert result.stderr.count('Plan: ') == 1
    record = json.loads((tmp_path / 'out' / 'run' / 'run.json').read_text())
    assert record['command'][:5] == ['torchrun', '--nproc-per-node=2', '-m', 'seresnet_timm', 'train']


@pytest.mark.slow
def test_refusal_ends_all_ranks_of_ones_own_torchrun(tmp_path):
    result = run_cli(*train_flags(tmp_path / 'nowhere', tmp_path / 'out'), torchrun=2, timeout=60)
    assert result.returncode != 0 and result.stderr.count('nowhere does not exist') == 1, result.stderr


@pytest.mark.slow
def test_dry_run_under_ones_own_torchrun(few_digits, tmp_path):
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--dry-run'), torchrun=2, timeout=60)
    assert result.returncode == 0 and result.stdout.count('Dry run: nothing was started.') == 1, result.stderr
    assert not (tmp_path / 'out').exists()


def test_a_crash_of_local_rank_0_ends_the_others(few_digits, tmp_path):
    (tmp_path / 'crash.py').write_text('raise ZeroDivisionError("in a module of the user")\n')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--device-modules', 'crash'),
                     torchrun=2, env={'PYTHONPATH': str(tmp_path)}, timeout=60)
    assert result.returncode != 0 and 'in a module of the user' in result.stderr


def test_nproc_of_another_number_than_the_ranks_that_were_started(tree, tmp_path, monkeypatch):
    for name, value in (('SLURM_STEP_NUM_TASKS', '8'), ('SLURM_NNODES', '1'), ('SLURM_PROCID', '0'),
                        ('SLURM_LOCALID', '0'), ('SLURM_JOB_NODELIST', 'localhost')):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match='SLURM started this process as one of 8 ranks, --nproc 2 on 1 node'):
        plan(*flags(tree, tmp_path, '--nproc', 2, '--nnodes', 1))
    assert plan(*flags(tree, tmp_path, '-b', 1, '--nproc', 8)).settings.world_size == 8


def test_settings_of_a_prediction(monkeypatch):
    """Everything that predict does is in its settings, which survive JSON like those of a run."""
    flags = dict(model='m.pth', image=['a.jpg'], device='cpu', batch_size=10, workers=None, topk=3, format='csv')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _pid: range(3))
    for images, workers in ((1, 0), (59, 2), (60, 3), (1000, 3)):
        settings = plan_prediction(flags, images)
        assert settings.args['workers'] == workers and settings.num_images == {'images': images}
    assert (settings.verb, settings.device, settings.precision) == ('predict', 'cpu', 'float32')
    assert settings.args['format'] == 'csv' and settings.args['model'] == 'm.pth'
    assert RunSettings.from_json(settings.to_json()) == settings
    assert plan_prediction(dict(flags, workers=7), 1).args['workers'] == 7
    with pytest.raises(UsageError, match='--device npu cannot be used here'):
        plan_prediction(dict(flags, device='npu'), 1)


@pytest.mark.slow
def test_plan_breaks_no_word_on_a_terminal(few_digits, tmp_path):
    """A plan in 120 columns has the words of the plan in a log file; lines after the first are indented."""
    argv = [*train_flags(few_digits, tmp_path), '--dry-run']
    shown = run_in_terminal(*argv, TERM='xterm').replace('\r\n', '\n')
    result = run_cli(*argv)
    logged = result.stderr + result.stdout
    assert shown.split() == logged.split()
    assert max(map(len, shown.splitlines())) < 120 < max(map(len, logged.splitlines()))
    assert all(line.startswith(('Plan: ', '  ', 'Dry run')) for line in shown.splitlines())


@pytest.mark.parametrize('env, nproc, says', [
    ({}, 1, '--max-restarts has no effect with one process, which has no launcher.'),
    ({'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
      'MASTER_PORT': '29517'}, None, '--max-restarts has no effect with processes that torchrun starts.'),
    ({}, 2, None),
])
def test_restarts_are_those_of_this_launcher(few_digits, tmp_path, monkeypatch, env, nproc, says):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    processes = [] if nproc is None else ['--nproc', nproc]
    plan = make_plan('train', list(map(str, train_flags(few_digits, tmp_path, '--max-restarts', 2, *processes)))[1:])
    assert plan.settings.max_restarts == (2 if says is None else 0)
    assert [note for note in plan.settings.notes if 'max-restarts' in note] == ([] if says is None else [says])
