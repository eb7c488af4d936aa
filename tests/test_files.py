"""Locks and temporary folders between processes, also those that are killed."""
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from seresnet_timm import files
from seresnet_timm.errors import RunError, UsageError

HOLD = '''
import sys
from seresnet_timm.files import temporary_folder
with temporary_folder(sys.argv[1], '.x[1].pull-') as folder:
    (folder / 'file').write_text('x')
    print(folder, flush=True)
    sys.stdin.read()
'''


def holder(parent: Path) -> subprocess.Popen:
    code = 'import sys; sys.orig_argv = ["python", "seresnet-timm"]\n' + HOLD  # which imports no torch
    process = subprocess.Popen(
        [sys.executable, '-c', code, parent], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.folder = Path(process.stdout.readline().strip())
    return process


def test_temporary_folder_of_a_killed_process_is_removed_by_the_next_call(tmp_path):
    """The folder of a running process stays; afterwards neither folders nor lock files are left."""
    killed, running = holder(tmp_path), holder(tmp_path)
    killed.kill()
    killed.wait()
    assert killed.folder.is_dir() and killed.folder.parent == tmp_path
    with files.temporary_folder(tmp_path, '.x[1].pull-') as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not killed.folder.exists()
        assert (running.folder / 'file').read_text() == 'x'
    running.communicate('')
    assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_lock_of_another_process(tmp_path):
    running = holder(tmp_path)
    path = running.folder.with_name(running.folder.name + '.lock')
    assert files.try_lock(path) is None
    with pytest.raises(files.Timeout):
        files.acquire_lock(path)
    running.kill()
    running.wait()
    lock = files.try_lock(path)
    assert lock.is_locked
    lock.release()


def test_file_system_without_locks(tmp_path, monkeypatch):
    """As some network file systems: work goes on, and nothing is taken for left behind."""
    def flock(fd, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    with files.temporary_folder(tmp_path, 'x-') as first, files.temporary_folder(tmp_path, 'x-') as second:
        assert first.is_dir() and second.is_dir() and first != second
        assert files.try_lock(tmp_path / 'lock') is None
        assert not files.acquire_lock(tmp_path / 'lock').is_locked


def test_a_stream_gets_the_content_and_is_not_replaced():
    read, write = os.pipe()
    try:
        with files.atomic_path(f'/dev/fd/{write}') as tmp:
            Path(tmp).write_text('x')
        assert os.read(read, 10) == b'x'
    finally:
        os.close(read)
        os.close(write)


def test_readers_refuse_what_is_no_file_themselves(tmp_path):
    """Paths that no flag names: a class map in the folder of a split, a file that Python code passes."""
    from seresnet_timm.data.images import UnreadableImage, read_file
    from seresnet_timm.data.label_files import read_class_map, read_class_names
    from seresnet_timm.errors import UsageError
    from seresnet_timm.inference.trace_file import TraceReader
    from seresnet_timm.launch.config_file import read_yaml
    from seresnet_timm.timm_scripts.find import find
    os.mkfifo(tmp_path / 'map.txt')
    os.mkfifo(tmp_path / 'map.pkl')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'big').touch()
    os.truncate(tmp_path / 'big', 20 << 30)  # takes no space
    for call, words in (
            (lambda: read_class_map('map.txt', str(tmp_path)), 'it is a pipe'),
            (lambda: read_class_map('map.pkl', str(tmp_path)), 'it is a pipe'),
            (lambda: read_class_names(tmp_path / 'map.txt', 2), 'it is a pipe'),
            (lambda: read_yaml(str(tmp_path / 'map.txt')), 'it is a pipe'),
            (lambda: read_yaml(str(tmp_path / 'big')), 'it has 21,474.8 MB'),
            (lambda: TraceReader(tmp_path / 'folder'), 'it is a folder'),
            (lambda: TraceReader(tmp_path / 'map.txt'), 'it is a pipe'),
            (lambda: find('train.py', str(tmp_path / 'big')), 'it has 21,474.8 MB')):
        with pytest.raises(UsageError, match=words):
            call()
    with pytest.raises(UnreadableImage, match='it has 21.5 GB'):
        read_file(tmp_path / 'big')


def test_a_folder_of_the_kernel_that_is_not_mounted_is_a_folder(tmp_path, monkeypatch):
    """In a chroot /sys may be an empty folder of the same file system as all others."""
    assert 'of the kernel' in files.why_not_writable('/proc/self/x')
    (tmp_path / 'sys').mkdir()
    monkeypatch.setattr(files, '_KERNEL', (str(tmp_path / 'sys'),))
    assert files.why_not_writable(tmp_path / 'out') is None


@pytest.mark.parametrize('name', ('run.json', 'status.json', 'labels.json', 'last.pth.tar'))
def test_json_without_an_end_is_no_traceback(tmp_path, name):
    """Python's reader of JSON ends with RecursionError, which is no ValueError."""
    from seresnet_timm.checkpoints.read import read_checkpoint
    from seresnet_timm.data.label_files import check_real_labels
    from seresnet_timm.runs import status
    from seresnet_timm.runs.record import read_record
    path = tmp_path / name
    path.write_text('[' * 99999)
    read = {'run.json': lambda: read_record(tmp_path), 'status.json': lambda: status.read_status(path),
            'labels.json': lambda: check_real_labels(path), 'last.pth.tar': lambda: read_checkpoint(str(path))}
    with pytest.raises((UsageError, RunError), match='nested too deeply|a text file'):
        read[name]()
