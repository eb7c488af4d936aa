"""What a training shows and writes while it runs, with both engines: lines, early stop, TensorBoard, status.json."""
import json
import os
import re
import shutil
import struct
from importlib.util import find_spec

import pytest
from conftest import run_cli, train_flags
from terminal import run_in_terminal
from timm_scripts import SCRIPTS, SMALL
from training import load, summary, train, valid_record

from seresnet_timm.engine.loudness import KEPT

pytestmark = pytest.mark.preloaded
ENGINES = [pytest.param(None, id='bundled'), *SCRIPTS]
FULL_ENGINES = ENGINES[:1] + ENGINES[2:]  # the small script has fewer flags and lines
NO_STEPS = ('--lr', 1e-9)  # the metric stays as it is, but for the running statistics of BatchNorm
needs_tensorboard = pytest.mark.skipif(not find_spec('tensorboard'), reason='tensorboard is not installed')


def scripts(folder) -> dict:
    return {'env': {'TIMM_SCRIPTS': str(folder)}} if folder else {}


@pytest.fixture(scope='module', params=[
    ENGINES[0], pytest.param(SMALL, id='small', marks=pytest.mark.slow), *ENGINES[2:]])
def ended_early(few_digits, tmp_path_factory, request):
    """A quiet run that ends before its last epoch: folder, process, scripts."""
    output = tmp_path_factory.mktemp('early')
    events = ['--tensorboard'] if find_spec('tensorboard') else []
    result = train(*train_flags(
        few_digits, output, *NO_STEPS, '--epochs', 12, '--patience', 2, '--early-stop', '-q', *events),
        **scripts(request.param))
    return output / 'run', result, request.param


def test_early_stop(ended_early):
    folder, result, script = ended_early
    record = valid_record(folder)
    rows = summary(folder)
    tops = [float(row['eval_top1']) for row in rows]
    stop = record['early_stop']
    last = len(rows) - 1
    assert last < 11 and stop['epoch'] == last and stop['patience'] == 2 and stop['metric'] == 'top1'
    assert stop['best_epoch'] == last - 2 == tops.index(max(tops)) and stop['best'] == pytest.approx(max(tops))
    assert record['finished'] and not (folder / 'status.json').exists()
    assert f'Early stop after epoch {last}: top1 has not been better for 2 epochs than ' in result.stderr
    assert '--result' in result.stdout or script == SMALL


def test_quiet_run_prints_results_only(ended_early):
    folder, result, script = ended_early
    if script:
        pytest.skip("timm's script prints more on its own")
    assert all(line.startswith(KEPT) for line in result.stderr.splitlines())
    lines = result.stderr.splitlines()
    for epoch, row in enumerate(summary(folder)):
        line = next(line for line in lines if line.startswith(f'Epoch {epoch}: '))
        assert f'top1 {float(row["eval_top1"]):.2f}' in line and f'{epoch + 1} of 12 epochs done' in line
        assert f'loss {float(row["train_loss"]):.4f}' in line
    best = -1.
    for epoch, row in enumerate(summary(folder)):
        is_best, best = float(row['eval_top1']) > best, max(best, float(row['eval_top1']))
        assert any(f'New best: top1 {best:.2f} in epoch {epoch}' in line for line in lines) == is_best


