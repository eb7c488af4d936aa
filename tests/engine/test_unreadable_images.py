"""Runs on data with images that cannot be read: figures, names, run.json; every way to load, and both scripts."""
import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import MODEL, run_cli
from PIL import Image
from recipe_runs import SMALL
from training import summary, valid_record

from seresnet_timm.cli.main import main
from seresnet_timm.data.image_files import allowed_images
from seresnet_timm.engine.evaluate import EvaluationLog, evaluate
from seresnet_timm.engine.forward import Forward

CLASSES = ('ant', 'bee', 'cow')


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    """A sound tree; the same with four files a split that cannot be read, in `bee`; one whose val has no sound file."""
    root = tmp_path_factory.mktemp('trees')
    for name in ('sound', 'bad', 'none'):
        for split in ('train', 'val'):
            for i, label in enumerate(CLASSES):
                folder = root / name / split / label
                folder.mkdir(parents=True)
                for k in range(4):
                    if name == 'none' and split == 'val':
                        (folder / f'{k}.jpg').write_text('<html>')
                    else:
                        Image.fromarray(np.full((40, 40, 3), 60 * i + 10 * k, np.uint8)).save(folder / f'{k}.jpg')
            if name == 'bad':
                folder = root / name / split / 'bee'
                (folder / '0_empty.jpg').touch()
                (folder / '1_page.jpg').write_text('<!DOCTYPE html>')
                (folder / '2_link.png').symlink_to('gone')
                (folder / '3_cut.jpg').write_bytes((folder / '3.jpg').read_bytes()[:300])
    return root


def flags(verb, data, *more) -> list:
    return [str(f) for f in (
        verb, '--data-dir', data, *MODEL, '--num-classes', 3, '-b', 4, '--workers', 0, '--device', 'cpu', *more)]


def train(capfd, data, output, *more, code=0) -> str:
    argv = flags('train', data, '--warmup-epochs', 0, '--lr', 0.01, '--output', output, '--experiment', 'run', *more)
    if code:
        with pytest.raises(SystemExit) as e:
            main(argv)
        assert e.value.code == code
    else:
        main(argv)
    return capfd.readouterr().err


def result_of(output: str):
    return json.loads(output[output.index('--result') + len('--result'):])


def test_evaluation_counts_an_unreadable_image_as_wrong():
    """The loss is the mean over the others; a batch without any is left out of it."""
    torch.manual_seed(0)
    outputs = torch.randn(8, 10)
    targets = torch.tensor([3, -100, 1, 2, -100, -100, -100, -100])
    loader = [(outputs[:4], targets[:4]), (outputs[4:], targets[4:])]
    log = EvaluationLog(None, 1, lambda *_: '')
    metrics, unreadable = evaluate(torch.nn.Identity(), loader, Forward(torch.device('cpu'), nullcontext), log)
    readable = targets >= 0
    expected = torch.nn.functional.cross_entropy(outputs[readable], targets[readable]).item()
    assert metrics['loss'] == pytest.approx(expected, rel=1e-6) and unreadable is None
    hits = (outputs.argmax(1) == targets).sum().item()
    assert metrics['top1'] == pytest.approx(100 * hits / 8)


@pytest.mark.parametrize('more', (
    (), pytest.param(('--fast-jpeg', 'off', '--workers', 1), marks=pytest.mark.slow),
    pytest.param(('--scripts', SMALL), marks=pytest.mark.slow)), ids=('bundled', 'off', "timm's script"))
def test_training_names_and_counts(trees, tmp_path, capfd, more):
    """Named once in two epochs, by path; run.json has the numbers; no stand-in in the evaluation."""
    log = train(capfd, trees / 'bad', tmp_path, '--epochs', 2, '--max-bad-images', '25%', *more)
    for split, start in (('train', 'WARNING: Data: 4 of 16 images of epoch 0'), ('val', 'WARNING: Test: 4 of 16')):
        line = next(line for line in log.splitlines() if line.startswith(start))
        for name in ('0_empty.jpg (it is empty)', '1_page.jpg (it is a web page', '2_link.png (it is a link to gone',
                     '3_cut.jpg (it is damaged'):
            path = f'{trees}/bad/{split}/bee/{name}'
            warnings = {other for other in log.splitlines() if other.startswith('WARNING') and path in other}
            assert warnings == {line}
    assert 'Data: 4 of 16 images of epoch 1 cannot be read, others took their place (named before)' in log
    for epoch in valid_record(tmp_path / 'run')['epochs']:
        for split in ('train', 'val'):
            found = epoch[f'unreadable_{split}']
            assert found['count'] == 4 and found['files'][0] == f'{trees}/bad/{split}/bee/0_empty.jpg'
    row = summary(tmp_path / 'run')[-1]
    assert float(row['eval_top5']) == pytest.approx(100 * 12 / 16)  # 3 classes: all that can be read
    assert math.isfinite(float(row['eval_loss']))


