"""The launchers of several machines meet for each attempt to run the ranks, in the store of torchrun on the first one

The first machine draws a name for the attempt, and the others join the attempt of this name. Each notes there that it
starts its ranks. A launcher that is started anew, because it or its machine was killed, does not join what its
predecessor had started: it waits for the next attempt, which the others begin if they may restart (`--max-restarts`).
"""
import secrets
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, Iterator

from seresnet_timm.errors import RunError
from seresnet_timm.launch.network import DEFAULT_PORT, answers
from seresnet_timm.launch.plan import Node
from seresnet_timm.runs.settings import RunSettings

NAME = 'seresnet_timm/attempt'
LOOK = 1.  # seconds


def address(node: Node) -> str:
    """Where the launchers meet."""
    return f'{node.master_addr or "127.0.0.1"}:{node.master_port or DEFAULT_PORT}'


@contextmanager
def joined(settings: RunSettings, node: Node, deadline: float) -> Iterator[str]:
    """The name of the attempt that this machine joins, while the block runs the ranks.

    Args:
        settings: Settings of the run.
        node: This machine.
        deadline: How long to wait for the first machine (`time.monotonic`).

    Raises:
        RunError: A launcher of this machine has joined the attempt before, and there is no other one.
        RuntimeError: The first machine did not come; of torch.distributed.
    """
    if settings.nnodes == 1:
        yield 'start'
        return
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing.api import PContext
    host, _, port = address(node).rpartition(':')
    # a store of torch would wait twice as long as it is told to
    if node.rank and not answers(host, int(port), max(0, deadline - time.monotonic())):
        raise RuntimeError(f'Nobody listens at {address(node)}.')
    store = TCPStore(  # torchrun's agent uses the same one in this process
        host, int(port), is_master=node.rank == 0, wait_for_workers=False, multi_tenant=True,
        timeout=timedelta(seconds=max(1, deadline - time.monotonic())))
    if node.rank == 0:
        store.set(NAME, secrets.token_hex(8))
    name = _name(store, node, deadline)
    start_before = PContext.start

    def start(context: Any) -> None:
        store.set(_started(name, node), '')
        start_before(context)
    with ExitStack() as stack:
        PContext.start = start
        stack.callback(setattr, PContext, 'start', start_before)
        yield name


def _name(store: Any, node: Node, deadline: float) -> str:
    from torch.distributed import DistStoreError
    is_known = False
    while time.monotonic() < deadline:
        with suppress(DistStoreError):  # not yet
            store.wait([NAME], timedelta(seconds=LOOK))
            name, is_known = store.get(NAME).decode(), True
            if not store.check([_started(name, node)]):
                return name
            time.sleep(LOOK)
    if not is_known:
        raise RuntimeError('The store has no attempt.')
    raise RunError(
        f'Node 0 at {address(node)} trains with another launcher of node {node.rank}, and has not started its ranks '
        f'anew within {node.rdzv_timeout} s. If that launcher has ended, end node 0 too, and start all nodes with the '
        'same command; with --max-restarts node 0 starts its ranks anew by itself.')


def _started(name: str, node: Node) -> str:
    return f'seresnet_timm/{name}/started/{node.rank}'
