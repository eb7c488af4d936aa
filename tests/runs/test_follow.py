"""`seresnet-timm watch`: runs that live, have ended, have died, on this machine and on another one."""
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout

import psutil
import pytest
from conftest import ROOT, run_here

from seresnet_timm.runs import follow
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.show import clock, has_color, left
from seresnet_timm.runs.status import Status, StatusFile, read_status, this_system, write_status

GOLDEN = ROOT / 'tests' / 'golden' / 'run_within_epoch' / 'run' / 'run.json'


@pytest.fixture
def folder(tmp_path):
    """A run that trains now, in this process."""
    record = json.loads(GOLDEN.read_text())
    record.update(finished=None, faults=[{'time': 't', 'kind': 'restart', 'epoch': 0, 'text': 'x'}])
    path = tmp_path / 'runs' / 'run'
    path.mkdir(parents=True)
    (path / 'run.json').write_text(json.dumps(record))
    put(path)
    return path


def put(path, written=None, **values):
    me = psutil.Process()
    status = Status(**{**dict(
        state='training', host='here', system=this_system(), pid=me.pid, pid_started=me.create_time(), epoch=3,
        epochs=90, update=40, updates=100, loss=2.5, images_per_second=123.4, metric='top1', value=45.678, best=50.,
        best_epoch=1, ends=time.time() + 3700, moved=time.time(), bad_steps=2), **values})
    write_status(path / 'status.json', status)
    if written is not None:
        content = json.loads((path / 'status.json').read_text())
        (path / 'status.json').write_text(json.dumps({**content, 'written': written}))


def finish(path, **values):
    record = json.loads((path / 'run.json').read_text())
    (path / 'run.json').write_text(json.dumps({**record, 'finished': '2026-01-01T00:00:00+0000', **values}))
    (path / 'status.json').unlink(missing_ok=True)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_a_run_that_goes_on(folder):
    result = run_here('watch', folder, '--once')
    assert result.returncode == 0, result.stderr
    line = result.stdout.splitlines()[1]
    assert line.startswith('training: epoch 3 (4 of 90), step 40 of 100, 123.4 images/s, loss 2.5000, top1 45.68, best '
                           '50.00 (epoch 1), 1:01:')
    assert '1 restart, 2 skipped steps' in line and 'updated 00:00 ago' in line


def test_newest_run_of_a_folder_of_runs(folder):
    older = folder.parent / 'older'
    older.mkdir()
    (older / 'run.json').write_text((folder / 'run.json').read_text())
    os.utime(older / 'run.json', (1, 1))
    assert run_here('watch', folder.parent, '--once').stdout.startswith(str(folder))


@pytest.mark.parametrize('change, code, says', [
    (dict(pid=None), 1, 'has ended without an error message in epoch 3'),
    (dict(pid_started=1.), 1, 'has ended without an error message'),  # the number belongs to another process now
    (dict(pid=None, update=40, updates=100), 1, 'at update 40 of 100, after 20'),
    (dict(pid=None), 1, 'Most likely SIGKILL because memory ran out (`dmesg -T` tells)'),
    (dict(pid_started=psutil.Process().create_time() - 3600, booted=psutil.boot_time() - 3600),
     0, 'training: epoch 3'),  # the clock was set
    (dict(state='failed', text='Disk full'), 1, 'The run has failed: Disk full'),
    (dict(state='stopped'), 1, 'The run has been stopped'),
    (dict(pid=None, max_restarts=2, launcher=os.getpid()), 0, 'the launcher starts it again'),
    (dict(pid=None, max_restarts=2, restarts=2, launcher=os.getpid()), 1, 'has ended without an error message'),
    (dict(state='failed', text='Rank 1', max_restarts=2, launcher=None), 0, 'It is started again'),
    (dict(system='another', pid=1), 0, 'updated 00:00 ago'),
    (dict(system='another', written=300), 1, 'No update from here for 05:0'),
    (dict(system='another', written=60), 0, 'updated 01:0'),
    (dict(system='another', written=-3000), 0, 'updated 00:00 ago'),  # its clock is ahead
    (dict(text='\033]0;evil\007', state='failed'), 1, r'failed: \x1b]0;evil\x07'),
])
def test_states(folder, change, code, says):
    if 'pid' in change and change['pid'] is None:
        change = {**change, 'pid': dead_pid()}
    if 'written' in change:
        change = {**change, 'written': time.time() - change['written']}
    put(folder, **change)
    result = run_here('watch', folder, '--once')
    assert (result.returncode, says in result.stdout) == (code, True), result.stdout


