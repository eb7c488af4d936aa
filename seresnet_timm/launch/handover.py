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
from typing import Any, Callable, Iterator, Optional, Tuple

from seresnet_timm.ascend import hccl
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.launch.cluster import SECONDS_TO_ANSWER, Cluster, uses_agent_store
from seresnet_timm.launch.network import answers
from seresnet_timm.launch.waiting import Wait, open_store
from seresnet_timm.runs.settings import RunSettings

DOWNLOAD_TIMEOUT = 1800  # seconds, once local rank 0 downloads what the run needs
SETTINGS, DOWNLOADS = 'settings', 'downloads'  # keys in the store
# what the plan sets in the environment of its own process
VARIABLES = ('ASCEND_RT_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES', 'HF_HUB_OFFLINE', *hccl.VARIABLES)


def receives(job: Optional[Cluster]) -> bool:
    """Whether this process is a rank that gets its settings from local rank 0."""
    return job is not None and _shares_store(job) and job.variable('LOCAL_RANK') != 0


def _shares_store(job: Cluster) -> bool:
    """Whether torchrun's store is there; variables of a torchrun that has ended may be left in a shell."""
    return job.is_rank and uses_agent_store(os.environ) and job.variable('LOCAL_WORLD_SIZE', 1) > 1 and answers(
        os.environ.get('MASTER_ADDR', ''), job.variable('MASTER_PORT', 0), SECONDS_TO_ANSWER)


def _store(seconds: float) -> Any:
    """The store of torchrun's agent, with keys of this node and this start of its ranks."""
    from torch.distributed import PrefixStore
    store = open_store(
        os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), seconds, DOWNLOAD_TIMEOUT, is_master=False)
    node, start = os.environ.get('GROUP_RANK', '0'), os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return PrefixStore(f'seresnet_timm/{node}/{start}', store)


@contextmanager
def give_to_other_ranks(
        job: Optional[Cluster], seconds: int) -> Iterator[Tuple[Callable[[RunSettings], None], Callable[[], None]]]:
    """Functions that give the settings to the other ranks of this node, and that tell them of a download.

    An error, or nothing given, ends the others too.

    Args:
        job: Who started this process; nothing is given where it is not one of several ranks of torchrun.
        seconds: How long to wait for their store.
    """
    if job is None or not _shares_store(job):
        yield lambda settings: None, lambda: None
        return
    store = _store(seconds)
    outcome = {'exit_code': 1}

    def give(settings: RunSettings) -> None:
        outcome.clear()
        outcome.update(
            settings=asdict(settings), environ={k: os.environ[k] for k in VARIABLES if k in os.environ})
        store.set(SETTINGS, json.dumps(outcome))

    try:
        yield give, lambda: store.set(DOWNLOADS, '')
        if 'settings' not in outcome:
            outcome['exit_code'] = 0
    except (UsageError, RunError) as e:
        outcome['exit_code'] = e.exit_code
        raise
    finally:
        if 'settings' not in outcome:
            store.set(SETTINGS, json.dumps(outcome))


def receive(seconds: int) -> Optional[RunSettings]:
    """Settings that local rank 0 gives; None if there is nothing to run.

    Args:
        seconds: How long it may check the run; a download may take longer.

    Raises:
        RunError: Local rank 0 did not answer in time, or has ended.
        SystemExit: It refused the run, and has said why.
    """
    wait, action = Wait(seconds), 'check this run'
    try:
        store = _store(seconds)
        while not store.check([SETTINGS]):
            if wait.seconds < DOWNLOAD_TIMEOUT and store.check([DOWNLOADS]):
                wait, action = Wait(DOWNLOAD_TIMEOUT), 'download what this run needs'
            if wait.is_over:
                raise RunError(f'Local rank 0 did not {action} within {wait.seconds} s: its log says how far it came. '
                               'Start it, or wait longer with --rdzv-timeout SECONDS.')
            wait.go_on(f'local rank 0 to {action}' if os.environ['LOCAL_RANK'] == '1' else None)
        outcome = json.loads(store.get(SETTINGS))
    except RuntimeError as e:  # torch.distributed's errors of stores
        raise RunError(f'Local rank 0 gave no settings ({str(e).splitlines()[0]}): its own log says why.')
    if 'settings' in outcome:
        os.environ.update(outcome['environ'])
        return RunSettings.from_dict(outcome['settings'])
    if outcome['exit_code']:
        sys.exit(outcome['exit_code'])
    return None
