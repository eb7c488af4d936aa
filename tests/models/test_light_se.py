"""The end of the SE-ResNets' blocks in few launches: timm's numbers and memory, fewer operators."""
import copy
import pickle

import pytest
import step_count
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from models.step_numbers import numbers_of_step
from safetensors.torch import load_file, save_file
from test_lean_se import assert_as_close, block
from timm.layers import DropPath, SEModule
from timm.utils import ModelEmaV3
from torch.autograd.graph import saved_tensors_hooks

import seresnet_timm  # noqa: F401  (registers the models)
from seresnet_timm.models import lean_se, light_se
from seresnet_timm.models.create import create_model
from seresnet_timm.models.lean_se import set_block_end
from seresnet_timm.step.half_weights import use_half_weights
from seresnet_timm.step.kept_memory import KEPT

COUNTER = 'num_batches_tracked'


@pytest.fixture(autouse=True)
def light():
    set_block_end('light')
    yield
    set_block_end()


@pytest.fixture
def calls(monkeypatch) -> list:
    """Calls of the operation from here on."""
    found, tail = [], light_se.light_tail
    monkeypatch.setattr(lean_se, 'light_tail', lambda *args: found.append(1) or tail(*args))
    return found


def numbers(model, x, end, seed=0):
    set_block_end(end)
    return numbers_of_step(model, x, seed)


def small(**kwargs):
    torch.manual_seed(0)
    return create_model('seresnet18_ascend', num_classes=5, channels=(16, 32, 48, 64), **kwargs)


# --- numbers ----------------------------------------------------------------------------------------------------------

def changed(change):
    model = small(drop_path_rate=0.3 if change == 'drop_path' else 0.).double().train()
    if change == 'frozen BatchNorm':
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
    elif change == 'frozen weights':
        for name, p in model.named_parameters():
            p.requires_grad = 'fc' in name or 'layer4' in name
    elif change == 'other momentum':
        model.layer2[0].bn2.momentum = None
    elif change == 'checkpointing':
        model.set_grad_checkpointing()
    elif change == 'no statistics':
        model.layer2[0].bn2 = nn.BatchNorm2d(32, track_running_stats=False).double()
    return model


@pytest.mark.parametrize('change', (
    '', 'drop_path', 'frozen BatchNorm', 'frozen weights', 'other momentum', 'checkpointing', 'no statistics'))
def test_training_step_is_that_of_timms_layers(change, calls):
    model, x = changed(change), torch.randn(4, 3, 64, 64, dtype=torch.float64)
    own, timms = numbers(model, x, 'light'), numbers(model, x, 'timm')
    assert len(calls) >= 8 and own.keys() == timms.keys()
    for name in timms:
        if timms[name] is None:
            assert own[name] is None, name
        else:
            torch.testing.assert_close(own[name], timms[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize('memory_format', (torch.contiguous_format, torch.channels_last), ids=str)
def test_float32_block_is_timms_within_rounding(memory_format, calls):
    network = block(torch.float32, downsample=True).to(memory_format=memory_format)
    x = torch.randn(8, 64, 14, 14).to(memory_format=memory_format)
    own, timms = numbers(network, x, 'light'), numbers(network, x, 'timm')
    assert calls and own['out'].is_contiguous(memory_format=memory_format)
    for name in timms:
        torch.testing.assert_close(own[name], timms[name], rtol=1e-4, atol=1e-4 * timms[name].abs().max().item())


@pytest.mark.parametrize('precision', ('float16', 'bfloat16', 'O2'))
def test_mixed_precision_is_as_close_to_float32_as_timms(precision, calls):
    network, x = block(torch.float32), torch.randn(8, 64, 14, 14)
    exact = numbers(network, x, 'timm')
    if precision == 'O2':
        network = use_half_weights(network)
    dtype = torch.float16 if precision == 'O2' else getattr(torch, precision)
    with torch.autocast('cpu', dtype=dtype, enabled=precision != 'O2'):
        own, timms = numbers(network, x, 'light'), numbers(network, x, 'timm')
    assert calls
    assert_as_close(own, timms, exact)


def test_gradient_against_finite_differences_and_gradient_of_the_gradient():
    bn, se = nn.BatchNorm2d(4).double(), SEModule(4, rd_channels=2, bias=True).double()
    for p in (*bn.parameters(), *se.parameters()):
        nn.init.uniform_(p, -1, 1)
    x, shortcut = (torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    class Drop(nn.Module):
        def forward(self, x):
            return x * x.new_tensor([0., 2.])[:, None, None, None]
    for drop in (None, Drop()):
        def tail(x, shortcut, *_, drop=drop):
            return light_se.light_tail(x, None, shortcut, bn, se, drop)
        inputs = (x, shortcut, bn.weight, bn.bias, *se.parameters())
        assert torch.autograd.gradcheck(tail, inputs)
    assert torch.autograd.gradgradcheck(tail, inputs)


def test_recomputing_blocks_take_it_where_they_do_not_apply(calls):
    set_block_end('lean')
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small(drop_path_rate=0.2)).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 8


# --- launches and memory ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('end, launches', (
    ('light', 580), *(pytest.param(*p, marks=pytest.mark.slow) for p in (('lean', 628), ('timm', 648)))))
