"""run.json: one shape for every run, readers of all schemas, damaged files."""
import json
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
from training import valid_record

from seresnet_timm.errors import UsageError
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import RunRecord, read_record
from seresnet_timm.runs.settings import RunSettings, Script

SETTINGS = RunSettings(
    verb='train', script=Script('train.py'), args=dict(model='seresnet50_ascend', batch_size=8, device='cpu'),
    command=['seresnet-timm', 'train', '-b', '8'], world_size=2, nproc=2)
FIGURES = dict(train_seconds=1.5, steps=3, images=48, fps=100.5, data_wait_share=0.25)

# as the version before the number of the schema wrote it, on two processes
SCHEMA_0 = {
    'plan': {
        'script': 'bundled train.py of seresnet_timm 0.9 (no other)', 'patches': [], 'model': 'seresnet50_ascend',
        'device': 'npu:0', 'device_reason': 'found Ascend910', 'world_size': 8, 'nnodes': 1,
        'precision': 'amp float16', 'global_batch_size': 1024, 'workers': 16, 'learning rate': '0.6, momentum',
        'loss scaler': 'dynamic', 'step': 'contiguous', 'images': 'libjpeg-turbo', 'output': 'output/train/x',
        'lr': 0.6, 'epochs': 100,
    },
    'command': ['/usr/lib/seresnet_timm/worker.py', '/tmp/seresnet_timm-x/job.json'],
    'versions': {'seresnet_timm': '0.9', 'timm': '1.0.28', 'torch': '2.9.0+cpu', 'python': '3.11.7'},
    'machine': {'system': 'Linux', 'cpus': 192},
    'started': '2026-01-02T03:04:05+0000', 'finished': None,
    'epochs': [{'epoch': 0, **FIGURES, 'eval_seconds': 0.5}],
    'best': {'metric': 'top1', 'value': 12.5, 'epoch': 0},
}


def test_record_of_a_training(tmp_path):
    record = RunRecord(SETTINGS, tmp_path / 'run')
    record.continue_from(0)
    written = valid_record(tmp_path / 'run')
    assert written['command'] == SETTINGS.command and written['finished'] is None and written['epochs'] == []
    assert written['settings'] == {**asdict(SETTINGS), 'precision': 'float32', 'global_batch_size': 16}
    unreadable = SimpleNamespace(count=30, files=['val/a.jpg'])
    record.add_epoch(dict(epoch=0, **FIGURES, unreadable_val=unreadable))
    record.set_best('loss', float('nan'), 0)  # a diverged run: JSON has no NaN
    record.finish()
    written = valid_record(tmp_path / 'run')
    ended = written['epochs'][0].pop('finished')
    assert written['started'] <= ended <= written['finished']
    assert written['epochs'] == [
        {'epoch': 0, **FIGURES, 'eval_seconds': None, 'peak_gib': None, 'total_gib': None, 'bad_steps': None,
         'loss_scale': None, 'unreadable_train': None,
         'unreadable_val': {'count': 30, 'files': ['val/a.jpg']}}]
    assert written['best'] == {'metric': 'loss', 'value': None, 'epoch': 0} and written['finished']
    written['epochs'][0]['finished'] = ended
    assert read_record(tmp_path / 'run') == written


def test_settings_can_be_read_back(tmp_path):
    """To repeat a run, its run.json is enough."""
    RunRecord(SETTINGS, tmp_path).continue_from(0)
    assert RunSettings.from_dict(read_record(tmp_path)['settings']) == SETTINGS


def test_resumed_record_keeps_what_came_before(tmp_path):
    first = RunRecord(SETTINGS, tmp_path)
    for epoch in range(3):
        first.add_epoch(dict(epoch=epoch, **FIGURES))
    first.set_best('top1', 50., 1)
    resumed = RunRecord(replace(SETTINGS, command=['seresnet-timm', 'train', '--resume', 'x']), tmp_path)
    resumed.continue_from(2)
    record = valid_record(tmp_path)
    assert [e['epoch'] for e in record['epochs']] == [0, 1] and record['best']['value'] == 50
    assert record['started'] == first.content['started'] and record['command'][-2:] == ['--resume', 'x']
    assert [r['epoch'] for r in record['resumes']] == [2]
    RunRecord(SETTINGS, tmp_path).continue_from(0)  # another run into the same folder
    assert valid_record(tmp_path)['epochs'] == valid_record(tmp_path)['resumes'] == [] and (
        valid_record(tmp_path)['best'] is None)


def test_record_of_an_evaluation(tmp_path):
    record = RunRecord(replace(SETTINGS, verb='validate'), tmp_path)
    record.set_evaluation(dict(images=70, seconds=2., top1=50., loss=1.))
    record.finish()
    assert valid_record(tmp_path)['evaluation'] == dict(
        images=70, seconds=2., top1=50., top5=None, loss=1., unreadable=None)


def test_record_from_before_unreadable_images(tmp_path):
    """A later field of the same schema is null."""
    record = RunRecord(SETTINGS, tmp_path)
    record.add_epoch(dict(epoch=0, **FIGURES))
    record.set_evaluation(dict(images=70))
    content = json.loads((tmp_path / 'run.json').read_text())
    content['epochs'][0]['finished'] = None
    for holder, later in ((content['epochs'][0], ('unreadable_train', 'unreadable_val', 'finished')),
                          (content['evaluation'], ('unreadable',))):
        for name in later:
            assert holder.pop(name) is None
    del content['settings']['checkpoint_minutes']
    (tmp_path / 'run.json').write_text(json.dumps(content))
    read = read_record(tmp_path)
    assert read['epochs'][0]['unreadable_val'] is read['epochs'][0]['finished'] is None
    assert read['evaluation']['unreadable'] is read['settings']['checkpoint_minutes'] is None