def test_a_run_that_has_finished(folder):
    finish(folder, early_stop=dict(epoch=5, patience=2, metric='top1', best=50., best_epoch=3))
    result = run_here('watch', folder)
    assert result.returncode == 0 and 'ended early' in result.stdout and 'Finished at 2026-01-01' in result.stdout


def test_a_run_without_a_status(folder):
    """It has just begun, or is of an earlier version and has died."""
    (folder / 'status.json').unlink()
    assert run_here('watch', folder, '--once').stdout.splitlines()[1:] == [
        'starting: 1 restart', 'It starts.']
    os.utime(folder / 'run.json', (1, 1))
    result = run_here('watch', folder)
    assert result.returncode == 1 and 'nothing more is known' in result.stdout


def test_lines_until_the_end(folder, tmp_path):
    """A line for every change, without a terminal."""
    printed = tmp_path / 'printed'
    printed.touch()

    def train():
        for update in (40, 50, 60, 70):
            put(folder, update=update)
            deadline = time.monotonic() + 60
            while f', step {update}' not in printed.read_text() and time.monotonic() < deadline:
                time.sleep(0.02)
        finish(folder)
    thread = threading.Thread(target=train)
    with open(printed, 'w') as f, redirect_stdout(f):
        thread.start()
        code = follow.watch(folder, interval=0.05)
    thread.join()
    lines = printed.read_text().splitlines()
    steps = [line.partition(', step ')[2][:2] for line in lines if line.startswith('training')]
    assert code == 0 and steps == ['40', '50', '60', '70'] and lines[-1].startswith('Finished')


@pytest.mark.parametrize('name, text', [
    ('status.json', '{'), ('status.json', '[]'), ('status.json', '{"schema": 99, "state": "training"}'),
    ('run.json', '{'), ('run.json', '{"schema": 99}'),
])
def test_damaged_files(folder, name, text):
    (folder / name).write_text(text)
    result = run_here('watch', folder, '--once')
    assert result.returncode == 2 and name in result.stderr and 'Traceback' not in result.stderr


@pytest.mark.parametrize('values', [
    dict(ends=1e300), dict(epoch='x'), dict(epochs=None), dict(loss=[1]), dict(pid='1'), dict(update=True),
    dict(moved=float('nan')),
])
def test_odd_values_of_a_status(folder, values):
    content = json.loads((folder / 'status.json').read_text())
    (folder / 'status.json').write_text(json.dumps({**content, **values}))
    result = run_here('watch', folder, '--once')
    assert result.returncode in (0, 1) and result.stdout.count('\n') >= 2, result.stderr


def test_folders_without_a_run(tmp_path):
    for path, says in ((tmp_path, 'holds no run'), (tmp_path / 'none', 'none does not exist')):
        result = run_here('watch', path)
        assert result.returncode == 2 and says in result.stderr


def test_status_is_written_while_the_training_waits(tmp_path, monkeypatch):
    monkeypatch.setattr('seresnet_timm.runs.status.INTERVAL', 0.05)
    folder = RunFolder(tmp_path)
    with StatusFile(folder, Status(state='training')):
        first = read_status(folder.status).beat
        deadline = time.monotonic() + 60
        while read_status(folder.status).beat < first + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert os.listdir(tmp_path) == ['status.json']


def test_a_folder_that_goes_does_not_end_the_training(tmp_path, caplog):
    folder = RunFolder(tmp_path / 'gone')
    file = StatusFile(folder, Status())
    file.write()
    file.write()
    assert caplog.text.count('cannot be written') == 1


def test_times_and_colors(monkeypatch):
    now = time.mktime((2026, 3, 2, 22, 0, 0, 0, 0, -1))
    assert clock(now + 60, now) == '22:01' and clock(now + 86400, now) == 'Tue 03 Mar 22:00'
    assert left(Status(ends=now + 90), now) == '01:30 left, ends 22:01' and left(Status()) == ''
    assert left(Status(ends=now - 5), now).startswith('00:00 left')
    assert not has_color(open(os.devnull))


def test_the_next_start_says_that_the_run_before_ended_without_a_word(folder):
    for change, says in (({}, None), (dict(pid=dead_pid()), 'without an error message in epoch 3'),
                         (dict(pid=dead_pid(), state='failed'), None), (dict(system='another'), None),
                         (dict(system='another', written=1.), 'most likely SIGKILL')):
        put(folder, **change)
        found = follow.how_it_died(RunFolder(folder))
        assert found is None if says is None else says.lower() in found.lower(), (change, found)
    (folder / 'status.json').write_text('{')
    assert follow.how_it_died(RunFolder(folder)) is None  # a damaged one is not the topic of the start