def test_launches_of_a_step(end, launches):
    """timm's seresnet50 has 648, see `test_step_count`."""
    set_block_end(end)
    count = step_count.count_step(create_model('seresnet50_ascend', meta=True), 4, 64)
    assert count.counts.launches == launches


@pytest.mark.parametrize('size', (64, 224))
def test_live_memory_of_a_step_is_not_above_timms(size):
    live = {name: step_count.count_step(create_model(name, meta=True), 16, size).counts.live
            for name in ('seresnet50', 'seresnet50_ascend')}
    assert live['seresnet50_ascend'] <= live['seresnet50'], live


def kept(model, end, size=64):
    """MiB that the forward pass of a training step keeps for an image of 224 pixels."""
    set_block_end(end)
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(x):
        if x.untyped_storage()._cdata not in own:
            seen[x.untyped_storage()._cdata] = (x.untyped_storage().nbytes(), x)
        return x
    with saved_tensors_hooks(pack, lambda x: x):
        model(torch.empty(2, 3, size, size, device='meta'))
    return sum(size for size, _ in seen.values()) / 2 / 2**20


@pytest.mark.parametrize('name', ('seresnet18_ascend', *(
    pytest.param(name, marks=pytest.mark.slow) for name in list(KEPT)[1:])))
def test_memory_is_timms_and_what_the_plan_says(name):
    model = create_model(name, meta=True).train()
    model(torch.empty(2, 3, 64, 64, device='meta'))  # puts the counters together
    light = kept(model, 'light', 224)
    assert light == pytest.approx(KEPT[name][0], rel=0.01) and kept(model, 'lean', 224) < 0.9 * light
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(KEPT[name][1], rel=0.01)
    if name in ('seresnet18_ascend', 'seresnet50_ascend'):
        assert light <= 1.001 * kept(create_model(name.replace('_ascend', ''), meta=True).train(), 'light', 224)


# --- counters of batches ----------------------------------------------------------------------------------------------

def counters(model):
    return {n: int(b) for n, b in model.named_buffers() if n.endswith(COUNTER)}


def step(model, images=2):
    model(torch.randn(images, 3, 32, 32)).sum().backward()


def test_counters_are_timms_in_every_situation(tmp_path):
    """After steps, evaluation, copies, moves, files, and with layers that are frozen or replaced."""
    models = {'light': small().train(), 'timm': small().train()}

    def both(action):
        for end in models:
            set_block_end(end)
            models[end] = action(models[end]) or models[end]
        assert counters(models['light']) == counters(models['timm'])

    def evaluate(m):
        m.eval()(torch.randn(2, 3, 32, 32))
        m.train()

    def part_only(m):
        m.layer1(torch.randn(2, 64, 8, 8))
        m.forward_intermediates(torch.randn(2, 3, 32, 32))

    def freeze_a_part(m):
        m.layer1.eval()

    def with_grad_off(m):
        with torch.no_grad():
            step_only = m(torch.randn(2, 3, 32, 32))
        assert step_only.shape == (2, 5)

    def fails(m):
        with pytest.raises(RuntimeError):
            m(torch.randn(2, 4, 32, 32))

    def reload(m):
        state = {k: v.clone() for k, v in m.state_dict().items()}
        step(m)
        m.load_state_dict(state)
        step(m)

    def through_a_file(m):
        torch.save(m.state_dict(), tmp_path / 'm.pth')
        save_file(m.state_dict(), str(tmp_path / 'm.safetensors'))
        assert {k: int(v) for k, v in load_file(str(tmp_path / 'm.safetensors')).items() if k.endswith(COUNTER)} == (
            counters(m))
        m.load_state_dict(torch.load(tmp_path / 'm.pth', weights_only=True), assign=True)
        step(m)
    for action in (
            step, step, evaluate, step,
            copy.deepcopy, step, lambda m: m.double().float(), step, with_grad_off, reload, through_a_file,
            lambda m: pickle.loads(pickle.dumps(m)), step, fails,
            part_only, freeze_a_part, step, lambda m: m.set_grad_checkpointing(), step,
            lambda m: setattr(m.layer3[0].bn1, 'momentum', None), step,
            lambda m: setattr(m, 'layer2', nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32))), step,
            nn.SyncBatchNorm.convert_sync_batchnorm, step):
        both(action)


def untracked(m):
    m.layer2[0].bn1.track_running_stats = False
    m.layer3[0].downsample[1].track_running_stats = False


