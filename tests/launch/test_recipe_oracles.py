"""Every recipe against its source: learning rate of every step, weight decay, augmentation, batch and loss.

What a source says is written here by hand, or computed by the objects that the source itself uses.
"""
import functools
import math
from argparse import Namespace
from typing import Callable, Dict, NamedTuple, Optional

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import resolve_data_config
from timm.optim import Lamb, Lars, RMSpropTF, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from torchvision import transforms

from seresnet_timm.data import loaders
from seresnet_timm.engine.loss import training_loss
from seresnet_timm.engine.teacher import Teacher, create_task
from seresnet_timm.launch.parse import parse
from seresnet_timm.launch.recipes import divide_batch
from seresnet_timm.launch.sample import Sample
from seresnet_timm.launch.sources import collect, merge
from seresnet_timm.step.fast import create_optimizer

U = 11  # updates of an epoch; the formulas hold for any number
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def planned(name: str, world_size: int) -> dict:
    line = parse('train', ['--preset', name, '--data-dir', 'x', '--scripts', 'bundled'])
    return merge(line, collect(line, recipe_name=None), 'npu', world_size=world_size)


def args_of(name: str, world_size: int = 8) -> Namespace:
    return Namespace(**planned(name, world_size))


@functools.cache
def network_of(name: str, **kwargs) -> nn.Module:
    """The network of a recipe; with shapes only if no arguments are given, as its optimizer needs no more."""
    args = args_of(name)
    own = dict(args.model_kwargs, drop_path_rate=args.drop_path, drop_rate=args.drop)
    with torch.device('cpu' if kwargs else 'meta'):
        return timm.create_model(args.model, num_classes=args.num_classes, **own, **kwargs)


# --- what the sources say ---------------------------------------------------------------------------------------------

def cosine(high: float, low: float, part: float) -> float:
    return low + (high - low) / 2 * (1 + math.cos(math.pi * part))


def rsb(lr: float, epochs: int) -> Callable[[int], float]:
    """timm's cosine of October 2021, stepped after every epoch: its warm-up is a part of it."""
    def at(step: int) -> float:
        e = step // U
        return 1e-4 + (lr - 1e-4) * e / 5 if e < 5 else cosine(lr, 1e-6, e / epochs)
    return at


def mindcv(step: int) -> float:
    """`cosine_decay_refined_lr`: every step, no warm-up."""
    return cosine(0.075, 0, step / (150 * U))


def ra2(step: int) -> float:
    e = step // U
    lr = 1e-6 + (0.082 - 1e-6) * e / 3 if e < 3 else 0.082 * 0.988 ** e
    if 280 <= e < 630:  # noise, by timm's seed + epoch; drawn again while it is above two thirds
        g = torch.Generator().manual_seed(42 + e)
        noise = torch.randn(1, generator=g).item()
        while abs(noise) >= 0.67:
            noise = torch.randn(1, generator=g).item()
        lr *= 1 + noise
    return lr


def lars(step: int) -> float:
    """`poly_rate_schedule` of tensorflow/tpu, for 16,384 images."""
    w_steps, train_steps = 5 * U, 91 * U
    if step <= w_steps:
        return 25 * (step / U) / 5
    # the source divides by one step more, which it does not train
    return 25 * (1 - (step - w_steps) / (train_steps - w_steps)) ** 2


def ffcv(step: int) -> float:
    """`get_cyclic_lr` of ffcv's train_imagenet.py, between whose epochs it interpolates for every step."""
    e = step / U
    return 1.7 * (1e-4 + (1 - 1e-4) * e / 2) if e < 2 else 1.7 * (50 - e) / 48


def distill(step: int) -> float:
    """`create_learning_rate_schedule` of big_vision: linear, then cosine; its 5,000 steps are 16 epochs."""
    w_steps, train_steps = 16 * U, 300 * U
    return 0.03 * step / w_steps if step < w_steps else cosine(0.03, 0, (step - w_steps) / (train_steps - w_steps))


