"""Training runs of the bundled train.py: outputs, resuming, several processes, waiting for the device."""
import csv
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import preloaded
import pytest
import timm
import torch
import yaml
from conftest import MODEL, NARROW, WIDE, run_cli, run_here, train_flags
from terminal import run_in_terminal
from timm.models import load_checkpoint
from timm.task import ClassificationTask
from torch.utils._python_dispatch import TorchDispatchMode
from training import assert_same, bundled_settings, evaluate_plainly, load, summary, train, valid_record

from seresnet_timm.engine import train as engine
from seresnet_timm.engine.epoch import Training, train_one_epoch
from seresnet_timm.engine.evaluate import validate
from seresnet_timm.engine.flags import train_parser
from seresnet_timm.engine.forward import Forward
from seresnet_timm.launch.config_file import load_config

pytestmark = pytest.mark.preloaded


@pytest.fixture(scope='module')
def run(few_digits, tmp_path_factory):
    """A run of two epochs."""
    output = tmp_path_factory.mktemp('run')
    result = train(*train_flags(few_digits, output))
    return output / 'run', result


def test_outputs_are_timms(run):
    folder, result = run
    assert sorted(p.name for p in folder.iterdir()) == [
        'args.yaml', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'last.pth.tar', 'model_best.pth.tar', 'run.json',
        'summary.csv']
    assert list(summary(folder)[0]) == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
    results = json.loads(result.stdout.split('--result')[1])
    assert sorted(r['epoch'] for r in results) == [0, 1] and set(results[0]) == {'epoch', 'train', 'validation'}

    checkpoint = load(folder / 'last.pth.tar')
    assert checkpoint['epoch'] == 1 and checkpoint['arch'] == 'seresnet18_ascend' and checkpoint['version'] == 2
    assert checkpoint['args'].batch_size == 16 and 'optimizer' in checkpoint
    model = timm.create_model('seresnet18_ascend', num_classes=10, **NARROW)
    load_checkpoint(model, str(folder / 'model_best.pth.tar'))  # timm loads ours


def test_decisions_are_printed_once_with_their_reason(run):
    _, result = run
    plan = {line[2:16].strip(): line[17:] for line in result.stderr.splitlines() if line.startswith('  ')}
    assert plan['device'] == 'cpu (asked for with --device)' and plan['processes'] == '1 (one on cpu)'
    assert plan['script'].startswith('bundled train.py of seresnet_timm') and plan['precision'] == 'float32'
    assert plan['loss scaler'] == 'none, not mixed precision'
    assert plan['batch'] == 'global batch size 16 = 16 x 1 process'
    assert plan['learning rate'] == '0.01, momentum, cosine over 2 epochs, 0 of warm-up'
    assert plan['workers'].startswith('0 loader workers') and plan['output'].endswith('/run')
    assert result.stderr.count('asked for with --device') == 1
    assert '\r' not in result.stderr  # no progress bar where there is no terminal


def test_run_record(run):
    folder, _ = run
    record = valid_record(folder)
    assert record['settings']['device'] == 'cpu' and record['settings']['global_batch_size'] == 16
    assert record['settings']['args']['lr'] == 0.01 and record['settings']['args']['opt'] == 'momentum'
    assert record['versions']['torch'] == version('torch') and record['finished']
    info = record['model_info']
    assert (info['name'], info['num_classes'], info['input_size']) == ('seresnet18_ascend', 10, [3, 32, 32])
    assert info['class_names'] == [str(i) for i in range(10)]
    for name in ('last.pth.tar', 'model_best.pth.tar', 'checkpoint-0.pth.tar'):
        assert load(folder / name)['model_info'] == info
    assert [e['epoch'] for e in record['epochs']] == [0, 1]
    for e in record['epochs']:
        assert e['images'] == 96 and e['steps'] == 6 and e['fps'] > 0 and 0 <= e['data_wait_share'] <= 1
    best = max(summary(folder), key=lambda r: float(r['eval_top1']))
    assert record['best'] == {
        'metric': 'top1', 'value': pytest.approx(float(best['eval_top1'])), 'epoch': int(best['epoch'])}


def test_args_yaml_is_a_config(run):
    folder, _ = run
    text = (folder / 'args.yaml').read_text()
    parser = train_parser()
    config = load_config(str(folder / 'args.yaml'), parser, vars(parser.parse_args([]))).values
    assert {k: v for k, v in yaml.safe_load(text).items() if k not in ('data', 'local_rank')} == config
    assert config['opt'] == 'momentum' and config['data_dir']


