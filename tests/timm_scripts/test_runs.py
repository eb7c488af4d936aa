"""Runs of timm's scripts under the launcher: those of tests/small_scripts, and timm's own where they are there."""
import ast
import csv
import json
import os
import subprocess
from pathlib import Path

import preloaded
import pytest
import torch
from conftest import ROOT, train_flags
from timm_scripts import SCRIPTS, SMALL, known_files
from training import evaluate_plainly, load, summary, valid_record
from training import train as run

from seresnet_timm.timm_scripts import known

pytestmark = pytest.mark.preloaded


def shape_of(value):
    """Keys and types of a JSON value, whatever its numbers are."""
    if isinstance(value, dict):
        return {k: shape_of(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape_of(v) for v in value]
    return type(value)


# --- train.py ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('folder', SCRIPTS)
@pytest.mark.parametrize('processes', (pytest.param(1, marks=pytest.mark.slow), 2))
def test_run_equals_the_bundled_scripts(few_digits, tmp_path, folder, processes):
    """Same losses, accuracies and learning rates, with shuffling, workers and augmentation; the same run.json."""
    flags = ('-b', 16 // processes, '--nproc', processes, '--workers', 1, '--seed', 7, '--smoothing', 0,
             '--color-jitter', 0, '--train-interpolation', 'bilinear')
    rows, records, checkpoints = [], [], []
    for scripts in (folder, 'bundled'):
        output = tmp_path / Path(scripts).name
        run(*train_flags(few_digits, output, *flags, '--scripts', scripts))
        rows.append(summary(output / 'run'))
        records.append(valid_record(output / 'run'))
        checkpoints.append(load(output / 'run' / 'last.pth.tar'))
    for own, bundled in zip(*rows):
        assert own.keys() == bundled.keys()
        assert [float(v) for v in own.values()] == pytest.approx([float(v) for v in bundled.values()], rel=1e-5)
    assert [e['images'] for e in records[0]['epochs']] == [96, 96] and records[0]['epochs'][0]['fps'] > 0
    assert records[0]['finished'] and records[0]['best'] == records[1]['best']
    assert records[0]['best']['metric'] == 'top1'
    assert [e['bad_steps'] for record in records for e in record['epochs']] == [0] * 4
    for key in ('epochs', 'best', 'model_info'):
        assert shape_of(records[0][key]) == shape_of(records[1][key]), key
    assert checkpoints[0]['model_info'] == checkpoints[1]['model_info'] == records[0]['model_info']
    assert records[0]['model_info']['class_names'] == [str(i) for i in range(10)]
    assert shape_of(checkpoints[0]['run_state']) == shape_of(checkpoints[1]['run_state'])


@pytest.mark.parametrize('folder', SCRIPTS)
def test_resumed_run(few_digits, tmp_path, folder):
    """With dropout: an epoch that is trained again after a resume has the loss that it had.

    Into its own folder: one header, the best metric, and the evaluation of what was saved.
    """
    flags = train_flags(few_digits, tmp_path, '--scripts', folder, '--drop', 0.5)
    run(*flags)
    rows = summary(tmp_path / 'run')
    run(*flags, '--resume', tmp_path / 'run' / 'checkpoint-0.pth.tar')
    assert summary(tmp_path / 'run') == rows

    last = tmp_path / 'run' / 'last.pth.tar'
    checkpoint = load(last)
    checkpoint['saver']['best_metric'], checkpoint['saver']['pending'] = 99.9, (None, None)
    torch.save(checkpoint, last)
    run(*flags, '--epochs', 3, '--resume', last)
    assert [r['epoch'] for r in summary(tmp_path / 'run')] == ['0', '1', '2']
    assert load(last)['saver']['best_metric'] == 99.9  # not replaced by the third epoch's
    record = valid_record(tmp_path / 'run')
    assert [e['epoch'] for e in record['epochs']] == [0, 1, 2]
    assert record['best']['value'] == 99.9 and record['finished']


@pytest.mark.parametrize('folder', SCRIPTS)
def test_skipped_evaluations(few_digits, tmp_path, folder):
    """Epochs without an evaluation are in run.json too."""
    if folder == SMALL:
        pytest.skip('the small script has no --val-interval')
    run(*train_flags(few_digits, tmp_path, '--scripts', folder, '--val-interval', 2, '--epochs', 3))
    record = valid_record(tmp_path / 'run')
    assert [(e['epoch'], e.get('eval_seconds') is not None) for e in record['epochs']] == [
        (0, False), (1, True), (2, True)]
    assert [r['epoch'] for r in summary(tmp_path / 'run')] == ['1', '2'] and record['best']


@pytest.mark.slow
@pytest.mark.parametrize('folder', SCRIPTS)
def test_loss_scaler(few_digits, tmp_path, folder):
    """A fixed loss scale in float16, on the CPU, stays and is saved."""
    run(*train_flags(few_digits, tmp_path, '--scripts', folder, '--amp', '--loss-scale', 1024, '--epochs', 1,
                     '--img-size', 16, '-b', 4, '--train-split', 'val'), timeout=280)
    state = load(tmp_path / 'run' / 'last.pth.tar')['amp_scaler']
    assert state['scale'] == 1024 and state['_growth_tracker'] == 0


@pytest.mark.parametrize('tag, file', known_files('train.py'))
def test_every_known_script_trains_and_resumes(few_digits, tmp_path, tag, file):
    """On two processes with a moving average: the script's numbers, and one history."""
    flags = train_flags(few_digits, tmp_path, '--scripts', file, '-b', 8, '--nproc', 2, '--epochs', 1, '--model-ema')
    run(*flags)
    last = tmp_path / 'run' / 'last.pth.tar'
    run(*flags, '--epochs', 2, '--resume', last)
    assert [r['epoch'] for r in summary(tmp_path / 'run')] == ['0', '1']
    record, checkpoint = valid_record(tmp_path / 'run'), load(last)
    assert record['finished'] and record['best'] and [e['epoch'] for e in record['epochs']] == [0, 1]
    assert checkpoint['state_dict'].keys() == checkpoint['state_dict_ema'].keys()
    assert checkpoint['model_info']['name'] == 'seresnet18_ascend'


# the flags are those of the settings; what stands on the command line is not read
READS = '''
import sys, torch
folder, settings = sys.argv[1:]
sys.argv = ['train.py', '--no-such-flag']
counts = {'train': 0}
inside = []
original = torch.Tensor.item
tolist = torch.Tensor.tolist
def is_loader(frame):  # the loader draws its shuffle and seeds on the host
    return 'torch/utils/data' in frame.f_code.co_filename
def item(self):
    counts['train'] += bool(inside) and not is_loader(sys._getframe(1))
    return original(self)
def to_list(self):
    counts['train'] += bool(inside) and not is_loader(sys._getframe(1))
    return tolist(self)
torch.Tensor.item, torch.Tensor.tolist = item, to_list
import json
from dataclasses import replace
import seresnet_timm
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.timm_scripts.find import find
from seresnet_timm.timm_scripts import load
from seresnet_timm.timm_scripts.train_overrides import TrainOverrides
script = find('train.py', folder)
args = vars(load.parser_of(script).parse_args(json.loads(settings)))
install = TrainOverrides.install
def install_counting(self, module):
    train = module.train_one_epoch
    def counted(*args, **kwargs):
        inside.append(1)
        result = train(*args, **kwargs)
        inside.clear()
        return result
    module.train_one_epoch = counted
    install(self, module)
TrainOverrides.install = install_counting
load.run(RunSettings(verb='train', script=script, args=args, output=args['output'] + '/run'))
print('READS', counts['train'])
'''


@pytest.mark.parametrize('folder, reads', [pytest.param(*SCRIPTS[0].values, 1, id='small'), pytest.param(
    *SCRIPTS[1].values, 4, id='timm', marks=SCRIPTS[1].marks)])
def test_training_does_not_wait_for_the_device(few_digits, tmp_path, folder, reads):
    """12 steps: the small script reads the epoch's mean; timm's also logs, at steps 0, 5, 10 and 11."""
    flags = [str(f) for f in train_flags(few_digits, tmp_path, '-b', 8, '--epochs', 1, '--log-interval', 5)][1:]
    (tmp_path / 'reads.py').write_text(READS)
    result = subprocess.run(
        [preloaded.python(), '-m', 'reads', str(folder), json.dumps(flags)], capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split('READS')[1]) == reads


def test_no_module_of_the_package_holds_settings():
    """Overrides and patches are bound to the settings of a run: no module variable is set by a function."""
    for path in (ROOT / 'seresnet_timm' / 'timm_scripts').glob('*.py'):
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Global)], path


