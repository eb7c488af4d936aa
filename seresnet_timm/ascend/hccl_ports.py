"""HCCL's ports on this host: those that are set are checked, else free ones are chosen and kept for the run

HCCL listens from HCCL_IF_BASE_PORT on, on the host of rank 0, which tells its port to the others. From CANN 8.1 on, and
not on the first 910, HCCL_HOST_SOCKET_PORT_RANGE names the ports instead, and HCCL_NPU_SOCKET_PORT_RANGE those of the
device, which processes that share an NPU need.

A run keeps its ports by names of sockets in the kernel (abstract Unix sockets): they end with the process, and every
process that could listen at the same port sees them, also those of other users and of containers on the host's network.
"""
import contextlib
import re
import socket
from pathlib import Path
from typing import Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import psutil

from seresnet_timm.ascend.hccl import Findings, Machine
from seresnet_timm.ascend.hccl_network import HCCL_BASE_PORT, exposed_ports, is_free
from seresnet_timm.errors import counted, first_names

BASE, HOST, NPU = 'HCCL_IF_BASE_PORT', 'HCCL_HOST_SOCKET_PORT_RANGE', 'HCCL_NPU_SOCKET_PORT_RANGE'
LOWEST, HIGHEST = 1024, 65520  # of HCCL_IF_BASE_PORT
MOST = 32  # ports of a run
BLOCK = 16  # ports that are kept together
# where free ports are looked for: the default, then ports that Linux seldom gives to outgoing connections
CANDIDATES = (HCCL_BASE_PORT, *range(61440, 65473, MOST), *range(20000, 28961, MOST))


class Wish(NamedTuple):
    """What a run needs.

    Attributes:
        nproc: Processes of this node.
        nnodes: Number of nodes.
        rank: Number of this node; HCCL listens on node 0.
        address: Address of this host for HCCL; None for all of them.
        shares_npu: Another process uses one of the NPUs.
        can_choose: Variables that are set here reach all ranks of the node.
    """
    nproc: int
    nnodes: int = 1
    rank: int = 0
    address: Optional[str] = None
    shares_npu: bool = False
    can_choose: bool = True


def decide_ports(
        environ: Mapping[str, str], machine: Machine, wish: Wish, keep: contextlib.ExitStack,
        root: Path = Path('/')) -> Findings:
    """Check the ports that the user set, or choose free ones and keep them.

    Args:
        environ: The environment.
        machine: This machine.
        wish: What the run needs.
        keep: Keeps the ports until it is closed.
        root: Folder that stands for /.
    """
    found = Findings()
    for name in (HOST, NPU):
        if name in environ:
            _check_range(found, name, environ[name], machine, wish)
    if HOST in environ and machine.takes_port_ranges:
        if BASE in environ:
            found.notes.append(f'{BASE}={environ[BASE]} has no effect beside {HOST}.')
    elif BASE in environ:
        _check_base(found, environ[BASE], machine, wish, keep)
    else:
        _choose(found, environ, machine, wish, keep, root)
    return found


# --- what the user set ------------------------------------------------------------------------------------------------

def parse_range(text: str) -> Optional[List[int]]:
    """Ports of '60000-60031,61000'; None for 'auto'.

    Raises:
        ValueError: It is neither; the message is the end of a sentence.
    """
    if text.strip() == 'auto':
        return None
    ports: List[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'([0-9]{1,6})(?:-([0-9]{1,6}))?', part.strip())
        if match is None:
            raise ValueError(f"'{part}' is neither a port nor a range such as 60000-60031")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f'{part} ends before it begins')
        if first < 1 or last > 65535:
            raise ValueError(f'{part} is not within 1-65535')
        ports += range(first, last + 1)
    twice = sorted({port for port in ports if ports.count(port) > 1}) if len(ports) < 65536 else ports[:1]
    if twice:
        raise ValueError(f'port {twice[0]} is in it twice')
    return ports


def _check_range(found: Findings, name: str, value: str, machine: Machine, wish: Wish) -> None:
    try:
        ports = parse_range(value)
    except ValueError as e:
        found.problems.append(f'{name}={value} is not a list of ports: {e}; correct it, or unset it.')
        return
    if not machine.takes_port_ranges:
        why = ('on this chip' if machine.is_first_910 else 'before CANN 8.1' if machine.cann is not None else
               'where CANN is not found')
        found.notes.append(f'{name}={value} has no effect {why}: {BASE} sets the first port.')
        return
    if ports is None:
        return
    if name == HOST:
        taken = taken_ports(ports, wish.address)
        if len(ports) - len(taken) < wish.nproc:
            in_use = f', of which {_in_use(taken)}' if taken else ''
            found.problems.append(f'{name}={value} has {counted(len(ports), "port")}{in_use}; '
                                  f'{counted(wish.nproc, "process needs one", "processes need one each")}: '
                                  'name more, or unset it.')


def is_base_port(value: str) -> bool:
    """Whether HCCL_IF_BASE_PORT may have this value."""
    return bool(re.fullmatch(r'[0-9]{1,5}', value.strip())) and LOWEST <= int(value) <= HIGHEST


