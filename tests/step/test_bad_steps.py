"""Steps without finite numbers: skipped as if they had not been, counted, never waited for; healthy steps unchanged."""
import copy

import pytest
import timm
import torch
import torch.nn as nn
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler

from seresnet_timm.step import fast
from seresnet_timm.step.bad_steps import BadSteps, Figures
from seresnet_timm.step.loss_scaler import FixedGradScaler, LossScaler


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def batches(count, bad=()):
    g = torch.Generator().manual_seed(0)
    found = [(torch.randn(6, 3, 8, 8, generator=g), torch.randint(5, (6,), generator=g)) for _ in range(count)]
    for index in bad:
        found[index][0][0, 0, 0, 0] = float('nan')
    return found


def train(model, optimizer, data, guard=None):
    for x, y in data:
        loss = nn.functional.cross_entropy(model(x), y)
        if guard is None:
            loss.backward()
            optimizer.step()
        else:
            guard.poison(loss).backward()
            guard.look()
            guard.step()
            guard.count()
        optimizer.zero_grad()


def make(opt, model, is_fast):
    create = fast.create_optimizer if is_fast else create_optimizer_v2
    return create(model, opt=opt, lr=0.01, weight_decay=0.01)


OPTIMIZERS = [('momentum', True), ('adamw', True), ('momentum', False), ('adamw', False), ('lamb', False),
              ('rmsproptf', False), ('lion', False), ('lookahead_momentum', False)]


@pytest.mark.parametrize('opt, is_fast', OPTIMIZERS)
def test_healthy_steps_are_unchanged(opt, is_fast):
    plain, guarded = network(), network()
    train(plain, make(opt, plain, is_fast), batches(5))
    optimizer = make(opt, guarded, is_fast)
    guard = BadSteps(guarded, optimizer, torch.device('cpu'))
    guard.start_epoch()
    train(guarded, optimizer, batches(5), guard)
    for a, b in zip(plain.state_dict().values(), guarded.state_dict().values()):
        assert torch.equal(a, b)
    assert Figures(*guard.figures().tolist()) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize('opt, is_fast', OPTIMIZERS)
@pytest.mark.parametrize('bad', ((2,), (2, 3, 5)))
def test_bad_steps_are_as_if_they_had_not_been(opt, is_fast, bad):
    """The result is that of a training without the bad batches, momentum and running statistics included."""
    plain, guarded = network(), network()
    train(plain, make(opt, plain, is_fast), [b for i, b in enumerate(batches(6)) if i not in bad])
    optimizer = make(opt, guarded, is_fast)
    guard = BadSteps(guarded, optimizer, torch.device('cpu'))
    guard.start_epoch()
    train(guarded, optimizer, batches(6, bad), guard)
    # optimizers that count on the host count the bad steps too: bias correction, the turn of the slow weights
    counts_on_host = opt in ('lamb', 'lookahead_momentum')
    for (name, a), b in zip(plain.state_dict().items(), guarded.state_dict().values()):
        assert torch.isfinite(b).all()
        if name != '1.num_batches_tracked' and not counts_on_host:
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    figures = Figures(*guard.figures().tolist())
    assert figures[:4] == ((1, 0, 1, 2) if bad == (2,) else (3, 1, 2, 5))
    guard.start_epoch()
    assert Figures(*guard.figures().tolist())[:3] == (0, figures.row, figures.row)


@pytest.mark.parametrize('opt, is_fast', OPTIMIZERS)
def test_first_step_is_bad(opt, is_fast):
    model = network()
    start = copy.deepcopy(model.state_dict())
    optimizer = make(opt, model, is_fast)
    guard = BadSteps(model, optimizer, torch.device('cpu'))
    guard.start_epoch()
    train(model, optimizer, batches(1, [0]), guard)
    for (name, a), b in zip(start.items(), model.state_dict().values()):
        assert torch.equal(a, b) or name == '1.num_batches_tracked'
    train(model, optimizer, batches(3), guard)
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


@pytest.mark.parametrize('value', (float('nan'), float('inf'), -float('inf')))
@pytest.mark.parametrize('dtype', (torch.float32, torch.float16, torch.bfloat16, torch.float64))
def test_gradients_of_every_kind(value, dtype):
    weight = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    guard = BadSteps(nn.Identity(), optimizer, torch.device('cpu'))
    guard.start_epoch()
    weight.grad = torch.tensor([1., value, 1.], dtype=dtype)
    guard.look()
    guard.step()
    guard.count()
    assert torch.equal(weight.detach(), torch.ones(3, dtype=dtype)) and guard.figures()[0] == 1
    weight.grad = torch.full((3,), 3e4, dtype=dtype)  # large, and finite
    guard.look()
    guard.count()
    assert guard.figures()[:2].tolist() == [1, 0]


def test_loss_that_is_not_finite_with_finite_gradients():
    """Gradients alone would not tell, and another rank would take its step."""
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    guard = BadSteps(nn.Identity(), optimizer, torch.device('cpu'))
    guard.start_epoch()
    for loss in (weight + float('inf'), weight * 1.):
        guard.poison(loss).backward()
        guard.look()
        guard.step()
        guard.count()
        optimizer.zero_grad()
    assert guard.figures()[0] == 1 and weight.item() == pytest.approx(0.9)


@pytest.mark.parametrize('is_fixed', (False, True))
@pytest.mark.parametrize('opt', ('momentum', 'lamb'))
def test_loss_scaler(opt, is_fixed):
    """The scaler skips; its steps are counted, and a dynamic scale that collapses ends the run."""
    model = network()
    optimizer = make(opt, model, True)
    scaler = LossScaler(FixedGradScaler(device='cpu', init_scale=8.), 8.) if is_fixed else NativeScaler(device='cpu')
    guard = BadSteps(model, optimizer, torch.device('cpu'), scaler)
    guard.start_epoch()
    for x, y in batches(7, (1, 2, 5)):
        scaler(guard.poison(nn.functional.cross_entropy(model(x), y)), optimizer)
        guard.count()
        optimizer.zero_grad()
    figures = Figures(*guard.figures().tolist())
    assert figures[:4] == (3, 0, 2, 5) and figures.loss_scale == (1. if is_fixed else 65536 / 8)
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert not figures.ends_run(20) and figures.ends_run(2)
    assert figures._replace(loss_scale=5e-5).ends_run(20)


def test_network_without_batch_norm():
    model = timm.create_model('test_vit', num_classes=2)
    guard = BadSteps(model, create_optimizer_v2(model, 'sgd', lr=0.1), torch.device('cpu'))
    guard.start_epoch()
    guard.count()
    assert guard.figures()[0] == 0
