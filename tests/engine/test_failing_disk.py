"""Disks that fail, and file systems with fewer functions: real processes, whose calls fail in a preloaded library."""
import errno
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from conftest import ROOT, file_size_limit, run_cli, train_flags
from recipe_runs import SCRIPTS
from training import load, summary, valid_record

from seresnet_timm.engine.events import EpochEvents
from seresnet_timm.runs.folder import RunFolder

needs_tensorboard = pytest.mark.skipif(not find_spec('tensorboard'), reason='tensorboard is not installed')
# what fails when a file system becomes read-only, or its drive is away
ALL = ('open', 'write', 'fsync', 'fsync_folder', 'rename', 'mkdir', 'unlink', 'truncate')


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None:
        pytest.skip('needs a C compiler')
    path = tmp_path_factory.mktemp('failing') / 'failing_disk.so'
    subprocess.run([compiler, '-shared', '-fPIC', '-o', path, ROOT / 'tests' / 'failing_disk.c', '-ldl'], check=True)
    return path


def failing(library, folder, calls, since=None):
    env = {'LD_PRELOAD': str(library), 'FAILING_FOLDER': str(folder),
           'FAILING': ','.join(f'{call}={code}' for call, code in calls.items())}
    return {**env, 'FAILING_SINCE': str(since)} if since else env


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('code, remedy, flags', [
    pytest.param(errno.EROFS, 'make the folder writable', (), id='read-only'),
    pytest.param(errno.EIO, 'check the disk or network drive', ('--nproc', 2), id='2 ranks', marks=pytest.mark.slow),
    pytest.param(errno.EDQUOT, 'have the quota raised', ('--checkpoint-minutes', 1e-3), id='quota',
                 marks=pytest.mark.slow),
])
def test_disk_that_fails_until_the_end(few_digits, tmp_path, library, script, code, remedy, flags):
    folder = tmp_path / 'run'
    events = ['--tensorboard'] if find_spec('tensorboard') else []
    result = run_cli(
        *train_flags(few_digits, tmp_path, '--epochs', 3, '--scripts', script, *events, *flags), fresh=True,
        env=failing(library, folder, dict.fromkeys(ALL, code), since=folder / 'checkpoint-0.pth.tar'))
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert 'NOT SAVED: Epoch 1 could not be saved in' in result.stderr and remedy in result.stderr
    assert 'The training has ended, but not everything was saved: Epoch 2 could not be saved' in result.stderr
    assert load(folder / 'checkpoint-0.pth.tar')['epoch'] == load(folder / 'last.pth.tar')['epoch'] == 0
    assert not list(folder.glob('*tmp*'))


def test_file_system_with_few_functions(few_digits, tmp_path, library):
    """No locks, rights, links, or flushing of folders, as network and FUSE file systems may have none."""
    calls = {'flock': errno.ENOLCK, 'chmod': errno.EPERM, 'link': errno.EPERM, 'fsync_folder': errno.EINVAL}
    result = run_cli(*train_flags(few_digits, tmp_path, '--epochs', 1), fresh=True,
                     env=failing(library, tmp_path / 'run', calls))
    assert result.returncode == 0, result.stderr
    assert f'Note: the file system of {tmp_path}/run has no file locks' in result.stderr
    assert valid_record(tmp_path / 'run')['finished'] and len(summary(tmp_path / 'run')) == 1
    assert not list((tmp_path / 'run').glob('.*'))


HOLDS = """
import os, socket, sys, warnings
from seresnet_timm.runs.folder import RunFolder

warnings.simplefilter('error')
folder = RunFolder(sys.argv[1])
if sys.argv[2:]:  # another machine
    socket.gethostname = lambda: sys.argv[2]
    print(folder.why_busy())
with folder.exclusive():
    os.kill(os.getpid(), 9)
"""


def test_killed_where_the_kernel_has_no_locks(tmp_path, library):
    """Another machine does not see whether the process has ended, this one does."""
    if int(version('filelock').partition('.')[0]) < 4:
        pytest.skip('filelock 4 writes the marker')

    def hold(*machine):
        return subprocess.run([sys.executable, '-c', HOLDS, tmp_path / 'run', *machine], capture_output=True, text=True,
                              cwd=ROOT, env={**os.environ, **failing(library, tmp_path, {'flock': errno.ENOSYS})})
    first = hold()
    assert first.returncode == -9, first.stderr
    marker = tmp_path / 'run' / '.run.lock'
    pid = marker.read_text().split()[0]
    other = hold('another')
    assert other.returncode == 1
    for text in (other.stdout, other.stderr.splitlines()[-1]):
        assert 'Another training is writing into' in text and f'If process {pid} of ' in text
        assert f'has ended, remove the file {marker}: ' in text
    assert hold().returncode == -9
    marker.unlink()
    assert hold('another').returncode == -9


@needs_tensorboard
@pytest.mark.filterwarnings('error::pytest.PytestUnhandledThreadExceptionWarning')
def test_events_are_written_when_there_is_room_again(tmp_path, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EpochEvents(RunFolder(tmp_path), 0)

    def add(epoch):
        events.add(epoch, {'loss': epoch / 2}, {'top1': epoch}, 0.1, None)
    add(0)
    for size, epoch in ((200, 1), (0, 2)):  # in the middle of an event; a new file
        with file_size_limit(size):
            add(epoch)
    assert caplog.text.count('NOT SAVED: events of TensorBoard') == 2 and 'Traceback' not in caplog.text
    add(3)
    events.close()
    found = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    for tag, scale in (('loss/train', 0.5), ('eval/top1', 1)):
        assert [(e.step, e.value) for e in found.Scalars(tag)] == [(i, i * scale) for i in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize('script', SCRIPTS)
def test_disk_that_is_full_until_the_end(few_digits, tmp_path, library, script):
    """Files can be made, and stay empty: also the file in which a rank leaves its error.

    `model_best` is the last file of a save: a save that fails in its middle removes its numbered copy, if it can.
    """
    folder = tmp_path / 'run'
    result = run_cli(
        *train_flags(few_digits, tmp_path, '--epochs', 3, '--scripts', script, '--nproc', 2), fresh=True,
        env=failing(library, folder, {'write': errno.ENOSPC}, since=folder / 'model_best.pth.tar'))
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert 'The training has ended, but not everything was saved: Epoch 2 could not be saved' in result.stderr
