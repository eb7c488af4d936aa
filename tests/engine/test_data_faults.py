"""Trainings whose data folder is moved away and back, or whose loader workers are killed: the weights are the same."""
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest
import torch
from conftest import run_cli, subset, train_flags
from recipe_runs import SMALL as SMALL_SCRIPTS
from test_resume_within_epoch import run as run_stopped
from timm_scripts import TIMM_SCRIPTS
from training import assert_same, bundled_settings, load, valid_record

from seresnet_timm.cli.main import main
from seresnet_timm.engine import train as engine
from seresnet_timm.engine.meters import Throughput

pytestmark = [pytest.mark.preloaded, pytest.mark.usefixtures('dead_workers_are_told')]
FLAGS = ('--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4', '--checkpoint-hist', 1, '-b', 4, '--reprob', 0.5,
         '--drop', 0.2)
WAYS = {
    'fast': ('auto', ('--workers', 2, '--aa', 'rand-m5-mstd0.5')),
    "timm's": ('off', ('--workers', 2, '--mixup', 0.2)),
    'no workers': ('auto', ('--workers', 0)),
    'threads': ('auto', ('--workers', 2, '--color-jitter', 0, '--reprob', 0)),
    'accumulation': ('off', ('--workers', 0, '--grad-accum-steps', 3, '--model-ema')),  # an update that has begun
}


@pytest.fixture(scope='module')
def data(digits, tmp_path_factory):
    return subset(digits, tmp_path_factory.mktemp('moving') / 'digits', 4, 2)


def train(monkeypatch, data, output, way, at=None, do=None):
    """Train two epochs of ten updates; something happens at an update. The weights, and run.json."""
    fast_jpeg, flags = WAYS[way]
    steps = []

    def step(self, num_images):
        steps.append(1)
        if len(steps) == at:
            do()
        original(self, num_images)
    original = Throughput.step
    monkeypatch.setattr(Throughput, 'step', step)
    engine.main(bundled_settings(*train_flags(data, output, *FLAGS, *flags), fast_jpeg=fast_jpeg))
    monkeypatch.setattr(Throughput, 'step', original)
    return load(output / 'run' / 'last.pth.tar')['state_dict'], valid_record(output / 'run')


def assert_equal(a, b):
    assert all(torch.equal(a[k], b[k]) for k in a)


def kill_a_worker(others):
    """The first one is one of the training's: those of the evaluation start later, `others` are of earlier tests."""
    worker = psutil.Process(min(p.pid for p in multiprocessing.active_children() if p.pid not in others))
    worker.send_signal(signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        while worker.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


@pytest.mark.parametrize('way', ('fast', pytest.param("timm's", marks=pytest.mark.slow)))
def test_killed_worker(data, tmp_path, monkeypatch, way):
    plain, record = train(monkeypatch, data, tmp_path / 'a', way)
    assert record['faults'] == []
    others = {p.pid for p in multiprocessing.active_children()}
    weights, record = train(monkeypatch, data, tmp_path / 'b', way, 3, lambda: kill_a_worker(others))
    assert_equal(plain, weights)
    assert [(f['kind'], f['epoch']) for f in record['faults']] == [('worker', 0)]
    assert 'was ended by SIGKILL' in record['faults'][0]['text']


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_moved_folder(data, tmp_path, monkeypatch, way):
    def move_away():
        os.rename(data, data.with_name('away'))
        threading.Timer(2, lambda: os.rename(data.with_name('away'), data)).start()
    plain, _ = train(monkeypatch, data, tmp_path / 'a', way)
    weights, record = train(monkeypatch, data, tmp_path / 'b', way, 2, move_away)
    assert_equal(plain, weights)
    assert [f['kind'] for f in record['faults']] == ['data_wait'] and 'came back' not in record['faults'][0]['text']
    assert all(e['unreadable_train']['count'] == 0 == e['unreadable_val']['count'] for e in record['epochs'])


@pytest.mark.parametrize('way', (
    'fast', 'accumulation',
    *(pytest.param(way, marks=pytest.mark.slow) for way in ('no workers', "timm's", 'threads'))))
def test_signal_while_the_folder_is_gone(data, tmp_path, monkeypatch, way):
    """The run does not wait for its data: it is saved where it is, and goes on there."""
    sent = []

    def move_away():
        os.rename(data, data.with_name('away'))
        threading.Timer(1, stop).start()

    def stop():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)
    plain, _ = train(monkeypatch, data, tmp_path / 'a', way)
    try:
        with pytest.raises(SystemExit) as e:
            train(monkeypatch, data, tmp_path / 'b', way, 2, move_away)
    finally:
        os.rename(data.with_name('away'), data)
    assert e.value.code == 143 and time.monotonic() - sent[0] < 30  # 10 on a machine that does nothing else
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    assert 2 <= load(last)['run_state']['batches'] < 10
    fast_jpeg, flags = WAYS[way]
    more = (*flags, '--resume', last)
    engine.main(bundled_settings(*train_flags(data, tmp_path / 'b', *FLAGS, *more), fast_jpeg=fast_jpeg))
    assert_equal(plain, load(last)['state_dict'])


