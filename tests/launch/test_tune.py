"""`tune`: what is measured, what is taken, and that `train --config` takes the file."""
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import preloaded
import pytest
import torch
import yaml
from conftest import MODEL, run_cli, run_here

from seresnet_timm import device as devices
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import trial, tune
from seresnet_timm.launch.trial import TrialProcess
from seresnet_timm.launch.tune import Candidate, Clock, Result, Tuning
from seresnet_timm.runs.settings import RunSettings, Script

pytestmark = pytest.mark.preloaded


def settings(**args):
    return RunSettings('train', Script('train.py'), dict(
        model='seresnet50_ascend', batch_size=16, img_size=64, workers=2, channels_last=True, amp=False,
        amp_dtype='float16', **args))


def test_measures_and_train_takes_the_file(few_digits, tmp_path):
    """With real processes: every option has a figure, or the time was up; what is not allowed is not written."""
    file = tmp_path / 'tuned.yaml'
    training = ('--data-dir', few_digits, *MODEL, '-b', 8, '--device', 'cpu')
    result = run_cli('tune', *training, '--seconds', 12, '--tuned-file', file, env={'PYTHON_EXEC': preloaded.python()})
    assert result.returncode == 0, result.stderr
    late = ''.join(line for line in result.stdout.splitlines() if line.startswith('Not measured, the time was up: '))
    most = f'--workers {tune.worker_counts(1)[-1]}'
    for option in ('as planned', '--lean-se on', 'channels_last false', most, '-b 4', '-b 16'):
        found = [line for line in result.stdout.splitlines() if ' '.join(line.split()).startswith(option)]
        assert len(found) == 1 and 'images/s (' in found[0] or not found and option in late, result.stdout
    found = yaml.safe_load(file.read_text())
    assert found['tuned']['device'] == 'cpu' and found['tuned']['model'] == 'seresnet18_ascend'
    assert not {'amp', 'amp_dtype', 'batch_size'} & set(found)

    plan = run_here('train', '--config', file, *training, '--dry-run')
    assert plan.returncode == 0, plan.stderr
    assert f'{file} was measured by `seresnet-timm tune` with seresnet18_ascend on cpu' in plan.stderr
    refused = run_here('validate', '--config', file, '--data-dir', few_digits, *MODEL, '--dry-run').stderr
    assert 'no pretrained weights' in refused and 'Config' not in refused  # which takes the file too


def test_block_of_the_file(few_digits, tmp_path):
    file = tmp_path / 'tuned.yaml'
    file.write_text('channels_last: false\ntuned: {device: npu, machine: "npu (Ascend910B1)", lean_se: "off"}\n')
    training = ('train', '--config', file, '--data-dir', few_digits, *MODEL, '--device', 'cpu', '--dry-run')
    plan = run_here(*training).stderr
    assert 'contiguous (as asked for)' in plan and 'memory-saving' not in plan
    assert 'was measured on npu, this run is on cpu: measure again.' in plan
    assert 'memory-saving' in run_here(*training, '--lean-se', 'on').stderr  # what is typed wins
    for block, text in (('[1]', 'must be a mapping'), ('{lean_se: maybe}', "lean_se must be 'on' or 'off'"),
                        ('{environment: {PATH: "/tmp"}}', 'TASK_QUEUE_ENABLE 1 or 2'),
                        ('{workers: 3}', 'workers: 3 is not written by')):
        file.write_text(f'tuned: {block}\n')
        result = run_here(*training)
        assert result.returncode == 2 and text in result.stderr
        assert f'Config {file}, line 1, block tuned: ' in result.stderr


def test_graph_and_formats_of_the_file(few_digits, tmp_path):
    """A CPU has neither; an evaluation has no graph to capture."""
    file = tmp_path / 'tuned.yaml'
    file.write_text('tuned: {device: npu, graph: true, internal_format: false}\n')
    training = ('--config', file, '--data-dir', few_digits, *MODEL, '--device', 'cpu', '--dry-run')
    plan = run_here('train', *training)
    assert plan.returncode == 0 and '--graph is not used: a CPU has no graphs' in plan.stderr, plan.stderr
    refused = run_here('validate', *training).stderr
    assert 'no pretrained weights' in refused and '--graph' not in refused
    for block in ('graph: false', 'graph: 1', 'internal_format: "on"'):
        file.write_text(f'tuned: {{{block}}}\n')
        assert f'{block.partition(":")[0]} must be' in run_here('train', *training).stderr


