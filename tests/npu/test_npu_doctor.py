"""`doctor` on an emulated server, and the contract with the torch_npu that is installed here."""
import json
import sys

import ascend_emulator
import preloaded
import pytest
from conftest import run_here
from test_torch_npu_contract import test_extract_is_what_the_wheels_say  # noqa: F401  (runs here, with a real torch_npu)

from npu.ranks import npu_cli

pytestmark = pytest.mark.preloaded


def test_doctor_computes_on_every_npu(monkeypatch):
    """Its processes start in the preloaded Python here, anew in the test below."""
    monkeypatch.setattr(sys, 'executable', preloaded.python())
    for name, value in preloaded.environment(ascend_emulator.environment(devices=2)).items():
        monkeypatch.setenv(name, value)
    result = run_here('doctor', '--json', '--seconds', 0.3)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report['ok'] is True and report['device'] == 'npu'
    found = {(c['section'], c['name']): c['value'] for c in report['checks'] if c['status'] == 'ok'}
    assert '2 x Ascend910B1' in found['devices', 'npu']
    assert 'pairs with this torch' in found['versions', 'torch_npu']
    for device in ('npu:0', 'npu:1'):
        assert 'float32 products' in found['smoke test', device] and 'all-reduce of 2 over HCCL' in (
            found['smoke test', device])


@pytest.mark.slow
def test_doctor_names_a_device_that_fails():
    result = npu_cli('doctor', '--seconds', 0.3, devices=2, fault='device_lost:rank=1:after=3')
    assert result.returncode == 1
    assert 'npu:1' in result.stdout and '507010' in result.stdout
    assert 'a training on npu would fail here' in result.stderr
