"""Ranks that wait for one that has ended end soon, wherever they wait: torchrun's 30 s are not waited for"""
import signal
import subprocess
import time

import pytest
from conftest import run_cli, train_flags

from seresnet_timm.engine.signals import STOPPING
from seresnet_timm.launch import processes
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.step import heartbeat

pytestmark = pytest.mark.preloaded
STUCK = 'trap "" TERM USR1; touch $0/stuck$LOCAL_RANK; while :; do sleep 0.1; done'  # as in a wait of C++


@pytest.fixture
def ranks(tmp_path):
    """Starts ranks of torchrun's, given their shell commands, and waits for the files that they make."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    started = []
    handlers = {n: signal.getsignal(n) for n in (*STOPPING, signal.SIGQUIT)}

    def start(*commands, files=()):
        numbers = range(len(commands))
        context = start_processes(
            'ranks', '/bin/bash', args={i: ('-c', commands[i], str(tmp_path)) for i in numbers},
            envs={i: {'LOCAL_RANK': str(i)} for i in numbers}, logs_specs=DefaultLogsSpecs(str(tmp_path / 'logs')))
        started.append(context)
        while not all((tmp_path / name).exists() for name in files):
            time.sleep(0.02)
        return context
    yield start
    for context in started:
        context.close(signal.SIGKILL)
    for signum, handler in handlers.items():  # torchrun's stay set
        signal.signal(signum, handler)


@pytest.fixture
def ends_soon(tmp_path):
    """`ranks_end_soon` of a training in `tmp_path`; `steps` of its first rank."""
    def make(ended, steps=0):
        heartbeat.create(tmp_path / 'beats', 2)
        (tmp_path / 'beats').write_bytes(heartbeat.RECORD.pack(1, steps, 0., 0, 0.) * 2)
        settings = RunSettings(
            verb='train', script=Script('train.py'), args={}, nproc=2, world_size=2, output=str(tmp_path))
        return processes.ranks_end_soon(settings, tmp_path / 'beats', ended)
    return make


def test_a_process_with_the_number_of_a_rank_that_has_ended(ranks, ends_soon, tmp_path):
    """Ranks that torchrun has waited for: another process may have their numbers, here one that is given them."""
    other = subprocess.Popen(['sleep', '600'])
    ended = {}
    try:
        with ends_soon(ended):
            context = ranks('exit 1', 'touch $0/up; exec sleep 600', files=['up'])
            first = context.subprocess_handlers[0].proc
            first.wait(timeout=60)
            first.pid = other.pid
            context.close()
        assert other.poll() is None and ended == {context.pids()[1]: signal.SIGTERM}
    finally:
        other.kill()
        other.wait()


FAILS_AND_STAYS = """
import atexit, os, signal, time
from seresnet_timm.errors import RunError

class Fails:
    def __init__(self, *_, **__):
        raise RunError('The loss became NaN.')

import seresnet_timm.engine.train as train
train.main = Fails
folder = os.environ['FAILS']
if os.environ.get('RANK') == '1':  # it leaves its error first, and ends last
    atexit.register(lambda: (open(folder + '/left', 'w').close(), time.sleep(60)))
elif 'RANK' in os.environ:
    class Fails(Fails):
        def __init__(self, *args, **kwargs):
            while not os.path.exists(folder + '/left'):
                time.sleep(0.05)
            time.sleep(1.1)  # the times of torchrun's files are whole seconds
            super().__init__()
    train.main = Fails
