"""A run that a signal stops in the middle of an epoch goes on there, to the weights of a run that was never stopped."""
import os
import shutil
import signal

import pytest
import torch
from conftest import run_cli, run_here, train_flags
from training import assert_same, bundled_settings, load, summary

from seresnet_timm.engine import train as engine
from seresnet_timm.engine.saving import Saving
from seresnet_timm.launch.newest import newest_checkpoint
from seresnet_timm.runs.folder import RunFolder

pytestmark = pytest.mark.preloaded

SMALL = ('--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4', '--checkpoint-hist', 1)
RANDOM = ('--model-ema', '--drop', 0.2, '--drop-path', 0.1, '--mixup', 0.2, '--cutmix', 1., '--reprob', 0.5)
PLATEAU = ('--sched', 'plateau', '--patience-epochs', 0, '--lr', 0.5)
UPDATES = ('--sched-on-updates', '--warmup-epochs', 1, '--grad-accum-steps', 2)
# name: fast decoder, updates before the signal (an epoch has 6, with accumulation 3), flags
CASES = {
    'fast': ('auto', 8, RANDOM),
    'timm-workers': ('off', 1, (*RANDOM, '--workers', 2, '--aa', 'rand-m5-mstd0.5')),
    'fast-no-prefetcher': ('auto', 3, (*RANDOM, '--no-prefetcher')),
    'fast-workers': ('auto', 8, (*RANDOM, '--workers', 2, '--aa', 'rand-m5-mstd0.5')),
    'fast-threads': ('auto', 2, ('--workers', 2, '--color-jitter', 0, '--reprob', 0.5)),
    'timm': ('off', 8, RANDOM),
    'timm-no-prefetcher': ('off', 2, (*RANDOM, '--no-prefetcher')),
    'timm-more-workers-than-batches-done': ('off', 2, (*RANDOM, '--workers', 3)),
    'timm-workers-later': ('off', 8, (*RANDOM, '--workers', 2, '--no-prefetcher')),
    'multi-epochs': ('off', 3, (*RANDOM, '--use-multi-epochs-loader')),
    'multi-epochs-workers': ('off', 8, (*RANDOM, '--use-multi-epochs-loader', '--workers', 2)),
    'plateau': ('auto', 13, (*PLATEAU, '--epochs', 4)),
    'updates': ('auto', 1, UPDATES),
    'lookahead': ('auto', 8, ('--opt', 'lookahead_momentum')),
    'lookahead-adamw': ('auto', 2, ('--opt', 'lookahead_adamw', '--lr', 0.001)),
    'augmix': ('auto', 2, ('--aug-splits', 2, '--jsd-loss', '--aa', 'rand-m5-mstd0.5', '--resplit', '--reprob', 0.5)),
    'bfloat16': ('auto', 3, ('--amp', '--amp-dtype', 'bfloat16')),
    'float16': ('auto', 3, ('--amp', '--amp-dtype', 'float16', '--model-ema')),
    'float16-scaler': ('auto', 3, ('--amp', '--amp-dtype', 'float16', '--lr', 0.1)),
    'float16-accumulation': ('off', 2, ('--amp', '--amp-dtype', 'float16', '--workers', 2, *UPDATES)),
}
QUICK = ('fast', 'timm-workers')


def run(data, output, *flags, stop_after=None, monkeypatch=None, **settings) -> int:
    """Train in this process; a real signal arrives after some updates. The exit code."""
    updates = []

    def after_update(self, *args):
        updates.append(args)
        if len(updates) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)
    original = Saving.after_update
    monkeypatch.setattr(Saving, 'after_update', after_update)
    try:
        engine.main(bundled_settings(*train_flags(data, output, *SMALL, *flags), **settings))
    except SystemExit as e:
        return e.code
    finally:
        monkeypatch.setattr(Saving, 'after_update', original)
    return 0