def test_sound_images_are_not_mentioned(trees, tmp_path, capfd):
    log = train(capfd, trees / 'sound', tmp_path, '--epochs', 1)
    assert 'cannot be read' not in log and 'left out' not in log
    epoch = valid_record(tmp_path / 'run')['epochs'][0]
    assert epoch['unreadable_train'] == epoch['unreadable_val'] == {'count': 0, 'files': []}


@pytest.fixture(scope='module')
def checkpoint(trees, tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    main(flags('train', trees / 'sound', '--epochs', 1, '--warmup-epochs', 0, '--lr', 0.01, '--output', folder,
               '--experiment', 'run'))
    return folder / 'run' / 'last.pth.tar'


@pytest.mark.parametrize('more', (
    (), pytest.param(('--fast-jpeg', 'off'), marks=pytest.mark.slow),
    pytest.param(('--scripts', SMALL), marks=pytest.mark.slow)),
    ids=('bundled', 'off', "timm's script"))
def test_validate(trees, checkpoint, capfd, more):
    """top1 of 12 sound images becomes that times 12/16, the loss stays; nothing readable is one sentence, code 1."""
    results = []
    for name in ('sound', 'bad'):
        main(flags('validate', trees / name, '--checkpoint', checkpoint, *more))
        printed = capfd.readouterr()
        results.append(result_of(printed.out))
    assert results[1]['top1'] == pytest.approx(results[0]['top1'] * 12 / 16, abs=1e-3)
    assert results[1]['top5'] == pytest.approx(75)
    if 'loss' in results[0]:  # timm's script prints none
        assert results[1]['loss'] == pytest.approx(results[0]['loss'], rel=1e-4)
    line = next(line for line in printed.err.splitlines() if line.startswith('WARNING: Test: 4 of 16 images'))
    assert f'{trees}/bad/val/bee/1_page.jpg' in line and 'count as wrong' in line
    for data, flag, text in ((trees / 'none', (), '12 of 12 images to evaluate cannot be read'),
                             (trees / 'bad', ('--metrics-avg', 'macro'), '--metrics-avg cannot count')):
        with pytest.raises(SystemExit) as e:
            main(flags('validate', data, '--checkpoint', checkpoint, *flag, *more))
        assert e.value.code == 1
        assert f'seresnet-timm: error: {text}' in capfd.readouterr().err


def test_validation_folder_without_a_readable_image(trees, tmp_path, capfd):
    log = train(capfd, trees / 'none', tmp_path, '--epochs', 1, code=1)
    assert log.splitlines()[-1].startswith('seresnet-timm: error: 12 of 12 images to evaluate cannot be read')


TOO_MANY = ('4 of 16 training images cannot be read so far (25 %), and --max-bad-images 3 allows 3: ')


@pytest.mark.parametrize('more', (
    (), pytest.param(('--fast-jpeg', 'off', '--workers', 2), marks=pytest.mark.slow),
    pytest.param(('--scripts', SMALL), marks=pytest.mark.slow)), ids=('bundled', 'off', "timm's script"))
def test_too_many_end_the_run(trees, tmp_path, capfd, more):
    """In the first epoch, with exit code 1, paths and a way out; run.json says why."""
    log = train(capfd, trees / 'bad', tmp_path, '--epochs', 2, '--max-bad-images', 3, *more, code=1)
    line = log.splitlines()[-1]
    assert line.startswith(f'seresnet-timm: error: {TOO_MANY}{trees}/bad/train/bee/0_empty.jpg')
    assert f'`seresnet-timm check-data {trees}/bad` lists all' in line
    record = valid_record(tmp_path / 'run')
    assert [f['kind'] for f in record['faults']] == ['bad_images'] and TOO_MANY in record['faults'][0]['text']
    assert not record['epochs'] and not list((tmp_path / 'run').glob('*.pth.tar'))


@pytest.mark.parametrize('limit, total, allowed', (
    ('0.1%', 1281167, 1281), ('0.1%', 3, 1), ('0.1%', 17, 4), ('0.1%', 3000, 10), ('0.1%', 20000, 20),
    ('10%', 100, 10), ('100%', 16, 16), ('0%', 1000, 0), ('0', 1000, 0), ('7', 5, 7), ('.5%', 1000, 10)))
def test_share_or_number(limit, total, allowed):
    assert allowed_images(limit, total) == allowed


def test_limit_is_checked_and_in_the_plan(trees, capfd):
    main(flags('train', trees / 'bad', '--dry-run', '--max-bad-images', '40 %'))
    assert 'the run ends when more than 6 of 16 training images are bad (--max-bad-images 40%)' in (
        capfd.readouterr().err)
    for wrong in ('101%', '-1', '0.001', 'few', '', '1e3', 'nan%'):
        with pytest.raises(SystemExit) as e:
            main(flags('train', trees / 'bad', '--dry-run', '--max-bad-images', wrong))
        assert e.value.code == 2 and '--max-bad-images' in capfd.readouterr().err


@pytest.mark.slow
def test_too_many_of_two_processes(trees, tmp_path):
    argv = flags('train', trees / 'bad', '--warmup-epochs', 0, '--lr', 0.01, '--output', tmp_path, '--experiment',
                 'run', '--epochs', 3, '--nproc', 2, '--max-bad-images', 3)
    done = run_cli(*argv)
    assert done.returncode == 1 and TOO_MANY in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
def test_two_processes(trees, checkpoint, tmp_path):
    """Each image is counted and named once, whichever rank reads it."""
    argv = flags('train', trees / 'bad', '--warmup-epochs', 0, '--lr', 0.01, '--output', tmp_path, '--experiment',
                 'run', '--epochs', 3, '--nproc', 2)
    done = run_cli(*argv, '--max-bad-images', 4)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f'{trees}/bad/val/bee/0_empty.jpg') == 1
    assert done.stderr.count(f'{trees}/bad/train/bee/0_empty.jpg') == 1
    record = valid_record(tmp_path / 'run')
    assert {e['unreadable_val']['count'] for e in record['epochs']} == {4}
    (tmp_path / 'tmp').mkdir()
    done = run_cli(*flags('validate', trees / 'bad', '--checkpoint', checkpoint, '--nproc', 2),
                   env={'TMPDIR': str(tmp_path / 'tmp')})
    assert not list((tmp_path / 'tmp').glob('seresnet*'))  # the logs of the ranks
    assert '4 of 16 images cannot be read' in done.stderr and result_of(done.stdout)['top5'] == 75.0


