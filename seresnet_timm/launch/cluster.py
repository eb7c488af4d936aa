"""Who started this process, and what they have already decided: torchrun, SLURM, MindCluster, ModelArts, Kubernetes

`detect` reads the environment, `decide` compares it with the command line: what was typed wins over variables.
"""
import os
import re
import sys
from dataclasses import dataclass
from typing import Dict, Mapping, MutableMapping, NamedTuple, Optional, Tuple

from seresnet_timm.errors import UsageError, counted
from seresnet_timm.launch.network import answers

RANK_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')
SECONDS_TO_ANSWER = 3  # of torchrun's store, which listens before torchrun starts a rank


@dataclass(frozen=True)
class Cluster:
    """A job as its scheduler describes it.

    Attributes:
        kind: 'torchrun', 'SLURM', 'MindCluster', 'ModelArts', 'Kubeflow' or 'Volcano'.
        is_rank: This process is one rank of the job, not the launcher of a node's ranks.
        nnodes: Number of nodes.
        node_rank: Number of this node.
        nproc: Processes of this node; None where the scheduler leaves it open.
        master_addr: Address of node 0; None on one node.
        master_port: Port of node 0, the same on all nodes.
        rank_env: torch's environment of this rank, where the scheduler does not set it itself.
        tasks: Processes that were started as this one was: ranks, or launchers of nodes.
        task: Number of this process among them.
        variables: The variables that say so, as a sentence names them.
        master_variable: The variable that names the address of node 0.
        why_not_needed: Why this process ends at once, as a sentence: another one starts the ranks of its node.
    """
    kind: str
    is_rank: bool
    nnodes: int = 1
    node_rank: int = 0
    nproc: Optional[int] = None
    master_addr: Optional[str] = None
    master_port: Optional[int] = None
    rank_env: Optional[Dict[str, str]] = None
    tasks: int = 1
    task: int = 0
    variables: str = ''
    master_variable: str = 'MASTER_ADDR'
    why_not_needed: Optional[str] = None

    def variable(self, name: str, default: Optional[int] = None) -> int:
        """torch's variable of this rank: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE."""
        env = os.environ if self.rank_env is None else self.rank_env
        if name not in env and default is None:
            raise UsageError(f'{self.kind} started this process without {name}: set it.')
        return _number(env, name, default)


class Asked(NamedTuple):
    """What the command line says about processes; None where it says nothing."""
    nproc: Optional[int] = None
    nnodes: Optional[int] = None


NOTHING_ASKED = Asked()


def detect(env: Mapping[str, str], asked: Asked = NOTHING_ASKED) -> Optional[Cluster]:
    """The job that an environment describes; None if there is none.

    Args:
        env: The environment.
        asked: What was typed. For one process on one node variables that describe no job do not matter.

    Raises:
        UsageError: A variable of the job is missing or is not a number.
    """
    try:
        return _detect(env)
    except UsageError:
        if asked.nproc == 1 and asked.nnodes in (None, 1):
            return None
        raise


