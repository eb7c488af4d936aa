"""Which script runs, and why: never a download that nobody asked for."""
import importlib.util
import os
from pathlib import Path
from typing import Optional

from seresnet_timm.errors import UsageError
from seresnet_timm.runs.settings import Script
from seresnet_timm.timm_scripts import known


def find(name: str, choice: str = 'auto') -> Script:
    """Find a script.

    Args:
        name: 'train.py' or 'validate.py'.
        choice: 'bundled'; 'timm' for timm's own (the folder in TIMM_SCRIPTS, else the timm checkout that the
            installed timm is linked to, else the verified cache); 'auto' for the same, and the bundled script as a last
            resort; or the path of a script or of a folder that holds it.

    Raises:
        UsageError: There is no such script, or a cached one has been changed.
    """
    if choice == 'bundled':
        return Script(name, None, '--scripts bundled')
    if choice not in ('auto', 'timm'):
        return _script(name, _file_in(Path(choice), name, '--scripts'), f'--scripts {choice}')

    folder = os.environ.get('TIMM_SCRIPTS')
    if folder:
        return _script(name, _file_in(Path(folder), name, 'TIMM_SCRIPTS'), 'TIMM_SCRIPTS')
    path = _editable_checkout(name)
    if path:
        return _script(name, path, 'timm is installed from this checkout')
    path = _cached(name)
    if path:
        return _script(name, path, 'verified cache')
    if choice == 'timm':
        raise UsageError(
            f"timm's {name} is not on this machine: get it with `seresnet-timm scripts fetch` (without internet: "
            '--from FILE_OR_DIR), set TIMM_SCRIPTS to the folder that holds it, or name it with --scripts PATH.')
    return Script(name, None, "timm's own is not on this machine: `seresnet-timm scripts fetch` gets it")


def _file_in(path: Path, name: str, source: str) -> Path:
    file = path / name if os.path.isdir(path) else path
    if not os.path.isfile(file):  # False for a path that is too long
        raise UsageError(f'{source} {path}: there is no {name}; name that file or the folder that holds it.')
    return file


def _script(name: str, path: Path, reason: str) -> Script:
    from seresnet_timm.files import why_not_text  # 15 ms, which --help does not need
    problem = why_not_text(path)
    if problem:
        raise UsageError(f'{path} cannot be read as a script: {problem}.')
    try:
        digest = known.sha256_of(path.read_bytes())
    except OSError as e:
        raise UsageError(f'Cannot read {path}: {e.strerror}.')
    return Script(name, str(path), reason, digest, known.tag_of(name, digest))


def _editable_checkout(name: str) -> Optional[Path]:
    spec = importlib.util.find_spec('timm')
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent.parent
    is_checkout = (root / 'pyproject.toml').is_file() and all((root / n).is_file() for n in known.NAMES)
    return root / name if is_checkout else None


def _cached(name: str) -> Optional[Path]:
    """The cached script of the tag that suits the installed timm, else of any tag, newest first."""
    cache = known.cache_dir()
    if not cache.is_dir():
        return None
    suited, _ = known.tag_for_installed_timm()
    tags = sorted((f for f in cache.iterdir() if f.is_dir() and not f.name.startswith('.')),
                  key=lambda f: (f.name == suited, f.stat().st_mtime), reverse=True)
    for folder in tags:
        path, expected = folder / name, known.expected_hashes(folder).get(name)
        if not path.is_file() or expected is None:
            continue
        if known.sha256_of(path.read_bytes()) != expected:
            raise UsageError(f'{path} has been changed since it was verified: remove {folder} and fetch it again.')
        return path
    return None
