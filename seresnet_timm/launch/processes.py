"""Several processes, by torchrun: rank 0 prints, others log to files, a failure is shown once, signals reach all."""
import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, List, Tuple

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.launch import cluster
from seresnet_timm.launch.network import DEFAULT_PORT, check_port, interface_of
from seresnet_timm.launch.plan import Plan, settings_of
from seresnet_timm.runs.folder import RunFolder

# what a rank says when another one is gone: gloo, nccl, hccl
LOST_PEER = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'Timed out waiting',
             'NCCL communicator was aborted', 'remote process exited', 'HCCL', 'EI0002', 'EI0006')


def run(plan: Plan) -> None:
    """Run this node's processes under torchrun's agent, in this process, until all have ended.

    Raises:
        UsageError: A rank refused its arguments, or the port is taken.
        RunError: A rank failed, or the nodes did not find each other.
        SystemExit: A signal ended the run (128 + its number).
    """
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if (plan.nnodes > 1 or plan.master_port) and plan.node_rank == 0:  # node 0 listens there
        check_port(plan.master_port or DEFAULT_PORT)
    _set_environment(plan)
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # what it says is said below
    log_dir = _log_dir(plan)
    if plan.nproc > 1:
        print(f'  logs           {log_dir} (all ranks but the first)', file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as tmp:
        job_file = Path(tmp) / 'job.json'
        job_file.write_text(settings_of(plan).to_json())
        args = torchrun.get_args_parser().parse_args(_torchrun_argv(plan, log_dir) + [str(job_file)])
        try:
            torchrun.run(args)
        except ChildFailedError as e:
            raise _failure(plan, *e.get_first_failure(), log_dir)
        except SignalException as e:
            name = signal.Signals(e.sigval).name
            print(f'Stopped by {name}: all processes of this node have ended.' + _resume_hint(plan),
                  file=sys.stderr)
            raise SystemExit(128 + e.sigval)
        except RuntimeError as e:  # torch.distributed's DistNetworkError, DistStoreError and rendezvous errors
            raise RunError(_rendezvous_failure(plan, e))


def _resume_hint(plan: Plan) -> str:
    return RunFolder(plan.output_dir).resume_hint() if plan.output_dir else ''


def _torchrun_argv(plan: Plan, log_dir: Path) -> List[str]:
    argv = [f'--nproc-per-node={plan.nproc}', f'--log-dir={log_dir}']
    if plan.nproc > 1:
        # 3: stdout and stderr; the first rank of the node keeps the terminal
        argv.append('--redirects=' + ','.join(f'{rank}:3' for rank in range(1, plan.nproc)))
    if plan.nnodes > 1 or plan.master_port:
        argv += [
            f'--nnodes={plan.nnodes}', f'--node-rank={plan.node_rank}',
            f'--master-addr={plan.master_addr or "127.0.0.1"}', f'--master-port={plan.master_port or DEFAULT_PORT}',
            f'--rdzv-conf=timeout={plan.opts.rdzv_timeout}',
        ]
        if plan.opts.local_addr:
            argv.append(f'--local-addr={plan.opts.local_addr}')
    else:
        argv.append('--standalone')
    return [*argv, '-m', 'seresnet_timm.launch.rank']


def _set_environment(plan: Plan) -> None:
    """Environment of the ranks; what the user has set stays."""
    cluster.forget(os.environ)
    cores = len(os.sched_getaffinity(0))
    # the CPU computes with all cores; elsewhere a rank's own threads have little to do
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores // plan.nproc)) if plan.device == 'cpu' else '1')
    if plan.opts.local_addr:
        os.environ.setdefault('HCCL_IF_IP', plan.opts.local_addr)
        interface = interface_of(plan.opts.local_addr)
        if interface is None:
            raise UsageError(f'--local-addr {plan.opts.local_addr} is not an address of this machine.')
        os.environ.setdefault('GLOO_SOCKET_IFNAME', interface)
        os.environ.setdefault('NCCL_SOCKET_IFNAME', interface)


def _log_dir(plan: Plan) -> Path:
    # the name that node 0 chooses for the run is not known on the other nodes
    knows_folder = plan.output_dir is not None and (plan.node_rank == 0 or plan.is_named)
    base = plan.output_dir if knows_folder else Path(tempfile.mkdtemp(prefix='seresnet_timm-'))
    folder = base / 'logs' / f'node{plan.node_rank}'
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _failure(plan: Plan, rank: int, failure: Any, log_dir: Path) -> Exception:
    """The first failure of this node as the one error that is shown."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ' (out of memory? `dmesg` tells)' if name == 'SIGKILL' else ''
        return RunError(f'Rank {rank} was killed by {name}{hint}.{_resume_hint(plan)}')
    kind, text = _read_error(failure.error_file)
    if kind == 'UsageError':
        return UsageError(text)
    if kind == 'RunError':
        return RunError(text)
    if plan.nnodes > 1 and any(words in text for words in LOST_PEER):
        return RunError(f'Node {plan.node_rank} lost contact with another node, which has ended or cannot be reached '
                        f'any more: its own log says why.{_resume_hint(plan)}\n{text.strip().splitlines()[-1]}')
    where = f'Rank {rank} failed' if text else f'Rank {rank} ended with exit code {failure.exitcode}'
    return RunError(f'{where}; the other ranks of this node were stopped, their logs are in {log_dir}.'
                    f'{_resume_hint(plan)}\n{text}'.rstrip())


def _read_error(error_file: str) -> Tuple[str, str]:
    """Class and text (a sentence, or a traceback) of the exception that a rank left."""
    try:
        with open(error_file) as f:
            message = json.load(f)['message']
    except (OSError, ValueError, KeyError):
        return '', ''
    if isinstance(message, str):
        return '', message
    text = message['extraInfo']['py_callstack']
    kind, _, sentence = message['message'].partition(': ')
    return (kind, sentence) if kind in ('UsageError', 'RunError') else (kind, text)


def _rendezvous_failure(plan: Plan, error: RuntimeError) -> str:
    address = f'{plan.master_addr or "127.0.0.1"}:{plan.master_port or DEFAULT_PORT}'
    if plan.nnodes == 1:
        return f'torchrun could not start the processes: {str(error).splitlines()[0]}'
    if plan.node_rank == 0:
        return (f'Not all of the {plan.nnodes} nodes came to {address} within {plan.opts.rdzv_timeout} s: start the '
                'others with the same --nnodes, --master-addr and --master-port, or wait longer with --rdzv-timeout '
                'SECONDS.')
    return (f'Node 0 cannot be reached at {address} within {plan.opts.rdzv_timeout} s: start it, check --master-addr, '
            '--master-port and the firewall, or wait longer with --rdzv-timeout SECONDS.')

