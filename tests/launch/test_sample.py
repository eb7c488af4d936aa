"""A sample of each split goes through transforms, network and loss before a run starts."""
import copy
import random
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.loader import adapt_to_chs

from seresnet_timm.data import loaders
from seresnet_timm.data.loading import for_channels
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import checks, sample
from seresnet_timm.launch.parse import parse
from seresnet_timm.models.create import create_model
from seresnet_timm.runs.settings import RunSettings

BASE = ('--model', 'seresnet18_ascend', '--img-size', '32', '--num-classes', '3', '-b', '4', '--workers', '0')


@pytest.fixture(scope='module')
def gray(tmp_path_factory):
    """Gray pictures of three classes."""
    root = tmp_path_factory.mktemp('gray')
    for split in ('train', 'val'):
        for i, name in enumerate('abc'):
            (root / split / name).mkdir(parents=True)
            for k in range(2):
                Image.effect_noise((40, 40), 30 + 40 * i).save(root / split / name / f'{k}.png')
    return root


def settings(data, *argv, verb='train'):
    line = parse(verb, [*BASE, '--data-dir', str(data), *argv])
    assert not line.problems
    return RunSettings(verb=verb, script=line.script, args={**line.defaults, **line.flags, 'device': 'cpu'})


def found(data, *argv, verb='train'):
    run = checks.Checked(settings(data, *argv, verb=verb), {})
    list(checks.check_model(run))
    return list(sample.check_sample(run))


@pytest.mark.parametrize('argv', (
    (), ('--opt', 'adam', '--opt-kwargs', 'amsgrad=1', 'betas=(.9, .99)'),
    ('--opt', 'adahessian', '--opt-kwargs', 'eps=1'),
    ('--opt', 'lamb', '--opt-kwargs', 'max_grad_norm=None', 'foreach=False'),
    ('--in-chans', '1'), ('--in-chans', '1', '--aa', 'augmix-m5-w3'), ('--aa', 'original'),
    ('--in-chans', '1', '--color-jitter', '.4', '--gaussian-blur-prob', '1', '--grayscale-prob', '1'),
    ('--in-chans', '4', '--input-img-mode', 'RGBA', '--reprob', '1'), ('--in-chans', '1', '--no-prefetcher'),
    ('--aug-splits', '3', '--jsd-loss', '--split-bn'), ('--mixup', '.2', '--bce-loss'), ('--aug-splits', '2'),
    ('--cutmix', '1', '--no-prefetcher', '--smoothing', '0'), ('--opt', 'adamw', '--opt-betas', '.9', '.99'),
    ('--val-split', ''), ('--dataset', 'torch/cifar10'), ('--sched', 'wsd', '--decay-epochs', '.5'),
    ('--sched', 'plateau'), ('--sched', 'none'), ('--sched', 'multistep'), ('--sched', 'poly', '--sched-on-updates'),
))
def test_what_works_together_is_accepted(gray, argv):
    assert found(gray, *argv) == []


@pytest.mark.parametrize('argv, words', (
    (('--model', 'resnet18', '-b', '1'), ('resnet18', '3 x 32 x 32', '--img-size 32', '--batch-size 1')),
    (('--model', 'vit_tiny_patch16_224'), ('vit_tiny_patch16_224', '224', '--model-kwargs img_size=32')),
    (('--sched', 'rsqrt', '--decay-epochs', '1', '--warmup-epochs', '0'), ('--sched rsqrt', 'timescale')),
    (('--sched', 'plateau', '--sched-on-updates'), ('--sched plateau', '--sched-on-updates')),
    (('--mean', '.5', '.5'), ('cannot be prepared', '--mean 0.5 0.5')),
    (('--in-chans', '1', '--input-img-mode', 'RGB'), ('--in-chans 1', '--input-img-mode RGB')),
    (('--aug-splits', '3', '--no-prefetcher'), ('--aug-splits 3', '--no-prefetcher')),
    (('--opt-kwargs', 'foo=1'), ('foo', '--opt-kwargs')),
    (('--train-img-sizes', '32', '1000000'), ('2 images of 1000000 x 1000000 pixels', '--train-img-sizes 32 1000000')),
    (('--opt', 'adam', '--opt-kwargs', 'amsgrad=false'), ('amsgrad=false is a text: give True or False',)),
    (('--opt', 'lookahead_sgd', '--opt-kwargs', 'nesterov=7'), ('nesterov=7 is a number: give True or False',)),
    (('--opt', 'adamw', '--opt-kwargs', 'betas=.9', 'eps=x'), ('=0.9 is a number: give a list', 'eps=x is a text')),
    (('--opt', 'adamw', '--opt-kwargs', 'eps=1e-6', 'lr=1'), ('lr=1 has a flag of its own: give it as --lr',)),
    (('--opt', 'adamw', '--opt-kwargs', 'capturable=True'), ('--opt adamw cannot make a step', 'capturable')),
))
def test_what_does_not_is_named(gray, argv, words):
    problem = ' '.join(found(gray, *argv))
    assert problem and all(word in problem for word in words), problem


