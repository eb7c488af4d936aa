"""A training whose closing lines nobody takes: its exit code is its own, so that nothing starts it again."""
import os
import subprocess

import preloaded
import pytest
from conftest import train_flags
from recipe_runs import SCRIPTS
from training import valid_record


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('streams, more, env', [
    (('stdout',), (), {'PYTHONUNBUFFERED': '1'}),
    pytest.param(('stdout',), ('--nproc', 2), {}, marks=pytest.mark.slow),
    pytest.param(('stdout', 'stderr'), ('--nproc', 2), {}, marks=pytest.mark.slow),
    pytest.param(('stdout', 'stderr'), (), {}, marks=pytest.mark.slow)])
def test_output_that_is_closed_while_it_trains(few_digits, tmp_path, script, streams, more, env):
    """As by `| head`, or a terminal that is gone."""
    read, write = os.pipe()
    command = [preloaded.python(), '-m', 'seresnet_timm', *map(str, train_flags(
        few_digits, tmp_path, '--epochs', 1, '--scripts', script, *more))]
    with open(tmp_path / 'output', 'w') as file:
        process = subprocess.Popen(
            command, env={**preloaded.environment(), **env},
            **{**dict.fromkeys(('stdout', 'stderr'), file), **dict.fromkeys(streams, write)})
    os.close(write)
    if 'stderr' in streams:  # the plan is written there
        while os.read(read, 1 << 16) and not (tmp_path / 'run' / 'run.json').exists():
            pass
    os.close(read)
    assert process.wait(240) == 0, (tmp_path / 'output').read_text()
    assert valid_record(tmp_path / 'run')['finished'] and not (tmp_path / 'run' / 'status.json').exists()
    if streams == ('stdout',):
        told = (tmp_path / 'output').read_text()
        assert 'Note: the closing lines cannot be printed to stdout (Broken pipe).' in told and 'Traceback' not in told
