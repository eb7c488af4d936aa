"""Ranks that no longer get on, and restarts from the last checkpoint: real processes, real signals."""
import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import preloaded
import pytest
from conftest import WIDE, run_cli, run_here, train_flags
from ports import free_ports
from test_launch import assert_none_left, ranks_of, start_cli, wait_for
from training import load, train

from seresnet_timm.launch import processes
from seresnet_timm.launch.watch import Watch
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.step import heartbeat

pytestmark = pytest.mark.preloaded
HANG = '''
import ctypes, os, time
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = 0

def wait_for_ever_at_step(*_):
    global steps
    steps += 1
    if steps == 3 and os.environ.get('RANK', '0') == os.environ['HANGING_RANK']:
        if 'KEEPS_LOCK' in os.environ:
            time.sleep(1.5)  # a step is seen, and other ranks wait in the next one
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):  # the second call waits for the first one, and keeps Python's lock
                ctypes.PyDLL(None).pthread_mutex_lock(mutex)
        time.sleep(1000)

register_optimizer_step_post_hook(wait_for_ever_at_step)
'''


@pytest.fixture
def hanging(tmp_path):
    """Environment in which `--device-modules hang` lets a rank wait for ever in its third step."""
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'hang.py').write_text(HANG)
    return {'PYTHONPATH': str(tmp_path / 'modules'), 'HANGING_RANK': '0'}


def settings_of(folder: Path) -> dict:
    return json.loads((folder / 'run.json').read_text())['settings']


def rank_processes(marker: str) -> list:
    """Processes of the ranks, in the order of the ranks."""
    ranks = []
    for pid in ranks_of(marker):
        words = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
        environ = dict(e.split(b'=', 1) for e in Path(f'/proc/{pid}/environ').read_bytes().split(b'\0') if b'=' in e)
        if b'seresnet_timm.launch.rank' in words:
            ranks.append((int(environ[b'RANK']), pid))
    return [pid for _, pid in sorted(ranks)]


def test_steps_are_counted_by_process(tmp_path):
    heartbeat.create(tmp_path / 'beats', 3)
    program = ('import sys, torch; from pathlib import Path; from seresnet_timm.step import heartbeat\n'
               'heartbeat.beat()  # of nobody\n'
               'heartbeat.start(Path(sys.argv[1]), 1)\n'
               'optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)\n'
               'for _ in range(4): optimizer.step()\n'
               'heartbeat.beat()\n'
               'import os; print(os.getpid())')
    result = subprocess.run([preloaded.python(), '-c', program, tmp_path / 'beats'], capture_output=True, text=True)
    first, second, third = heartbeat.read(tmp_path / 'beats')
    assert (second.pid, second.steps) == (int(result.stdout), 5), result.stderr
    assert (first.pid, third.pid) == (0, 0)


@pytest.mark.parametrize('steps, places, stopped, keeps_lock, expected', (
    ((7, 6, 7), (8, 8, 8), None, None, [1]),  # the others wait for the one that is behind
    ((7, 7, 7), (9, 8, 9), None, None, [1]),  # in the backward pass; that one has no batch, or is in the forward pass
    ((7, 7, 7), (8, 8, 8), 2, None, [2]),  # all wait in the same step for the one that was stopped
    ((7, 7, 7), (8, 8, 8), None, 2, [2]),  # ... for the one in which no Python runs
    ((7, 6, 7), (8, 8, 8), None, 2, [2]),  # which another one, that is farther behind, waits for too
    ((7, 7, 7), (8, 8, 8), None, None, [0, 1, 2]),
    ((0, 7, 7), (8, 8, 8), None, None, [1, 2]),  # a first step may take three times as long
))
def test_the_rank_that_holds_up_the_others_is_named(tmp_path, steps, places, stopped, keeps_lock, expected):
    ranks = [subprocess.Popen(['sleep', '100']) for _ in steps]
    try:
        if stopped is not None:
            ranks[stopped].send_signal(signal.SIGSTOP)
        now = time.monotonic()
        records = [heartbeat.RECORD.pack(r.pid, s, 0., p, now - 100 * (i == keeps_lock))
                   for i, (r, s, p) in enumerate(zip(ranks, steps, places))]
        (tmp_path / 'beats').write_bytes(b''.join(records))
        ended = []
        with Watch(tmp_path / 'beats', 0.5, lambda beats, guilty: ended.append(guilty), first_rank=8) as watch:
            deadline = time.time() + 60
            while not ended and time.time() < deadline:
                time.sleep(0.05)
        assert ended == [expected]
        assert watch.sentence.startswith('Rank 9 has not' if expected == [1] else 'Rank')
        assert ('stopped by a signal' in watch.sentence) == (stopped is not None)
        assert ("keeps Python's lock (GIL)" in watch.sentence) == (keeps_lock is not None)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_a_rank_that_waits_for_its_data_is_told_once(tmp_path, capsys):
    """The first rank of a node prints itself; what the others print is in their logs."""
    watch = Watch(tmp_path / 'beats', 600, lambda *_: None, first_rank=8)

    def at(now, *waited):
        watch._tell_waiting([heartbeat.Heartbeat(1, 5, t) for t in waited], now)
        return capsys.readouterr().err
    assert at(100, 0, 0, 0) == ''
    assert at(101, 100, 0, 100) == 'Rank 10 waits for the data folder: its log says more.\n'
    assert at(105, 104, 0, 104) == ''
    assert at(109, 108, 108, 104) == 'Rank 9 waits for the data folder: its log says more.\n'
    assert at(115, 108, 114, 104) == 'Rank 10 has its data again.\n'
    assert at(130, 108, 114, 104) == 'Rank 9 has its data again.\n'


