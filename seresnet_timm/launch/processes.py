"""Several processes, by torchrun: rank 0 prints, others log to files, a failure is shown once, signals reach all."""
import atexit
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import psutil

from seresnet_timm import process
from seresnet_timm.ascend.errors import is_consequence
from seresnet_timm.checkpoints.save_errors import temporary_files
from seresnet_timm.engine.signals import SECOND_SIGNAL, STOPPING, TWICE
from seresnet_timm.errors import RunError, UsageError, first_names, printable
from seresnet_timm.files import write_json
from seresnet_timm.launch import cluster, limits, machines, meeting
from seresnet_timm.launch.network import DEFAULT_PORT, check_port, interface_of, is_known
from seresnet_timm.launch.newest import newest_checkpoint
from seresnet_timm.launch.plan import Node
from seresnet_timm.launch.waiting import printed
from seresnet_timm.launch.watch import Watch, end_ranks
from seresnet_timm.runs.error_file import OWN_ERRORS, RankError, other_error_file, parse_error
from seresnet_timm.runs.folder import RunFolder, resume_hint
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step import heartbeat

# seconds that ranks have to end: after another one has failed, or has stopped; to save; before one of them is killed
TO_END, TO_STOP, TO_SAVE = 2., 5., 30.


def run(settings: RunSettings, node: Node) -> None:
    """Run this node's processes under torchrun's agent, in this process, until all have ended; restart them if told to.

    Raises:
        UsageError: A rank refused its settings, or the port is taken.
        RunError: A rank failed, or the nodes did not find each other.
        SystemExit: A signal ended the run (128 + its number).
    """
    if (settings.nnodes > 1 or node.master_port) and node.rank == 0:  # node 0 listens there
        check_port(node.master_port or DEFAULT_PORT)
    from torch.distributed.elastic.multiprocessing import api
    _set_environment(settings, node)
    api._terminate_process_handler = _hand_on(api.SignalException)  # torchrun's handler of the signals that it knows
    is_new = bool(settings.output) and not os.path.exists(settings.output)
    log_dir = _log_dir(settings, node)
    if settings.nproc > 1 and settings.verbosity >= 0:
        until = '' if settings.output else '; removed at the end, unless a rank fails'
        print(f'  logs           {printable(log_dir)} (all ranks but the first{until})', file=sys.stderr)

    def remove_folder() -> None:
        if not settings.output:
            shutil.rmtree(log_dir.parents[1], ignore_errors=True)
        elif is_new and os.listdir(settings.output) == [RunFolder(settings.output).logs.name]:
            shutil.rmtree(settings.output)  # stopped before there was anything
    while True:
        atexit.register(remove_folder)
        try:
            with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as tmp:
                failure = _attempt(settings, node, log_dir, Path(tmp))
        except (SystemExit, KeyboardInterrupt):
            remove_folder()
            raise
        finally:
            atexit.unregister(remove_folder)
        if failure is None:
            if not settings.output:
                remove_folder()
            return
        if not failure.can_restart or len(settings.restarts) >= settings.max_restarts:
            raise failure.error
        reason = str(failure.error).splitlines()[0].replace(resume_hint(settings), '')
        settings = restarted(settings, node, reason)
        resume = settings.args.get('resume')
        print(f'{settings.restarts[-1]}\nRestart {len(settings.restarts)} of {settings.max_restarts}, from '
              f'{resume or "the beginning: nothing was saved yet"}.', file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Failure:
    """How an attempt to run the ranks ended.

    Attributes:
        error: What the user is told.
        can_restart: The same may not happen again: a rank made steps, and did not end with a sentence of its own.
    """
    error: Exception
    can_restart: bool


def restarted(settings: RunSettings, node: Node, reason: str) -> RunSettings:
    """Settings of the same run that goes on from its last checkpoint, if it has saved one.

    Raises:
        RunError: Another node saves the checkpoints, and this one does not see its folder.
    """
    args = settings.args
    if settings.output:
        folder = RunFolder(settings.output)
        if node.rank and not folder.record.is_file():
            raise RunError(f'{reason} Node {node.rank} does not see {folder.record}: to restart, all nodes need the '
                           'folder of the run (--output) on a file system that they share.')
        newest, notes = newest_checkpoint(folder)
        for note in notes:
            print(note, file=sys.stderr)
        if newest is not None:
            # all of it, even if the run began with the weights of another one alone
            args = dict(args, resume=newest.path, no_resume_opt=False, start_epoch=None)
    when = time.strftime('%Y-%m-%dT%H:%M:%S%z')
    return replace(settings, args=args, restarts=[*settings.restarts, f'{when} {reason}'])


def _attempt(settings: RunSettings, node: Node, log_dir: Path, tmp: Path) -> Optional[Failure]:
    """Run the ranks once, until all have ended; how it failed, or None."""
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    for name in list(logging.root.manager.loggerDict):  # what torchrun says is said below
        if name.startswith('torch.distributed.elastic'):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    file, beats = tmp / 'settings.json', tmp / 'heartbeats'
    file.write_text(settings.to_json(), encoding='utf-8')
    heartbeat.create(beats, settings.nproc)
    rank_argv = ['-m', 'seresnet_timm.launch.rank', str(file), str(beats), str(log_dir / 'stacks')]
    argv = [*_torchrun_argv(settings, node, log_dir), *rank_argv]
    watch = Watch(beats, settings.hang_timeout, end_ranks, first_rank=node.rank * settings.nproc)
    ended: Dict[int, int] = {}
    try:
        with ExitStack() as stack:
            stack.enter_context(watch)
            stack.enter_context(ranks_end_soon(settings, beats, ended))
            stack.enter_context(_machines_watched(settings, node, watch, ended))
            _run_torchrun(torchrun.get_args_parser().parse_args(argv), settings, node)
        return None
    except ChildFailedError as e:
        made_steps = any(beat.steps for beat in heartbeat.read(beats))
        _write_pids(settings, node, beats, log_dir)
        if watch.sentence:
            error = RunError(f'{watch.sentence}; the stacks of all ranks of this node are in {log_dir / "stacks"}.'
                             f'{resume_hint(settings)}')
            return Failure(error, made_steps)
        for rank, failure in e.failures.items():
            other = other_error_file(tmp, rank - node.rank * settings.nproc)
            if other.is_file():
                failure.error_file = str(other)
        rank, failure = _first_fault(settings, node, e, ended)
        stopped = None if _text(failure) else _stopped_by(failure.exitcode)
        if stopped is not None:
            raise _stop(settings, stopped)
        error = _failure(settings, node, rank, failure, log_dir)
        return Failure(error, made_steps and not _is_final(failure))
    except SignalException as e:
        raise _stop(settings, e.sigval)
    except (RuntimeError, RendezvousError) as e:  # torch.distributed's DistNetworkError and DistStoreError
        raise RunError(limits.explain(e) or _rendezvous_failure(settings, node, e))


@contextmanager
def ranks_end_soon(settings: RunSettings, beats: Path, ended: Dict[int, int]) -> Iterator[None]:
    """While torchrun runs ranks: kill those that do not end though one has failed, or a signal came.

    A rank that waits for one that has ended may do so for ever, where Python handles no signal; torchrun kills it after
    30 s. A checkpoint that is being written is waited for.

    Args:
        settings: Settings of the run.
        beats: Heartbeat file of the ranks.
        ended: Gets the processes that are sent a signal, each with the last one.
    """
    from torch.distributed.elastic.multiprocessing import api
    PContext = api.PContext
    torchs_start, torchs_close = PContext.start, PContext.close
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    ignored = [signum for signum, handler in before.items() if handler is signal.SIG_IGN]

    def start(context: Any) -> None:
        for signum in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, api._terminate_process_handler)
        torchs_start(context)
        for signum in ignored:  # as by nohup
            signal.signal(signum, signal.SIG_IGN)

    def close(context: Any, death_sig: Any = None, timeout: int = 30) -> None:
        # Popen knows which has ended: the number of a process that was waited for may be that of another one by now
        ranks = [handler.proc for handler in context.subprocess_handlers.values()]
        made_steps = any(beat.steps for beat in heartbeat.read(beats))
        start = time.monotonic()
        first_end = None if death_sig is not None and len(_living(ranks)) == len(ranks) else start
        has_failed = death_sig is None and not any(_stopped_by(rank.poll() or 0) for rank in ranks)
        send(ranks, death_sig or signal.SIGTERM, ended)
        while _living(ranks):
            now = time.monotonic()
            if first_end is None and len(_living(ranks)) < len(ranks):
                first_end = now
            if made_steps and (first_end is None or settings.output and temporary_files(settings.output)):
                deadline = start + TO_SAVE
            else:
                deadline = (first_end or start) + (TO_END if has_failed else TO_STOP)
            if now > deadline:
                send(ranks, signal.SIGKILL, ended)
                break
            time.sleep(0.05)
        torchs_close(context, signal.SIGKILL, timeout)

    PContext.start, PContext.close = start, close
    try:
        yield
    finally:
        PContext.start, PContext.close = torchs_start, torchs_close
        for signum, handler in before.items():  # until ranks are started again
            signal.signal(signum, handler)


