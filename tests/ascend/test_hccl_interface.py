"""The interface for HCCL, against this machine's real addresses and routes."""
import socket

import psutil
import pytest

from seresnet_timm.ascend.hccl_network import Nodes, all_addresses, choose_interface

OUTSIDE = {name: here[0] for name, here in all_addresses().items()
           if here and ':' not in here[0] and not here[0].startswith('127.')}


def choose(environ=None, *nodes):
    return choose_interface(environ or {}, Nodes(*nodes))


def test_one_node_leaves_it_to_hccl():
    interface, found = choose()
    assert interface.address is None and found.__dict__ == dict(problems=[], notes=[], environ={})
    assert choose({'HCCL_IF_IP': '127.0.0.1'})[0].address == '127.0.0.1'
    assert choose({'HCCL_SOCKET_IFNAME': '=lo'})[0].address == '127.0.0.1'
    assert choose({'HCCL_SOCKET_IFNAME': '=lo'})[1].problems == []


@pytest.mark.parametrize('environ, nodes, words', (
    ({'HCCL_IF_IP': '203.0.113.9'}, (), 'HCCL_IF_IP=203.0.113.9 is not an address of this machine: set it to one of '),
    ({'HCCL_IF_IP': 'eth0'}, (), "HCCL_IF_IP='eth0' is not an IP address"),
    ({'HCCL_IF_IP': ''}, (), "HCCL_IF_IP='' is not an IP address"),
    ({'HCCL_IF_IP': '10.0.0.256'}, (), 'is not an IP address'),
    ({'HCCL_IF_IP': '127.0.0.1'}, (2, 0, '203.0.113.1'), 'HCCL_IF_IP=127.0.0.1 is a loopback address, which the other '
                                                         '1 node cannot reach'),
    ({}, (2, 0, '203.0.113.1', '127.0.0.1'), '--local-addr 127.0.0.1 is a loopback address'),
    ({'HCCL_IF_IP': '127.0.0.1'}, (1, 0, None, '203.0.113.5'), 'HCCL_IF_IP=127.0.0.1 and --local-addr 203.0.113.5 '
                                                               'contradict each other'),
    ({'HCCL_SOCKET_IFNAME': '=nic7'}, (), "HCCL_SOCKET_IFNAME='=nic7' allows none of lo 127.0.0.1"),
    ({'HCCL_SOCKET_IFNAME': ''}, (), "HCCL_SOCKET_IFNAME='' allows none of"),
    ({'HCCL_SOCKET_IFNAME': 'lo'}, (4, 1, '203.0.113.1'), 'allows lo only, a loopback interface, which the other 3 '),
    ({}, (2, 1, '127.0.0.1'), '--master-addr 127.0.0.1 is a loopback address, which other nodes cannot reach'),
    ({}, (2, 0, '127.0.0.1'), '--master-addr 127.0.0.1 is a loopback address'),
    ({}, (2, 1, 'localhost'), '--master-addr localhost is 127.0.0.1 on this machine, a loopback address')))
def test_refused(environ, nodes, words, monkeypatch):
    if words.startswith('--master-addr localhost'):
        monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: [(socket.AF_INET, 2, 17, '', ('127.0.0.1', 1))])
    problems = choose(environ, *nodes)[1].problems
    assert len(problems) == 1 and words in problems[0] and problems[0].endswith('.'), problems


def test_no_route(monkeypatch):
    """The kernel's own answer to a broadcast address, where it has no other to refuse."""
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: [(socket.AF_INET, 2, 17, '', ('255.255.255.255', 1))])
    assert 'This machine has no route to --master-addr far ' in choose({}, 2, 1, 'far')[1].problems[0]


def test_own_name_of_node_0_may_be_a_loopback_address(monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: [(socket.AF_INET, 2, 17, '', ('127.0.1.1', 1))])
    interface, found = choose({}, 2, 0, 'node0')
    assert interface.address is None and not found.problems and 'node0 is 127.0.1.1 on this machine' in found.notes[0]


def test_a_name_that_is_not_known_yet_is_left_to_torchrun(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, 'Name or service not known')
    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    assert choose({}, 2, 1, 'service')[1].__dict__ == dict(problems=[], notes=[], environ={})


