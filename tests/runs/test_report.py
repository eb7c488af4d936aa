"""The results table and the curves."""
import csv
import errno
import io
import json
import math
import os
import re
import shutil
import subprocess
import time

import jsonschema
import numpy as np
import preloaded
import pytest
from conftest import ROOT, run_cli, run_here
from PIL import Image
from test_predictions import make

from seresnet_timm import files
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.runs import curves, fonts, report, report_rows
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.read import read_run
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.runs.status import Status, write_status

pytestmark = pytest.mark.preloaded

SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / 'seresnet_timm/runs/report.schema.json').read_text()))
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


def test_a_table_in_a_narrow_terminal(run):
    """A column for each run where a row is too wide; the same texts."""
    rows = [report_rows.row_of(read_run(str(run)), name) for name in ('first', 'second-' + 'x' * 20, 'third')]

    def cells(text):
        return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line]
    wide = report_rows.as_markdown(rows)
    assert report_rows.as_markdown(rows, 200) == wide
    tables = report_rows.as_markdown(rows, 70).split('\n\n')
    assert len(tables) == 2 and all(len(line) <= 70 for table in tables for line in table.splitlines())
    turned = [list(column) for table in tables for column in list(zip(*cells(table)))[1:]]
    heads, _, *texts = cells(wide)
    assert [[row[0], *row[2:]] for row in turned] == texts
    labels = [row[0] for row in cells(tables[0])]
    assert [labels[0], *labels[2:]] == heads


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


def test_error_of_a_rank_of_gigabytes(run):
    record = json.loads((run / 'run.json').read_text())
    (run / 'run.json').write_text(json.dumps(dict(record, finished=None)))
    (run / 'logs').mkdir(exist_ok=True)
    with open(run / 'logs' / 'error.json', 'wb') as file:
        file.truncate(1 << 33)
    assert report.read_run(run).state[0] == 'unfinished'


def test_control_characters_of_a_record(run, capsys):
    record = json.loads((run / 'run.json').read_text())
    record['versions']['torch'] = record['settings']['device'] = '\x1b[2Jx'
    (run / 'run.json').write_text(json.dumps(record))
    report.report([str(run)])
    assert '\x1b' not in capsys.readouterr().out


def test_summary_that_excel_has_saved(run):
    before = report.read_run(run).rows
    text = (run / 'summary.csv').read_bytes().replace(b'\r\n', b'\n').replace(b'\n', b'\r\n')
    (run / 'summary.csv').write_bytes(b'\xef\xbb\xbf' + text)
    assert report.read_run(run).rows == before


def test_run_of_timms_own_script(run):
    (run / 'run.json').unlink()
    with pytest.raises(UsageError, match="timm's own train.py, which writes none, made this run"):
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


def test_a_file_and_a_folder_that_is_not_there(run):
    for path, words in ((run / 'run.json', 'is not a folder'), (run / 'none', 'does not exist')):
        with pytest.raises(UsageError, match=words):
            report.read_run(path)


def test_broken_record(run):
    (run / 'run.json').write_text('{"plan": 1')
    assert 'is not the record of a run' in run_cli('report', run).stderr


def test_faults_are_marked(run):
    """Each kind once in an epoch, with a legend; a restart is a fault of the epoch in which the run went on."""
    record = report.read_record(run)
    record['epochs'][1]['bad_steps'], record['epochs'][2]['unreadable_val'] = 3, dict(count=2, files=[])
    record['faults'] = [dict(time='', kind=kind, epoch=epoch, text='') for kind, epoch in (
        ('restart', 1), ('restart', 1), ('restart', 2), ('data_wait', None), ('worker', 0), ('save', 0))]
    record['resumes'] = [dict(time='', epoch=1), dict(time='', epoch=1)]
    assert curves.faults_by_kind(record, [0, 1, 2]) == {
        'restart': [1, 2], 'skipped steps': [1], 'bad images': [2], 'wait for data': [2], 'new worker': [0],
        'failed save': [0], 'resume': [1]}
    rows = report.read_run(run).rows
    plain, marked = run / 'plain.png', run / 'marked.png'
    curves.draw_curves(record, rows, marked)
    curves.draw_curves(dict(record, faults=[], epochs=[]), rows, plain)
    a, b = (np.asarray(Image.open(p).convert('L'), dtype=float) for p in (plain, marked))
    assert (b[-60:] < 200).sum() > (a[-60:] < 200).sum()  # the legend


