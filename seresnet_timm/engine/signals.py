"""Signals: a training ends after its step and saves its state, so that it goes on there later; all else ends at once

A signal often arrives twice: from a terminal at the launcher and at its ranks, and from the launcher at the ranks once
more; `timeout` sends its own to the process and to the group. What follows the first one within `TWICE` seconds is the
same signal.

No step comes to its end while the data are not there, for example because a network drive is gone. A call that waits
for data is therefore interrupted `PATIENCE` seconds after the signal, in a process without others; several end
together, see `halt`.
"""
import atexit
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, Optional

STOPPING = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')
                 if hasattr(signal, name))
TWICE = 1.
PATIENCE, POLL = 4., 0.2  # seconds
HELD_UP, TO_CLEAN = 3., 2.  # seconds: until a handler must have run, and for `atexit` then; less than launchers wait
SECOND_SIGNAL = b'Stopped at once by a second signal; what was not saved is lost.\n'


class Stopped(Exception):
    """The training stopped because of a signal.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells report it."""
        return 128 + self.signum


class StoppedEarly(SystemExit):
    """A signal stopped a process that has no state to save; its code is 128 and the number of the signal."""

    def __str__(self) -> str:
        return f'Stopped by {signal.Signals(int(self.code or 0) - 128).name}.'


def _stop_early(signum: int, _frame: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)
    raise StoppedEarly(128 + signum)


def _interrupt_early(signum: int, _frame: Any) -> None:
    signal.signal(signum, signal.default_int_handler)
    raise KeyboardInterrupt


@contextmanager
def stop_early() -> Iterator[None]:
    """Let signals raise `StoppedEarly`, so that no lock, empty folder or temporary file stays; the second one kills.

    `StopSignals` takes their place while a training runs. Forked loader workers and other children do not keep this.
    """
    with _handled({signum: _stop_early for signum in STOPPING
                   if signum != signal.SIGINT and signal.getsignal(signum) is signal.SIG_DFL}):
        yield


@contextmanager
def _handled(handlers: Dict[int, Any]) -> Iterator[bool]:
    """Set handlers while the block runs, in this process only; whether this is the main thread, which alone can."""
    owner, before = os.getpid(), {}

    def forget() -> None:
        for signum, handler in before.items():
            if signal.getsignal(signum) is handlers[signum]:
                signal.signal(signum, handler)

    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        os.register_at_fork(after_in_child=forget)
    try:
        yield is_main
    finally:
        if os.getpid() == owner:
            forget()