def _detect(env: Mapping[str, str]) -> Optional[Cluster]:
    if ',' in env.get('LOCAL_RANK', '') and 'TORCHELASTIC_RUN_ID' not in env:
        return _mindcluster(env)
    has_ranks = all(env.get(v, '').isdigit() for v in RANK_VARIABLES) and 'MASTER_ADDR' in env
    if has_ranks or 'TORCHELASTIC_RUN_ID' in env:
        rank, size = env.get('RANK', '?'), env.get('WORLD_SIZE', '?')
        tasks, task = _number(env, 'WORLD_SIZE', 1), _number(env, 'RANK', 0)
        if not 0 <= task < tasks:
            raise UsageError(f'RANK={rank} and WORLD_SIZE={size} do not go together: ranks have the numbers 0 to '
                             'WORLD_SIZE - 1; correct them, or unset them.')
        return Cluster('torchrun', is_rank=True, tasks=tasks, task=task,
                       variables=f'RANK={rank} and WORLD_SIZE={size}')
    if 'PET_NNODES' in env and 'PET_NODE_RANK' in env:
        return _kubeflow(env)
    if 'MA_NUM_HOSTS' in env or 'MA_NUM_GPUS' in env and ('VC_WORKER_NUM' in env or env.get('VC_WORKER_HOSTS')):
        return _modelarts(env)
    if 'VC_MASTER_NUM' in env and 'LOCAL_RANK' not in env and all(
            name in env for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR')):
        return _volcano(env)
    if _number(env, 'SLURM_STEP_NUM_TASKS', 1) > 1:  # set by srun only: a batch script is not one of the tasks
        return _slurm(env)
    return None


def decide(job: Optional[Cluster], env: Mapping[str, str], asked: Asked) -> Tuple[Optional[Cluster], Optional[str]]:
    """The job that this process is a part of: what was typed wins over the environment.

    Args:
        job: What `detect` found.
        env: The environment.
        asked: What was typed.

    Returns:
        The job, or None if this process belongs to none; and a sentence if variables are ignored.

    Raises:
        UsageError: The variables may be left over, or one process was asked for and several were started.
    """
    if job is None:
        left = [f'{name}={env[name]}' for name in ('RANK', 'WORLD_SIZE') if env.get(name, '').isdigit()]
        if f'WORLD_SIZE={env.get("WORLD_SIZE")}' in left and int(env['WORLD_SIZE']) > 1:
            missing = [name for name in RANK_VARIABLES if not env.get(name, '').isdigit()]
            missing += [] if 'MASTER_ADDR' in env else ['MASTER_ADDR']
            count = 'do not count' if len(left) > 1 else 'does not count'
            reason = f'{" and ".join(missing)} would have to be set too' if missing else (
                'they describe no job, and one process was asked for')
            return None, f'{" and ".join(left)} {count}: {reason}.'
        return None, None
    if job.tasks == 1:
        return job, None
    if uses_agent_store(env):
        if answers(env.get('MASTER_ADDR', ''), _number(env, 'MASTER_PORT', 0), SECONDS_TO_ANSWER):
            return job, None  # torchrun runs, and has started this process
        if _asks_for_one(job, asked):
            return None, f'{job.variables} are ignored: their torchrun has ended.'
        raise UsageError(
            f'{job.variables} say that torchrun started this process, but no torchrun answers at '
            f'{env.get("MASTER_ADDR")}:{env.get("MASTER_PORT")}: give --nproc 1 to train alone, or unset '
            f'TORCHELASTIC_RUN_ID {" ".join(RANK_VARIABLES)}.')
    if _asks_for_one(job, asked):
        if asked.nnodes != 1 and job.task != 0:
            raise UsageError(
                f'--nproc 1 asks for one process, and {job.variables} say that this is number {job.task} of '
                f'{job.tasks}: start one, or give --nnodes 1 too, and each of them trains alone.')
        return None, f'{job.variables} are ignored: one process was asked for.'
    tasks_asked = (asked.nproc or 0) * (asked.nnodes or job.nnodes) if job.is_rank else asked.nnodes
    if job.kind == 'SLURM' and tasks_asked != job.tasks:
        if is_interactive(env):
            return None, (f"{job.variables} are ignored: this is the step's interactive shell, its other tasks are no "
                          'trainings.')
        if 'SLURM_PTY_PORT' in env and job.task == 0 and asked.nproc is None and asked.nnodes is None:
            raise UsageError(
                f'{job.variables} make this process wait for {job.tasks - 1} others, and SLURM_PTY_PORT says that it '
                f'runs in the shell of `srun --pty`: give --nproc 1 to train alone; unset SLURM_PTY_PORT if srun has '
                f'started {job.tasks} trainings.')
    return job, None


def _asks_for_one(job: Cluster, asked: Asked) -> bool:
    """Whether the user typed that there is one process, or one launcher, where the environment says several."""
    return asked.nnodes in (None, 1) and asked.nproc == 1 if job.is_rank else asked.nnodes == 1


def uses_agent_store(env: Mapping[str, str]) -> bool:
    """Whether torchrun runs a store for its ranks."""
    return env.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


def is_interactive(env: Mapping[str, str]) -> bool:
    """Whether a user types into the shell that started this process. Tasks of srun have no terminal, but for --pty."""
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    if 'SLURM_PTY_PORT' not in env:  # which srun inside such a shell hands on to its tasks
        return False
    try:
        os.close(os.open('/dev/tty', os.O_RDWR))
    except OSError:
        return False
    return True


def _number(env: Mapping[str, str], name: str, default: Optional[int] = None) -> int:
    value = env.get(name)
    if value is None and default is not None:
        return default
    if re.fullmatch(r'\s*-?[0-9]+\s*', value or ''):
        return int(value)
    what = 'is missing' if value is None else f"is '{value}', which is not a number"
    raise UsageError(f'The environment variable {name} {what}: set it, or unset the variables of this job.')


def forget(env: MutableMapping[str, str]) -> None:
    """Remove a scheduler's variables of ranks, which torch and timm would take for those of this process."""
    of_torchrun = [name for name in env if name.startswith('PET_')]  # which it takes for its own defaults
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE',
                 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS', 'SLURM_STEP_NUM_TASKS',
                 'TORCHELASTIC_RUN_ID', 'TORCHELASTIC_USE_AGENT_STORE', *of_torchrun):
        env.pop(name, None)


