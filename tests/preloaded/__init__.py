"""A Python that has torch and timm imported: `-m MODULE` and `-c CODE` start in milliseconds, not 5 s of CPU time.

`python()` starts, once a test process, a server (server.py) that imports what every training imports and nothing of
this package, and returns a program to be used where sys.executable would be. With several test processes (`pytest -n`)
the first server is that of the process that starts them, and forks one for each. The program (client.py) hands its
arguments, environment, working folder, umask, stdin, stdout and stderr to the server, which forks; it passes signals
on, and ends as the forked process ends.

What is real: a process of its own for each call, with its own exit code or fatal signal, files, pipes, children,
threads, random state, `__main__`, sys.argv, sys.path and atexit; the package is imported anew, from where Python would
find it.

What is not: the interpreter has started and torch, timm and other libraries were imported before, in an environment
that must be the same (client.py compares, and else starts a real Python); all processes share a hash seed; each is a
child of the server, in a session of its own, and /proc shows the server's command line; after atexit's functions
objects that are still alive are not destroyed, nor does torch remove its operators. So tests that are about starting,
importing, the tree of processes, signals from a terminal or a parent, or what Python does at its very end use
sys.executable.

A test or module asks for it with the marker `preloaded` (`pytestmark = pytest.mark.preloaded`); in it `run_cli(...)`
uses this Python, and `run_cli(..., fresh=True)` starts a real one.
"""
import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Mapping, Optional, TextIO, Tuple

HERE = Path(__file__).resolve().parent
wanted = False  # the running test has the marker; tests/conftest.py sets it
_shared = os.environ.pop('PRELOADED_SERVER', None)  # folder of the server of the process that started this one
_pid: Optional[int] = None  # of this process's server
_end: Callable[[], object]  # lets it end
_folder = ''


def python() -> str:
    """Path of the program; starts the server with the first call."""
    global _pid, _end, _folder
    if _pid is None:
        _folder = tempfile.mkdtemp(prefix='preloaded-')  # the server removes it
        program = Path(_folder) / 'python'
        # -I and -S: isolated and without site-packages, so that it starts in 20 ms
        program.write_text(f'#!{sys.executable} -IS\n' + (HERE / 'client.py').read_text())
        program.chmod(0o755)
        with open(Path(_folder) / 'log', 'w') as log:
            _pid, _end = _start(log) if _shared is None else _fork(log, Path(_shared))
        atexit.register(stop)
    return f'{_folder}/python'


def _start(log: TextIO) -> Tuple[int, Callable[[], object]]:
    server = subprocess.Popen([sys.executable, str(HERE / 'server.py'), _folder], stdin=subprocess.PIPE, stdout=log,
                              stderr=log, start_new_session=True)
    return server.pid, server.communicate


def _fork(log: TextIO, shared: Path) -> Tuple[int, Callable[[], object]]:
    while not (shared / 'socket').exists():  # it imports
        if (shared / 'failed').exists() or not shared.exists():
            raise RuntimeError(f'The preloaded Python cannot be used: {(shared / "failed").read_text()}')
        time.sleep(0.02)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(shared / 'socket'))
    # not a pipe: processes that this one has forked, such as workers of a loader, hold its end open
    stdin, ends_it = socket.socketpair()
    socket.send_fds(connection, [b'.'], [stdin.fileno(), log.fileno(), log.fileno()])
    stdin.close()
    connection.sendall(json.dumps(dict(
        argv=['serve', _folder], unbuffered=False, environ=dict(os.environ), cwd=os.getcwd(), umask=0o22,
        ignores_interrupts=False)).encode() + b'\n')
    answers = connection.makefile()
    pid = int(answers.readline())

    def end() -> None:
        ends_it.shutdown(socket.SHUT_RDWR)
        answers.readline()  # its status: it has ended
        connection.close()
    return pid, end


def share() -> None:
    """Start the server from which the processes that this one starts fork theirs."""
    python()
    os.environ['PRELOADED_SERVER'] = _folder


def stop() -> None:
    """End the server, and what it has started."""
    global _pid
    if _pid is not None:
        _end()
        shutil.rmtree(_folder, ignore_errors=True)  # where it could not start
        _pid = None


def running() -> list:
    """Process ids of what was forked and has not ended."""
    return [] if _pid is None else Path(f'/proc/{_pid}/task/{_pid}/children').read_text().split()


def environment(environ: Mapping[str, str] = os.environ) -> dict:
    """The environment in which torchrun's ranks start as quickly as their launcher."""
    return {**environ, 'PYTHON_EXEC': python()}
