"""What happens in the middle of a save: SIGKILL, SIGTERM to the launcher, a full disk, each at an operation on a file

A library that is preloaded counts the operations (open, write, fsync, rename, unlink) of the process that saves. A run
is disturbed at one of them, then goes on to its end. Its result must be that of the run that nobody disturbs, and
nothing temporary may be left. Most operations are writes, so first each kind of operation on each file is drawn once.
"""
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Tuple

from chaos_runs import RANDOM, Run, result_of

SHORT = 1 / 100  # minutes between two checkpoints
FLAGS = (*RANDOM, '--model-ema', '--epochs', '2', '--checkpoint-hist', '1', '--checkpoint-minutes', str(SHORT))
WHAT = {'kill': 'SIGKILL to the process that saves', 'stop': 'SIGTERM to the launcher', 'full': 'the disk is full'}
MAY_STAY = ('logs', 'status.json')


def do_saves(data: Path, tmp: Path, number: int, seed: int) -> List[Dict[str, Any]]:
    """Disturb saves of 1 and 2 ranks, of the bundled script and of timm's; a row for each of `WHAT`.

    Args:
        data: Folder of the data set.
        tmp: Folder for the runs.
        number: Operations that are drawn for each row.
        seed: Of the draw.
    """
    library = tmp / 'operations.so'
    source = Path(__file__).with_name('file_operations.c')
    subprocess.run(['cc', '-shared', '-fPIC', '-O1', '-o', str(library), str(source), '-ldl'], check=True)
    rows, scripts = [], ['bundled', *filter(None, [os.environ.get('TIMM_SCRIPTS')])]
    for ranks, script in [(ranks, script) for ranks in (1, 2) for script in scripts]:
        saves = Saves(data, tmp, library, ranks, script)
        for what in WHAT:
            rows.append(saves.disturb(what, number, random.Random(f'{seed} {ranks} {what}')))
            print('| ' + ' | '.join(str(value) for value in rows[-1].values()) + ' |', flush=True)
    return rows


class Saves:
    """Runs of one configuration.

    Args:
        data: Folder of the data set.
        tmp: Folder for the runs.
        library: What is preloaded.
        ranks: Number of processes.
        script: Value of --scripts.
    """

    def __init__(self, data: Path, tmp: Path, library: Path, ranks: int, script: str):
        self._data, self._tmp, self._library, self._ranks = data, tmp, library, ranks
        self._script = script
        whole, log = tmp / 'undisturbed', tmp / 'operations'
        self._end(whole, OPERATIONS_LOG=str(log))
        self._expected, self._files = result_of(whole), names_in(whole)
        self._operations = [line.split(' ', 2)[1:] for line in log.read_text().splitlines()]
        shutil.rmtree(whole)
        log.unlink()

    def _end(self, folder: Path, **env: str) -> Tuple[int, float, str]:
        """Exit code, seconds and output of a run."""
        prefix = ['env', f'LD_PRELOAD={self._library}', f'OPERATIONS_IN={folder}/']
        flags = (*FLAGS, '--scripts', self._script)
        run = Run(self._data, folder, flags, self._ranks, [*prefix, *(f'{k}={v}' for k, v in env.items())])
        return run.wait(), run.seconds, run.output

    def disturb(self, what: str, number: int, rng: random.Random) -> Dict[str, Any]:
        """Disturb runs by one of `WHAT`; the row of the table."""
        kinds: Dict[Tuple[str, str], List[int]] = {}
        for i, (call, path) in enumerate(self._operations, start=1):
            kinds.setdefault((call, Path(path).name), []).append(i)
        first = [rng.choice(places) for places in rng.sample(list(kinds.values()), len(kinds))]
        others = [i for i in range(1, len(self._operations) + 1) if i not in first]
        chosen = (first + rng.sample(others, len(others)))[:number]
        wrong: List[str] = []
        for at in sorted(chosen):
            folder = self._tmp / f'{what} {at}'
            code, _, output = self._end(folder, OPERATIONS_AT=str(at), OPERATIONS_DO=what)
            expected = {'kill': (-signal.SIGKILL, 1), 'stop': (128 + signal.SIGTERM,), 'full': (1,)}[what]
            is_right = code in (0, *expected)  # 0: the last save
            if code:
                code, _, output = self._end(folder)
            is_right = is_right and code == 0 and result_of(folder) == self._expected and 'Traceback' not in output
            if not is_right or not names_in(folder) <= self._files | {'checkpoint-1.pth.tar'}:
                wrong.append(f'operation {at}, {" ".join(self._operations[at - 1])}')
                print(f'{wrong[-1]}: {sorted(names_in(folder))}\n{output[-3000:]}', flush=True)
            shutil.rmtree(folder)
        return dict(what=WHAT[what], ranks=self._ranks, script='bundled' if self._script == 'bundled' else "timm's",
                    operations=len(self._operations), disturbed=len(chosen), right=len(chosen) - len(wrong))


def names_in(folder: Path) -> set:
    return {name for name in os.listdir(folder) if name not in MAY_STAY} if folder.is_dir() else set()