@pytest.mark.skipif(not OUTSIDE, reason='this machine has only a loopback interface')
def test_the_address_on_the_way_to_node_0():
    name, address = next(iter(OUTSIDE.items()))
    interface, found = choose({}, 2, 0, address)
    assert (interface.address, found.environ) == (address, {'HCCL_IF_IP': address}) and not found.problems
    assert found.notes == [f'HCCL_IF_IP={address}: the address of this machine on the way to {address}.']
    for environ in ({'HCCL_IF_IP': address}, {'HCCL_SOCKET_IFNAME': f'={name}'}):  # what the user set stays
        interface, found = choose(environ, 2, 0, address)
        assert interface.address == address and found.__dict__ == dict(problems=[], notes=[], environ={})
    _, found = choose({'HCCL_IF_IP': address, 'HCCL_SOCKET_IFNAME': '=lo'}, 2, 0, address)
    assert not found.problems and found.notes == [
        f'HCCL_IF_IP={address} wins over HCCL_SOCKET_IFNAME==lo, which does not allow its interface {name}.']


@pytest.mark.skipif(not OUTSIDE, reason='this machine has only a loopback interface')
def test_another_interface_than_the_way_to_node_0(monkeypatch):
    here = dict(psutil.net_if_addrs())
    here['ib0'] = [next(iter(here.values()))[0]._replace(address='10.9.8.7')]
    monkeypatch.setattr(psutil, 'net_if_addrs', lambda: here)
    address = next(iter(OUTSIDE.values()))
    found = choose({'HCCL_IF_IP': '10.9.8.7'}, 2, 0, address)[1]
    assert not found.problems and f'while this machine reaches {address} from {address}' in found.notes[0]


class Machine:
    """Interfaces of a server: bonded, VLAN, bridge of Docker, InfiniBand, one that is down, one without an address."""

    NAMES = {'lo': '127.0.0.1', 'bond0': '198.51.100.4', 'bond0.120': '198.51.100.132', 'docker0': '172.17.0.1',
             'ib0': '203.0.113.4', 'enp189s0f0': '198.51.100.200', 'enp189s0f1': None, 'eth6': 'fd00::4'}

    def __init__(self, monkeypatch, down=('enp189s0f0',)):
        entry, stats = psutil.net_if_addrs()['lo'][0], psutil.net_if_stats()['lo']
        here = {name: [entry._replace(address=a, family=socket.AF_INET6 if ':' in a else socket.AF_INET)] if a else []
                for name, a in self.NAMES.items()}
        monkeypatch.setattr(psutil, 'net_if_addrs', lambda: here)
        monkeypatch.setattr(psutil, 'net_if_stats', lambda: {n: stats._replace(isup=n not in down) for n in here})


@pytest.mark.parametrize('setting, address', (
    ('bond', None), ('=bond0', '198.51.100.4'), ('=bond0.120', '198.51.100.132'), ('bond0.', '198.51.100.132'),
    ('ib', '203.0.113.4'), ('=ib0', '203.0.113.4'), ('=ib0,bond0', None), ('ib,bond', None), ('eth', 'fd00::4'),
    ('^docker,lo,bond,enp,eth', '203.0.113.4'), ('^=lo,docker0,bond0,bond0.120,enp189s0f0,eth6', '203.0.113.4'),
    ('^docker', None), ('enp,ib', None)))
def test_names_of_interfaces(setting, address, monkeypatch):
    Machine(monkeypatch)
    interface, found = choose({'HCCL_SOCKET_IFNAME': setting}, 1)
    assert interface.address == address and not found.problems


@pytest.mark.parametrize('setting, words', (
    ('=enp189s0f0', 'allows only enp189s0f0, which is down'), ('enp', 'allows only enp189s0f0, which is down'),
    ('=enp189s0f1', 'allows only enp189s0f1, which has no address'), ('=bond', 'allows none of lo 127.0.0.1, bond0 '),
    ('=bond0.121', 'allows none of'), ('bond0:1', 'allows none of'), ('^lo,bond,docker,ib,eth', 'is down'),
    ('bond0 ib0', 'allows none of'), ('198.51.100.4', 'allows none of')))
def test_interfaces_that_do_not_work(setting, words, monkeypatch):
    Machine(monkeypatch)
    problems = choose({'HCCL_SOCKET_IFNAME': setting}, 1)[1].problems
    assert len(problems) == 1 and words in problems[0] and problems[0].endswith('.')
    if 'only' in words:
        assert 'bond0 198.51.100.4' in problems[0] and 'enp189s0f0 198' not in problems[0]


@pytest.mark.parametrize('ip', ('198.51.100.4', 'fd00::4', ' 203.0.113.4'))
def test_addresses_of_both_families(ip, monkeypatch):
    Machine(monkeypatch)
    interface, found = choose({'HCCL_IF_IP': ip}, 1)
    assert interface.address == ip.strip() and not found.problems