def test_validate_reproduces_the_best_checkpoint(run, few_digits, tmp_path):
    folder, _ = run
    best = json.loads((folder / 'run.json').read_text())['best']['value']
    result = train(
        'validate', '--data-dir', few_digits, *MODEL,
        '--device', 'cpu', '--workers', 0, '--checkpoint', folder / 'model_best.pth.tar',
        '--results-file', tmp_path / 'r.csv')
    assert json.loads(result.stdout.split('--result')[1])['top1'] == pytest.approx(best, abs=1e-4)
    with open(tmp_path / 'r.csv', newline='') as f:
        assert float(next(csv.DictReader(f))['top1']) == pytest.approx(best, abs=1e-4)


def test_validate_all_checkpoints_of_a_folder(run, few_digits, tmp_path):
    folder, _ = run
    result = train(
        'validate', '--data-dir', few_digits, *MODEL,
        '--device', 'cpu', '--workers', 0, '--checkpoint', folder, '--results-file', tmp_path / 'r.json',
        '--results-format', 'json')
    results = json.loads(result.stdout.split('--result')[1])
    assert len(results) == 4 and results == json.loads((tmp_path / 'r.json').read_text())
    assert results[0]['top1'] == max(r['top1'] for r in results)


RESUMED = ('--epochs', 4, '--opt', 'sgd', '--model-ema', '--drop', 0.2, '--mixup', 0.2, '--aa', 'rand-m5-mstd0.5',
           '--sched-on-updates', '--warmup-epochs', 1, '--checkpoint-hist', 2)


def test_resumed_run_equals_one_that_was_never_stopped(few_digits, tmp_path):
    """Same weights bit for bit, same history, one CSV header, in the same folder."""
    train(*train_flags(few_digits, tmp_path / 'whole', *RESUMED))
    whole = tmp_path / 'whole' / 'run'

    # a run stopped after its second epoch: the schedule is that of four epochs, as training ends before its end
    first = run_until_epoch(2, few_digits, tmp_path / 'resumed')
    assert [r['epoch'] for r in summary(first)] == ['0', '1']
    train(*train_flags(few_digits, tmp_path / 'resumed', *RESUMED, '--resume', first / 'last.pth.tar'))

    assert (first / 'summary.csv').read_text() == (whole / 'summary.csv').read_text()
    a, b = load(whole / 'last.pth.tar'), load(first / 'last.pth.tar')
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(a[key][k], b[key][k]) for k in a[key]), key
    assert a['metric'] == b['metric'] and a['saver'] == b['saver']
    records = [json.loads((folder / 'run.json').read_text()) for folder in (whole, first)]
    assert [e['epoch'] for e in records[1]['epochs']] == [0, 1, 2, 3] and records[0]['best'] == records[1]['best']
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in first.iterdir())


