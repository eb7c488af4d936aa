"""HCCL's ports, with real sockets: found taken, chosen, kept from a second run; what the user set is checked."""
import os
import signal
import socket
from contextlib import ExitStack, contextmanager

import pytest
from ports import kept

from seresnet_timm.ascend import hccl_ports
from seresnet_timm.ascend.hccl import Machine, inspect
from seresnet_timm.ascend.hccl_ports import BASE, HOST, NPU, Wish

FIRST_910 = Machine(True, (8, 3))
A2 = Machine(False, (8, 3))
OLD_A2 = Machine(False, (8, 0))
UNKNOWN = Machine()
LOOPBACK = Wish(2, address='127.0.0.1')


@pytest.fixture(scope='module')
def three_blocks():
    with kept(23008, 96):
        yield


@pytest.fixture(autouse=True)
def own_candidates(three_blocks, monkeypatch):
    """Ports that no other test uses; the first stands for HCCL's default."""
    monkeypatch.setattr(hccl_ports, 'HCCL_BASE_PORT', 23008)
    monkeypatch.setattr(hccl_ports, 'CANDIDATES', (23008, 23040, 23072))


@contextmanager
def listening(port, address='127.0.0.1'):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, port))
        s.listen()
        yield


def decide(environ, machine, wish=LOOPBACK):
    with ExitStack() as keep:
        return hccl_ports.decide_ports(environ, machine, wish, keep)


def test_default_ports_that_are_free_stay():
    found = decide({}, A2)
    assert not found.environ and not found.problems
    assert found.notes == ['HCCL listens at its default ports 23008-23039, which are free on 127.0.0.1.']
    assert '23008-23023' in decide({}, OLD_A2).notes[0]


@pytest.mark.parametrize('machine, variable, value', (
    (FIRST_910, BASE, '23040'), (OLD_A2, BASE, '23040'), (UNKNOWN, BASE, '23040'), (A2, HOST, '23040-23071')))
def test_a_free_range_is_set_where_the_default_is_taken(machine, variable, value):
    with listening(23011):
        found = decide({}, machine)
    assert found.environ == {variable: value} and not found.problems
    assert '23011 is in use' in found.notes[0] and 'pid' in found.notes[0], found.notes


@pytest.mark.parametrize('port', (23008, 23023, 23024, 23039))
def test_before_cann_8_2_hccl_uses_sixteen_ports(port):
    with listening(port):
        assert bool(decide({}, OLD_A2).environ) == (port < 23024)
        assert decide({}, A2).environ


def test_a_listener_on_another_address_does_not_disturb():
    with listening(23008, '127.0.0.2'):
        assert not decide({}, A2).environ
        assert decide({}, A2, Wish(2)).environ  # all addresses: it does


def test_two_runs_get_different_ports():
    """Also before either of them listens, and from another process."""
    decided, ended = os.pipe(), os.pipe()
    other = os.fork()
    if not other:  # a process of its own, which ends without a word
        with ExitStack() as keep:
            os.write(decided[1], repr(hccl_ports.decide_ports({}, UNKNOWN, LOOPBACK, keep).environ).encode())
            os.read(ended[0], 1)
        os._exit(0)
    try:
        assert os.read(decided[0], 100) == b'{}'
        with ExitStack() as keep:
            first = hccl_ports.decide_ports({}, UNKNOWN, LOOPBACK, keep)
            assert first.environ == {BASE: '23040'} and 'another run keeps them' in first.notes[0]
            assert hccl_ports.decide_ports({}, A2, LOOPBACK, keep).environ == {HOST: '23072-23103'}
            none_left = decide({}, A2)
            assert not none_left.environ and 'No 32 ports in a row are free' in none_left.problems[0]
    finally:
        os.kill(other, signal.SIGKILL)  # its ports are free as soon as it is gone
        os.waitpid(other, 0)
    assert not decide({}, UNKNOWN).environ


def test_several_nodes_without_ranges_of_ports():
    """HCCL listens on node 0, and tells its port: node 0 chooses, the other nodes only say what is taken there."""
    wish = Wish(8, 2, 0, '127.0.0.1')
    with listening(23011):
        for machine in (FIRST_910, OLD_A2, UNKNOWN):
            found = decide({}, machine, wish)
            assert found.environ == {BASE: '23040'} and not found.problems
            assert '23011 is in use (' in found.notes[0] and 'HCCL_IF_BASE_PORT=23040 on all of them' in found.notes[1]
            other = decide({}, machine, wish._replace(rank=1))
            assert not other.environ and not other.problems
            assert len(other.notes) == 1 and '23011 is in use (' in other.notes[0] and 'node 0 only' in other.notes[0]
        for rank in (0, 1):
            assert decide({}, A2, wish._replace(rank=rank)).environ == {HOST: '23040-23071'}
        ranks = decide({}, FIRST_910, LOOPBACK._replace(can_choose=False))
        assert not ranks.environ and 'set HCCL_IF_BASE_PORT for every rank, for example 23040' in ranks.problems[0]
        assert decide({BASE: '23008'}, FIRST_910, wish).problems  # what the user set is checked
    with listening(23011), listening(23041), listening(23073):
        assert 'No 32 ports in a row are free' in decide({}, FIRST_910, wish).problems[0]
        assert not decide({}, FIRST_910, wish._replace(rank=1)).problems


