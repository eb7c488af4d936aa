"""Run folders of other users, which may not be read or written: one sentence that names the path, no traceback."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import train_flags

# root of a user namespace without users has no more rights than any user
AS_USER = ['unshare', '--user'] if os.geteuid() == 0 else []


@pytest.fixture(scope='module')
def others(digits_run, tmp_path_factory):
    """A folder with runs of which a part is forbidden."""
    if AS_USER and subprocess.run([*AS_USER, 'true'], capture_output=True).returncode:
        pytest.skip('needs user namespaces')
    base = tmp_path_factory.mktemp('others')
    for name in ('folder', 'files', 'open', 'table'):
        shutil.copytree(digits_run, base / name)
    (base / 'folder').chmod(0)
    for path in (base / 'files').iterdir():
        path.chmod(0)
    (base / 'table' / 'summary.csv').chmod(0o444)
    base.chmod(0o500)
    yield base
    base.chmod(0o700)
    (base / 'folder').chmod(0o700)


def run(*argv):
    return subprocess.run(
        [*AS_USER, sys.executable, '-m', 'seresnet_timm', *map(str, argv)],
        env={**os.environ, 'TIMM_SCRIPTS': ''}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('name', ('folder', 'files'))
@pytest.mark.parametrize('verb', [
    'report', 'watch', *(pytest.param(verb, marks=pytest.mark.slow) for verb in ('diagnose', 'train', 'validate'))])
def test_run_that_cannot_be_read(others, few_digits, verb, name):
    argv = {'report': ['report', others / name], 'watch': ['watch', others / name],
            'diagnose': ['diagnose', others / name],
            'train': [*train_flags(few_digits, others, '--resume', 'auto'), '--experiment', name],
            'validate': ['validate', '--data-dir', few_digits, '--checkpoint', others / name / 'model_best.pth.tar',
                         '--device', 'cpu']}[verb]
    result = run(*argv)
    assert result.returncode in (1, 2) and 'Traceback' not in result.stderr, result.stderr
    assert 'ermission denied' in result.stderr and str(others / name) in result.stderr
    assert 'damaged' not in result.stderr and 'move it away' not in result.stderr


@pytest.mark.slow
def test_run_goes_on_though_the_folder_above_it_is_read_only(others, few_digits):
    """As where the folder of the run alone is mounted writable."""
    result = run(*train_flags(few_digits, others, '--epochs', 3, '--resume', 'auto'), '--experiment', 'open')
    assert result.returncode == 0 and '3 of 3 epochs done' in result.stderr, result.stderr


def test_run_that_goes_on_among_the_files_of_another_user(others, few_digits):
    """The folder may be written, a file that the run would append to may not: said before anything is trained."""
    result = run(*train_flags(few_digits, others, '--epochs', 3, '--resume', 'auto'), '--experiment', 'table')
    assert result.returncode == 2 and 'Epoch' not in result.stderr, result.stderr
    assert f'{others}/table/summary.csv may not be written by this user' in result.stderr