def test_graph_is_tried_where_it_can_be_captured(monkeypatch):
    assert '--graph' not in [name for name, *_ in tune.step_options(settings())]  # a CPU
    monkeypatch.setattr(tune, 'why_no_graph', lambda _: None)
    name, value, change, key, setting = tune.step_options(settings())[-1]
    assert (name, key, setting) == ('--graph', 'graph', True) and change(Candidate(settings())).settings.graph
    tuning = Tuning(Candidate(settings()), Clock(60, 1), (), changes={'graph': True, 'internal_format': False})
    assert yaml.safe_load(tune.config_text(tuning, settings()))['tuned'].items() >= {
        'graph': True, 'internal_format': False}.items()


def test_formats_are_taken_if_allowed(monkeypatch):
    monkeypatch.setattr(tune, 'run_trial', lambda option, value, candidate, *_: Result(
        option, value, (200.,) * 3 if candidate.settings.internal_format else (100.,) * 3))
    for allowed, taken in (((), {}), (('internal-format',), {'internal_format': True})):
        own, base = Candidate(replace(settings(), device='npu')), Result('as planned', '', (100.,) * 3)
        tuning = Tuning(own, Clock(60, 3), allowed, base=base)
        tune.try_internal_formats(tuning)
        assert tuning.changes == taken and len([r for r in tuning.results if r.option[0] == 'a']) == 2


def test_a_step_that_is_not_captured_is_told(monkeypatch):
    from seresnet_timm.engine import model
    monkeypatch.setattr(model, 'capture_step', lambda *_: 'no graphs here')
    planned = trial.settings_to_measure('train', [*map(str, MODEL), '-b', '4', '--device', 'cpu'], has_data=False)
    with pytest.raises(UsageError, match='cannot be captured here: no graphs here'):
        trial.training_step(replace(planned, graph=True))


@pytest.mark.parametrize('flags, text', (
    (('--seconds', '-1'), '--seconds -1 is too small'), (('--allow', 'speed'), '--allow speed is unknown'),
    (('--tuned-file', '/proc/x/y.yaml'), 'cannot be written'), (('--batch-siz', '0'), '-b'),
    (('--nnodes', '2', '--master-addr', 'localhost'), 'one machine')))
def test_wrong_flags_start_nothing(flags, text):
    result = run_here('tune', *MODEL, '--device', 'cpu', *flags)
    assert result.returncode == 2 and text in result.stderr and not result.stdout


def test_figures_are_medians_and_quartiles():
    rates = tuple(np.random.default_rng(0).normal(100, 10, 31))
    result = Result('-b', '8', rates)
    assert result.rate == np.median(rates) and result.quartiles() == pytest.approx(np.quantile(rates, (0.25, 0.75)))


@pytest.mark.parametrize('rates, again, taken', (
    ((110, 111, 112), (100, 101, 102), True),
    ((101, 101.5, 102), (100, 101, 102), False),  # by less than 2 %
    ((90, 105, 130), (100, 101, 102), False),  # within the spread
    ((110, 111, 112), (118, 119, 120), False),  # the machine has become faster
))
def test_what_is_taken(rates, again, taken, monkeypatch):
    measured = {'--lean-se': rates, '  without it, again': again}
    monkeypatch.setattr(tune, 'run_trial', lambda option, value, *_: Result(option, value, tuple(measured[option])))
    own = Candidate(settings())
    tuning = Tuning(own, Clock(60, 3), (), base=Result('as planned', '', (100, 101, 102)))
    other = own.with_settings(lean_se='off')
    tuning.try_step('--lean-se', 'off', other, 'lean_se', 'off')
    assert tuning.best is (other if taken else own) and tuning.changes == ({'lean_se': 'off'} if taken else {})
    assert tuning.gains == ({'lean_se': 111 / 101} if taken else {})
    if len(tuning.results) > 1:  # the newest figures are those that others are compared with
        assert tuning.planned.rates == again and tuning.base.rates == (rates if taken else again)