def run_until_epoch(epochs: int, data: Path, output: Path) -> Path:
    """A run of the same flags whose process is killed once `epochs` epochs are saved."""
    process = subprocess.Popen(
        [preloaded.python(), '-m', 'seresnet_timm', *map(str, train_flags(data, output, *RESUMED))],
        env={**os.environ, 'TIMM_SCRIPTS': ''}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    record = output / 'run' / 'run.json'
    while not (record.exists() and len(json.loads(record.read_text())['epochs']) >= epochs):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return output / 'run'


def test_checkpoint_of_another_optimizer(run, few_digits, tmp_path):
    folder, _ = run
    flags = train_flags(few_digits, tmp_path, '--opt', 'adamw', '--resume', folder / 'last.pth.tar')
    result = run_cli(*flags)
    assert result.returncode == 2 and '--no-resume-opt' in result.stderr and not (tmp_path / 'run').exists()
    train(*flags, '--no-resume-opt', '--epochs', 3)


def test_fixed_loss_scale_after_resume():
    """The scale that is asked for, not the one in the checkpoint."""
    from seresnet_timm.step.loss_scaler import create_loss_scaler
    device = torch.device('cpu')
    saved = create_loss_scaler(device, True, 'float16', loss_scale=1024)[0].state_dict()
    weight = torch.ones(1, requires_grad=True)
    scaler, _ = create_loss_scaler(device, True, 'float16', loss_scale=64)
    scaler.load_state_dict(saved)
    for _ in range(2):
        scaler(weight.sum(), torch.optim.SGD([weight], lr=0.1))
        assert scaler.state_dict()['scale'] == 64


def test_mixup_stays_off_after_resume(few_digits, tmp_path, monkeypatch):
    """Worker processes that start after --mixup-off-epoch mix nothing."""
    targets = []

    def spy(run, epoch):
        targets.extend(target.max().item() for _, target in run.train_loader)
        raise KeyboardInterrupt
    monkeypatch.setattr(engine, 'train_one_epoch', spy)
    flags = train_flags(few_digits, tmp_path, '--workers', 1, '--mixup', 0.8, '--smoothing', 0, '--mixup-off-epoch', 1)
    for epoch, mixed in ((0, True), (1, False)):
        targets.clear()
        with pytest.raises(SystemExit):
            engine.main(bundled_settings(*flags, '--start-epoch', epoch))
        assert (min(targets) < 0.99) == mixed


def test_damaged_checkpoint_among_others(run, few_digits, tmp_path):
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    data = (run[0] / 'last.pth.tar').read_bytes()
    (folder / 'good.pth.tar').write_bytes(data)
    for name in ('bad.pth.tar', 'tmp.pth.tar'):
        (folder / name).write_bytes(data[:1000])
    result = run_cli(
        'validate', '--data-dir', few_digits, *MODEL,
        '--device', 'cpu', '--workers', 0, '--checkpoint', folder)
    assert result.returncode == 1 and 'bad.pth.tar' in result.stderr.splitlines()[-1]
    assert [Path(r['checkpoint']).name for r in json.loads(result.stdout.split('--result')[1])] == ['good.pth.tar']
    assert result.stderr.count('Left out: Checkpoint') == 1 and 'bad.pth.tar' in result.stderr


def test_nothing_left_to_train(run, few_digits, tmp_path):
    shutil.copytree(run[0], tmp_path / 'run')
    result = train(*train_flags(few_digits, tmp_path, '--resume', tmp_path / 'run' / 'last.pth.tar'))
    assert 'Nothing left to train: 2 of 2 epochs are done.' in result.stderr


def test_modelzoo_checkpoint_as_initial_weights(few_digits, tmp_path):
    from reference_network import _formats
    _, formats = _formats()
    torch.save(formats['ModelZoo'], tmp_path / 'modelzoo.pth.tar')
    flags = train_flags(few_digits, tmp_path, '--epochs', 1, '--lr', 1e-9, *WIDE)
    train(*flags, '--initial-checkpoint', tmp_path / 'modelzoo.pth.tar')
    trained = load(tmp_path / 'run' / 'last.pth.tar')['state_dict']
    torch.testing.assert_close(trained['conv1.weight'], formats['timm']['conv1.weight'], atol=1e-5, rtol=1e-5)
    result = run_cli(*flags, '--resume', tmp_path / 'modelzoo.pth.tar')
    assert result.returncode == 2 and '--initial-checkpoint instead of --resume' in result.stderr


def test_two_processes_train_and_evaluate_as_one(few_digits, tmp_path):
    """DDP on the CPU: half the batch on each of two processes is the whole batch on one."""
    common = ('--no-aug', '--epochs', 1, '--momentum', 0.5)
    result = train(*train_flags(few_digits, tmp_path / 'two', *common, '-b', 8, '--fast-jpeg', 'off'), torchrun=2)
    assert 'processes      2 (started by torchrun)' in result.stderr
    assert result.stderr.count('bundled train.py') == 1
    run = tmp_path / 'two' / 'run'
    row = summary(run)[0]
    record = valid_record(run)
    assert record['settings']['world_size'] == 2 and record['epochs'][0]['images'] == 96
    assert 'rank' not in record['settings']['args']  # the same on all ranks

    # the 70 validation images, of which no rank has as many as the other, against timm's model on all of them
    model = timm.create_model('seresnet18_ascend', num_classes=10, **NARROW)
    load_checkpoint(model, str(run / 'last.pth.tar'))
    expected = evaluate_plainly(model, few_digits)
    assert [float(row['eval_top1']), float(row['eval_loss'])] == pytest.approx(expected)
    assert len(load(run / 'last.pth.tar')['run_state']['rng']) == 2


@pytest.fixture(scope='module')
def one_process_result(run, few_digits):
    return validate_on(1, run[0], few_digits)


def validate_on(processes: int, folder: Path, data: Path) -> dict:
    result = train(
        'validate', '--data-dir', data, *MODEL, '-b', 16,
        '--device', 'cpu', '--workers', 0, '--checkpoint', folder / 'last.pth.tar',
        torchrun=processes if processes > 1 else 0)
    return json.loads(result.stdout.split('--result')[1])


@pytest.mark.slow
@pytest.mark.parametrize('processes', (2, 3))
def test_validation_counts_every_image_once(run, few_digits, one_process_result, processes):
    """Every figure; the normal run compares accuracy and loss of 2 processes (the test above)."""
    result = validate_on(processes, run[0], few_digits)
    assert result == pytest.approx(one_process_result, abs=2e-6)


class CountReads(TorchDispatchMode):
    """Counts the operator with which the host reads a number from a tensor, and so waits for the device."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def count_reads(monkeypatch):
    """All ways in which Python reads a tensor's values: the operator behind item(), and tolist() and numpy()."""
    counter = CountReads()
    for name in ('item', 'tolist', 'numpy', 'cpu'):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            # the operator behind item() is seen by the dispatch mode, but not in inference mode
            counter.reads += name != 'item' or torch.is_inference_mode_enabled()
            return original(self, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, counted)
    return counter


def batches(count: int):
    class Loader(list):
        dataset = sampler = None
        mixup_enabled = False
    g = torch.Generator().manual_seed(0)
    return Loader((torch.randn(4, 3, 32, 32, generator=g), torch.arange(4)) for _ in range(count))


@pytest.mark.parametrize('log_interval, log_points', ((4, 4), (100, 2)))
def test_host_waits_for_the_device_at_log_points_only(count_reads, log_interval, log_points):
    args = train_parser().parse_args(['--log-interval', str(log_interval), '--clip-grad', '1.0'])
    args.prefetcher, args.distributed, args.world_size, args.rank = True, False, 1, 0
    model = timm.create_model('seresnet18_ascend', num_classes=10, **NARROW)
    forward = Forward(torch.device('cpu'), nullcontext)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), device=forward.device, verbose=False)
    task.setup_ema(decay=0.9)
    optimizer = timm.optim.create_optimizer_v2(model, 'momentum', lr=0.01)
    run = Training(args, forward, task, optimizer, train_loader=batches(12), updates_per_epoch=12)
    with count_reads:
        train_one_epoch(run, 0)
    assert count_reads.reads == log_points

    count_reads.reads = 0
    with count_reads:
        validate(model, batches(12), forward, args)
    # at a log point the sums and this batch's share of them are read, two tensors each; at the end the result
    assert count_reads.reads == 4 * log_points + 2