# --- several runs -----------------------------------------------------------------------------------------------------

def copy_of(run, target, **changes):
    """A copy of a run's folder with other values at the top of run.json."""
    shutil.copytree(run, target)
    record = json.loads((target / 'run.json').read_text())
    record.update(changes)
    (target / 'run.json').write_text(json.dumps(record))
    return target


def refuse_constant(text):
    raise ValueError(f'{text} is not JSON')


def test_runs_of_the_same_name_and_every_state_side_by_side(run, tmp_path, capsys):
    """In Markdown, CSV and JSON with the same numbers; a run without an epoch has a row beside others."""
    when = '2026-11-26T10:00:00+0000'
    fault = dict(time=when, kind='bad_images', epoch=3, text='31 images cannot be read.')
    args = json.loads((run / 'run.json').read_text())['settings']
    args['args']['epochs'] = 9
    odd = tmp_path / os.fsdecode(b'caf\xe9 | `x` \x1b[31m')
    runs = [
        copy_of(run, tmp_path / 'a' / 'run', finished=when), copy_of(run, tmp_path / 'b' / 'run', diverged='NaN.'),
        copy_of(run, tmp_path / 'c' / 'run', finished=when, settings=args), copy_of(run, odd, faults=[fault]),
        copy_of(run, tmp_path / 'begun', epochs=[])]
    (runs[-1] / 'summary.csv').unlink()
    files = {kind: str(tmp_path / f'out.{kind}') for kind in ('markdown', 'csv', 'json')}
    (tmp_path / 'pictures').mkdir()
    report.report([str(r) for r in runs], report.Outputs(files, str(tmp_path / 'pictures')))
    out = capsys.readouterr().out
    document = json.loads((tmp_path / 'out.json').read_text('ascii'), parse_constant=refuse_constant)
    SCHEMA.validate(document)
    rows = document['runs']
    names = [os.path.join('a', 'run'), os.path.join('b', 'run'), os.path.join('c', 'run'), odd.name, 'begun']
    assert [r['name'] for r in rows] == names
    assert [r['state'] for r in rows] == ['finished', 'diverged', 'stopped early', 'failed', 'unfinished']
    assert rows[3]['reason'] == fault['text'] and f'{runs[1]} diverged: NaN.' in out and 'after 3 of 9 epochs.' in out
    assert rows[0]['top1'] == 77.5214 and rows[0]['top5'] == 90 and rows[0]['best_epoch'] == 1
    assert rows[0]['batch_size'] == 1024 and rows[0]['images_per_second'] == 300 and rows[0]['seconds'] == 3
    assert rows[4]['top1'] is None and rows[4]['seconds'] is None and rows[0]['soc'] is None
    assert [e['images_per_second'] for e in rows[0]['per_epoch']] == [100, 400, 300]
    text = (tmp_path / 'out.csv').read_bytes().decode('utf-8', 'surrogateescape')
    table = list(csv.DictReader(io.StringIO(text, newline='')))
    assert [[r[k] for k in table[0]] for r in table] == [
        ['' if r[k] is None else str(r[k]) for k in table[0]] for r in rows]
    assert '\x1b' not in out and out.count('8p-NPU') == 5
    assert (tmp_path / 'out.markdown').read_text() in out.replace('\n\n', '\n')
    lines = (tmp_path / 'out.markdown').read_text().splitlines()
    assert {len(re.findall(r'(?<!\\)\|', line)) for line in lines} == {14}
    assert Image.open(tmp_path / 'pictures' / 'curves.png').format == 'PNG' and not (runs[0] / 'curves.png').exists()


