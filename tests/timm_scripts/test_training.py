"""Trainings by timm's train.py: stopped in the middle of an epoch, and with losses that are not finite."""
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import timm.task
import torch
from conftest import run_cli, train_flags
from timm.utils import NativeScaler
from timm_scripts import SCRIPTS, SMALL, known_files
from training import assert_same, load, summary, train, valid_record

from seresnet_timm.engine.saving import Saving
from seresnet_timm.errors import RunError
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.timm_scripts import load as loader
from seresnet_timm.timm_scripts.find import find
from seresnet_timm.timm_scripts.train_overrides import TrainOverrides

pytestmark = pytest.mark.preloaded

NETWORK = ('--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4')
RANDOM = ('--model-ema', '--drop', 0.2, '--drop-path', 0.1, '--mixup', 0.2, '--cutmix', 1., '--reprob', 0.5)
WORKERS = ('--workers', 2, '--aa', 'rand-m5-mstd0.5')
ACCUMULATION = ('--sched-on-updates', '--warmup-epochs', 1, '--grad-accum-steps', 2, '--clip-grad', 1.)
SMALL_CASES = {  # name: fast decoder, call of a method of Saving that the signal comes before, flags
    'workers': ('off', ('after_update', 2), ('--model-ema', '--reprob', 0.5, '--workers', 2, '--drop', 0.2)),
    'accumulation': ('auto', ('after_update', 3), (*ACCUMULATION, '--model-ema')),
    'evaluation': ('off', ('after_training', 1), ('--model-ema', '--reprob', 0.5, '--workers', 1)),
}
CASES = {
    'fast': ('auto', ('after_update', 8), RANDOM),
    'fast-workers': ('auto', ('after_update', 8), (*RANDOM, *WORKERS)),
    'fast-no-prefetcher': ('auto', ('after_update', 3), (*RANDOM, '--no-prefetcher')),
    'fast-threads': ('auto', ('after_update', 2), ('--workers', 2, '--color-jitter', 0, '--reprob', 0.5)),
    'timm': ('off', ('after_update', 8), RANDOM),
    'timm-workers': ('off', ('after_update', 1), (*RANDOM, *WORKERS)),
    'timm-workers-later': ('off', ('after_update', 8), (*RANDOM, *WORKERS)),
    'timm-no-prefetcher': ('off', ('after_update', 2), (*RANDOM, '--no-prefetcher')),
    'multi-epochs': ('off', ('after_update', 8), (*RANDOM, '--use-multi-epochs-loader', *WORKERS)),
    'evaluation': ('off', ('after_training', 1), (*RANDOM, *WORKERS)),
    'evaluation-fast': ('auto', ('after_training', 2), RANDOM),
    'no-evaluation': ('auto', ('after_training', 1), (*RANDOM, '--val-split', '')),
    'few-evaluations': ('off', ('after_training', 1), (*RANDOM, '--val-interval', 3, '--epochs', 3)),
    'plateau': ('auto', ('after_update', 13), (
        '--sched', 'plateau', '--patience-epochs', 0, '--lr', 0.5, '--epochs', 4)),
    'accumulation': ('auto', ('after_update', 1), ACCUMULATION),
    'lookahead': ('auto', ('after_update', 8), ('--opt', 'lookahead_momentum')),
    'lookahead-adamw': ('auto', ('after_update', 2), ('--opt', 'lookahead_adamw', '--lr', 0.001)),
    'augmix': ('auto', ('after_update', 2), (
        '--aug-splits', 2, '--jsd-loss', '--aa', 'rand-m5-mstd0.5', '--resplit', '--reprob', 0.5)),
    'bfloat16': ('auto', ('after_update', 3), ('--amp', '--amp-dtype', 'bfloat16')),
}
# all with the newest script, some with the oldest
TIMM = [pytest.param(SCRIPTS[1].values[0], case, id=f'timm-{case}', marks=(*SCRIPTS[1].marks, pytest.mark.slow))
        for case in CASES]
OLDEST = [pytest.param(known_files('train.py')[0].values[1], case, id=f'oldest-{case}',
                       marks=(*known_files('train.py')[0].marks, pytest.mark.slow))
          for case in ('fast', 'timm-workers', 'evaluation', 'accumulation', 'plateau')]
SMALL_PARAMETERS = [pytest.param(SMALL, case, id=f'small-{case}', marks=() if case == 'workers' else pytest.mark.slow)
                    for case in SMALL_CASES]


def run(script, data, output, *flags, **settings) -> int:
    """Train in this process; the exit code."""
    script = find('train.py', str(script))
    flags = [str(f) for f in train_flags(data, output, *flags)][1:]
    args = vars(loader.parser_of(script).parse_args(flags))
    try:
        loader.run(RunSettings('train', script, args, output=str(Path(output, 'run')), device='cpu', **settings))
    except SystemExit as e:
        return e.code
    return 0


@pytest.fixture
def stop(monkeypatch):
    """Function that lets a signal arrive before a call of a method of Saving."""
    def stop(method, call, signum=signal.SIGTERM):
        calls, original = [], getattr(Saving, method)

        def with_signal(self, *args):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signum)
            return original(self, *args)
        monkeypatch.setattr(Saving, method, with_signal)
    return stop


