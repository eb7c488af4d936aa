"""`compare` names the module that is wrong, forward and backward, with figures that numpy gives too."""
import copy
import json
import math
import resource
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import NARROW, run_here

from seresnet_timm.inference import trace
from seresnet_timm.inference.compare import Arithmetic, Side, compare
from seresnet_timm.inference.compare_batch import Batch, synthetic_batch
from seresnet_timm.inference.trace import Settings, figures

CPU = torch.device('cpu')
NET = ('--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)', 'layers=(1,1,1,1)', '--num-classes',
       10, '--img-size', 32, '--device', 'cpu')


class RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.half().float()


class Odd(nn.Module):
    """What networks do besides calling one module after the other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.pair = Pair()
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(8, 8)
        self.frozen.weight.requires_grad_(False)
        self.fc = nn.Linear(8, 5)

    def between(self, x):
        return x * 1.5

    def forward(self, x):
        x = self.act(self.bn(self.stem(x)))
        x = self.twice(self.act(self.twice(x)))
        x, number = self.pair(x, scale=2)
        x += number
        x = F.relu(self.pool(self.between(x)), inplace=True)
        x = self.frozen(self.drop(x.mean((2, 3))))
        return self.fc(x), {'aux': x}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x, scale):
        return self.conv(x) * scale, torch.tensor(3)


def batch_of(size=16, count=4):
    return synthetic_batch((3, size, size), count, 0, 5)


def first(result, name='local'):
    """Module and kind of the first places that differ, forward and backward."""
    found = (result.first(name, False), result.first(name, True))
    return [d and (d.place.module, d.place.what) for d in found]


def compared(change, settings=None, network=None):
    """Compare the odd network with one that `change` was made to."""
    torch.manual_seed(0)
    reference = network or Odd()
    tested = copy.deepcopy(reference)
    change(tested)
    return compare(Side(reference, CPU), Side(tested, CPU), batch_of(), settings or Settings())


def rounding(name, backward_only=False):
    """A change: the module computes right, and rounds to half, its output or the gradient of its input."""
    def change(model):
        module = model.get_submodule(name)
        right = module.forward
        if backward_only:
            module.forward = lambda x, *args, **kwargs: right(RoundGradient.apply(x), *args, **kwargs)
        else:
            module.forward = lambda *args, **kwargs: right(*args, **kwargs).half().float()
    return change


def perturb(name):
    def change(model):
        with torch.no_grad():
            model.get_submodule(name).weight[0] *= 1.01
    return change


def test_equal():
    result = compared(lambda model: None)
    assert result.equal and first(result) == [None, None] and first(result, 'accumulated') == [None, None]
    places = {(d.place.module, d.place.call) for d in result.passes['local']}
    assert {('twice', 0), ('twice', 1), ('act', 1)} <= places
    assert any('1 layers are not called: unused' in note for note in result.notes)
    what = {(d.place.module, d.place.item) for d in result.passes['local'] if d.place.what == 'weight gradient'}
    assert ('twice', 'weight') in what and ('frozen', 'bias') in what and ('frozen', 'weight') not in what


@pytest.mark.parametrize('name', ['stem', 'bn', 'pair.conv', 'twice', 'frozen', 'fc'])
def test_a_wrong_weight_is_found(name):
    result = compared(perturb(name))
    assert not result.equal
    assert [(d.place.module, d.place.item) for d in result.weights if d.differs] == [(name, 'weight')]
    forward, backward = first(result)
    assert forward == (name, 'output')
    # the stem has no gradient of its input, in which alone its own weights are
    assert backward == (None if name == 'stem' else (name, 'input gradient'))


@pytest.mark.parametrize('name', ['stem', 'bn', 'act', 'twice', 'pair.conv', 'pool', 'fc'])
def test_a_module_that_rounds_is_found(name):
    result = compared(rounding(name))
    assert not result.equal and not any(d.differs for d in result.weights)
    forward, backward = first(result)
    assert forward == (name, 'output') and backward[0] == name
    wrong = {d.place.module for d in result.passes['local'] if d.differs}
    assert wrong == {name}, 'no error is handed on'


@pytest.mark.parametrize('name', ['bn', 'twice', 'pair.conv', 'fc'])
def test_a_wrong_gradient_is_found(name):
    result = compared(rounding(name, backward_only=True))
    assert first(result)[1] == (name, 'input gradient')
    assert not any(d.differs and d.place.what == 'output' for d in result.passes['local'])


def test_operations_between_modules():
    def change(model):
        model.between = lambda x: (x * 1.5).half().float()
    result = compared(change)
    assert first(result) == [('pool', 'input'), ('pair', 'output gradient')]
    assert {d.place.module for d in result.passes['local'] if d.differs} == {'pool', 'pair'}


def test_not_finite_is_named_first():
    def change(model):
        right = model.bn.forward
        model.bn.forward = lambda x: right(x).index_fill(0, torch.tensor([1]), math.nan)
    result = compared(change)
    found = result.first('local', False)
    assert found.place.module == 'bn' and found.figures.not_finite == 8 * 16 * 16
    assert not found.figures.reference_not_finite
    assert result.first('accumulated', False).place.module == 'bn'


def test_missing_gradient_and_module():
    def detach(model):
        right = model.fc.forward
        model.fc.forward = lambda x: right(x.detach())
    found = compared(detach).first('local', True)
    assert (found.place.module, found.place.what, found.problem) == ('fc', 'input gradient', 'missing')

    def skip(model):
        model.twice.forward, right = (lambda x: x), model.twice.forward  # noqa: F841
        model.act = nn.Identity()
    result = compared(skip)
    assert first(result)[0] == ('act', 'output')

    def freeze(model):
        model.bn.weight.requires_grad_(False)
    result = compared(freeze)
    found, = [d for d in result.passes['local'] if d.differs]
    assert (found.place.module, found.place.what, found.place.item) == ('bn', 'weight gradient', 'weight')


def test_modes_of_batch_norm():
    """In evaluation mode the running statistics count, which training mode does not look at."""
    def change(model):
        model.bn.running_mean += 0.5
    assert first(compared(change, Settings(training=False)))[0] == ('bn', 'output')
    result = compared(change)
    assert {(d.place.module, d.place.what) for d in result.passes['local'] if d.differs} == {('bn', 'buffer')}


def test_figures_are_numpys():
    """Of a real pass, where a weight of the stem is wrong: computed anew from outputs of the plain networks."""
    torch.manual_seed(0)
    reference, batch = Odd(), batch_of()
    tested = copy.deepcopy(reference)
    perturb('stem')(tested)
    result = compare(Side(reference, CPU), Side(tested, CPU), batch)
    outputs = {}
    for side, model in (('a', copy.deepcopy(reference)), ('b', copy.deepcopy(tested))):
        model.drop.p = 0.
        model.bn.register_forward_hook(lambda m, i, o, side=side: outputs.update({side: o.detach().numpy().copy()}))
        outputs[f'{side} logits'] = model.train()(batch.images)[0].detach().numpy()
    for name, a, b in (('bn', outputs['a'], outputs['b']), ('fc', outputs['a logits'], outputs['b logits'])):
        a, b = a.astype(np.float64), b.astype(np.float64)
        found, = [d for d in result.passes['accumulated'] if d.place.module == name and d.place.what == 'output']
        assert found.figures.max == pytest.approx(np.abs(b - a).max() / np.abs(a).max(), rel=1e-3)
        assert found.figures.mean == pytest.approx(np.abs(b - a).mean() / np.abs(a).mean(), rel=1e-3)
        cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        assert found.figures.cosine == pytest.approx(cosine, rel=1e-9)


@pytest.mark.parametrize('a, b, expected', [
    ([1., -2.], [1., -2.], (0, 0, 1)),
    ([0., 0.], [0., 0.], (0, 0, 1)),
    ([0., 0.], [0., 1e-9], (math.inf, math.inf, 0)),
    ([1., math.inf], [1., math.inf], (0, 0, 1)),
    ([1., math.nan], [1.5, math.nan], (.5, .5, 1)),
    ([1., 2.], [1., math.nan], (math.inf, math.inf, math.nan)),
    ([1., math.inf], [1., -math.inf], (math.inf, math.inf, math.nan)),
    ([], [], (0, 0, 1)),
])
def test_figures_of_odd_values(a, b, expected):
    found = figures(torch.tensor(a), torch.tensor(b))
    assert (found.max, found.mean, found.cosine) == pytest.approx(expected, nan_ok=True)


def test_marks_change_nothing():
    """Outputs, gradients and buffers of a pass with marks are those of the plain network; in-place ReLUs too."""
    torch.manual_seed(0)
    model, batch = timm.create_model('seresnet18', num_classes=5, **NARROW), batch_of(32)
    plain = copy.deepcopy(model).train()
    loss = F.cross_entropy(plain(batch.images), batch.targets)
    loss.backward()
    seen = {}

    class Keep(trace.Pass):
        def value(self, place, x):
            seen[place] = x.detach().clone()
            return x.clone()

        def gradient(self, place, grad):
            return grad

        def last(self, place, x):
            seen[place.module, place.item] = x.clone()
    trace.run(model, batch.images, batch.targets, Keep(), Settings())
    for name, x in [*plain.named_buffers(), *((n, p.grad) for n, p in plain.named_parameters())]:
        module, _, item = name.rpartition('.')
        assert torch.equal(seen[module, item], x), name


@pytest.mark.parametrize('network', ['odd', pytest.param('seresnet18_ascend', marks=pytest.mark.slow)])
@pytest.mark.parametrize('precision', ['float16', 'bfloat16', 'amp'])
def test_half_precision_is_within_tolerance_and_a_fault_is_not(precision, network):
    torch.manual_seed(0)
    is_odd = network == 'odd'
    model = Odd() if is_odd else timm.create_model(network, num_classes=5, **NARROW)
    batch, half = batch_of(16 if is_odd else 64), Arithmetic(precision)
    assert compare(Side(model, CPU), Side(model, CPU, half), batch).equal
    wrong, name = copy.deepcopy(model), 'pair.conv' if is_odd else 'layer2.0.conv2'
    module = wrong.get_submodule(name)
    right = module.forward
    module.forward = lambda x: right(x) * 1.1
    assert first(compare(Side(model, CPU), Side(wrong, CPU, half), batch))[0] == (name, 'output')


def test_memory_is_given_back_and_the_network_unchanged():
    torch.manual_seed(0)
    model = Odd().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compare(Side(model, CPU), Side(model, CPU, Arithmetic('bfloat16')), batch_of())
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_batch_of_other_networks():
    """No gradient of an output: it is said, with the way out."""
    model = Odd().requires_grad_(False)
    batch = Batch(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]), '')
    with pytest.raises(Exception, match='--forward-only'):
        compare(Side(model, CPU), Side(model, CPU), batch)
    assert compare(Side(model, CPU), Side(model, CPU), batch, Settings(backward=False)).equal


# --- the command line -------------------------------------------------------------------------------------------------

def test_verb_text_and_json():
    result = run_here('compare', *NET, '--precision', 'bfloat16', '--json', '-b', 16)
    assert result.returncode == 0, result.stdout[:3000] + result.stderr
    report = json.loads(result.stdout)
    assert report['equal'] is True and 'bfloat16' in report['tested'] and 'float32' in report['reference']
    assert report['first']['local'] == {'forward': None, 'backward': None}
    assert {p['what'] for p in report['local']} == {
        'input', 'output', 'input gradient', 'output gradient', 'weight gradient', 'buffer'}
    strict = run_here(
        'compare', *NET, '--precision', 'bfloat16', '--rtol', 1e-7, '--forward-only', '--eval', '--top', 3)
    assert strict.returncode == 1 and 'They differ.' in strict.stdout and 'evaluation mode' in strict.stdout
    assert 'cannot be judged' not in strict.stdout
    loose = run_here('compare', *NET, '--precision', 'bfloat16', '--rtol', 1, '--forward-only', '--eval')
    assert 'of them cannot be judged: rounding alone can change the whole value' in loose.stdout


def test_dump_and_against(tmp_path):
    file = tmp_path / 'dump.safetensors'
    result = run_here('compare', *NET, '--dump', file)
    assert result.returncode == 0, result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['dump.safetensors']
    result = run_here('compare', '--against', file, '--device', 'cpu')
    assert result.returncode == 0 and 'Equal within tolerance.' in result.stdout, result.stdout + result.stderr
    result = run_here('compare', '--against', file, '--device', 'cpu', '--precision', 'amp', '--amp-dtype', 'bfloat16')
    assert result.returncode == 0, result.stdout + result.stderr

    damaged = tmp_path / 'damaged.safetensors'
    damaged.write_bytes(file.read_bytes()[:-100])
    for bad in (damaged, tmp_path / 'none.safetensors', __file__):
        result = run_here('compare', '--against', bad, '--device', 'cpu')
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr


def test_two_checkpoints(tmp_path):
    torch.manual_seed(0)
    kwargs = {**NARROW, 'layers': (1, 1, 1, 1)}
    model = timm.create_model('seresnet18_ascend', num_classes=10, **kwargs)
    arguments = {'model': 'seresnet18_ascend', 'num_classes': 10, 'img_size': 32, 'model_kwargs': kwargs}
    torch.save({'state_dict': model.state_dict(), 'arch': 'seresnet18_ascend', 'args': arguments}, tmp_path / 'a.pth')
    with torch.no_grad():
        model.layer3[0].bn1.weight *= 1.01
    torch.save({'state_dict': model.state_dict(), 'arch': 'seresnet18_ascend', 'args': arguments}, tmp_path / 'b.pth')
    pair = (tmp_path / 'a.pth', tmp_path / 'b.pth')
    result = run_here('compare', *pair, '--device', 'cpu', '--json')
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    assert [(w['module'], w['item']) for w in report['weights'] if w['differs']] == [('layer3.0.bn1', 'weight')]
    assert report['first']['local']['forward']['module'] == 'layer3.0.bn1'
    assert run_here('compare', pair[0], pair[0], '--device', 'cpu').returncode == 0


@pytest.mark.parametrize('argv, said', [
    (['--device', 'cpu'], 'Name a MODEL'),
    (['a', 'b', 'c'], '3 models are named'),
    ([*NET, '--hf32'], '--hf32 is for npu and cuda'),
    ([*NET, '--loss-scale', '8'], '--loss-scale is for gradients in float16'),
    ([*NET, '--amp-dtype', 'bfloat16'], '--amp-dtype is for --precision amp'),
    ([*NET, '-b', '0'], 'too small'),
    (['--against', 'x', '-b', '2'], '-b is taken from the file'),
    (['--against', 'x', '--dump', 'y'], 'give one of them'),
    (['no_such_model', '--device', 'cpu'], 'no_such_model'), (['--against', 'x'], '--against x does not exist'),
    ([*NET, '--dump', '/no/such/folder/x'], 'cannot be written'),
])
def test_wrong_flags(argv, said):
    result = run_here('compare', *argv)
    assert result.returncode == 2 and said in result.stderr, result.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)  # four minutes where other tests run beside it
def test_memory_of_seresnet50():
    """At 224 pixels and two images: within 2 GB, torch included."""
    code = ('import resource, sys; from seresnet_timm.cli.main import main\n'
            "main(['compare', '--model', 'seresnet50_ascend', '--device', 'cpu'])\n"
            'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert int(result.stdout.splitlines()[-1]) < 2_000_000, resource.getrusage(resource.RUSAGE_CHILDREN)


@pytest.mark.parametrize('value', ('channels=x', 'num_classes=', 'layers=3'))
def test_arguments_of_another_kind(value):
    result = run_here('compare', '--model', 'seresnet18_ascend', '--model-kwargs', value, '--device', 'cpu')
    assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr


def test_two_equal_sides_are_told():
    result = run_here('compare', *NET, '--device', 'cpu', '--forward-only')
    assert result.returncode == 0 and 'they can only be equal' in result.stdout
    result = run_here('compare', *NET, '--device', 'cpu', '--forward-only', '--precision', 'bfloat16')
    assert 'they can only be equal' not in result.stdout