def test_json_of_predictions_and_of_a_diverged_run_keeps_its_schema(run, tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA.schema)
    of_record = json.loads((ROOT / 'seresnet_timm/runs/run.schema.json').read_text())
    assert SCHEMA.schema['properties']['runs']['items']['properties']['faults'] == of_record['properties']['faults']
    summary = run / 'summary.csv'
    summary.write_text(summary.read_text().replace('77.3', 'nan').replace('0.9', 'inf'))
    runs = [read_run(str(run)), read_run(str(OLD_RUN))]
    found = make(3, unreadable=2)
    found.probability[5] = math.nan
    report.report_runs(runs, [found, None], report.Outputs({'json': str(tmp_path / 'out.json')}, str(tmp_path)))
    document = json.loads((tmp_path / 'out.json').read_text('ascii'), parse_constant=refuse_constant)
    SCHEMA.validate(document)
    assert document['runs'][0]['predictions']['unreadable'] == ['0.jpg', '1.jpg']
    for change in (lambda d: d['runs'][0].pop('state'), lambda d: d['runs'][0].update(state='lost'),
                   lambda d: d['runs'][0]['predictions']['classes'][0].update(top1='high')):
        wrong = json.loads(json.dumps(document))
        change(wrong)
        assert not SCHEMA.is_valid(wrong)


def test_no_run_with_an_epoch(run, tmp_path):
    for name in ('a', 'b'):
        (copy_of(run, tmp_path / name) / 'summary.csv').unlink()
    with pytest.raises(UsageError, match='2 problems(.|\n)*no epoch was evaluated'):
        report.report([str(tmp_path / 'a'), str(tmp_path / 'b')])


def test_a_run_that_a_rank_has_ended(run):
    """Its error is the reason, unless the run went on after it."""
    place = run / 'logs' / 'node0' / 'x' / 'attempt_0' / '1'
    place.mkdir(parents=True)
    extra = dict(py_callstack='', timestamp=str(int(time.time())))
    message = dict(message='RunError: Out of memory.\nMore', extraInfo=extra)
    (place / 'error.json').write_text(json.dumps({'message': message}))
    assert report.read_run(run).state == ('failed', 'Out of memory.')
    os.utime(run / 'run.json', (time.time() + 60,) * 2)
    assert report.read_run(run).state == ('unfinished', None)


@pytest.mark.parametrize('changes, state', (
    (dict(early_stop=dict(epoch=2, patience=5, metric='top1', best=77.5, best_epoch=1), finished='x'),
     ('stopped early', 'top1 had not been better for 5 epochs.')),
    (dict(finished='x'), ('finished', None)),
    ({}, ('failed', 'No memory.')),
))
def test_states_that_a_run_has_noted(run, tmp_path, changes, state):
    """In run.json; and in status.json where run.json says that it has not finished."""
    folder = copy_of(run, tmp_path / 'copy', **changes)
    status = Status.of_this_process(RunSettings('train', Script('train.py'), dict(batch_size=1)))
    status.state, status.text = 'failed', 'No memory.'
    write_status(RunFolder(folder).status, status)
    assert report.read_run(folder).state == state


def test_a_run_that_a_signal_has_stopped(run):
    write_status(RunFolder(run).status, Status(state='stopped', text='SIGTERM'))
    assert report.read_run(run).state == ('unfinished', 'stopped by SIGTERM.')
    write_status(RunFolder(run).status, Status(state='stopped'))
    assert report.read_run(run).state == ('unfinished', None)


def test_a_run_that_is_going_on(run):
    with RunFolder(run).exclusive():
        assert report.read_run(run).state == ('running', None)
    assert report.read_run(run).state == ('unfinished', None)


