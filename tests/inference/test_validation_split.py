"""`report --data-dir`: every image counts once, by the name of its class, as in the evaluation of the run."""
import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_here
from PIL import Image

from seresnet_timm.data.fast_jpeg import decoder_for
from seresnet_timm.data.loaders import LoaderSetup, eval_loader
from seresnet_timm.engine.flags import validate_parser
from seresnet_timm.inference.load import load_model
from seresnet_timm.inference.predict import probabilities
from seresnet_timm.inference.validation_split import decoder_of, list_images, targets_of
from seresnet_timm.launch.plan import plan_prediction


def test_as_the_evaluation_of_the_run(digits_run, few_digits, tmp_path):
    """The same top-1 and top-5; the predicted classes are those of `predict`."""
    out, table = tmp_path / 'all.json', tmp_path / 'predict.csv'
    result = run_here(
        'report', digits_run, '--data-dir', few_digits, '--json', out, '--html', tmp_path / 'page.html', '--output',
        tmp_path / 'pictures', '--workers', 0, '--device', 'cpu', '--worst', 4, '--markdown')
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text('ascii'))['runs'][0]
    validation = found['predictions']
    assert validation['images'] == 70 and validation['top1'] == pytest.approx(found['top1'])
    assert validation['top5'] == pytest.approx(found['top5'])
    assert 'Most confused classes' in result.stdout and 'Lowest top-1 (10 of 10 classes)' in result.stdout
    assert {p.name for p in (tmp_path / 'pictures').iterdir()} == {'curves.png', 'confusion.png', 'worst_images.png'}
    assert 'Confusion matrix of 10 classes' in (tmp_path / 'page.html').read_text()
    run_here('predict', digits_run, few_digits / 'val', '--topk', 1, '--csv', '--output', table, '--workers', 0,
             '--device', 'cpu')
    rows = {row['file']: row for row in csv.DictReader(table.open())}
    wrong = {f: row['label'] for f, row in rows.items() if row['label'] != f.split('/')[-2]}
    assert len(validation['worst']) == 4 and len(rows) == 70
    assert all(wrong[w['file']] == w['predicted'] for w in validation['worst'])
    assert sum(p['images'] for p in validation['confused']) == len(wrong)


def test_a_class_is_its_name_and_an_unreadable_image_is_wrong(digits_run, few_digits, tmp_path):
    """A split that lacks classes: the folder of one class is not taken for another by its number."""
    for digit in ('3', '7'):
        shutil.copytree(few_digits / 'val' / digit, tmp_path / 'data' / 'val' / digit)
    (tmp_path / 'data' / 'val' / '7' / 'x.jpg').write_bytes(b'no image')
    result = run_here('report', digits_run, '--data-dir', tmp_path / 'data', '--json', '--output', tmp_path / 'p',
                      '--workers', 0, '--device', 'cpu', '--worst', 0)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)['runs'][0]['predictions']
    assert [(c['class'], c['images']) for c in found['classes'] if c['images']] == [('3', 7), ('7', 8)]
    assert found['unreadable'] == [str(tmp_path / 'data' / 'val' / '7' / 'x.jpg')] and found['images'] == 15


@pytest.mark.parametrize('folders, hint', (
    (['cat'], 'has classes that the model does not have: cat'), ([], 'has no folder of a class with images')))
def test_other_classes_are_refused(digits_run, few_digits, tmp_path, folders, hint):
    (tmp_path / 'val').mkdir()
    for name in folders:
        shutil.copytree(few_digits / 'val' / '0', tmp_path / 'val' / name)
    result = run_here('report', digits_run, '--data-dir', tmp_path, '--workers', 0, '--device', 'cpu')
    assert (result.returncode, result.stdout) == (2, '') and hint in result.stderr


def test_no_such_data(digits_run, tmp_path):
    result = run_here('report', digits_run, '--data-dir', tmp_path / 'no')
    assert result.returncode == 2 and 'no' in result.stderr and result.stdout == ''


def test_a_class_of_several_folders(digits_run, few_digits):
    """A class map can give several folders one class, whose name lists them."""
    loaded = load_model(str(digits_run))
    loaded.info.class_names[:] = ['0, 1', *loaded.info.class_names[2:], 'other, one']
    folder, images = list_images(str(few_digits), 'val')
    names, index = targets_of(loaded, images, folder)
    assert index['0'] == index['1'] == 0 and index['2'] == 1 and names[0] == '0, 1'


def test_the_pixels_of_the_evaluation(digits_run, tmp_path):
    """JPEG files are decoded as in `validate` with the run's --fast-jpeg, whose pixels are not always Pillow's."""
    (tmp_path / 'val' / '3').mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (3, 300, 400, 3), dtype=np.uint8)
    files = [str(tmp_path / 'val' / '3' / f'{i}.jpg') for i in range(3)]
    for file, pixels in zip(files, noise):
        Image.fromarray(pixels).save(file)
    loaded = load_model(str(digits_run))
    args = validate_parser().parse_args(['--data-dir', str(tmp_path), '--workers', '0', '--device', 'cpu'])
    args.distributed, args.seed = False, 0
    found = {}
    for mode in ('auto', 'off'):
        setup = LoaderSetup(args, loaded.data_config, torch.device('cpu'), decoder=decoder_for(mode)[0],
                            class_names=loaded.info.class_names)
        (images, targets), = eval_loader(setup, 'val', 3)
        with torch.inference_mode():
            expected = loaded.model(images).softmax(dim=1)
        flags = dict(device='cpu', workers=0, batch_size=3)
        run = SimpleNamespace(record={'settings': {'fast_jpeg': mode}})
        (_, found[mode], _), = probabilities(plan_prediction(flags, 3, decoder_of(run)), loaded, files)
        torch.testing.assert_close(found[mode], expected, rtol=1e-4, atol=1e-6)
        assert targets.tolist() == [3, 3, 3]
    assert (found['auto'] - found['off']).abs().max() > 1e-4