def _check_base(found: Findings, value: str, machine: Machine, wish: Wish, keep: contextlib.ExitStack) -> None:
    if not is_base_port(value):
        found.problems.append(f"{BASE}='{value}' is not a port from {LOWEST} to {HIGHEST}: correct it, or unset it.")
        return
    ports = ports_from(int(value), machine)
    taken = taken_ports(ports, wish.address)
    if taken:
        found.problems.append(f'{BASE}={value} makes HCCL listen at {_span(ports)}, but {_in_use(taken)}: '
                              'end that, name another first port, or unset the variable.')
    elif keep_ports(ports, keep):
        found.notes.append(f'HCCL listens at {_span(ports)}, as you set {BASE}.')
    elif wish.nnodes > 1 or not wish.can_choose:  # it may be another node of this run, on the same host
        found.notes.append(f'{BASE}={value}: another run on this host keeps ports of {_span(ports)} too: if the two '
                           'disturb each other, set another first port for one of them.')
    else:
        found.problems.append(f'{BASE}={value}: another run on this host keeps ports of {_span(ports)}: name another '
                              'first port, or unset the variable, and free ports are chosen.')


# --- what is chosen ---------------------------------------------------------------------------------------------------

def _choose(
        found: Findings, environ: Mapping[str, str], machine: Machine, wish: Wish, keep: contextlib.ExitStack,
        root: Path) -> None:
    usual = ports_from(HCCL_BASE_PORT, machine)
    taken = taken_ports(usual, wish.address)
    in_use = _in_use(taken) if taken else 'another run keeps them'
    needs_range = wish.shares_npu and machine.takes_port_ranges
    if not taken and not needs_range and keep_ports(usual, keep):
        found.notes.append(f'HCCL listens at its default ports {_span(usual)}, which are free{_on(wish.address)}.')
        return
    if not taken and (not wish.can_choose or wish.nnodes > 1 and not machine.takes_port_ranges):
        # it may be another node of this run, on the same host
        found.notes.append(f'HCCL listens at its default ports {_span(usual)}, which another run on this host keeps '
                           f'for itself: if the two disturb each other, set {BASE} for one of them.')
        return
    if wish.rank and not machine.takes_port_ranges:
        found.notes.append(f"HCCL's default ports {_span(usual)} are not free{_on(wish.address)} ({in_use}): HCCL "
                           'listens on node 0 only, where they are checked too.')
        return
    if not wish.can_choose:
        free = next((p for p in free_windows(machine, wish.address, root)), None)
        advice = f'for example {free[0]}' if free else 'to the first of as many free ports'
        found.problems.append(f"HCCL's default ports {_span(usual)} are not free{_on(wish.address)}: {in_use}. End "
                              f'that, or set {BASE} for every rank, {advice}.')
        return
    ports = next((ports for ports in free_windows(machine, wish.address, root) if keep_ports(ports, keep)), None)
    if ports is None:
        found.problems.append(f'No {len(usual)} ports in a row are free for HCCL{_on(wish.address)}: end what listens '
                              f'there (ss -ltnp), or set {BASE}.')
        return
    reason = f'{_span(ports)} are free{_on(wish.address)}; of the default {_span(usual)}, {in_use}'
    if needs_range and not taken:
        reason = f'{_span(ports)} are free{_on(wish.address)}'
    if not machine.takes_port_ranges:
        found.set(BASE, str(ports[0]), reason)
        if wish.nnodes > 1:
            found.notes.append('HCCL on this node, node 0, tells its port to the other nodes; if they do not connect, '
                               f'set {BASE}={ports[0]} on all of them.')
        return
    found.set(HOST, _span(ports), reason)
    if wish.shares_npu and NPU not in environ and wish.nnodes == 1:
        found.set(NPU, _span(ports), 'another process uses an NPU of this run, so that its own ports differ too')


def ports_from(first: int, machine: Machine) -> List[int]:
    return list(range(first, min(first + machine.ports, 65536)))


def free_windows(machine: Machine, address: Optional[str], root: Path) -> Iterator[List[int]]:
    """Free ports in a row: those that the kernel does not give to outgoing connections come first."""
    windows = [ports_from(first, machine) for first in CANDIDATES]
    for ports in sorted(windows, key=lambda ports: bool(exposed_ports(root, ports[0], len(ports)))):
        if not taken_ports(ports, address):
            yield ports


def taken_ports(ports: Iterable[int], address: Optional[str]) -> List[int]:
    """Ports at which no process can listen now."""
    return [port for port in ports if not is_free(port, address)]


def keep_ports(ports: Sequence[int], keep: contextlib.ExitStack) -> bool:
    """Keep ports from other runs of this package on the same network; False if one keeps some of them already."""
    with contextlib.ExitStack() as held:
        for block in range(ports[0] // BLOCK, ports[-1] // BLOCK + 1):
            s = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                s.bind(f'\0seresnet_timm-hccl-{block * BLOCK}')
            except OSError:
                return False
        keep.enter_context(held.pop_all())
    return True


# --- words ------------------------------------------------------------------------------------------------------------

def _span(ports: Sequence[int]) -> str:
    return f'{ports[0]}-{ports[-1]}'


def _in_use(taken: Sequence[int]) -> str:
    return f'{first_names(map(str, taken), 4)} {_are(taken)} in use{_by(taken)}'


def _are(ports: Sequence[int]) -> str:
    return 'is' if len(ports) == 1 else 'are'


def _on(address: Optional[str]) -> str:
    return f' on {address}' if address else ''


def _by(ports: Sequence[int]) -> str:
    """The processes at these ports, where the kernel tells: ` (python3, pid 12)`."""
    names: List[Tuple[str, int]] = []
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections('tcp'):
            if connection.laddr and connection.laddr.port in ports and connection.pid:
                with contextlib.suppress(psutil.Error):
                    names.append((psutil.Process(connection.pid).name(), connection.pid))
    found = [f'{name}, pid {pid}' for name, pid in dict.fromkeys(names)]
    return f' ({"; ".join(found[:3])})' if found else ''
