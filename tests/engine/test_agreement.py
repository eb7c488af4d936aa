"""What several ranks agree on: here threads of one process, with a real store"""
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import TCPStore

from seresnet_timm.ascend.errors import is_consequence
from seresnet_timm.engine.agreement import Agreement
from seresnet_timm.engine.signals import StopSignals
from seresnet_timm.errors import RunError
from seresnet_timm.runs.status import this_system

pytestmark = pytest.mark.preloaded
FACTS = {'its start at': 'batch 3 of epoch 1', 'training images': 100, '--lr': 0.1, '--clip-grad': None}


@pytest.fixture
def store(monkeypatch):
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(store.port))
    return store


def errors_of(store, *facts):
    """What each rank raises; None for nothing."""
    ranks = [Agreement(StopSignals(), torch.device('cpu'), rank, len(facts)) for rank in range(len(facts))]

    def refuse(rank):
        try:
            rank.refuse_differences(facts[rank.rank])
        except RunError as e:
            return str(e)
    try:
        with ThreadPoolExecutor(len(facts)) as pool:
            return list(pool.map(refuse, ranks))
    finally:
        for rank in ranks:
            rank.halt.close()


def test_equal_ranks_train(store):
    assert errors_of(store, FACTS, dict(FACTS), dict(FACTS)) == [None] * 3


@pytest.mark.parametrize('other, said', (
    ({'its start at': 'epoch 0'}, 'its start at epoch 0, not batch 3 of epoch 1'),
    ({'training images': 99, '--lr': 0.2}, 'training images 99, not 100; --lr 0.2, not 0.1'),
    ({'--clip-grad': 1.}, '--clip-grad 1.0, not None')))
def test_nodes_that_differ_are_refused_on_all_ranks(store, other, said):
    """Such as a node that does not see the checkpoint from which the other one goes on."""
    errors = errors_of(store, FACTS, dict(FACTS, **other))
    assert errors[0] == errors[1] and f'Rank 1 has other settings than rank 0: {said}. Start all nodes' in errors[0]


@pytest.mark.parametrize('wait', ('vote', 'share', 'gather', 'refuse_differences'))
def test_a_rank_that_waits_for_one_that_has_ended(store, wait):
    """Wherever it waits, with no signal: nobody else may end it, for example under srun."""
    other = subprocess.Popen(['true'])
    other.wait()
    rank = Agreement(StopSignals(), torch.device('cpu'), rank=int(wait == 'share'), world_size=2)
    dead = 1 - rank.rank
    rank._store.set(f'process/{dead}', f'{this_system()} {other.pid}')
    arguments = {'share': [True], 'gather': [{}], 'refuse_differences': [FACTS]}.get(wait, [])
    try:
        with pytest.raises(RunError, match=f'lost contact with the other ranks: rank {dead} has ended') as error:
            getattr(rank, wait)(*arguments)
        assert is_consequence(str(error.value))  # the other one is to blame
        rank.rank = 1
        rank.wait_until_saved()  # has an end too
    finally:
        rank.halt.close()


def test_a_rank_that_has_ended_after_it_gave_its_state(store):
    rank = Agreement(StopSignals(), torch.device('cpu'), rank=1, world_size=2)
    other = subprocess.Popen(['true'])
    other.wait()
    rank._store.set('process/0', f'{this_system()} {other.pid}')
    rank._store.set('decision/1', '1')
    try:
        assert rank.share(False)
    finally:
        rank.halt.close()
