"""Checkpoints that a thread writes: what was there when they were asked for, one after the other, errors as before."""
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import timm
import torch
from test_save_errors import file_size_limit
from timm.task import ClassificationTask
from training import load

from seresnet_timm.checkpoints.background import HostCopy
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.checkpoints.save_errors import SaveErrors

pytestmark = pytest.mark.preloaded


def saver_in(folder, in_background=True):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    task = ClassificationTask(model, verbose=False)
    task.setup_ema(decay=0.9)
    folder.mkdir(exist_ok=True)
    saver = AtomicCheckpointSaver(
        model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), max_history=2, task=task)
    saver.errors, saver.in_background, saver.failures = SaveErrors(), in_background, []
    saver.on_failure = lambda epoch, reason, when: saver.failures.append((epoch, reason))
    return saver, lambda: train(task, optimizer)


def train(task, optimizer):
    """A step: weights, moving average and momentum change."""
    task(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))['loss'].backward()
    optimizer.step()
    optimizer.zero_grad()
    task.update_ema(1)


@pytest.fixture
def slow_disk(monkeypatch):
    """An event that every write waits for."""
    event, original = threading.Event(), torch.save
    monkeypatch.setattr(torch, 'save', lambda *args: event.wait() and original(*args))
    yield event
    event.set()


def test_files_are_those_of_a_save_that_waits(tmp_path, slow_disk):
    """Whatever the training does before they are written."""
    folders = {}
    for in_background in (False, True):
        saver, step = saver_in(tmp_path / str(in_background), in_background)
        slow_disk.set()
        step()
        for epoch in range(2):
            saver.run_state = dict(epoch=epoch, batches=3, rng=[torch.arange(epoch + 2)])
            if in_background:
                saver.wait()
                slow_disk.clear()
            saver.save_last(epoch)
            step()
            saver.run_state = dict(epoch=99)
            slow_disk.set()
            saver.run_state = dict(epoch=epoch + 1, batches=0)
            assert saver.save_checkpoint(epoch, metric=1. - epoch) == (1., 0)
            saver.save_recovery(epoch + 1, 4)
        saver.wait()
        folders[in_background] = saver.checkpoint_dir
    names = sorted(os.listdir(folders[False]))
    assert names == sorted(os.listdir(folders[True])) and len(names) == 6
    for name in names:
        a, b = (load(os.path.join(folder, name)) for folder in folders.values())
        assert repr(a) == repr(b) and a['weights_sha256'] == b['weights_sha256']
        for key in ('state_dict', 'state_dict_ema'):
            assert all(torch.equal(a[key][k], b[key][k]) for k in a[key])
        assert read_checkpoint(os.path.join(folders[True], name)).content['epoch'] == a['epoch']


def test_a_failure_is_told_before_the_next_save(tmp_path, slow_disk):
    saver, _ = saver_in(tmp_path)
    with file_size_limit(1_000):
        saver.save_last(0)
        saver.tell()  # it is being saved: the training does not wait
        assert saver.failures == [] and saver._background._thread.is_alive()
        slow_disk.set()
        saver._background._thread.join()
    saver.tell()
    saver.tell()
    assert [epoch for epoch, _ in saver.failures] == [1]


def test_failed_saves(tmp_path, caplog):
    """They are told of as soon as the training asks, and change nothing."""
    saver, step = saver_in(tmp_path)
    assert saver.save_checkpoint(0, metric=1.) == (1., 0)
    saver.wait()
    before = sorted(os.listdir(tmp_path))
    with file_size_limit(1_000_000):
        assert saver.save_checkpoint(1, metric=2.) == (2., 1)  # not known yet
        saver.wait()
    assert sorted(os.listdir(tmp_path)) == before
    [(epoch, reason)] = saver.failures
    assert epoch == 1 and reason == saver.errors.last and reason in caplog.text
    assert (saver.best_metric, saver.best_epoch) == (1., 0)
    assert saver.save_checkpoint(2, metric=1.5) == (1.5, 2)
    saver.wait()
    assert saver.errors.last is None and read_checkpoint(tmp_path / 'model_best.pth.tar').content['epoch'] == 2


