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


@pytest.fixture(scope='module')
def in_group():
    """Runs Python in a group that has half a core; what it prints, and the rest of its environment is this one's."""
    if not os.access(CPU, os.W_OK) or os.getuid() != 0 or not (CPU / 'cpu.cfs_quota_us').parent.is_dir():
        pytest.skip('needs cgroups of version 1, and root')
    folder = CPU / f'seresnet_timm_test_{os.getpid()}'
    try:
        folder.mkdir()
        (folder / 'cpu.cfs_quota_us').write_text('50000')
    except OSError as e:
        pytest.skip(f'no group can be made here: {e.strerror}')

    def run(code):
        code = f"import os; open(os.path.join(os.environ['GROUP'], 'tasks'), 'w').write(str(os.getpid()))\n{code}"
        environ = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
        return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                              env={**environ, 'GROUP': str(folder)}).stdout.split()
    yield run
    folder.rmdir()


def test_a_real_group(in_group):
    """The cores, and with how many threads torch computes, numpy is expected to, and ranks are told to."""
    ways = ('from types import SimpleNamespace as Some\n'
            'from seresnet_timm import device, process\n'
            'from seresnet_timm.launch import limits, processes\n'
            'import torch\n'
            'before = torch.get_num_threads()\n'
            'device.limit_threads()\n'
            'processes._set_environment(Some(device="cpu", nproc=1), Some(local_addr=None))\n'
            'print(process.cores(), torch.get_num_threads(), limits._computing() + 1, os.environ["OMP_NUM_THREADS"])\n'
            'os.environ["OMP_NUM_THREADS"] = "9"\n'
            'torch.set_num_threads(9)\n'
            'device.limit_threads()\n'
            'print(torch.get_num_threads())')
    assert in_group(ways) == ['1', '1', '1', '1', '9']
