"""The host's network for HCCL: interfaces and ports."""
import socket
from pathlib import Path
from typing import Dict, List

import psutil

HCCL_BASE_PORT = 60000
HCCL_PORTS = 16  # from the base port on, on the host


def addresses() -> Dict[str, str]:
    """The first IPv4 address of each interface of this machine."""
    found: Dict[str, str] = {}
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET:
                found.setdefault(name, entry.address)
    return found


def matches_interface(setting: str, name: str) -> bool:
    """Whether HCCL_SOCKET_IFNAME allows a name: beginnings of names, after `=` whole names, after `^` all others."""
    excluded, exact = setting.startswith('^'), '=' in setting[:2]
    wanted = [w for w in setting.lstrip('^=').split(',') if w]
    hit = name in wanted if exact else any(name.startswith(w) for w in wanted)
    return hit != excluded


def busy_ports(first: int) -> List[int]:
    """HCCL's ports that another process listens on."""
    return [port for port in range(first, first + HCCL_PORTS) if not _is_free(port)]


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(('', port))
        except OSError:
            return False
    return True


def exposed_ports(root: Path, first: int) -> List[int]:
    """HCCL's ports that the kernel may give to any outgoing connection, because they are not reserved."""
    kernel = root / 'proc/sys/net/ipv4'
    try:
        low, high = map(int, (kernel / 'ip_local_port_range').read_text().split())
        reserved = _parse_ports((kernel / 'ip_local_reserved_ports').read_text())
    except (OSError, ValueError):
        return []
    return [p for p in range(first, first + HCCL_PORTS) if low <= p <= high and p not in reserved]


def _parse_ports(text: str) -> List[int]:
    """[1, 5, 6, 7] of '1,5-7'."""
    ports: List[int] = []
    for part in filter(None, text.strip().split(',')):
        low, _, high = part.partition('-')
        ports += range(int(low), int(high or low) + 1)
    return ports