@pytest.mark.parametrize('case', [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_stopped_run_equals_one_that_was_never_stopped(few_digits, tmp_path, monkeypatch, case):
    fast_jpeg, updates, flags = CASES[case]
    settings = dict(monkeypatch=monkeypatch, fast_jpeg=fast_jpeg, loss_scale=512. if case == 'float16-scaler' else None)
    assert run(few_digits, tmp_path / 'whole', *flags, **settings) == 0
    stopped = run(few_digits, tmp_path / 'b', *flags, stop_after=updates, **settings)
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    accumulated = 2 if '--grad-accum-steps' in flags else 1
    state = load(last)['run_state']
    # the last update of an epoch is followed by its evaluation, and is not counted above
    per_epoch = 6 // accumulated - 1
    assert stopped == 143
    assert (state['epoch'], state['batches']) == (
        (updates - 1) // per_epoch, ((updates - 1) % per_epoch + 1) * accumulated)
    assert run(few_digits, tmp_path / 'b', *flags, '--resume', last, **settings) == 0
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')


def test_recovery_file_and_evaluation(few_digits, tmp_path, monkeypatch):
    """A run goes on from a recovery file where that was written; and one that is stopped in an evaluation, there."""
    flags = ('--reprob', 0.5, '--drop', 0.2)
    assert run(few_digits, tmp_path / 'whole', *flags, '--recovery-interval', 2, monkeypatch=monkeypatch) == 0
    whole = tmp_path / 'whole' / 'run'
    recovery = sorted(whole.glob('recovery-*'))
    assert [p.name for p in recovery] == ['recovery-1-3.pth.tar', 'recovery-1-5.pth.tar']
    for i, path in enumerate(recovery):
        shutil.copytree(whole, tmp_path / str(i) / 'run', ignore=shutil.ignore_patterns('*.pth.tar'))
        shutil.copy(path, tmp_path / str(i) / 'run')
        path.unlink()
        path = tmp_path / str(i) / 'run' / path.name
        assert run(few_digits, tmp_path / str(i), *flags, '--resume', path, monkeypatch=monkeypatch) == 0
        path.unlink()
        a, b = (load(f / 'last.pth.tar')['state_dict'] for f in (whole, tmp_path / str(i) / 'run'))
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert summary(tmp_path / str(i) / 'run') == summary(whole)


def test_newest_checkpoint(few_digits, tmp_path, monkeypatch):
    """A damaged file is skipped with a sentence; files of a run share no fate."""
    assert newest_checkpoint(RunFolder(tmp_path / 'none')) == (None, [])
    assert run(few_digits, tmp_path, '--epochs', 2, stop_after=6, monkeypatch=monkeypatch) == 143
    folder = RunFolder(tmp_path / 'run')
    assert len({path.stat().st_ino for path in folder.path.glob('*.pth.tar')}) == 4
    assert load(folder.previous)['run_state']['batches'] == 0 and load(folder.last)['run_state']['batches'] == 1
    found, notes = newest_checkpoint(folder)
    assert found.path == str(folder.last) and notes == []
    for damaged, then in ((folder.last, folder.previous), (folder.previous, folder.path / 'checkpoint-0.pth.tar')):
        with open(damaged, 'r+b') as f:
            f.truncate(damaged.stat().st_size // 2)
        found, notes = newest_checkpoint(folder)
        assert found.path == str(then) and str(damaged) in notes[-1] and 'The one before it is used' in notes[-1]


def test_the_clock_is_set_back_between_starts(few_digits, tmp_path, monkeypatch):
    """What files hold tells which is the newest, not their times: the start that wrote them, then their place."""
    folder, flags = RunFolder(tmp_path / 'run'), ('--recovery-interval', 3, '--epochs', 2)

    def found() -> set:
        names = set()
        for is_reversed in (False, True):
            for i, path in enumerate(sorted(folder.path.glob('*.pth.tar'), reverse=is_reversed)):
                os.utime(path, (i, i))
            names.add(os.path.basename(newest_checkpoint(folder)[0].path))
        return names
    assert run(few_digits, tmp_path, *flags, stop_after=9, monkeypatch=monkeypatch) == 143
    assert load(folder.last)['run_state']['batches'] == 4
    assert found() == {'last.pth.tar'}
    folder.last.unlink()
    assert found() == {'recovery-1-2.pth.tar'}
    # it goes on from an earlier place: what it writes then is newer than the files of later ones
    assert run(few_digits, tmp_path, *flags, '--resume', folder.path / 'checkpoint-0.pth.tar', stop_after=2,
               monkeypatch=monkeypatch) == 143
    assert load(folder.last)['run_state']['batches'] == 2
    assert found() == {'last.pth.tar'}


@pytest.mark.slow
@pytest.mark.parametrize('name', ('recovery-0-3', 'recovery-0-5'))
def test_recovery_file_of_an_earlier_epoch(few_digits, tmp_path, monkeypatch, name):
    """Also one that was written between training and evaluation."""
    flags = ('--reprob', 0.5, '--drop', 0.2)
    assert run(few_digits, tmp_path / 'a', *flags, '--recovery-interval', 2, stop_after=6, monkeypatch=monkeypatch)
    assert run(few_digits, tmp_path / 'whole', *flags, monkeypatch=monkeypatch) == 0
    path = tmp_path / 'a' / 'run' / f'{name}.pth.tar'
    assert run(few_digits, tmp_path / 'b', *flags, '--resume', path, monkeypatch=monkeypatch) == 0
    a, b = (load(tmp_path / f / 'run' / 'last.pth.tar')['state_dict'] for f in ('whole', 'b'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def harm_nothing(data):
    pass


def add_image(data):
    shutil.copy(sorted((data / 'train' / '1').iterdir())[0], data / 'train' / '1' / 'added.jpg')


def rename_image(data):
    first = sorted((data / 'train' / '1').iterdir())[0]
    first.rename(first.with_name('renamed.jpg'))


def remove_image(data):
    sorted((data / 'train' / '1').iterdir())[0].unlink()


@pytest.mark.parametrize('change, seed, said', (
    (add_image, 42, '101 instead of 100'),
    pytest.param(remove_image, 42, '99 instead of 100', marks=pytest.mark.slow),
    pytest.param(rename_image, 42, 'other names', marks=pytest.mark.slow),
    pytest.param(harm_nothing, 7, 'had --seed 42, this one has --seed 7', marks=pytest.mark.slow)))
def test_other_images_or_another_seed(few_digits, tmp_path, monkeypatch, caplog, change, seed, said):
    """Which images are still to come is not known: the epoch starts again, with all of them, and the log says why."""
    caplog.set_level('INFO', 'train')
    data = shutil.copytree(few_digits, tmp_path / 'data')
    assert run(data, tmp_path, stop_after=2, monkeypatch=monkeypatch) == 143
    change(data)
    last = tmp_path / 'run' / 'last.pth.tar'
    batches = []
    original = Saving.batches

    def all_batches(self, training, epoch, first, *more):
        for batch in original(self, training, epoch, first, *more):
            batches.append(epoch)
            yield batch
    monkeypatch.setattr(Saving, 'batches', all_batches)
    assert run(data, tmp_path, '--resume', last, '--seed', seed, '--epochs', 1, monkeypatch=monkeypatch) == 0
    assert said in caplog.text and 'Epoch 0 starts again' in caplog.text
    assert len(batches) == 6


@pytest.mark.slow
def test_resume_auto_and_minutes(few_digits, tmp_path):
    flags = train_flags(few_digits, tmp_path, *SMALL, '--resume', 'auto')
    first = run_cli(*flags, '--checkpoint-minutes', 0.0001)
    assert first.returncode == 0 and 'no checkpoint to resume from; the run starts at epoch 0' in first.stderr
    again = run_cli(*flags, '--epochs', 3)
    assert again.returncode == 0 and 'the run goes on from' in again.stderr
    assert [r['epoch'] for r in summary(tmp_path / 'run')] == ['0', '1', '2']


@pytest.mark.parametrize('minutes', ('-1', 'nan', 'inf'))
def test_checkpoint_minutes_are_checked(few_digits, tmp_path, minutes):
    result = run_here(*train_flags(few_digits, tmp_path, '--checkpoint-minutes', minutes, '--dry-run'))
    assert result.returncode == 2 and '--checkpoint-minutes' in result.stderr
