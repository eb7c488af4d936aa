"""BatchNorm folded into the convolutions for evaluation: the same network."""
import json
import sys

import pytest
import timm
import torch
import torch.nn as nn
from conftest import ROOT
from timm_scripts import TIMM_SCRIPTS

import seresnet_timm  # noqa: F401  (registers the models)
from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError
from seresnet_timm.step.fuse_bn import decide_fuse_bn, fuse_batch_norms


def trained_like(model: nn.Module) -> nn.Module:
    """BatchNorms that do something."""
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in ((m.weight, .5, 1.5), (m.bias, -.5, .5), (m.running_mean, -.5, .5),
                                 (m.running_var, .5, 2.)):
                nn.init.uniform_(t, low, high)
    return model.eval()


# plain, basic blocks, deep stem with average pooling in the shortcut, anti-aliasing, groups
@pytest.mark.parametrize('name, layers', (
    ('seresnet50_ascend', 53), ('seresnet18_ascend', 20), ('resnet26d', 31), ('resnetaa50', 53),
    ('resnext50_32x4d', 53)))
def test_folded_network_is_the_same(name, layers):
    model = trained_like(timm.create_model(name, num_classes=7))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(x)
        assert fuse_batch_norms(model) == layers
        after = model(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * before.abs().max().item())


def test_when_it_is_folded():
    def decide(network, mode, device, amp=False):
        return decide_fuse_bn(network, mode, device, dict(amp=amp, model_dtype=None, model='m'))[0]
    model = timm.create_model('seresnet18_ascend')
    assert decide(model, 'auto', 'cpu')
    assert not decide(model, 'off', 'cpu')
    assert not decide(model, 'auto', 'npu:1')
    assert not decide(model, 'auto', 'cuda', amp=True)
    assert decide(model, 'on', 'npu', amp=True)
    other = timm.create_model('test_vit')
    assert not decide(other, 'auto', 'cpu')
    with pytest.raises(UsageError, match="timm's ResNets"):
        decide(other, 'on', 'cpu')


@pytest.mark.parametrize('scripts', ('bundled', str(ROOT / 'tests' / 'small_scripts'), pytest.param(
    TIMM_SCRIPTS, marks=pytest.mark.skipif(not TIMM_SCRIPTS, reason='TIMM_SCRIPTS does not name a folder'))),
    ids=('bundled', 'small', 'timm'))
def test_evaluation_has_the_same_results(few_digits, tmp_path, scripts, monkeypatch, capsys, caplog):
    checkpoint = tmp_path / 'weights.pth'
    torch.save(trained_like(timm.create_model('seresnet18_ascend', num_classes=10)).state_dict(), checkpoint)
    flags = ['--data-dir', few_digits, '--checkpoint', checkpoint, '--model', 'seresnet18_ascend', '--num-classes', 10,
             '--img-size', 32, '--crop-pct', '1.0', '--split', 'val', '--workers', 0, '-b', 16, '--device', 'cpu',
             '--scripts', scripts]
    monkeypatch.setattr(sys, 'argv', sys.argv)  # timm's script gets its own
    results = []
    for mode in ('auto', 'off'):
        caplog.clear()
        with caplog.at_level('INFO'):
            main(['validate', *map(str, flags), '--fuse-bn', mode])
        assert ('20 BatchNorm layers folded' if mode == 'auto' else 'not folded (--fuse-bn off)') in caplog.text
        results.append(json.loads(capsys.readouterr().out.split('--result')[1]))
    assert results[0] == pytest.approx(results[1], abs=1e-4)
