"""What happens to a training to which something happens: real processes, real signals, real files

    python benchmarks/chaos.py kills                # 200 SIGKILLs at random instants, over a table of configurations
    python benchmarks/chaos.py kills --kills 20     # a quick look
    python benchmarks/chaos.py kills --at-save      # while a checkpoint is being written
    python benchmarks/chaos.py saves --operations 5 # SIGKILL, SIGTERM, a full disk at operations of a save
    python benchmarks/chaos.py faults               # each other fault once

Every run trains a small network on a part of the demo data, float32 on the CPU, with `--resume auto` and a checkpoint
every second. `kills`: a run is killed twice, its launcher or one of its ranks, each time at an instant drawn evenly
from the duration of a run that nobody disturbs, and then runs to its end. Its weights must be those of the run that
nobody disturbed, bit by bit, and so must the lines of summary.csv. The age of the newest checkpoint at the instant of
the kill is the work that is done again. After each run its line is printed and the JSON is written; Ctrl-C and SIGTERM
(`timeout 480 python ...`) print the table of what is done.
"""
import argparse
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

if importlib.util.find_spec('seresnet_timm') is None:  # not installed: the one of this checkout, also in the runs
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get('PYTHONPATH'))))

import measure
import psutil
from chaos_faults import Faults, do_faults, faults_of_one_machine
from chaos_nodes import node_faults
from chaos_runs import RANDOM, Run, result_of, write_data
from chaos_saves import do_saves

from seresnet_timm.errors import UsageError
from seresnet_timm.files import write_json

NAMESPACE = 'SERESNET_TIMM_CHAOS_NAMESPACE'  # set in the processes that may mount


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


# --- SIGKILL at random instants ---------------------------------------------------------------------------------------

