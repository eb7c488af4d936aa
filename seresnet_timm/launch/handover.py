"""Settings from local rank 0 to the other ranks of a node, where the user started the ranks by torchrun

Local rank 0 parses, plans, pulls and checks; the others wait for its outcome and decide nothing. The outcome goes
through the store that torchrun runs for its ranks. Where srun or a script starts the ranks there is no such store:
every rank then makes the same settings from the same command line.
"""
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Callable, Iterator, Optional

from seresnet_timm.ascend import hccl
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.launch.cluster import SECONDS_TO_ANSWER, Cluster, uses_agent_store
from seresnet_timm.launch.network import answers
from seresnet_timm.launch.waiting import Wait
from seresnet_timm.runs.settings import RunSettings

TIMEOUT = 1800  # seconds; a model may have to be downloaded
KEY = 'settings'
# what the plan sets in the environment of its own process
VARIABLES = ('ASCEND_RT_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES', 'HF_HUB_OFFLINE', *hccl.VARIABLES)


def receives(job: Optional[Cluster]) -> bool:
    """Whether this process is a rank that gets its settings from local rank 0."""
    return job is not None and _shares_store(job) and job.variable('LOCAL_RANK') != 0


def _shares_store(job: Cluster) -> bool:
    """Whether torchrun's store is there; variables of a torchrun that has ended may be left in a shell."""
    return job.is_rank and uses_agent_store(os.environ) and job.variable('LOCAL_WORLD_SIZE', 1) > 1 and answers(
        os.environ.get('MASTER_ADDR', ''), job.variable('MASTER_PORT', 0), SECONDS_TO_ANSWER)


def _store() -> Any:
    """The store of torchrun's agent, with keys of this node and this start of its ranks."""
    from torch.distributed import PrefixStore, TCPStore
    store = TCPStore(
        os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
        timeout=timedelta(seconds=TIMEOUT))
    node, start = os.environ.get('GROUP_RANK', '0'), os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return PrefixStore(f'seresnet_timm/{node}/{start}', store)


@contextmanager
def give_to_other_ranks(job: Optional[Cluster]) -> Iterator[Callable[[RunSettings], None]]:
    """Function that gives the settings to the other ranks of this node; an error, or nothing given, ends them too.

    Args:
        job: Who started this process; nothing is given where it is not one of several ranks of torchrun.
    """
    if job is None or not _shares_store(job):
        yield lambda settings: None
        return
    store = _store()
    outcome = {'exit_code': 1}

    def give(settings: RunSettings) -> None:
        outcome.clear()
        outcome.update(
            settings=asdict(settings), environ={k: os.environ[k] for k in VARIABLES if k in os.environ})
        store.set(KEY, json.dumps(outcome))

    try:
        yield give
        if 'settings' not in outcome:
            outcome['exit_code'] = 0
    except (UsageError, RunError) as e:
        outcome['exit_code'] = e.exit_code
        raise
    finally:
        if 'settings' not in outcome:
            store.set(KEY, json.dumps(outcome))


def receive() -> Optional[RunSettings]:
    """Settings that local rank 0 gives; None if there is nothing to run.

    Raises:
        RunError: Local rank 0 did not answer in time, or has ended.
        SystemExit: It refused the run, and has said why.
    """
    wait = Wait(TIMEOUT)
    try:
        store = _store()
        while not store.check([KEY]):
            wait.go_on('local rank 0 to check this run' if os.environ['LOCAL_RANK'] == '1' else None)
        outcome = json.loads(store.get(KEY))
    except RuntimeError as e:  # torch.distributed's errors of stores
        raise RunError(f'Local rank 0 gave no settings ({str(e).splitlines()[0]}): its own log says why.')
    if 'settings' in outcome:
        os.environ.update(outcome['environ'])
        return RunSettings.from_dict(outcome['settings'])
    if outcome['exit_code']:
        sys.exit(outcome['exit_code'])
    return None
