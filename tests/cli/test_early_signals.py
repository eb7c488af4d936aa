"""A signal before the first step, or to a verb that saves nothing: one sentence, its exit code, and nothing left."""
import os
import signal
import subprocess
import sys
import time

import preloaded
import pytest
from conftest import train_flags
from ports import free_ports
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


# rank 0 makes its process group, a call of C++ in which Python handles no signal, and rank 1 does not come
IS_LATE = '''
import os, time
import torch.distributed as dist
original = dist.init_process_group

def init_process_group(*args, **kwargs):
    if os.environ['RANK'] == '1':
        time.sleep(1000)
    open(os.environ['FOLDER'] + '/waits', 'w').close()
    original(*args, **kwargs)
if 'RANK' in os.environ:
    dist.init_process_group = init_process_group
'''


def start(folder, *command, **environ):
    """Start a command line of the package, whose errors go to a file."""
    for name in ('code', 'tmp'):
        (folder / name).mkdir()
    (folder / 'code' / 'is_late.py').write_text(IS_LATE)
    with open(folder / 'stderr', 'w') as stderr:
        return subprocess.Popen(
            [preloaded.python(), '-m', *map(str, command)], stdout=subprocess.DEVNULL, stderr=stderr,
            env={**preloaded.environment(), 'TIMM_SCRIPTS': '', 'PYTHONPATH': str(folder / 'code'),
                 'FOLDER': str(folder), 'TMPDIR': str(folder / 'tmp'), **environ})


def ended(process, folder, signum, is_waiting):
    """The exit code after a signal that is sent when the process waits; the time until it has ended is bounded."""
    deadline = time.monotonic() + 200
    while not is_waiting():
        assert process.poll() is None and time.monotonic() < deadline, (folder / 'stderr').read_text()
        time.sleep(0.05)
    time.sleep(0.5)  # it is in the call
    sent = time.monotonic()
    process.send_signal(signum)
    code = process.wait(timeout=60)
    assert time.monotonic() - sent < 10, (folder / 'stderr').read_text()
    assert [n for n in os.listdir(folder / 'tmp') if n.startswith(('seresnet_timm', 'pymp'))] == []
    assert not (folder / 'out' / 'run').exists()
    return code


@pytest.mark.parametrize('signum', (signal.SIGTERM, *(
    pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGHUP, signal.SIGINT))))
def test_a_rank_of_the_users_torchrun_that_waits_in_a_call(few_digits, tmp_path, signum):
    process = start(
        tmp_path, 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'seresnet_timm',
        *train_flags(few_digits, tmp_path / 'out', '--scripts', 'bundled', '--device-modules', 'is_late'))
    ended(process, tmp_path, signum, (tmp_path / 'waits').exists)
    text = (tmp_path / 'stderr').read_text()
    assert text.count(f'Stopped by {signum.name}.') >= (signum != signal.SIGINT), text


@pytest.mark.parametrize('rank, signum', (
    (0, signal.SIGTERM), *(pytest.param(r, s, marks=pytest.mark.slow) for r, s in (
        (0, signal.SIGUSR1), (0, signal.SIGINT), (1, signal.SIGTERM), (1, signal.SIGINT), (1, signal.SIGUSR2)))))
def test_a_launcher_that_waits_for_another_machine(few_digits, tmp_path, rank, signum):
    flags = ('--nnodes', 2, '--nproc', 1, '--node-rank', rank, '--master-addr', '127.0.0.1', '--master-port',
             free_ports())
    process = start(tmp_path, 'seresnet_timm', *train_flags(few_digits, tmp_path / 'out', *flags))
    code = ended(process, tmp_path, signum, lambda: 'Waiting for node' in (tmp_path / 'stderr').read_text())
    assert code == 128 + signum
    assert (tmp_path / 'stderr').read_text().splitlines()[-1].endswith(f'Stopped by {signum.name}.')


DROPPED = """
import os, signal, sys, time
from seresnet_timm.engine import signals

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(0.1)

with signals.stop_early(), signals.stop_in_calls():
    Dropped()
    print(time.monotonic(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize('name', ('SIGTERM', pytest.param('SIGINT', marks=pytest.mark.slow)))
def test_an_exception_that_python_drops(name):
    """One that a handler raises in `__del__`, in a callback of a weak reference, or while garbage is collected."""
    done = subprocess.run([preloaded.python(), '-c', DROPPED, name], capture_output=True, text=True)
    assert done.returncode == 128 + getattr(signal, name) and f'Stopped by {name}.' in done.stderr
    assert time.monotonic() - float(done.stdout) < 10  # it went on
