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
from typing import Any, Callable, Iterator, Mapping, Optional

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.launch.cluster import Cluster
from seresnet_timm.runs.settings import RunSettings

TIMEOUT = 1800  # seconds; a model may have to be downloaded
KEY = 'settings'
# what the plan sets in the environment of its own process
VARIABLES = ('ASCEND_RT_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES', 'HF_HUB_OFFLINE')


def receives(job: Optional[Cluster], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank that gets its settings from local rank 0."""
    return job is not None and job.is_rank and _has_store(environ) and job.variable('LOCAL_RANK') != 0


def _has_store(environ: Mapping[str, str]) -> bool:
    return environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


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
    is_alone = job is None or not job.is_rank or not _has_store(os.environ) or job.variable('LOCAL_WORLD_SIZE', 1) == 1
    if is_alone:
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
    try:
        outcome = json.loads(_store().get(KEY))
    except RuntimeError as e:  # torch.distributed's errors of stores
        raise RunError(f'Local rank 0 gave no settings ({str(e).splitlines()[0]}): its own log says why.')
    if 'settings' in outcome:
        os.environ.update(outcome['environ'])
        return RunSettings.from_dict(outcome['settings'])
    if outcome['exit_code']:
        sys.exit(outcome['exit_code'])
    return None
