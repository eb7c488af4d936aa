"""A run whose run.json or summary.csv is damaged or gone goes on with the record of one that was not disturbed."""
import json
import shutil

import pytest
from conftest import run_cli, train_flags
from recipe_runs import SCRIPTS
from training import assert_same, train, valid_record

pytestmark = pytest.mark.preloaded


@pytest.fixture(scope='module', params=SCRIPTS)
def runs(request, few_digits, tmp_path_factory):
    """Output of a whole run, that of its beginning, and the flags of both."""
    root = tmp_path_factory.mktemp('runs')

    def flags(output, epochs, *more):
        return train_flags(few_digits, output, '--epochs', epochs, '--sched', 'none', '--scripts', request.param, *more)
    train(*flags(root / 'whole', 3))
    train(*flags(root / 'begun', 2))
    return root, flags


def cut_row(text: str) -> str:
    return text[:len(text) - 12]


@pytest.mark.parametrize('name, damage, said', (
    ('run.json', lambda text: text[:100], 'run.json is missing or damaged'),
    ('summary.csv', cut_row, 'Rows of '),
    pytest.param('run.json', lambda _: '\0' * 50, 'run.json is missing or damaged', marks=pytest.mark.slow),
    pytest.param('run.json', None, 'run.json is missing or damaged', marks=pytest.mark.slow),
    pytest.param('run.json', lambda text: json.dumps(dict(json.loads(text), epochs=[])), '', marks=pytest.mark.slow),
    pytest.param('summary.csv', lambda _: '', 'Rows of ', marks=pytest.mark.slow),
    pytest.param('summary.csv', lambda _: '\0\x80', 'Rows of ', marks=pytest.mark.slow),
    pytest.param('summary.csv', None, 'Rows of ', marks=pytest.mark.slow),
))
def test_record_of_a_run_that_goes_on(runs, tmp_path, name, damage, said):
    root, flags = runs
    shutil.copytree(root / 'begun', tmp_path / 'out')
    file = tmp_path / 'out' / 'run' / name
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text()), encoding='latin-1')
    result = train(*flags(tmp_path / 'out', 3, '--resume', 'auto'))
    assert said in result.stderr
    for moved in file.parent.glob('*.damaged'):
        assert str(moved) in result.stderr
        moved.unlink()
    assert_same(root / 'whole' / 'run', file.parent)
    whole, record = valid_record(root / 'whole' / 'run'), valid_record(file.parent)
    assert [epoch['epoch'] for epoch in record['epochs']] == [0, 1, 2] and record['best'] == whole['best']
    begun = valid_record(root / 'begun' / 'run')
    assert record['started'] == begun['started'] and len(record['resumes']) == 1
    assert record['epochs'][0] == begun['epochs'][0]


def test_killed_in_the_first_save(few_digits, tmp_path):
    """Its epoch has a row, and no checkpoint: the run starts anew by itself."""
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'summary.csv').write_text('epoch,train_loss\n0,2.3\n')
    for name in ('tmp.pth.tar', 'last.pth.tar.tmp', '.run.json.x.json', '.status.json.x.json'):
        (run / name).write_text('half of it')
    train(*train_flags(few_digits, tmp_path, '--epochs', 1, '--resume', 'auto'))
    assert len((run / 'summary.csv').read_text().splitlines()) == 2 and not list(run.glob('*tmp*'))
    assert not [path.name for path in run.glob('.*')]
    assert run_cli(*train_flags(few_digits, tmp_path, '--epochs', 1)).returncode == 2
