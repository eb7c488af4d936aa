"""The moving average: timm's values, in two launches."""
from copy import deepcopy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seresnet_timm.step.moving_average import copy_counters_at_once

VIEWS = ('detach', 'as_strided', 'unsqueeze', 'alias', 'view')


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition('::')[2]
        if name not in VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Tied(nn.Module):
    """One BatchNorm under two names, and buffers of other kinds."""

    def __init__(self):
        super().__init__()
        self.one = self.two = nn.BatchNorm2d(3)
        self.three = nn.BatchNorm2d(3)
        self.register_buffer('index', torch.arange(6).view(2, 3))
        self.register_buffer('flag', torch.tensor(True))

    def forward(self, x):
        return self.three(self.two(self.one(x))).mean((2, 3))


def network(name: str) -> nn.Module:
    if name == 'tied':
        return Tied()
    arguments = dict(channels=(4, 8, 8, 8)) if 'resnet' in name else {}
    return timm.create_model(name, num_classes=3, **arguments)


@pytest.mark.parametrize('name, launches', (
    ('seresnet18_ascend', ['_foreach_lerp_', 'stack']), ('resnet18', ['_foreach_lerp_', 'stack']), ('tied', None)))
@pytest.mark.parametrize('warmup', (False, True))
def test_values_are_timms(name, launches, warmup):
    torch.manual_seed(0)
    model = network(name).train()
    theirs, ours = (ModelEmaV3(model, decay=0.9, use_warmup=warmup) for _ in range(2))
    copy_counters_at_once(ours)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if key == 'index':
                    value.add_(step)
        theirs.update(model, step=step)
        ours.update(model, step=step)
        expected, found = theirs.module.state_dict(), ours.module.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected), step
        if step == 1:  # a checkpoint is loaded in between
            ours.module.load_state_dict(deepcopy(found))
    assert any(key.endswith('num_batches_tracked') and value == (8 if name == 'tied' and 'three' not in key else 4)
               for key, value in found.items())
    if launches:
        with Launches() as seen:
            ours.update(model, step=5)
        assert seen.names == launches


def test_an_average_on_another_device_is_timms():
    model = network('resnet18')
    average = ModelEmaV3(model)
    average.foreach = False  # what timm sets then
    copy_counters_at_once(average)
    assert 'apply_update_' not in vars(average)
