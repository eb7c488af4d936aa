# Stands for a Python that is started as `python [-u] -m MODULE ...` or `-c CODE ...`, see __init__.py.
# Lies beside the server's socket.
import json
import os
import signal
import socket
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(sys.argv[0]))
# Variables that Python, the loader, OpenMP, torch, torchvision, timm or torch_npu read when they start or are imported
READ_AT_START = (
    'PYTHON', 'LD_', 'MALLOC_', 'LANG', 'LC_', 'OMP_', 'GOMP_', 'MKL_', 'OPENBLAS_', 'NUMEXPR_', 'TIMM_FUSED',
    'TORCH_DEVICE_BACKEND_AUTOLOAD', 'TORCH_LOGS', 'TORCH_SHOW', 'TORCH_COMPILE', 'PYTORCH_', 'CUDA_', 'COVERAGE',
    'TASK_QUEUE_ENABLE', 'ASCEND_HOME', 'ASCEND_OPP',
)
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
OTHERWISE = ('PYTHONPATH', 'PYTHON_EXEC', 'PYTHON')  # the forked process follows it; torchrun and the recipes read them
# what a folder of PYTHONPATH may hold that the start of Python or the import of torch would load
LOADED_AT_START = ('sitecustomize.py', 'usercustomize.py', 'torch', 'torch_npu', 'timm', 'torchvision', 'numpy')


def read_at_start(environ) -> dict:
    return {k: v for k, v in environ.items() if k.startswith(READ_AT_START) and k not in OTHERWISE}


def needs_a_real_start(arguments: list, ready: dict) -> bool:
    """Whether a forked process would not be what these arguments and this environment ask for.

    `ready` is the server's environment.
    """
    if arguments[:1] not in (['-m'], ['-c']) or os.isatty(0) or os.isatty(1) or os.isatty(2):
        return True
    if read_at_start(os.environ) != read_at_start(ready):
        return True
    known, asked = (e.get('PYTHONPATH', '').split(os.pathsep) for e in (ready, os.environ))
    return any(
        name in LOADED_AT_START or name.endswith('.dist-info')
        for folder in asked if folder not in known and os.path.isdir(folder) for name in os.listdir(folder))


def connect() -> socket.socket:
    """Connect to the server, which listens as soon as it has imported everything."""
    while not os.path.exists(os.path.join(FOLDER, 'socket')):
        if os.path.exists(os.path.join(FOLDER, 'failed')):
            with open(os.path.join(FOLDER, 'failed')) as f:
                sys.exit(f'The preloaded Python cannot be used: {f.read()}')
        time.sleep(0.02)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.path.join(FOLDER, 'socket'))
    return connection


def main() -> None:
    # a signal waits until it can be passed on: what was forked may run before this process knows that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    arguments = sys.argv[1:]
    unbuffered = arguments[:1] == ['-u']
    connection = connect()
    with open(os.path.join(FOLDER, 'environ.json')) as f:
        ready = json.load(f)
    if needs_a_real_start(arguments[unbuffered:], ready):
        connection.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.execv(sys.executable, [sys.executable, *arguments])

    umask = os.umask(0)
    os.umask(umask)
    request = dict(argv=arguments[unbuffered:], unbuffered=unbuffered, environ=dict(os.environ), cwd=os.getcwd(),
                   umask=umask, ignores_interrupts=signal.getsignal(signal.SIGINT) == signal.SIG_IGN)
    socket.send_fds(connection, [b'.'], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b'\n')
    answers = connection.makefile()
    pid = int(answers.readline())

    def pass_on(signum: int, _frame) -> None:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass  # it has just ended
    for signum in PASSED_ON:
        signal.signal(signum, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = int(answers.readline())
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


main()