def test_other_errors_end_the_training(tmp_path, monkeypatch):
    saver, _ = saver_in(tmp_path)
    monkeypatch.setattr(torch, 'save', lambda *_: (_ for _ in ()).throw(RuntimeError('something else')))
    saver.save_last(0)
    with pytest.raises(RuntimeError, match='something else'):
        saver.save_last(1)


def test_copy_keeps_what_is_one_in_memory():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    copy = HostCopy()
    first = copy(dict(a=weight, b=[weight, weight[:1]], c=(1, 'x')))
    assert first['a'] is first['b'][0] and first['a'] is not weight and torch.equal(first['a'], weight)
    assert first['a'].stride() == weight.stride() and torch.equal(first['b'][1], weight[:1]) and first['c'] == (1, 'x')
    weight.zero_()
    assert first['a'].any()
    assert copy(dict(a=weight))['a'] is first['a']  # the same memory


KILLED = '''
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
from test_background_save import saver_in
saver, step = saver_in(Path(sys.argv[1]))
saver.save_last(0)
saver.wait()
original = torch.save
def slowly(state, path):
    original(state, path)
    print('writing', flush=True)
    time.sleep(60)
torch.save = slowly
saver.save_last(1)
'''


@pytest.mark.slow
@pytest.mark.parametrize('signum', (signal.SIGKILL, signal.SIGINT))
def test_a_save_that_is_killed_leaves_the_one_before(tmp_path, signum):
    tests = os.path.dirname(__file__)
    with subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path), tests, os.path.dirname(tests)],
                          stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'writing\n'
        process.send_signal(signum)
        time.sleep(0.5)
        process.kill()
    assert read_checkpoint(tmp_path / 'last.pth.tar').content['epoch'] == 0
    saver_in(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['last.pth.tar']


@pytest.mark.parametrize('killed', ('before the copies', 'before model_best'))
def test_a_run_killed_after_last_has_its_copies_when_it_goes_on(tmp_path, killed):
    saver, step = saver_in(tmp_path / 'run', in_background=False)
    saver.save_checkpoint(0, 1.)
    step()
    saver.save_checkpoint(1, 2.)
    first, second, last, best = (
        tmp_path / 'run' / f'{name}.pth.tar' for name in ('checkpoint-0', 'checkpoint-1', 'last', 'model_best'))
    best.write_bytes(first.read_bytes())
    if killed == 'before the copies':
        second.unlink()
    state = load(last)['saver']

    saver, _ = saver_in(tmp_path / 'run')
    saver.load_state_dict(state, from_last=True)
    assert second.read_bytes() == best.read_bytes() == last.read_bytes() != first.read_bytes()
    assert saver.checkpoint_files == [(str(second), 2.), (str(first), 1.)]
    assert (saver.best_epoch, saver.best_metric) == (1, 2.)


def test_nothing_is_copied_that_was_not_to_be_kept(tmp_path):
    """An epoch that ranks too low, and a state of the middle of an epoch."""
    saver, _ = saver_in(tmp_path / 'run', in_background=False)
    for epoch, metric in enumerate((3., 2., 1.)):
        saver.save_checkpoint(epoch, metric)
    files = sorted(os.listdir(tmp_path / 'run'))
    other, _ = saver_in(tmp_path / 'run')
    other.load_state_dict(load(tmp_path / 'run' / 'last.pth.tar')['saver'], from_last=True)
    assert other.checkpoint_files == saver.checkpoint_files and sorted(os.listdir(tmp_path / 'run')) == files

    saver.save_last(2)
    other.load_state_dict(load(tmp_path / 'run' / 'last.pth.tar')['saver'], from_last=True)
    assert other.checkpoint_files == saver.checkpoint_files and not (tmp_path / 'run' / 'checkpoint-2.pth.tar').exists()
