"""Training on the NPU: the CPU's numbers, no waiting of the host, copies beside the computation, DDP as asked."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ascend_emulator import counters, read_counters
from conftest import WIDE, train_flags
from training import bundled_settings, load

from npu.ranks import npu_cli, run_ranks
from seresnet_timm.ascend import optim  # noqa: F401  (registers itself)
from seresnet_timm.engine import epoch, evaluate, train

pytestmark = pytest.mark.preloaded


def run(device, data, output: Path, *flags, **kwargs) -> list:
    """Train in this process; rows of the summary."""
    train.main(bundled_settings(*train_flags(data, output, '--device', device, *flags), **kwargs))
    with open(output / 'run' / 'summary.csv', newline='') as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


# --- the CPU's numbers ------------------------------------------------------------------------------------------------

SETTINGS = {
    'workers, prefetch': ('--workers', 2, '--pin-mem'),
    'much at once': ('--model-ema', '--mixup', 0.2, '--clip-grad', 1, '--grad-accum-steps', 2, '--opt', 'adamw',
                     '--smoothing', 0.1, '--drop-path', 0, '--aa', 'rand-m5', '--no-prefetcher',
                     '--opt-eps', 1e-4, *WIDE),  # a smaller one lets AdamW enlarge differences of rounding
    'no augmentation': ('--no-aug', '--model-kwargs', 'zero_init_last=True', 'channels=(8,16,24,32)',
                        '--sched', 'step'),
}


def run_on_both(data, folder: Path, *flags) -> dict:
    """Train on each device; rows of the summaries."""
    rows = {'cpu': run('cpu', data, folder / 'cpu', *flags)}
    before = counters()['operators']
    rows['npu'] = run('npu', data, folder / 'npu', *flags)
    assert counters()['operators'] - before > 1000, 'not computed on the npu'
    return rows


def assert_equal(on_cpu: list, on_npu: list) -> None:
    assert len(on_npu) == len(on_cpu) == 2
    for a, b in zip(on_cpu, on_npu):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize('flags', [
    pytest.param(flags, id=name, marks=pytest.mark.slow if name in ('no augmentation', 'workers, prefetch') else ())
    for name, flags in SETTINGS.items()])
def test_losses_equal_the_cpus(few_digits, tmp_path, flags):
    rows = run_on_both(few_digits, tmp_path, *flags)
    assert_equal(rows['cpu'], rows['npu'])


@pytest.fixture(scope='module')
def plain(few_digits, tmp_path_factory):
    """The same two epochs on each device, without further settings: rows, and the folder of the outputs."""
    folder = tmp_path_factory.mktemp('plain')
    return run_on_both(few_digits, folder), folder


@pytest.mark.xdist_group('plain')
def test_plain_losses_equal_the_cpus(plain):
    assert_equal(plain[0]['cpu'], plain[0]['npu'])


def test_fused_sgd_is_momentum_sgd(few_digits, tmp_path):
    """Weight decay, momentum and two learning rates; then resumed, with its momentum."""
    flags = ('--weight-decay', 1e-2, '--epochs', 3, '--clip-grad', 5)
    # the CPU's fused optimizer rounds otherwise
    expected = run('cpu', few_digits, tmp_path / 'cpu', *flags, '--opt-kwargs', 'fused=False')
    fused = run('npu', few_digits, tmp_path / 'npu', *flags, '--opt', 'npufusedsgd')
    assert [r['train_loss'] for r in fused] == pytest.approx([r['train_loss'] for r in expected], rel=1e-5)
    resumed = run('npu', few_digits, tmp_path / 'again', *flags, '--opt', 'npufusedsgd',
                  '--resume', tmp_path / 'npu' / 'run' / 'checkpoint-1.pth.tar')
    assert resumed[-1] == pytest.approx(expected[-1], rel=1e-5) and len(resumed) == 1
    state = load(tmp_path / 'npu' / 'run' / 'last.pth.tar')
    assert state['optimizer']['state'], 'no momentum saved'


@pytest.mark.xdist_group('plain')
@pytest.mark.parametrize('first, second', [('npu', 'cpu'), pytest.param('cpu', 'npu', marks=pytest.mark.slow)])
def test_checkpoints_move_between_devices(few_digits, plain, tmp_path, first, second):
    """An epoch here, an epoch there: the losses of two epochs in one place."""
    rows = run(second, few_digits, tmp_path, '--resume', plain[1] / first / 'run' / 'checkpoint-0.pth.tar')
    assert rows == [pytest.approx(plain[0]['cpu'][1], rel=1e-5)]


READ_WITHOUT_NPU = """
import sys
import torch
import ascend_emulator
ascend_emulator.make_torchvision_importable(torch)
import timm
from timm.models import load_checkpoint
import seresnet_timm
from seresnet_timm.checkpoints.read import read_checkpoint
assert not hasattr(torch, 'npu') and 'torch_npu' not in sys.modules
saved = read_checkpoint(sys.argv[1]).content
assert saved['run_state']['rng'][0]['device'] is not None and saved['optimizer']['state']
for use_ema in (False, True):
    model = timm.create_model('seresnet18_ascend', num_classes=10, channels=(8, 16, 24, 32))
    load_checkpoint(model, sys.argv[1], use_ema=use_ema)
    print(sum(p.double().abs().sum().item() for p in model.parameters()))