"""


def test_a_rank_that_left_its_error_is_ended_while_it_ends(few_digits, tmp_path):
    (tmp_path / 'fails.py').write_text(FAILS_AND_STAYS)
    result = run_cli(
        *train_flags(few_digits, tmp_path / 'out', '--nproc', 2, '-b', 8, '--device-modules', 'fails'),
        env={'PYTHONPATH': str(tmp_path), 'FAILS': str(tmp_path)})
    assert result.returncode == 1 and result.stderr.count('The loss became') == 1, result.stderr
    assert 'Stopped by' not in result.stderr and 'Traceback' not in result.stderr


@pytest.mark.parametrize('first', ('kill -KILL $$', 'exit 1', 'exit 138'))
def test_a_rank_that_waits_for_one_that_has_ended(ranks, ends_soon, first):
    """138: SIGUSR1 to one rank while they start."""
    ended = {}
    with ends_soon(ended):
        context = ranks(f'until test -e $0/stuck1; do sleep 0.05; done; {first}', STUCK, files=['stuck1'])
        result = context.wait(timeout=60, period=0.1)
    # newer releases of torch than 2.6 list those that were ended too
    assert [rank for rank, failure in result.failures.items() if failure.pid not in ended] == [0]
    assert ended[context.pids()[1]] == signal.SIGKILL  # after TO_END, not torchrun's 30 s


def test_a_signal_while_the_ranks_start(ranks, ends_soon):
    ended = {}
    with ends_soon(ended):
        context = ranks('touch $0/up; exec sleep 600', STUCK, files=['up', 'stuck1'])
        context.close(signal.SIGUSR1)
    assert ended[context.pids()[1]] == signal.SIGKILL


def test_signals_while_ranks_run(ranks, ends_soon):
    """torchrun's agent handles all that stop a run, but not one that this process ignores, as after nohup."""
    def handlers():
        return {signum: signal.getsignal(signum) for signum in STOPPING}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = handlers()
    with ends_soon({}):
        context = ranks('exec sleep 600')
        while_they_run = handlers()
        context.close(signal.SIGKILL)
    assert [s for s in STOPPING if while_they_run[s] is signal.SIG_IGN] == [signal.SIGHUP]
    assert not [s for s in STOPPING if s != signal.SIGHUP and while_they_run[s] is before[s]]
    assert handlers() == before


def test_a_checkpoint_that_is_written_is_waited_for(ranks, ends_soon, tmp_path, monkeypatch):
    """Rank 1 does not end before its save, which begins before rank 0 dies and is longer than what others get."""
    monkeypatch.setattr(processes, 'TO_END', 0.)
    ended = {}
    (tmp_path / 'tmp.pth.tar').touch()
    saves = ('trap "" TERM; touch $0/saving; until test -e $0/told; do sleep 0.05; done; '
             'mv $0/tmp.pth.tar $0/last.pth.tar; exec sleep 600')
    with ends_soon(ended, steps=1):
        context = ranks('until test -e $0/saving; do sleep 0.05; done; exit 1', saves, files=['saving'])
        send = processes.send

        def tell(*args):
            send(*args)
            (tmp_path / 'told').touch()
        monkeypatch.setattr(processes, 'send', tell)
        context.wait(timeout=60, period=0.1)
    assert (tmp_path / 'last.pth.tar').exists() and ended[context.pids()[1]] == signal.SIGKILL


KILLS_ITSELF = """
import os, signal, time
from seresnet_timm.engine.agreement import Agreement

def vote(self):
    if self.rank == 1:
        while self._store.add('vote/1/count', 0) == 0:
            time.sleep(0.05)
        open(os.environ['KILLED'], 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
    original(self)
original, Agreement.vote = Agreement.vote, vote
"""


@pytest.mark.slow
def test_a_rank_dies_while_the_other_waits_for_it_at_the_end_of_an_epoch(few_digits, tmp_path):
    (tmp_path / 'kills.py').write_text(KILLS_ITSELF)
    result = run_cli(
        *train_flags(few_digits, tmp_path / 'out', '--nproc', 2, '-b', 8, '--device-modules', 'kills'),
        env={'PYTHONPATH': str(tmp_path), 'KILLED': str(tmp_path / 'killed')})
    assert time.time() - (tmp_path / 'killed').stat().st_mtime < 25  # torchrun's 30 s are not waited for
    assert result.returncode == 1 and 'Rank 1 was killed by SIGKILL (out of memory?' in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr
