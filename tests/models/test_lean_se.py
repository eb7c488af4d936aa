"""The memory-lean end of the SE-ResNets' blocks: timm's numbers, less memory, and timm's layers for everything else."""
import copy

import pytest
import timm
import torch
import torch.nn as nn
from models.step_numbers import numbers_of_step
from torch.profiler import ProfilerActivity, profile

import seresnet_timm  # noqa: F401  (registers the models)
from seresnet_timm.models import lean_se
from seresnet_timm.models.lean_se import LeanBottleneck, set_lean_se


@pytest.fixture(autouse=True)
def lean():
    set_lean_se(True)
    yield
    lean_se.set_block_end()


def block(dtype=torch.float64, downsample=False, channels=16) -> LeanBottleneck:
    torch.manual_seed(0)
    model = timm.create_model('seresnet50_ascend')
    inplanes = 64 if downsample else 4 * channels
    attn = lambda c, **kwargs: type(model.layer1[0].se)(c, rd_ratio=1 / 16, rd_divisor=1, bias=True)  # noqa: E731
    down = nn.Sequential(nn.Conv2d(inplanes, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels))
    return LeanBottleneck(inplanes, channels, downsample=down if downsample else None, attn_layer=attn).to(dtype)


def counted(monkeypatch) -> list:
    """Calls of the lean operation from here on."""
    calls = []
    tail = lean_se.lean_tail
    monkeypatch.setattr(lean_se, 'lean_tail', lambda *args: calls.append(1) or tail(*args))
    return calls


def numbers(model, x, *, lean):
    set_lean_se(lean)
    return numbers_of_step(model, x)


def assert_as_close(own, timms, exact):
    """Results in mixed precision: at most half as far again from float32 as timm's."""
    for name, right in exact.items():
        errors = [(result[name].double() - right.double()).norm() / right.double().norm().clamp_min(1e-9)
                  for result in (own, timms)]
        assert own[name].dtype == timms[name].dtype, name
        assert errors[0] <= 1.5 * errors[1] + 1e-3, name


