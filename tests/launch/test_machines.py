"""A machine that is gone is noticed, and one whose processes are slow is not taken for one that is gone."""
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import WIDE, train_flags
from ports import free_ports
from test_launch import assert_none_left, start_cli, wait_for
from training import summary
from wire import Wire, address, address6, needs_network

from seresnet_timm.errors import RunError
from seresnet_timm.launch import machines, meeting, network
from seresnet_timm.launch.plan import Node

TOKEN, PORT = b'0123456789abcdef', 29517
CONNECTS = f'''
import socket, sys, time
connection = socket.create_connection(('{address(0)}', {PORT}))
connection.sendall({TOKEN + b'Node 2 (c)'!r})
print(flush=True)
time.sleep(1000)
'''


def test_the_limit_is_a_part_of_the_hang_timeout():
    assert [machines.seconds_without_answer(s) for s in (600, 3600, 30, 0)] == [60, 360, 10, 0]


@pytest.fixture
def wire():
    with Wire() as wire:
        yield wire


class Contacts:
    """Those of two machines, and what each learns."""

    def __init__(self, wire: Wire, seconds: float):
        self.said = ([], [])
        listener = wire.inside(0, lambda: socket.create_server(('', PORT)))
        self._first = machines._Contact(listener, TOKEN, True, 'Node 0 (a)', seconds, self.said[0].append)
        connection = wire.inside(1, lambda: socket.create_connection((address(0), PORT)))
        self._second = machines._Contact(connection, TOKEN, False, 'Node 1 (b)', seconds, self.said[1].append)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._second.close()
        self._first.close()


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@needs_network
def test_a_machine_that_is_gone(wire):
    """Both sides notice it; a third machine, here on the first one's network, is told."""
    told = wire.inside(0, lambda: socket.socket())
    with Contacts(wire, seconds=3) as contacts:
        told.connect((address(0), PORT))
        told.sendall(TOKEN + b'Node 2 (c)')
        stranger = wire.inside(1, lambda: socket.create_connection((address(0), PORT)))
        stranger.sendall(b'GET / HTTP/1.1\n')
        time.sleep(1)
        assert contacts.said == ([], [])
        wire.is_cut, start = True, time.monotonic()
        wait_until(lambda: all(contacts.said), 10)
        assert 2 <= time.monotonic() - start < 8
        assert contacts.said[0] == ['Node 1 (b) gives no answer any more (Connection timed out; the limit is 3 s): it '
                                    'is switched off, or cut off from the network']
        assert contacts.said[1][0].startswith('The machine of rank 0 (10.14.1.1) gives no answer any more (')
        assert told.recv(1000).decode() == contacts.said[0][0]
    told.close()
    stranger.close()


@needs_network
def test_slow_machines_and_processes_are_not_gone(wire):
    """A process that is stopped, a slow network that loses packets, one that is cut for less than the limit."""
    with Contacts(wire, seconds=4) as contacts:
        process = subprocess.Popen(
            [*wire.prefix(1), sys.executable, '-c', CONNECTS], stdout=subprocess.PIPE)
        try:
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            wire.loss, wire.delay = 0.05, 0.3
            time.sleep(5)
            wire.loss = wire.delay = 0
            wire.is_cut = True
            time.sleep(1.5)
            wire.is_cut = False
            time.sleep(3)
            assert contacts.said == ([], [])
        finally:
            process.kill()  # its connection ends: so its kernel says
            process.wait()
            process.stdout.close()
        time.sleep(0.5)
        assert contacts.said == ([], [])


@needs_network
def test_strangers_and_processes_that_end_are_nobodys_fault(wire):
    """Such as a scan of ports, which resets its connections."""
    with Contacts(wire, seconds=3) as contacts:
        for text in (b'', b'x', TOKEN[:5], TOKEN + b'Node 3'):
            other = wire.inside(1, lambda: socket.create_connection((address(0), PORT)))
            other.sendall(text)
            if TOKEN not in text:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')  # reset at its end
            other.close()
        time.sleep(0.5)
        assert contacts.said == ([], [])
    assert not [t for t in threading.enumerate() if t.name == 'machines']



