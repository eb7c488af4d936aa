"""The host's network for HCCL: interfaces and ports."""
import ipaddress
import socket
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import psutil

from seresnet_timm.ascend.hccl import Findings
from seresnet_timm.errors import counted

HCCL_BASE_PORT = 60000


def matches_interface(setting: str, name: str) -> bool:
    """Whether HCCL_SOCKET_IFNAME allows a name: beginnings of names, after `=` whole names, after `^` all others."""
    excluded, exact = setting.startswith('^'), '=' in setting[:2]
    wanted = [w for w in setting.lstrip('^=').split(',') if w]
    hit = name in wanted if exact else any(name.startswith(w) for w in wanted)
    return hit != excluded


class Interface(NamedTuple):
    """An address of this machine for HCCL: None if HCCL chooses; why it is this one, as a clause."""
    address: Optional[str]
    why: str


class Nodes(NamedTuple):
    """The nodes of a run, and how they meet.

    Attributes:
        count: Number of nodes.
        rank: Number of this node.
        master: Address or name of node 0.
        local: Address of this node, as typed.
    """
    count: int = 1
    rank: int = 0
    master: Optional[str] = None
    local: Optional[str] = None


def choose_interface(environ: Mapping[str, str], nodes: Nodes) -> Tuple[Interface, Findings]:
    """The address that HCCL uses, checked to be of this machine and, with several nodes, to be on their network."""
    found = Findings()
    nnodes, master, local = nodes.count, nodes.master, nodes.local
    ip, setting = environ.get('HCCL_IF_IP'), environ.get('HCCL_SOCKET_IFNAME')
    if ip is not None:
        chosen = _by_address(found, ip, setting, local)
    elif local:
        chosen = Interface(local, f'--local-addr {local}')
    elif setting is not None:
        chosen = _by_name(found, setting, nnodes)
    else:
        chosen = Interface(None, 'HCCL chooses the interface')
    if nnodes == 1 or found.problems:
        return chosen, found
    route = _route(found, master, nodes.rank) if master else None
    if chosen.address is None and route and setting is None and not found.problems:
        found.set('HCCL_IF_IP', route, f'the address of this machine on the way to {master}')
        chosen = Interface(route, f'on the way to {master}')
    elif chosen.address is not None and is_loopback(chosen.address):
        found.problems.append(f'{chosen.why} is a loopback address, which the other {counted(nnodes - 1, "node")} '
                              'cannot reach: name an address on the network of node 0.')
    elif route and chosen.address not in (None, route):
        found.notes.append(f'HCCL uses {chosen.address} ({chosen.why}), while this machine reaches {master} from '
                           f'{route}: check that the other nodes reach {chosen.address}.')
    return chosen, found


def _by_address(found: Findings, ip: str, setting: Optional[str], local: Optional[str]) -> Interface:
    here = all_addresses()
    try:
        address = str(ipaddress.ip_address(ip.strip())).partition('%')[0]
    except ValueError:
        found.problems.append(f"HCCL_IF_IP='{ip}' is not an IP address: name one of {_listing(here)}, or unset it.")
        return Interface(None, '')
    names = [name for name, addresses in here.items() if address in addresses]
    if not names:
        found.problems.append(f'HCCL_IF_IP={ip} is not an address of this machine: set it to one of {_listing(here)}, '
                              'or unset it.')
        return Interface(None, '')
    if local and local != address:
        found.problems.append(f'HCCL_IF_IP={ip} and --local-addr {local} contradict each other: unset the first, or '
                              'give the same address.')
    if setting is not None and not any(matches_interface(setting, name) for name in names):
        found.notes.append(f'HCCL_IF_IP={ip} wins over HCCL_SOCKET_IFNAME={setting}, which does not allow '
                           f'its interface {names[0]}.')
    return Interface(address, f'HCCL_IF_IP={ip}')