def torchvision_v2() -> Callable[[int], float]:
    """The schedulers of torchvision's train.py, stepped after every epoch."""
    from torch.optim import lr_scheduler as s
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = s.SequentialLR(optimizer, [
        s.LinearLR(optimizer, start_factor=0.01, total_iters=5), s.CosineAnnealingLR(optimizer, T_max=600 - 5),
    ], milestones=[5])
    lrs = []
    for _ in range(600):
        lrs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return lambda step: lrs[step // U]


CROP = 'RandomResizedCropAndInterpolation(size=({0}, {0}), scale=({4}, 1.0), ratio=({1}, {2}), interpolation={3})'
TIMM_CROP = (0.75, 1.3333)
# RandAugment's 15 operations in timm, those that grow with the magnitude
OPS = ('AutoContrast Equalize Invert Rotate PosterizeIncreasing SolarizeIncreasing SolarizeAdd ColorIncreasing '
       'ContrastIncreasing BrightnessIncreasing SharpnessIncreasing ShearX ShearY TranslateXRel TranslateYRel').split()


def rand(m: int, std: float) -> str:
    ops = '\n'.join(f'\tAugmentOp(name={name}, p=0.5, m={m}, mstd={std})' for name in OPS)
    return f'RandAugment(n=2, ops=\n{ops})'


def steps(size: int, *more: str, ratio=TIMM_CROP, interpolation='bilinear bicubic', scale=0.08) -> list:
    return [CROP.format(size, *ratio, interpolation, scale), 'RandomHorizontalFlip(p=0.5)', *more, 'MaybePILToTensor()']


class Source(NamedTuple):
    """What a source says.

    Attributes:
        lr: Learning rate of a step.
        epochs: All epochs.
        batch: Images of a step.
        optimizer: Its class.
        defaults: Its settings.
        decay: Weight decay of weights; biases and BatchNorm have none.
        steps: Training transform.
        evaluation: Size after the resize, size of the crop, filter.
        mixup: Alphas of mixup and cutmix.
        erasing: Probability and fill of random erasing.
        repeats: Repeated augmentation.
        drop_path: Rate of the last block.
        zero_init: The last BatchNorm of a block starts at zero.
        ema: Decay of the moving average, a step.
        mean: Of the normalization.
        std: Of the normalization.
        clip: Largest norm of the gradients.
    """
    lr: Callable[[int], float]
    epochs: int
    batch: int
    optimizer: type
    defaults: Dict
    decay: float
    steps: list
    evaluation: tuple
    mixup: tuple = (0, 0)
    erasing: tuple = (0, '')
    repeats: int = 0
    drop_path: float = 0
    zero_init: bool = False
    ema: float = 0
    mean: tuple = MEAN
    std: tuple = STD
    clip: Optional[float] = None


SGD = dict(momentum=0.9, nesterov=False, dampening=0)
LAMB = dict(betas=(0.9, 0.999), eps=1e-6, max_grad_norm=1.0, bias_correction=True)
JITTER = 'ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=None)'
TA = 'TrivialAugmentWide(num_magnitude_bins=31, interpolation=InterpolationMode.BILINEAR, fill=None)'

SOURCES = {
    'mindcv': Source(
        mindcv, 150, 512, torch.optim.SGD, SGD, 1e-4,
        steps(224, JITTER, ratio=(0.75, 1.333), interpolation='bicubic'), (256, 224, 'bicubic')),
    'rsb_a1': Source(
        rsb(5e-3, 600), 600, 2048, Lamb, LAMB, 0.01, steps(224, rand(7, 0.5)), (235, 224, 'bicubic'),
        mixup=(0.2, 1), repeats=3, drop_path=0.05, zero_init=True),
    'rsb_a2': Source(
        rsb(5e-3, 300), 300, 2048, Lamb, LAMB, 0.02, steps(224, rand(7, 0.5)), (235, 224, 'bicubic'),
        mixup=(0.1, 1), repeats=3, drop_path=0.05, zero_init=True),
    'rsb_a3': Source(
        rsb(8e-3, 100), 100, 2048, Lamb, LAMB, 0.02, steps(160, rand(6, 0.5)), (168, 160, 'bicubic'),
        mixup=(0.1, 1), zero_init=True),
    'ra2': Source(
        ra2, 700, 704, RMSpropTF, dict(alpha=0.9, eps=1e-3, momentum=0.9, centered=False), 1e-5,
        steps(224, rand(9, 1.0)), (256, 224, 'bicubic'), mixup=(0.19, 0), erasing=(0.2, 'pixel'), drop_path=0.1,
        zero_init=True, ema=0.999987),
    'large_batch': Source(
        lars, 91, 16384, Lars, dict(momentum=0.9, trust_coeff=0.001, nesterov=False, always_adapt=False), 1e-4,
        steps(224, interpolation='bicubic'), (256, 224, 'bicubic'), zero_init=True),
    'torchvision_v2': Source(
        torchvision_v2(), 600, 1024, torch.optim.SGD, SGD, 2e-5,
        steps(176, TA, interpolation='bilinear'), (182, 176, 'bilinear'), mixup=(0.2, 1), erasing=(0.1, 'const'),
        repeats=4, ema=(1 - (1 - 0.99998) * 1024 * 32 / 600) ** (1 / 32)),
    'progressive': Source(
        ffcv, 50, 4096, torch.optim.SGD, SGD, 1e-4, steps(128, interpolation='bilinear'), (256, 224, 'bilinear')),
    # the weight decay of big_vision is not multiplied by the learning rate, that of AdamW is
    'distill': Source(
        distill, 300, 4096, torch.optim.AdamW, dict(betas=(0.9, 0.999), eps=1e-8), 0.0003 / 0.03,
        steps(224, interpolation='bilinear', scale=0.05), (256, 224, 'bilinear'), mixup=(1, 0), clip=1.0,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}
every = pytest.mark.parametrize('name', SOURCES)


# --- learning rate, optimizer, network --------------------------------------------------------------------------------

@every
def test_learning_rate_of_every_step(name):
    args, source = args_of(name), SOURCES[name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=U)
    assert num_epochs == source.epochs
    for e in range(num_epochs):
        for step in range(e * U, (e + 1) * U):
            assert optimizer.param_groups[0]['lr'] == pytest.approx(source.lr(step), rel=1e-9, abs=1e-15), (e, step)
            scheduler.step_update(step + 1)
        scheduler.step(e + 1)


@every
def test_optimizer_and_weight_decay_of_every_parameter(name):
    """Weights of convolutions and of the classifier decay; biases and BatchNorm do not."""
    args, source = args_of(name), SOURCES[name]
    network = network_of(name)
    optimizer = create_optimizer(network, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    assert type(optimizer) is source.optimizer
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    for group in optimizer.param_groups:
        assert {k: group[k] for k in source.defaults} == source.defaults and group['lr'] == pytest.approx(args.lr)
    free = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    free.add(id(network.fc.bias))
    assert (args.clip_grad, args.clip_mode) == (source.clip, 'norm')
    assert {n: decay[id(p)] for n, p in network.named_parameters()} == {
        n: 0 if id(p) in free else pytest.approx(source.decay) for n, p in network.named_parameters()}


@every
def test_network(name):
    """SE-ResNet-50 with the source's start of the last BatchNorm, and its stochastic depth."""
    args, source = args_of(name), SOURCES[name]
    assert args.model == 'seresnet50_ascend'
    assert sum(p.numel() for p in network_of(name).parameters()) == 28_071_976
    network = network_of(name, channels=(8, 8, 8, 8))
    blocks = [b for layer in (network.layer1, network.layer2, network.layer3, network.layer4) for b in layer]
    assert {b.bn3.weight.abs().max().item() for b in blocks} == {0. if source.zero_init else 1.}
    rates = [getattr(b.drop_path, 'drop_prob', 0) or 0 for b in blocks]
    assert rates == pytest.approx([source.drop_path * i / 15 for i in range(16)])
    assert (args.model_ema, args.model_ema and args.model_ema_decay) == (
        source.ema > 0, source.ema and pytest.approx(source.ema, abs=1e-8))


@every
@pytest.mark.parametrize('world_size', (1, 2, 8, 32))
def test_the_batch_does_not_depend_on_the_number_of_processes(name, world_size):
    args = args_of(name, world_size=world_size)
    assert args.batch_size * args.grad_accum_steps * world_size == SOURCES[name].batch
    assert args.batch_size <= 256 and args.batch_size % 2 == 0
    assert args.aug_repeats == (SOURCES[name].repeats if world_size > 1 else 0)


def test_division_of_batches():
    for total, world_size, accumulated, expected in (
            (1024, 8, None, (128, 1, 1024)), (1024, 1, None, (256, 4, 1024)), (1024, 3, None, (170, 2, 1020)),
            (512, 8, 2, (32, 2, 512)), (704, 1, None, (176, 4, 704)), (16384, 8, None, (256, 8, 16384)),
            (512, 1024, None, (2, 1, 2048)), (2048, 7, None, (146, 2, 2044))):
        batch = divide_batch(total, world_size, accumulated)
        assert (batch.images, batch.accumulated, batch.total) == expected, (total, world_size)


# --- input ------------------------------------------------------------------------------------------------------------

def loader_of(args: Namespace, count: int = 4, **changes):
    """The training loader of the flags over a few images of one colour, without worker processes."""
    small = dict(workers=0, distributed=False, rank=0, aug_repeats=0, batch_size=count)
    for key, value in {**small, **changes}.items():
        setattr(args, key, value)
    images = Sample([Image.new('RGB', (64, 48), (40 * i, 99, 255 - 40 * i)) for i in range(count)])
    config = resolve_data_config(vars(args), model=network_of('mindcv'))
    setup = loaders.LoaderSetup(args, config, torch.device('cpu'))
    return loaders.train_loader(setup, images)[0], images, setup


def texts(transform: transforms.Compose) -> list:
    """Its steps as text, without timm's colour jitter of 0."""
    nothing = 'ColorJitter(brightness=None, contrast=None, saturation=None, hue=None)'
    return [str(step) for step in transform.transforms if str(step) != nothing]


@every
def test_training_images(name):
    """Every step with its settings, in order; normalisation, erasing and mixup of the batch."""
    source = SOURCES[name]
    loader, images, setup = loader_of(args_of(name))
    transform = images.transform or loader.dataset.transforms[0]  # the first of several sizes
    assert texts(transform) == source.steps
    assert tuple(setup.data_config['mean']) == source.mean and tuple(setup.data_config['std']) == source.std
    for values, known in ((loader.mean, source.mean), (loader.std, source.std)):
        torch.testing.assert_close(values.flatten(), torch.tensor(known) * 255)
    erasing = loader.random_erasing
    assert (erasing.probability, erasing.mode) == source.erasing if erasing else source.erasing == (0, '')
    if erasing:  # 2 to 33 % of the area, sides 3:10 to 10:3, filled after normalisation
        assert (erasing.min_area, erasing.max_area, erasing.max_count) == (0.02, pytest.approx(1 / 3), 1)
        assert erasing.log_aspect_ratio == pytest.approx((math.log(0.3), math.log(10 / 3)))
    mixup = loader.loader.collate_fn
    has_mixup = isinstance(mixup, timm.data.FastCollateMixup)
    assert ((mixup.mixup_alpha, mixup.cutmix_alpha) if has_mixup else (0, 0)) == source.mixup
    if has_mixup:
        assert mixup.mix_prob == 1 and mixup.mode == 'batch' and mixup.switch_prob == 0.5
    for x, _ in loader:
        assert x.shape[-1] == transform.transforms[0].size[0]


@every
def test_evaluation_images(name):
    source = SOURCES[name]
    args = args_of(name)
    _, images, setup = loader_of(args)
    setup.args.train_img_sizes = None
    loaders.eval_loader(setup, 'val', 4, dataset=images, crop_pct=setup.data_config['crop_pct'])
    resize, crop, last = images.transform.transforms
    assert type(resize) is transforms.Resize and type(crop) is transforms.CenterCrop
    assert (resize.size, crop.size[0], resize.interpolation.value) == source.evaluation
    assert str(last) == 'MaybePILToTensor()'


def test_sizes_of_the_progressive_training():
    """Of every epoch; all other steps are the same for all sizes."""
    loader = loader_of(args_of('progressive'), 8)[0]
    sizes = [t.transforms[0].size[0] for t in loader.dataset.transforms]
    assert sizes == [128, 160, 192, 224]
    assert [texts(t) for t in loader.dataset.transforms] == [
        steps(size, interpolation='bilinear') for size in sizes]
    expected = [128] * 8 + [160] * 16 + [192] * 16 + [224] * 10
    for epoch, size in enumerate(expected):
        weights = loader.loader.batch_sampler.choice_weights_for_epoch(epoch).tolist()
        assert weights == [float(s == size) for s in sizes], epoch
    assert sum(s * s for s in expected) / (100 * 224 ** 2) == pytest.approx(1 / 3, abs=0.01)  # of the reference's


def test_torchvision_resizes_to_232_for_224():
    line = parse('validate', ['--preset', 'torchvision_v2', '--img-size', '224', '--data-dir', 'x'])
    args = Namespace(**merge(line, collect(line, recipe_name=None), 'npu', world_size=8))
    assert math.floor(224 / args.crop_pct) == 232 and args.img_size == 224 and args.interpolation == 'bilinear'


def test_trivial_augment_draws_what_torchvisions_pipeline_draws(digits):
    """From the crop on, the same image as torchvision's training preset, for 20 seeds."""
    _, images, _ = loader_of(args_of('torchvision_v2'))
    image = Image.open(next((digits / 'val' / '8').iterdir())).convert('RGB').resize((176, 176))
    after_flip = transforms.Compose(images.transform.transforms[2:])
    theirs = transforms.Compose([
        transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BILINEAR), transforms.PILToTensor()])
    for seed in range(20):
        torch.manual_seed(seed)
        own = torch.as_tensor(after_flip(image))
        torch.manual_seed(seed)
        assert torch.equal(own, theirs(image))


def test_trivial_augment_at_several_sizes():
    args = args_of('torchvision_v2')
    args.train_img_sizes = [128, 176]
    loader = loader_of(args)[0]
    assert [texts(t) for t in loader.dataset.transforms] == [
        steps(size, TA, interpolation='bilinear') for size in args.train_img_sizes]


@pytest.mark.parametrize('name', [n for n, s in SOURCES.items() if s.repeats])
@pytest.mark.parametrize('rank', (0, 3))
def test_repeated_augmentation(name, rank, monkeypatch):
    """The indices of DeiT's and torchvision's RASampler: each image on as many ranks as it is repeated."""
    monkeypatch.setattr(torch.distributed, 'is_available', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 8)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: rank)
    args, count = args_of(name), 600
    repeats = int(args.aug_repeats)
    loader = loader_of(args, count, distributed=True, aug_repeats=args.aug_repeats, rank=rank)[0]
    loader.sampler.set_epoch(5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()
    repeated = [i for i in order for _ in range(repeats)]
    assert list(loader.sampler) == repeated[rank::8][:count // 256 * 256 // 8]


# --- loss -------------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([3, 1, 4, 1])


def binary_cross_entropy(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """By its formula, mean over images and classes."""
    return ((1 + x.exp()).log() - x * target).mean()


def present(mixed: torch.Tensor) -> torch.Tensor:
    """Classes of which more than a fifth is in the mixed image."""
    return (mixed > 0.2).double()


def smoothed(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    log_p = x.log_softmax(1)
    return -(0.9 * log_p[range(4), LABELS] + 0.1 * log_p.mean(1)).mean()


# of outputs and mixed labels
LOSSES: Dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    'mindcv': smoothed,
    'progressive': smoothed,
    'large_batch': smoothed,
    'rsb_a1': lambda x, mixed: binary_cross_entropy(x, present(0.9 * mixed + 0.1 / 1000)),
    'rsb_a2': lambda x, mixed: binary_cross_entropy(x, present(mixed)),
    'rsb_a3': lambda x, mixed: binary_cross_entropy(x, present(mixed)),
    'ra2': lambda x, mixed: -((0.9 * mixed + 0.1 / 1000) * x.log_softmax(1)).sum(1).mean(),
    # the loss of torchvision's train.py
    'torchvision_v2': lambda x, mixed: F.cross_entropy(x, mixed, label_smoothing=0.1),
}


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('lam', (0.85, 0.6))
def test_loss(name, lam, monkeypatch):
    """Of a batch as the loader mixes it, on random outputs; timm mixes with the mirror in the batch."""
    args, target, labels = args_of(name), LABELS, F.one_hot(LABELS, 1000).double()
    if SOURCES[name].mixup != (0, 0):
        mixup = loader_of(args)[0].loader.collate_fn
        monkeypatch.setattr(type(mixup), '_params_per_batch', lambda self: (lam, False))
        batch = [(torch.full((3, 2, 2), 50 * i, dtype=torch.uint8), int(label)) for i, label in enumerate(LABELS)]
        images, target = timm.data.FastCollateMixup.__call__(mixup, batch)
        expected = [lam * 50 * i + (1 - lam) * 50 * (3 - i) for i in range(4)]
        assert images[:, 0, 0, 0].tolist() == pytest.approx(expected, abs=0.51)
        target = target.double()
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).double()
    expected = LOSSES[name](x, lam * labels + (1 - lam) * labels.flip(0))
    torch.testing.assert_close(training_loss(args)(x, target), expected, rtol=1e-6, atol=1e-9)


def test_loss_of_the_distillation():
    """Kullback-Leibler divergence from the teacher to the student at temperature 1, and nothing of the labels."""
    assert set(SOURCES) - set(LOSSES) == {'distill'}
    args, networks = args_of('distill'), []
    for _ in range(2):
        networks.append(timm.create_model('seresnet18_ascend', channels=(4, 8, 8, 8)).eval())
        nn.init.normal_(networks[-1].fc.weight)
    mean, std = SOURCES['distill'].mean, SOURCES['distill'].std
    teacher = Teacher(networks[1], 'teacher', mean, std)
    task = create_task(args, networks[0], teacher, dict(mean=mean, std=std), torch.device('cpu'), None, verbose=False)
    images, target = torch.randn(4, 3, 32, 32), F.one_hot(LABELS, 1000).float()
    with torch.no_grad():
        own, other = (network(images).log_softmax(1) for network in networks)
        loss = task(images, target)['loss']
    assert loss > 0.01
    torch.testing.assert_close(loss, (other.exp() * (other - own)).sum(1).mean())
