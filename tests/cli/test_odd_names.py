"""Names of any bytes through all that writes: tables, CSV, JSON, YAML, to a stdout that takes ASCII only."""
import csv
import io
import json
import logging
import os
import shutil
import sys
import unicodedata

import pytest
import yaml
from conftest import train_flags

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.cli.main import main

NAMES = (
    os.fsdecode(b'caf\xe9'), '<script>alert(1)</script>'.replace('/', '\u2215'), 'a|b `c` [d](e)', 'two\nlines',
    '\x1b[31mred\x1b[0m', 'abc\u202egpj', 'comma, "quote"', '=1+1', '\u732b \U0001f431', ' \ttab')


def command(monkeypatch, *argv):
    """Exit code, stdout and stderr of a command line whose streams take ASCII only."""
    streams = {}
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, 'handlers', [])  # of earlier command lines in this process
        for name in ('stdout', 'stderr'):
            streams[name] = io.TextIOWrapper(io.BytesIO(), 'ascii', errors='strict', write_through=True)
            patch.setattr(sys, name, streams[name])
        code = 0
        try:
            main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code or 0
    return code, *(stream.buffer.getvalue().decode('ascii') for stream in streams.values())


@pytest.fixture(scope='module')
def data(few_digits, tmp_path_factory):
    """Ten classes under odd names; the first image of each is called like its class."""
    root = tmp_path_factory.mktemp('odd') / 'data\u202e \x1b[1m'
    for split, count in (('train', 3), ('val', 2)):
        for digit, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i, file in enumerate(sorted((few_digits / split / str(digit)).iterdir())[:count]):
                shutil.copy(file, root / split / name / (f'{i}.jpg' if i else f'{name}.jpg'))
    (root / 'val' / NAMES[3] / f'{NAMES[3]}.jpg').write_bytes(b'no image')
    return root


@pytest.fixture(scope='module')
def run(data):
    output = data.parent / 'out \x1b[31m\nput'
    with pytest.MonkeyPatch.context() as patch:
        code, out, err = command(patch, *train_flags(data, output, '-b', 10, '--epochs', 1))
    assert code == 0, err
    assert_plain(out + err)
    return output / 'run'


def assert_plain(text):
    """Nothing in a text is a command for the terminal, or shows it in another order."""
    assert 'Traceback' not in text
    odd = {c for c in text if c not in '\n\t' and unicodedata.category(c) in ('Cc', 'Cf')}
    assert not odd, text


def test_files_of_a_run(data, run):
    names = sorted(NAMES, key=lambda n: read_checkpoint(run / 'last.pth.tar').info.class_names.index(n))
    record = json.loads((run / 'run.json').read_text())
    assert record['settings']['class_names'] == names and record['settings']['args']['data_dir'] == str(data)
    assert yaml.safe_load((run / 'args.yaml').read_text())['data_dir'] == str(data)
    assert 'two\\nlines.jpg' in record['epochs'][0]['unreadable_val']['files'][0]


@pytest.mark.parametrize('argv, exit_code', (
    (['inspect', 'RUN/last.pth.tar'], 0), (['inspect', 'RUN/last.pth.tar', '--json'], 0),
    (['report', 'RUN'], 0),
    (['predict', 'RUN', 'DATA/val'], 1), (['predict', 'RUN', 'DATA/val', '--json'], 1),
    (['check-data', 'DATA'], 1), (['check-data', 'DATA', '--csv'], 1), (['check-data', 'DATA', '--json'], 1),
    (['validate', '--checkpoint', 'RUN/last.pth.tar', '--data-dir', 'DATA', '--device', 'cpu', '--workers', '0'], 0),
    (['prepare', 'DATA', 'DATA-copy'], 1),
    (['convert', 'RUN/last.pth.tar', 'RUN/new.safetensors', '--to', 'safetensors'], 0),
    (['train', '--data-dir', 'DATA', '--output', 'DATA/x', '--model', 'DATA', '--dry-run'], 2),
))
def test_output_is_plain(data, run, monkeypatch, argv, exit_code):
    argv = [a.replace('RUN', str(run)).replace('DATA', str(data)) for a in argv]
    code, out, err = command(monkeypatch, *argv)
    assert code == exit_code, err
    assert_plain(out + err)


@pytest.mark.parametrize('kind', ('csv', 'json'))
def test_predictions_give_names_back(data, run, monkeypatch, kind):
    images = [data / 'val' / n / '1.jpg' for n in NAMES] + [data / 'val' / NAMES[0] / f'{NAMES[0]}.jpg']
    target = data.parent / f'out.{kind}'
    code, _, err = command(monkeypatch, 'predict', run, *images, f'--{kind}', '--output', target, '--topk', 10)
    assert code == 0, err
    text = target.read_bytes().decode('utf-8', 'surrogateescape')
    if kind == 'json':
        rows = json.loads(text)
        assert [r['file'] for r in rows] == [str(i) for i in images]
        assert all({p['label'] for p in r['predictions']} == set(NAMES) for r in rows)
    else:
        rows = list(csv.DictReader(io.StringIO(text, newline='')))
        assert {r['file'] for r in rows} == {str(i) for i in images} and {r['label'] for r in rows} == set(NAMES)