@contextmanager
def _machines_watched(settings: RunSettings, node: Node, watch: Watch, ended: Dict[int, int]) -> Iterator[None]:
    """While torchrun runs ranks on several machines: end those of this one when another machine is gone."""
    from torch.distributed.elastic.multiprocessing.api import PContext
    seconds = machines.seconds_without_answer(settings.hang_timeout) if settings.nnodes > 1 else 0
    start_before = PContext.start

    def start(context: Any) -> None:
        def lost(sentence: str) -> None:
            watch.end_all(sentence)
            send([handler.proc for handler in context.subprocess_handlers.values()], signal.SIGKILL, ended)
        # all machines have met by now
        stack.enter_context(machines.watched(
            context.envs[0], node.rank, f'Node {node.rank} ({socket.gethostname()})', seconds, lost))
        start_before(context)

    with ExitStack() as stack:
        PContext.start = start
        stack.callback(setattr, PContext, 'start', start_before)
        yield


def _living(ranks: Iterable[Any]) -> List[Any]:
    return [rank for rank in ranks if rank.poll() is None]


def send(ranks: Iterable[Any], signum: int, ended: Dict[int, int]) -> None:
    """Send a signal to processes (Popen) of which some may have ended, and note to which."""
    for rank in _living(ranks):
        ended[rank.pid] = signum
        rank.send_signal(signum)