def _by_name(found: Findings, setting: str, nnodes: int) -> Interface:
    here = all_addresses()
    allowed = {name: a for name, a in here.items() if a and matches_interface(setting, name)}
    bare = [name for name, a in here.items() if not a and matches_interface(setting, name)]
    down = [name for name in allowed if not is_up(name)]
    if allowed and len(down) == len(allowed) or bare and not allowed:
        why = f'{", ".join(down)}, which {"are" if len(down) > 1 else "is"} down' if allowed else (
            f'{", ".join(bare)}, which {"have" if len(bare) > 1 else "has"} no address')
        found.problems.append(f"HCCL_SOCKET_IFNAME='{setting}' allows only {why} (ip -br addr): bring it up, or name "
                              f'another of {_listing({n: a for n, a in here.items() if is_up(n)})}.')
        return Interface(None, '')
    if not allowed:
        found.problems.append(f"HCCL_SOCKET_IFNAME='{setting}' allows none of {_listing(here)}: set it to the "
                              'beginning of a name, to =NAME, or unset it.')
        return Interface(None, '')
    outside = [a for addresses in allowed.values() for a in addresses if not is_loopback(a)]
    if not outside and nnodes > 1:
        found.problems.append(f'HCCL_SOCKET_IFNAME={setting} allows {", ".join(allowed)} only, a loopback interface, '
                              f'which the other {counted(nnodes - 1, "node")} cannot reach: name another, or unset it.')
    only = next(iter(allowed.values()))[0] if len(allowed) == 1 else None
    return Interface(only, f'HCCL_SOCKET_IFNAME={setting}')


def _route(found: Findings, master: str, rank: int) -> Optional[str]:
    """The address of this machine from which it reaches node 0; None if its name is not known yet."""
    target = resolve(master)
    if target is None:
        return None  # torchrun waits until the name is there
    try:
        address = address_towards(target)
    except OSError as e:
        found.problems.append(f'This machine has no route to --master-addr {master} ({e.strerror}): name an address of '
                              'node 0 that it reaches.')
        return None
    at = str(target[1][0])
    if is_loopback(at):
        if master != at and rank == 0:  # its own name, which other nodes may know by another address
            found.notes.append(f'{master} is {at} on this machine, so that HCCL chooses the interface: '
                               '--local-addr names one.')
            return None
        known = ' is' if master == at else f' is {at} on this machine,'
        found.problems.append(f'--master-addr {master}{known} a loopback address, which other nodes cannot reach: '
                              'name the address of node 0 on their network.')
        return None
    return address


Target = Tuple[int, Tuple[Any, ...]]  # family and address of a socket


def resolve(host: str) -> Optional[Target]:
    """The first address of a machine's name; None if it is not known here."""
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    except (OSError, UnicodeError):
        return None
    return family, target


def address_towards(target: Target) -> str:
    """The address of this machine from which it reaches another. Nothing is sent: the kernel looks for the route.

    Raises:
        OSError: There is no route.
    """
    with socket.socket(target[0], socket.SOCK_DGRAM) as s:
        s.connect(target[1])
        return str(s.getsockname()[0])


def all_addresses() -> Dict[str, List[str]]:
    """All addresses of each interface of this machine."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {name: [e.address.partition('%')[0] for e in entries if e.family in families]
            for name, entries in psutil.net_if_addrs().items()}


def is_up(name: str) -> bool:
    stats = psutil.net_if_stats().get(name)
    return stats is None or stats.isup


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition('%')[0]).is_loopback


def _listing(here: Mapping[str, List[str]]) -> str:
    return ', '.join(f'{name} {addresses[0]}' for name, addresses in here.items() if addresses) or 'none'


def is_free(port: int, address: Optional[str] = None) -> bool:
    """Whether a process can listen at a port of an address, or of all addresses."""
    with socket.socket(socket.AF_INET6 if address and ':' in address else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address or '', port))
        except OSError:
            return False
    return True


def exposed_ports(root: Path, first: int, count: int) -> List[int]:
    """HCCL's ports that the kernel may give to any outgoing connection, because they are not reserved."""
    kernel = root / 'proc/sys/net/ipv4'
    try:
        low, high = map(int, (kernel / 'ip_local_port_range').read_text().split())
        reserved = _parse_ports((kernel / 'ip_local_reserved_ports').read_text())
    except (OSError, ValueError):
        return []
    return [p for p in range(first, first + count) if low <= p <= high and p not in reserved]


def _parse_ports(text: str) -> List[int]:
    """[1, 5, 6, 7] of '1,5-7'."""
    ports: List[int] = []
    for part in filter(None, text.strip().split(',')):
        low, _, high = part.partition('-')
        ports += range(int(low), int(high or low) + 1)
    return ports