"""


def test_a_checkpoint_of_the_npu_needs_no_npu(few_digits, tmp_path):
    """Read by us and by timm in a process that knows of no NPU."""
    run('npu', few_digits, tmp_path, '--epochs', 1, '--model-ema', '--model-ema-decay', 0.5)
    path = tmp_path / 'run' / 'last.pth.tar'
    result = subprocess.run(
        [sys.executable, '-c', READ_WITHOUT_NPU, str(path)], capture_output=True, text=True,
        env={**os.environ, 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'})
    assert result.returncode == 0, result.stderr
    saved = load(path)
    names = {k for k in saved['state_dict'] if 'running' not in k and 'num_batches' not in k}
    for line, key in zip(result.stdout.splitlines(), ('state_dict', 'state_dict_ema')):
        assert float(line) == pytest.approx(
            sum(v.double().abs().sum().item() for k, v in saved[key].items() if k in names))


# --- waiting ----------------------------------------------------------------------------------------------------------

class Waits:
    """How often the host waited for the device between two readings of the loss, within an epoch."""

    def __init__(self, monkeypatch):
        self.between = []
        last = None
        waits = self

        class Meter(epoch.LossMeter):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                nonlocal last
                last = None  # a new epoch

            def read_with(self, figures):
                nonlocal last
                if last is not None:
                    waits.between.append(counters()['host_waits'] - last)
                result = super().read_with(figures)
                last = counters()['host_waits']
                return result
        monkeypatch.setattr(epoch, 'LossMeter', Meter)


NO_WAITS = {
    'float32': (), 'bfloat16': ('--amp', '--amp-dtype', 'bfloat16'), 'workers': ('--workers', 1),
    'moving average': ('--model-ema',), 'fused': ('--opt', 'npufusedsgd'), 'mixup': ('--mixup', 0.2),
    'random erasing': ('--reprob', 0.5), 'clipping': ('--clip-grad', 1.), 'agc': ('--clip-grad', .01, '--clip-mode',
                                                                                   'agc'),
}


@pytest.mark.parametrize('flags', [
    pytest.param(flags, id=name, marks=() if name in ('fused', 'agc') else pytest.mark.slow)
    for name, flags in NO_WAITS.items()])
def test_the_host_never_waits_between_log_points(few_digits, tmp_path, monkeypatch, flags):
    waits = Waits(monkeypatch)
    run('npu', few_digits, tmp_path, '--pin-mem', '-b', 8, '--epochs', 2, '--log-interval', 3, *flags)
    assert waits.between == [0] * 8


@pytest.mark.parametrize('half_weights', [False, True], ids=['O1', 'O2'])
def test_nor_with_a_fixed_loss_scale(few_digits, tmp_path, monkeypatch, half_weights):
    waits = Waits(monkeypatch)
    run('npu', few_digits, tmp_path, '--pin-mem', '-b', 8, '--epochs', 1, '--log-interval', 3, '--amp',
        loss_scale=1024., amp_level='O2' if half_weights else 'O1')
    assert waits.between == [0] * 4


def test_a_dynamic_loss_scale_costs_three_reads_a_step(few_digits, tmp_path, monkeypatch):
    """torch_npu's scaler asks whether gradients overflowed, twice, and for its growth: docs/on-ascend.md says so."""
    waits = Waits(monkeypatch)
    run('npu', few_digits, tmp_path, '--pin-mem', '-b', 8, '--epochs', 1, '--log-interval', 1, '--amp')
    per_read = 2  # a copy to the host and a wait for the stream
    assert set(waits.between) == {3 * per_read}


def test_waits_are_seen(few_digits, tmp_path, monkeypatch):
    """The check can fail: without pinned memory every copy to the device makes the host wait."""
    waits = Waits(monkeypatch)
    run('npu', few_digits, tmp_path, '-b', 8, '--epochs', 1, '--log-interval', 3)
    assert min(waits.between) > 0


