"""Trainings of seconds in processes of their own, which benchmarks/chaos.py disturbs"""
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import List, Sequence, Tuple

import psutil

from seresnet_timm.checkpoints.read import read_checkpoint

MINUTES = 1 / 60  # between two checkpoints
RANDOM = ('--drop', '0.2', '--drop-path', '0.1', '--mixup', '0.2', '--cutmix', '1', '--reprob', '0.5')


def write_data(folder: Path) -> None:
    """A part of the demo data: 480 images to train, 240 to evaluate."""
    from seresnet_timm.datasets.demo import write_demo_data
    write_demo_data(str(folder))
    for split, images in (('train', 48), ('val', 24)):
        for class_folder in (folder / split).iterdir():
            for path in sorted(class_folder.iterdir())[images:]:
                path.unlink()


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

    def workers(self) -> List[psutil.Process]:
        """Loader workers of a run of one rank, which are forks of it."""
        return [p for p in self.process.children() if _command(p) == _command(self.process)]

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
        return max(0., min(worked, time.time() - max(saved)) if saved else worked)


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
