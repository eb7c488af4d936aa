"""Tests on an emulated Ascend server: `make test-npu`, in an environment of their own (tests/ascend_emulator).

What runs here is torch_npu's own code; arithmetic is the CPU's. Nothing is learnt of Ascend's kernels or speed.
"""
import importlib.util
import os
import sys
from importlib.metadata import entry_points, version

import pytest

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(__file__)), 'ascend'))  # for the contract's test
HAS_TORCH_NPU = importlib.util.find_spec('torch_npu') is not None
if HAS_TORCH_NPU:
    assert 'torch' not in sys.modules, 'a plugin of pytest has imported torch before the emulator was there'
    import ascend_emulator
    ascend_emulator.start()
else:
    collect_ignore_glob = ['test_*.py']  # the header says why


def pytest_report_header():
    if not HAS_TORCH_NPU:
        return 'tests/npu: NOT RUN, torch_npu is not in this environment: make test-npu'
    assert entry_points(group='torch.backends', name='ascend_emulator')
    return (f'emulated Ascend: {os.environ["ASCEND_EMULATOR"]}, torch {version("torch")}, torch_npu '
            f'{version("torch_npu")}')


@pytest.fixture(autouse=True)
def _cached_memory_is_given_back():
    yield
    import torch
    if torch.npu.is_initialized():
        torch.npu.empty_cache()