def test_a_suspended_job_does_not_hang(tmp_path, monkeypatch):
    """Such as by `scontrol suspend`: the launcher does not run either, and looks again when all go on."""
    heartbeat.create(tmp_path / 'beats', 1)
    (tmp_path / 'beats').write_bytes(heartbeat.RECORD.pack(os.getpid(), 1, 0., 0, 0.))
    clock, ended = [0.], []
    watch = Watch(tmp_path / 'beats', 100., lambda beats, guilty: ended.append(clock[0]))
    steps = iter([1.] * 50 + [3600.] + [1.] * 49 + [1.] * 10)  # 99 s in which it ran, then more

    def wait(pause):
        clock[0] += next(steps)
        return False
    monkeypatch.setattr('seresnet_timm.launch.watch.time.monotonic', lambda: clock[0])
    monkeypatch.setattr(watch._left, 'wait', wait)
    watch._run()
    assert ended and 3600. + 100 < ended[0] <= 3600. + 103


def test_ranks_that_get_on_are_left_alone(tmp_path, monkeypatch):
    """Each step takes nine tenths of the limit."""
    heartbeat.create(tmp_path / 'beats', 1)
    clock, ended = [0.], []
    watch = Watch(tmp_path / 'beats', 100., lambda *found: ended.append(found))

    def wait(pause):
        clock[0] += pause
        (tmp_path / 'beats').write_bytes(heartbeat.RECORD.pack(os.getpid(), 1 + int(clock[0] / 90), 0., 0, 0.))
        return clock[0] > 1000
    monkeypatch.setattr('seresnet_timm.launch.watch.time.monotonic', lambda: clock[0])
    monkeypatch.setattr(watch._left, 'wait', wait)
    watch._run()
    assert not ended and watch.sentence is None


def test_one_process_that_hangs(few_digits, tmp_path, hanging):
    """It ends itself, says so and how to go on, and its stacks name the line that waits."""
    start = time.time()
    result = run_cli(*train_flags(few_digits, tmp_path, '--hang-timeout', 5, '--device-modules', 'hang'), env=hanging)
    assert result.returncode == 1 and time.time() - start < 120
    assert 'error: Rank 0 has not finished a step for 5 s; the stacks are in ' in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr
    stacks, = (tmp_path / 'run' / 'logs').glob('stacks-*.txt')
    assert 'in wait_for_ever_at_step' in stacks.read_text()


@pytest.mark.parametrize('nproc', (1, pytest.param(2, marks=pytest.mark.slow)))
def test_a_call_that_keeps_pythons_lock(few_digits, tmp_path, hanging, nproc):
    """No thread of the process runs Python any more, nor does a handler of signals: another process ends it."""
    start = time.time()
    result = run_cli(*train_flags(
        few_digits, tmp_path, '--nproc', nproc, '-b', 8, '--hang-timeout', 5, '--device-modules', 'hang',
        '--log-interval', 50), env={**hanging, 'KEEPS_LOCK': '1', 'TMPDIR': str(tmp_path)}, fresh=nproc > 1)
    assert result.returncode == (-signal.SIGKILL if nproc == 1 else 1) and time.time() - start < 120
    assert 'error: Rank 0 has not finished a step for 5 s' in result.stderr, result.stderr
    assert "a call of C or C++ keeps Python's lock (GIL); the stacks " in result.stderr
    stacks = tmp_path / 'run' / 'logs' if nproc == 1 else tmp_path / 'run' / 'logs' / 'node0' / 'stacks'
    assert 'in wait_for_ever_at_step' in ''.join(file.read_text() for file in stacks.iterdir())
    assert not list(tmp_path.glob('seresnet_timm-*')) and 'Traceback' not in result.stderr


@pytest.mark.slow
def test_signals_while_a_call_keeps_pythons_lock(few_digits, tmp_path, hanging):
    """The first one cannot be heard; the second one ends the process. As by Ctrl-C, to all processes of a terminal."""
    process = start_cli(*train_flags(few_digits, tmp_path, '--device-modules', 'hang', '--epochs', 50),
                        env={**hanging, 'KEEPS_LOCK': '1'})
    wait_for(tmp_path / 'run' / 'status.json', process)
    time.sleep(8)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.5)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL and 'Stopped at once by a second signal' in stderr


