"""Augmentation on arrays: what Pillow and timm give for the same parameters and the same random numbers."""
import random

import numpy as np
import pytest
import torch
from conftest import sample_photos
from PIL import Image
from timm.data import FastCollateMixup, auto_augment, create_transform
from torchvision import transforms

from seresnet_timm.data import augment
from seresnet_timm.data.augment import OWN, TIMMS, Pixels, for_pixels
from seresnet_timm.data.fast_jpeg import Pipeline
from seresnet_timm.data.seeding import Batch, SeededMixup, seed_global_generators

pytestmark = pytest.mark.skipif(augment._augment is None, reason='the C code is not built: no C compiler')
FILL = dict(fillcolor=(124, 116, 104))
GEOMETRY = {'Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'TranslateXRel', 'TranslateYRel'}
ARGUMENTS = {
    **dict.fromkeys(GEOMETRY, (-30., -7.3, 0., 0.3, 12., 180., 90., 400.)),
    **dict.fromkeys(('ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel'), (-0.45, -0.1, 0., 0.2, 0.3)),
    **dict.fromkeys(('AutoContrast', 'Equalize', 'Invert'), (None,)), 'SolarizeAdd': (0, 30, 110, 128),
    **dict.fromkeys(('Posterize', 'PosterizeIncreasing', 'PosterizeOriginal'), (0, 1, 4, 7, 8)),
    **dict.fromkeys(('Solarize', 'SolarizeIncreasing'), (0, 1, 100, 256)),
}
FACTORS = (0.1, 0.37, 0.5, 1., 1.00001, 1.6, 1.9)


def pictures():
    photo = sample_photos()[0].resize((67, 50))
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (31, 40, 3), dtype=np.uint8))
    return [photo, noise, Image.new('RGB', (9, 7), (200, 3, 90)), photo.resize((1, 1)), photo.resize((2, 5)),
            Image.fromarray(np.asarray(photo) // 4 + 60), Image.new('RGB', (6, 6))]


def assert_near(ours: Pixels, expected: Image.Image, name: str) -> None:
    difference = np.abs(ours.array.astype(int) - np.asarray(expected))
    if name in GEOMETRY:  # Pillow rounds down, so that a whole number is one level off when it is computed otherwise
        assert difference.max() <= 1 and (difference.size < 100 or (difference > 0).mean() < 0.15), name
    else:
        assert not difference.any(), name


@pytest.mark.parametrize('name', auto_augment.NAME_TO_OP)
def test_operation_is_pillows(name):
    """Every operation of timm's auto-augment, for many magnitudes, on ordinary and on degenerate images."""
    function = auto_augment.NAME_TO_OP[name]
    op = augment._own_operation(auto_augment.AugmentOp(name, hparams=dict(FILL)))
    for image in pictures():
        for value in ARGUMENTS.get(name, FACTORS):
            for resample in (Image.BILINEAR, Image.BICUBIC) if name in GEOMETRY else (Image.BILINEAR,):
                args = () if value is None else (value,)
                random.seed(1)
                expected = function(image, *args, resample=resample, **FILL)
                random.seed(1)
                ours = op.aug_fn(Pixels(np.asarray(image)), *args, resample=resample, **FILL)
                assert ours.size == expected.size
                assert_near(ours, expected, name)


def test_every_operation_is_known():
    """A new operation of timm's goes through Pillow; today only the blurs do."""
    through = {n for n, f in auto_augment.NAME_TO_OP.items() if f not in OWN and f not in TIMMS}
    assert through == {'GaussianBlur', 'GaussianBlurRand'}


@pytest.mark.parametrize('aa', (
    'rand-m9-mstd0.5-inc1', 'rand-m7-n3-mstd101', 'rand-m9-n2-tweights', 'v0', 'original', 'v0r', '3a', 'augmix-m3-w2'))
@pytest.mark.parametrize('more', ({}, {'color_jitter_prob': 0.5, 'grayscale_prob': 0.5, 'gaussian_blur_prob': 0.5}),
                         ids=('plain', 'more'))
def test_transform_is_timms(aa, more):
    """A whole training transform: the same random numbers are drawn, and the images differ as rotations may."""
    if more and not aa.startswith('rand-m9-mstd'):
        aa = None
    transform = create_transform(64, is_training=True, auto_augment=aa, use_prefetcher=True, **more)
    pipeline = Pipeline(transform)
    assert pipeline.pixel_steps and pipeline.size == (64, 64) and pipeline.draws_globally
    photo = pictures()[0].resize((64, 64))
    rest = transform.transforms[2:]
    for seed in range(12):
        seed_global_generators(seed)
        expected = photo
        for step in rest:
            expected = step(expected)
        state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        seed_global_generators(seed)
        pixels = Pixels(np.asarray(photo))
        for step in pipeline.pixel_steps:
            pixels = step(pixels)
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
        difference = np.abs(pixels.to_tensor().numpy().astype(int) - expected.numpy())
        # a level can become many where a later step has a threshold
        assert (difference > 1).mean() < 0.02 and np.median(difference) == 0, seed


def test_jitter_is_torchvisions():
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    ours = for_pixels(jitter)
    for seed, image in enumerate(pictures() * 3):
        torch.manual_seed(seed)
        expected = np.asarray(jitter(image))
        torch.manual_seed(seed)
        assert np.array_equal(ours(Pixels(np.asarray(image))).array, expected)
    assert for_pixels(transforms.ColorJitter(hue=0.1)) is None and for_pixels(transforms.ToTensor()) is None


@pytest.mark.parametrize('interpolation', ('bilinear', 'bicubic', 'nearest'))
def test_trivial_augment_is_torchvisions(interpolation):
    step = transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode(interpolation))
    ours, seen = for_pixels(step), set()
    for seed in range(150):
        image = pictures()[seed % 2]
        torch.manual_seed(seed)
        seen.add(list(step._augmentation_space(31))[int(torch.randint(14, (1,)))])
        torch.manual_seed(seed)
        expected = step(image)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert_near(ours(Pixels(np.asarray(image))), expected, 'Rotate')
        assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 14


@pytest.mark.parametrize('options', (
    dict(mixup_alpha=0.2), dict(cutmix_alpha=1.), dict(mixup_alpha=0.2, cutmix_alpha=1.),
    dict(cutmix_minmax=(0.2, 0.8)), dict(mixup_alpha=1., prob=0.5), dict(mixup_alpha=1., mode='pair'),
    dict(mixup_alpha=1., mode='elem')), ids=str)
def test_mixup_is_timms(options):
    timms = FastCollateMixup(num_classes=5, **options)
    ours = SeededMixup.from_mixup(timms)
    chance = np.random.RandomState(0)
    for seed in range(6):
        images = [chance.randint(0, 256, (3, 17, 23), dtype=np.uint8) for _ in range(4)]
        seed_global_generators(seed)
        expected = timms([(image.copy(), i) for i, image in enumerate(images)])
        for wrap in (np.copy, lambda image: torch.from_numpy(image.copy())):
            found = ours(Batch([(wrap(image), i) for i, image in enumerate(images)], seed))
            assert all(torch.equal(f, e) for f, e in zip(found, expected))


def test_arguments_that_do_not_fit_are_refused():
    image, out = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)
    a = augment._augment
    for call in (
            lambda: a.affine(image, out, (5, 5), (1., 0., 0., 0., 1., 0.), (0, 0, 0), True),
            lambda: a.affine(image, out, (-5, -4), (1., 0., 0., 0., 1., 0.), (0, 0, 0), True),
            lambda: a.sharpen(image, out[:2], (5, 4), 1.), lambda: a.saturate(image[:1], out, 1.),
            lambda: a.look_up(image, out, bytes(767)), lambda: a.planes(image, out[:3]),
            lambda: a.mix(image, image[:2], out, 0.5), lambda: a.mix(image, image, out, float('nan'))):
        with pytest.raises(ValueError):
            call()
    a.affine(image, out, (5, 4), (float('nan'), 0., 1e300, 0., float('inf'), 0.), (7, 8, 9), True)
    assert (out == (7, 8, 9)).all()
