"""Addresses and ports of this machine."""
import ipaddress
import re
import socket
import time
from typing import MutableMapping, Optional

import psutil

from seresnet_timm.ascend.hccl_network import address_towards, all_addresses, is_loopback, is_up, resolve
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


def name_interface(environ: MutableMapping[str, str]) -> None:
    """Let gloo use the interface on the way to the machine of rank 0, unless the user has named one.

    By itself it takes the address of this machine's name, and where that stands for none, such as an IPv6 address
    beside a name that is not in /etc/hosts, a loopback address, which the other machines do not reach.

    Args:
        environ: torch's variables of a rank of a run on several machines.
    """
    if 'GLOO_SOCKET_IFNAME' in environ:
        return
    target = resolve(environ.get('MASTER_ADDR', ''))
    try:
        address = address_towards(target) if target else None
    except OSError:
        return
    interface = None
    if address is not None and not is_loopback(address):
        interface = interface_of(address.partition('%')[0])
    elif int(environ.get('RANK', 0)) < int(environ.get('LOCAL_WORLD_SIZE', 1)):  # this machine's own name
        outside = [name for name, addresses in all_addresses().items()
                   if is_up(name) and any(not is_loopback(a) for a in addresses)]
        interface = outside[0] if len(outside) == 1 else None
    if interface is not None:
        environ['GLOO_SOCKET_IFNAME'] = interface


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
            raise UsageError(f"{told} is '{address}', which is not a name or address of a machine: give it without "
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
