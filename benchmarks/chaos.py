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
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import measure
import psutil
from chaos_faults import Faults, do_faults, faults_of_one_machine
from chaos_nodes import node_faults
from chaos_runs import RANDOM, Run, result_of, write_data

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('kills', 'faults'))
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='200')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the instants: 0')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time that are killed: 1')
    parser.add_argument('--only', metavar='FAULT', help='one fault, or a pattern of names: nodes.*')
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