# --- resume -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script, case', SMALL_PARAMETERS + TIMM + OLDEST)
def test_stopped_run_equals_one_that_was_never_stopped(few_digits, tmp_path, monkeypatch, stop, script, case):
    fast_jpeg, place, flags = (SMALL_CASES if script == SMALL else CASES)[case]
    flags = (*NETWORK, '--checkpoint-hist', 1, *flags)
    assert run(script, few_digits, tmp_path / 'whole', *flags, fast_jpeg=fast_jpeg) == 0
    with monkeypatch.context():
        stop(*place)
        assert run(script, few_digits, tmp_path / 'b', *flags, fast_jpeg=fast_jpeg) == 143
    monkeypatch.undo()
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    state = load(last)['run_state']
    assert state['is_trained'] if place[0] == 'after_training' else 0 < state['batches'] < 6
    assert run(script, few_digits, tmp_path / 'b', *flags, '--resume', last, fast_jpeg=fast_jpeg) == 0
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')
    record = valid_record(tmp_path / 'b' / 'run')
    assert record['finished'] and [e['epoch'] for e in record['epochs']] == list(range(len(record['epochs'])))


@pytest.mark.slow
@pytest.mark.parametrize('signum', (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
def test_signals(few_digits, tmp_path, monkeypatch, stop, caplog, signum):
    monkeypatch.setattr(signal, 'getsignal', lambda signum: signal.SIG_DFL)  # whatever started this process ignores
    stop('after_update', 1, signum)
    assert run(SMALL, few_digits, tmp_path, *NETWORK) == 128 + signum
    assert f'Stopped by {signum.name}; everything is saved.' in caplog.text and '--resume' in caplog.text
    assert load(tmp_path / 'run' / 'last.pth.tar')['run_state']['batches'] == 1
    assert valid_record(tmp_path / 'run')['finished'] is None


@pytest.mark.slow
@pytest.mark.parametrize('folder', SCRIPTS)
def test_recovery_files(few_digits, tmp_path, stop, folder):
    """A run goes on from one where it was written, also between training and evaluation."""
    flags = (*NETWORK, '--reprob', 0.5, '--drop', 0.2)
    assert run(folder, few_digits, tmp_path / 'whole', *flags) == 0
    stop('after_update', 6)
    assert run(folder, few_digits, tmp_path / 'a', *flags, '--recovery-interval', 2) == 143
    recovery = sorted((tmp_path / 'a' / 'run').glob('recovery-*'))
    assert [p.name for p in recovery] == ['recovery-0-3.pth.tar', 'recovery-0-5.pth.tar']
    for path in recovery:
        output = tmp_path / path.name
        assert run(folder, few_digits, output, *flags, '--resume', path) == 0
        a, b = (load(f / 'run' / 'last.pth.tar')['state_dict'] for f in (tmp_path / 'whole', output))
        assert all(torch.equal(a[k], b[k]) for k in a)


TWO_RANKS = '''
import os, signal
from seresnet_timm.engine.saving import Saving
calls, original = [], Saving.after_update

def after_update(self, *args):
    calls.append(1)
    if len(calls) == int(os.environ['STOP_AT']) and os.environ['RANK'] == '1':
        os.kill(os.getpid(), signal.SIGUSR1)
    return original(self, *args)
Saving.after_update = after_update
'''


@pytest.mark.slow
@pytest.mark.parametrize('folder, more', [
    pytest.param(*p.values, ('--fast-jpeg', 'off'), id=p.id, marks=p.marks) for p in SCRIPTS] + [
    pytest.param(*SCRIPTS[1].values, ('--aug-repeats', 3), id='timm-repeats', marks=SCRIPTS[1].marks),
    pytest.param(None, ('--aug-repeats', 3), id='bundled-repeats'),
    pytest.param(None, ('--aug-repeats', 3, '--fast-jpeg', 'off'), id='bundled-repeats-off'),
])
def test_two_ranks(few_digits, tmp_path, folder, more):
    """A signal to rank 1; the run goes on by itself."""
    (tmp_path / 'stop_rank_1.py').write_text(TWO_RANKS)
    env = {'PYTHONPATH': str(tmp_path), 'STOP_AT': '0'}
    flags = (*more, '--nproc', 2, '-b', 2, '--workers', 1, '--model-ema', '--device-modules', 'stop_rank_1', '--resume',
             'auto', '--reprob', 0.5, '--drop', 0.2, *NETWORK, *(('--scripts', folder) if folder else ()))
    train(*train_flags(few_digits, tmp_path / 'whole', *flags), env=env)
    flags = train_flags(few_digits, tmp_path / 'b', *flags)
    stopped = run_cli(*flags, env=dict(env, STOP_AT='8'))
    assert stopped.returncode == 128 + signal.SIGUSR1, stopped.stderr
    assert 'Stopped by SIGUSR1; everything is saved.' in stopped.stderr
    state = load(tmp_path / 'b' / 'run' / 'last.pth.tar')['run_state']
    assert state['batches'] > 0 and len(state['ranks']) == 2
    train(*flags, env=env)
    assert_same(*(shutil.copytree(tmp_path / f / 'run', tmp_path / f / 'files', ignore=shutil.ignore_patterns('logs'))
                  for f in ('whole', 'b')))


# --- bad steps --------------------------------------------------------------------------------------------------------

@pytest.fixture
def bad(monkeypatch):
    """Function that makes the loss of some batches NaN or infinite."""
    def bad(batches, value=float('nan')):
        calls, original = [], timm.task.ClassificationTask.forward

        def forward(self, input, target):
            calls.append(len(calls))
            result = original(self, input, target)
            return dict(result, loss=result['loss'] * value) if calls[-1] in batches else result
        monkeypatch.setattr(timm.task.ClassificationTask, 'forward', forward)
    return bad


@pytest.mark.parametrize('folder', SCRIPTS)
def test_skipped_steps_are_counted(few_digits, tmp_path, caplog, bad, folder):
    """Also where finite gradients would come from clipping; a moving average stays finite."""
    bad((1, 3, 4, 8), float('inf'))
    flags = ('--clip-grad', 0.1, '--clip-mode', 'value', '--model-ema', '--seed', 3)
    assert run(folder, few_digits, tmp_path, *NETWORK, *flags) == 0
    folder = tmp_path / 'run'
    record = valid_record(folder)
    assert [e['bad_steps'] for e in record['epochs']] == [3, 1] and record['faults'] == []
    assert all(math.isfinite(float(row[k])) for row in summary(folder) for k in ('train_loss', 'eval_loss'))
    checkpoint = load(folder / 'last.pth.tar')
    tensors = [*checkpoint['state_dict'].values(), *checkpoint['state_dict_ema'].values(),
               *(s['momentum_buffer'] for s in checkpoint['optimizer']['state'].values())]
    assert all(torch.isfinite(t).all() for t in tensors)
    assert 'whose loss or gradients are not finite (0 in a row until now' in caplog.text


@pytest.mark.parametrize('folder', SCRIPTS)
def test_too_many_in_a_row(few_digits, tmp_path, bad, folder):
    bad(range(8, 12))
    with pytest.raises(RunError) as e:
        run(folder, few_digits, tmp_path, *NETWORK, '--seed', 3, max_bad_steps=3)
    text = str(e.value)
    assert 'The loss became nan at epoch 1, update ' in text and '4 steps in a row' in text or '3 steps' in text
    assert 'The first of them was update 2, with the images ' in text and str(few_digits / 'train') in text
    assert 'The last good checkpoint is ' in text and 'last.pth.tar' in text
    fault, = valid_record(tmp_path / 'run')['faults']
    assert fault['kind'] == 'bad_steps' and valid_record(tmp_path / 'run')['finished'] is None
    assert load(tmp_path / 'run' / 'last.pth.tar')['epoch'] == 0


@pytest.mark.slow
@pytest.mark.parametrize('folder', SCRIPTS)
def test_gradient_accumulation_and_resume(few_digits, tmp_path, monkeypatch, bad, stop, folder):
    """A bad batch spoils the batches of its update, and no more; a resumed run goes on to count, with the same mean."""
    flags = (*NETWORK, '--grad-accum-steps', 2, '--model-ema')
    for output, place in (('whole', None), ('b', ('after_update', 2))):
        with monkeypatch.context():
            bad((1, 2))
            if place:
                stop(*place)
            assert run(folder, few_digits, tmp_path / output, *flags) == (143 if place else 0)
        monkeypatch.undo()
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    assert run(folder, few_digits, tmp_path / 'b', *flags, '--resume', last) == 0
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')
    assert [e['bad_steps'] for e in valid_record(tmp_path / 'b' / 'run')['epochs']] == [2, 0]


@pytest.mark.slow
@pytest.mark.parametrize('folder', SCRIPTS)
def test_an_epoch_without_a_good_step(few_digits, tmp_path, bad, folder):
    bad(range(6))
    with pytest.raises(RunError, match='The loss became nan at epoch 0, update 5'):
        run(folder, few_digits, tmp_path, *NETWORK)
    assert not list((tmp_path / 'run').glob('*.pth.tar'))


@pytest.mark.slow
@pytest.mark.parametrize('folder', SCRIPTS)
def test_loss_scale_collapses(few_digits, tmp_path, monkeypatch, bad, folder):
    monkeypatch.setattr(TrainOverrides, 'scales_loss', lambda self, device: True)
    monkeypatch.setattr(TrainOverrides, 'create_loss_scaler', lambda self, device: NativeScaler(device.type))
    bad(range(6, 99), float('inf'))
    with pytest.raises(RunError, match='in a row were skipped.*The last good checkpoint is'):
        run(folder, few_digits, tmp_path, *NETWORK, '--amp', '--amp-dtype', 'float16', '--epochs', 9, max_bad_steps=99)
    assert load(tmp_path / 'run' / 'model_best.pth.tar')['epoch'] == 0
