"""`seresnet-timm watch`: follows a run by its files, also from another machine that shares its folder

status.json says how far the run is, run.json what went wrong and whether it has finished. Whether a process still lives
is looked up on its own machine only; elsewhere the age of its last sign of life tells.
"""
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional

import psutil
from tqdm import tqdm

from seresnet_timm.errors import UsageError, counted, printable
from seresnet_timm.files import is_locked
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import read_record
from seresnet_timm.runs.show import RunBar, duration, fitted, has_color, is_terminal, left, metrics, moment, painted
from seresnet_timm.runs.status import Status, read_status

SILENCE = 120.  # seconds without a sign of life; files of network folders may be seen a minute late
LOST = 600.  # seconds after which a run of another machine is given up
UNREADABLE = 30.  # seconds for which a file may not be readable


@dataclass(frozen=True)
class View:
    """A run, as it is seen now.

    Attributes:
        state: That of the status, or 'restarting', 'died', 'silent'.
        text: The sentence for a state that is not 'training' or 'evaluating'.
        status: How far it is; None if only run.json is there.
        is_over: Nothing more is expected of it.
        faults: What went wrong so far, in words.
        age: Seconds since its last sign of life.
    """
    state: str
    text: str
    status: Optional[Status]
    is_over: bool
    faults: str = ''
    age: float = 0.

    @property
    def exit_code(self) -> int:
        return 0 if self.state in ('finished', 'starting', 'training', 'evaluating', 'restarting') else 1