class Kills:
    """Kills runs of every configuration, and lets them go on.

    Args:
        data: Folder of the data set.
        tmp: Folder for the runs.
        at_save: Kill while a checkpoint is being written.
        seed: Of the random instants.
        report: Gets `rows`, one for each configuration, and `left`, the runs that are not done.
        json: The report is written there after each run; None for nowhere.
    """

    def __init__(self, data: Path, tmp: Path, at_save: bool, seed: int, report: Dict[str, Any], json: Optional[str]):
        self.data, self.tmp, self.at_save, self.seed = data, tmp, at_save, seed
        self.report, self.json = report, json
        self._rows: Dict[str, Dict[str, Any]] = {}
        self._left = 0
        self._is_over = False
        self._lock = threading.Lock()

    def do(self, kills: int, jobs: int, only: Optional[str] = None) -> None:
        """Kill about this many times, in this number of runs at a time. SIGTERM and SIGINT end it with its table.

        Args:
            kills: Number of kills, of all configurations together.
            jobs: Number of runs at a time.
            only: Pattern of the configurations' names; None for all.

        Raises:
            UsageError: No configuration has such a name.
        """
        has_script = bool(os.environ.get('TIMM_SCRIPTS'))
        if not has_script:
            print("TIMM_SCRIPTS names no script of timm's: its configurations are left out.")
        chosen = [name for name, c in CONFIGURATIONS.items()
                  if (has_script or not c.is_timms) and fnmatch(name, only or '*')]
        if not chosen:
            raise UsageError(f'--only {only} is no configuration of: {"; ".join(CONFIGURATIONS)}.')
        runs = -(-kills // 2 // len(chosen))  # of each configuration
        self._left = runs * len(chosen)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        pool = ThreadPoolExecutor(jobs)
        try:
            wholes = {name: pool.submit(undisturbed, self.data, self.tmp / f'{name} whole', CONFIGURATIONS[name])
                      for name in chosen}
            # one of each configuration in turn, so that a table that is cut short has all of them
            todo = [(f'{i} {name}', name) for i in range(runs) for name in chosen]
            for future in [pool.submit(self._one, key, name, wholes[name]) for key, name in todo]:
                future.result()
        except KeyboardInterrupt:
            print('Stopped before all were killed.', flush=True)
        finally:
            self._is_over = True
            pool.shutdown(wait=False, cancel_futures=True)
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.print_table()

    def _one(self, key: str, name: str, whole: Any) -> None:
        seconds, expected = whole.result()
        folder, rng = self.tmp / key, random.Random(f'{self.seed} {key}')
        figures = killed_run(self.data, folder, CONFIGURATIONS[name], seconds, expected, rng, self.at_save)
        with self._lock:
            if self._is_over:
                return
            row = self._rows.setdefault(name, dict(
                configuration=name, ranks=CONFIGURATIONS[name].ranks, seconds=round(seconds, 1),
                runs=0, kills=0, same=0, lost=0., gone=0., ended=0.))
            row['runs'] += 1
            row['kills'] += figures['kills']
            row['same'] += figures['is_same']
            for what in ('lost', 'gone', 'ended'):
                row[what] = round(max([row[what], *figures[what]]), 2)
            self._left -= 1
            self.report.update(rows=list(self._rows.values()), left=self._left)
            print(f'{"the same" if figures["is_same"] else "ANOTHER RESULT"} after {figures["kills"]} kills: {name}; '
                  f'{self._left} runs left', flush=True)
            if self.json:
                write_json(self.json, self.report)

    def print_table(self) -> None:
        for name in CONFIGURATIONS:
            if name in self._rows:
                row = dict(self._rows[name], same=f'{self._rows[name]["same"]} of {self._rows[name]["runs"]}')
                columns = ('configuration', 'ranks', 'seconds', 'kills', 'same', 'lost', 'gone', 'ended')
                print(f'| {" | ".join(str(row[column]) for column in columns)} |', flush=True)


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
        at_save: bool = False,
) -> Dict[str, Any]:
    """Kill a run twice, its launcher or a rank, then let it go on to its end.

    Args:
        data: Folder of the data set.
        folder: Folder of the run.
        configuration: Its flags.
        seconds: Duration of a run that nobody disturbs.
        expected: Result of it.
        rng: Draws the instants.
        at_save: Wait at the instant until a checkpoint is being written.

    Returns:
        `kills`; `lost`, seconds of work done again; `gone` and `ended`, seconds from the kill of a launcher or a rank
        to the end of the last process; `is_same`, the result is that of the run that nobody disturbed.
    """
    figures: Dict[str, Any] = dict(kills=0, lost=[], gone=[], ended=[])
    for _ in range(2):
        run = start(data, folder, configuration)
        time.sleep(rng.uniform(0, seconds))
        if at_save:
            wait_for_save(run, rng)
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


def wait_for_save(run: Run, rng: random.Random) -> None:
    """Wait until a run writes a checkpoint, and a moment of the write more."""
    while run.process.poll() is None:
        if any(name.endswith(('tmp.pth.tar', '.pth.tar.tmp')) for name in names_in(run.folder)):
            time.sleep(rng.uniform(0, 0.02))
            return
        time.sleep(0.0005)


def names_in(folder: Path) -> List[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('kills', 'saves', 'faults'))
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='200')
    parser.add_argument('--at-save', action='store_true', help='kill while a checkpoint is being written')
    parser.add_argument('--operations', type=int, default=10, metavar='N', help='of a save, for each row: 10')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the instants: 0')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time that are killed: 1')
    parser.add_argument('--only', metavar='NAME', help='one fault or configuration, or a pattern of names: nodes.*')
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
            Kills(data, Path(tmp), args.at_save, args.seed, report, args.json).do(args.kills, args.jobs, args.only)
            is_right = all(row['same'] == row['runs'] for row in report.get('rows', ()))
        elif args.what == 'saves':
            report['rows'] = do_saves(data, Path(tmp), args.operations, args.seed)
            is_right = all(row['right'] == row['disturbed'] for row in report['rows'])
        else:
            faults = Faults(data, Path(tmp))
            rows = do_faults({**faults_of_one_machine(faults), **node_faults(faults)}, args.only)
            report['rows'] = [vars(row) for row in rows]
            is_right = all(row.is_right for row in rows)
    if args.json:
        write_json(args.json, report)
    if not is_right:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
