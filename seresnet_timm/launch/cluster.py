"""Who started this process, and what they have already decided: torchrun, SLURM or MindCluster."""
import os
import re
from dataclasses import dataclass
from typing import Dict, Mapping, MutableMapping, Optional

from seresnet_timm.errors import UsageError


@dataclass(frozen=True)
class Cluster:
    """A job as its scheduler describes it.

    Attributes:
        kind: 'torchrun', 'SLURM' or 'MindCluster'.
        is_rank: This process is one rank of the job, not the launcher of a node's ranks.
        nnodes: Number of nodes.
        node_rank: Number of this node.
        nproc: Processes of this node; None where the scheduler leaves it open.
        master_addr: Address of node 0; None on one node.
        master_port: Port of node 0, the same on all nodes.
        rank_env: torch's environment of this rank, where the scheduler does not set it itself.
    """
    kind: str
    is_rank: bool
    nnodes: int = 1
    node_rank: int = 0
    nproc: Optional[int] = None
    master_addr: Optional[str] = None
    master_port: Optional[int] = None
    rank_env: Optional[Dict[str, str]] = None

    def variable(self, name: str, default: Optional[int] = None) -> int:
        """torch's variable of this rank: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE."""
        value = (os.environ if self.rank_env is None else self.rank_env).get(name, default)
        if value is None:
            raise UsageError(f'{self.kind} started this process without {name}: set it.')
        return int(value)


def detect(env: Mapping[str, str]) -> Optional[Cluster]:
    """The job that an environment describes; None if there is none."""
    if 'TORCHELASTIC_RUN_ID' in env:
        return Cluster('torchrun', is_rank=True)
    if ',' in env.get('LOCAL_RANK', ''):
        return _mindcluster(env)
    if all(env.get(v, '').isdigit() for v in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')) and 'MASTER_ADDR' in env:
        return Cluster('torchrun', is_rank=True)
    if int(env.get('SLURM_STEP_NUM_TASKS', 1)) > 1:  # set by srun only: a batch script is not one of the tasks
        return _slurm(env)
    return None


def forget(env: MutableMapping[str, str]) -> None:
    """Remove a scheduler's variables of ranks, which torch and timm would take for those of this process."""
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE',
                 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'):
        env.pop(name, None)


def _mindcluster(env: Mapping[str, str]) -> Cluster:
    """MindCluster (Volcano): RANK is the node's, WORLD_SIZE counts all NPUs, LOCAL_RANK lists this node's."""
    nproc = len(env['LOCAL_RANK'].split(','))
    world_size = int(env.get('WORLD_SIZE', nproc))
    if world_size % nproc:
        raise UsageError(f'MindCluster says WORLD_SIZE={world_size} and LOCAL_RANK={env["LOCAL_RANK"]}: the nodes have '
                         'different numbers of NPUs; give --nproc, --nnodes and --node-rank, and unset LOCAL_RANK.')
    return Cluster(
        'MindCluster', is_rank=False, nnodes=world_size // nproc, node_rank=int(env.get('RANK', 0)), nproc=nproc,
        master_addr=env.get('MASTER_ADDR'), master_port=int(env.get('MASTER_PORT', 29500)))


def _slurm(env: Mapping[str, str]) -> Cluster:
    """SLURM's srun: one task a node launches that node's ranks, several tasks a node are the ranks themselves."""
    ntasks, nnodes = int(env['SLURM_STEP_NUM_TASKS']), int(env.get('SLURM_NNODES', env.get('SLURM_JOB_NUM_NODES', 1)))
    nodelist = env.get('SLURM_STEP_NODELIST') or env.get('SLURM_JOB_NODELIST') or env.get('SLURM_NODELIST', '')
    master_addr = env.get('MASTER_ADDR') or first_host(nodelist)
    # every node computes the same port; jobs on the same nodes differ
    master_port = int(env.get('MASTER_PORT', 29500 + int(env.get('SLURM_JOB_ID', 0)) % 1000))
    if ntasks == nnodes:
        return Cluster('SLURM', is_rank=False, nnodes=nnodes, node_rank=int(env['SLURM_NODEID']),
                       master_addr=master_addr, master_port=master_port)
    return Cluster('SLURM', is_rank=True, nnodes=nnodes, rank_env={
        'RANK': env['SLURM_PROCID'], 'LOCAL_RANK': env['SLURM_LOCALID'], 'WORLD_SIZE': env['SLURM_STEP_NUM_TASKS'],
        'MASTER_ADDR': master_addr, 'MASTER_PORT': str(master_port),
    })


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list, e.g. `node[03-05,9],gpu1` -> `node03`."""
    match = re.match(r'([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?', nodelist)
    if match is None:
        raise UsageError(f"SLURM's node list '{nodelist}' names no host: set MASTER_ADDR.")
    return match[1] + (match[2] or '') + (match[3] or '')
