"""Limits of a process: what is too little is one sentence, before the start where it can be known."""
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import train_flags

from seresnet_timm import process
from seresnet_timm.launch import limits
from seresnet_timm.process import Group


def limited(limit, *argv):
    command = f'ulimit {limit} && exec {sys.executable} -m seresnet_timm {shlex.join(map(str, argv))}'
    return subprocess.run(['bash', '-c', command], capture_output=True, text=True, timeout=240,
                          env={**os.environ, 'TIMM_SCRIPTS': ''})


@pytest.mark.parametrize('verb', ('train', 'validate', 'predict'))
def test_too_few_open_files(few_digits, tmp_path, verb):
    argv = train_flags(few_digits, tmp_path) if verb == 'train' else (verb, *{
        'validate': ('--data-dir', few_digits, '--model', 'seresnet18_ascend'),
        'predict': ('seresnet18_ascend', few_digits)}[verb])
    result = limited('-n 12', *argv)
    assert result.returncode == 2 and 'Traceback' not in result.stderr, result.stderr
    assert 'At most 12 files can be open in a process' in result.stderr and 'ulimit -n' in result.stderr
    assert os.listdir(tmp_path) == []


def test_torch_does_not_fit_into_the_address_space(few_digits, tmp_path):
    result = limited('-v 300000', *train_flags(few_digits, tmp_path))
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert 'There is not enough memory for this process: its limit is 293 MiB' in result.stderr
    assert 'ulimit -v unlimited' in result.stderr and os.listdir(tmp_path) == []


def test_memory_and_threads_are_tried(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(limits, '_free_in_container', lambda: None)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), hard))
        assert list(limits.check(memory=100 << 20)) == []
        (problem,) = limits.check(memory=1 << 30)
        assert '1,024 MiB of memory or more are needed' in problem and 'ulimit -v unlimited' in problem
        problems = list(limits.check(threads=500))  # each has a stack of 8 MiB
        assert len(problems) == 1 and '504 or more are needed' in problems[0] and 'ulimit -u' in problems[0]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_memory_of_the_container(monkeypatch, tmp_path):
    for name, text in (('memory.max', '1000000000\n'), ('memory.current', '900000000\n'),
                       ('memory.stat', 'anon 700000000\nfile 200000000\n')):
        (tmp_path / name).write_text(text)
    unlimited = tmp_path / 'parent'
    unlimited.mkdir()
    (unlimited / 'memory.max').write_text('max\n')
    monkeypatch.setattr(process, 'groups', lambda controller: [Group(str(unlimited), 2), Group(str(tmp_path), 2)])
    assert list(limits.check(processes=2, memory=10 ** 8)) == []
    (problem,) = limits.check(processes=4, memory=10 ** 8)
    assert 'the container has 286 MiB free' in problem and 'docker run --memory' in problem


@pytest.mark.parametrize('error, words', (
    (OSError(24, 'Too many open files', 'a.py'), 'ulimit -n'),
    (ImportError('libtorch_cpu.so: failed to map segment from shared object'), 'not enough memory'),
    (MemoryError(), 'not enough memory'),
    (RuntimeError('std::bad_alloc'), 'not enough memory'),
    (OSError(12, 'Cannot allocate memory'), 'not enough memory'),
    (RuntimeError("can't start new thread"), 'ulimit -u'),
    (BlockingIOError(11, 'Resource temporarily unavailable'), 'ulimit -u'),
))
def test_errors_of_limits(error, words):
    assert words in limits.explain(error)
    try:
        try:
            raise error
        except Exception as e:
            raise ValueError('of a library') from e
    except ValueError as outer:
        assert words in limits.explain(outer)


def test_other_errors():
    for error in (RuntimeError('CUDA error'), OSError(2, 'No such file'), OSError(28, 'No space left', 'a.txt')):
        assert limits.explain(error) is None
