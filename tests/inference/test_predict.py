"""Predictions are those of timm's evaluation on the same files; files that cannot be read stop nothing."""
import argparse
import csv
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from checkpoint_files import save_modelzoo
from conftest import run_here, sample_photos
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, create_loader, create_transform, resolve_data_config
from timm.models import save_for_hf
from training import load

from seresnet_timm import cli
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.data.classes import names_of_dataset
from seresnet_timm.engine import values
from seresnet_timm.inference.predict import find_images
from seresnet_timm.models.info import IMAGE_MODES, ModelInfo


@pytest.fixture(scope='module')
def run_folder(few_digits, tmp_path_factory):
    """Folder of a run on the digits, and its model."""
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    torch.nn.init.normal_(model.fc.weight)  # else all classes are about as likely
    folder = tmp_path_factory.mktemp('runs') / 'run'
    folder.mkdir()
    args = argparse.Namespace(
        model='seresnet18_ascend', num_classes=10, img_size=32, input_size=None, crop_pct=1.0, mean=None, std=None,
        interpolation='', data_dir=str(few_digits), dataset='', train_split='train', class_map='', gp=None,
        in_chans=None, model_kwargs={})
    names = names_of_dataset(create_dataset('', root=str(few_digits), split='train'))
    info = ModelInfo.of_model(model, resolve_data_config(vars(args), model=model), names)
    torch.save({'epoch': 7, 'arch': 'seresnet18_ascend', 'state_dict': model.state_dict(), 'args': args,
                'model_info': info.to_dict()}, folder / 'model_best.pth.tar')
    return folder, model.eval()


def run(capsys, *argv, code=0):
    """Run the verb; its stdout and stderr."""
    if code:
        with pytest.raises(SystemExit) as e:
            cli.main(['predict', '--device', 'cpu', *map(str, argv)])
        assert e.value.code == code
    else:
        cli.main(['predict', '--device', 'cpu', *map(str, argv)])
    return capsys.readouterr()


def test_equals_timms_evaluation(run_folder, few_digits, capsys):
    folder, model = run_folder
    printed = run(capsys, folder, few_digits / 'val', '--json', '-b', 16)
    results = json.loads(printed.out)
    assert 'names from the file' in printed.err and 'epoch 7' in printed.err and 'Device: cpu' in printed.err

    dataset = create_dataset('', root=str(few_digits), split='val')
    loader = create_loader(
        dataset, input_size=(3, 32, 32), batch_size=16, interpolation='bilinear', crop_pct=1.0, num_workers=0,
        device=torch.device('cpu'))
    with torch.inference_mode():
        expected = torch.cat([model(x).softmax(1) for x, _ in loader])
    assert [r['file'] for r in results] == dataset.filenames(absolute=True)
    for result, probabilities in zip(results, expected):
        assert len(result['predictions']) == 5
        top = probabilities.topk(5)
        got = [p['probability'] for p in result['predictions']]
        np.testing.assert_allclose(got, top.values, atol=1e-5)
        for p in result['predictions']:
            assert p['label'] == str(p['index'])
            assert p['probability'] == pytest.approx(probabilities[p['index']].item(), abs=1e-5)


def test_formats_agree(run_folder, few_digits, tmp_path, capsys):
    folder, _ = run_folder
    images = sorted((few_digits / 'val' / '3').iterdir())[:2]
    argv = (folder, *images, '--topk', 3)
    from_json = json.loads(run(capsys, *argv, '--json').out)
    printed = run(capsys, *argv, '--csv', '--output', tmp_path / 'result.csv')
    assert f'{tmp_path / "result.csv"}: 2 images' in printed.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / 'result.csv').read_text())))
    assert [(r['file'], r['index'], r['label'], r['probability']) for r in rows] == [
        (r['file'], str(p['index']), p['label'], str(p['probability'])) for r in from_json for p in r['predictions']]
    assert [r['rank'] for r in rows] == ['1', '2', '3'] * 2
    table = run(capsys, *argv).out.splitlines()
    assert table[0] == str(images[0]) and len(table) == 8
    first = from_json[0]['predictions'][0]
    assert table[1].split() == [f'{100 * first["probability"]:.2f}', '%', str(first['index']), first['label']]
    assert [p.name for p in tmp_path.iterdir()] == ['result.csv']


