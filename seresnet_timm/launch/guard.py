"""Ends a process in which no Python runs any more: a call of C or C++ keeps Python's lock (GIL), and does not return

The thread that watches the only rank of a process (`watch`) needs this lock too. So it tells this program every second
that Python runs, and what to say if it does not. This file is the program too. It is started by its path, with a few
modules of the standard library alone: it is there in milliseconds, and takes 9 MB.
"""
import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, List, Sequence

PAUSE = 1.  # seconds between two looks
HELD = 3.  # seconds without Python after which a second signal ends the process here
TO_WRITE = 1.  # seconds for the stacks
END = b'\0\n'  # of what is told


@contextmanager
def guarded(stacks_signal: int, written: str) -> Iterator[Callable[[float, str, str], None]]:
    """Guard this process while the block runs.

    Args:
        stacks_signal: Signal that lets this process write the stacks of its threads.
        written: The file where it writes them.

    Returns:
        To be called while Python runs: after how many seconds without a call to end the process, what to say then, and
        where to copy the stacks; '' for stderr. The first call starts the guard.
    """
    import subprocess  # the program starts sooner without, as without the package

    from seresnet_timm.engine.signals import SECOND_SIGNAL, STOPPING, TWICE
    started: List[subprocess.Popen] = []
    owner = os.getpid()

    def tell(seconds: float, sentence: str, copy: str) -> None:
        with suppress(OSError):  # no further process can be started; or it was killed
            if not started:
                started.append(subprocess.Popen(
                    [sys.executable, '-IS', os.path.abspath(__file__), str(stacks_signal), written,
                     SECOND_SIGNAL.decode(), str(TWICE), *(str(int(signum)) for signum in STOPPING)],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
                os.set_blocking(started[0].stdin.fileno(), False)
            # neither a path nor a sentence holds a zero byte
            fields = str(seconds).encode(), os.fsencode(copy), sentence.encode(errors='backslashreplace')
            os.write(started[0].stdin.fileno(), b'\0'.join(fields) + END)
    try:
        yield tell
    finally:
        for guard in started if os.getpid() == owner else ():
            with suppress(OSError):
                guard.kill()
                guard.stdin.close()
                guard.wait()


def main(stacks_signal: int, written: str, second_signal: str, twice: float, stopping: Sequence[int]) -> None:
    """Guard the process that has started this one, until it ends.

    Args:
        stacks_signal: See `guarded`.
        written: Likewise.
        second_signal: What is said when a second signal ends the process.
        twice: Seconds after which a signal is a second one.
        stopping: The signals.
    """
    parent, received = os.getppid(), []
    for signum in stopping:  # to all processes of a terminal or job
        signal.signal(signum, lambda *_: received.append(time.monotonic()))
    seconds, sentence, copy, rest = float('inf'), '', b'', b''
    silent, looked = 0., time.monotonic()
    while True:
        readable = select.select([0], [], [], PAUSE)[0]
        now = time.monotonic()
        silent, looked = silent + min(now - looked, 2 * PAUSE), now  # this process may have been suspended too
        if os.getppid() != parent:
            return
        if readable:
            told = os.read(0, 1 << 16)
            if not told:
                return
            *messages, rest = (rest + told).split(END)
            for last in messages[-1:]:
                number, copy, text = last.split(b'\0')
                seconds, sentence, silent = float(number), text.decode(), 0.
        elif _is_stopped(parent):
            silent = 0.
        is_second = len(received) > 1 and received[-1] - received[0] > twice
        if silent > seconds or is_second and silent > HELD:
            os.kill(parent, stacks_signal)
            time.sleep(TO_WRITE)
            if os.getppid() == parent:
                if silent > seconds:
                    _copy_stacks(written, copy)
                print(sentence if silent > seconds else second_signal.rstrip(), file=sys.stderr, flush=True)
                os.kill(parent, signal.SIGKILL)
                import shutil  # the program starts sooner without
                shutil.rmtree(os.path.dirname(written), ignore_errors=True)
            return


def _copy_stacks(written: str, copy: bytes) -> None:
    with suppress(OSError), open(written) as stacks:
        text = stacks.read()
        if copy:
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            with open(copy, 'w') as file:
                file.write(text)
        else:
            print(text, file=sys.stderr)


def _is_stopped(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(') ')[2][:1] in 'Tt'
    except OSError:
        return False


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), [int(n) for n in sys.argv[5:]])
