"""The fast dataset in timm's loaders: timm's augmentation, seeds by (seed, epoch, index), files for Pillow, runs."""
import json
import os
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train_flags
from photographs import photographs
from PIL import Image
from timm.data import AugMixDataset, FastCollateMixup, create_dataset, create_loader, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional as F
from training import load, summary

from seresnet_timm.cli.main import main
from seresnet_timm.data import fast_jpeg, jpeg, loading
from seresnet_timm.data.fast_jpeg import Pipeline
from seresnet_timm.data.seeding import SampleSeeds
from seresnet_timm.data.workers import default_workers
from seresnet_timm.engine.meters import describe_wait
from seresnet_timm.errors import RunError, UsageError

DECODERS = (*jpeg.decoders(), jpeg.PILLOW)
by_decoder = pytest.mark.parametrize('decoder', DECODERS, ids=lambda d: d.name)
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """Twelve photographs of three classes, two of which are no ordinary JPEGs."""
    root = tmp_path_factory.mktemp('photos')
    chance, sources = random.Random(0), photographs()
    for i in range(12):
        folder = root / 'train' / f'class{i % 3}'
        folder.mkdir(parents=True, exist_ok=True)
        image = chance.choice(sources).resize((chance.randint(90, 125), chance.randint(90, 125)))
        if i == 4:
            image.save(folder / f'{i:02d}.png')
        elif i == 7:
            image.convert('CMYK').save(folder / f'{i:02d}.jpg')
        else:
            image.save(folder / f'{i:02d}.jpg', quality=92)
    return root


def make_loader(root, decoder, workers=0, batch_size=4, epoch=0, seed=7, collate_fn=None, **options):
    options = {'is_training': True, 'color_jitter': 0., 'interpolation': 'bilinear', **options}
    seeds = SampleSeeds(seed) if options['is_training'] else None
    dataset = fast_jpeg.with_fast_decoding(create_dataset('', root=str(root), split='train'), decoder, seeds)
    loader = create_loader(
        dataset, (3, 64, 64), batch_size, num_workers=workers, device=CPU, collate_fn=collate_fn, **options)
    loader = loading.seed_and_speed_up(loader, seed)
    loading.set_epoch(loader, epoch)
    return loader


def images_of(loader) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


# --- timm's augmentation ----------------------------------------------------------------------------------------------

def test_crops_are_timms():
    """The same generator state gives timm's crop; extreme shapes take timm's central one."""
    chance = random.Random(0)
    for i in range(2000):
        size = chance.randint(1, 700), chance.randint(1, 700)
        scale, ratio = ((0.08, 1.0), (3 / 4, 4 / 3)) if i % 2 else ((0.5, 0.9), (0.9, 1.1))
        random.seed(i)
        expected = RandomResizedCropAndInterpolation.get_params(fast_jpeg.image_of_size(*size), scale, ratio)
        assert fast_jpeg.random_resized_crop(*size, scale, ratio, random.Random(i)) == expected


def test_training_cut_is_timms_transform():
    """A drawn cut, done with Pillow, is what torchvision makes of the same crop."""
    image = photographs()[0].resize((300, 200))
    pipeline = Pipeline(create_transform(
        64, is_training=True, color_jitter=None, interpolation='random', hflip=0.5, vflip=0.5, use_prefetcher=True))
    assert pipeline.is_known and not pipeline.draws_globally and pipeline.size == (64, 64)
    kinds = Counter()
    for i in range(400):
        cut, rest = pipeline.draw(300, 200, random.Random(i))
        kinds.update([cut.interpolation, ('hflip', cut.hflip), ('vflip', cut.vflip)])
        if i < 30:
            left, top, width, height = cut.box
            expected = F.resized_crop(image, top, left, height, width, [64, 64], F.InterpolationMode(cut.interpolation))
            expected = F.hflip(expected) if cut.hflip else expected
            expected = F.vflip(expected) if cut.vflip else expected
            assert np.array_equal(jpeg.crop_and_resize(image, cut), expected)
    for kind in ('bilinear', 'bicubic', ('hflip', True), ('vflip', True)):
        assert 150 < kinds[kind] < 250, kinds  # 200 expected, standard deviation 10


