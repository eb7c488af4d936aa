"""Notices a machine that is gone: switched off, or cut off from the network, so that nobody tells that it has ended

A process that ends closes its connections, and those that wait for it learn of it. A machine without power closes
nothing: whoever waits for it waits until `--hang-timeout`. So each machine keeps a connection to the first one, on
which nothing is sent. The kernels probe it (TCP keepalive): that of a machine answers whatever its processes do, also
if they compute, compile, save, are stopped by a signal or wait for Python's lock. A slow rank is therefore never
mistaken for a machine that is gone; `watch` sees ranks that hang.
"""
import secrets
import selectors
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator, Mapping, Tuple

from seresnet_timm.errors import first_line, printable

PART, LEAST = 10, 10.  # a machine is gone after this part of --hang-timeout without an answer, at least these seconds
PROBES = 20  # in that time: on a network that loses half of the packets each way, all are lost once in 300 times
TO_CONNECT = 20.  # seconds
MOST_BYTES = 1000  # of a name or sentence
Lost = Callable[[str], None]


def seconds_without_answer(hang_timeout: float) -> float:
    """How long a machine may be silent; 0 for ever."""
    return max(LEAST, hang_timeout / PART) if hang_timeout else 0


@contextmanager
def watched(env: Mapping[str, str], number: int, name: str, seconds: float, lost: Lost) -> Iterator[None]:
    """While the block runs: watch the machines of a run. A process on each of them must come here.

    Args:
        env: torch's variables of a rank of this machine; the store that they name is there.
        number: Number of this machine, or of a rank of it; 0 is the one with rank 0.
        name: Of this machine, for a sentence.
        seconds: How long a machine may give no answer; 0 watches nothing.
        lost: Called once, in a thread, with a sentence on a machine that is gone.
    """
    if not seconds:
        yield
        return
    with ExitStack() as stack:
        try:
            connection, token = _connect(env, is_first=number == 0)
            stack.enter_context(connection)
            stack.callback(_Contact(connection, token, number == 0, name, seconds, lost).close)
        except (OSError, RuntimeError) as e:  # RuntimeError: of torch.distributed's stores
            print(f'Note: there is no connection to the machine of rank 0 ({first_line(e)}): a machine that is '
                  'switched off is noticed only after --hang-timeout.', file=sys.stderr, flush=True)
        yield


def _connect(env: Mapping[str, str], is_first: bool) -> Tuple[socket.socket, bytes]:
    """The listener of the first machine, or a connection to it; and the word by which the machines know each other."""
    from torch.distributed import PrefixStore, TCPStore
    address = env['MASTER_ADDR']
    start = f'{env.get("TORCHELASTIC_RUN_ID", "")}/{env.get("TORCHELASTIC_RESTART_COUNT", "0")}'
    store = PrefixStore(f'seresnet_timm/machines/{start}', TCPStore(
        address, int(env['MASTER_PORT']), is_master=False, timeout=timedelta(seconds=TO_CONNECT)))
    if not is_first:
        port, token = store.get('first').decode().split()
        return socket.create_connection((address, int(port)), timeout=TO_CONNECT), token.encode()
    has_ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
    listener = socket.create_server(('', 0), family=family, dualstack_ipv6=has_ipv6, backlog=1024)
    token = secrets.token_hex(16)
    store.set('first', f'{listener.getsockname()[1]} {token}')
    return listener, token.encode()


class _Contact:
    """The connections of this machine, and the thread that waits for what happens on them."""

    def __init__(
            self, connection: socket.socket, token: bytes, is_first: bool, name: str, seconds: float, lost: Lost):
        self._token, self._seconds, self._lost = token, seconds, lost
        self._listener = connection if is_first else None
        self._names: Dict[socket.socket, str] = {}  # of machines that have named themselves
        self._wake_up, self._end = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for end in (self._wake_up, connection):
            self._selector.register(end, selectors.EVENT_READ)
        if not is_first:
            self._names[connection] = f'The machine of rank 0 ({connection.getpeername()[0]})'
            probe(connection, seconds)
            connection.sendall(token + name.encode()[:MOST_BYTES])
            connection.setblocking(False)
        self._thread = threading.Thread(target=self._run, name='machines', daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                connection: Any = key.fileobj
                if connection is self._wake_up:
                    return
                if connection is self._listener:
                    self._accept()
                    continue
                sentence = self._read(connection)
                if sentence:
                    for other in self._names if self._listener is not None else ():
                        with suppress(OSError):
                            other.send(sentence.encode()[:MOST_BYTES])
                    self._lost(sentence)
                    return

    def _accept(self) -> None:
        with suppress(OSError):  # it has ended meanwhile
            connection, _ = self._listener.accept()
            probe(connection, self._seconds)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> str:
        """What happened on a connection: a sentence on a machine that is gone, or ''."""
        try:
            received = connection.recv(2 * MOST_BYTES)
        except BlockingIOError:
            return ''
        except OSError as e:  # no answer; or that of a machine that was switched on again
            name = self._names.get(connection)
            self._leave(connection)
            return '' if name is None else (
                f'{name} gives no answer any more ({e.strerror}; the limit is {self._seconds:g} s): it is switched '
                'off, or cut off from the network')
        if received and self._listener is None:
            return printable(received.decode(errors='replace'))
        if received.startswith(self._token):
            self._names[connection] = printable(received[len(self._token):].decode(errors='replace'))
        else:  # its process has ended, which others tell; or a stranger
            self._leave(connection)
        return ''

    def _leave(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._names.pop(connection, None)
        connection.close()


def probe(connection: socket.socket, seconds: float) -> None:
    """Let the kernel end a connection that gives no answer for a time."""
    interval = max(1, round(seconds / PROBES))
    options = dict(
        TCP_KEEPIDLE=interval, TCP_KEEPINTVL=interval, TCP_KEEPCNT=PROBES, TCP_USER_TIMEOUT=int(1000 * seconds))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
