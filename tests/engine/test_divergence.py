"""Runs that diverge: exit code, sentence, files and report, with both engines."""
import json

import pytest
import torch
from conftest import MODEL, ROOT, run_cli, run_here, train_flags
from timm_scripts import file_of
from training import load, valid_record

from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.engine.divergence import refuse_infinite_loss, refuse_infinite_weights
from seresnet_timm.errors import RunError
from seresnet_timm.files import as_json, write_json
from seresnet_timm.runs import report
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings, Script

pytestmark = pytest.mark.preloaded

NEWEST = file_of('validate.py', 'v1.0.28')


@pytest.mark.parametrize('engine', ('bundled', ROOT / 'tests' / 'small_scripts'), ids=('ours', 'a script'))
def test_diverged_run(few_digits, tmp_path, capsys, engine):
    result = run_cli(*train_flags(few_digits, tmp_path, '--lr', 1e20, '--scripts', engine))
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'error: The loss ' in result.stderr.splitlines()[-1] and 'lower the learning rate' in result.stderr
    record = valid_record(tmp_path / 'run')
    assert record['diverged'].startswith('The loss ') and record['best'] is None and record['finished'] is None
    assert not list((tmp_path / 'run').glob('*.pth.tar'))
    report.report([str(tmp_path / 'run')])
    assert f'{tmp_path / "run"} diverged: The loss ' in capsys.readouterr().out


@pytest.mark.parametrize('engine', ('bundled', ROOT / 'tests' / 'small_scripts'), ids=('ours', 'a script'))
def test_finite_weights_whose_outputs_are_not(few_digits, digits_run, tmp_path, engine):
    """Outputs beyond float32: every verb says so, and none gives the top-1 of chance."""
    content = load(digits_run / 'last.pth.tar')
    content['state_dict']['bn1.weight'].fill_(3e38)
    content = {k: v for k, v in content.items() if k != 'weights_sha256'}
    torch.save(content, tmp_path / 'c.pth.tar')
    image = next((few_digits / 'val' / '3').iterdir())
    result = run_here('validate', '--data-dir', few_digits, '--checkpoint', tmp_path / 'c.pth.tar', '--workers', 0,
                      '--device', 'cpu', '--scripts', engine, '--results-file', tmp_path / 'r.csv')
    assert result.returncode == 1 and 'is nan on these images' in result.stderr.splitlines()[-1]
    assert 'top1' not in result.stdout and not (tmp_path / 'r.csv').exists()
    if engine != 'bundled':
        return
    result = run_here('predict', tmp_path / 'c.pth.tar', image, '--json', '--device', 'cpu', '-j', 0)
    assert result.returncode == 1 and json.loads(result.stdout)[0]['error'].startswith('the network has outputs for it')
    result = run_here('explain', tmp_path / 'c.pth.tar', image, '--output', tmp_path / 'e', '--device', 'cpu')
    assert result.returncode == 1 and 'outputs for it that are not finite' in result.stderr
    assert not (tmp_path / 'e').exists()


@pytest.mark.parametrize('engine', ('bundled', pytest.param(NEWEST, marks=pytest.mark.skipif(
    NEWEST is None, reason="TIMM_SCRIPTS does not name a folder with timm's scripts"))), ids=('ours', "timm's"))