@pytest.mark.parametrize('flags, code, hint', (
    (['--json', '--csv'], 2, '--csv and --json cannot all go to stdout'),
    (['--csv', ''], 2, 'is not a name: give a file to write'),
    (['--csv', 'RUN/x', '--json', 'RUN/../run/x'], 2, 'Two outputs are RUN/x'),
    (['--data-dir', 'RUN'], 2, 'RUN holds no checkpoint: --data-dir needs model_best.pth.tar or last.pth.tar'),
    (['--output', 'RUN/summary.csv'], 2, 'is a file, not a folder'),
    (['--json', 'RUN'], 2, 'is a folder, not a file'),
    (['--html', 'RUN/no/x.html'], 2, 'RUN/no does not exist'),
))
def test_refused(run, flags, code, hint):
    result = run_here('report', run, *[f.replace('RUN', str(run)) for f in flags])
    assert (result.returncode, result.stdout) == (code, '') and hint.replace('RUN', str(run)) in result.stderr
    assert not (run / 'curves.png').exists()


@pytest.mark.parametrize('kind', ('curves', 'json', 'html'))
def test_full_disk(run, tmp_path, monkeypatch, kind, capsys):
    """One sentence, and the old file is left as it was."""
    target = run / 'curves.png' if kind == 'curves' else tmp_path / 'out'
    target.write_text('old')
    before = sorted(run.iterdir())

    def full(path):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(files, 'fsync', full)
    with pytest.raises(RunError, match=f'{target.name} cannot be written .No space left on device.: free disk space'):
        report.report([str(run)], report.Outputs({kind: str(target)} if kind != 'curves' else {}))
    assert target.read_text() == 'old' and sorted(run.iterdir()) == before
    assert len(list(tmp_path.iterdir())) == 1 + (kind != 'curves')


@pytest.mark.parametrize('flags', (pytest.param((), marks=pytest.mark.slow), ('--json',)))
def test_full_stdout(run, flags):
    """It ends with one sentence, whatever was buffered."""
    with open('/dev/full', 'w') as full:
        result = subprocess.run(
            [preloaded.python(), '-m', 'seresnet_timm', 'report', run, *flags], stdout=full, stderr=subprocess.PIPE,
            text=True, env=preloaded.environment())
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert result.stderr.count('error: The output cannot be written to stdout (No space left on device)') == 1


@pytest.mark.parametrize('low, high', ((0.9, 1.15), (0.004, 7), (1.4, 6.9), (1e-7, 10), (2.9999, 3.0001)))
def test_ticks_of_a_logarithmic_axis_can_be_read(low, high):
    ax = curves.pyplot().figure().add_subplot()
    curves._logarithmic(ax, low, high)
    ticks = list(ax.get_yticks())
    assert 3 <= len(ticks) <= 9 and all(ax.get_ylim()[0] <= t <= ax.get_ylim()[1] for t in ticks)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert [float(t) for t in labels] == pytest.approx(ticks, rel=1e-6) and len(set(labels)) == len(labels)
    assert not len(ax.yaxis.get_minorticklocs())


@pytest.mark.parametrize('rows', (
    [dict(epoch=0, train_loss=2., lr=.1)],
    [dict(epoch=4, train_loss=math.nan, eval_loss=math.nan, eval_top1=math.nan, lr=.1)],
    [dict(epoch=0, train_loss=0., eval_loss=math.inf, eval_top1=1., lr=0.), dict(
        epoch=9, train_loss=1e-9, eval_loss=1e30, eval_top1=1., lr=.1)],
))
@pytest.mark.filterwarnings('error')
def test_odd_numbers_are_drawn_without_a_warning(rows):
    stream = io.BytesIO()
    curves.draw_sheet([curves.Curves('_$x', dict(epochs=[], faults=[]), rows)] * 2, stream)
    assert Image.open(stream).size[0] == 1560


