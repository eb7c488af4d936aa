"""recipes/seresnet50_ascend.yaml against the formulas of the ModelZoo's main.py and senet.py."""
import math
import random
import statistics
from argparse import Namespace

import pytest
import timm
import torch
import torch.nn as nn
from timm.data import create_loader, resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torchvision import transforms

from seresnet_timm.data import loaders
from seresnet_timm.engine.loss import training_loss
from seresnet_timm.launch.parse import parse
from seresnet_timm.launch.recipes import recipe_path
from seresnet_timm.launch.sources import collect, merge


@pytest.fixture(scope='module')
def args() -> Namespace:
    line = parse('train', ['--preset', 'seresnet50_ascend', '--data-dir', 'x'])
    return Namespace(**merge(line, collect(line, recipe_name=None), 'npu', world_size=8))


@pytest.fixture(scope='module')
def model(args):
    return timm.create_model(args.model, num_classes=args.num_classes, **args.model_kwargs)


@pytest.fixture
def optimizer(args, model):
    return create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)


def test_learning_rate_of_every_epoch(args, optimizer):
    scheduler, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=1251)
    assert num_epochs == 100
    for e in range(100):
        expected = 0.6 * (e + 1) / 6 if e < 5 else 0.6 * 0.5 * (1 + math.cos(math.pi * (e - 5) / 95))
        assert all(abs(g['lr'] - expected) < 1e-15 for g in optimizer.param_groups), e
        scheduler.step(e + 1)
        scheduler.step_update((e + 1) * 1251)


def test_optimizer_decays_every_parameter(args, model, optimizer):
    assert type(optimizer) is torch.optim.SGD
    assert [g['weight_decay'] for g in optimizer.param_groups] == [1e-4]
    assert [g['momentum'] for g in optimizer.param_groups] == [0.9]
    assert not optimizer.param_groups[0]['nesterov'] and optimizer.param_groups[0]['dampening'] == 0
    assert sum(p.numel() for p in optimizer.param_groups[0]['params']) == 28_071_976


def test_loss_is_plain_cross_entropy(args):
    output, target = torch.randn(4, 1000), torch.tensor([1, 2, 3, 4])
    loss = training_loss(args)(output, target)
    expected = -output.log_softmax(dim=1)[range(4), target].mean()
    torch.testing.assert_close(loss, expected)
    assert not loaders.mixup_active(args)


def test_batch_and_seed(args):
    assert args.batch_size * 8 == 1024 and args.seed == 49 and args.amp and args.no_ddp_bb
    assert args.model_kwargs == {}


def test_last_batchnorms_start_at_one(model):
    assert all(m.weight.eq(1).all() and m.bias.eq(0).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.fixture(scope='module')
def images(digits):
    from PIL import Image
    image = Image.open(next((digits / 'val' / '8').iterdir())).convert('RGB').resize((500, 375))
    # ramps tell crops and flips apart
    image.putdata([(x // 2, y // 2, 99) for y in range(375) for x in range(500)])
    return image


def transform(args, model, is_training):
    """The transform that the bundled script would use."""
    class One(torch.utils.data.Dataset):
        def __len__(self):
            return 1
    dataset = One()
    config = resolve_data_config(vars(args), model=model)
    kwargs = dict(scale=args.scale, ratio=args.ratio, hflip=args.hflip, color_jitter=args.color_jitter,
                  interpolation=args.train_interpolation) if is_training else dict(
                      interpolation=config['interpolation'], crop_pct=config['crop_pct'])
    create_loader(dataset, config['input_size'], 1, is_training=is_training, num_workers=0,
                  device=torch.device('cpu'), mean=config['mean'], std=config['std'], **kwargs)
    return dataset.transform, config


def test_validation_transform_is_the_references(args, model, images):
    own, config = transform(args, model, is_training=False)
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    torch.testing.assert_close(torch.as_tensor(own(images)), reference(images), atol=0, rtol=0)
    assert config['mean'] == (0.485, 0.456, 0.406) and config['std'] == (0.229, 0.224, 0.225)


def test_training_transform_has_the_references_distribution(args, model, images):
    """Crop area, crop position and flips of 400 samples, against torchvision's on the same ramp image."""
    own, _ = transform(args, model, is_training=True)
    reference = transforms.Compose([
        transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()])
    figures = []
    for t in (own, reference):
        torch.manual_seed(0)
        random.seed(0)
        samples = [torch.as_tensor(t(images)).float() for _ in range(400)]
        flips = [s[0, :, -1].mean() < s[0, :, 0].mean() for s in samples]
        widths = [abs(s[0, :, -1].mean() - s[0, :, 0].mean()).item() for s in samples]
        heights = [abs(s[1, -1].mean() - s[1, 0].mean()).item() for s in samples]
        figures.append((sum(flips) / 400, statistics.mean(widths), statistics.mean(heights)))
        assert all(s.shape == (3, 224, 224) and s[2].sub(99).abs().max() <= 1 for s in samples)  # no colour jitter
    (flip, width, height), (flip_ref, width_ref, height_ref) = figures
    assert abs(flip - 0.5) < 0.08 and abs(flip_ref - 0.5) < 0.08
    assert abs(width / width_ref - 1) < 0.06 and abs(height / height_ref - 1) < 0.06


def test_header_names_source_command_and_published_numbers():
    text = recipe_path('seresnet50_ascend').read_text()
    for word in ('Source:', 'Command:', '77.521', '5,306.66', 'not yet', 'measured'):
        assert word in text