def test_a_folder_of_checkpoints_of_which_some_have_no_result(few_digits, digits_run, tmp_path, engine):
    """The others are evaluated; those are named, and the exit code tells it. The folder's name is no pattern."""
    folder = tmp_path / 'runs[1] of *'
    folder.mkdir()
    content = load(digits_run / 'last.pth.tar')
    del content['weights_sha256']
    weight = content['state_dict']['bn1.weight']
    values = weight.clone()
    torch.save({**content, 'model': content['state_dict']}, folder / 'good.pth.tar')
    weight.fill_(3e38)
    torch.save(content, folder / 'large.pth.tar')
    weight.copy_(values)[0] = float('nan')
    torch.save(content, folder / 'nan.pth.tar')
    (folder / 'damaged.pth.tar').write_bytes((folder / 'good.pth.tar').read_bytes()[:1000])
    result = run_here('validate', '--data-dir', few_digits, *MODEL, '--checkpoint', folder, '--workers', 0,
                      '--device', 'cpu', '--scripts', engine)
    assert [row['checkpoint'] for row in json.loads(result.stdout.split('--result')[1])] == [
        str(folder / 'good.pth.tar')]
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and '3 checkpoints left out' in last, result.stderr
    assert all(f'{name}.pth.tar' in last for name in ('damaged', 'large', 'nan')) and 'good' not in last
    assert 'good.pth.tar: weights under state_dict, not under model.' in result.stderr
    for words in ('nan.pth.tar has weights that are not finite', 'large.pth.tar is nan', 'damaged.pth.tar is incom'):
        assert words in result.stderr


def test_report_of_a_run_of_timms_that_diverged(tmp_path, capsys):
    """It has no note in run.json: the numbers of its summary show it."""
    record = RunRecord(RunSettings('train', Script('train.py'), dict(
        model='seresnet18_ascend', batch_size=8, device='cpu')), tmp_path)
    record.add_epoch(dict(epoch=0, fps=1.))
    rows = 'epoch,train_loss,eval_loss,eval_top1,lr\n0,2.5,2.4,20.0,0.1\n1,nan,nan,nan,0.1\n'
    (tmp_path / 'summary.csv').write_text(rows)
    report.report([str(tmp_path)])
    out = capsys.readouterr().out
    assert f'{tmp_path} diverged: train_loss is nan in epoch 1.' in out and '| 20.000 |' in out


def test_weights_that_are_not_finite(tmp_path):
    module = torch.nn.Linear(2, 2)
    refuse_infinite_weights(None, module, 0, None)
    with torch.no_grad():
        module.weight[0, 0] = float('nan')
    refuse_infinite_weights(None, module, 0, dict(loss=1.))  # a finite loss shows that they are finite
    for metrics in (None, dict(loss=float('nan'))):
        with pytest.raises(RunError, match='Weights are no longer finite after epoch 3'):
            refuse_infinite_weights(None, module, 3, metrics)


def test_last_evaluation_without_a_finite_loss():
    refuse_infinite_loss(None, 1.)
    with pytest.raises(RunError, match='The loss of the last evaluation is inf'):
        refuse_infinite_loss(None, float('inf'))


class _Task:
    def get_checkpoint_state(self, ema=False, unwrap_fn=None):
        return {} if ema else {'state_dict': {'w': torch.zeros(1)}}


@pytest.mark.parametrize('metrics, best', (
    ((float('nan'), 50., 40.), 1), ((60., float('nan'), 50.), 0), ((float('nan'), float('inf')), None)))
def test_an_epoch_without_a_metric_is_never_the_best(tmp_path, metrics, best):
    model = torch.nn.Linear(1, 1)
    saver = AtomicCheckpointSaver(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.), args=None, checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path), max_history=2, task=_Task())
    for epoch, metric in enumerate(metrics):
        found = saver.save_checkpoint(epoch, metric)
    assert found[1] == best and (tmp_path / 'model_best.pth.tar').exists() == (best is not None)
    assert (tmp_path / 'last.pth.tar').exists()


def test_json_has_numbers_only(tmp_path):
    value = {'a': float('nan'), 'b': [1.5, (float('inf'), 'é\udcff')], 'c': {'d': -float('inf')}}
    write_json(tmp_path / 'f.json', value)
    for text in (as_json(value), (tmp_path / 'f.json').read_text()):
        assert json.loads(text, parse_constant=pytest.fail) == {'a': None, 'b': [1.5, [None, 'é\udcff']],
                                                                'c': {'d': None}}