@pytest.mark.parametrize('options', (
    dict(crop_pct=0.875), dict(crop_pct=0.9, crop_mode='squash', interpolation='bicubic'),
    dict(crop_pct=1.0, crop_mode='border'), dict(input_size=(3, 80, 64)), dict(is_training=True, no_aug=True),
    dict(crop_border_pixels=9), dict(crop_pct=1.0, input_size=(3, 224, 224)), dict(interpolation='lanczos')), ids=str)
def test_evaluation_is_timms(options):
    """Bit for bit with Pillow, images smaller than the crop included."""
    transform = create_transform(**{'input_size': (3, 96, 96), 'use_prefetcher': True, **options})
    pipeline = Pipeline(transform)
    assert pipeline.is_known == (options.get('interpolation') != 'lanczos')
    for size in ((300, 200), (181, 333), (60, 250), (96, 110)):
        image = photographs()[0].resize(size)
        if not pipeline.is_known:
            continue
        cut, rest = pipeline.draw(*size, None)
        result = jpeg.crop_and_resize(image, cut)
        for step in rest:
            result = step(result)
        assert torch.equal(result, transform(image)), size


@by_decoder
@pytest.mark.parametrize('size', ((1, 1), (3, 1), (1, 9000), (9000, 1)), ids=str)
def test_smallest_and_thinnest_images(tmp_path, decoder, size):
    """As timm: a crop without pixels is black, and a side of 288,000 pixels is no reason to end."""
    for split in ('train', 'val'):
        (tmp_path / split / 'a').mkdir(parents=True)
        Image.new('RGB', size, (200, 200, 200)).save(tmp_path / split / 'a' / '0.jpg')
    train, val = (create_dataset('', root=str(tmp_path), split=split) for split in ('train', 'val'))
    dataset = fast_jpeg.with_fast_decoding(train, decoder, SampleSeeds(0))
    dataset.transform = create_transform(
        (3, 32, 32), is_training=True, use_prefetcher=True, color_jitter=0., scale=(0.01, 0.02))
    for repeat in range(3):
        values = np.asarray(dataset.sample(0, repeat)[0])
        assert set(np.unique(values)) in ({0}, {200})
        assert size != (1, 1) or not values.any()
    dataset = fast_jpeg.with_fast_decoding(val, decoder)
    dataset.transform = create_transform((3, 32, 32), use_prefetcher=True)
    assert torch.as_tensor(np.asarray(dataset[0][0])).float().sub(200).abs().max() <= 1


def test_only_the_window_of_a_thin_image_is_resized(monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 1200, 3), dtype=np.uint8))
    crop = jpeg.Crop((0, 0, 1200, 3), (14400, 36), (7000, 2, 32, 32), 'bicubic')
    whole = np.asarray(jpeg.crop_and_resize(image, crop), np.int16)
    monkeypatch.setattr(jpeg, 'MAX_PIXELS', 1000)
    assert np.abs(np.asarray(jpeg.crop_and_resize(image, crop), np.int16) - whole).max() <= 1


@pytest.mark.parametrize('options', (
    dict(color_jitter=0.4), dict(auto_augment='rand-m9-mstd0.5'), dict(train_crop_mode='rkrr'),
    dict(train_crop_mode='rkrc', grayscale_prob=0.5, gaussian_blur_prob=0.5)), ids=str)
def test_what_a_decoder_cannot_do_stays_timms(photos, options):
    """Further transforms run on the image of the cut, seeded for the sample, and leave the main generators alone."""
    loader = make_loader(photos, DECODERS[0], **options)
    assert loader.dataset.pipeline.draws_globally and not loader.dataset.releases_gil
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = images_of(loader)
    assert random.getstate() == state[0] and np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    loading.set_epoch(loader, 0)
    assert torch.equal(images_of(loader), first)


# --- seeds ------------------------------------------------------------------------------------------------------------

