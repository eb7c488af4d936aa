"""What happens to a training to which something happens: real processes, real signals, real files

    python benchmarks/chaos.py kills                # 200 SIGKILLs at random instants, over a table of configurations
    python benchmarks/chaos.py kills --kills 20     # a quick look
    python benchmarks/chaos.py faults               # each other fault once

Every run trains a small network on a part of the demo data, float32 on the CPU, with `--resume auto` and a checkpoint
every second. `kills`: a run is killed twice, its launcher or one of its ranks, each time at an instant drawn evenly
from the duration of a run that nobody disturbs, and then runs to its end. Its weights must be those of the run that
nobody disturbed, bit by bit, and so must the lines of summary.csv. The age of the newest checkpoint at the instant of
the kill is the work that is done again.
"""
import argparse
import contextlib
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import measure
import psutil

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.files import write_json

NAMESPACE = 'SERESNET_TIMM_CHAOS_NAMESPACE'  # set in the processes that may mount
MINUTES = 1 / 60  # between two checkpoints
RANDOM = ('--drop', '0.2', '--drop-path', '0.1', '--mixup', '0.2', '--cutmix', '1', '--reprob', '0.5')


@dataclass(frozen=True)
class Configuration:
    """Flags of a training.

    Attributes:
        flags: Beside those that all have.
        ranks: Number of processes.
        is_timms: Train with timm's own train.py, if there is one (TIMM_SCRIPTS).
    """
    flags: Sequence[str] = ()
    ranks: int = 1
    is_timms: bool = False


CONFIGURATIONS = {
    'the plain flags': Configuration(),
    'mixup, cutmix, random erasing, dropout, EMA': Configuration((*RANDOM, '--model-ema')),
    'the same, 2 workers, RandAugment': Configuration((*RANDOM, '--model-ema', '-j', '2', '--aa', 'rand-m5-mstd0.5')),
    "timm's own loading, 2 workers": Configuration((*RANDOM, '-j', '2', '--fast-jpeg', 'off')),
    'accumulation, schedule by updates': Configuration(
        ('--grad-accum-steps', '2', '--sched-on-updates', '--warmup-epochs', '1')),
    'plateau': Configuration(('--sched', 'plateau', '--patience-epochs', '0')),
    'lookahead, bfloat16': Configuration(('--opt', 'lookahead_momentum', '--amp', '--amp-dtype', 'bfloat16')),
    '2 ranks': Configuration(RANDOM, ranks=2),
    "2 ranks, timm's own loading, 2 workers each": Configuration((*RANDOM, '-j', '2', '--fast-jpeg', 'off'), ranks=2),
    "timm's script": Configuration(RANDOM, is_timms=True),
    "timm's script, 2 ranks, EMA": Configuration((*RANDOM, '--model-ema'), ranks=2, is_timms=True),
}