def test_what_is_faster_is_compared_though_the_time_is_up(monkeypatch):
    tuning = Tuning(Candidate(settings()), Clock(60, 3), (), base=Result('as planned', '', (100, 101, 102)))

    def run_trial(option, value, *_):
        tuning.clock.end = 0
        return Result(option, value, (100, 101, 102) if 'again' in option else (110, 111, 112))
    monkeypatch.setattr(tune, 'run_trial', run_trial)
    for value in ('off', 'on'):
        tuning.try_step('--lean-se', value, tuning.best.with_settings(lean_se=value), 'lean_se', value)
    assert tuning.changes == {'lean_se': 'off'} and tuning.skipped == ['--lean-se on']


@pytest.mark.parametrize('loaded, taken', (
    ({0: 50, 1: 90, 2: 130, 4: 260}, 2), ({0: 50, 1: 90, 2: 100, 4: 110}, 4), ({0: 200, 1: 90, 2: 150, 4: 100}, 2),
    ({0: 9000, 1: 125, 2: 150}, 0), ({0: 3000}, 2), ({0: 3000, 1: 130}, 1)))
def test_workers(loaded, taken, monkeypatch):
    """The fewest that load 1.2 times what the step takes, else those that load most; 0 load between the steps."""
    monkeypatch.setattr(
        tune, 'run_trial', lambda option, value, *_: Result(option, value, (float(loaded[int(value)]),)))
    tuning = Tuning(Candidate(settings()), Clock(60, 4), (), base=Result('as planned', '', (100.,)))
    tune.try_workers(tuning, list(loaded))
    assert loaded.get(1) != 90 or 0 not in [int(r.value) for r in tuning.results]  # after one worker that is too slow
    assert tuning.best.settings.args['workers'] == taken
    assert tuning.changes == ({} if taken == 2 else {'workers': taken})


def test_time_and_failures(tmp_path, monkeypatch):
    """No measurement starts after the end; one that fails is told, and larger batches are not tried after it."""
    tuning = Tuning(Candidate(settings()), Clock(0, 4), (), base=Result('as planned', '', (100.,)))
    tune.try_workers(tuning, [0, 1])
    assert tuning.skipped == ['--workers 1', '--workers 0'] and not tuning.results

    monkeypatch.setattr(tune, 'run_trial', lambda option, value, *_: Result(
        option, value, (100.,) if int(value) < 16 else (), error=None if int(value) < 16 else 'does not fit'))
    tuning = Tuning(Candidate(settings()), Clock(60, 4), (), base=Result('as planned', '', (100.,)))
    tune.try_batch_sizes(tuning, tune.batch_sizes(settings()))
    assert [(r.value, bool(r.error)) for r in tuning.results] == [('8', False), ('32', True)]
    assert '# -b 32: does not fit' in tune.config_text(tuning, settings())


def test_one_process_measures_until_one_fails(monkeypatch):
    """A process takes seconds to start: only what is read at its start, or a failure, needs another."""
    monkeypatch.setenv('PYTHON_EXEC', preloaded.python())
    planned = trial.settings_to_measure('train', [*map(str, MODEL), '-b', '2', '--device', 'cpu'], has_data=False)
    own, process = Candidate(planned), TrialProcess()
    with closing(process):
        assert process.starts_for(own.settings, {})
        results = [tune.run_trial('-b', '2', own, 'step', 0.1, process)]
        pid = process._process.pid
        assert not process.starts_for(own.settings, {})
        assert process.starts_for(own.settings, {'TASK_QUEUE_ENABLE': '2'})
        assert process.starts_for(own.with_settings(internal_format=False).settings, {})
        results.append(tune.run_trial('--lean-se', 'on', own.with_settings(lean_se='on'), 'step', 0.1, process))
        assert process._process.pid == pid and all(r.rates and min(r.rates) > 0 for r in results), results

        failed = tune.run_trial('-b', '2', own.with_args(model='no_such_model'), 'step', 1, process)
        assert not failed.rates and failed.error and '\n' not in failed.error
        assert process.starts_for(own.settings, {})