def test_modelzoo_checkpoint_needs_no_name(few_digits, tmp_path, capsys):
    """Which calls itself resnext101_32x8d: its weights tell what it is."""
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    save_modelzoo(model, tmp_path / 'm.pth.tar')
    image = sorted((few_digits / 'val' / '3').iterdir())[0]
    printed = run(capsys, tmp_path / 'm.pth.tar', image, '--json', '--img-size', 32, '--topk', 10)
    assert 'Model: seresnet18_ascend' in printed.err
    transform = create_transform(input_size=(3, 32, 32), interpolation='bilinear', crop_pct=0.875)
    with torch.inference_mode():
        expected = model.eval()(transform(Image.open(image).convert('RGB'))[None]).softmax(1)[0]
    for p in json.loads(printed.out)[0]['predictions']:
        assert p['probability'] == pytest.approx(expected[p['index']].item(), abs=1e-5)


def test_odd_images(run_folder, tmp_path, capsys):
    """What Pillow can read is seen as `convert('RGB')`, 16 bits scaled; what it cannot is one line each."""
    folder, model = run_folder
    china = sample_photos()[0]
    good, bad = tmp_path / 'a', tmp_path / 'b' / 'c'
    good.mkdir()
    bad.mkdir(parents=True)
    china.convert('CMYK').save(good / 'cmyk.jpg')
    china.convert('RGBA').save(good / 'alpha.png')
    china.convert('L').save(good / 'grey.JPEG')
    china.quantize(16).save(good / 'palette.png')
    sixteen = np.asarray(china.convert('L')).astype(np.uint16) * 200
    Image.fromarray(sixteen).save(good / 'sixteen.png')
    (bad / 'cut.jpg').write_bytes((good / 'grey.JPEG').read_bytes()[:20000])
    (bad / 'empty.jpg').write_bytes(b'')
    (bad / 'text.png').write_text('not an image')

    printed = run(capsys, folder, tmp_path, '--json', '-b', 3, code=1)
    results = {r['file']: r for r in json.loads(printed.out)}
    assert len(results) == 8
    transform = create_transform((3, 32, 32), interpolation='bilinear', crop_pct=1.0)
    for file in good.iterdir():
        image = Image.open(file) if file.name != 'sixteen.png' else Image.fromarray((sixteen >> 8).astype(np.uint8))
        with torch.inference_mode():
            expected = model(transform(image.convert('RGB'))[None]).softmax(1)[0]
        first = results[str(file)]['predictions'][0]
        assert first['index'] == expected.argmax().item()
        assert first['probability'] == pytest.approx(expected.max().item(), abs=1e-5)
    lines = printed.err.splitlines()
    for file in bad.iterdir():
        assert 'error' in results[str(file)] and sum(str(file) in line for line in lines) == 1
    assert '3 of 8 files could not be read' in lines[-1]