def test_evaluation_waits_at_log_points_only(few_digits, tmp_path, monkeypatch):
    waits, original = [], evaluate.evaluate

    def evaluated(*args, **kwargs):
        before = counters()['host_waits']
        result = original(*args, **kwargs)
        waits.append(counters()['host_waits'] - before)
        return result
    monkeypatch.setattr(evaluate, 'evaluate', evaluated)
    for interval in (100, 1):
        run('npu', few_digits, tmp_path / str(interval), '--pin-mem', '--epochs', 1, '-b', 5,
            '--log-interval', interval)
    few, many = waits
    assert few * 3 < many  # 14 batches: log lines at the first and the last, or at each


@pytest.mark.parametrize('flags, side_stream', [((), True), (('--no-prefetcher',), False)])
def test_prefetcher_copies_on_its_own_stream(few_digits, tmp_path, flags, side_stream):
    """Images and labels of 7 + 5 batches go to the device beside the computation, which waits for each by an event."""
    before = counters()
    run('npu', few_digits, tmp_path, '--epochs', 1, '--pin-mem', *flags)
    copies, waits = (counters()[k] - before[k] for k in ('side_stream_copies', 'stream_waits'))
    num_batches = 100 // 16 + -(-70 // 16)
    assert copies == (2 * num_batches if side_stream else 0)
    assert waits >= num_batches if side_stream else waits == 0


# --- DDP --------------------------------------------------------------------------------------------------------------

DDP = """
import timm, seresnet_timm
from timm.task import ClassificationTask
from seresnet_timm.step.half_weights import exchange_in_half, use_half_weights
device = torch.device('npu', rank)
for name, kwargs, half in (('plain', {}, False), ('no_ddp_bb', dict(broadcast_buffers=False), False),
                           ('O2', dict(broadcast_buffers=False), True)):
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=10, channels=(32, 64, 128, 256))
    if half:
        use_half_weights(model)
    task = ClassificationTask(model.to(device), criterion=torch.nn.CrossEntropyLoss(), device=device)
    task.prepare_distributed(device_ids=[device], **kwargs)
    if half:
        exchange_in_half(task.get_trainable_module())
    ddp = task.get_trainable_module()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    generator = torch.Generator().manual_seed(rank)
    batches = [(torch.randn(4, 3, 32, 32, generator=generator).to(device),
                torch.randint(10, (4,), generator=generator).to(device)) for _ in range(5)]
    def step(x, y):
        task(x, y)['loss'].backward()
        optimizer.step(); optimizer.zero_grad()
    for batch in batches[:2]:
        step(*batch)  # DDP makes its buckets anew after the first
    before = counters()
    for batch in batches[2:]:
        step(*batch)
    result[name] = {k: v - before[k] for k, v in counters().items()}
    result[name]['buckets'] = len(ddp._get_ddp_logging_data()['rebuilt_bucket_sizes'].split(','))
    result[name]['parameters'] = sum(p.numel() for p in model.parameters())
    result[name]['weights'] = sum(p.double().sum().item() * (i + 1) for i, p in enumerate(model.parameters()))
"""


def test_ddp_sends_what_it_should(tmp_path):
    """Gradients in buckets, once a step, as fp16 with O2; buffers only where they are to be broadcast; no waiting."""
    results = run_ranks(DDP, 2, tmp_path)
    for result in results.values():
        for name, run in result.items():
            assert run['all_reduces'] == 3 * run['buckets'] and run['buckets'] > 1, name
            assert run['host_waits'] == 0, name
            size = 2 if name == 'O2' else 4
            sent = 3 * run['parameters'] * size
            if name != 'plain':
                assert run['collective_bytes'] == sent and run['broadcasts'] == 0, name
        assert result['plain']['broadcasts'] > 0
    for name in results[0]:
        assert results[0][name]['weights'] == results[1][name]['weights'], name
    assert results[0]['plain']['weights'] != results[0]['O2']['weights']


def test_buffers_are_broadcast_unless_told_not_to(few_digits, tmp_path):
    """By a training of two ranks: BatchNorm's buffers at each of five steps, or never with --no-ddp-bb."""
    broadcasts = {}
    for flags in ((), ('--no-ddp-bb',)):
        folder = tmp_path / str(len(flags))
        folder.mkdir()
        result = npu_cli(*train_flags(few_digits, folder, '--device', 'npu', '--nproc', 2, '-b', 10, '--epochs', 1,
                                      '--dist-bn', '', *flags), counters=folder)
        assert result.returncode == 0, result.stderr
        broadcasts[flags] = read_counters(folder)[0]['broadcasts']
    assert broadcasts[()] - broadcasts['--no-ddp-bb',] >= 5