def _hand_on(error: type) -> Any:
    """Handler of signals: torchrun sends the first to its ranks and waits for them; the second ends them at once.

    Args:
        error: torchrun's SignalException.
    """
    received: List[float] = []

    def handle(signum: int, _frame: Any) -> None:
        received.append(time.monotonic())
        if len(received) == 1:
            raise error(f'signal {signum}', sigval=signal.Signals(signum))
        if received[-1] - received[0] > TWICE:
            os.write(2, SECOND_SIGNAL)
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
    return handle


def _stopped_by(exit_code: int) -> Optional[int]:
    """The signal after which a rank saved and ended, or ended before its training; None if it ended otherwise."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return number if number in STOPPING else None


def _stop(settings: RunSettings, signum: int) -> SystemExit:
    print(f'Stopped by {signal.Signals(signum).name}: all processes of this node have ended.' + resume_hint(settings),
          file=sys.stderr)
    return SystemExit(128 + signum)


def _run_torchrun(args: Any, settings: RunSettings, node: Node) -> None:
    """Run the agent. The other nodes may still be ending the last attempt: try until they are there."""
    import torch.distributed.run as torchrun
    may_try_again = settings.nnodes > 1 and (settings.restarts or node.rank)
    deadline = time.monotonic() + node.rdzv_timeout
    while True:
        try:
            with waiting_for_nodes(settings, node), meeting.joined(settings, node, deadline) as args.rdzv_id:
                return torchrun.run(args)
        except RuntimeError as e:
            if not may_try_again or time.monotonic() > deadline or limits.explain(e):
                raise
            time.sleep(1)


def _write_pids(settings: RunSettings, node: Node, beats: Path, log_dir: Path) -> None:
    """Write the process of each rank beside the logs: CANN's own logs are named after it."""
    first = node.rank * settings.nproc
    with suppress(OSError):
        write_json(log_dir / 'pids.json', {str(first + i): beat.pid for i, beat in enumerate(heartbeat.read(beats))})


def _first_fault(settings: RunSettings, node: Node, error: Any, ended: Mapping[int, int] = {}) -> Tuple[int, Any]:
    """Rank and failure of the rank that failed first; one that only lost another rank is not to blame.

    Nor is one that was ended because of it; and one that failed comes before one that a signal stopped. A rank may do
    both: leave its error, and get the signal while its process ends.

    Args:
        settings: Settings of the run.
        node: This node.
        error: torchrun's ChildFailedError. It has the ranks that torchrun ended, and not those that failed meanwhile.
        ended: Processes that were sent a signal after the first failure, each with the last one.
    """
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    files = [Path(failure.error_file) for _, failure in failures]
    base = next((file.parents[1] for file in files if file.name == 'error.json'), None)  # one folder a rank
    for local in range(settings.nproc) if base is not None else ():
        file = base / str(local) / 'error.json'
        if file.is_file() and node.rank * settings.nproc + local not in error.failures:
            failures.append((
                node.rank * settings.nproc + local, SimpleNamespace(exitcode=1, pid=None, error_file=str(file))))
    own = [(r, failure) for r, failure in failures if not _lost_another(failure) and not _was_ended(failure, ended)]
    own.sort(key=lambda item: not _text(item[1]) and _stopped_by(item[1].exitcode) is not None)
    return own[0] if own else error.get_first_failure()


