"""Which rank of a node is shown when several failed: the one to blame, not one that lost contact with it."""
import json
import os
from types import SimpleNamespace

import pytest
from ascend.npu_texts import call, out_of_memory, waits

from seresnet_timm.launch.plan import Node
from seresnet_timm.launch.processes import _first_fault, _is_final, _write_pids
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
    failures = {rank: SimpleNamespace(exitcode=(exitcodes or {}).get(rank, 1), timestamp=i, pid=rank,
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


@pytest.mark.parametrize('exitcode, ended, guilty', (
    (-9, {1: 9}, 0),  # it waits for rank 0: SIGTERM and, 2 s later, SIGKILL
    (-15, {1: 15}, 0), (143, {1: 15}, 0), (143, {1: 9}, 0),
    (-9, {1: 15}, 1), (-9, {}, 1),  # out of memory, which rank 0 noticed at once
    (143, {}, 1), (138, {}, 1),  # somebody else's signal
    (-11, {1: 9}, 1)))
def test_a_rank_that_was_ended_after_the_first(tmp_path, exitcode, ended, guilty):
    error = failed(tmp_path, {0: SENTENCE}, [0, 1], {1: exitcode})
    assert _first_fault(settings(2), Node(), error, ended)[0] == guilty


@pytest.mark.parametrize('text, exitcode, guilty', (
    ('RunError: The loss became NaN', 1, 1),  # both fail, and rank 1 is still ending when it is sent the signal
    (SENTENCE, 1, 0), (SENTENCE, -9, 0)))
def test_a_rank_that_left_its_error_and_was_ended_then(tmp_path, text, exitcode, guilty):
    texts = {1: text, **({0: 'RunError: The loss became NaN'} if exitcode == 1 else {})}
    error = failed(tmp_path, texts, [1, 0], {1: 143, 0: exitcode})
    assert _first_fault(settings(2), Node(), error, {1: 15})[0] == guilty


def test_an_error_before_a_stopped_rank(tmp_path):
    error = failed(tmp_path, {1: 'RunError: The disk is full.'}, [0, 1], {0: 143})
    assert _first_fault(settings(2), Node(), error)[0] == 1


def test_a_rank_that_lost_another_node_may_be_restarted(tmp_path):
    for text, is_final in ((SENTENCE, False), ('RunError: too many images cannot be read', True), (GLOO, False)):
        _, failure = failed(tmp_path / text[:20].replace('/', ''), {0: text}, [0]).get_first_failure()
        assert _is_final(failure) == is_final


def test_processes_of_ranks_are_written(tmp_path):
    heartbeat.create(tmp_path / 'beats', 2)
    heartbeat.start(tmp_path / 'beats', 1)
    _write_pids(settings(2), Node(), tmp_path / 'beats', tmp_path)
    assert json.loads((tmp_path / 'pids.json').read_text())['1'] == os.getpid()