def test_imagenet_names(tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend')
    torch.save(model.state_dict(), tmp_path / 'c.pth')
    sample_photos()[1].save(tmp_path / 'flower.jpg')
    out = run(capsys, tmp_path / 'c.pth', tmp_path / 'flower.jpg', '--model', 'seresnet18_ascend', '--img-size', 64,
              '--json', '--topk', 2000).out
    predictions = json.loads(out)[0]['predictions']
    info = ImageNetInfo()
    assert len(predictions) == 1000
    assert {p['index']: (p['label'], p['description']) for p in predictions} == {
        i: (info.index_to_label_name(i), info.index_to_description(i)) for i in range(1000)}
    torch.save({'classifier.weight': torch.ones(3, 3)}, tmp_path / 'c.pth')
    code = run(capsys, tmp_path / 'c.pth', tmp_path / 'flower.jpg', code=2)
    assert 'does not say what model it is of: name it with --model' in code.err


def test_names_from_other_places(run_folder, few_digits, tmp_path, capsys):
    """Natural order, as timm numbers classes; WordNet ids explained; a folder as timm saves it for the Hub."""
    folder, model = run_folder
    image = next((few_digits / 'val' / '0').iterdir())
    checkpoint = read_checkpoint(folder / 'model_best.pth.tar').content
    names = ['c1', 'c2', 'c10', 'C11', 'd', 'n01440764', 'n9', 'x', 'y', 'z']
    for name in names:
        (tmp_path / 'data' / 'train' / name).mkdir(parents=True)
        shutil.copy(image, tmp_path / 'data' / 'train' / name)
    dataset = create_dataset('', root=str(tmp_path / 'data'), split='train')
    checkpoint['model_info'] = dict(checkpoint['model_info'], class_names=names_of_dataset(dataset))
    torch.save(checkpoint, tmp_path / 'c.pth.tar')
    rows = json.loads(run(capsys, tmp_path / 'c.pth.tar', image, '--json', '--topk', 10).out)[0]['predictions']
    assert {r['label']: r['index'] for r in rows} == dataset.reader.class_to_idx and 'description' not in rows[0]

    (tmp_path / 'names.txt').write_text('\n'.join(['n01440764', 'n01443537'] * 5))
    rows = json.loads(run(capsys, folder, image, '--json', '--topk', 10, '--class-names',
                          tmp_path / 'names.txt').out)[0]['predictions']
    expected = 'tench, Tinca tinca' if rows[0]['index'] % 2 == 0 else 'goldfish, Carassius auratus'
    assert rows[0]['description'] == expected
    (tmp_path / 'names.txt').write_text('one\ntwo\n')
    assert 'has 2 names, the model has 10' in run(
        capsys, folder, image, '--class-names', tmp_path / 'names.txt', code=2).err
    (tmp_path / 'names.json').write_text(json.dumps({i: f'digit {i}' for i in range(10)}))
    assert 'names.json is JSON: write the names alone' in run(
        capsys, folder, image, '--class-names', tmp_path / 'names.json', code=2).err

    config = dict(label_names=[f'digit {i}' for i in range(10)], model_args={'num_classes': 10})
    save_for_hf(model, tmp_path / 'hub', model_config=config)
    rows = json.loads(run(capsys, tmp_path / 'hub', image, '--json', '--img-size', 32, '--crop-pct', 1.0).out)
    expected = json.loads(run(capsys, folder, image, '--json').out)
    assert rows[0]['predictions'][0] == {**expected[0]['predictions'][0], 'label': rows[0]['predictions'][0]['label']}
    assert rows[0]['predictions'][0]['label'] == f'digit {rows[0]["predictions"][0]["index"]}'


def save(checkpoint: dict, path, **changes):
    """Save a changed checkpoint; None removes an entry."""
    changed = {k: v for k, v in {**checkpoint, **changes}.items() if v is not None}
    torch.save(changed, path)
    return path


def test_names_travel_in_the_file(run_folder, few_digits, tmp_path, capsys):
    """A run that was moved, whose data were renamed, extended or deleted, gives the same names."""
    folder, _ = run_folder
    image = next((few_digits / 'val' / '0').iterdir())
    checkpoint = read_checkpoint(folder / 'model_best.pth.tar').content
    data = tmp_path / 'data'
    for name in ('c1', 'c2', 'c10', 'C11', 'd', 'n01440764', 'n9', 'x', 'y', 'z'):  # as many as the model has
        (data / 'train' / name).mkdir(parents=True)
        shutil.copy(image, data / 'train' / name)
    args = argparse.Namespace(**{**vars(checkpoint['args']), 'data_dir': str(data)})
    expected = json.loads(run(capsys, folder, image, '--json', '--topk', 10).out)
    (tmp_path / 'moved').mkdir()
    save(checkpoint, tmp_path / 'moved' / 'last.pth.tar', args=args)
    for there in (True, False):
        if not there:
            shutil.rmtree(data)
        printed = run(capsys, tmp_path / 'moved', image, '--json', '--topk', 10)
        assert json.loads(printed.out) == expected and 'Classes: 10, names from the file' in printed.err

    # an older file: its data folder is not looked into, and the remedy is named
    old = save(checkpoint, tmp_path / 'old.pth.tar', args=checkpoint['args'], model_info=None)
    printed = run(capsys, old, image, '--json', '--topk', 10)
    assert 'names unknown' in printed.err and '--class-names FILE' in printed.err
    assert [{k: v for k, v in p.items() if k != 'label'} for p in expected[0]['predictions']] == (
        json.loads(printed.out)[0]['predictions'])


def test_flags_override_the_file(run_folder, few_digits, tmp_path, capsys):
    folder, _ = run_folder
    image = next((few_digits / 'val' / '0').iterdir())
    (tmp_path / 'names.txt').write_text('\n'.join(f'digit {i}' for i in range(10)))
    assert 'From the command line' not in run(capsys, folder, image).err
    printed = run(capsys, folder, image, '--img-size', 48, '--crop-pct', 0.9, '--class-names', tmp_path / 'names.txt')
    assert 'resize and crop to 48 x 48 (bilinear, crop 0.9, center)' in printed.err
    assert f'names from {tmp_path}/names.txt' in printed.err and 'digit ' in printed.out
    assert 'From the command line, not from the file: --img-size 48, --crop-pct 0.9, --class-names' in printed.err


def test_everything_comes_from_the_file(few_digits, tmp_path, capsys):
    """Model, arguments, channels, size, mean, std, interpolation and crop of `model_info`, not of today's defaults."""
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=4, in_chans=1, channels=[8, 16, 32, 64])
    torch.nn.init.normal_(model.fc.weight)
    info = ModelInfo.of_model(
        model, dict(input_size=(1, 40, 48), mean=(0.3, 0.4, 0.5), std=(0.2, 0.2, 0.2), interpolation='bicubic',
                    crop_pct=0.8, crop_mode='squash'), ['a', 'b', 'c', 'd'])
    torch.save({'state_dict': model.state_dict(), 'model_info': info.to_dict()}, tmp_path / 'c.pth.tar')
    image = next((few_digits / 'val' / '0').iterdir())
    printed = run(capsys, tmp_path / 'c.pth.tar', image, '--json')
    assert '40 x 48 (bicubic, crop 0.8, squash), mean 0.4, std 0.2' in printed.err
    transform = create_transform(
        (1, 40, 48), interpolation='bicubic', crop_pct=0.8, crop_mode='squash', mean=(0.4,), std=(0.2,))
    with torch.inference_mode():
        expected = model.eval()(transform(Image.open(image).convert('L'))[None]).softmax(1)[0]
    predictions = json.loads(printed.out)[0]['predictions']
    assert {p['label']: p['probability'] for p in predictions} == pytest.approx(
        {name: expected[i].item() for i, name in enumerate('abcd')}, abs=1e-5)


