"""Interfaces and ports of this machine, against what the kernel says."""
import fcntl
import socket
import struct
from types import SimpleNamespace

import psutil
import pytest
from ports import free_ports

from seresnet_timm.ascend import hccl_network
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import network


def test_addresses_are_the_kernels():
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(s.fileno(), 0x8915, struct.pack('256s', name.encode()[:15]))  # SIOCGIFADDR
            except OSError:
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    first = {name: [a for a in here if ':' not in a][:1] for name, here in hccl_network.all_addresses().items()}
    assert {name: here[0] for name, here in first.items() if here} == found
    assert all(network.interface_of(address) == name for name, address in found.items())


@pytest.mark.parametrize('address', ('10.0.0.1', 'node-1', 'a.b.svc', 'job_0', '::1', 'fe80::1%eth0'))
def test_addresses_of_machines(address):
    network.check_host(address, '--master-addr')


@pytest.mark.parametrize('address', ('http://10.0.0.1', '10.0.0.1:29500', '[::1]', '10.0.0.300', 'a b', '-x', 'a/b'))
def test_addresses_that_are_none(address):
    with pytest.raises(UsageError, match='--master-addr is .*not a name or address'):
        network.check_host(address, '--master-addr')


def test_names_that_are_known():
    assert network.is_known('127.0.0.1') and network.is_known('::1') and network.is_known('localhost')
    assert not network.is_known('no-such-host.invalid') and not network.is_known('a' * 70 + '.invalid')


def test_interface_of_a_network():
    """An address that the loopback interface has not, in its network; none for others, nor for a name."""
    assert network.interface_of('127.0.0.2') == 'lo'
    assert network.interface_of('203.0.113.7') is None
    assert network.interface_of('localhost') is None


def test_the_nearest_network_wins(monkeypatch):
    """A bridge's wide network may contain the address of another interface."""
    def entry(address, netmask):
        return SimpleNamespace(family=socket.AF_INET, address=address, netmask=netmask)

    monkeypatch.setattr(psutil, 'net_if_addrs', lambda: {
        'docker0': [entry('10.0.0.1', '255.0.0.0')], 'eth0': [entry('10.1.2.3', '255.255.255.0')],
        'eth1': [entry('10.1.2.4', '255.255.255.0')], 'tun0': [entry('10.1.2.9', None)]})
    assert network.interface_of('10.1.2.3') == 'eth0' and network.interface_of('10.1.2.4') == 'eth1'
    assert network.interface_of('10.9.9.9') == 'docker0'


def test_interface_of_ipv6(monkeypatch):
    def entry(address, netmask, family=socket.AF_INET6):
        return SimpleNamespace(family=family, address=address, netmask=netmask)

    monkeypatch.setattr(psutil, 'net_if_addrs', lambda: {
        'eth0': [entry('10.0.0.1', '255.0.0.0', socket.AF_INET), entry('fd00::1', 'ffff:ffff:ffff:ffff::'),
                 entry('fe80::1%eth0', 'ffff:ffff:ffff:ffff::')],
        'eth1': [entry('fd00::2', 'ffff::')]})
    assert network.interface_of('fd00::1') == 'eth0' and network.interface_of('fd00::2') == 'eth1'
    assert network.interface_of('fd00:9::9') == 'eth1' and network.interface_of('fe80::1') == 'eth0'
    assert network.interface_of('2001:db8::1') is None and network.interface_of('10.0.0.1') == 'eth0'


def test_port_in_use():
    port = free_ports()
    with socket.socket() as s:
        s.bind(('', port))
        s.listen()
        with pytest.raises(UsageError, match=f'Port {port} cannot be used .* --master-port'):
            network.check_port(port)
    network.check_port(port)
