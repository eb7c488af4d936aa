"""The state from which a run goes on by itself (`--resume auto`): the newest one of its folder that is not damaged

What a file holds tells how new it is, not the time at which it was written: a clock may be set back between two starts.
"""
import re
from pathlib import Path
from typing import List, Optional, Tuple

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.resume import describe_run_state
from seresnet_timm.errors import UsageError, first_names, printable
from seresnet_timm.launch.sources import Sources
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.follow import how_it_died
from seresnet_timm.runs.record import is_unfinished_run_of

_NUMBERED = re.compile(r'(recovery|checkpoint)-(\d+)(?:-(\d+))?\.pth\.tar')


def resolve_resume(sources: Sources, asked: Optional[str], output: str, command: List[str]) -> Optional[str]:
    """What `--resume` means: for `auto` the newest valid checkpoint in the folder of the run, '' if there is none.

    A recipe goes on by itself where the same command has begun the run in its folder, and that has not ended.

    Args:
        sources: Gets notes, and the checkpoint that was read.
        asked: Value of `--resume`.
        output: Folder of the run.
        command: Command line of the run.
    """
    is_recipe = sources.recipe is not None or sources.preset_recipe is not None
    goes_on = is_recipe and not sources.asked_or_typed('resume') and is_unfinished_run_of(output, command)
    if asked != 'auto' and not goes_on:
        return asked
    folder = RunFolder(output)
    checkpoint, notes = newest_checkpoint(folder)
    sources.notes += notes
    death = how_it_died(folder)
    if death:
        sources.notes.append(f'The run before: {death}')
    sources.reasons['resume'] = 'auto'
    if checkpoint is None:
        sources.notes.append(f'--resume auto: {output} has no checkpoint to resume from; the run starts at epoch 0.')
        return ''
    sources.checkpoints[checkpoint.path] = checkpoint
    sources.notes.append(f'--resume auto: the run goes on from {checkpoint.path}.')
    return checkpoint.path


def newest_checkpoint(folder: RunFolder) -> Tuple[Optional[Checkpoint], List[str]]:
    """The newest checkpoint of a run, and a sentence for each damaged one that was newer.

    `last` is never older than `previous`, and this never older than the checkpoints of epochs. A recovery file may be
    newer than all of them.

    Args:
        folder: Folder of the run; need not exist.

    Returns:
        The checkpoint, None if the folder has none; and the sentences.

    Raises:
        UsageError: None of them can be read.
    """
    problems: List[str] = []
    found = next(filter(None, (_read(path, problems) for path in (folder.last, folder.previous))), None)
    if found is None:
        found = _newest(_numbered(folder, 'checkpoint'), problems)
    old: List[str] = []  # damaged, and older than what is found
    for path in _numbered(folder, 'recovery'):
        is_old = found is not None and _epoch_of(path) < _age(found)[1]
        found = _newest([path], old if is_old else problems, found)
    found = found or _read(folder.best, problems)
    if found is None and problems:
        raise UsageError(f'No checkpoint of {printable(folder.path)} can be read: '
                         f'{first_names([p.rstrip(".") for p in problems], 3)}. To start anew, move them away, or '
                         'name another folder with --experiment.')
    return found, [f'{problem} The one before it is used.' for problem in problems]


def _numbered(folder: RunFolder, kind: str) -> List[Path]:
    """Recovery files or checkpoints of epochs, that of the last epoch first."""
    found = []
    for path in folder.path.glob(f'{kind}-*.pth.tar') if folder.path.is_dir() else ():
        match = _NUMBERED.fullmatch(path.name)
        if match:
            found.append((int(match[2]), int(match[3] or 0), path))
    return [path for *_, path in sorted(found, reverse=True)]


def _epoch_of(path: Path) -> int:
    match = _NUMBERED.fullmatch(path.name)
    return int(match[2]) if match else 0


def _newest(paths: List[Path], problems: List[str], found: Optional[Checkpoint] = None) -> Optional[Checkpoint]:
    """The newest of files and of what was found before."""
    for path in paths:
        checkpoint = _read(path, problems)
        if checkpoint is not None and (found is None or _age(checkpoint) > _age(found)):
            found = checkpoint
    return found


def _read(path: Path, problems: List[str]) -> Optional[Checkpoint]:
    """A checkpoint; None if there is none, or if it is damaged, which is added to the problems."""
    if not path.is_file():  # `check_output` refuses folders and pipes
        return None
    try:
        checkpoint = read_checkpoint(path)
        wrong = describe_run_state(checkpoint)
    except UsageError as e:
        wrong = str(e)
    if wrong is not None:
        problems.append(wrong.rstrip('.') + '.')
        return None
    return checkpoint


def _age(checkpoint: Checkpoint) -> Tuple[int, int, int, bool]:
    """What is greater in a newer checkpoint of a run: which start of it wrote the file, and its place.

    A run may go on from an earlier epoch than its last one: files of later epochs are older then.
    """
    state = checkpoint.run_state
    record = (state.get('history') or {}).get('record') or {}
    faults = [fault for fault in record.get('faults', ()) if isinstance(fault, dict)]
    starts = len(record.get('resumes', ())) + sum(fault.get('kind') == 'restart' for fault in faults)
    epoch = state.get('epoch', checkpoint.epochs or 0)
    return starts, epoch, state.get('batches', 0), bool(state.get('is_trained'))