def _mindcluster(env: Mapping[str, str]) -> Cluster:
    """MindCluster (Volcano): RANK is the node's, WORLD_SIZE counts all NPUs, LOCAL_RANK lists this node's."""
    listed = env['LOCAL_RANK'].split(',')
    if not all(re.fullmatch(r' *[0-9]+ *', number) for number in listed) or len(set(map(int, listed))) < len(listed):
        raise UsageError(f"MindCluster says LOCAL_RANK={env['LOCAL_RANK']}, which is not a list of this node's NPUs, "
                         'such as 0,1,2,3: correct it, or unset it and give --nproc, --nnodes and --node-rank.')
    nproc = len(listed)
    world_size = _number(env, 'WORLD_SIZE', nproc)
    if world_size < nproc or world_size % nproc or _number(env, 'LOCAL_WORLD_SIZE', nproc) != nproc:
        here = f' and LOCAL_WORLD_SIZE={env["LOCAL_WORLD_SIZE"]}' if 'LOCAL_WORLD_SIZE' in env else ''
        raise UsageError(f'MindCluster says WORLD_SIZE={world_size} and LOCAL_RANK={env["LOCAL_RANK"]}{here}: the '
                         'nodes have different numbers of NPUs; give --nproc, --nnodes and --node-rank, and unset '
                         'LOCAL_RANK.')
    nnodes = world_size // nproc
    node_rank = _node_number(env, 'RANK', nnodes, 'MindCluster')
    return Cluster(
        'MindCluster', is_rank=False, nnodes=nnodes, node_rank=node_rank, nproc=nproc,
        master_addr=env.get('MASTER_ADDR'), master_port=_port(env), tasks=nnodes,
        task=node_rank, variables=f"MindCluster's RANK={node_rank}, LOCAL_RANK={env['LOCAL_RANK']} and "
                                  f'WORLD_SIZE={world_size}')


def _kubeflow(env: Mapping[str, str]) -> Cluster:
    """Kubeflow Trainer and the PyTorchJob before it: torchrun's own variables, PET_*, for the launcher of a pod."""
    nnodes = _number(env, 'PET_NNODES')
    if nnodes < 1:
        raise UsageError(f'Kubeflow says PET_NNODES={nnodes}, which is not a number of pods: correct it, or unset it.')
    node_rank = _node_number(env, 'PET_NODE_RANK', nnodes, 'Kubeflow')
    nproc = env.get('PET_NPROC_PER_NODE', 'auto')  # or auto, gpu, cpu
    return Cluster(
        'Kubeflow', is_rank=False, nnodes=nnodes, node_rank=node_rank,
        nproc=int(nproc) if nproc.isdecimal() and int(nproc) > 0 else None,
        master_addr=env.get('PET_MASTER_ADDR') if nnodes > 1 else None,
        master_port=_port(env, 'PET_MASTER_PORT') if nnodes > 1 else None,
        tasks=nnodes, task=node_rank, master_variable='PET_MASTER_ADDR',
        variables=f"Kubeflow's PET_NNODES={nnodes} and PET_NODE_RANK={node_rank}")


def _volcano(env: Mapping[str, str]) -> Cluster:
    """Volcano's plugin `pytorch`: RANK is the pod's, and WORLD_SIZE counts pods."""
    nnodes = _number(env, 'WORLD_SIZE')
    pods = _number(env, 'VC_MASTER_NUM') + _number(env, 'VC_WORKER_NUM', 0)
    if nnodes < 1 or nnodes != pods:
        raise UsageError(f'Volcano says WORLD_SIZE={nnodes}, but VC_MASTER_NUM and VC_WORKER_NUM count '
                         f'{counted(pods, "pod")}: name the tasks of the job master and worker, as the plugin '
                         'pytorch expects.')
    node_rank = _node_number(env, 'RANK', nnodes, 'Volcano')
    return Cluster(
        'Volcano', is_rank=False, nnodes=nnodes, node_rank=node_rank,
        master_addr=env['MASTER_ADDR'] if nnodes > 1 else None, master_port=_port(env) if nnodes > 1 else None,
        tasks=nnodes, task=node_rank,
        variables=f"Volcano's RANK={node_rank} and WORLD_SIZE={nnodes}")


