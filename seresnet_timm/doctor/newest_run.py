"""Which run of a folder with several, and which start of a run that was started several times, `diagnose` reads"""
import os
import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from seresnet_timm.errors import counted, first_names, printable
from seresnet_timm.runs.folder import RunFolder

_DEPTH = 4  # folders between the one that is named and a run, at most
_SAME = 2.  # seconds: files that were unpacked together
_START = re.compile(r'(.*\bnode\d+)/([^/]+)/attempt_\d+/')


def newest_run(folder: Path) -> Tuple[Path, List[Path]]:
    """The newest run in a folder that is none itself, and the others; the folder itself if there is none in it."""
    if RunFolder(folder).record.exists() or RunFolder(folder).logs.is_dir():
        return folder, []
    runs = []
    for parent, folders, names in os.walk(folder):
        if RunFolder(parent).record.name in names:
            runs.append(Path(parent))
            folders.clear()
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith('.')) if depth < _DEPTH else []
    runs.sort(key=lambda run: (last_written(run), run.name), reverse=True)
    return (runs[0], runs[1:]) if runs else (folder, [])


def last_written(run: Path) -> float:
    """When something was written last into the files of a run, and into its logs."""
    files = [*run.glob('*'), *RunFolder(run).logs.rglob('*')]
    return max((f.stat().st_mtime for f in files if f.is_file() and not f.is_symlink()), default=0.)


def describe_others(run: Path, others: List[Path]) -> List[str]:
    """A sentence on the runs that are not read."""
    if not others:
        return []
    names = first_names([printable(other) for other in others], 4)
    them = 'the other is' if len(others) == 1 else f'{len(others)} others are'
    return [f'This is the newest run, {printable(run)}; {them} not read: {names}.']


def of_newest_start(folder: Path, files: List[Path]) -> Tuple[List[Path], List[str]]:
    """Leave out the logs of earlier starts: of restarts, and from before a run was resumed.

    Args:
        folder: Folder of the run.
        files: Its logs.

    Returns:
        The files that belong to the newest start, or to none; and a sentence on the others.
    """
    starts: Dict[Path, Dict[Path, List[Path]]] = {}  # of each node
    for file in files:
        start = _start_of(folder, file)
        if start is not None:
            starts.setdefault(start.parent, {}).setdefault(start, []).append(file)
    began = {start: start.stat().st_mtime for of_node in starts.values() for start in of_node}  # made with its attempt
    newest = {max(of_node, key=lambda s: began[s]) for of_node in starts.values()}
    if not newest:
        return files, []
    last = max(began[start] for start in newest)
    kept = set()
    for of_node in starts.values():
        for start, own in of_node.items():
            ended = max(f.stat().st_mtime for f in own)
            if ended >= last - _SAME or start in newest and ended >= last - 60:
                kept.add(start)
    chosen = [f for f in files if _start_of(folder, f) in (None, *kept)]
    left = len(began) - len(kept)
    return chosen, [f'The run was started several times: {counted(left, "earlier start")} of its processes '
                    f'{"is" if left == 1 else "are"} not read.'] if left else []


def _start_of(folder: Path, file: Path) -> Optional[Path]:
    """The folder that torchrun made for one start on one node."""
    match = _START.match(str(file.relative_to(folder)))
    return folder / match[1] / match[2] if match else None