MEETS = """
import os, torch, torch.distributed as dist
from seresnet_timm.launch import network
network.name_interface(os.environ)
print(os.environ['GLOO_SOCKET_IFNAME'])
dist.init_process_group('gloo')
x = torch.ones(1)
dist.all_reduce(x)
print(x.item())
"""


@needs_network
@pytest.mark.parametrize('host', (address6, pytest.param(address, marks=pytest.mark.slow)))
def test_gloo_takes_the_interface_on_the_way_to_the_first_machine(wire, host):
    """Where the name of a machine stands for no address that the other reaches, as here for 127.0.0.1."""
    processes = [subprocess.Popen(
        [*wire.prefix(rank), sys.executable, '-c', MEETS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'RANK': str(rank), 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '1',
             'MASTER_ADDR': host(0), 'MASTER_PORT': str(PORT)}) for rank in (0, 1)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert out == 'wire\n2.0\n', err


def test_an_interface_that_the_user_has_named_stays():
    environ = {'MASTER_ADDR': '203.0.113.1', 'GLOO_SOCKET_IFNAME': 'eth7'}
    network.name_interface(environ)
    assert environ['GLOO_SOCKET_IFNAME'] == 'eth7'
    for host in ('127.0.0.1', 'no-such-host.invalid', ''):  # one machine, or a name that comes later
        environ = {'MASTER_ADDR': host, 'RANK': '5', 'LOCAL_WORLD_SIZE': '2'}
        network.name_interface(environ)
        assert 'GLOO_SOCKET_IFNAME' not in environ


def start_node(wire, rank, data, output, *flags, host=address, own=True):
    with pytest.MonkeyPatch.context() as patch:
        prefix = wire.prefix(rank)
        popen = subprocess.Popen
        patch.setattr(subprocess, 'Popen', lambda command, **kwargs: popen([*prefix, *command], **kwargs))
        return start_cli(*train_flags(
            data, output, '--nnodes', 2, '--nproc', 1, '--node-rank', rank, '--master-addr', host(0),
            '--master-port', PORT, *(('--local-addr', host(rank)) if own else ()), '--rdzv-timeout', 60, '-b', 8,
            *WIDE, *flags))


@needs_network
@pytest.mark.slow
def test_a_training_over_ipv6_without_own_addresses(few_digits, tmp_path, wire):
    nodes = [start_node(wire, rank, few_digits, tmp_path, '--epochs', 1, host=address6, own=False) for rank in (0, 1)]
    outputs = [n.communicate(timeout=200)[1] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], outputs
    assert (tmp_path / 'run' / 'last.pth.tar').is_file()
    assert_none_left(str(tmp_path))


@needs_network
@pytest.mark.slow
def test_a_training_of_two_machines(few_digits, tmp_path, wire):
    """A slow network disturbs nothing. One that is cut ends the processes; when it is back, the run goes on."""
    wire.loss, wire.delay = 0.02, 0.02
    nodes = [start_node(wire, rank, few_digits, tmp_path, '--epochs', 8, '--max-restarts', 1, '--hang-timeout', 100)
             for rank in (0, 1)]
    folder = tmp_path / 'run'
    wait_for(folder / 'last.pth.tar', nodes[0], 240)
    wire.loss = wire.delay = 0.
    wire.is_cut, start = True, time.monotonic()
    time.sleep(20)
    wire.is_cut = False
    outputs = [n.communicate(timeout=300)[1] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], outputs
    for rank, name in ((0, 'Node 1 ('), (1, 'The machine of rank 0 (')):
        assert outputs[rank].count(' gives no answer any more (') == 1 and name in outputs[rank], outputs
        assert 'Restart 1 of 1' in outputs[rank] and 'Traceback' not in outputs[rank]
        stacks = folder / 'logs' / f'node{rank}' / 'stacks' / f'rank{0}.txt'
        assert 'train_one_epoch' in stacks.read_text()
    assert time.monotonic() - start < 200
    assert_none_left(str(tmp_path))


@needs_network
@pytest.mark.slow
@pytest.mark.parametrize('launcher', ('ours', 'torchrun'))
def test_a_machine_that_does_not_come_back(few_digits, tmp_path, wire, launcher):
    flags = ('--epochs', 500, '--hang-timeout', 100, '--checkpoint-hist', 1)
    if launcher == 'ours':
        nodes = [start_node(wire, rank, few_digits, tmp_path, *flags) for rank in (0, 1)]
    else:
        nodes = [subprocess.Popen(
            [*wire.prefix(rank), 'env', f'TEST_ARGV={tmp_path}', 'GLOO_SOCKET_IFNAME=wire', sys.executable, '-m',
             'torch.distributed.run', '--nnodes=2', '--nproc-per-node=2', f'--node-rank={rank}',
             f'--master-addr={address(0)}', f'--master-port={PORT}', '-m', 'seresnet_timm',
             *map(str, train_flags(few_digits, tmp_path, '--scripts', 'bundled', '-b', 4, *WIDE, *flags))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    wait_for(tmp_path / 'run' / 'last.pth.tar', nodes[0], 240)
    wire.is_cut, start = True, time.monotonic()
    outputs = [n.communicate(timeout=120)[1] for n in nodes]
    assert time.monotonic() - start < 60
    assert [n.returncode for n in nodes] == [1, 1], outputs
    for output in outputs:
        assert 'gives no answer any more (Connection timed out; the limit is 10 s)' in output, output
    assert '--resume' in outputs[0]
    assert_none_left(str(tmp_path))


def test_a_launcher_that_is_started_anew_joins_the_next_attempt():
    """Not that of its predecessor, which has started its ranks; the others learn of its end later than it comes."""
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing.api import PContext
    port, names, start_before = free_ports(), [], PContext.start
    first, second = (Node(rank=rank, master_addr='127.0.0.1', master_port=port, rdzv_timeout=3) for rank in (0, 1))
    settings = SimpleNamespace(nnodes=2)

    def name(node, starts, seconds=3.):
        with meeting.joined(settings, node, time.monotonic() + seconds) as found:
            if starts:
                PContext.start(SimpleNamespace())
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PContext, 'start', lambda _: None)
        server = TCPStore('127.0.0.1', port, is_master=True, wait_for_workers=False, multi_tenant=True)
        begun = name(first, starts=True)
        assert name(second, starts=False) == begun  # killed before it had started its ranks
        assert name(second, starts=True) == begun
        with pytest.raises(RunError, match='Node 0 at 127.0.0.1:.* trains with another launcher of node 1'):
            name(second, starts=False, seconds=1)
        thread = threading.Thread(target=lambda: names.append(name(second, starts=True)))
        thread.start()
        time.sleep(0.5)
        names.append(name(first, starts=True))
        thread.join()
    assert names[0] == names[1] != begun
    assert PContext.start is start_before
    del server


@pytest.mark.slow
@pytest.mark.parametrize('killed', (0, 1))
def test_a_launcher_is_killed_and_started_anew(few_digits, tmp_path, killed):
    """As by a user, or by a job that is queued again: the other machine's launcher restarts, and they go on."""
    port = free_ports()

    def start(rank):
        return start_cli(*train_flags(
            few_digits, tmp_path, '--nnodes', 2, '--nproc', 1, '--node-rank', rank, '--master-addr', '127.0.0.1',
            '--master-port', port, '--rdzv-timeout', 60, '--max-restarts', 1, '--resume', 'auto', '-b', 8,
            '--epochs', 8, *WIDE))
    nodes = [start(rank) for rank in (0, 1)]
    wait_for(tmp_path / 'run' / 'last.pth.tar', nodes[0])
    nodes[killed].kill()
    nodes[killed].communicate()
    nodes[killed] = start(killed)
    outputs = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert 'Restart 1 of 1' in outputs[1 - killed] and 'Restart' not in outputs[killed]
    assert [row['epoch'] for row in summary(tmp_path / 'run')] == list('01234567')
    assert_none_left(str(tmp_path))