@by_decoder
def test_samples_depend_on_seed_epoch_and_index_alone(photos, decoder):
    """Not on workers, their kind, batch size or the order of loading."""
    loader = make_loader(photos, decoder)
    first, second = images_of(loader), images_of(loader)
    assert not torch.equal(first, second)  # another shuffle; the same samples:
    assert torch.equal(first.flatten(1).sum(1).sort()[0], second.flatten(1).sum(1).sort()[0])
    dataset = loader.dataset
    alone = [torch.as_tensor(dataset[i][0]) for i in range(12)]
    together = dataset.__getitems__(list(range(11, -1, -1)))
    assert all(torch.equal(torch.as_tensor(image), alone[11 - i]) for i, (image, _) in enumerate(together))
    dataset.set_epoch(1)
    assert not any(torch.equal(torch.as_tensor(dataset[i][0]), alone[i]) for i in range(12))
    other = make_loader(photos, decoder, seed=8).dataset
    assert not any(torch.equal(torch.as_tensor(other[i][0]), alone[i]) for i in range(12))


def test_any_number_of_workers_gives_the_same_batches(photos):
    """Threads and processes, two epochs each, with running workers that learn of the second; with mixup too."""
    def batches(workers, threads, **options):
        loader = make_loader(photos, DECODERS[0], workers, **options)
        if not threads and isinstance(loader.loader, loading.ThreadedLoader):
            loader.loader = loader.loader._loader
        assert (type(loader.loader) is loading.ThreadedLoader) == (threads and workers > 0)
        result = []
        for epoch in (0, 1):
            loading.set_epoch(loader, epoch)
            result += [tensor for batch in loader for tensor in batch]
        return result
    expected = batches(0, False)
    assert len(expected) == 12 and not torch.equal(expected[0], expected[6])
    kinds = [(1, False), (2, False)] + [(2, True)] * DECODERS[0].releases_gil
    for workers, threads in kinds:
        assert all(torch.equal(a, b) for a, b in zip(expected, batches(workers, threads), strict=True))

    def mixup():
        return FastCollateMixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=3)
    expected = batches(0, False, collate_fn=mixup(), color_jitter=0.4)
    assert expected[1].shape == (4, 3)
    own = batches(2, False, collate_fn=mixup(), color_jitter=0.4)
    assert all(torch.equal(a, b) for a, b in zip(expected, own, strict=True))


def test_running_workers_see_mixup_switched_off(photos):
    loader = make_loader(
        photos, DECODERS[0], 1, collate_fn=FastCollateMixup(mixup_alpha=0.8, label_smoothing=0., num_classes=3))
    for enabled in (True, False):
        loader.mixup_enabled = enabled
        assert loader.mixup_enabled == enabled
        largest = torch.cat([target.max(dim=1)[0] for _, target in loader])
        assert (largest.min() < 0.99) == enabled


def test_repeated_augmentation_differs(photos):
    """The same image twice in a batch, or on two ranks, is augmented twice."""
    dataset = make_loader(photos, DECODERS[0]).dataset
    a, b = (torch.as_tensor(image) for image, _ in dataset.__getitems__([3, 3]))
    assert not torch.equal(a, b)
    assert SampleSeeds(7, stream=1).of_sample(3) != SampleSeeds(7, stream=0).of_sample(3)


# --- files ------------------------------------------------------------------------------------------------------------

@by_decoder
def test_same_sample_whatever_decodes_it(photos, decoder):
    """Equal to Pillow's within the decoders' precision, and equal where a file is Pillow's anyway."""
    dataset, expected = (make_loader(photos, d).dataset for d in (decoder, jpeg.PILLOW))
    for i in range(12):
        (image, target), (pillows, wanted) = dataset[i], expected[i]
        assert target == wanted
        difference = (torch.as_tensor(image).int() - torch.as_tensor(pillows).int()).abs()
        assert difference.max() <= 3 and difference.float().mean() < 0.5
        if not dataset.filename(i).endswith('.jpg') or '07' in dataset.filename(i):
            assert difference.max() == 0


@by_decoder
def test_next_image_replaces_a_damaged_one_as_in_timm(photos, tmp_path, decoder):
    """In training: the same image as timm's, whose transform is made deterministic here."""
    root = tmp_path / 'photos'
    shutil.copytree(photos, root)
    names = sorted(str(p) for p in (root / 'train').rglob('*.*'))
    broken = Path(names[5])
    broken.write_bytes(broken.read_bytes()[:1500])
    timms = create_dataset('', root=str(root), split='train')
    timms.transform = create_transform(64, use_prefetcher=True)
    own = make_loader(root, decoder).dataset
    own.transform = timms.transform
    for i in range(12):
        (image, target), (expected, wanted) = own[i], timms[i]
        assert target == wanted
        assert (torch.as_tensor(image).int() - expected.int()).abs().max() <= 3
    for name in names:
        Path(name).write_bytes(b'no image')
    with pytest.raises(RunError, match='None of the 12 images can be read'):
        own[0]


