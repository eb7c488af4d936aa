"""torch_npu's means against faults: what a release has, wrong values, and what is said of those that are set."""
import os
import sys

import pytest
import torch
from conftest import ROOT

from seresnet_timm.ascend import environment, fault_tolerance, hccl, setup
from seresnet_timm.doctor import probe_processes
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import devices


def test_what_a_release_has(tmp_path):
    """By the names in its library and sources; a longer name is another one."""
    (tmp_path / 'lib').mkdir()
    (tmp_path / 'utils').mkdir()
    (tmp_path / 'lib' / 'libtorch_npu.so').write_bytes(
        b'\0TORCH_HCCL_ASYNC_ERROR_HANDLING\0ACL_DEVICE_SYNC_TIMEOUT must be positive.\0XOOM_SNAPSHOT_ENABLE\0')
    (tmp_path / 'utils' / '_step.py').write_text('asd = os.getenv("NPU_ASD_CONFIG", None)\n')
    (tmp_path / 'utils' / 'empty.py').touch()
    names = ('TORCH_HCCL_ASYNC_ERROR_HANDLING', 'ACL_DEVICE_SYNC_TIMEOUT', 'NPU_ASD_CONFIG',
             'HCCL_ASYNC_ERROR_HANDLING', 'OOM_SNAPSHOT_ENABLE', 'NPU_ASD_ENABLE', 'NPU_ASD')
    assert [fault_tolerance.knows(name, tmp_path) for name in names] == [True] * 3 + [False] * 4


@pytest.mark.parametrize('environ, words', (
    ({'NPU_ASD_CONFIG': 'enable:yes'}, 'enable is true or false, got yes'),
    ({'NPU_ASD_CONFIG': 'enable:True'}, 'enable is true or false, got True'),
    ({'NPU_ASD_CONFIG': 'enable:true,with_checksum:1'}, 'with_checksum is true or false, got 1'),
    ({'NPU_ASD_CONFIG': 'true'}, 'switches nothing on: write NPU_ASD_CONFIG=enable:true'),
    ({'NPU_ASD_CONFIG': ''}, 'switches nothing on'),
    ({'NPU_ASD_ENABLE': '4'}, "NPU_ASD_ENABLE='4' is not a number from 0 to 3"),
    ({'OOM_SNAPSHOT_ENABLE': 'true'}, "OOM_SNAPSHOT_ENABLE='true' is not 0 or 1"),
    ({'HCCL_ASYNC_ERROR_HANDLING': 'off'}, "HCCL_ASYNC_ERROR_HANDLING='off' is not 0 or 1")))
def test_wrong_values(environ, words, monkeypatch):
    """Refused before torch is imported, which loads torch_npu."""
    monkeypatch.setattr(setup.importlib.util, 'find_spec', lambda name: True)
    with pytest.raises(UsageError) as error:
        setup.set_environment(dict(environ))
    assert words in str(error.value) and str(error.value).endswith('.')


@pytest.mark.parametrize('environ, dtypes, words', (
    ({'NPU_ASD_CONFIG': 'enable:true'}, ['float16'], 'this run computes in float16'),
    ({'NPU_ASD_ENABLE': '1'}, [None, 'float16'], 'NPU_ASD_ENABLE looks for silent corruption in bfloat16 and'),
    ({'NPU_ASD_CONFIG': 'enable:true'}, ['bfloat16'], 'NPU_ASD_CONFIG=enable:true: torch_npu looks for'),
    ({'OOM_SNAPSHOT_ENABLE': '1'}, [None], 'into the current folder (OOM_SNAPSHOT_PATH)'),
    ({'OOM_SNAPSHOT_ENABLE': '1', 'OOM_SNAPSHOT_PATH': '/x'}, [None], 'into /x ('),
    ({'TORCH_HCCL_ASYNC_ERROR_HANDLING': '0'}, [None], "switches torch_npu's watchdog off"),
    ({'HCCL_ASYNC_ERROR_HANDLING': '0'}, [None], "switches torch_npu's watchdog off")))
