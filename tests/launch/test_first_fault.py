"""Which rank is named when several ended: not those that torchrun ended after the first failure."""
import json
from types import SimpleNamespace

import pytest

from seresnet_timm.launch.processes import _first_fault

LOST = 'RunError: npu:0 lost contact with the other ranks: Hccl timeout'


@pytest.mark.parametrize('exitcode, seconds_later, guilty', (
    (-9, 30, 0),  # hangs: SIGTERM and, 30 s later, SIGKILL
    (-15, 0, 0),
    (143, 1, 0),
    (-9, 0, 1),  # out of memory, which rank 0 noticed at once
    (-11, 0, 1),
))
def test_a_rank_that_torchrun_ended_is_not_the_fault(tmp_path, monkeypatch, exitcode, seconds_later, guilty):
    monkeypatch.setattr('seresnet_timm.launch.processes.is_consequence', lambda text: 'lost contact' in text)
    (tmp_path / '0').mkdir()
    file = tmp_path / '0' / 'error.json'
    file.write_text(json.dumps({'message': {'message': LOST, 'extraInfo': {'py_callstack': LOST, 'timestamp': '100'}}}))
    failures = {0: SimpleNamespace(exitcode=1, timestamp=100, error_file=str(file)),
                1: SimpleNamespace(exitcode=exitcode, timestamp=100 + seconds_later, error_file='<N/A>')}
    error = SimpleNamespace(failures=failures, get_first_failure=lambda: (0, failures[0]))
    assert _first_fault(SimpleNamespace(nproc=2), SimpleNamespace(rank=0), error)[0] == guilty