def test_error_of_a_thread_reaches_the_loop(photos, tmp_path):
    if not DECODERS[0].releases_gil:
        pytest.skip('the C extension is not built: no libjpeg-turbo header')
    root = tmp_path / 'photos'
    shutil.copytree(photos, root)
    loader = make_loader(root, DECODERS[0], 2)
    assert isinstance(loader.loader, loading.ThreadedLoader) and len(loader) == 3
    for name in (root / 'train').rglob('*.*'):
        name.write_bytes(b'no image')
    with pytest.raises(RunError, match='None of the 12 images can be read'):
        list(loader)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_threads_pin_no_memory_where_there_is_no_device(photos):
    if not DECODERS[0].releases_gil:
        pytest.skip('the C extension is not built: no libjpeg-turbo header')
    loader = make_loader(photos, DECODERS[0], 2, pin_memory=True)
    assert isinstance(loader.loader, loading.ThreadedLoader) and len(list(loader)) == 3


# --- the choice -------------------------------------------------------------------------------------------------------

def test_choice_and_its_reason(monkeypatch):
    decoder, why = fast_jpeg.decoder_for('auto')
    assert decoder is jpeg.decoders()[0] or decoder == jpeg.decoders()[0]
    assert fast_jpeg.decoder_for('off') == (None, '--fast-jpeg off')
    for arguments, reason in (
            (dict(dataset='tfds/mnist'), '--dataset tfds/mnist decodes images itself'),
            (dict(image_mode='L'), 'images are read as L'), (dict(multi_epochs=True), 'before their epoch begins')):
        decoder, why = fast_jpeg.decoder_for('auto', **arguments)
        assert decoder is None and reason in why
        with pytest.raises(UsageError, match='--fast-jpeg on is not possible'):
            fast_jpeg.decoder_for('on', **arguments)
    monkeypatch.setattr(jpeg, '_jpeg', None)
    assert fast_jpeg.decoder_for('on')[0].name == 'simplejpeg'
    monkeypatch.setattr(jpeg, 'simplejpeg', None)
    with pytest.raises(UsageError, match='pip install simplejpeg'):
        fast_jpeg.decoder_for('on')
    assert fast_jpeg.decoder_for('auto')[0] is None


def test_off_is_timms_own_loader(photos):
    dataset = create_dataset('', root=str(photos), split='train')
    assert fast_jpeg.with_fast_decoding(dataset, None, None) is dataset
    grey = create_dataset('', root=str(photos), split='train', input_img_mode='L')
    assert fast_jpeg.with_fast_decoding(grey, DECODERS[0], SampleSeeds(7)) is grey  # a model of one channel
    loader = create_loader(dataset, (3, 64, 64), 4, is_training=True, device=CPU, num_workers=0)
    before = dict(vars(loader.loader))
    assert loading.seed_and_speed_up(loader, 7) is loader and dict(vars(loader.loader)) == before


