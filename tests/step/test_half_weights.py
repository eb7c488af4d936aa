"""AMP level O2: fp16 weights and activations, float32 masters and BatchNorm, fp16 gradients between ranks."""
import copy
import csv

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT, run_cli, subset, train_flags
from timm_scripts import TIMM_SCRIPTS
from training import load

from seresnet_timm.errors import UsageError
from seresnet_timm.step.half_weights import use_half_weights

pytestmark = pytest.mark.preloaded

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4
NARROWER = {'channels': (64, 64, 128, 256)}  # the CPU computes in fp16 slowly


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('seresnet18_ascend', num_classes=4, **NARROWER)


def test_masters_are_float32_and_weights_half(model):
    """The parameters stay float32, under their names; every convolution sees and returns fp16."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    half = use_half_weights(model)
    seen = {}
    for name, module in half.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)):
            def note(m, i, o, name=name):
                seen[name] = i[0].dtype, o.dtype
            module.register_forward_hook(note)
    loss = F.cross_entropy(half(X), Y)
    loss.backward()
    assert len(seen) == 57 and set(seen.values()) == {(torch.float16, torch.float16)}
    assert loss.dtype == torch.float32
    after = half.state_dict()
    assert after.keys() == before.keys()
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in half.parameters())
    assert all(torch.equal(after[k], before[k]) for k in after if 'running' not in k and 'num_batches' not in k)


def test_agrees_with_float32(model):
    """Logits to 1 % and the gradient's direction to 1 %: fp16 has 11 bits."""
    half = use_half_weights(copy.deepcopy(model)).eval()
    model.eval()
    gradients = []
    for net in (model, half):
        F.cross_entropy(net(X), Y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(half(X), model(X), rtol=1e-2, atol=1e-2)
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_weights_are_rounded_once(model):
    """Equal to computing with weights that are rounded to fp16 beforehand: an update smaller than that is kept."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for p in rounded.parameters():
            if p.ndim > 1:
                p.copy_(p.half().float())
    a, b = use_half_weights(model).eval(), use_half_weights(rounded).eval()
    assert torch.equal(a(X), b(X))
    master = a.conv1.weight
    value = master.detach().clone()
    with torch.no_grad():
        master.add_(1e-6)  # far below fp16's resolution at this size
    assert not torch.equal(master, value)


def test_deep_copy_and_checkpoint(model):
    half = use_half_weights(model).eval()
    clone = copy.deepcopy(half)  # as the moving average does
    assert torch.equal(clone(X), half(X))
    plain = timm.create_model('seresnet18_ascend', num_classes=4, **NARROWER)
    plain.load_state_dict(half.state_dict())
    assert torch.equal(plain.conv1.weight, half.conv1.weight)


def test_other_networks_are_refused():
    with pytest.raises(UsageError, match='--amp-level O2 is for networks of convolutions.*use --amp-level O1'):
        use_half_weights(timm.create_model('convnext_atto'))


SCRIPTS = ['bundled', ROOT / 'tests' / 'small_scripts', *([TIMM_SCRIPTS] if TIMM_SCRIPTS else [])]


@pytest.mark.slow
@pytest.mark.parametrize('scripts', SCRIPTS, ids=('bundled', 'small', 'timm')[:len(SCRIPTS)])
def test_training_on_two_processes(digits, tmp_path, scripts):
    """With a fixed loss scale: near float32's losses, float32 in the checkpoint, the same on both ranks."""
    data = subset(digits, tmp_path / 'data', 2, 1)
    losses = {}
    for level in ('O0', 'O2'):
        output = tmp_path / level
        result = run_cli(*train_flags(
            data, output, '--scripts', scripts, '--nproc', 2, '-b', 5, '--epochs', 1, '--lr', 1e-4,
            '--img-size', 16, '--amp-level', level, '--loss-scale', 128, '--no-aug'), timeout=280)
        assert result.returncode == 0, result.stderr
        with open(output / 'run' / 'summary.csv', newline='') as f:
            losses[level] = float(next(csv.DictReader(f))['train_loss'])
        checkpoint = load(output / 'run' / 'last.pth.tar')
        assert {v.dtype for k, v in checkpoint['state_dict'].items() if 'num_batches' not in k} == {torch.float32}
    assert 'precision      O2: fp16 weights, float32 masters and BatchNorm' in result.stderr
    assert checkpoint['amp_scaler']['scale'] == 128
    assert losses['O2'] == pytest.approx(losses['O0'], rel=0.02) and losses['O2'] != losses['O0']
