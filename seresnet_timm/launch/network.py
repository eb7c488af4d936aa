"""Addresses and ports of this machine."""
import ipaddress
import re
import socket
import time
from typing import Optional

import psutil

from seresnet_timm.errors import UsageError

DEFAULT_PORT = 29500  # torchrun's


def interface_of(address: str) -> Optional[str]:
    """Network interface that has an address, else the one whose network contains it; None if there is none."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        return None
    family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
    matches = []
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == family and entry.netmask is not None:
                own = ipaddress.ip_address(entry.address.partition('%')[0])  # fe80::1%eth0
                bits = f'{int(ipaddress.ip_address(entry.netmask)):b}'.count('1')
                if wanted in ipaddress.ip_network(f'{own}/{bits}', strict=False):
                    matches.append((own == wanted, bits, name))
    return max(matches)[-1] if matches else None


def check_port(port: int) -> None:
    """Check that a process of this machine can listen at a port.

    Raises:
        UsageError: It is in use or reserved.
    """
    try:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(('', port))  # as torch does; the master's address may be a service's, as in Kubernetes
    except OSError as e:
        raise UsageError(f'Port {port} cannot be used ({e.strerror}), it is in use or reserved: name a free one with '
                         '--master-port, the same on every node.')


def check_host(address: str, told: str) -> None:
    """Check that an address may be that of a machine: a name or an IP address, without a scheme or a port.

    Args:
        address: The address.
        told: The flag or variable that names it.

    Raises:
        UsageError: It cannot.
    """
    try:
        ipaddress.ip_address(address.partition('%')[0])  # fe80::1%eth0
    except ValueError:
        if not re.fullmatch(r'\w[\w.-]*', address) or re.fullmatch(r'[\d.]+', address):
            raise UsageError(f"{told} is '{address}', which is no name or address of a machine: give it without "
                             'http://, brackets and port, such as 10.0.0.1 or node1.')


def is_known(address: str) -> bool:
    """Whether this machine knows an address of a machine's name."""
    try:
        return bool(socket.getaddrinfo(address, None))
    except (OSError, UnicodeError):
        return False


def answers(address: str, port: int, seconds: float) -> bool:
    """Whether somebody listens at an address; asked again and again for some seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=max(0.1, end - time.monotonic())).close()
            return True
        except (OSError, OverflowError):  # refused, unreachable, unknown name; no port
            if time.monotonic() + 0.2 > end:
                return False
            time.sleep(0.2)