# --- validate.py ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def modelzoo_checkpoint(tmp_path_factory):
    from reference_network import _formats
    _, formats = _formats()
    path = tmp_path_factory.mktemp('modelzoo') / 'model_best.pth.tar'
    torch.save(formats['ModelZoo'], path)
    return path, formats['timm']


@pytest.fixture(scope='module')
def expected(modelzoo_checkpoint, few_digits):
    import timm
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    model.load_state_dict(modelzoo_checkpoint[1])
    return evaluate_plainly(model, few_digits)


def evaluate(few_digits, tmp_path, checkpoint, scripts, processes, results_format='json'):
    return run(
        'validate', '--data-dir', few_digits, '--model', 'seresnet18_ascend', '--num-classes', 10, '--img-size', 32,
        '-b', 16, '--workers', 0, '--device', 'cpu', '--nproc', processes, '--scripts', scripts,
        '--fast-jpeg', 'off', '--checkpoint', checkpoint,
        '--results-file', tmp_path / 'results', '--results-format', results_format)


@pytest.mark.parametrize('folder', [*SCRIPTS, pytest.param('bundled', id='bundled', marks=pytest.mark.slow)])
@pytest.mark.parametrize('processes', (pytest.param(1, marks=pytest.mark.slow), 3))
def test_evaluation_counts_every_image_once(few_digits, tmp_path, modelzoo_checkpoint, expected, folder, processes):
    """A ModelZoo checkpoint, 70 images on 1 and 3 processes, against every image by itself."""
    result = evaluate(few_digits, tmp_path, modelzoo_checkpoint[0], folder, processes)
    printed = json.loads(result.stdout.split('--result')[1])
    assert printed == json.loads((tmp_path / 'results').read_text())
    assert printed['top1'] == pytest.approx(expected[0], abs=1e-4)
    if folder == 'bundled':
        assert printed['loss'] == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize('tag, file', known_files('validate.py'))
def test_every_known_script_evaluates(few_digits, tmp_path, modelzoo_checkpoint, expected, tag, file):
    evaluate(few_digits, tmp_path, modelzoo_checkpoint[0], file, 2, 'csv')
    with open(tmp_path / 'results', newline='') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 1 and float(rows[0]['top1']) == pytest.approx(expected[0], abs=1e-4)
    assert known.tag_of('validate.py', known.sha256_of(file.read_bytes())) == tag
