"""Each fault but SIGKILL at random instants, once: what the run says, what is lost, how long until it goes on"""
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from chaos_runs import RANDOM, Run, result_of

from seresnet_timm.errors import counted

# for --device-modules: after 40 steps rank 0 waits, once, for a lock that it has, and keeps Python's meanwhile
KEEPS_LOCK = """
import ctypes, os, time
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
steps, kept = 0, Path(os.environ['KEPT'])

def keep_lock(*_):
    global steps
    steps += 1
    if steps == 40 and os.environ.get('RANK', '0') == '0' and not kept.exists():
        kept.touch()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)

register_optimizer_step_post_hook(keep_lock)
"""

@dataclass
class Row:
    """What a fault did.

    Attributes:
        fault: What was done to the run.
        said: What it said.
        lost: What was lost.
        seconds: Until it went on, or ended.
        is_right: It ended with the weights of the run that nobody disturbed, or as it should.
    """
    fault: str
    said: str = ''
    lost: str = ''
    seconds: float = 0.
    is_right: bool = False


class Faults:
    """Does each fault to a run of its own.

    Args:
        data: Folder of the data set.
        tmp: Folder for the runs.
    """

    def __init__(self, data: Path, tmp: Path):
        self.data, self.tmp = data, tmp
        self._whole: Dict[Tuple[Any, ...], Tuple[str, str]] = {}
        self._count = 0

    def start(self, *flags: str, ranks: int = 1, folder: Optional[Path] = None, data: Optional[Path] = None,
              prefix: Sequence[str] = ()) -> Run:
        self._count += 1
        return Run(data or self.data, folder or self.tmp / f'run{self._count}',
                   (*RANDOM, '--scripts', 'bundled', *flags), ranks, prefix)

    def expected(self, *flags: str, ranks: int = 1) -> Tuple[str, str]:
        """Result of the run that nobody disturbs."""
        key = (flags, ranks)
        if key not in self._whole:
            run = self.start(*flags, ranks=ranks)
            if run.wait():
                raise RuntimeError(run.output[-3000:])
            self._whole[key] = result_of(run.folder)
        return self._whole[key]

    def goes_on(self, run: Run, *flags: str, ranks: int = 1) -> bool:
        """Whether a new start of a run that has ended comes to the result of the one that nobody disturbed."""
        last = self.start(*flags, ranks=ranks, folder=run.folder)
        return last.wait() == 0 and result_of(run.folder) == self.expected(*flags, ranks=ranks)

    def is_expected(self, folder: Path, *flags: str, ranks: int = 1) -> bool:
        return result_of(folder) == self.expected(*flags, ranks=ranks)

    def ends_as_expected(self, run: Run, *flags: str, ranks: int = 1) -> bool:
        return run.wait() == 0 and result_of(run.folder) == self.expected(*flags, ranks=ranks)

    def signal_to(self, signum: int, ranks: int, rank: Optional[int] = None) -> Row:
        """A signal to the launcher, or to one of the ranks."""
        whom = f'the launcher, {ranks} rank{"s" if ranks > 1 else ""}' if rank is None else f'rank {rank} of {ranks}'
        row = Row(f'{signal.Signals(signum).name} to {whom}')
        run = self.start(ranks=ranks)
        run.wait_for('Train: 1')
        sent = run.seconds
        (run.process if rank is None else run.ranks()[rank]).send_signal(signum)
        code = run.wait()
        row.seconds = run.seconds - sent
        _, row.said = run.wait_for('Stopped by')
        row.lost = 'nothing'
        row.is_right = code == 128 + signum and row.seconds < 10 and self.goes_on(run, ranks=ranks)
        return row

    def second_signal(self) -> Row:
        row = Row('SIGTERM twice to 2 ranks of which one is stopped, so that its step does not end')
        run = self.start(ranks=2)
        run.wait_for('Train: 1')
        lost = run.lost()
        run.ranks()[1].suspend()
        for _ in range(2):
            sent = run.seconds
            run.process.terminate()
            time.sleep(1.2)
        code = run.wait()
        row.seconds, row.lost = run.seconds - sent, f'{lost:.1f} s of work'
        _, row.said = run.wait_for('second signal|Stopped by')
        row.is_right = code == 143 and row.seconds < 10 and self.goes_on(run, ranks=2)
        return row

    def killed_rank(self) -> Row:
        row = Row('SIGKILL to rank 1 of 2, --max-restarts 3')
        flags = ('--max-restarts', '3')
        run = self.start(*flags, ranks=2)
        run.wait_for('Train: 1')
        lost, killed = run.lost(), run.seconds
        run.ranks()[1].kill()
        _, row.said = run.wait_for('Restart 1 of 3')
        when, _ = run.wait_for('Train: ', after=run.wait_for('Restart 1 of 3')[0])
        row.seconds, row.lost = when - killed, f'{lost:.1f} s of work'
        row.is_right = self.ends_as_expected(run, ranks=2)
        return row

    def stopped_rank(self) -> Row:
        row = Row('SIGSTOP to rank 1 of 2, --hang-timeout 10 --max-restarts 3')
        run = self.start('--max-restarts', '3', '--hang-timeout', '10', ranks=2)
        run.wait_for('Train: 1')
        lost, stopped = run.lost(), run.seconds
        run.ranks()[1].suspend()
        _, row.said = run.wait_for('finished a step for', after=stopped)
        when, _ = run.wait_for('Train: ', after=run.wait_for('Restart 1 of 3')[0])
        row.seconds, row.lost = when - stopped, f'{lost:.1f} s of work, and the 10 s'
        row.is_right = self.ends_as_expected(run, ranks=2)
        return row

    def killed_launcher(self) -> Row:
        row = Row('SIGKILL to the launcher of 2 ranks with 2 workers each')
        run = self.start('-j', '2', ranks=2)
        run.wait_for('Train: 1')
        lost, family = run.lost(), run.process.children(recursive=True)
        run.process.kill()
        row.seconds = run.seconds_until_gone(family)
        row.said, row.lost = '(nothing can)', f'{lost:.1f} s of work'
        row.is_right = row.seconds < 2 and self.goes_on(run, '-j', '2', ranks=2)
        return row

    def damaged_checkpoint(self) -> Row:
        row = Row('last.pth.tar of a killed run is cut in half')
        run = self.start()
        run.wait_for('Train: 1')
        run.kill_all()
        run.wait()
        last = run.folder / 'last.pth.tar'
        os.truncate(last, last.stat().st_size // 2)
        again = self.start(folder=run.folder)
        code = again.wait()
        when, row.said = again.wait_for('The one before it is used')
        row.seconds, row.lost = again.wait_for('Train: ')[0], 'work since the checkpoint before'
        row.is_right = code == 0 and result_of(run.folder) == self.expected()
        return row

    def second_run(self) -> Row:
        row = Row('a second run is started in the same folder')
        run = self.start('--epochs', '20')
        run.wait_for('Train: 0')
        second = self.start(folder=run.folder)
        code = second.wait()
        _, row.said = second.wait_for('Another training')
        row.seconds, row.lost = second.seconds, 'nothing'
        row.is_right = code == 2 and self.ends_as_expected(run, '--epochs', '20')
        return row

    def full_disk(self) -> Row:
        row = Row('the disk is full for some saves')
        disk = self.tmp / 'disk'
        disk.mkdir()
        _mount(disk, '40M')
        try:
            return self._fill(disk, row)
        finally:
            subprocess.run(['umount', '--lazy', str(disk)], check=True)

    def _fill(self, disk: Path, row: Row) -> Row:
        run = self.start(folder=disk / 'run')
        run.wait_for('Train: 0')
        with contextlib.suppress(OSError), open(disk / 'ballast', 'wb', buffering=0) as f:
            while True:
                f.write(bytes(4096))
        full, row.said = run.wait_for('NOT SAVED: (Epoch|The middle)')
        os.unlink(disk / 'ballast')
        saved, _ = run.wait_for('Saved again', after=full)
        row.seconds, row.lost = saved - full, 'nothing: it trained on'
        row.is_right = self.ends_as_expected(run)
        return row

    def small_shm(self) -> Row:
        row = Row('/dev/shm has 400 kB, 2 workers')
        _mount(Path('/dev/shm'), '400k')
        run = self.start('-j', '2', '-b', '64', '--fast-jpeg', 'off')
        code = run.wait()
        subprocess.run(['umount', '--lazy', '/dev/shm'], check=True)
        _, row.said = run.wait_for('error: .*/dev/shm')
        row.seconds, row.lost, row.is_right = run.seconds, 'nothing: it had not begun', code in (1, 2)
        return row

    def no_data(self) -> Row:
        row = Row('the data folder is gone for 4 s')
        data = self.tmp / 'moved'
        shutil.copytree(self.data, data)
        run = self.start('-j', '2', '--fast-jpeg', 'off', data=data)
        run.wait_for('Train: 1')
        moved = run.seconds
        data.rename(self.tmp / 'gone')
        time.sleep(4)
        (self.tmp / 'gone').rename(data)
        row.seconds = run.wait_for('Train: ', after=run.seconds)[0] - moved
        row.lost = 'nothing'
        row.is_right = self.ends_as_expected(run, '-j', '2', '--fast-jpeg', 'off')
        row.said = run.wait_for('data folder is gone')[1]
        return row

    def killed_worker(self) -> Row:
        row = Row("SIGKILL to a loader worker (timm's own loading, 2 workers)")
        run = self.start('-j', '2', '--fast-jpeg', 'off')
        run.wait_for('Train: 1')
        killed = run.seconds
        run.workers()[0].kill()
        _, row.said = run.wait_for('worker', after=killed)
        row.seconds, row.lost = run.wait_for('Train: ', after=run.seconds)[0] - killed, 'nothing'
        row.is_right = self.ends_as_expected(run, '-j', '2', '--fast-jpeg', 'off')
        return row

    def kept_lock(self, ranks: int) -> Row:
        """A call of C that keeps Python's lock and does not return: no thread of the rank runs Python any more."""
        flags = ('--hang-timeout', '30', '--max-restarts', '1')
        row = Row(f"a call of C keeps Python's lock for ever, {counted(ranks, 'rank')}, {' '.join(flags)}")
        folder = self.tmp / f'lock{ranks}'
        (folder / 'modules').mkdir(parents=True)
        (folder / 'modules' / 'keeps_lock.py').write_text(KEEPS_LOCK)
        run = self.start('--device-modules', 'keeps_lock', *flags, ranks=ranks, prefix=(
            'env', f'PYTHONPATH={folder / "modules"}:{os.environ.get("PYTHONPATH", "")}', f'KEPT={folder / "kept"}'))
        wait_until((folder / 'kept').exists)
        kept = run.seconds
        row.said = run.wait_for('finished a step for')[1]
        row.seconds, row.lost = run.seconds - kept, 'the interval, and the 30 s'
        stacks = ''.join(file.read_text() for file in run.folder.rglob('logs/**/*.txt'))
        if ranks == 1:
            row.is_right = run.wait() == -signal.SIGKILL and self.goes_on(run)
        else:
            row.is_right = self.ends_as_expected(run, ranks=ranks)
        row.is_right = row.is_right and 'in keep_lock' in stacks
        return row

    def bad_numbers(self) -> Row:
        row = Row('learning rate 1e9: loss and gradients are not finite')
        run = self.start('--lr', '1e9')
        code = run.wait()
        row.said = run.output.splitlines()[-1]
        row.seconds, row.lost, row.is_right = run.seconds, 'nothing', code == 1
        return row


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def said_shortly(text: str) -> str:
    """A sentence without the command that follows it, and without the folders of this benchmark."""
    return re.sub(r'/\S*/(?=\S)', '.../', text.partition('Resume with:')[0]).strip()


def _mount(folder: Path, size: str) -> None:
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)], check=True)