def test_all_looks_differ():
    looks = [str(curves._look(i)) for i in range(56)]
    assert len(set(looks)) == 56 and len({curves._look(i)['color'] for i in range(7)}) == 7


def test_restarts_are_faults(run):
    settings = RunSettings(
        verb='train', script=Script('train.py'), args=dict(batch_size=8), device='cpu',
        restarts=['2026-11-26T10:00:00+0000 Rank 1 was killed.'])
    for _ in range(2):  # the second time it is known
        record = RunRecord(settings, run)
        record.continue_from(0, is_same_run=True)
        assert record.content['faults'] == [
            dict(time='2026-11-26T10:00:00+0000', kind='restart', epoch=0, text='Rank 1 was killed.')]
        assert record.content['resumes'] == []  # by the launcher, not by hand


@pytest.mark.parametrize('scales, labels', (
    ([65536.] * 3, {'65536'}), ([65536., 32768.], {'65536', '32768'}), ([128.], {'128'}), ([1., 2.], {'1', '2'}),
    ([2. ** 30, 2. ** -20], {'$2^{6}$'}), ([0.25, 0.5], {'$2^{-2}$', '$2^{-1}$'})))
def test_ticks_of_loss_scales_are_powers_of_two_in_one_notation(scales, labels):
    ax = curves.pyplot().figure().add_subplot()
    epochs = [dict(epoch=i, loss_scale=scale) for i, scale in enumerate(scales)]
    curves._draw_scale(ax, [curves.Curves('', dict(epochs=epochs), [])])
    found = [t.get_text() for t in ax.get_yticklabels()]
    assert labels <= set(found) and 3 <= len(found) <= 8 and not len(ax.yaxis.get_minorticklocs())
    assert len({label.startswith('$') for label in found}) == 1
    assert list(ax.get_yticks()) == [
        2. ** int(t[4:-2]) if t.startswith('$') else float(t) for t in found]


@pytest.mark.parametrize('rates, is_log', (([.1, .8], False), ([.005, 8.], True), ([0., .1], False), ([0.], False)))
def test_small_learning_rates_beside_large_ones_can_be_read(rates, is_log):
    ax = curves.pyplot().figure().add_subplot()
    runs = [curves.Curves('', {}, [dict(epoch=0., lr=rate), dict(epoch=1., lr=0.)]) for rate in rates]
    curves._draw_lr(ax, runs)
    assert (ax.get_yscale() == 'log') == is_log
    assert all(ax.get_ylim()[0] <= rate <= ax.get_ylim()[1] for rate in rates)


def test_the_first_epoch_whose_loss_is_not_finite_is_marked():
    rows = [dict(epoch=float(i), train_loss=loss, eval_loss=1., lr=.1)
            for i, loss in enumerate((2., math.nan, math.inf))]
    assert curves._faults(curves.Curves('', dict(epochs=[]), rows)) == {'loss not finite': [1.]}
    assert curves._faults(curves.Curves('', dict(epochs=[]), rows[:1])) == {}


@pytest.mark.parametrize('text, length, expected', (
    ('a' * 20, 20, 'a' * 20), ('a' * 30 + 'b' * 30, 15, 'aaaaa ... bbbbb'), ('图' * 10, 20, '图' * 10),
    ('图' * 20, 15, '图图 ... 图图'), ('', 10, '')))
def test_names_are_shortened_by_the_width_of_their_letters(text, length, expected):
    assert curves.shorten(text, length) == expected


def test_a_long_model_name_is_not_cut_off():
    """The picture of any name is as the one of a short name at its edges."""
    edges = []
    for model in ('m', 'hf-hub:' + 'organisation/' * 30):
        record = dict(epochs=[], faults=[], settings=dict(
            args=dict(model=model), world_size=8, device='npu', precision='amp float16', global_batch_size=4096))
        stream = io.BytesIO()
        curves.draw_sheet([curves.Curves('', record, [dict(epoch=0, train_loss=2., lr=.1)])], stream)
        pixels = np.asarray(Image.open(stream).convert('L'))
        edges.append((pixels[:25, :3], pixels[:25, -3:]))
    assert all((edge == 255).all() for pair in edges for edge in pair)