def bypassed(m):
    """Layers that do not run, each kind of place."""
    m.layer1[0].bn1.forward = lambda x: x
    m.layer2[1].forward = lambda x: x
    m.layer3[0].downsample.forward = lambda x: x.new_zeros(len(x), 48, x.shape[2] // 2, x.shape[3] // 2)
    m.layer4.forward = lambda x: x.new_zeros(len(x), 64, 1, 1)


def run_twice(m):
    layers = (m.layer1[0].bn1, m.layer2[1], m.layer3[1].bn2)
    for layer in layers:
        layer.forward = lambda x, forward=layer.forward: forward(forward(x))


def replaced_outputs(m):
    m.layer1[0].bn2.register_forward_hook(lambda layer, inputs, output: inputs[0])
    m.layer2.register_forward_hook(lambda layer, inputs, output: output * 2)
    m.layer3[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))


def fails_half_way(m):
    def stop(layer, inputs):
        raise KeyError
    handle = m.layer3[1].act1.register_forward_pre_hook(stop)
    with pytest.raises(KeyError):
        step(m)
    handle.remove()


def shared_layer(m):
    m.layer1[1].bn1 = m.layer1[0].bn1
    m.layer2[1].bn2.num_batches_tracked = m.layer2[1].bn1.num_batches_tracked


def runs_inside_of_itself(m):
    def again(layer, inputs):
        handle.remove()
        m(torch.randn(2, 3, 32, 32))
    handle = m.layer2[1].act1.register_forward_pre_hook(again)


def counts_more(m):
    m.layer2[0].act1.register_forward_hook(lambda *_: m.layer4[1].bn2.num_batches_tracked.add_(5) and None)


def frozen_parts(m):
    for p in m.parameters():
        p.requires_grad = False
    m.fc.weight.requires_grad = True
    m.layer2.eval()
    m.layer1[1].bn2.eval()


def checkpointed(m):
    m.set_grad_checkpointing()
    m.layer3[0].bn2.forward = lambda x: x


def in_inference_mode(m):
    with torch.inference_mode():
        m(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize('end', ('light', 'lean'))
@pytest.mark.parametrize('change', (
    untracked, bypassed, run_twice, replaced_outputs, fails_half_way, shared_layer, runs_inside_of_itself, counts_more,
    frozen_parts, checkpointed, in_inference_mode), ids=lambda f: f.__name__)
def test_a_layer_that_was_changed_has_torchs_count(change, end):
    """Between steps and copies, and where the change is made twice."""
    results = []
    for name in ('timm', end):
        set_block_end(name)
        torch.manual_seed(1)
        model, seen = small().train(), []
        for action in (step, change, step, copy.deepcopy, step, copy.deepcopy, change, step):
            model = action(model) or model
            seen.append(counters(model))
        results.append((seen, model.fc.weight.grad.norm()))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('end', ('light', 'lean'))
@pytest.mark.parametrize('name', ('se', 'se.fc1', 'se.gate', 'bn2', 'act2', 'drop_path'))
def test_a_layer_whose_forward_was_replaced_runs_it(name, end):
    def scaled():
        m = small().double().train()
        if name == 'drop_path':
            m.layer2[1].drop_path = nn.Identity()
        layer = m.layer2[1].get_submodule(name)
        layer.forward = lambda x, forward=layer.forward: 0.5 * forward(x)
        return m
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    own, timms = (numbers(scaled(), x, block_end) for block_end in (end, 'timm'))
    for key in timms:
        torch.testing.assert_close(own[key], timms[key], msg=key)
    model, outputs = scaled().eval(), []
    for block_end in (end, 'timm'):
        set_block_end(block_end)
        with torch.no_grad():
            outputs.append(model(x))
    torch.testing.assert_close(*outputs)


def test_a_drop_path_that_trains_beside_frozen_batch_norms():
    model, outputs = small(drop_path_rate=0.5).double().eval(), []
    for m in model.modules():
        m.train(isinstance(m, DropPath))
    for block_end in ('light', 'timm'):
        set_block_end(block_end)
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(model(torch.ones(8, 3, 32, 32, dtype=torch.float64)))
    torch.testing.assert_close(*outputs)
    assert (outputs[1][0] - outputs[1]).abs().max() > 1e-3, 'nothing was dropped'


def test_average_and_other_holders_see_the_counters():
    model = small().train()
    average, held = ModelEmaV3(model, decay=0.5), dict(model.named_buffers())  # DDP holds them as well
    copied = copy.deepcopy(model)
    for _ in range(3):
        step(model)
    average.update(model)
    assert set(counters(model).values()) == {3} == {int(held[n]) for n in counters(model)}
    assert set(counters(average.module).values()) == {3} and set(counters(copied).values()) == {0}
    step(copied)
    assert set(counters(copied).values()) == {1} and set(counters(model).values()) == {3}
    assert list(model.state_dict()) == list(timm.create_model(
        'seresnet18_ascend', num_classes=5, channels=(16, 32, 48, 64)).state_dict())


def test_one_addition_counts_all():
    model = small().train()
    step(model)
    model.zero_grad()
    with step_count.Count() as count:
        F.cross_entropy(model(torch.zeros(2, 3, 32, 32)), torch.zeros(2, dtype=torch.long)).backward()
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert count.operators['aten.add_.Tensor'] == 1 and layers == 21