def mover(folder, data, away, then=''):
    """Folder with the module `mover` for --device-modules: rank 0 moves the data away at the second step."""
    folder.mkdir()
    (folder / 'mover.py').write_text(f'''
import os, signal, threading
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = []

def move(*_):
    steps.append(1)
    if len(steps) == 2:
        if os.environ.get('RANK', '0') == '0':
            os.rename({str(data)!r}, {str(away)!r})
        {then}
register_optimizer_step_post_hook(move)
''')
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize('more', (('--nproc', 2), ('--scripts', SMALL_SCRIPTS)), ids=('2 ranks', "timm's"))
def test_signal_while_the_folder_is_gone_in_a_command_line(digits, tmp_path, more):
    data = subset(digits, tmp_path / 'digits', 10, 2)
    stop = 'threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()'
    modules = mover(tmp_path / 'modules', data, tmp_path / 'away', then=stop)
    flags = (*FLAGS[:7], '-b', 2, '-j', 1, *more)
    start = time.monotonic()
    result = run_cli(*train_flags(data, tmp_path / 'out', *flags, '--device-modules', 'mover'),
                     env={'PYTHONPATH': modules})
    assert result.returncode in (143, 1), result.stderr  # torchrun reports a rank's signal as an error
    assert 'Stopped by SIGTERM; everything is saved.' in result.stderr and time.monotonic() - start < 200
    os.rename(tmp_path / 'away', data)
    batches = load(tmp_path / 'out' / 'run' / 'last.pth.tar')['run_state']['batches']
    assert batches >= 2
    result = run_cli(*train_flags(data, tmp_path / 'out', *flags, '--resume', 'auto'))
    assert result.returncode == 0, result.stderr
    plain = run_cli(*train_flags(data, tmp_path / 'plain', *flags))
    assert plain.returncode == 0, plain.stderr
    assert_equal(*(load(tmp_path / run / 'run' / 'last.pth.tar')['state_dict'] for run in ('out', 'plain')))


PLACES = {  # which split loses a class, which process gets the signal, flags
    'training, launcher': ('train', 'launcher', ()),
    'accumulation, rank 1': ('train', 1, ('--fast-jpeg', 'off', '--grad-accum-steps', 2, '--model-ema')),
    'evaluation, launcher': ('val', 'launcher', ()),
    "training, timm's script": ('train', 'launcher', ('--scripts', TIMM_SCRIPTS)),
}


@pytest.mark.slow
@pytest.mark.parametrize('place', PLACES)
def test_signal_while_one_of_two_ranks_has_no_data(digits, tmp_path, place):
    """The other one waits for it in a collective. All end in time, saved after their last common step."""
    split, whom, more = PLACES[place]
    if None in more:
        pytest.skip('TIMM_SCRIPTS does not name a folder')
    data = subset(digits, tmp_path / 'digits', 10, 2)
    for path in sorted((data / split / '9').iterdir())[1:]:
        path.unlink()  # of this class one rank has an image, in one batch
    flags = (*FLAGS, '-b', 2, '--nproc', 2, '--epochs', 3, '--resume', 'auto', *more)
    whole = run_cli(*train_flags(data, tmp_path / 'whole', *flags))
    assert whole.returncode == 0, whole.stderr

    log = tmp_path / 'log'

    def wait_for(words):
        """Until a rank says this: rank 0 to the launcher, the other one in its file."""
        for _ in range(600):
            if any(words in f.read_text(errors='replace') for f in (log, *(tmp_path / 'b').rglob('stderr.log'))):
                return
            time.sleep(0.1)
        raise AssertionError(log.read_text())
    with open(log, 'w') as f:
        run = psutil.Popen(
            [sys.executable, '-m', 'seresnet_timm', *map(str, train_flags(data, tmp_path / 'b', *flags))],
            env=dict(os.environ, OMP_NUM_THREADS='1', TIMM_SCRIPTS=''), stderr=f)
    wait_for('Train: 0')
    os.rename(data / split / '9', tmp_path / 'away')
    wait_for('The data folder is gone')
    time.sleep(2)
    ranks = [p for p in run.children(recursive=True) if 'seresnet_timm.launch.rank' in p.cmdline()]
    sent = time.monotonic()
    (run if whom == 'launcher' else ranks[whom]).terminate()
    code, seconds = run.wait(60), time.monotonic() - sent
    os.rename(tmp_path / 'away', data / split / '9')
    text = log.read_text()
    assert code == 143 and 'Stopped by SIGTERM; everything is saved.' in text, text
    assert seconds < 30, text  # 10 on a machine that does nothing else
    again = run_cli(*train_flags(data, tmp_path / 'b', *flags))
    assert again.returncode == 0 and 'Going on with' in again.stdout + again.stderr, again.stderr
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('more', ((), ('--nproc', 2), ('--scripts', SMALL_SCRIPTS)), ids=('', '2 ranks', "timm's"))
def test_folder_that_does_not_come_back(digits, tmp_path, more):
    """Exit code 1 and one sentence, though --hang-timeout is shorter."""
    data = subset(digits, tmp_path / 'digits', 10, 2)
    modules = mover(tmp_path / 'modules', data, tmp_path / 'away')
    flags = (*FLAGS[:7], '-b', 2, '--device-modules', 'mover', '--data-timeout', 12, '--hang-timeout', 5, *more)
    result = run_cli(*train_flags(data, tmp_path / 'out', *flags), env={'PYTHONPATH': modules})
    assert result.returncode == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith('seresnet-timm: error: The data folder is gone for 12 s: '), result.stderr
    assert 'Traceback' not in result.stderr and result.stderr.count('Waiting for it, for 12 s') == 1
    assert [f['kind'] for f in valid_record(tmp_path / 'out' / 'run')['faults']] == ['data_wait']