def test_older_record_in_the_shape_of_the_newest(tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps(SCHEMA_0))
    record = read_record(tmp_path)
    assert record['command'] == []  # of a rank, which no user typed
    settings = record['settings']
    assert (settings['world_size'], settings['device'], settings['precision'], settings['global_batch_size']) == (
        8, 'npu:0', 'amp float16', 1024)
    assert settings['args']['model'] == 'seresnet50_ascend' and settings['args']['batch_size'] == 128
    for precision in ('amp float16', 'amp bfloat16', 'float32', 'O2: fp16 weights, float32 masters and BatchNorm'):
        (tmp_path / 'run.json').write_text(json.dumps(dict(SCHEMA_0, plan=dict(SCHEMA_0['plan'], precision=precision))))
        again = RunSettings.from_dict(read_record(tmp_path)['settings'])
        assert again.precision == precision and again.global_batch_size == 1024
    (tmp_path / 'run.json').write_text(json.dumps(SCHEMA_0))
    assert record['epochs'][0]['peak_gib'] is None and record['best']['value'] == 12.5
    resumed = RunRecord(SETTINGS, tmp_path)
    resumed.continue_from(1)
    assert valid_record(tmp_path)['epochs'][0]['eval_seconds'] == 0.5
    (tmp_path / 'run.json').write_text(json.dumps(dict(record, model_info=None)))
    valid_record(tmp_path)


@pytest.mark.parametrize('text, hint', (
    ('{"plan": 1', 'is not the record of a run'),
    ('[]', 'is not the record of a run'),
    ('{"plan": {}}', "no 'world_size'"),
    ('{"schema": "1"}', 'is not the record of a run'),
    ('{"schema": 2}', 'later version'),
    ('\xff', 'is not the record of a run'),
))
def test_files_that_are_no_record(tmp_path, text, hint):
    (tmp_path / 'run.json').write_text(text, encoding='latin-1')
    with pytest.raises(UsageError, match=hint):
        read_record(tmp_path)


@pytest.mark.parametrize('change', (
    dict(epochs=[{}]), dict(epochs={}), dict(settings=None), dict(settings={'args': {}}), dict(best=[1]),
    dict(command='x'), dict(command=[3]), dict(early_stop='x'), dict(early_stop={}), dict(faults=[3]),
    dict(model_info={'class_names': 3}), dict(started=3), dict(versions={'torch': ['x']})))
def test_damaged_record(tmp_path, change):
    record = RunRecord(SETTINGS, tmp_path)
    record.add_epoch(dict(epoch=0))
    (tmp_path / 'run.json').write_text(json.dumps({**record.content, **change}))
    with pytest.raises(UsageError, match='is not the record of a run'):
        read_record(tmp_path)


@pytest.mark.parametrize('key, value', (
    ('device', None), ('world_size', '\x1b[2J'), ('precision', {}), ('nnodes', True), ('args', {'model': None}),
    ('args', {'lr_cycle_mul': 'x'}), ('num_images', {'train': 'x'})))
def test_setting_of_another_type(tmp_path, key, value):
    record = RunRecord(SETTINGS, tmp_path)
    record.add_epoch(dict(epoch=0))
    content = dict(record.content, settings={**record.content['settings'], key: value})
    (tmp_path / 'run.json').write_text(json.dumps(content))
    with pytest.raises(UsageError, match='is not the record of a run .* is a '):
        read_record(tmp_path)


def test_file_that_is_too_large_for_a_record(tmp_path):
    with open(tmp_path / 'run.json', 'wb') as file:
        file.truncate(1 << 33)
    with pytest.raises(UsageError, match='run.json cannot be read: it has 8,589.9 MB'):
        read_record(tmp_path)


def test_names_of_a_run_folder(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.checkpoint() is None and not folder.holds_a_run()
    folder.last.write_text('')
    assert folder.checkpoint() == folder.last and folder.holds_a_run()
    folder.best.write_text('')
    assert folder.checkpoint() == folder.best
    (tmp_path / 'link').symlink_to(tmp_path)
    assert folder.owns(tmp_path / 'link' / 'last.pth.tar') and not folder.owns(tmp_path / 'other' / 'last.pth.tar')


def test_schema_names_every_setting(tmp_path):
    schema = json.loads((RunFolder(__file__).path.parents[2] / 'seresnet_timm/runs/run.schema.json').read_text())
    known = set(schema['properties']['settings']['properties'])
    assert known == {f.name for f in fields(RunSettings)} | {'precision', 'global_batch_size'}


def test_a_folder_of_runs_is_not_a_run(tmp_path):
    """The sentence names one of the runs in it."""
    with pytest.raises(UsageError, match='the one with summary.csv in it'):
        read_record(tmp_path)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'run.json').touch()
    with pytest.raises(UsageError, match=f'name the folder of a run, such as {tmp_path}/a[.]'):
        read_record(tmp_path)


def test_folder_that_is_gone_is_not_made_anew(tmp_path, caplog):
    """Removed, or on a drive that is no longer mounted: nobody would look for the record on the disk below."""
    record = RunRecord(SETTINGS, tmp_path / 'drive' / 'run')
    record.continue_from(0)
    (tmp_path / 'drive').rename(tmp_path / 'away')
    record.add_fault('worker', 0, 'A worker ended.')
    assert not (tmp_path / 'drive').exists() and 'run.json could not be written (No such file' in record.error
    assert 'NOT SAVED' in caplog.text
    (tmp_path / 'away').rename(tmp_path / 'drive')
    record.finish()
    assert record.error is None and len(read_record(tmp_path / 'drive' / 'run')['faults']) == 1