# --- fonts ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('installed, chosen', (
    (['DejaVu Sans', 'Noto Sans CJK JP', 'Noto Sans Mono CJK JP'], ['Noto Sans CJK JP']),
    (['Noto Sans CJK JP', 'Noto Sans CJK SC', 'WenQuanYi Zen Hei'], ['Noto Sans CJK SC']),
    (['Source Han Sans'], ['Source Han Sans']), (['Source Han Sans HW SC', 'SimHei'], ['Source Han Sans HW SC']),
    (['WenQuanYi Micro Hei Mono', 'WenQuanYi Micro Hei'], ['WenQuanYi Micro Hei']),
    (['DejaVu Sans', 'Noto Sans', 'Liberation Sans'], [])))
def test_the_font_for_chinese(installed, chosen):
    assert fonts.choose(installed) == chosen


def test_letters_that_no_font_has_are_one_sentence(run, tmp_path):
    """Letters of a private area are in no font; two pictures, one sentence, and other warnings stay as they are."""
    renamed = tmp_path / 'run_\ue123\ue124'
    shutil.copytree(run, renamed)
    result = run_cli('report', renamed, run, '--output', tmp_path / 'pictures')
    assert result.returncode == 0 and result.stderr.count('letters that no installed font has') == 1
    assert 'Glyph' not in result.stderr
    assert 'no installed font' not in run_cli('report', run, '--output', tmp_path / 'pictures').stderr


@pytest.mark.parametrize('folder, is_told', (('', False), ('/proc/none', True)))
def test_a_home_folder_that_cannot_be_written_is_no_warning(tmp_path, folder, is_told):
    """matplotlib takes a temporary folder; a folder that the user named and other warnings are told."""
    code = ("from seresnet_timm.runs.curves import pyplot; pyplot(); import logging, warnings; "
            "logging.getLogger('matplotlib').warning('another'); warnings.warn('a third')")
    env = {k: v for k, v in os.environ.items() if k not in ('XDG_CONFIG_HOME', 'XDG_CACHE_HOME')}
    env.update(HOME='/proc/none', MPLCONFIGDIR=folder, TMPDIR=str(tmp_path))
    result = subprocess.run([preloaded.python(), '-c', code], env=env, capture_output=True, text=True)
    assert result.returncode == 0 and 'another' in result.stderr and 'a third' in result.stderr
    assert ('/proc/none' in result.stderr) == is_told and not list(tmp_path.glob('matplotlib-*'))


def test_fonts_that_were_installed_after_matplotlib_wrote_its_list(monkeypatch, tmp_path):
    from matplotlib import font_manager
    known = [font for font in font_manager.fontManager.ttflist if font.name == 'DejaVu Sans']
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', list(known))
    new = tmp_path / 'new.ttf'
    shutil.copy(known[0].fname, new)
    (tmp_path / 'broken.ttf').write_bytes(b'no font')
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [str(new), str(tmp_path / 'broken.ttf')])
    fonts.add_new_fonts.cache_clear()
    assert fonts.add_new_fonts(font_manager) == 1
    assert str(new) in [font.fname for font in font_manager.fontManager.ttflist]
    fonts.add_new_fonts.cache_clear()


def test_columns_of_chinese_names_are_aligned():
    """A Chinese letter takes two columns of a terminal."""
    rows = [{'Class': '布偶猫', 'n': '15'}, {'Class': 'cat', 'n': '9'}]
    assert report_rows.format_table(rows, ('Class', 'n')).split('\n') == [
        '| Class  | n  |', '| ------ | -- |', '| 布偶猫 | 15 |', '| cat    | 9  |']