FAULTS = '''
import multiprocessing, os, signal, threading, time
import psutil
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = []

def harm(*_):
    steps.append(1)
    data = os.environ.get('MOVED')
    if data and len(steps) == 2:
        worker = psutil.Process(min(p.pid for p in multiprocessing.active_children()))
        worker.kill()
        while worker.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    if data and len(steps) == 6:
        os.rename(data, data + '.away')
        threading.Timer(2, lambda: os.rename(data + '.away', data)).start()
register_optimizer_step_post_hook(harm)
'''


@pytest.mark.slow
@pytest.mark.parametrize('fast_jpeg', ('auto', 'off'))
@pytest.mark.parametrize('scripts', ('bundled', TIMM_SCRIPTS or SMALL_SCRIPTS))
def test_both_in_one_run_of_the_command_line(digits, tmp_path, scripts, fast_jpeg):
    data = subset(digits, tmp_path / 'digits', 10, 2)
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'faults.py').write_text(FAULTS)
    weights, path = {}, str(tmp_path / 'modules')
    for moved in ('', data):
        output = tmp_path / f'out-{bool(moved)}'
        flags = (*FLAGS[:7], '-j', 2, '--device-modules', 'faults', '--scripts', scripts, '--fast-jpeg', fast_jpeg)
        done = run_cli(*train_flags(data, output, *flags), env={'PYTHONPATH': path, 'MOVED': str(moved)})
        assert done.returncode == 0, done.stderr
        weights[bool(moved)] = load(output / 'run' / 'last.pth.tar')['state_dict']
    assert_equal(weights[False], weights[True])
    # the end of a worker is found when its batch is waited for, which may be after another one misses the folder
    assert sorted(f['kind'] for f in valid_record(output / 'run')['faults']) == ['data_wait', 'worker'], done.stderr
    assert done.stderr.count('The data folder is back') == done.stderr.count('was ended by SIGKILL') == 1


@pytest.mark.slow
@pytest.mark.parametrize('way', ('fast', "timm's"))
def test_bad_image_in_a_run_that_is_stopped_and_resumed(digits, tmp_path, monkeypatch, way):
    """The same image takes its place, and it is counted, with other workers too where those do not matter."""
    data = subset(digits, tmp_path / 'digits', 10, 2)
    bad = sorted((data / 'train').rglob('*.jpg'))[4]
    bad.write_bytes(bad.read_bytes()[:60])
    fast_jpeg, flags = WAYS[way]
    workers = ('--workers', 3) if way == 'fast' else ()
    assert run_stopped(data, tmp_path / 'whole', *flags, monkeypatch=monkeypatch, fast_jpeg=fast_jpeg) == 0
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    for more, stop, code in (((), 8, 143), ((*workers, '--resume', last), None, 0)):
        assert run_stopped(data, tmp_path / 'b', *flags, *more, stop_after=stop, monkeypatch=monkeypatch,
                           fast_jpeg=fast_jpeg) == code
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')
    for run in ('whole', 'b'):
        epochs = valid_record(tmp_path / run / 'run')['epochs']
        assert [e['unreadable_train'] for e in epochs] == [{'count': 1, 'files': [str(bad)]}] * 2


@pytest.mark.parametrize('value', ('-1', 'nan', 'soon'))
def test_data_timeout_is_checked(data, tmp_path, capfd, value):
    with pytest.raises(SystemExit) as e:
        main([str(f) for f in train_flags(data, tmp_path, '--data-timeout', value, '--dry-run')])
    assert e.value.code == 2 and '--data-timeout' in capfd.readouterr().err
