"""`validate` at several image sizes, and on folders of numbers (ImageNet-V2)."""
import csv
import json
import shutil

import pytest
import timm
import torch
from conftest import MODEL, ROOT, run_cli, run_here
from PIL import Image
from timm.data import ImageNetInfo

from seresnet_timm.models.info import ModelInfo

pytestmark = pytest.mark.preloaded

TINY = dict(channels=(4, 4, 4, 8), stem_width=4)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'a.pth'
    torch.manual_seed(0)
    torch.save(timm.create_model('seresnet18_ascend', num_classes=10, channels=(8, 16, 24, 32)).state_dict(), path)
    return path


def evaluate(*flags, start=run_here):
    result = start('validate', '--workers', 0, '--device', 'cpu', '-b', 16, *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.split('--result')[1])


@pytest.mark.parametrize('start', (run_here, pytest.param(
    lambda *argv: run_cli(*argv, '--nproc', 2), marks=pytest.mark.slow, id='2-processes')))
def test_a_row_for_each_size_is_that_of_the_size_alone(few_digits, checkpoint, tmp_path, start):
    flags = ('--data-dir', few_digits, *MODEL[:-2], '--checkpoint', checkpoint)
    rows = evaluate(*flags, '--img-size', 48, 32, '--results-file', tmp_path / 'rows.csv', start=start)
    alone = [evaluate(*flags, '--img-size', size) for size in (48, 32)]
    assert [row['img_size'] for row in rows] == [48, 32] and all(isinstance(row, dict) for row in alone)
    for row, single in zip(rows, alone):
        assert row.pop('loss') == pytest.approx(single.pop('loss'), rel=1e-5) and row == single
    with open(tmp_path / 'rows.csv', newline='') as f:
        assert [(r['img_size'], float(r['top1'])) for r in csv.DictReader(f)] == [
            (str(row['img_size']), row['top1']) for row in rows]
    # a file of timm's keys, and a folder of checkpoints
    (tmp_path / 'c.yaml').write_text('img_size: [48, 32]\n')
    assert evaluate(*flags, '--config', tmp_path / 'c.yaml')[0]['top1'] == rows[0]['top1']
    shutil.copy(checkpoint, tmp_path)
    more = evaluate(*flags[:-1], tmp_path, '--img-size', 32, 48)
    assert [(row['img_size'], row['top1']) for row in more] == [(32, rows[1]['top1']), (48, rows[0]['top1'])]


def test_timms_positional_folder_after_the_sizes(few_digits, checkpoint, tmp_path, monkeypatch):
    flags = (*MODEL[:-2], '--checkpoint', checkpoint, '--dry-run', '--device', 'cpu')
    assert run_here('validate', *flags, '--img-size', 32, few_digits).returncode == 0
    assert run_here('validate', '--img-size', 32, 48, few_digits, *flags).returncode == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / '2012').symlink_to(few_digits)
    result = run_here('validate', *flags, '--img-size', 32, 2012)
    assert result.returncode == 0 and 'evaluated at' not in result.stderr, result.stderr


@pytest.mark.parametrize('flags, text', (
    (('--img-size', 32, 32), 'names a size twice'),
    (('--img-size', 32, 0), 'is too small: give at least 1'),
    (('--img-size', 32, 'big', '--data-dir', '.'), 'big'),
    (('--img-size', 32, 48, '--input-size', 3, 48, 48), 'contradict each other'),
    (('--img-size', 32, 48, '--scripts', ROOT / 'tests' / 'small_scripts'), 'takes one size in this validate.py'),
))
def test_wrong_sizes(few_digits, checkpoint, flags, text):
    result = run_here('validate', '--data-dir', few_digits, *MODEL[:-2], '--checkpoint', checkpoint, *flags)
    assert result.returncode == 2 and text in result.stderr and 'Traceback' not in result.stderr, result.stderr


def test_training_takes_one_size(few_digits):
    result = run_here('train', '--data-dir', few_digits, '--img-size', 32, 48, '--dry-run')
    assert result.returncode == 2 and 'it takes one size in train; --train-img-sizes takes several' in result.stderr


# --- folders of numbers -----------------------------------------------------------------------------------------------

def write_imagenet(path, names):
    """A network of 1000 outputs of which only the bias decides: it answers class 321 to everything."""
    model = timm.create_model('seresnet18_ascend', num_classes=1000, **TINY)
    torch.nn.init.zeros_(model.fc.weight)
    model.fc.bias.data.copy_(torch.arange(1000.) * -1e-3)
    model.fc.bias.data[321] = 1
    info = ModelInfo(name='seresnet18_ascend', kwargs=dict(TINY, channels=list(TINY['channels'])), num_classes=1000,
                     class_names=names, input_size=[3, 32, 32])
    content = {'state_dict': model.state_dict(), 'model_info': info.to_dict()}
    torch.save(content, path)
    return path


def write_folders(root, *names):
    for name in names:
        (root / 'val' / name).mkdir(parents=True)
        Image.new('RGB', (32, 32), (len(name), 9, 9)).save(root / 'val' / name / f'{name}.png')
    return root


@pytest.mark.parametrize('names', (list(ImageNetInfo().label_names()), None), ids=('named', 'unnamed'))
@pytest.mark.parametrize('folders', (('0', '321', '7', '999'), ('0000', '0321', '0100')))
def test_folders_of_numbers_are_the_classes_with_these_indices(tmp_path, names, folders):
    """A part of ImageNet-V2: the order of the folders would take 321 for class 2."""
    weights = write_imagenet(tmp_path / 'a.pth', names)
    data = write_folders(tmp_path / 'data', *folders)
    result = run_here('validate', '--data-dir', data, '--checkpoint', weights, '--workers', 0, '--device', 'cpu',
                      '-b', 2, '--img-size', 32, *(() if names else ('--num-classes', 1000)))
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout.split('--result')[1])
    assert row['top1'] == pytest.approx(100 / len(folders), abs=1e-3)
    assert 'The class folders are numbers' in result.stderr


@pytest.mark.parametrize('folders', (('1', '321', '1000'), ('1', '2', '7')))
def test_folders_that_count_from_one_are_refused(tmp_path, folders):
    weights = write_imagenet(tmp_path / 'a.pth', list(ImageNetInfo().label_names()))
    result = run_here('validate', '--data-dir', write_folders(tmp_path / 'data', *folders), '--checkpoint', weights,
                      '--device', 'cpu', '--dry-run')
    assert result.returncode == 2 and 'which folder is which class is not known' in result.stderr, result.stderr


def test_other_names_are_compared_as_before(tmp_path):
    """A checkpoint with names of its own is no model of ImageNet."""
    weights = write_imagenet(tmp_path / 'a.pth', [f'kind {i}' for i in range(1000)])
    result = run_here('validate', '--data-dir', write_folders(tmp_path / 'data', '0', '1'), '--checkpoint', weights,
                      '--device', 'cpu', '--dry-run')
    assert result.returncode == 2 and 'was trained with other classes' in result.stderr