def test_what_takes_long_before_it_measures_does_not_stop_the_others():
    """Loaders start slowly; a measurement that is repeated has time of its own."""
    clock = Clock(20, 4)
    clock.note_start_up(('loader', False), 30)
    assert clock.next_seconds(('loader', False)) is None
    assert clock.next_seconds(('step', False)) > 5


@pytest.mark.parametrize('allowed', ((), ('batch-size', 'precision')))
def test_what_may_be_taken_is_measured_before_the_workers_it_needs(allowed, few_digits, tmp_path, monkeypatch):
    order = []

    def run(option, value, candidate, what, seconds, process):
        order.append(option)
        return Result(option, value, (100. + 50 * (option == '-b'),) * 3)
    monkeypatch.setattr(tune, 'run_trial', run)
    tune.tune(settings(), 600, allowed, True, str(tmp_path / 'tuned.yaml'))
    first, last = order.index('--workers'), len(order) - order[::-1].index('--workers')
    assert ('-b' in order[:first] and '--amp --amp-dtype' in order[:first]) == bool(allowed)
    assert ('-b' in order[last:] and '--amp --amp-dtype' in order[last:]) == (not allowed)


@pytest.mark.parametrize('workers', (0, 2))
def test_a_slow_loader_is_measured_by_few_batches(workers, few_digits, monkeypatch):
    """Without workers one batch is enough; with some, as many as may come at once."""
    monkeypatch.setattr(trial, 'without_end', lambda loader: batches(given))
    given = []

    def batches(seen):
        while True:
            seen.append(0.)
            yield [[0] * 16]
    planned = trial.settings_to_measure(
        'train', ['--data-dir', str(few_digits), *map(str, MODEL), '-b', '4', '-j', str(workers), '--device', 'cpu'],
        None)
    found = trial.measure_loader(planned, 0.)
    assert len(found['rates']) == 1 and len(given) == 3 * max(1, workers)


@pytest.mark.parametrize('first, later, counted', (
    (4, 4, 1),  # far slower than there is time for: one after the one that chooses kernels
    (4, 1 / 64, 3),  # only the first is slow, as when kernels are compiled: the fewest
    (1 / 64, 1 / 64, 51),  # as many as there is time for
))
def test_slow_steps_are_measured_by_few(first, later, counted, monkeypatch):
    now, taken = [0.], []

    def step():
        now[0] += later if taken else first
        taken.append(1)
    step.device = torch.device('cpu')
    monkeypatch.setattr(trial, 'training_step', lambda settings: step)
    monkeypatch.setattr(trial, 'time', SimpleNamespace(perf_counter=lambda: now[0]))
    rates = trial.measure_step(settings(), 1.)['rates']
    assert len(rates) == counted
    assert len(taken) - len(rates) == (1 if first > 1 else 13)  # those that warm up: a fifth of the time


@pytest.mark.parametrize('pool, gib', (((0, 0), 0.5), ((0, 3), 7.)))
def test_memory_that_a_graph_keeps_is_counted(pool, gib, monkeypatch):
    """A replay allocates nothing: the counter of tensors does not see the memory in which it computes."""
    module = SimpleNamespace(
        get_device_properties=lambda device: SimpleNamespace(total_memory=80 * 2**30),
        max_memory_allocated=lambda device: 2**29, memory_reserved=lambda device: 7 * 2**30,
        memory_snapshot=lambda: [{'segment_pool_id': (0, 0)}, {'segment_pool_id': pool}])
    monkeypatch.setattr(devices, 'device_module', lambda kind: module)
    assert devices.peak_memory(SimpleNamespace(type='cuda')) == {'peak_gib': gib, 'total_gib': 80.}
