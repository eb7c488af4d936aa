"""A checkpoint is read and checked once a process, by whoever needs it first."""
import json
import os
import subprocess

import preloaded
import pytest
from conftest import run_cli, train_flags

pytestmark = pytest.mark.preloaded

COUNT = '''
import json, sys
from seresnet_timm.checkpoints import read
original, paths = read.read_checkpoint, []
def counted(path):
    paths.append(str(path))
    return original(path)
read.read_checkpoint = counted
from seresnet_timm.cli.main import main
main(json.loads(sys.argv[1]))
print('READ', json.dumps(paths))
'''


@pytest.fixture(scope='module')
def last(few_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    assert run_cli(*train_flags(few_digits, folder, '--epochs', 1)).returncode == 0
    return folder / 'run' / 'last.pth.tar'


@pytest.mark.parametrize('kind', (
    pytest.param('resume', marks=pytest.mark.slow), pytest.param('initial', marks=pytest.mark.slow), 'validate'))
def test_a_checkpoint_is_read_once(few_digits, tmp_path, last, kind):
    argv = {
        'resume': train_flags(few_digits, last.parent.parent, '--resume', last),
        'initial': train_flags(few_digits, tmp_path, '--initial-checkpoint', last, '--epochs', 1),
        'validate': ['validate', '--data-dir', few_digits, '--checkpoint', last, '--workers', 0, '--device', 'cpu'],
    }[kind]
    result = subprocess.run(
        [preloaded.python(), '-c', COUNT, json.dumps([str(a) for a in argv])], capture_output=True, text=True,
        env={**os.environ, 'TIMM_SCRIPTS': ''})
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.partition('READ ')[2]) == [str(last)]