def mode_checkpoint(path, mode, in_chans=3, classes='abcd'):
    torch.manual_seed(0)
    model = timm.create_model(
        'seresnet18_ascend', num_classes=len(classes), in_chans=in_chans, channels=[8, 16, 32, 64])
    torch.nn.init.normal_(model.fc.weight)
    info = ModelInfo.of_model(
        model, dict(input_size=(in_chans, 32, 32), mean=(0.5,) * in_chans, std=(0.2,) * in_chans,
                    interpolation='bilinear', crop_pct=1.0, crop_mode='center'), list(classes))
    torch.save({'state_dict': model.state_dict(), 'model_info': info.to_dict(), 'args': {'input_img_mode': mode}}, path)
    return model.eval()


@pytest.mark.parametrize('mode, in_chans', (('YCbCr', 3), ('HSV', 3), ('RGBA', 4), ('LA', 2)))
def test_images_are_read_in_the_mode_of_the_training(few_digits, tmp_path, capsys, mode, in_chans):
    """`--input-img-mode` of the run; without a word of it, its predictions would be of other images."""
    model = mode_checkpoint(tmp_path / 'c.pth.tar', mode, in_chans)
    image = tmp_path / 'colours.png'
    Image.effect_noise((32, 32), 90).convert('RGB').rotate(9, fillcolor=(200, 20, 90)).save(image)
    assert IMAGE_MODES == values.IMAGE_MODES
    cli.main(['convert', str(tmp_path / 'c.pth.tar'), str(tmp_path / 'c.safetensors'), '--to', 'safetensors'])
    capsys.readouterr()
    printed = run(capsys, tmp_path / 'c.safetensors', image, '--json')
    assert f'Preprocessing: images as {mode}, resize' in printed.err
    transform = create_transform(
        (in_chans, 32, 32), interpolation='bilinear', crop_pct=1.0, mean=(0.5,) * in_chans, std=(0.2,) * in_chans)
    with torch.inference_mode():
        expected = model(transform(Image.open(image).convert(mode))[None]).softmax(1)[0]
    predictions = json.loads(printed.out)[0]['predictions']
    assert {p['label']: p['probability'] for p in predictions} == pytest.approx(
        {name: expected[i].item() for i, name in enumerate('abcd')}, abs=1e-5)


