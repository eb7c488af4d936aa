"""A signal before the first step, or to a verb that saves nothing: one sentence, its exit code, and nothing left."""
import os
import signal
import subprocess
import sys

import pytest
from conftest import train_flags
from timm_scripts import SMALL

from seresnet_timm import cli
from seresnet_timm.engine import signals

pytestmark = pytest.mark.preloaded


def test_handlers_are_of_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as e, signals.stop_early():
        child = os.fork()
        if not child:  # a loader worker is ended by SIGTERM as before
            os._exit(int(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL))
        assert os.waitpid(child, 0)[1] == 0
        os.kill(os.getpid(), signal.SIGTERM)
    assert e.value.code == 143 and str(e.value) == 'Stopped by SIGTERM.'
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize('where, name', (
    *(('train', name) for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')),
    *((where, 'SIGTERM') for where in ('script', 'validate', 'predict', 'check-data', 'prepare'))))
def test_stopped_early(few_digits, tmp_path, capsys, monkeypatch, name, where):
    """The signal comes before the network is made, or where the data are listed."""
    signum = getattr(signal, name)

    def kill(*_, **__):
        os.kill(os.getpid(), signum)
        raise AssertionError('not stopped')
    monkeypatch.setattr({
        'validate': 'seresnet_timm.models.seresnet.SEResNet.__init__',
        'predict': 'seresnet_timm.inference.predict.find_images',
    }.get(where, 'os.scandir' if where in ('check-data', 'prepare') else 'timm.utils.random_seed'), kill)
    argv = {
        'train': train_flags(few_digits, tmp_path, '--scripts', 'bundled'),
        'script': train_flags(few_digits, tmp_path, '--scripts', SMALL),
        'validate': ['validate', '--data-dir', few_digits, '--model', 'seresnet18_ascend', '--num-classes', 10],
        'predict': ['predict', 'seresnet18_ascend', few_digits],
        'check-data': ['check-data', few_digits],
        'prepare': ['prepare', few_digits, tmp_path / 'small'],
    }[where]
    with pytest.raises(SystemExit) as e:
        cli.main([*map(str, argv)])
    monkeypatch.undo()
    assert e.value.code == 128 + signum
    assert capsys.readouterr().err.splitlines()[-1] == f'Stopped by {name}.'
    assert os.listdir(tmp_path) == []


STOPS = '''
import os, signal, time
if os.environ.get('RANK') == '0':
    os.kill({target}, signal.SIGTERM)
if 'RANK' in os.environ:
    time.sleep(100)
'''


@pytest.mark.slow
@pytest.mark.parametrize('target', ('os.getppid()', 'os.getpid()'), ids=('launcher', 'rank'))
def test_ranks_that_start(few_digits, tmp_path, target):
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code' / 'stops_ranks.py').write_text(STOPS.format(target=target))
    out = tmp_path / 'out'
    flags = train_flags(few_digits, out, '--nproc', 2, '--device-modules', 'stops_ranks')
    result = subprocess.run(
        [sys.executable, '-m', 'seresnet_timm', *map(str, flags)], capture_output=True, text=True, timeout=240,
        env={**os.environ, 'TIMM_SCRIPTS': '', 'PYTHONPATH': str(tmp_path / 'code')})
    assert result.returncode == 143, result.stderr
    assert result.stderr.splitlines()[-1] == 'Stopped by SIGTERM: all processes of this node have ended.'
    assert 'Traceback' not in result.stderr and 'death signal' not in result.stderr
    assert not (out / 'run').exists()