@pytest.mark.parametrize('model', ('seresnet18_ascend', 'seresnet50_ascend'))
def test_training_step_is_that_of_timms_layers(model, monkeypatch):
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=5).double().train()
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    calls = counted(monkeypatch)
    own, timms = numbers(network, x, lean=True), numbers(network, x, lean=False)
    assert len(calls) == (16 if model == 'seresnet50_ascend' else 8)
    assert own.keys() == timms.keys()
    for name in timms:
        torch.testing.assert_close(own[name], timms[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize('memory_format', (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize('downsample', (False, True))
def test_float32_block_is_timms_within_rounding(downsample, memory_format, monkeypatch):
    network = block(torch.float32, downsample).to(memory_format=memory_format)
    x = torch.randn(8, 64, 14, 14).to(memory_format=memory_format)
    calls = counted(monkeypatch)
    own, timms = numbers(network, x, lean=True), numbers(network, x, lean=False)
    assert calls and own['out'].is_contiguous(memory_format=memory_format)
    for name in timms:
        torch.testing.assert_close(own[name], timms[name], rtol=1e-4, atol=1e-4 * timms[name].abs().max().item())


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_mixed_precision_is_as_close_to_float32_as_timms(dtype, monkeypatch):
    network = block(torch.float32)
    x = torch.randn(8, 64, 14, 14)
    exact = numbers(network, x, lean=False)
    calls = counted(monkeypatch)
    with torch.autocast('cpu', dtype=dtype):
        own, timms = numbers(network, x, lean=True), numbers(network, x, lean=False)
    assert calls
    assert_as_close(own, timms, exact)


def test_gradient_against_finite_differences_and_gradient_of_the_gradient():
    network = block(channels=4).train()
    for p in network.parameters():
        nn.init.uniform_(p, -1, 1)
    x = torch.randn(2, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    bn, se = network.bn3, network.se

    def tail(x, shortcut, *_):
        return lean_se.lean_tail(x, None, shortcut, bn, se)
    shortcut = torch.randn(2, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    params = (bn.weight, bn.bias, *se.parameters())
    assert torch.autograd.gradcheck(tail, (x, shortcut, *params))
    assert torch.autograd.gradgradcheck(tail, (x, shortcut, *params))


def test_less_memory_is_kept():
    def kept(model, lean):
        """Bytes that the forward pass of a training step leaves behind."""
        set_lean_se(lean)
        model, x = model.train(), torch.randn(4, 3, 64, 64)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
            out = model(x)
        assert out.requires_grad
        return sum(e.self_cpu_memory_usage for e in p.events())
    model = timm.create_model('seresnet50_ascend')
    assert kept(model, True) < 0.85 * kept(model, False)


# --- timm's layers where something looks into them --------------------------------------------------------------------

def test_hooks_see_every_layer():
    model = timm.create_model('seresnet18_ascend').train()
    seen = []
    for name in ('bn2', 'se', 'act2'):
        getattr(model.layer2[1], name).register_forward_hook(lambda m, i, o, name=name: seen.append(name))
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append('anywhere') if m is model.layer1[0].se else None)
    model(torch.randn(2, 3, 32, 32))
    handle.remove()
    assert sorted(seen) == ['act2', 'anywhere', 'bn2', 'se']


def test_script_export_fx_compile_and_trace(monkeypatch):
    model = timm.create_model('seresnet18_ascend', num_classes=5).train()
    x = torch.randn(2, 3, 32, 32)
    calls = counted(monkeypatch)
    set_lean_se(False)
    expected = copy.deepcopy(model)(x)
    set_lean_se(True)
    for make in (
            torch.jit.script,
            lambda m: torch.jit.trace(m, x, check_trace=False),
            torch.fx.symbolic_trace,
            lambda m: torch.export.export(m, (x,)).module(),
            lambda m: torch.compile(m, backend='eager'),
    ):
        torch.testing.assert_close(make(copy.deepcopy(model))(x), expected)
    assert not calls


def test_functional_transforms(monkeypatch):
    model = timm.create_model('seresnet18_ascend', num_classes=5).double().train()
    params = dict(model.named_parameters())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def loss(params):
        return torch.func.functional_call(model, (params, {n: b.clone() for n, b in model.named_buffers()}), x).sum()
    calls = counted(monkeypatch)
    grads = torch.func.grad(loss)(params)
    assert not calls
    own = torch.autograd.grad(loss(params), list(params.values()))
    assert len(calls) == 8
    for name, g in zip(params, own):
        torch.testing.assert_close(g, grads[name])
    _, tangent = torch.func.jvp(loss, (params,), ({n: torch.ones_like(p) for n, p in params.items()},))
    torch.testing.assert_close(tangent, sum(g.sum() for g in grads.values()))


def test_gradient_checkpointing(monkeypatch):
    model = timm.create_model('seresnet18_ascend', num_classes=5).double().train()
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    calls = counted(monkeypatch)
    model(x).sum().backward()
    assert len(calls) >= 8
    plain(x).sum().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize('change', ('sync_bn', 'half', 'frozen_bn', 'drop_path', 'parametrised'))
def test_other_layers_stay_as_they_are(change, monkeypatch):
    model = timm.create_model('seresnet18_ascend', num_classes=5, drop_path_rate=0.2 if change == 'drop_path' else 0.)
    model.train()
    if change == 'sync_bn':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif change == 'half':
        from seresnet_timm.step.half_weights import use_half_weights
        model = use_half_weights(model)
    elif change == 'frozen_bn':
        model.eval()
    elif change == 'parametrised':
        for b in model.modules():
            if hasattr(b, 'se'):
                nn.utils.parametrizations.spectral_norm(b.se.fc1)
    calls = counted(monkeypatch)
    out = model(torch.randn(2, 3, 32, 32)).sum()
    out.backward()
    assert len(calls) == (1 if change == 'drop_path' else 0)  # the first block has no drop path
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation_and_features_only(monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend').eval()
    features = timm.create_model('seresnet18_ascend', features_only=True).eval()
    x = torch.randn(2, 3, 64, 64)
    calls = counted(monkeypatch)
    with torch.no_grad():
        own, own_features = model(x), features(x)
        assert len(calls) == 16
        set_lean_se(False)
        torch.testing.assert_close(own, model(x), rtol=1e-5, atol=1e-5)
        for a, b in zip(own_features, features(x)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert len(calls) == 16