def _modelarts(env: Mapping[str, str]) -> Cluster:
    """ModelArts: how many machines, which of them this is, their names, and the devices of each.

    Its image for Ascend runs the boot file once per device, with ASCEND_DEVICE_ID; elsewhere it runs once per machine.
    """
    hosts = [host.strip() for host in env.get('VC_WORKER_HOSTS', '').split(',') if host.strip()]
    counts = {name: _number(env, name) for name in ('MA_NUM_HOSTS', 'VC_WORKER_NUM') if name in env}
    counts = counts or {'VC_WORKER_HOSTS': len(hosts)}
    nnodes = next(iter(counts.values()))
    if min(counts.values()) < 1 or len(set(counts.values())) > 1:
        told = ' and '.join(f'{name}={value}' for name, value in counts.items())
        raise UsageError(f'ModelArts says {told}: that is not a number of machines; correct it, or unset it.')
    if nnodes > 1 and hosts and len(hosts) != nnodes:
        raise UsageError(f'ModelArts says {next(iter(counts))}={nnodes}, and VC_WORKER_HOSTS={env["VC_WORKER_HOSTS"]} '
                         f'names {counted(len(hosts), "machine")}: correct one of them.')
    node_rank = _node_number(env, 'VC_TASK_INDEX', nnodes, 'ModelArts') if nnodes > 1 else 0
    nproc = _number(env, 'MA_NUM_GPUS', 0)
    if nproc < 0:
        raise UsageError(f'ModelArts says MA_NUM_GPUS={nproc}, which is not a number of devices: correct it, or '
                         'unset it.')
    device, variables = env.get('ASCEND_DEVICE_ID'), f"ModelArts' MA_NUM_HOSTS={nnodes} and VC_TASK_INDEX={node_rank}"
    leaves = None
    if device is not None and _number(env, 'ASCEND_DEVICE_ID') != 0:
        leaves = (f'ModelArts starts this program once for each device: the one of device 0 starts all ranks of this '
                  f'machine, the one of device {device} ends here.')
    return Cluster(
        'ModelArts', is_rank=False, nnodes=nnodes, node_rank=node_rank, nproc=nproc or None,
        master_addr=hosts[0] if nnodes > 1 and hosts else None, master_port=_port(env) if nnodes > 1 else None,
        tasks=nnodes, task=node_rank, variables=variables, master_variable='VC_WORKER_HOSTS', why_not_needed=leaves)


def describe_nodes(nnodes: int) -> str:
    """How many nodes there are, and their numbers, in a sentence."""
    return 'the only node has the number 0' if nnodes == 1 else f'{nnodes} nodes have the numbers 0 to {nnodes - 1}'


def _node_number(env: Mapping[str, str], name: str, nnodes: int, kind: str) -> int:
    """Number of this node; 0 may be left out where there is one."""
    number = _number(env, name, 0 if nnodes == 1 else None)
    if not 0 <= number < nnodes:
        raise UsageError(f'{kind} says {name}={number}, but {describe_nodes(nnodes)}: '
                         'correct it, or give --nnodes and --node-rank and unset the variables of this job.')
    return number


def _port(env: Mapping[str, str], name: str = 'MASTER_PORT', default: int = 29500) -> int:
    port = _number(env, name, default)
    if not 0 < port < 65536:
        raise UsageError(f'The environment variable {name} is {port}, which is not a port: set it to one from 1 to '
                         '65535, the same on every node.')
    return port


def _slurm(env: Mapping[str, str]) -> Cluster:
    """SLURM's srun: one task a node launches that node's ranks, several tasks a node are the ranks themselves."""
    ntasks = _number(env, 'SLURM_STEP_NUM_TASKS')
    nnodes = next((_number(env, name) for name in ('SLURM_STEP_NUM_NODES', 'SLURM_NNODES', 'SLURM_JOB_NUM_NODES')
                   if name in env), 1)
    nodelist = env.get('SLURM_STEP_NODELIST') or env.get('SLURM_JOB_NODELIST') or env.get('SLURM_NODELIST', '')
    master_addr = env.get('MASTER_ADDR') or first_host(nodelist)
    # every node computes the same port; jobs on the same nodes differ
    master_port = _port(env, default=29500 + _number(env, 'SLURM_JOB_ID', 0) % 1000)
    rank = _number(env, 'SLURM_PROCID')
    common = dict(kind='SLURM', nnodes=nnodes, tasks=ntasks, task=rank,
                  variables=f"SLURM's SLURM_STEP_NUM_TASKS={ntasks} and SLURM_PROCID={rank}")
    if ntasks == nnodes:
        return Cluster(is_rank=False, node_rank=_number(env, 'SLURM_NODEID'), master_addr=master_addr,
                       master_port=master_port, **common)
    return Cluster(is_rank=True, **common, rank_env={
        'RANK': str(rank), 'LOCAL_RANK': str(_number(env, 'SLURM_LOCALID')), 'WORLD_SIZE': str(ntasks),
        'MASTER_ADDR': master_addr, 'MASTER_PORT': str(master_port),
    })


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list, e.g. `node[03-05,9],gpu1` -> `node03`, `r[1-2]n[3-4]` -> `r1n3`."""
    match = re.match(r'(?:[^,\[\]]|\[[^\[\]]+\])+', nodelist)
    host = re.sub(r'\[([^,-]+)[^\]]*\]', r'\1', match[0]) if match else ''
    if not host or not re.match('(,|$)', nodelist[match.end():]):
        raise UsageError(f"SLURM's node list '{nodelist}' names no host: set MASTER_ADDR.")
    return host