def _text(failure: Any) -> str:
    """The exception that a rank left; '' if it left none."""
    return _read_error(failure.error_file).text()


def _lost_another(failure: Any) -> bool:
    text = _text(failure)
    return bool(text) and is_consequence(text)


def _was_ended(failure: Any, ended: Mapping[int, int]) -> bool:
    """Whether it ended because of the first failure, see `ranks_end_soon`."""
    if _text(failure) or failure.pid not in ended:
        return False
    number = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128
    return number in (signal.SIGTERM, ended[failure.pid])


def _is_final(failure: Any) -> bool:
    """A rank ended with a sentence of its own, not on another rank: it would say the same again."""
    return _read_error(failure.error_file).kind in OWN_ERRORS and not _lost_another(failure)


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
    with printed(f'{whom} {meeting.address(node)}', node.rdzv_timeout, lambda: len(this.children()) > before):
        yield


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
    return argv


def _set_environment(settings: RunSettings, node: Node) -> None:
    """Environment of the ranks; what the user has set stays."""
    cluster.forget(os.environ)
    # a rank is started with -m, which looks in the current folder first: not for another copy of this package
    other = Path('seresnet_timm')
    if other.is_dir() and not other.samefile(Path(__file__).resolve().parents[1]):
        os.environ.setdefault('PYTHONSAFEPATH', '1')
    # the CPU computes with all cores; elsewhere a rank's own threads have little to do
    share = max(1, process.cores() // settings.nproc) if settings.device == 'cpu' else 1
    os.environ.setdefault('OMP_NUM_THREADS', str(share))
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
    if failure.exitcode < 0 and not _text(failure):
        name = signal.Signals(-failure.exitcode).name
        hint = ' (out of memory? `dmesg` tells)' if name == 'SIGKILL' else ''
        return RunError(f'Rank {rank} was killed by {name}{hint}.{resume_hint(settings)}')
    error = _read_error(failure.error_file)
    if error.kind == 'UsageError':
        return UsageError(error.sentence)
    if error.kind == 'RunError':
        return RunError(error.sentence)
    text = error.text()
    if settings.nnodes > 1 and is_consequence(text):
        return RunError(f'Node {node.rank} lost contact with another node, which has ended or cannot be reached '
                        f'any more: its own log says why.{resume_hint(settings)}\n{text.strip().splitlines()[-1]}')
    where = f'Rank {rank} failed' if text else f'Rank {rank} ended with exit code {failure.exitcode}'
    return RunError(f'{where}; the other ranks of this node were stopped, their logs are in {log_dir}.'
                    f'{resume_hint(settings)}\n{text}'.rstrip())


def _read_error(error_file: str) -> RankError:
    """The exception that a rank left."""
    try:
        text = Path(error_file).read_text()
    except (OSError, ValueError):
        text = ''
    return parse_error(text) or RankError('', '', '')


def _rendezvous_failure(settings: RunSettings, node: Node, error: RuntimeError) -> str:
    address = meeting.address(node)
    if settings.nnodes == 1:
        return f'torchrun could not start the processes: {str(error).splitlines()[0]}'
    if node.rank == 0:
        return (f'Not all of the {settings.nnodes} nodes came to {address} within {node.rdzv_timeout} s: start the '
                'others with the same --nnodes, --master-addr and --master-port, or wait longer with --rdzv-timeout '
                'SECONDS.')
    if node.master_addr and not is_known(node.master_addr):
        return (f'The name {node.master_addr} of node 0 is not known here: give an IP address with --master-addr, or '
                'add the name to /etc/hosts.')
    return (f'Node 0 cannot be reached at {address} within {node.rdzv_timeout} s: start it, check --master-addr, '
            '--master-port and the firewall, or wait longer with --rdzv-timeout SECONDS.')