@needs_tensorboard
def test_resumed_run_counts_on_and_writes_no_event_twice(ended_early, few_digits, tmp_path):
    """From its second epoch: it ends where it ended before, and TensorBoard's own reader shows every epoch once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder, _, script = ended_early
    shutil.copytree(folder, tmp_path / 'run')
    before = valid_record(folder)['early_stop']
    result = train(*train_flags(
        few_digits, tmp_path, *NO_STEPS, '--epochs', 12, '--patience', 2, '--early-stop', '-q', '--tensorboard',
        '--resume', tmp_path / 'run' / 'checkpoint-1.pth.tar'), **scripts(script))
    assert valid_record(tmp_path / 'run')['early_stop'] == before, result.stderr
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard')).Reload()
    rows = summary(tmp_path / 'run')
    for tag, column in (('loss/train', 'train_loss'), ('loss/eval', 'eval_loss'), ('eval/top1', 'eval_top1'),
                        ('eval/top5', 'eval_top5'), ('learning_rate', 'lr')):
        found = events.Scalars(tag)
        assert [event.step for event in found] == list(range(len(rows)))
        assert [event.value for event in found] == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    assert len(events.Scalars('images_per_second')) == len(rows)


def test_run_that_ended_early_does_not_go_on(ended_early, few_digits, tmp_path):
    """Unless its flags say so: with the same ones the next start ends at once, without training."""
    folder, _, script = ended_early
    shutil.copytree(folder, tmp_path / 'run')
    weights = load(folder / 'last.pth.tar')['weights_sha256']
    flags = train_flags(few_digits, tmp_path, *NO_STEPS, '--epochs', 12, '--patience', 2, '--early-stop',
                        '--resume', 'auto')
    result = train(*flags, **scripts(script))
    assert 'Early stop after epoch' in result.stderr and 'Train: ' not in result.stderr
    assert load(tmp_path / 'run' / 'last.pth.tar')['weights_sha256'] == weights
    assert valid_record(tmp_path / 'run')['early_stop'] == valid_record(folder)['early_stop']


@pytest.mark.parametrize('script', [
    ENGINES[0], pytest.param(SMALL, id='small', marks=pytest.mark.slow), *ENGINES[2:]])
def test_patience_without_early_stop_is_a_line(few_digits, tmp_path, script):
    result = train(*train_flags(few_digits, tmp_path, *NO_STEPS, '--epochs', 4, '--patience', 1), **scripts(script))
    rows = [float(row['eval_top1']) for row in summary(tmp_path / 'run')]
    worse = sum(top <= max(rows[:i]) for i, top in enumerate(rows) if i)
    assert len(rows) == 4 and result.stderr.count('No new best: top1 has not been better for ') == worse > 0
    assert valid_record(tmp_path / 'run')['early_stop'] is None
    # the lines of steps are as before, with the end of the run behind them
    assert '\033[' not in result.stderr
    if script == SMALL:
        return  # it prints none
    lines = [line for line in result.stderr.splitlines() if line.startswith('Train: ')]
    assert all(re.search(r'Data: \d+\.\d+ \(\d+\.\d+\)(  Left: \d\d:\d\d \(ends .+\))?$', line) for line in lines[-8:])
    assert '(ends ' in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize('script', FULL_ENGINES)
def test_processes_stop_early_together(few_digits, tmp_path, script):
    result = train(*train_flags(
        few_digits, tmp_path, *NO_STEPS, '--epochs', 12, '--patience', 1, '--early-stop', '--nproc', 2,
        '--val-interval', 2), **scripts(script))
    record = valid_record(tmp_path / 'run')
    assert record['early_stop']['epoch'] % 2 == 1  # an epoch with an evaluation
    assert result.stderr.count('Early stop after') == 1 and record['finished']
    assert result.stderr.count('Epoch 0: ') == 1


@pytest.mark.slow
@pytest.mark.parametrize('script', FULL_ENGINES)
@pytest.mark.parametrize('no_color', ['', '1'])
def test_bars_on_a_terminal(few_digits, tmp_path, script, no_color):
    """A real pseudo-terminal, with both engines."""
    text = run_in_terminal(*train_flags(few_digits, tmp_path, '-b', 4), TIMM_SCRIPTS=str(script or ''),
                           NO_COLOR=no_color, TERM='xterm')
    assert re.search(r'Run: +\d+%.*left, ends ', text) and re.search('Train 1: +[0-9]+%.*images/s', text)
    assert re.search(r'Run: .*top1 \d+\.\d\d, best \d+\.\d\d \(epoch 0\)', text)
    assert text.count('Train: 0 [') == 1  # the last line of the epoch only
    assert ('\033[32m' in text) == (not no_color)


def leveldb_records(data: bytes):
    """Records of a log of LevelDB, the format of wandb's files, after their header of 7 bytes."""
    position, parts = 7, []
    while position + 7 <= len(data):
        rest = 32768 - position % 32768  # of the block
        if rest < 7:
            position += rest
            continue
        length, kind = struct.unpack_from('<HB', data, position + 4)
        parts.append(data[position + 7:position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield b''.join(parts)
            parts = []


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('wandb'), reason='wandb is not installed')
@pytest.mark.parametrize('script', FULL_ENGINES)
def test_wandb_offline(few_digits, tmp_path, script):
    """The real package, which writes the rows of summary.csv."""
    from wandb.proto.wandb_internal_pb2 import Record
    env = {'TIMM_SCRIPTS': str(script or ''), 'WANDB_MODE': 'offline', 'WANDB_DIR': str(tmp_path)}
    train(*train_flags(few_digits, tmp_path, '--log-wandb', '--wandb-project', 'digits'), env=env)
    rows, names = [], []
    for data in leveldb_records(next((tmp_path / 'wandb').glob('offline-run-*/run-*.wandb')).read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField('run'):
            names.append((record.run.display_name, record.run.project))
        if record.HasField('history'):
            rows.append({(i.key or '/'.join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
    assert names[0] == ('run', 'digits')
    assert [row['eval_top1'] for row in rows] == [float(row['eval_top1']) for row in summary(tmp_path / 'run')]


def test_run_that_fails_says_so_in_its_status(few_digits, tmp_path):
    """A folder of images that goes while the run trains."""
    shutil.copytree(few_digits, tmp_path / 'data')
    shutil.rmtree(tmp_path / 'data' / 'val')
    (tmp_path / 'data' / 'val').mkdir()
    for name in sorted(os.listdir(tmp_path / 'data' / 'train')):
        (tmp_path / 'data' / 'val' / name).mkdir()
        (tmp_path / 'data' / 'val' / name / 'x.png').write_bytes(b'no image')
    result = run_cli(*train_flags(tmp_path / 'data', tmp_path, '--epochs', 1))
    assert result.returncode == 1
    status = json.loads((tmp_path / 'run' / 'status.json').read_text())
    assert status['state'] == 'failed' and status['text'] and status['pid'] > 0


def test_a_training_leaves_nothing_open(few_digits, tmp_path):
    """Python names files, sockets and pools that nobody has closed."""
    result = run_cli(*train_flags(few_digits, tmp_path, '--epochs', 1, '--workers', 1), fresh=True,
                     env={'PYTHONWARNINGS': 'always::ResourceWarning'})
    assert result.returncode == 0 and 'ResourceWarning' not in result.stderr, result.stderr
