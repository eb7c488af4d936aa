"""Settings from local rank 0 to the other ranks of a node, where torchrun, srun or a user started the ranks

Local rank 0 parses, plans, pulls and checks; the others wait for its outcome and decide nothing. The outcome is a file
in the temporary folder, named after the process that started the ranks.
"""
import hashlib
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Iterator, Optional

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.files import write_json
from seresnet_timm.launch.cluster import Cluster
from seresnet_timm.runs.settings import RunSettings

TIMEOUT = 1800  # seconds; a model may have to be downloaded


def _file(job: Cluster) -> Path:
    """The file of this job on this node; another for each start of the ranks."""
    parent = os.getppid()
    names = ('TORCHELASTIC_RUN_ID', 'TORCHELASTIC_RESTART_COUNT', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_JOB_ID',
             'SLURM_STEP_ID')
    environ = {**os.environ, **(job.rank_env or {})}
    parts = [str(os.getuid()), str(parent), _start_time(parent), *(environ.get(n, '') for n in names)]
    digest = hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f'seresnet_timm-{digest}.json'


def _start_time(pid: int) -> str:
    """When a process started, which tells it from an earlier one of the same number."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    except (OSError, IndexError):
        return ''


def _is_ours(path: Path) -> bool:
    """Whether the file is there, and was written by this user: the temporary folder belongs to all."""
    try:
        return path.stat(follow_symlinks=False).st_uid == os.getuid()
    except FileNotFoundError:
        return False


@contextmanager
def give_to_other_ranks(job: Optional[Cluster]) -> Iterator[Callable[[RunSettings], None]]:
    """Function that gives the settings to the other ranks of this node; an error or nothing ends them as well.

    Args:
        job: Who started this process; nothing is given where it is not one of several ranks of a node.
    """
    others = job.variable('LOCAL_WORLD_SIZE', job.variable('WORLD_SIZE')) - 1 if job and job.is_rank else 0
    if others < 1:
        yield lambda settings: None
        return
    path = _file(job)
    given = False

    def give(settings: RunSettings) -> None:
        nonlocal given
        given = True
        write_json(path, {'settings': asdict(settings), 'readers': others})

    try:
        yield give
    except (UsageError, RunError) as e:
        write_json(path, {'exit_code': e.exit_code, 'readers': others})
        raise
    if not given:
        write_json(path, {'exit_code': 0, 'readers': others})


def receive(job: Cluster) -> Optional[RunSettings]:
    """Settings that local rank 0 gives; None if there is nothing to run.

    Raises:
        RunError: Local rank 0 did not answer in time.
        SystemExit: It refused the run, and has said why.
    """
    path = _file(job)
    deadline = time.monotonic() + TIMEOUT
    parent = os.getppid()
    while not _is_ours(path):
        if os.getppid() != parent:
            sys.exit(1)  # whoever started the ranks has ended
        if time.monotonic() > deadline:
            raise RunError(f'Local rank 0 gave no settings within {TIMEOUT} s: start all ranks of a node by the same '
                           'program, and look at the log of that rank.')
        time.sleep(0.02)
    answer = json.loads(path.read_text())
    _remove_after_last(path, answer['readers'])
    if 'settings' in answer:
        return RunSettings.from_dict(answer['settings'])
    if answer['exit_code']:
        sys.exit(answer['exit_code'])
    return None


def _remove_after_last(path: Path, readers: int) -> None:
    """Remove the file once all ranks have read it: each leaves a mark."""
    mark = path.with_suffix(f'.{os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "")}')
    mark.touch()
    marks = [p for p in path.parent.glob(f'{path.stem}.*') if p != path]
    if len(marks) >= readers:
        for p in (path, *marks):
            p.unlink(missing_ok=True)
