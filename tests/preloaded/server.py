"""Imports torch, timm and their companions, then forks a process for each request, see __init__.py: `server.py FOLDER`.

It ends, and ends what it has forked, when its stdin does: with the test process that started it. The request
`serve FOLDER` forks another server, for another test process.
"""
import gc
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import sys
import traceback
import weakref
from typing import Any, Dict, List, NoReturn, Optional, Tuple


def python_path() -> List[str]:
    return [os.path.abspath(folder) for folder in os.environ.get('PYTHONPATH', '').split(os.pathsep) if folder]


# without this script's folder
BASE_PATH = [folder for folder in sys.path[1:] if folder not in python_path()]


def import_libraries() -> None:
    """What every training imports, of other packages."""
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import psutil  # noqa: F401
    import safetensors.torch  # noqa: F401
    import timm.data
    import timm.loss
    import timm.models
    import timm.optim
    import timm.scheduler
    import timm.task
    import timm.utils  # noqa: F401
    import torch.distributed.run
    import torchvision  # noqa: F401
    import tqdm.contrib.logging  # noqa: F401
    import yaml  # noqa: F401
    assert not [m for m in sys.modules if m.startswith('seresnet_timm')]
    if 'torch_npu' in sys.modules:
        assert not torch.npu.is_initialized(), 'a device cannot be used on both sides of a fork'
    assert len(os.listdir('/proc/self/task')) == 1, 'a thread would be missing after a fork'


def ends_without_cleaning() -> None:
    """What the libraries would do at the end of every forked process: torch removes its operators, for 0.04 s."""
    for cleaning in list(weakref.finalize._registry):
        cleaning.atexit = False


def serve(folder: str) -> Tuple[Dict[str, Any], List[int]]:
    """Fork for each request. Returns in the forked process only, with the request and its stdin, stdout and stderr."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{folder}/new')
    listener.listen(64)
    os.rename(f'{folder}/new', f'{folder}/socket')
    running: Dict[int, Tuple[int, int, socket.socket]] = {}  # by pidfd and by the client's socket
    servers = set()
    poll = select.poll()
    for fd in (0, listener.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                end(folder, running)
            elif fd == listener.fileno():
                client, _ = listener.accept()
                request, files = receive(client)
                if request is None:
                    continue  # it needs a real Python
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    return request, files
                for file in files:
                    os.close(file)
                if request['argv'][0] == 'serve':
                    servers.add(pid)
                tell(client, pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = running[client.fileno()] = pid, pidfd, client
                for watched in (pidfd, client.fileno()):
                    poll.register(watched, select.POLLIN)
            elif fd in running:
                pid, pidfd, client = running[fd]
                if fd != pidfd and pid not in servers:  # a server ends, and what it has forked, when its stdin does
                    os.kill(pid, signal.SIGKILL)  # the client was killed
                _, status = os.waitpid(pid, 0)
                for watched in (pidfd, client.fileno()):
                    poll.unregister(watched)
                    del running[watched]
                os.close(pidfd)
                tell(client, status)
                client.close()


def tell(client: socket.socket, number: int) -> None:
    try:
        client.sendall(b'%d\n' % number)
    except OSError:
        pass  # it was killed


def receive(client: socket.socket) -> Tuple[Optional[Dict[str, Any]], List[int]]:
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    text = b''
    while not text.endswith(b'\n'):
        chunk = client.recv(1 << 20)
        if not chunk:
            client.close()
            return None, []
        text += chunk
    return json.loads(text), files


def end(folder: str, running: Dict[int, Tuple[int, int, socket.socket]]) -> NoReturn:
    shutil.rmtree(folder, ignore_errors=True)
    for pid, _, _ in set(running.values()):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sys.exit()


def become(request: Dict[str, Any], files: List[int]) -> None:
    """Make this process what a Python that has just started would be."""
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.closerange(3, 1 << 16)
    for name, fd in (('stdout', 1), ('stderr', 2)):  # new objects: they know whether a file or a pipe is behind them
        old = getattr(sys, name)
        stream = open(fd, 'w', encoding=old.encoding, errors=old.errors, closefd=False)
        stream.reconfigure(line_buffering=old.line_buffering, write_through=old.write_through)
        setattr(sys, name, stream)
        setattr(sys, f'__{name}__', stream)
    os.setsid()
    os.chdir(request['cwd'])
    os.umask(request['umask'])
    signal.signal(signal.SIGINT, signal.SIG_IGN if request['ignores_interrupts'] else signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request['environ'])
    sys.path[:] = ['' if request['argv'][0] == '-c' else request['cwd'], *dict.fromkeys([*python_path(), *BASE_PATH])]
    sys.argv[:] = [request['argv'][0], *request['argv'][2:]]
    sys.orig_argv[:] = [sys.executable, *request['argv']]
    if request['unbuffered']:
        sys.stdout.reconfigure(write_through=True)
    sys.modules['tempfile'].tempdir = None  # read from the environment when it is first used
    # as at an import, from the system's randomness
    random.seed()
    sys.modules['numpy'].random.seed()
    sys.modules['torch'].default_generator.seed()


def run(kind: str, program: str) -> None:
    """What `python -m MODULE` or `python -c CODE` does, with nothing of this script left in `__main__`."""
    run_as_main, leave = runpy._run_module_as_main, finish
    for name in [n for n in globals() if not n.startswith('__') or n == '__warningregistry__']:
        del globals()[name]
    try:
        if kind == '-m':
            run_as_main(program)
        else:
            globals().update(__spec__=None, __doc__=None)
            for name in ('__file__', '__cached__'):
                globals().pop(name, None)
            exec(compile(program, '<string>', 'exec'), globals())
    except SystemExit as e:
        leave(e.code)
        raise
    leave(None)


def finish(code: Any) -> None:
    """End as Python does after a program, without its last step: to destroy all objects of torch and timm takes 0.4 s.

    Returns if stdout or stderr cannot be written: then Python ends the process, and says so.
    """
    import atexit
    import os
    import sys
    import threading
    try:
        if not isinstance(code, (int, type(None))):
            print(code, file=sys.stderr)
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit((code or 0) & 0xff if isinstance(code, (int, type(None))) else 1)


if __name__ == '__main__':
    gc.disable()  # the collections during these imports would take a quarter of their time
    try:
        import_libraries()
    except BaseException:
        with open(f'{sys.argv[1]}/failed', 'w') as f:
            traceback.print_exc(file=f)
        raise
    environ = dict(os.environ)
    ends_without_cleaning()
    gc.collect()
    gc.enable()
    gc.freeze()
    request: Dict[str, Any] = dict(argv=['serve', sys.argv[1]])
    while request['argv'][0] == 'serve':
        folder = request['argv'][1]
        with open(f'{folder}/environ.json', 'w') as f:
            json.dump(environ, f)
        request, files = serve(folder)
        become(request, files)
    run(*request['argv'][:2])
