"""Limits of control groups, of version 1 and 2; real groups where this user may make one."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seresnet_timm import process
from seresnet_timm.process import Group

CPU = Path('/sys/fs/cgroup/cpu')


def group(folder, version=2, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace('__', '.')).write_text(text)
    return Group(str(folder), version)


@pytest.mark.parametrize('version, files, cores', [
    (2, {'cpu__max': '150000 100000\n'}, 2), (2, {'cpu__max': 'max 100000\n'}, 64), (2, {}, 64),
    (2, {'cpu__max': '20000 100000\n'}, 1), (1, {'cpu__cfs_quota_us': '400000\n', 'cpu__cfs_period_us': '100000\n'}, 4),
    (1, {'cpu__cfs_quota_us': '-1\n', 'cpu__cfs_period_us': '100000\n'}, 64)])
def test_cores(tmp_path, monkeypatch, version, files, cores):
    """A quota of a group, or of one above it."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)))
    above = group(tmp_path / 'above', version, **files)
    monkeypatch.setattr(process, 'groups', lambda controller: [above, group(tmp_path / 'own', version)])
    assert process.cores() == cores


def test_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(process, 'groups', lambda controller: [
        group(tmp_path / 'a', memory__max='max\n'), group(tmp_path / 'b', 1, memory__limit_in_bytes='1000\n')])
    assert process.memory_limits() == [1000]


@pytest.mark.skipif(not (CPU / 'cpu.cfs_quota_us').parent.is_dir() or not os.access(CPU, os.W_OK) or os.getuid() != 0,
                    reason='needs cgroups of version 1, and root')
def test_a_real_group():
    folder = CPU / f'seresnet_timm_test_{os.getpid()}'
    try:
        folder.mkdir()
        (folder / 'cpu.cfs_quota_us').write_text('50000')
    except OSError as e:
        pytest.skip(f'no group can be made here: {e.strerror}')
    try:
        code = ('import os; from pathlib import Path; from seresnet_timm import process; '
                "Path(os.environ['GROUP'], 'tasks').write_text(str(os.getpid())); print(process.cores())")
        result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                                env={**os.environ, 'GROUP': str(folder)})
        assert result.stdout == '1\n'
    finally:
        folder.rmdir()
