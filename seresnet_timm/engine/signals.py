"""Signals that end a training after its step: it saves its state, so that it goes on there later

A signal often arrives twice: from a terminal at the launcher and at its ranks, and from the launcher at the ranks once
more; `timeout` sends its own to the process and to the group. What follows the first one within `TWICE` seconds is the
same signal.

No step comes to its end while the data are not there, for example because a network drive is gone. A call that waits
for data is therefore interrupted `PATIENCE` seconds after the signal.
"""
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

STOPPING = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')
                 if hasattr(signal, name))
TWICE = 1.
PATIENCE, POLL = 4., 0.2  # seconds
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


class Wait:
    """A call that waits for data, of a process without others."""

    def may_end(self) -> bool:
        """The call may be interrupted now; asked in another thread, again and again."""
        return True

    def goes_on(self) -> bool:
        """The call returned; False if the run is to stop here all the same."""
        return True


class StopSignals:
    """Notes the first signal, and ends the process at the second.

    Used as a context: outside of it signals do what they did before. In a thread that is not the main one, and for
    signals that the process ignores (nohup), nothing changes.

    Attributes:
        received: Number of the first signal.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._time = 0.
        self._before: Dict[int, Any] = {}
        self._is_open = True
        self._wait: Optional[Wait] = None
        self._since = 0.
        self._ends_wait = self._is_own_signal = False
        self._lock = threading.Lock()

    def __enter__(self) -> 'StopSignals':
        for signum in STOPPING:
            if signal.getsignal(signum) is signal.SIG_IGN:
                continue
            try:
                self._before[signum] = signal.signal(signum, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_error) -> None:
        self._is_open = False
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def waiting(self, wait: Wait) -> Iterator[None]:
        """A call that waits for data.

        Raises:
            Stopped: A signal came, and the data did not.
        """
        self._since, self._wait = time.monotonic(), wait
        try:
            yield
        finally:
            with self._lock:
                self._wait = None
        if self._ends_wait or not wait.goes_on():
            raise Stopped(self.received)

    def _end_wait(self) -> None:
        """In a thread, after a signal: interrupt a call that waits too long."""
        while self._is_open and not self._ends_wait:
            time.sleep(POLL)
            with self._lock:
                if self._wait is not None and time.monotonic() - max(self._since, self._time) > PATIENCE:
                    self._ends_wait = self._wait.may_end()
                    if self._ends_wait:
                        self._is_own_signal = True
                        signal.pthread_kill(threading.main_thread().ident, self.received)

    def _handle(self, signum: int, _frame: Any) -> None:
        now = time.monotonic()
        if self._is_own_signal:
            self._is_own_signal = False
            if self._wait is not None:
                raise Stopped(self.received)
        elif self.received is None:
            self.received, self._time = signum, now
            threading.Thread(target=self._end_wait, daemon=True).start()
        elif now - self._time > TWICE:
            os.write(2, SECOND_SIGNAL)
            os._exit(128 + signum)