def test_a_network_that_cannot_be_made_names_its_flags(gray):
    run = checks.Checked(settings(gray, '--model', 'resnet18', '--gp', 'foo'), {})
    with pytest.raises(UsageError, match=r'resnet18 cannot be made \(Invalid pool type: foo\): check --gp foo'):
        list(checks.check_model(run))


def test_evaluation(gray):
    assert found(gray, '--in-chans', '1', '--crop-mode', 'border', verb='validate') == []
    assert '--img-size 32' in found(gray, '--model', 'vit_tiny_patch16_224', verb='validate')[0]
    assert 'are free: check --img-size 1000000' in found(gray, '--img-size', '1000000', verb='validate')[0]
    assert found(gray, '--model', 'resnet18', '-b', '1', verb='validate') == []  # which is fine without statistics


def test_a_picture_that_cannot_be_decoded_is_no_fault_of_the_flags(tmp_path):
    for split in ('train', 'val'):
        (tmp_path / split / 'a').mkdir(parents=True)
        (tmp_path / split / 'a' / '0.png').write_bytes(b'no picture')
    assert found(tmp_path) == []


def test_random_generators_are_left_as_they_were(gray):
    torch.manual_seed(1), random.seed(2), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), copy.deepcopy(np.random.get_state())
    assert found(gray, '--aa', 'rand-m9', '--mixup', '.5') == []
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2][1])


def test_what_the_network_without_numbers_refuses_is_tried_with_numbers(gray, monkeypatch):
    """An operator that meta tensors do not have is not a fault of the flags."""
    def forward(self, x):
        if x.device.type == 'meta':
            raise RuntimeError('no such operator')
        return torch.zeros(len(x), 3)
    from timm.models.resnet import ResNet
    monkeypatch.setattr(ResNet, 'forward', forward)
    assert found(gray, '--model', 'resnet18') == []


def test_the_check_of_a_run_says_it(gray):
    run = replace(settings(gray, '--model', 'vit_tiny_patch16_224'), output='nowhere')
    with pytest.raises(UsageError, match='vit_tiny_patch16_224 does not take'):
        checks.check(run, dry_run=True)


# --- gray images with auto-augment ------------------------------------------------------------------------------------

@pytest.mark.parametrize('policy', ('rand-m9-mstd0.5-inc1', 'original', 'augmix-m5-w3', 'v0'))
@pytest.mark.parametrize('more', ((), ('--no-prefetcher',)))
def test_gray_images_train_with_auto_augment(gray, policy, more):
    """A rotation fills what it leaves empty with one value, where timm gives three: at random, so many images."""
    run = checks.Checked(settings(gray, '--in-chans', '1', '--aa', policy, *more), {})
    list(checks.check_model(run))
    args = sample._flags_for_loaders(run)
    loader, _ = loaders.train_loader(sample._setup(run, args, 'training'), create_dataset(
        '', root=str(gray), split='train', is_training=True, input_img_mode='L'))
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    for _ in range(8):
        for images, _ in loader:
            assert images.shape == (2, 1, 32, 32) and torch.isfinite(images).all()


def test_mean_and_deviation_of_channels_are_those_of_timms_prefetcher():
    mean = (0.485, 0.456, 0.406)
    for channels in (1, 3, 4):
        assert for_channels(mean, channels) == tuple(adapt_to_chs(mean, channels))


@pytest.mark.parametrize('name, shape', (
    ('resnet18', (2, 3, 64, 64)), ('resnet18', (1, 3, 32, 32)), ('resnet18', (2, 4, 64, 64)),
    ('mobilenetv3_small_100', (2, 3, 64, 64)), ('convnext_atto', (1, 3, 32, 32))))
def test_quick_batch_norm_says_what_torch_says(name, shape):
    """The same shape, or the same error, as without it."""
    model = create_model(name, meta=True).train()
    outcomes = []
    for context in (nullcontext, sample._quick_batch_norm):
        try:
            with torch.no_grad(), context():
                outcomes.append(model(torch.zeros(shape, device='meta')).shape)
        except (RuntimeError, ValueError) as e:
            outcomes.append(repr(e))
    assert outcomes[0] == outcomes[1]


def test_quick_batch_norm_leaves_numbers_and_what_does_not_fit_to_torch():
    real = torch.batch_norm
    images, layer = torch.randn(4, 5, 3, 3), torch.nn.BatchNorm2d(5)
    expected = layer(images)
    with sample._quick_batch_norm():
        assert torch.equal(torch.nn.BatchNorm2d(5)(images), expected)
        with pytest.raises(RuntimeError, match='running_mean should contain 4 elements not 5'):
            torch.nn.BatchNorm2d(5, device='meta')(torch.zeros(2, 4, 3, 3, device='meta'))
    assert torch.batch_norm is real
