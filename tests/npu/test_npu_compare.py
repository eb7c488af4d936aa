"""`compare` of the CPU with an NPU: the emulator computes as the CPU does, so a fault is put in where it does not."""
import json

import pytest
import torch
import torch.nn as nn
from conftest import run_here

from seresnet_timm.inference import compare_verb

NET = ('--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)', 'layers=(1,1,1,1)', '--num-classes',
       10, '--img-size', 32)


@pytest.fixture
def faulty(monkeypatch):
    """One BatchNorm rounds to half on npu only."""
    make, right = compare_verb.untrained_model, nn.BatchNorm2d.forward

    def marked(*args):
        loaded = make(*args)
        loaded.model.layer3[0].bn1.rounds = True
        return loaded

    def forward(self, x):
        result = right(self, x)
        return result.half().float() if x.device.type == 'npu' and hasattr(self, 'rounds') else result
    monkeypatch.setattr(compare_verb, 'untrained_model', marked)
    monkeypatch.setattr(nn.BatchNorm2d, 'forward', forward)


@pytest.mark.parametrize('flags', [(), ('--precision', 'amp'), ('--hf32', '--eval')])
def test_cpu_and_npu_are_equal(flags):
    result = run_here('compare', *NET, '--device', 'npu', *flags)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert 'npu (Ascend910B1)' in result.stdout and 'torch_npu' in result.stdout
    assert torch.npu.conv.allow_hf32 == ('--hf32' in flags)


def test_the_module_that_is_wrong_on_npu_is_named(faulty):
    result = run_here('compare', *NET, '--device', 'npu', '--json')
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr
    report = json.loads(result.stdout)
    for direction, what in (('forward', 'output'), ('backward', 'weight gradient')):
        found = report['first']['local'][direction]
        assert (found['module'], found['what']) == ('layer3.0.bn1', what)
    assert {p['module'] for p in report['local'] if p['differs']} == {'layer3.0.bn1'}


def test_dump_on_one_and_compare_on_the_other(faulty, tmp_path):
    file = tmp_path / 'dump'
    assert run_here('compare', *NET, '--device', 'npu', '--dump', file).returncode == 0
    result = run_here('compare', '--against', file, '--device', 'cpu', '--json')
    report = json.loads(result.stdout)
    assert result.returncode == 1 and 'npu' in report['reference'] and 'cpu' in report['tested']
    assert report['first']['local']['forward']['module'] == 'layer3.0.bn1'