def test_amp(few_digits, tmp_path):
    """bfloat16 autocast, where the CPU is quick enough for a few steps."""
    result = train(*train_flags(few_digits, tmp_path, '--amp', '--amp-dtype', 'bfloat16', '--epochs', 1))
    assert 'precision      amp bfloat16\n' in result.stderr
    assert 'loss scaler    none, bfloat16 has the exponent range of float32\n' in result.stderr
    assert load(tmp_path / 'run' / 'last.pth.tar')['state_dict']['conv1.weight'].dtype == torch.float32


@pytest.mark.slow
def test_progress_bar_on_a_terminal(few_digits, tmp_path):
    """A real pseudo-terminal."""
    text = run_in_terminal(*train_flags(few_digits, tmp_path, '--epochs', 1))
    assert 'Train 0: ' in text and '\r' in text and 'images/s' in text
    assert text.count('Train: 0 [') == 1  # the last line of the epoch only


def test_resume_with_split_batch_norm(few_digits, tmp_path):
    """The network that is compared with the checkpoint has no memory, nor have the layers that split it."""
    flags = train_flags(
        few_digits, tmp_path, '--model-ema', '--split-bn', '--aug-splits', 2, '--resplit', '--resume', 'auto')
    train(*flags, '--epochs', 1)
    train(*flags, '--epochs', 2)
    assert [row['epoch'] for row in summary(tmp_path / 'run')] == ['0', '1']


def test_finetuning_goes_on_by_the_same_command(digits_run, few_digits, tmp_path):
    """The weights with which it began are named again, and may be gone: it does not go on with them."""
    weights = str(shutil.copy(digits_run / 'last.pth.tar', tmp_path / 'weights.pth.tar'))
    flags = train_flags(few_digits, tmp_path, '--initial-checkpoint', weights, '--sched', 'none')
    train(*flags, '--resume', 'auto', '--epochs', 1)
    last = tmp_path / 'run' / 'last.pth.tar'
    os.unlink(weights)
    for resume in ('auto', last):  # the second one is that of the command which a run prints when it is stopped
        result = train(*flags, '--resume', resume, '--epochs', 2)
        assert f'goes on with the weights of {last}, not with those of --initial-checkpoint' in result.stderr
        assert 'that file is gone, and is not needed' in result.stderr
    assert valid_record(tmp_path / 'run')['settings']['args']['initial_checkpoint'] == weights
    for other in ('--initial-checkpoint', '--pretrained-path'):
        refused = run_here(*train_flags(few_digits, tmp_path / 'new', other, weights, '--resume', 'auto'))
        assert refused.returncode == 2 and f'{other} {weights} does not exist' in refused.stderr
    train(*train_flags(few_digits, tmp_path / 'whole', '--initial-checkpoint', digits_run / 'last.pth.tar', '--sched',
                       'none', '--epochs', 2))
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'run')
    refused = run_here(*flags, '--resume', digits_run / 'last.pth.tar', '--experiment', 'other', '--dry-run')
    assert refused.returncode == 2 and 'both name weights to start with' in refused.stderr
