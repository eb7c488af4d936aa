"""--patience, --early-stop, --tensorboard, --log-wandb, -q and -v before a run."""
import builtins
import importlib.util
import os
import sys
from importlib import metadata

import pytest
from conftest import run_here, train_flags

from seresnet_timm.launch import trackers


@pytest.mark.parametrize('flags, says', [
    (('--early-stop',), 'add --patience N'),
    (('--patience', 2), '--patience 2 is not less than the epochs of the run (2)'),
    (('--patience', 5, '--cooldown-epochs', 3), 'the epochs of the run (5)'),
    (('--patience', 1, '--val-split', ''), '--val-split is empty'),
    (('--patience', 0), '--patience 0 is too small: give at least 1'),
    (('--patience', -3), 'too small'),
    (('--patience', 1.5), '--patience'),
    (('--patience',), '--patience'),
    (('--patience', 'best'), '--patience'),
    (('-q', '-v'), 'not allowed with'),
    (('--quiet', '--verbose'), 'not allowed with'),
])
def test_flags_that_cannot_be(few_digits, tmp_path, flags, says):
    result = run_here(*train_flags(few_digits, tmp_path, *flags, '--dry-run'))
    assert result.returncode == 2 and says in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('flag', [('--patience', 2), ('--early-stop',), ('--tensorboard',)])
def test_flags_of_a_training(few_digits, flag):
    result = run_here('validate', '--data-dir', few_digits, '--model', 'resnet18', '--num-classes', 10, '--device',
                      'cpu', '--checkpoint', 'none.pth', *flag, '--dry-run')
    assert result.returncode == 2 and f'{flag[0]} is a flag of train: leave it out.' in result.stderr


def test_plan_tells_of_them(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda name: '2.16.2')
    flags = ('--patience', 1, '--early-stop', '--tensorboard', '--dry-run', '--sched', 'plateau', '--val-interval', 1)
    result = run_here(*train_flags(few_digits, tmp_path, *flags))
    assert result.returncode == 0, result.stderr
    assert 'patience       1 epoch without a new best top1, then the run ends' in result.stderr
    assert f'tensorboard --logdir {tmp_path / "run"}' in result.stderr and '--patience-epochs 10' in result.stderr


@pytest.mark.parametrize('version, says', [
    (None, "-m pip install 'tensorboard>=2.16,<3'"), ('2.9.1', 'tensorboard 2.16 or later, 2.9.1 is installed'),
    ('2.16.0', None), ('2.21.0a1', None),
])
def test_tensorboard_package(monkeypatch, version, says):
    def installed(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version
    monkeypatch.setattr(metadata, 'version', installed)
    problems = list(trackers._tensorboard())
    assert [says in problem for problem in problems] == ([True] if says else [])
    assert all(sys.executable in problem for problem in problems)


WANDB = '''
import os
class Settings:
    mode, base_url = os.environ.get('WANDB_MODE', 'online'), 'https://wandb.example'
class setup:
    settings = Settings
    def __init__(self): pass
class api:
    api_key = os.environ.get('WANDB_API_KEY')
def login(key=None): raise SystemExit('asks on the terminal')
'''


@pytest.mark.parametrize('env, flags, says', [
    ({}, {}, 'there is no key for https://wandb.example'),
    ({'WANDB_API_KEY': 'x' * 40}, {}, None),
    ({'WANDB_MODE': 'offline'}, {}, None),
    ({'WANDB_MODE': 'disabled'}, {}, None),
    ({'WANDB_MODE': 'offline'}, {'wandb_resume_id': 'abc'}, 'add --resume'),
    ({'WANDB_MODE': 'offline'}, {'wandb_resume_id': 'abc', 'resume': 'x'}, None),
])
def test_wandb_has_a_key(tmp_path, monkeypatch, env, flags, says):
    """An older wandb, whose `login` cannot look without asking."""
    (tmp_path / 'wandb.py').write_text(WANDB)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('WANDB_API_KEY', 'WANDB_MODE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    problems = list(trackers._wandb(flags))
    assert [says in problem for problem in problems] == ([True] if says else []), problems


def test_wandb_that_does_not_import(tmp_path, monkeypatch):
    (tmp_path / 'wandb.py').write_text('raise RuntimeError("protobuf does not fit")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    assert 'protobuf does not fit' in list(trackers._wandb({}))[0]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('wandb'), reason='wandb is not installed')
def test_real_wandb_without_a_key(few_digits, tmp_path, monkeypatch):
    """Found by --dry-run, without a prompt; the home folder has no key."""
    for name in [name for name in os.environ if name.startswith('WANDB')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(builtins, 'input', lambda *_: pytest.fail('it asks'))
    result = run_here(*train_flags(few_digits, tmp_path, '--log-wandb', '--dry-run'))
    assert result.returncode == 2 and 'there is no key for' in result.stderr
    monkeypatch.setenv('WANDB_MODE', 'offline')
    assert run_here(*train_flags(few_digits, tmp_path, '--log-wandb', '--dry-run')).returncode == 0