def faults_of_one_machine(faults: Faults) -> Dict[str, Callable[[], Row]]:
    """What is done to a run, by name."""
    return {
        **{f'{signum.name.lower()}-{ranks}': functools.partial(faults.signal_to, signum, ranks)
           for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
           for ranks in (1, 2)},
        'sigterm-rank': functools.partial(faults.signal_to, signal.SIGTERM, 2, rank=1),
        'second-signal': faults.second_signal,
        'killed-rank': faults.killed_rank,
        'stopped-rank': faults.stopped_rank,
        'killed-launcher': faults.killed_launcher,
        'killed-worker': faults.killed_worker,
        'damaged-checkpoint': faults.damaged_checkpoint,
        'second-run': faults.second_run,
        'full-disk': faults.full_disk,
        'small-shm': faults.small_shm,
        'no-data': faults.no_data,
        'bad-numbers': faults.bad_numbers,
        **{f'kept-lock-{ranks}': functools.partial(faults.kept_lock, ranks) for ranks in (1, 2)},
    }


def do_faults(todo: Dict[str, Callable[[], Row]], only: Optional[str]) -> List[Row]:
    """Do faults by name, all or those that match a pattern, and print a row for each."""
    chosen = [name for name in todo if not only or re.fullmatch(only, name)]
    if not chosen:
        raise SystemExit(f'--only {only}: not one of {", ".join(todo)}')
    rows = []
    for name in chosen:
        try:
            row = todo[name]()
        except RuntimeError as e:
            row = Row(name, said=str(e))
        rows.append(row)
        print(f'| {row.fault} | {said_shortly(row.said)} | {row.lost} | {row.seconds:.1f} | '
              f'{"yes" if row.is_right else "NO"} |', flush=True)
    return rows
