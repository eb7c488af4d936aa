"""Two machines with a real connection between them, for tests: network namespaces, and packets that pass through here

The kernel of a machine with tests often lacks netem and iptables. So each namespace has a TUN device, and a thread of
the test hands packets on from one to the other: late, some of them not, or none, as when a machine loses its power.
"""
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, List

import pytest

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454ca, 1, 0x1000
CLONE_NEWNET = 0x40000000
needs_network = pytest.mark.skipif(
    os.geteuid() != 0 or not Path('/dev/net/tun').exists()
    or subprocess.run(['unshare', '--net', 'ip', 'link'], capture_output=True).returncode != 0,
    reason='network namespaces need root, ip and /dev/net/tun')


class Wire:
    """Two namespaces and what connects them, while it is a context.

    Attributes:
        is_cut: No packet arrives any more, and nobody is told.
        loss: Share of the packets that do not arrive.
        delay: Seconds that a packet takes.
    """

    def __init__(self) -> None:
        self.is_cut, self.loss, self.delay = False, 0., 0.
        self.names = [f'wire{os.getpid()}n{i}' for i in (0, 1)]
        self._tuns: List[int] = []
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> 'Wire':
        for i, name in enumerate(self.names):
            subprocess.run(['ip', 'netns', 'add', name], check=True)
            self._tuns.append(self.inside(i, _open_tun))
            for command in (f'addr add {address(i)}/24 dev wire', f'-6 addr add {address6(i)}/64 dev wire nodad',
                            'link set wire up', 'link set lo up'):
                subprocess.run(['ip', '-n', name, *command.split()], check=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: Any) -> None:
        self._has_ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for tun in self._tuns:
            os.close(tun)
        for name in self.names:
            subprocess.run(['ip', 'netns', 'del', name])

    def inside(self, machine: int, call: Callable[[], Any]) -> Any:
        """Result of a call in the namespace of a machine: its sockets stay there."""
        results = []

        def run() -> None:
            with open(f'/run/netns/{self.names[machine]}') as f:
                if ctypes.CDLL(None).setns(f.fileno(), CLONE_NEWNET):
                    raise OSError('setns')
            results.append(call())
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return results[0]

    def prefix(self, machine: int) -> List[str]:
        """What comes before a command that runs on a machine."""
        return ['ip', 'netns', 'exec', self.names[machine]]

    def _run(self) -> None:
        draws, late = random.Random(0), []  # (when, number, to, packet)
        while not self._has_ended.is_set():
            wait = min(0.1, max(0., late[0][0] - time.monotonic())) if late else 0.1
            for tun in select.select(self._tuns, [], [], wait)[0]:
                packet, to = os.read(tun, 65536), self._tuns[1 - self._tuns.index(tun)]
                if not self.is_cut and draws.random() >= self.loss:
                    heapq.heappush(late, (time.monotonic() + self.delay, draws.random(), to, packet))
            while late and late[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(late)
                os.write(to, packet)


def address(machine: int) -> str:
    return f'10.14.1.{machine + 1}'


def address6(machine: int) -> str:
    return f'fd14:1::{machine + 1}'


def _open_tun() -> int:
    tun = os.open('/dev/net/tun', os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack('16sH14x', b'wire', IFF_TUN | IFF_NO_PI))
    return tun