@pytest.mark.parametrize('mode', (None, 'CMYK', 'HSV', 'nonsense'))
def test_channels_without_a_mode_are_refused(few_digits, tmp_path, capsys, mode):
    mode_checkpoint(tmp_path / 'c.pth.tar', mode, 2)
    image = next((few_digits / 'val' / '0').iterdir())
    for verb in (('predict', tmp_path / 'c.pth.tar', image), (
            'compare', tmp_path / 'c.pth.tar', '--data-dir', few_digits, '--device', 'cpu')):
        with pytest.raises(SystemExit) as e:
            cli.main([str(v) for v in verb])
        assert e.value.code == 2 and 'The network takes images of 2 channels' in capsys.readouterr().err


def test_an_evaluation_reads_images_in_that_mode(few_digits, tmp_path):
    mode_checkpoint(tmp_path / 'c.pth.tar', 'YCbCr', classes='0123456789')
    file = tmp_path / 'c.pth.tar'
    flags = ('validate', '--checkpoint', file, '--data-dir', few_digits, '--device', 'cpu', '--dry-run')
    assert 'images are read as YCbCr' in run_here(*flags).stderr
    assert 'images are read as' not in run_here(*flags, '--input-img-mode', 'RGB').stderr


class Opens:
    """Records what this process opens or asks the network for, by Python's audit events."""
    recording: list = []
    is_on = False


def _audit(event: str, arguments: tuple) -> None:
    if Opens.is_on and event in ('open', 'os.listdir', 'os.scandir', 'socket.connect', 'socket.getaddrinfo'):
        Opens.recording.append(str(arguments[1] if event == 'socket.connect' else arguments[0]))


