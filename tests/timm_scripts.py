"""timm's own scripts, where `TIMM_SCRIPTS` names a folder with train.py and validate.py, or with one folder per tag."""
import os
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

import pytest
from conftest import ROOT, load_file

from seresnet_timm.timm_scripts import known

NO_SCRIPTS = "TIMM_SCRIPTS does not name a folder with timm's train.py and validate.py"
SMALL = ROOT / 'tests' / 'small_scripts'


def _folders() -> List[Path]:
    root = os.environ.get('TIMM_SCRIPTS')
    candidates = [Path(root), *sorted(Path(root).iterdir())] if root and Path(root).is_dir() else []
    return [folder for folder in candidates if all((folder / name).is_file() for name in known.NAMES)]


FOLDERS = _folders()
# those that the bundled scripts are compared with
TIMM_SCRIPTS = str(next((f for f in FOLDERS if f.name == known.NEWEST), FOLDERS[-1])) if FOLDERS else None
# for tests that run with any script
SCRIPTS = [pytest.param(SMALL, id='small'), pytest.param(
    Path(TIMM_SCRIPTS or '.'), id='timm', marks=pytest.mark.skipif(not TIMM_SCRIPTS, reason=NO_SCRIPTS))]


def file_of(name: str, tag: str) -> Optional[Path]:
    """The script of a known tag, told by its hash."""
    files = (folder / name for folder in FOLDERS)
    return next((f for f in files if known.sha256_of(f.read_bytes()) == known.SHA256[tag][name]), None)


def known_files(name: str) -> list:
    """Parameters (tag, file) of the known scripts of a name; of tags with the same file, the newest."""
    tags = {hashes[name]: tag for tag, hashes in known.SHA256.items()}
    return [pytest.param(tag, file_of(name, tag), id=tag, marks=pytest.mark.skipif(
        file_of(name, tag) is None, reason=f"TIMM_SCRIPTS does not name a folder with timm's {name} {tag}"))
        for tag in tags.values()]


def load_script(name: str):
    """timm's script as a module."""
    return load_file(Path(TIMM_SCRIPTS) / f'{name}.py')


def parser_flags(parser) -> dict:
    """Flags and defaults of a parser, by destination."""
    return {
        a.dest: {'flags': sorted(a.option_strings), 'default': a.default}
        for a in parser._actions if a.dest not in ('help', 'config')
    }


def run_script(name: str, *argv, timeout=240):
    """Run timm's script, unchanged, with this package as its plugin, on timm's own layers."""
    return subprocess.run(
        [sys.executable, str(Path(TIMM_SCRIPTS) / f'{name}.py'), *map(str, argv)],
        env={**os.environ, 'SERESNET_TIMM_LEAN_SE': '0',
             'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])},
        capture_output=True, text=True, timeout=timeout,
    )
