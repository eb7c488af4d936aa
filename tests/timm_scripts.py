"""timm's own scripts, where `TIMM_SCRIPTS` names the folder that holds train.py and validate.py."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

TIMM_SCRIPTS = os.environ.get('TIMM_SCRIPTS')


def load_script(name: str):
    """timm's script as a module."""
    spec = importlib.util.spec_from_file_location(f'timm_{name}', Path(TIMM_SCRIPTS) / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
