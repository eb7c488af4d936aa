"""The state from which a run goes on by itself (`--resume auto`): the newest one of its folder that is not damaged"""
import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.resume import describe_run_state
from seresnet_timm.errors import UsageError, first_names, printable
from seresnet_timm.runs.folder import RunFolder

_NUMBERED = re.compile(r'(recovery|checkpoint)-(\d+)(?:-(\d+))?\.pth\.tar')


def newest_checkpoint(folder: RunFolder) -> Tuple[Optional[Checkpoint], List[str]]:
    """The newest checkpoint of a run, and a sentence for each damaged one that was newer.

    A recovery file is newer than `last` where it was written later, in the middle of a later epoch. Files are read
    until one is valid.

    Args:
        folder: Folder of the run; need not exist.

    Returns:
        The checkpoint, None if the folder has none; and the sentences.

    Raises:
        UsageError: None of them can be read.
    """
    notes: List[str] = []
    problems: List[str] = []
    for path in _candidates(folder):
        try:
            checkpoint = read_checkpoint(path)
            wrong = describe_run_state(checkpoint)
            if wrong is not None:
                raise UsageError(f'{wrong}.')
            return checkpoint, notes
        except UsageError as e:
            problems.append(str(e))
            notes.append(f'{e} The one before it is used.')
    if problems:
        raise UsageError(f'No checkpoint of {printable(folder.path)} can be read: '
                         f'{first_names([p.rstrip(".") for p in problems], 3)}. To start anew, move them away, or '
                         'name another folder with --experiment.')
    return None, notes


def _candidates(folder: RunFolder) -> List[Path]:
    """Checkpoints of a run, the newest first."""
    found: Dict[str, List[Tuple[int, int, Path]]] = {'recovery': [], 'checkpoint': []}
    for path in folder.path.glob('*.pth.tar') if folder.path.is_dir() else ():
        match = _NUMBERED.fullmatch(path.name)
        if match and path.is_file():  # else `check_output` refuses it
            found[match[1]].append((int(match[2]), int(match[3] or 0), path))
    recovery, checkpoints = ([path for *_, path in sorted(found[k], reverse=True)] for k in ('recovery', 'checkpoint'))
    last = [path for path in (folder.last, folder.previous) if path.is_file()]
    written = last[0].stat().st_mtime if last else 0.
    later = [path for path in recovery if path.stat().st_mtime > written]
    rest = [path for path in recovery if path not in later]
    best = [folder.best] if folder.best.is_file() else []
    return later + last + sorted(rest + checkpoints, key=lambda p: p.stat().st_mtime, reverse=True) + best