@contextmanager
def stop_in_calls(is_told: bool = True) -> Iterator[None]:
    """Inside `stop_early`: end the process also where no handler is called, as in a wait of C++ for other processes.

    A thread does so `HELD_UP` seconds after a signal that the main thread has not come to handle, and a little later
    where it has, but Python has dropped the exception, as in `__del__` or a callback. torchrun would kill such a rank
    after 30 s. What `atexit` knows of is removed: locks, empty folders, temporary files.

    Args:
        is_told: Print what happened; else another process does.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with _handled({signal.SIGINT: _interrupt_early} if is_default else {}) as is_main:
        if not is_main:
            yield
            return
        seen, written = socket.socketpair()  # Python writes signals there at once
        written.setblocking(False)
        owner = os.getpid()
        before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)

        def leave() -> None:
            if written.fileno() >= 0:  # a child's signals are not this process's
                signal.set_wakeup_fd(-1)
        os.register_at_fork(after_in_child=leave)
        threading.Thread(target=_end_held_up, args=(seen, is_told), name='signals', daemon=True).start()
        try:
            yield
        finally:
            if os.getpid() == owner:
                signal.set_wakeup_fd(before)
                written.close()  # the thread ends


def _end_held_up(seen: socket.socket, is_told: bool) -> None:
    """End this process `HELD_UP` seconds after a signal, unless its handler has run by then and the block is left."""
    # a handler that has run has set what stands here last
    seconds = {_stop_early: HELD_UP, _interrupt_early: HELD_UP, signal.SIG_DFL: HELD_UP + TO_CLEAN,
               signal.default_int_handler: HELD_UP + TO_CLEAN}
    with seen:
        received = seen.recv(1)
        while received:
            signum, since = received[0], time.monotonic()
            seen.settimeout(POLL)
            while signum in STOPPING and signal.getsignal(signum) in seconds:
                if time.monotonic() - since > seconds[signal.getsignal(signum)]:
                    _end_now(signum, is_told)
                with suppress(socket.timeout):
                    if not seen.recv(1):
                        return
            seen.settimeout(None)
            received = seen.recv(1)


def _end_now(signum: int, is_told: bool) -> None:
    """End this process by a signal from another thread than the main one, with what `atexit` has to do."""
    def end() -> None:
        time.sleep(TO_CLEAN)
        os._exit(128 + signum)
    threading.Thread(target=end, daemon=True).start()
    try:
        if is_told:
            print(StoppedEarly(128 + signum), file=sys.stderr, flush=True)
        atexit._run_exitfuncs()
    finally:
        os._exit(128 + signum)


class StopSignals:
    """Notes the first signal, and ends the process at the second.

    Used as a context: outside of it signals do what they did before. In a thread that is not the main one, and for
    signals that the process ignores (nohup), nothing changes.

    Attributes:
        received: Number of the first signal.
        is_alone: The process trains without others: a call that waits for data is interrupted.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self.is_alone = True
        self._time = 0.
        self._before: Dict[int, Any] = {}
        self._is_open = True
        self._is_waiting = self._is_held = False
        self._since = 0.
        self._ends_wait = self._is_own_signal = False
        self._lock = threading.Lock()
        # Python writes signals there at once, also where the main thread is in a call that does not return
        self._wake_up, self._written = socket.socketpair()
        self._wake_up.setblocking(False)
        self._written.setblocking(False)
        self._descriptor_before: Optional[int] = None

    def __enter__(self) -> 'StopSignals':
        for signum in STOPPING:
            if signal.getsignal(signum) is signal.SIG_IGN:
                continue
            try:
                self._before[signum] = signal.signal(signum, self._handle)
            except ValueError:  # not the main thread
                break
        if self._before:
            self._descriptor_before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_error) -> None:
        self._is_open = False
        if self._descriptor_before is not None:
            signal.set_wakeup_fd(self._descriptor_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.is_alone:  # else a thread still reads signals: it closes them
            self.close()

    def close(self) -> None:
        """Close what signals are read from; nobody waits for one any more."""
        self._wake_up.close()
        self._written.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A call that waits for data. It does not return after `hold_wait`.

        Raises:
            Stopped: A signal came, and the data did not.
        """
        self._since, self._is_waiting = time.monotonic(), True
        try:
            yield
        finally:
            with self._lock:
                self._is_waiting = False
            while self._is_held:
                time.sleep(POLL)
        if self._ends_wait:
            raise Stopped(self.received)

    def hold_wait(self, seconds: float) -> bool:
        """Do not let a call return that has waited for data for a time; whether there is one. From another thread."""
        with self._lock:
            if self._is_waiting and time.monotonic() - self._since >= seconds:
                self._is_held = True
            return self._is_held

    def wait(self, seconds: float) -> None:
        """Wait for a signal, in another thread."""
        poll = select.poll()
        poll.register(self._wake_up, select.POLLIN)
        poll.poll(1000 * seconds)

    def seen(self) -> Optional[int]:
        """The first signal that ends the run, also if the main thread has not come to handle it; in another thread."""
        try:
            written = self._wake_up.recv(4096)
        except BlockingIOError:
            written = b''
        return next((signum for signum in written if signum in STOPPING), self.received)

    def _end_wait(self) -> None:
        """In a thread, after a signal: interrupt a call that waits too long."""
        while self._is_open and not self._ends_wait:
            time.sleep(POLL)
            with self._lock:
                if self._is_waiting and time.monotonic() - max(self._since, self._time) > PATIENCE:
                    self._ends_wait = self._is_own_signal = True
                    signal.pthread_kill(threading.main_thread().ident, self.received)

    def _handle(self, signum: int, _frame: Any) -> None:
        now = time.monotonic()
        if self._is_own_signal:
            self._is_own_signal = False
            if self._is_waiting:
                raise Stopped(self.received)
        elif self.received is None:
            self.received, self._time = signum, now
            if self.is_alone:
                threading.Thread(target=self._end_wait, daemon=True).start()
        elif now - self._time > TWICE:
            os.write(2, SECOND_SIGNAL)
            os._exit(128 + signum)