def test_two_nodes_of_a_run_on_one_host():
    """Ports that are kept, and where nobody listens: no reason to refuse the second node."""
    with ExitStack() as keep:
        for environ in ({}, {BASE: '23040'}):
            wish = Wish(1, 2, 0, '127.0.0.1')
            assert not hccl_ports.decide_ports(environ, UNKNOWN, wish, keep).problems
            second = decide(environ, UNKNOWN, wish)
            assert not second.problems and not second.environ and 'another run on this host keeps' in second.notes[0]
        assert 'another run on this host keeps' in decide({BASE: '23040'}, UNKNOWN).problems[0]


def test_a_shared_npu_needs_ports_of_its_own():
    found = decide({}, A2, LOOPBACK._replace(shares_npu=True))
    assert found.environ == {HOST: '23008-23039', NPU: '23008-23039'} and not found.problems
    assert decide({NPU: '17000-17010'}, A2, LOOPBACK._replace(shares_npu=True)).environ == {HOST: '23008-23039'}


@pytest.mark.parametrize('environ, machine, words', (
    ({BASE: '0'}, A2, "HCCL_IF_BASE_PORT='0' is not a port from 1024 to 65520"),
    ({BASE: '65521'}, A2, 'not a port from 1024 to 65520'),
    ({BASE: '60k'}, FIRST_910, "'60k' is not a port"),
    ({BASE: ''}, FIRST_910, 'is not a port'),
    ({BASE: '٣٠٠٠٠'}, FIRST_910, 'is not a port'),
    ({HOST: '60010-60000'}, A2, '60010-60000 ends before it begins'),
    ({HOST: '60000-70000'}, A2, 'not within 1-65535'),
    ({HOST: '0-70'}, A2, 'not within 1-65535'),
    ({HOST: '60000,60000'}, A2, 'port 60000 is in it twice'),
    ({HOST: '60000-60010,60005'}, A2, 'port 60005 is in it twice'),
    ({HOST: 'Auto'}, A2, "'Auto' is neither a port nor a range"),
    ({HOST: '60000:60010'}, A2, 'is neither a port nor a range'),
    ({HOST: ''}, A2, 'is neither a port nor a range'),
    ({HOST: '23008'}, A2, 'has 1 port; 2 processes need one each'),
    ({NPU: '17000-'}, A2, 'HCCL_NPU_SOCKET_PORT_RANGE=17000- is not a list of ports'),
    ({NPU: 'x'}, FIRST_910, 'is not a list of ports')))
def test_what_the_user_set_is_checked(environ, machine, words):
    problems = decide(environ, machine).problems
    assert len(problems) == 1 and words in problems[0] and problems[0].endswith('.'), problems


@pytest.mark.parametrize('environ, machine, note', (
    ({BASE: '23072'}, A2, 'HCCL listens at 23072-23103, as you set HCCL_IF_BASE_PORT.'),
    ({HOST: 'auto', BASE: '23072'}, A2, 'HCCL_IF_BASE_PORT=23072 has no effect beside HCCL_HOST_SOCKET_PORT_RANGE.'),
    ({HOST: '23072-23080'}, FIRST_910, 'has no effect on this chip'),
    ({HOST: '23072-23080'}, OLD_A2, 'has no effect before CANN 8.1'),
    ({HOST: '23072-23080'}, UNKNOWN, 'has no effect where CANN is not found')))
def test_what_the_user_set_wins(environ, machine, note):
    found = decide(environ, machine)
    assert not found.environ and not found.problems and note in ' '.join(found.notes)


def test_ports_that_the_user_set_and_that_are_taken():
    with listening(23073):
        found = decide({BASE: '23072'}, FIRST_910)
        assert len(found.problems) == 1 and '23072-23103, but 23073 is in use (' in found.problems[0]
        assert not decide({HOST: '23072-23074'}, A2).problems  # two others are left
        assert 'of which 23073 is in use' in decide({HOST: '23072-23073'}, A2).problems[0]


@pytest.mark.parametrize('chip, is_first', (
    ('Ascend910A', True), ('Ascend910B', True), ('Ascend910ProB', True), ('Ascend910PremiumA', True),
    ('Ascend910', True), ('Ascend910B1', False), ('Ascend910B4-1', False), ('Ascend910_9391', False),
    ('Ascend950PR', False), ('Ascend310P3', False), (None, None)))
def test_chips(chip, is_first, tmp_path):
    (tmp_path / 'cann').mkdir()
    (tmp_path / 'cann' / 'version.cfg').write_text('runtime_running_version=[8.0.RC3.1:8.2.RC1]\n')
    machine = inspect(chip, {'ASCEND_HOME_PATH': str(tmp_path / 'cann')}, tmp_path)
    assert machine == Machine(is_first, (8, 2))
    assert inspect(chip, {}, tmp_path).cann is None