class Run:
    """A training in processes of its own, with the lines that it prints and when.

    Attributes:
        lines: (seconds since its start, line) of stdout and stderr.
    """

    def __init__(self, data: Path, folder: Path, flags: Sequence[str], ranks: int = 1, prefix: Sequence[str] = ()):
        self.folder = folder
        command = [
            *prefix, sys.executable, '-m', 'seresnet_timm', 'train', '--data-dir', str(data), '--output',
            str(folder.parent), '--experiment', folder.name, '--model', 'seresnet18_ascend', '--model-kwargs',
            'channels=(4,8,8,8)', 'stem_width=4', '--num-classes', '10', '--img-size', '32', '-b', str(16 // ranks),
            '--val-split', 'val', '--device', 'cpu', '--opt', 'momentum', '--lr', '0.01', '--warmup-epochs', '0',
            '--epochs', '3', '-j', '0', '--nproc', str(ranks), '--log-interval', '5', '--resume', 'auto',
            '--checkpoint-hist', '2', '--checkpoint-minutes', str(MINUTES), *flags]
        self.lines: List[Tuple[float, str]] = []
        self.start = time.monotonic()
        self.process = psutil.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            errors='surrogateescape', env={**os.environ, 'OMP_NUM_THREADS': '1'})  # a small network
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic() - self.start, line.rstrip('\n')))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def output(self) -> str:
        return '\n'.join(line for _, line in self.lines)

    def wait(self, timeout: float = 600) -> int:
        """Wait until all of its processes have ended; the exit code."""
        code = self.process.wait(timeout)
        self._thread.join(timeout)
        return code

    def wait_for(self, pattern: str, after: float = 0., timeout: float = 300) -> Tuple[float, str]:
        """Wait for a line; its time and text.

        Args:
            pattern: Regular expression that is in the line.
            after: The line comes at this time or later, in seconds since the start.
            timeout: Seconds to wait.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for when, line in list(self.lines):
                if when >= after and re.search(pattern, line):
                    return when, line
            if not self._thread.is_alive():
                break
            time.sleep(0.01)
        raise RuntimeError(f'The run did not print "{pattern}":\n{self.output[-3000:]}')

    def ranks(self) -> List[psutil.Process]:
        """Processes that train: the launcher itself if there is one rank only."""
        children = [p for p in self.process.children() if 'launch.rank' in ' '.join(_command(p))]
        return children or [self.process]

    def kill_all(self) -> None:
        for process in [*self.process.children(recursive=True), self.process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def seconds_until_gone(self, processes: Sequence[psutil.Process]) -> float:
        start = time.monotonic()
        while time.monotonic() - start < 60 and any(_runs(process) for process in processes):
            time.sleep(0.02)
        return time.monotonic() - start

    def lost(self) -> float:
        """Seconds of work that a run which ends now does again: since its first step, or its newest checkpoint."""
        worked = self.seconds - next((when for when, line in list(self.lines) if 'Train: ' in line), self.seconds)
        saved = [path.stat().st_mtime for path in self.folder.glob('*.pth.tar')]
        return min(worked, time.time() - max(saved)) if saved else worked


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> List[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def result_of(folder: Path) -> Tuple[str, str]:
    """Hash of the weights at the end, moving average included, and the text of summary.csv."""
    checkpoint = read_checkpoint(str(folder / 'last.pth.tar'))
    sha = hashlib.sha256()
    for key in ('state_dict', 'state_dict_ema'):
        for name, tensor in sorted((checkpoint.content.get(key) or {}).items()):
            sha.update(name.encode() + tensor.contiguous().view(-1).numpy().tobytes())
    return sha.hexdigest(), (folder / 'summary.csv').read_text()


# --- SIGKILL at random instants ---------------------------------------------------------------------------------------

def kill_runs(data: Path, tmp: Path, kills: int, seed: int, jobs: int) -> List[Dict[str, Any]]:
    """Kill runs of every configuration, and let them go on; one row of figures for each configuration.

    Args:
        data: Folder of the data set.
        tmp: Folder for the runs.
        kills: Number of kills in all.
        seed: Of the random instants.
        jobs: Number of runs at a time.
    """
    has_script = bool(os.environ.get('TIMM_SCRIPTS'))
    if not has_script:
        print("TIMM_SCRIPTS names no script of timm's: its configurations are left out.")
    chosen = {name: c for name, c in CONFIGURATIONS.items() if has_script or not c.is_timms}
    runs = -(-kills // 2 // len(chosen))  # of each configuration
    with ThreadPoolExecutor(jobs) as pool:
        wholes = list(pool.map(lambda name: undisturbed(data, tmp / f'{name} whole', chosen[name]), chosen))
        kinds = [(name, *whole) for name, whole in zip(chosen, wholes) for _ in range(runs)]
        killed = list(pool.map(
            lambda i: killed_run(data, tmp / str(i), chosen[kinds[i][0]], *kinds[i][1:], random.Random(f'{seed} {i}')),
            range(len(kinds))))
    rows = []
    for name, (seconds, _) in zip(chosen, wholes):
        own = [figures for figures, kind in zip(killed, kinds) if kind[0] == name]
        row: Dict[str, Any] = dict(
            configuration=name, ranks=chosen[name].ranks, seconds=round(seconds, 1), runs=runs,
            kills=sum(figures['kills'] for figures in own), same=sum(figures['is_same'] for figures in own))
        for key in ('lost', 'gone', 'ended'):
            row[key] = round(max((x for figures in own for x in figures[key]), default=0.), 2)
        rows.append(row)
        print(f'| {name} | {row["ranks"]} | {row["kills"]} | {row["same"]} of {runs} | {row["lost"]} | {row["gone"]} | '
              f'{row["ended"]} |', flush=True)
    return rows


def start(data: Path, folder: Path, configuration: Configuration) -> Run:
    script = os.environ['TIMM_SCRIPTS'] if configuration.is_timms else 'bundled'
    return Run(data, folder, (*configuration.flags, '--scripts', script), configuration.ranks)


def undisturbed(data: Path, folder: Path, configuration: Configuration) -> Tuple[float, Tuple[str, str]]:
    """Seconds and result of a run that nobody disturbs."""
    run = start(data, folder, configuration)
    if run.wait():
        raise RuntimeError(f'{folder.name} fails without a kill:\n{run.output[-3000:]}')
    return run.seconds, result_of(folder)


def killed_run(
        data: Path,
        folder: Path,
        configuration: Configuration,
        seconds: float,
        expected: Tuple[str, str],
        rng: random.Random,
) -> Dict[str, Any]:
    """Kill a run twice, its launcher or a rank, then let it go on to its end.

    Returns:
        `kills`; `lost`, seconds of work done again; `gone` and `ended`, seconds from the kill of a launcher or a rank
        to the end of the last process; `is_same`, the result is that of the run that nobody disturbed.
    """
    figures: Dict[str, Any] = dict(kills=0, lost=[], gone=[], ended=[])
    for _ in range(2):
        run = start(data, folder, configuration)
        time.sleep(rng.uniform(0, seconds))
        if run.process.poll() is None:
            family = run.process.children(recursive=True)
            victim = rng.choice([run.process, *(rank for rank in run.ranks() if rank != run.process)])
            figures['lost'].append(run.lost())
            figures['kills'] += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            key = 'gone' if victim == run.process else 'ended'
            figures[key].append(run.seconds_until_gone([run.process, *family]))
        run.wait()
    last = start(data, folder, configuration)
    code = last.wait()
    figures['is_same'] = code == 0 and result_of(folder) == expected
    if not figures['is_same']:
        print(f'{configuration}: exit code {code}, another result\n{last.output[-3000:]}', flush=True)
    shutil.rmtree(folder)
    return figures


# --- other faults -----------------------------------------------------------------------------------------------------

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

    def ends_as_expected(self, run: Run, *flags: str, ranks: int = 1) -> bool:
        return run.wait() == 0 and result_of(run.folder) == self.expected(*flags, ranks=ranks)

    def signal_to_launcher(self, signum: int, ranks: int) -> Row:
        row = Row(f'{signal.Signals(signum).name} to the launcher, {ranks} rank{"s" if ranks > 1 else ""}')
        run = self.start(ranks=ranks)
        when, _ = run.wait_for('Train: 1')
        sent = run.seconds
        run.process.send_signal(signum)
        code = run.wait()
        row.seconds = run.seconds - sent
        _, row.said = run.wait_for('Stopped by')
        row.lost = 'nothing'
        row.is_right = code == 128 + signum and row.seconds < 10 and self.goes_on(run, ranks=ranks)
        return row

    def signal_to_rank(self, signum: int) -> Row:
        row = Row(f'{signal.Signals(signum).name} to rank 1 of 2')
        run = self.start(ranks=2)
        run.wait_for('Train: 1')
        sent = run.seconds
        run.ranks()[1].send_signal(signum)
        code = run.wait()
        row.seconds = run.seconds - sent
        _, row.said = run.wait_for('Stopped by')
        row.lost = 'nothing'
        row.is_right = code == 128 + signum and row.seconds < 10 and self.goes_on(run, ranks=2)
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
        said, row.said = run.wait_for('Rank|rank .*(step|stuck|stopped)', after=stopped)
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
        when, row.said = again.wait_for('damaged|cannot be|The one before')
        row.seconds, row.lost = again.wait_for('Train: ')[0], 'work since the checkpoint before'
        row.is_right = code == 0 and result_of(run.folder) == self.expected()
        return row

    def second_run(self) -> Row:
        row = Row('a second run is started in the same folder')
        run = self.start()
        run.wait_for('Train: 0')
        second = self.start(folder=run.folder)
        code = second.wait()
        _, row.said = second.wait_for('Another training')
        row.seconds, row.lost = second.seconds, 'nothing'
        row.is_right = code == 2 and self.ends_as_expected(run)
        return row

    def full_disk(self) -> Row:
        row = Row('the disk is full for some saves')
        disk = self.tmp / 'disk'
        disk.mkdir()
        _mount(disk, '40M')
        run = self.start(folder=disk / 'run')
        run.wait_for('Train: 0')
        with open(disk / 'ballast', 'wb') as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(4096))
                f.flush()
        full, row.said = run.wait_for('NOT SAVED')
        os.unlink(disk / 'ballast')
        saved, _ = run.wait_for('Saved again', after=full)
        row.seconds, row.lost = saved - full, 'nothing: it trained on'
        row.is_right = self.ends_as_expected(run)
        subprocess.run(['umount', str(disk)], check=True)
        return row

    def small_shm(self) -> Row:
        row = Row('/dev/shm has 400 kB, 2 workers')
        _mount(Path('/dev/shm'), '400k')
        run = self.start('-j', '2', '-b', '64', '--fast-jpeg', 'off')
        code = run.wait()
        subprocess.run(['umount', '/dev/shm'], check=True)
        _, row.said = run.wait_for('/dev/shm')
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
        row.said = run.wait_for('wait')[1]
        return row

    def killed_worker(self) -> Row:
        row = Row("SIGKILL to a loader worker (timm's own loading, 2 workers)")
        run = self.start('-j', '2', '--fast-jpeg', 'off')
        run.wait_for('Train: 1')
        killed = run.seconds
        run.process.children()[0].kill()
        _, row.said = run.wait_for('worker', after=killed)
        row.seconds, row.lost = run.wait_for('Train: ', after=run.seconds)[0] - killed, 'nothing'
        row.is_right = self.ends_as_expected(run, '-j', '2', '--fast-jpeg', 'off')
        return row

    def bad_numbers(self) -> Row:
        row = Row('learning rate 1e9: loss and gradients are not finite')
        run = self.start('--lr', '1e9')
        code = run.wait()
        row.said = run.output.splitlines()[-1]
        row.seconds, row.lost, row.is_right = run.seconds, 'nothing', code == 1
        return row


def said_shortly(text: str) -> str:
    """A sentence without the command that follows it, and without the folders of this benchmark."""
    return re.sub(r'/\S*/(?=\S)', '.../', text.partition('Resume with:')[0]).strip()


def _mount(folder: Path, size: str) -> None:
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)], check=True)


def do_faults(data: Path, tmp: Path, only: Optional[str]) -> List[Row]:
    faults = Faults(data, tmp)
    todo: Dict[str, Callable[[], Row]] = {
        **{f'{signum.name.lower()}-{ranks}': functools.partial(faults.signal_to_launcher, signum, ranks)
           for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
           for ranks in (1, 2)},
        'sigterm-rank': functools.partial(faults.signal_to_rank, signal.SIGTERM),
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
    }
    if only and only not in todo:
        raise SystemExit(f'--only {only}: not one of {", ".join(todo)}')
    rows = []
    for name in [only] if only else todo:
        try:
            row = todo[name]()
        except RuntimeError as e:
            row = Row(name, said=str(e))
        rows.append(row)
        print(f'| {row.fault} | {said_shortly(row.said)} | {row.lost} | {row.seconds:.1f} | '
              f'{"yes" if row.is_right else "NO"} |', flush=True)
    return rows


def write_data(folder: Path) -> None:
    """A part of the demo data: 480 images to train, 240 to evaluate."""
    from seresnet_timm.datasets.demo import write_demo_data
    write_demo_data(str(folder))
    for split, images in (('train', 48), ('val', 24)):
        for class_folder in (folder / split).iterdir():
            for path in sorted(class_folder.iterdir())[images:]:
                path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('kills', 'faults'))
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='200')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the instants: 0')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time that are killed: 1')
    parser.add_argument('--only', metavar='FAULT', help='one fault')
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    args = parser.parse_args()
    measure.check_json(args.json)
    if args.what == 'faults' and not os.environ.get(NAMESPACE):
        # a mount of its own is seen by nobody else
        os.environ[NAMESPACE] = '1'
        os.execvp('unshare', ['unshare', '-m', sys.executable, *sys.argv])
    report = measure.report_head(f'chaos {args.what}')
    measure.print_head(report)
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as tmp:
        data = Path(tmp) / 'digits'
        write_data(data)
        if args.what == 'kills':
            report['rows'] = kill_runs(data, Path(tmp), args.kills, args.seed, args.jobs)
            is_right = all(row['same'] == row['runs'] for row in report['rows'])
        else:
            rows = do_faults(data, Path(tmp), args.only)
            report['rows'] = [vars(row) for row in rows]
            is_right = all(row.is_right for row in rows)
    if args.json:
        write_json(args.json, report)
    if not is_right:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
