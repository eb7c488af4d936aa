"""Which rank of a node is shown when several failed: the one to blame, not one that lost contact with it."""
import json
import os
from types import SimpleNamespace

import pytest
from ascend.npu_texts import call, out_of_memory, waits

from seresnet_timm.launch.plan import Node
from seresnet_timm.launch.processes import _first_fault, _write_pids
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.step import heartbeat

LOST = waits(0, remote=1)
GLOO = 'RuntimeError: [pair.cc:534] Connection closed by peer [127.0.0.1]:4242'
SENTENCE = 'RunError: npu:0 lost contact with the other ranks: rank 1 did not take part in a collective in time.'


def settings(nproc=3) -> RunSettings:
    return RunSettings(verb='train', script=Script('train.py'), args={}, nproc=nproc, world_size=nproc)


def failed(folder, texts, known, exitcodes=None):
    """torchrun's error: `texts` by local rank; it knows the ranks `known`, in the order of time."""
    for rank, text in texts.items():
        file = folder / str(rank) / 'error.json'
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({'message': {'message': text.splitlines()[0], 'extraInfo': {
            'py_callstack': text, 'timestamp': '1'}}}))
    failures = {rank: SimpleNamespace(exitcode=(exitcodes or {}).get(rank, 1), timestamp=i,
                                      error_file=str(folder / str(rank) / 'error.json')) for i,
                                      rank in enumerate(known)}
    first = known[0]
    return SimpleNamespace(failures=failures, get_first_failure=lambda: (first, failures[first]))


@pytest.mark.parametrize('lost', [LOST, GLOO, SENTENCE])
@pytest.mark.parametrize('cause', [
    f'RuntimeError: {out_of_memory(1)}', call('NPU', 'x', 507015), 'ValueError: bad label', 'UsageError: no such file'])
def test_rank_to_blame(tmp_path, lost, cause):
    error = failed(tmp_path, {0: lost, 1: cause}, known=[0, 1])
    assert _first_fault(settings(), Node(), error)[0] == 1


def test_rank_that_failed_while_torchrun_ended_the_others(tmp_path):
    rank, failure = _first_fault(settings(), Node(), failed(tmp_path, {0: LOST, 2: 'ValueError: x'}, known=[0]))
    assert rank == 2 and failure.error_file.endswith('2/error.json')


def test_first_of_those_that_only_waited_and_a_killed_one(tmp_path):
    assert _first_fault(settings(), Node(), failed(tmp_path / 'a', {1: LOST, 0: LOST}, known=[1, 0]))[0] == 1
    error = failed(tmp_path / 'b', {0: LOST}, known=[0, 1], exitcodes={1: -9})
    assert _first_fault(settings(), Node(), error)[0] == 1
    first = failed(tmp_path / 'c', {0: 'ValueError: x', 1: LOST}, known=[0, 1])
    assert _first_fault(settings(), Node(), first)[0] == 0


@pytest.mark.parametrize('exitcode, seconds_later, guilty', (
    (-9, 30, 0),  # it hangs: SIGTERM and, 30 s later, SIGKILL
    (-15, 0, 0), (143, 1, 0),
    (-9, 0, 1),  # out of memory, which rank 0 noticed at once
    (-11, 0, 1)))
def test_a_rank_that_torchrun_ended(tmp_path, exitcode, seconds_later, guilty):
    error = failed(tmp_path, {0: SENTENCE}, [0, 1], {1: exitcode})
    error.failures[1].timestamp = seconds_later
    assert _first_fault(settings(2), Node(), error)[0] == guilty


def test_processes_of_ranks_are_written(tmp_path):
    heartbeat.create(tmp_path / 'beats', 2)
    heartbeat.start(tmp_path / 'beats', 1)
    _write_pids(settings(2), Node(), tmp_path / 'beats', tmp_path)
    assert json.loads((tmp_path / 'pids.json').read_text())['1'] == os.getpid()