def test_default_workers():
    cores = len(os.sched_getaffinity(0))
    assert default_workers('npu', 1)[0] == max(1, min(16, cores - 1))
    assert default_workers('cpu', 1)[0] == max(1, min(4, cores // 4))
    assert default_workers('npu:0', cores * 2)[0] == 1


def test_wait_is_logged_with_a_hint():
    assert describe_wait(3, {'data_wait_share': 0.031}, 4) == 'Data: 3.1 % of epoch 3 was spent waiting for images'
    line = describe_wait(3, {'data_wait_share': 0.2}, 4)
    assert line.startswith('Data: 20.0 % of epoch 3') and '--workers, 4 now' in line and 'prepare' in line


# --- runs -------------------------------------------------------------------------------------------------------------

def run(capfd, *flags) -> str:
    main([str(f) for f in flags])
    return capfd.readouterr().err


@pytest.mark.slow
def test_resumed_run_with_workers_equals_an_unbroken_one(few_digits, tmp_path, capfd):
    """Weights bit for bit, with dropout, auto-augment, mixup and two worker processes; and with none."""
    flags = ('--epochs', 2, '--drop', 0.2, '--mixup', 0.2, '--aa', 'rand-m5-mstd0.5', '--fast-jpeg', 'on')
    log = run(capfd, *train_flags(few_digits, tmp_path / 'whole', *flags, '--workers', 2))
    assert 'images         fast JPEG decoding by' in log and 'Data: ' in log
    record = json.loads((tmp_path / 'whole' / 'run' / 'run.json').read_text())
    assert record['settings']['reasons']['fast_jpeg'].startswith('fast JPEG decoding by')
    whole = load(tmp_path / 'whole' / 'run' / 'last.pth.tar')['state_dict']
    for workers in (2, 0):
        output = tmp_path / str(workers)
        run(capfd, *train_flags(few_digits, output, *flags, '--workers', workers, '--resume',
                                tmp_path / 'whole' / 'run' / 'checkpoint-0.pth.tar'))
        resumed = load(output / 'run' / 'last.pth.tar')['state_dict']
        assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.slow
def test_timms_script_loads_as_the_bundled_one(few_digits, tmp_path, capfd):
    """Equal losses with threads or processes on one side and none on the other; `off` is another path."""
    from recipe_runs import SMALL
    flags = ('--epochs', 1, '--smoothing', 0, '--color-jitter', 0, '--train-interpolation', 'bilinear')
    rows = {}
    for name, scripts, *more in (
            ('bundled', 'bundled', '--workers', 0), ('small', SMALL, '--workers', 2),
            ('off', SMALL, '--workers', 0, '--fast-jpeg', 'off')):
        log = run(capfd, *train_flags(few_digits, tmp_path / name, *flags, '--scripts', scripts, *more))
        rows[name] = summary(tmp_path / name / 'run')[0]
        assert ("timm's own loading (--fast-jpeg off)" in log) == (name == 'off')
    assert [float(v) for v in rows['small'].values()] == pytest.approx([float(v) for v in rows['bundled'].values()])
    assert rows['off']['train_loss'] != rows['bundled']['train_loss']


def test_evaluation_with_timms_script(few_digits, tmp_path, capfd):
    import timm
    from recipe_runs import SMALL
    torch.manual_seed(0)
    torch.save(timm.create_model('seresnet18_ascend', num_classes=10).state_dict(), tmp_path / 'weights.pth')
    results = {}
    for name, scripts, mode in (('bundled', 'bundled', 'on'), ('small', SMALL, 'on'), ('off', 'bundled', 'off')):
        main([str(f) for f in (
            'validate', '--data-dir', few_digits, '--model', 'seresnet18_ascend', '--num-classes', 10, '--img-size', 32,
            '-b', 16, '--workers', 1, '--device', 'cpu', '--checkpoint', tmp_path / 'weights.pth', '--split', 'val',
            '--scripts', scripts, '--fast-jpeg', mode)])
        results[name] = json.loads(capfd.readouterr().out.split('--result')[1])
    assert results['small']['top1'] == pytest.approx(results['bundled']['top1'], abs=1e-4)
    assert results['off']['loss'] == pytest.approx(results['bundled']['loss'], rel=1e-3)


@by_decoder
def test_dataset_goes_to_spawned_workers(photos, decoder):
    """Pickled, as `spawn` does it, it gives the same samples."""
    dataset = make_loader(photos, decoder, color_jitter=0.4).dataset
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(torch.as_tensor(copy[3][0]), torch.as_tensor(dataset[3][0])) and len(copy) == 12


def test_augmentation_splits(photos):
    """AugMix: every split of a sample is seeded, the first one being clean."""
    def load_split(index):
        dataset = AugMixDataset(create_dataset('', root=str(photos), split='train'), num_splits=3)
        dataset = fast_jpeg.with_fast_decoding(dataset, DECODERS[0], SampleSeeds(7))
        loader = create_loader(
            dataset, (3, 64, 64), 4, is_training=True, auto_augment='augmix-m5-w2', num_aug_splits=3, num_workers=0,
            device=CPU, color_jitter=0.)
        assert next(iter(loading.seed_and_speed_up(loader, 7)))[0].shape == (12, 3, 64, 64)
        return dataset[index][0]
    first, again = load_split(2), load_split(2)
    assert len(first) == 3 and all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[1], first[2])
