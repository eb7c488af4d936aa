"""A Python that has torch and timm imported: `-m MODULE` and `-c CODE` start in milliseconds, not 5 s of CPU time.

`python()` starts, once a test process, a server (server.py) that imports what every training imports and nothing of
this package, and returns a program to be used where sys.executable would be. That program (client.py) hands its
arguments, environment, working folder, umask, stdin, stdout and stderr to the server, which forks; it passes signals
on, and ends as the forked process ends.

What is real: a process of its own for each call, with its own exit code or fatal signal, files, pipes, children,
threads, random state, `__main__`, sys.argv, sys.path and atexit; the package is imported anew, from where Python would
find it.

What is not: the interpreter has started and torch, timm and other libraries were imported before, in an environment
that must be the same (client.py compares, and else starts a real Python); all processes share a hash seed; each is a
child of the server, in a session of its own, and /proc shows the server's command line. So tests that are about
starting, importing, the tree of processes, or signals from a terminal or a parent use sys.executable.

A test or module asks for it with the marker `preloaded` (`pytestmark = pytest.mark.preloaded`); in it `run_cli(...)`
uses this Python, and `run_cli(..., fresh=True)` starts a real one.
"""
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Mapping, Optional

HERE = Path(__file__).resolve().parent
wanted = False  # the running test has the marker; tests/conftest.py sets it
_server: Optional[subprocess.Popen] = None
_folder = ''


def python() -> str:
    """Path of the program; starts the server with the first call."""
    global _server, _folder
    if _server is None:
        _folder = tempfile.mkdtemp(prefix='preloaded-')  # the server removes it
        program = Path(_folder) / 'python'
        # -I and -S: isolated and without site-packages, so that it starts in 20 ms
        program.write_text(f'#!{sys.executable} -IS\n' + (HERE / 'client.py').read_text())
        program.chmod(0o755)
        with open(Path(_folder) / 'log', 'w') as log:
            _server = subprocess.Popen(
                [sys.executable, str(HERE / 'server.py'), _folder], stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True)
        atexit.register(stop)
    return f'{_folder}/python'


def stop() -> None:
    """End the server, and what it has started."""
    global _server
    if _server is not None:
        _server.stdin.close()
        _server.wait()
        shutil.rmtree(_folder, ignore_errors=True)  # where it could not start
        _server = None


def running() -> list:
    """Process ids of what was forked and has not ended."""
    return [] if _server is None else Path(f'/proc/{_server.pid}/task/{_server.pid}/children').read_text().split()


def environment(environ: Mapping[str, str] = os.environ) -> dict:
    """The environment in which torchrun's ranks start as quickly as their launcher."""
    return {**environ, 'PYTHON_EXEC': python()}