class Follower:
    """Looks at a run again and again.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._record: Dict[str, Any] = {}
        self._record_time = 0.
        self._beat: Any = None  # of the status, and when it was seen first, by this machine's own clock
        self._seen = time.monotonic()

    def look(self) -> View:
        """The run now.

        Raises:
            UsageError: A file of it is damaged, or of a later version.
        """
        status, record = read_status(self.folder.status), self._read_record()
        if status is None:
            return self._without_status(record)
        if status.value is None and status.best is None and record.get('best'):
            best = record['best']
            status = replace(status, metric=best['metric'], best=best['value'], best_epoch=best['epoch'])
        view = View(status.state, '', status, False, describe_faults(record, status), self._age(status))
        if status.is_final:
            return self._final(view, status)
        if status.is_here and not lives(status):
            if self._may_restart(status):
                return replace(view, state='restarting', text='A process has ended; the launcher starts it again.')
            return replace(view, state='died', is_over=True, text=describe_death(status))
        if not status.is_here and view.age > SILENCE:
            text = (f'No update from {printable(status.host)} for {duration(view.age)}: the run has ended, or its '
                    'machine or this folder cannot be reached.')
            return replace(view, state='silent', text=text, is_over=view.age > LOST)
        return view

    def _age(self, status: Status) -> float:
        """Seconds since the last sign of life; by the clock of this machine alone once it has seen one."""
        now, beat = time.monotonic(), (status.pid, status.pid_started, status.beat)
        if self._beat is None:
            self._seen = now - max(0., time.time() - status.written)
        elif beat != self._beat:
            self._seen = now
        self._beat = beat
        return now - self._seen

    def _final(self, view: View, status: Status) -> View:
        why = f': {printable(status.text)}' if status.text else ''
        if status.state == 'failed' and self._may_restart(status):
            return replace(view, state='restarting', text=f'A process failed{why}. It is started again.')
        how = 'failed' if status.state == 'failed' else 'been stopped'
        return replace(view, is_over=True, text=f'The run has {how}{why}')

    def _may_restart(self, status: Status) -> bool:
        if status.restarts >= status.max_restarts:
            return False
        if status.is_here and status.launcher is not None:
            return psutil.pid_exists(status.launcher)
        return time.monotonic() - self._seen < SILENCE

    def _without_status(self, record: Dict[str, Any]) -> View:
        faults = describe_faults(record, None)
        if record.get('finished'):
            return View('finished', describe_end(record), None, True, faults)
        changed = _changed(self.folder.path)
        if is_locked(self.folder.lock) or time.time() - changed < SILENCE:
            return View('starting', 'It starts.', None, False, faults)
        return View('died', 'It has ended, and not finished; nothing more is known.', None, True, faults)

    def _read_record(self) -> Dict[str, Any]:
        """run.json, read again when it has changed; {} without one."""
        try:
            changed = self.folder.record.stat().st_mtime
        except OSError:
            return {}
        if changed != self._record_time:
            self._record, self._record_time = read_record(self.folder.path), changed
        return self._record


def lives(status: Status) -> bool:
    """Whether rank 0 of a run of this machine lives: the process that started at that time has its number."""
    moved = psutil.boot_time() - status.booted if status.booted else 0.  # the clock was set
    try:
        process = psutil.Process(status.pid)
        started = process.create_time() - moved
        return abs(started - status.pid_started) < 5 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True


def describe_death(status: Status) -> str:
    """What is known of a process that has ended without a word."""
    when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.written))
    epoch = '' if status.epoch is None else f' in epoch {status.epoch}'
    step = '' if status.update is None else f' at update {status.update} of {status.updates}'
    return (f'Process {status.pid} has ended without an error message{epoch}: it was killed or crashed{step}, after '
            f'{when}. Most likely SIGKILL because memory ran out (`dmesg -T` tells), or the machine went down.')


def how_it_died(folder: RunFolder) -> Optional[str]:
    """A sentence if the last training in a folder ended without a word; None if it lives, or that is not known."""
    with suppress(UsageError):
        status = read_status(folder.status)
        if status is None or status.is_final or is_locked(folder.lock):
            return None
        may_live = lives(status) if status.is_here else time.time() - status.written < SILENCE
        return None if may_live else describe_death(status)
    return None


def describe_end(record: Dict[str, Any]) -> str:
    """How a run that has finished ended."""
    stop, best = record['early_stop'], record['best']
    text = f'Finished at {moment(record["finished"])}, {counted(len(record["epochs"]), "epoch")}'
    if stop:
        text += f'; ended early, as {stop["metric"]} had not been better for {stop["patience"]} epochs'
    if best and best['value'] is not None:
        text += f'; best {best["metric"]} {best["value"]:.4g} in epoch {best["epoch"]}'
    return printable(text + '.')


def describe_faults(record: Dict[str, Any], status: Optional[Status]) -> str:
    """What went wrong so far, e.g. '1 restart, 3 skipped steps'; '' if nothing is known."""
    faults, epochs = record.get('faults') or [], record.get('epochs') or []
    counts = {kind: sum(fault['kind'] == kind for fault in faults)
              for kind in ('restart', 'save', 'data_wait', 'worker')}
    steps = sum(epoch['bad_steps'] or 0 for epoch in epochs if status is None or epoch['epoch'] != status.epoch)
    steps += (status.bad_steps or 0) if status else 0
    images = max((epoch['unreadable_train']['count'] for epoch in epochs if epoch['unreadable_train']), default=0)
    names = ((counts['restart'], 'restart'), (steps, 'skipped step'), (images, 'bad image'),
             (counts['save'], 'failed save'), (counts['data_wait'], 'wait for the data folder'),
             (counts['worker'], 'replaced loader worker'))
    found = []
    for count, name in names:
        first, _, rest = name.partition(' for')
        found += [f'{counted(count, first)}{" for" + rest if rest else ""}'] if count else []
    return ', '.join(found)


def describe(view: View) -> str:
    """One line on a run."""
    status = view.status
    parts: List[str] = []
    if status is not None:
        if status.epoch is not None:
            of = '' if status.epochs is None else f' ({status.epoch + 1} of {status.epochs})'
            parts.append(f'epoch {status.epoch}{of}')
        if view.state == 'evaluating' and status.batches:
            parts.append(f'batch {status.batch} of {status.batches}')
        elif status.update is not None:
            parts.append(f'step {status.update} of {status.updates}')
        parts += [] if status.images_per_second is None else [f'{status.images_per_second:.1f} images/s']
        parts += [] if status.loss is None else [f'loss {status.loss:.4f}']
        parts += [metrics(status), '' if view.is_over else left(status)]
    parts += [view.faults]
    if status is not None and not view.is_over:
        parts.append(life(view, status))
    return ': '.join(filter(None, (view.state, ', '.join(filter(None, map(printable, parts))))))


def life(view: View, status: Status) -> str:
    """When the run was heard of last, and its last step."""
    since_step = 0. if status.moved is None else max(0., status.written - status.moved) + view.age
    text = f'updated {duration(view.age)} ago'
    return f'{text}, no step for {duration(since_step)}' if since_step > 60 + view.age else text


def find_run(path: Path) -> RunFolder:
    """The run of a folder, or the newest run in a folder of runs.

    Raises:
        UsageError: There is none.
    """
    if not path.is_dir():
        raise UsageError(f'{path} is not a folder: name the folder of a run, such as output/train/NAME, or a folder of '
                         'runs.')
    if _is_run(path):
        return RunFolder(path)
    runs = [(_changed(child), child) for child in path.iterdir() if child.is_dir() and _is_run(child)]
    if not runs:
        raise UsageError(f'{path} holds no run: a run has the file run.json, which it writes when it starts.')
    return RunFolder(max(runs)[1])


def _is_run(path: Path) -> bool:
    folder = RunFolder(path)
    return any(file.exists() for file in (folder.record, folder.status, folder.lock, folder.logs))


def _changed(path: Path) -> float:
    folder = RunFolder(path)
    files = [file for file in (folder.record, folder.status) if file.is_file()]
    return max(file.stat().st_mtime for file in (files or [path]))


def watch(path: Path, once: bool = False, interval: float = 2.) -> int:
    """Show a run until it is over; the exit code: 0 if it has finished, or still runs with `once`, else 1.

    Args:
        path: Folder of the run, or of runs: the newest.
        once: Print it as it is now.
        interval: Seconds between two looks.

    Raises:
        UsageError: There is no run, or a file of it is damaged.
    """
    folder = find_run(path)
    follower = Follower(folder)
    record = read_record(folder.path) if folder.record.is_file() else None
    if record is not None and record['settings'].get('verb') == 'validate':
        raise UsageError(f'{folder.path} is the folder of an evaluation: there is nothing to follow.')
    print(fitted('', printable(describe_run(folder, record)), sys.stdout), flush=True)
    if once:
        view = follower.look()
    elif is_terminal(sys.stdout):
        view = _on_terminal(follower, interval)
    else:
        view = _on_lines(follower, interval)
    text = describe(view)
    if view.status is not None or once and not (view.text and text == view.state):  # the text says it
        print(fitted('', text, sys.stdout))
    if view.text:
        color = 'green' if view.state == 'finished' else 'yellow' if view.exit_code == 0 else 'red'
        print(painted(fitted('', view.text, sys.stdout), color, sys.stdout), flush=True)
    return view.exit_code


def describe_run(folder: RunFolder, record: Optional[Dict[str, Any]]) -> str:
    if record is None:
        return f'{folder.path}'
    settings = record['settings']
    return (f'{folder.path}: {settings["args"]["model"]} on {settings["device"]}, '
            f'{counted(settings["world_size"], "process", "processes")}, started {moment(record["started"])}')


def _look(follower: Follower, since: List[float]) -> Optional[View]:
    """The run now; None for a file that cannot be read, for a while."""
    try:
        view = follower.look()
    except UsageError:
        since.append(time.monotonic())
        if since[-1] - since[0] > UNREADABLE:
            raise
        return None
    since.clear()
    return view


def _on_lines(follower: Follower, interval: float) -> View:
    """A line for every change, until the run is over."""
    before: Any = None
    unreadable: List[float] = []
    while True:
        view = _look(follower, unreadable)
        if view is not None and view.is_over:
            return view
        if view is not None:
            status = view.status
            now = (view.state, view.faults, None if status is None else (
                status.epoch, status.update, status.batch, status.loss, status.value, status.ends))
            if now != before:
                print(describe(view), flush=True)
            before = now
        time.sleep(interval)


def _on_terminal(follower: Follower, interval: float) -> View:
    """Bars of the run and of its epoch, and a line on what went wrong, until the run is over."""
    unreadable: List[float] = []
    with ExitStack() as stack:
        run_bar: Any = None
        while True:
            view = _look(follower, unreadable)
            if view is not None and view.is_over:
                return view
            if view is not None and view.status is not None and view.status.epochs:
                if run_bar is None:
                    run_bar = stack.enter_context(RunBar(view.status, desc='Run', leave=False, file=sys.stdout))
                    epoch_bar = stack.enter_context(tqdm(
                        leave=False, dynamic_ncols=True, file=sys.stdout, bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt}'
                        '{postfix}', colour='green' if has_color(sys.stdout) else None))
                    last_line = stack.enter_context(tqdm(
                        leave=False, bar_format='{desc}', dynamic_ncols=True, file=sys.stdout))
                _draw(view, view.status, (run_bar, epoch_bar, last_line))
            time.sleep(interval)


def _draw(view: View, status: Status, bars: Any) -> None:
    run_bar, epoch_bar, last_line = bars
    updates = status.updates or 1
    run_bar.status, run_bar.total = status, (status.epochs or 0) * updates
    run_bar.n = (status.epoch or 0) * updates + (status.update or 0)
    is_evaluation = view.state == 'evaluating' and bool(status.batches)
    epoch_bar.total = status.batches if is_evaluation else updates
    epoch_bar.n = (status.batch if is_evaluation else status.update) or 0
    epoch_bar.desc = f'{"Test" if is_evaluation else "Train"} {status.epoch}: '
    figures = [] if status.images_per_second is None else [f'{status.images_per_second:.1f} images/s']
    figures += [] if status.loss is None else [f'loss {status.loss:.3f}']
    epoch_bar.set_postfix_str(', '.join(figures), refresh=False)
    text = ', '.join(filter(None, (view.state, view.faults, life(view, status), view.text)))
    last_line.set_description_str(printable(text), refresh=False)
    for bar in bars:
        bar.refresh()