def test_what_a_rank_says_itself_is_not_tried_again(few_digits, tmp_path):
    """A rank that refuses its settings would do so again; nor does a failure before the first step restart."""
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'broken.py').write_text('raise ZeroDivisionError("in a module")')
    result = run_cli(*train_flags(
        few_digits, tmp_path, '--nproc', 2, '--max-restarts', 3, '--device-modules', 'broken'),
        env={'PYTHONPATH': str(tmp_path / 'modules')})
    assert result.returncode != 0 and 'Restart' not in result.stderr and 'ZeroDivisionError' in result.stderr


@pytest.mark.parametrize('flags', (('--max-restarts', -1), ('--hang-timeout', 'nan'), ('--hang-timeout', -2)))
def test_values_out_of_range(few_digits, tmp_path, flags):
    result = run_here(*train_flags(few_digits, tmp_path, *flags, '--dry-run'))
    assert result.returncode == 2 and flags[0] in result.stderr


@pytest.mark.slow
def test_a_stopped_rank_is_noticed_and_the_run_goes_on(few_digits, tmp_path):
    """Same numbers as a run that was never disturbed; run.json and the terminal say what happened."""
    flags = ('--nproc', 2, '-b', 8, '--epochs', 5, '--drop', 0.2, *WIDE)
    process = start_cli(*train_flags(
        few_digits, tmp_path / 'a', *flags, '--hang-timeout', 10, '--max-restarts', 1))
    folder = tmp_path / 'a' / 'run'
    wait_for(folder / 'last.pth.tar', process)
    os.kill(rank_processes(str(tmp_path))[1], signal.SIGSTOP)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert 'Rank 1 has not finished a step for 10 s (stopped by a signal)' in stderr
    assert f'Restart 1 of 1, from {folder}/last.pth.tar' in stderr and 'Traceback' not in stderr
    assert [line.split(' ', 1)[1][:40] for line in settings_of(folder)['restarts']] == [
        'Rank 1 has not finished a step for 10 s ']
    stacks = folder / 'logs' / 'node0' / 'stacks' / 'rank0.txt'
    assert 'train_one_epoch' in stacks.read_text()

    train(*train_flags(few_digits, tmp_path / 'b', *flags))
    assert (folder / 'summary.csv').read_text() == (tmp_path / 'b' / 'run' / 'summary.csv').read_text()
    assert_none_left(str(tmp_path))


@pytest.mark.slow
def test_a_killed_rank_and_none_left_to_restart(few_digits, tmp_path):
    """The first kill restarts, the second one ends the run: --max-restarts 1."""
    process = start_cli(*train_flags(
        few_digits, tmp_path, '--nproc', 2, '-b', 8, '--epochs', 500, '--checkpoint-hist', 1, '--max-restarts', 1))
    last = tmp_path / 'run' / 'last.pth.tar'
    wait_for(last, process)
    for kill in range(2):
        before = last.stat().st_mtime_ns
        while last.stat().st_mtime_ns == before:  # it makes steps
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(rank_processes(str(tmp_path))[kill], signal.SIGKILL)
        time.sleep(2)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and stderr.count('Restart 1 of 1') == 1
    assert 'error: Rank 1 was killed by SIGKILL' in stderr and f'--resume {last}' in stderr, stderr
    assert load(last)['epoch'] >= 1
    assert_none_left(str(tmp_path))


@pytest.mark.slow
def test_two_machines_restart(few_digits, tmp_path):
    """A rank of node 1 is killed: both nodes start again, from the checkpoint of node 0 that both see."""
    port, flags = free_ports(), (
        '--nnodes', 2, '--nproc', 1, '--master-addr', '127.0.0.1', '--max-restarts', 1, '-b', 8, '--epochs', 6, *WIDE)
    nodes = [start_cli(*train_flags(few_digits, tmp_path, *flags, '--master-port', port, '--node-rank', rank))
             for rank in range(2)]
    folder = tmp_path / 'run'
    wait_for(folder / 'last.pth.tar', nodes[0])
    os.kill(rank_processes(str(tmp_path))[1], signal.SIGKILL)
    outputs = [n.communicate(timeout=180)[1] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], outputs
    assert all('Restart 1 of 1' in o for o in outputs), outputs
    with open(folder / 'summary.csv', newline='') as f:
        assert [r['epoch'] for r in csv.DictReader(f)] == list('012345')
    assert_none_left(str(tmp_path))


def test_several_nodes_need_a_common_name(few_digits, tmp_path):
    result = run_here(
        'train', '--data-dir', few_digits, '--model', 'seresnet18_ascend', '--num-classes', 10, '--device', 'cpu',
        '--nnodes', 2, '--nproc', 1, '--master-addr', '127.0.0.1', '--max-restarts', 1, '--output', tmp_path,
        '--dry-run')
    assert result.returncode == 2 and '--experiment' in result.stderr


def test_a_node_that_does_not_see_the_folder(tmp_path):
    settings = RunSettings('train', Script('train.py'), {'resume': ''}, output=str(tmp_path / 'run'))
    from seresnet_timm.launch.plan import Node
    with pytest.raises(Exception, match='Node 1 does not see .*run.json'):
        processes.restarted(settings, Node(rank=1), 'Rank 1 was killed.')
    assert processes.restarted(settings, Node(rank=0), 'Rank 1 was killed.').args == {'resume': ''}