def test_every_suffix_is_used_and_the_rest_is_told(trees, checkpoint, tmp_path, capfd):
    """The plan, an evaluation and a prediction count the same files."""
    for split in ('train', 'val'):
        for i, label in enumerate(CLASSES):
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            for suffix in ('JPEG', 'PNG', 'webp', 'bmp', 'tif', 'GIF'):
                image = Image.new('RGB', (40, 40), (60 * i, 90, 90))
                image.save(folder / f'x.{suffix}', {'tif': 'TIFF'}.get(suffix, suffix.upper()))
            for name in ('notes.txt', 'a.heic', 'Thumbs.db', '.DS_Store'):
                (folder / name).write_text('x')
    main(flags('train', tmp_path / 'data', '--dry-run'))
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith('  data '))
    files = 'with 3 .bmp, 3 .gif, 3 .tif, 3 .webp, which timm alone leaves out; 6 files are left out: 3 .heic, 3 .txt'
    assert line.endswith(f': 18 training images ({files}) and 18 validation images ({files})')
    main(flags('validate', tmp_path / 'data', '--checkpoint', checkpoint))
    log = capfd.readouterr().err
    assert f'18 validation images ({files})' in log and 'cannot be read' not in log and '[   4/5]' in log
    main(['predict', str(checkpoint), str(tmp_path / 'data' / 'val'), '--json', '--device', 'cpu'])
    printed = capfd.readouterr()
    assert len(json.loads(printed.out)) == 18
    assert 'data/val: 6 files are left out: 3 .heic, 3 .txt' in printed.err


@pytest.mark.parametrize('kind, fresh', (
    ('--csv', False), *(pytest.param(k, True, marks=pytest.mark.slow) for k in ('--csv', '--json', ''))))
def test_predict_writes_names_of_any_bytes(trees, checkpoint, tmp_path, monkeypatch, kind, fresh):
    """To a strict stdout, of this process or of one that starts; CSV and JSON give the bytes back."""
    folder = tmp_path / 'odd'
    folder.mkdir()
    names = {b'\xff\xe9.jpg', b'a\nb.jpg', 'кот ²5.jpg'.encode(), b'"q, \\.jpg', b'esc\x1b[31m.jpg', b'*?[a] %s.jpg'}
    data = (trees / 'sound' / 'val' / 'ant' / '0.jpg').read_bytes()
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), 'wb') as f:
            f.write(data)
    output = tmp_path / 'out'
    argv = ['predict', str(checkpoint), str(folder), '--topk', '1', '--device', 'cpu', *kind.split()]
    if fresh:
        with open(output, 'wb') as f:
            done = subprocess.run([sys.executable, '-m', 'seresnet_timm', *argv], stdout=f, stderr=subprocess.PIPE,
                                  env=dict(os.environ, PYTHONIOENCODING='ascii:strict'))
        assert done.returncode == 0, done.stderr
    else:
        with open(output, 'w', encoding='ascii', errors='strict') as f, monkeypatch.context() as m:
            m.setattr(sys, 'stdout', f)
            main(argv)
    if kind == '':
        assert '\\udcff' in output.read_text() and '\\u043a' in output.read_text()
        return
    if kind == '--csv':
        import csv
        with open(output, newline='', encoding='utf-8', errors='surrogateescape') as f:
            found = [row['file'] for row in csv.DictReader(f)]
    else:
        found = [entry['file'] for entry in json.loads(output.read_text(encoding='utf-8'))]
    assert {os.path.basename(os.fsencode(f)) for f in found} == names and len(found) == len(names)