def test_a_file_of_a_stranger_reaches_nothing(run_folder, few_digits, tmp_path, capsys):
    """Arguments with which timm would read a file, fetch an address or write a cache are refused by name; a folder of
    data that a file names is never opened, nor the network used."""
    folder, _ = run_folder
    image = next((few_digits / 'val' / '0').iterdir())
    checkpoint = read_checkpoint(folder / 'model_best.pth.tar').content
    cache, secret = tmp_path / 'cache', tmp_path / 'secret'
    (secret / 'train' / 'a').mkdir(parents=True)
    hostile = {
        'pretrained_cfg_overlay': {'url': 'http://127.0.0.1:9/x', 'file': str(secret)}, 'cache_dir': str(cache),
        'checkpoint_path': str(secret / 'x'), 'pretrained_cfg': {'file': str(secret / 'x')}, 'pretrained': True}
    sys.addaudithook(_audit)
    Opens.is_on = True
    try:
        for key, value in hostile.items():
            args = argparse.Namespace(**{**vars(checkpoint['args']), 'model_kwargs': {key: value},
                                         'data_dir': str(secret)})
            by_args = save(checkpoint, tmp_path / 'a.pth.tar', args=args, model_info=None)
            by_info = save(checkpoint, tmp_path / 'i.pth.tar', args=None,
                           model_info={**checkpoint['model_info'], 'kwargs': {key: value}})
            for file in (by_args, by_info):
                for argv in (('predict', '--device', 'cpu', file, image), ('export', file, tmp_path / 'm.onnx')):
                    with pytest.raises(SystemExit) as e:
                        cli.main([str(a) for a in argv])
                    assert e.value.code == 2 and f"'{key}'" in capsys.readouterr().err
        args = argparse.Namespace(**{**vars(checkpoint['args']), 'data_dir': str(secret)})
        run(capsys, save(checkpoint, tmp_path / 'd.pth.tar', args=args, model_info=None), image)
    finally:
        Opens.is_on = False
    assert not cache.exists() and not (tmp_path / 'm.onnx').exists()
    assert not [o for o in Opens.recording if str(secret) in o or '127.0.0.1' in o]
    assert any(str(image) in o for o in Opens.recording)  # the record works


def test_names_never_reach_the_terminal_as_commands(run_folder, few_digits, tmp_path, capsys):
    folder, _ = run_folder
    image = tmp_path / 'a\x1b[31m\u202eb.jpg'
    shutil.copy(next((few_digits / 'val' / '0').iterdir()), image)
    (tmp_path / 'bad\x1b[2J.jpg').write_bytes(b'')
    checkpoint = read_checkpoint(folder / 'model_best.pth.tar').content
    info = {**checkpoint['model_info'], 'class_names': [f'\x1b[{i}m\x9b\u202e\n{i}' for i in range(10)]}
    file = save(checkpoint, tmp_path / 'c.pth.tar', model_info=info)
    for more in ((), ('--json',)):
        printed = run(capsys, file, tmp_path, *more, code=1)
        assert not set('\x1b\x9b\u202e') & set(printed.out + printed.err), more
        assert r'\n' in printed.out or r'\\n' in printed.out
    assert json.loads(printed.out)[0]['file'] == str(image)


def test_bad_requests(run_folder, few_digits, tmp_path, capsys):
    folder, _ = run_folder
    image = next((few_digits / 'val' / '0').iterdir())
    (tmp_path / 'none').mkdir()
    (tmp_path / 'damaged.pth').write_bytes((folder / 'model_best.pth.tar').read_bytes()[:100000])
    for argv, message, code in (
            ((folder, tmp_path / 'no.jpg'), 'no.jpg does not exist', 2),
            ((folder, tmp_path / 'none'), 'has no image in it', 2),
            ((folder, image, '--device', 'tpu'), '--device tpu is unknown', 2),
            ((folder, image, '--output', tmp_path), 'is a folder, not a file', 2),
            ((folder, image, '--topk', '0'), '--topk 0 is too small', 2),
            ((folder, image, '--use-ema'), 'holds no moving average', 2),
            ((folder, image, '--num-classes', '7'), '--num-classes 10', 2),
            ((tmp_path / 'damaged.pth', image), 'incomplete or damaged', 2),
            (('resnet18.no_such_tag', image), "has no weights 'no_such_tag'", 2),
            (('local-dir:/no/such/folder', image), '/no/such/folder does not exist', 2),
    ):
        printed = run(capsys, *argv, code=code)
        assert message in printed.err and printed.out == ''


# --- names of any characters, folders of any shape --------------------------------------------------------------------

ODD_NAMES = ['hot, dog', 'say "hi"', '-dash', '🐱 кот', 'two\nlines', '\x1b[31mred', os.fsdecode(b'caf\xe9'), ' a ',
             "it's", 'ü']


