"""Several processes, by torchrun: rank 0 prints, others log to files, a failure is shown once, signals reach all."""
import json
import logging
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import psutil

from seresnet_timm.errors import RunError, UsageError, first_names
from seresnet_timm.launch import cluster
from seresnet_timm.launch.network import DEFAULT_PORT, check_port, interface_of
from seresnet_timm.launch.plan import Node
from seresnet_timm.launch.waiting import printed
from seresnet_timm.runs.folder import RunFolder, resume_hint
from seresnet_timm.runs.settings import RunSettings

# what a rank says when another one is gone: gloo, nccl, hccl
LOST_PEER = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'Timed out waiting',
             'NCCL communicator was aborted', 'remote process exited', 'HCCL', 'EI0002', 'EI0006')


def run(settings: RunSettings, node: Node) -> None:
    """Run this node's processes under torchrun's agent, in this process, until all have ended.

    Raises:
        UsageError: A rank refused its settings, or the port is taken.
        RunError: A rank failed, or the nodes did not find each other.
        SystemExit: A signal ended the run (128 + its number).
    """
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if (settings.nnodes > 1 or node.master_port) and node.rank == 0:  # node 0 listens there
        check_port(node.master_port or DEFAULT_PORT)
    _set_environment(settings, node)
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # what it says is said below
    log_dir = _log_dir(settings, node)
    if settings.nproc > 1:
        print(f'  logs           {log_dir} (all ranks but the first)', file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as tmp:
        file = Path(tmp) / 'settings.json'
        file.write_text(settings.to_json(), encoding='utf-8')
        args = torchrun.get_args_parser().parse_args(_torchrun_argv(settings, node, log_dir) + [str(file)])
        try:
            with waiting_for_nodes(settings, node):
                torchrun.run(args)
        except ChildFailedError as e:
            raise _failure(settings, node, *e.get_first_failure(), log_dir)
        except SignalException as e:
            name = signal.Signals(e.sigval).name
            print(f'Stopped by {name}: all processes of this node have ended.' + resume_hint(settings),
                  file=sys.stderr)
            raise SystemExit(128 + e.sigval)
        except RuntimeError as e:  # torch.distributed's DistNetworkError, DistStoreError and rendezvous errors
            raise RunError(_rendezvous_failure(settings, node, e))


@contextmanager
def waiting_for_nodes(settings: RunSettings, node: Node) -> Iterator[None]:
    """Print for which nodes this one waits, until it starts its ranks."""
    if settings.nnodes == 1:
        yield
        return
    others = [str(i) for i in range(settings.nnodes) if i != node.rank]
    whom = 'node 0 at' if node.rank else f'node{"s" if len(others) > 1 else ""} {first_names(others, 8)} to come to'
    this = psutil.Process()
    before = len(this.children())
    with printed(f'{whom} {_address(node)}', node.rdzv_timeout, lambda: len(this.children()) > before):
        yield


def _address(node: Node) -> str:
    return f'{node.master_addr or "127.0.0.1"}:{node.master_port or DEFAULT_PORT}'


def _torchrun_argv(settings: RunSettings, node: Node, log_dir: Path) -> List[str]:
    argv = [f'--nproc-per-node={settings.nproc}', f'--log-dir={log_dir}']
    if settings.nproc > 1:
        # 3: stdout and stderr; the first rank of the node keeps the terminal
        argv.append('--redirects=' + ','.join(f'{rank}:3' for rank in range(1, settings.nproc)))
    if settings.nnodes > 1 or node.master_port:
        argv += [
            f'--nnodes={settings.nnodes}', f'--node-rank={node.rank}',
            f'--master-addr={node.master_addr or "127.0.0.1"}', f'--master-port={node.master_port or DEFAULT_PORT}',
            f'--rdzv-conf=timeout={node.rdzv_timeout}',
        ]
        if node.local_addr:
            argv.append(f'--local-addr={node.local_addr}')
    else:
        argv.append('--standalone')
    return [*argv, '-m', 'seresnet_timm.launch.rank']


def _set_environment(settings: RunSettings, node: Node) -> None:
    """Environment of the ranks; what the user has set stays."""
    cluster.forget(os.environ)
    # a rank is started with -m, which looks in the current folder first: not for another copy of this package
    other = Path('seresnet_timm')
    if other.is_dir() and not other.samefile(Path(__file__).resolve().parents[1]):
        os.environ.setdefault('PYTHONSAFEPATH', '1')
    cores = len(os.sched_getaffinity(0))
    # the CPU computes with all cores; elsewhere a rank's own threads have little to do
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores // settings.nproc)) if settings.device == 'cpu' else '1')
    if node.local_addr:
        os.environ.setdefault('HCCL_IF_IP', node.local_addr)
        interface = interface_of(node.local_addr)
        if interface is None:
            raise UsageError(f'--local-addr {node.local_addr} is not an address of this machine.')
        os.environ.setdefault('GLOO_SOCKET_IFNAME', interface)
        os.environ.setdefault('NCCL_SOCKET_IFNAME', interface)


def _log_dir(settings: RunSettings, node: Node) -> Path:
    # the name that node 0 chooses for the run is not known on the other nodes
    knows_folder = settings.output is not None and node.knows_output
    base = Path(settings.output if knows_folder else tempfile.mkdtemp(prefix='seresnet_timm-'))
    folder = RunFolder(base).logs / f'node{node.rank}'
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _failure(settings: RunSettings, node: Node, rank: int, failure: Any, log_dir: Path) -> Exception:
    """The first failure of this node as the one error that is shown."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ' (out of memory? `dmesg` tells)' if name == 'SIGKILL' else ''
        return RunError(f'Rank {rank} was killed by {name}{hint}.{resume_hint(settings)}')
    kind, text = _read_error(failure.error_file)
    if kind == 'UsageError':
        return UsageError(text)
    if kind == 'RunError':
        return RunError(text)
    if settings.nnodes > 1 and any(words in text for words in LOST_PEER):
        return RunError(f'Node {node.rank} lost contact with another node, which has ended or cannot be reached '
                        f'any more: its own log says why.{resume_hint(settings)}\n{text.strip().splitlines()[-1]}')
    where = f'Rank {rank} failed' if text else f'Rank {rank} ended with exit code {failure.exitcode}'
    return RunError(f'{where}; the other ranks of this node were stopped, their logs are in {log_dir}.'
                    f'{resume_hint(settings)}\n{text}'.rstrip())


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


def _rendezvous_failure(settings: RunSettings, node: Node, error: RuntimeError) -> str:
    address = _address(node)
    if settings.nnodes == 1:
        return f'torchrun could not start the processes: {str(error).splitlines()[0]}'
    if node.rank == 0:
        return (f'Not all of the {settings.nnodes} nodes came to {address} within {node.rdzv_timeout} s: start the '
                'others with the same --nnodes, --master-addr and --master-port, or wait longer with --rdzv-timeout '
                'SECONDS.')
    return (f'Node 0 cannot be reached at {address} within {node.rdzv_timeout} s: start it, check --master-addr, '
            '--master-port and the firewall, or wait longer with --rdzv-timeout SECONDS.')

