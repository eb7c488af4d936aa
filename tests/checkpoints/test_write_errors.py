"""Files that cannot be written, whatever verb writes them: one sentence with the file, and nothing half-written."""
import os

import pytest
from conftest import file_size_limit, run_here

pytestmark = pytest.mark.preloaded


@pytest.mark.parametrize('argv, code', (
    (('convert', 'RUN', 'out.pth'), 1), (('convert', 'RUN', 'out.safetensors'), 1),
    (('average', 'RUN', '--out', 'out.pth.tar'), 1), (('report', 'RUN', '--html', 'out.html'), 1),
    (('check-data', 'DATA', '--json', 'out.json'), 1), (('diagnose', 'RUN', '--bundle', 'out.tar.gz'), 1),
    pytest.param(('export', 'RUN', 'out.onnx'), 1, marks=pytest.mark.slow),
    pytest.param(('export', 'RUN', 'out.pt2'), 1, marks=pytest.mark.slow)))
def test_a_disk_that_takes_no_more(digits_run, few_digits, tmp_path, monkeypatch, argv, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    size = 10_000 if argv[0] in ('convert', 'average', 'export') else 300
    names = {'RUN': digits_run, 'DATA': few_digits}
    with file_size_limit(size):
        result = run_here(*(names.get(a, a) for a in argv))
    assert result.returncode == code and result.stderr.count('error:') == 1, result.stderr
    assert 'File too large' in result.stderr and 'Traceback' not in result.stderr
    assert not [name for name in os.listdir() if 'out' in name], os.listdir()


@pytest.mark.parametrize('argv', (
    ('convert', 'RUN', '/dev/full'), ('average', 'RUN', '--out', '/dev/full'),
    ('predict', 'RUN', 'DATA', '--device', 'cpu', '-j', '0', '--output', '/dev/full')))
def test_the_sentence_names_the_file(digits_run, few_digits, argv):
    names = {'RUN': digits_run, 'DATA': few_digits / 'val' / '0'}
    result = run_here(*(names.get(a, a) for a in argv))
    assert result.returncode == 1 and '/dev/full cannot be written (No space left on device)' in result.stderr


@pytest.mark.parametrize('argv', (
    ('convert', 'RUN', ''), ('predict', 'RUN', 'DATA', '--output', ''), ('report', 'RUN', '--csv', ''),
    ('split', 'DATA', ''), ('average', 'RUN', '--out', ''), ('compare', 'RUN', '--dump', ''),
    ('explain', 'RUN', 'DATA', '--output', ''), ('check-data', 'DATA', '--json', ''), ('demo-data', ''),
    ('diagnose', 'RUN', '--bundle', ''), ('pull', 'org/name', ''), ('prepare', 'DATA', '')))
def test_an_empty_name_is_no_output(digits_run, few_digits, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    names = {'RUN': digits_run, 'DATA': few_digits}
    result = run_here(*(names.get(a, a) for a in argv))
    assert result.returncode == 2 and 'is not a name: give a' in result.stderr and os.listdir() == []
