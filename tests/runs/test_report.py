"""The results table and the curves."""
import csv
import shutil

import numpy as np
import pytest
from conftest import ROOT, run_cli
from PIL import Image

from seresnet_timm.errors import UsageError
from seresnet_timm.runs import curves, report
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings, Script

pytestmark = pytest.mark.preloaded

OLD_RUN = ROOT / 'tests' / 'golden' / 'run_before_restructuring' / 'run'


@pytest.fixture
def run(tmp_path):
    """A run's folder as train.py leaves it, with figures that are easy to check."""
    settings = RunSettings(
        verb='train', script=Script('train.py'), device='npu:0', nproc=8, world_size=8,
        args=dict(model='seresnet50_ascend', batch_size=128, device='npu:0', amp=True, amp_dtype='float16'))
    record = RunRecord(settings, tmp_path / 'run')
    record.content['versions']['torch'] = '2.9.0+cpu'
    for epoch, fps in enumerate((100.0, 400.0, 300.0)):
        record.add_epoch(dict(epoch=epoch, fps=fps, train_seconds=1.0))
    with open(record.folder.summary, 'w', newline='') as f:
        writer = csv.DictWriter(f, ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr'])
        writer.writeheader()
        for e, top1 in enumerate((70.1, 77.5214, 77.3)):
            writer.writerow(dict(
                epoch=e, train_loss=2 - e / 2, eval_loss=1.9 - e / 2, eval_top1=top1, eval_top5=90, lr=0.1))
    return record.folder.path


def test_table_and_curves(run):
    result = run_cli('report', run)
    assert result.returncode == 0, result.stderr
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in result.stdout.splitlines()[:3]]
    assert table[0] == ['NAME', 'Acc@1', 'FPS', 'Epochs', 'AMP_Type', 'Torch_Version']
    assert table[2] == ['8p-NPU', '77.521', '300.00', '3', 'O1', '2.9.0']
    assert f'Curves: {run}/curves.png' in result.stdout
    image = np.asarray(Image.open(run / 'curves.png').convert('L'), dtype=float)
    height, width = image.shape
    for panel in (image[:height // 2, :width // 2], image[:height // 2, width // 2:],
                  image[height // 2:, :width // 2], image[height // 2:, width // 2:]):
        assert panel.std() > 10  # something is drawn in each of the four
    assert not list(run.glob('.*'))


def test_several_runs(run):
    result = run_cli('report', run, run)
    assert result.stdout.count('8p-NPU') == 2


def test_run_from_before_the_number_of_the_schema():
    """A folder that the last version before run.json had a schema number wrote; the picture goes beside its copy."""
    rows = report.read_run(OLD_RUN).rows
    best = max(row['eval_top1'] for row in rows)
    table = report.table_row(report.read_run(OLD_RUN))
    assert table['NAME'] == '1p-CPU' and table['Acc@1'] == f'{best:.3f}' and table['Epochs'] == str(len(rows))
    assert table['AMP_Type'] == 'O0' and float(table['FPS']) > 0 and table['Torch_Version'][0].isdigit()


def test_curves_of_a_run_from_before_the_number_of_the_schema(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / 'run')
    report.report([str(tmp_path / 'run')])
    assert Image.open(tmp_path / 'run' / 'curves.png').size == (1200, 780)


def test_run_without_evaluation(run, capsys):
    """--val-split '': a summary without the columns of the evaluation."""
    (run / 'summary.csv').write_text('epoch,train_loss,lr\n0,2.0,0.1\n')
    report.report([str(run)])
    assert '| 8p-NPU | -     |' in capsys.readouterr().out and (run / 'curves.png').is_file()


@pytest.mark.parametrize('text, hint', (
    ('epoch,train_loss,lr\n', 'has no epoch in it yet'),
    ('epoch,train_loss,lr\n0,2.0\n', 'is damaged'),
    ('epoch,train_loss,lr\n0,x,0.1\n', 'is damaged'),
    ('a,b\n1,2\n', 'is not the summary of a run'),
))
def test_damaged_summary(run, text, hint):
    (run / 'summary.csv').write_text(text)
    with pytest.raises(UsageError, match=hint):
        report.read_run(run)


def test_folder_of_an_evaluation(run):
    record = RunRecord(RunSettings('validate', Script('validate.py'), dict(batch_size=1)), run)
    record.set_evaluation(dict(top1=1.))
    with pytest.raises(UsageError, match='is the folder of an evaluation'):
        report.read_run(run)


@pytest.mark.parametrize('missing, hint', (
    ('run.json', 'has no run.json'), ('summary.csv', 'has no summary.csv yet')))
def test_folder_that_is_not_a_run(run, missing, hint):
    (run / missing).unlink()
    result = run_cli('report', run)
    assert result.returncode == 2 and hint in result.stderr and result.stdout == ''


def test_broken_record(run):
    (run / 'run.json').write_text('{"plan": 1')
    assert 'is not the record of a run' in run_cli('report', run).stderr


def test_faults_are_marked(run):
    """Each kind once in an epoch, with a legend; a restart is a fault of the epoch in which the run went on."""
    record = report.read_record(run)
    record['epochs'][1]['bad_steps'], record['epochs'][2]['unreadable_val'] = 3, dict(count=2, files=[])
    record['faults'] = [dict(time='', kind=kind, epoch=epoch, text='') for kind, epoch in (
        ('restart', 1), ('restart', 1), ('restart', 2), ('data_wait', None), ('worker', 0), ('save', 0))]
    assert curves.faults_by_kind(record, [0, 1, 2]) == {
        'restart': [1, 2], 'skipped steps': [1], 'bad images': [2], 'wait for data': [2], 'new worker': [0],
        'failed save': [0]}
    rows = report.read_run(run).rows
    plain, marked = run / 'plain.png', run / 'marked.png'
    curves.draw_curves(record, rows, marked)
    curves.draw_curves(dict(record, faults=[], epochs=[]), rows, plain)
    a, b = (np.asarray(Image.open(p).convert('L'), dtype=float) for p in (plain, marked))
    assert (b[-60:] < 200).sum() > (a[-60:] < 200).sum()  # the legend


def test_restarts_are_faults(run):
    settings = RunSettings(
        verb='train', script=Script('train.py'), args=dict(batch_size=8), device='cpu',
        restarts=['2026-11-26T10:00:00+0000 Rank 1 was killed.'])
    for _ in range(2):  # the second time it is known
        record = RunRecord(settings, run)
        record.continue_from(0, is_same_run=True)
        assert record.content['faults'] == [
            dict(time='2026-11-26T10:00:00+0000', kind='restart', epoch=0, text='Rank 1 was killed.')]
