"""Signals that end a training after its step: it saves its state, so that it goes on there later

A signal often arrives twice: from a terminal at the launcher and at its ranks, and from the launcher at the ranks once
more; `timeout` sends its own to the process and to the group. What follows the first one within `TWICE` seconds is the
same signal.
"""
import os
import signal
import time
from typing import Any, Dict, Optional

STOPPING = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')
                 if hasattr(signal, name))
TWICE = 1.
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
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: Any) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._time = signum, now
        elif now - self._time > TWICE:
            os.write(2, SECOND_SIGNAL)
            os._exit(128 + signum)