@pytest.fixture(scope='module')
def odd(run_folder, few_digits, tmp_path_factory):
    """A checkpoint whose classes have odd names, and an image in a folder with one."""
    folder = tmp_path_factory.mktemp('odd')
    content = load(run_folder[0] / 'model_best.pth.tar')
    content['model_info']['class_names'] = ODD_NAMES
    torch.save(content, folder / 'odd.pth.tar')
    (folder / ODD_NAMES[6]).mkdir()
    image = folder / ODD_NAMES[6] / '1.jpg'
    shutil.copy(next((few_digits / 'val' / '0').iterdir()), image)
    return folder / 'odd.pth.tar', image


def test_names_come_back_unchanged(odd, tmp_path, capsys):
    """In a file as UTF-8, any bytes of a name included; on the terminal without what it would interpret."""
    flags = (*odd, '--topk', 10)
    run(capsys, *flags, '--csv', '--output', tmp_path / 'p.csv')
    with open(tmp_path / 'p.csv', newline='', encoding='utf-8', errors='surrogateescape') as f:
        rows = list(csv.DictReader(f))
    assert {r['label'] for r in rows} == set(ODD_NAMES) and {r['file'] for r in rows} == {str(odd[1])}
    run(capsys, *flags, '--json', '--output', tmp_path / 'p.json')
    entry, = json.loads((tmp_path / 'p.json').read_text(encoding='utf-8'))
    assert {p['label'] for p in entry['predictions']} == set(ODD_NAMES) and entry['file'] == str(odd[1])
    assert '🐱 кот' in (tmp_path / 'p.json').read_text(encoding='utf-8')
    table = run(capsys, *flags).out
    assert '\x1b' not in table and 'two\\nlines' in table and len(table.splitlines()) == 11


@pytest.mark.parametrize('encoding', ('ascii', 'latin-1', 'utf-8'))
def test_a_strict_stdout(odd, capsys, monkeypatch, encoding):
    """Of a terminal without these letters: CSV and JSON are read as they are in a file, the table does not crash."""
    for format in ('--csv', '--json', None):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding=encoding, errors='strict'))
        run(capsys, *odd, '--topk', 10, *filter(None, [format]))
        sys.stdout.flush()
        text = raw.getvalue().decode('utf-8' if format == '--csv' else encoding, 'surrogateescape')
        if format == '--csv':
            assert {r['label'] for r in csv.DictReader(io.StringIO(text, newline=''))} == set(ODD_NAMES)
        elif format == '--json':
            assert {p['label'] for p in json.loads(text)[0]['predictions']} == set(ODD_NAMES)
        else:
            assert len(text.splitlines()) == 11
        sys.stdout.detach()


def test_every_image_once_whatever_links_lead_to_it(few_digits, tmp_path, capsys):
    root = tmp_path / 'val'
    shutil.copytree(few_digits / 'val', root)
    expected = find_images([str(root)])
    shutil.copytree(root / '0', tmp_path / 'train')  # a link upwards does not lead there
    assert len(expected) == 70 and expected[0].endswith('/0/' + sorted(os.listdir(root / '0'))[0])
    for name, target in (('0/up', '..'), ('1/top', '../..'), ('2/self', '.'), ('again', '3'), ('3/lost', 'nowhere')):
        (root / name).symlink_to(target)
    for folder in ('.ipynb_checkpoints', '@eaDir'):
        shutil.copytree(root / '9', root / folder)
    (root / '0' / '._1.jpg').write_bytes(b'')
    assert find_images([str(root)]) == expected
    told = capsys.readouterr().err
    assert all(name in told for name in ('.ipynb_checkpoints', '@eaDir'))
    assert len(find_images([str(root / 'again')])) == 7
    (root / '²').mkdir()
    shutil.copy(expected[0], root / '²' / '1.jpg')
    assert len(find_images([str(root)])) == 71