def test_said_of_what_is_set(environ, dtypes, words):
    notes = fault_tolerance.describe_set(environ, dtypes)
    assert len(notes) == 1 and words in notes[0] and notes[0].endswith('.')
    assert not list(fault_tolerance.wrong_values(environ))


def test_nothing_is_said_of_defaults():
    environ = {'NPU_ASD_CONFIG': 'enable:false', 'OOM_SNAPSHOT_ENABLE': '0', 'TORCH_HCCL_ASYNC_ERROR_HANDLING': '1'}
    assert fault_tolerance.describe_set(environ, ['float16']) == [] == list(fault_tolerance.wrong_values(environ))


def raises(text):
    raise RuntimeError(text)


@pytest.mark.parametrize('npu, expected', (
    ({'stress_detect': lambda detect_type='aic': 0}, (0, '')),
    ({'stress_detect': lambda: 2}, (2, '')),
    ({'stress_detect': lambda kind: raises('aclStressDetect not found\nERR00008')}, (1, 'aclStressDetect not found')),
    ({}, (None, 'this torch_npu has no stress_detect'))))
def test_stress_detection(npu, expected, monkeypatch):
    functions = {'set_device': lambda index: None, **npu}
    module = type('npu', (), {name: staticmethod(function) for name, function in functions.items()})
    monkeypatch.setattr(torch, 'npu', module, raising=False)
    monkeypatch.setitem(sys.modules, 'torch_npu', module)
    assert fault_tolerance.stress_detect(1) == expected


@pytest.mark.parametrize('result, remark, status, words', (
    (0, '', 'ok', 'no fault found'), (1, 'no function', 'warning', 'not tested: no function'),
    (2, '', 'error', 'a fault of the hardware was found')))
def test_doctor_says_it_of_every_npu(result, remark, status, words, monkeypatch):
    from types import SimpleNamespace

    from seresnet_timm.doctor import stress
    from seresnet_timm.doctor.probe_processes import Probe
    monkeypatch.setattr(stress, 'run_probe', lambda what, environ, index, timeout: Probe(
        {'result': result if index else 0, 'remark': remark}, None))
    checks = stress.run_stress_detection(SimpleNamespace(environ={}, npus=[1, 2]), 'npu')
    assert [c.name for c in checks] == ['npu:0', 'npu:1'] and checks[0].status == 'ok'
    assert (checks[1].status, checks[1].value) == (status, words)
    assert [c.name for c in stress.run_stress_detection(SimpleNamespace(environ={}, npus=[1, 2]), 'npu:1')] == ['npu:1']
    assert stress.run_stress_detection(SimpleNamespace(), 'cpu')[0].status == 'note'


def test_the_probe_reports(tmp_path):
    """A process of its own, whose torch_npu finds a fault."""
    (tmp_path / 'torch.py').write_text(
        'class npu:\n    set_device = staticmethod(lambda i: None)\n    stress_detect = staticmethod(lambda kind: 2)\n')
    (tmp_path / 'torch_npu.py').touch()
    probe = probe_processes.run_probe('stress', {**os.environ, 'PYTHONPATH': str(tmp_path)}, 1, timeout=60)
    assert probe.data == {'result': 2, 'remark': ''}, probe.failure


def test_the_table_of_the_docs_is_the_code():
    """Every variable that the package sets, checks or names; `python -c "...; print(as_table())"` prints the table."""
    text = (ROOT / 'docs' / 'ascend-environment.md').read_text(encoding='utf-8')
    assert environment.as_table() in text
    named = {*hccl.VARIABLES, *fault_tolerance.OFFERED, *fault_tolerance.WATCHDOG, fault_tolerance.OLD_ASD,
             setup.RANK_TABLE, devices.VISIBLE['npu']}
    assert named <= {*environment.VARIABLES, *environment.CHECKED}
    assert not set(environment.VARIABLES) & set(environment.CHECKED)
    expected = {'TASK_QUEUE_ENABLE': '2', 'HCCL_CONNECT_TIMEOUT': '1800'}
    assert {n: v.recommended for n, v in environment.VARIABLES.items() if v.recommended} == expected
