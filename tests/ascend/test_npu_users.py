"""Which processes use which NPU, from the tables of npu-smi of several chips, and from open files."""
import os
import subprocess
from types import SimpleNamespace

import pytest

from seresnet_timm.ascend import npu_users
from seresnet_timm.ascend.errors import diagnose_text
from seresnet_timm.ascend.npu_users import User, find_users, parse, parse_chips, parse_health

LINE = f'+{27 * "-"}+{15 * "-"}+{52 * "-"}+\n'
HEAD = (LINE + '| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |\n'
        + LINE +
        '| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|\n'
        '| Chip  {second:<19} | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |\n'
        '+===========================+===============+====================================================+\n')
PROCESSES = (
    LINE + '| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n'
    + LINE)


def table(chips, processes='', second=''):
    """A table as npu-smi prints it.

    Args:
        chips: NPU, name, first cell of the second row.
        processes: Rows of the second table.
    """
    rows = ''.join(
        f'| {npu:<6}{name:<20}| OK            | 94.4        37                0    / 0             |\n'
        f'| {chip:<26}| 0000:C{index % 10}:00.0  | 0           0    / 0          3161 / 65536         |\n{LINE}'
        for index, (npu, name, chip) in enumerate(chips))
    return HEAD.format(second=second) + rows + PROCESSES + processes


# the first 910: its tables are narrower, and name free NPUs
FIRST_910 = """\
+------------------------------------------------------------------------------------+
| npu-smi 22.0.4                   Version: 22.0.4                                   |
+----------------------+---------------+---------------------------------------------+
| NPU   Name           | Health        | Power(W)   Temp(C)    Hugepages-Usage(page) |
| Chip                 | Bus-Id        | AICore(%)  Memory-Usage(MB)  HBM-Usage(MB)  |
+======================+===============+=============================================+
| 0     910A           | OK            | 72.5       41         0    / 0              |
| 0                    | 0000:C1:00.0  | 0          1137 / 15038      0    / 32768   |
+======================+===============+=============================================+
| 1     910A           | Alarm         | 68.1       38         15   / 15             |
| 0                    | 0000:81:00.0  | 97         2637 / 15038      30710/ 32768   |
+======================+===============+=============================================+
+----------------------+---------------+---------------------------------------------+
| NPU     Chip         | Process id    | Process name        | Process memory(MB)    |
+======================+===============+=============================================+
| No running processes found in NPU 0                                                |
+======================+===============+=============================================+
| 1       0            | 3046287       | python3.7           | 30645                 |
+======================+===============+=============================================+
"""
A2 = table([(n, '910B3', 0) for n in range(8)],
           '| No running processes found in NPU 0                                                             |\n'
           + LINE +
           '| 4       0                 | 52013         | python                   | 30201                   |\n'
           '| 4       0                 | 52999         | ascend my tool           | 62                      |\n'
           + LINE +
           '| 7       0                 | 60001         |                          |                         |\n')
A3 = table([(n // 2, 'Ascend910', f'{n % 2}     {n}') for n in range(16)],
           '| 2       1                 | 777           | VLLMWorker_TP5           | 57011                   |\n',
           'Phy-ID')
ASCEND_950 = """\
+-------------------------------------------------------------------------------------------------+
| npu-smi 25.7.0                          Version: 25.7.0                                         |
+---------------------------+---------------+-----------------------------------------------------+
| NPU ID | Name             | Health        | Power(W)    Temp(C)           Hugepages-Usage(page) |
|        |                  | Bus-Id        | NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)         |
+========+==================+===============+=====================================================+
| 0      | Ascend950PR      | OK            | 204.4       56                0     / 0             |
|        |                  | 0000:91:00.0  | 0           0    / 0          4439  / 86016         |
+========+==================+===============+=====================================================+
| 1      | Ascend950PR      | Alarm         | 201.0       51                0     / 0             |
|        |                  | 0000:92:00.0  | 93          0    / 0          74439 / 86016         |
+========+==================+===============+=====================================================+
+---------------------------+---------------+-----------------------------------------------------+
| NPU ID                    | Process id    | Process name             | Process memory(MB)       |
+===========================+===============+=====================================================+
| No running processes found in NPU 0                                                             |
+===========================+===============+=====================================================+
| 1                         | 4711          | python3                  | 70000                    |
+===========================+===============+=====================================================+
"""
# cards of several chips, of which a container sees two; their numbers are those of the host
CONTAINER = table([(5, '310P3', '0     2'), (5, '310P3', '1     3')],
                  '| 5       1                 | 9             | msame                    | 100                    |\n',
                  'Device')


@pytest.mark.parametrize('text, chips, users', (
    (FIRST_910, [(0, 0), (1, 0)], [User(1, 'NPU 1', 3046287, 'python3.7', 30645)]),
    (A2, [(n, 0) for n in range(8)], [
        User(4, 'NPU 4', 52013, 'python', 30201), User(4, 'NPU 4', 52999, 'ascend my tool', 62),
        User(7, 'NPU 7', 60001, '', None)]),
    (A3, [(n // 2, n % 2) for n in range(16)], [User(5, 'NPU 2 chip 1', 777, 'VLLMWorker_TP5', 57011)]),
    (ASCEND_950, [(0, 0), (1, 0)], [User(1, 'NPU 1', 4711, 'python3', 70000)]),
    (CONTAINER, [(5, 0), (5, 1)], [User(1, 'NPU 5 chip 1', 9, 'msame', 100)]),
    (table([(n, '910B3', 0) for n in (2, 6)], '| 6       0   | 9   | python  | 100  |\n'), [(2, 0), (6, 0)],
     [User(1, 'NPU 6', 9, 'python', 100)]),
    (table([(0, '910B3', 0)]), [(0, 0)], []),
    # a container that has a part of a die: both dies under one number; the table of processes has a fifth column
    (table([(0, 'Ascend910', '0     0'), (0, 'Ascend910', '1     0')],
           '| 0       1       | 171     | python  | 900                | 12                    |\n', 'Phy-ID'),
     [(0, 0), (0, 1)], [User(1, 'NPU 0 chip 1', 171, 'python', 900)]),
    (table([(7, '910B3', '0     NA')], '| 7       0   | 9   | python  | 100  |\n'), [(7, 0)],
     [User(0, 'NPU 7', 9, 'python', 100)]),
    ('dcmi module initialize failed. ret is -8005\n', [], []),
    ('', [], []),
    (FIRST_910[:FIRST_910.index('| NPU     Chip')], [(0, 0), (1, 0)], [])))
def test_tables(text, chips, users):
    assert parse_chips(text) == chips and parse(text) == users


def test_health():
    assert parse_health(FIRST_910) == parse_health(ASCEND_950) == ((1, 'NPU 1', 'Alarm'),)
    for text in (FIRST_910, ASCEND_950):  # as `npu-smi info | seresnet-timm diagnose -`
        first = diagnose_text(text).first
        assert first.fault == 'health' and 'NPU 1' in first.what and 'Alarm' in first.what
    assert diagnose_text(A2).first is None and diagnose_text(A3).first is None
    sick = table([(n // 2, 'Ascend910', f'{n % 2}     {n}') for n in range(4)], second='Phy-ID').split('| OK   ')
    assert parse_health('| Critical'.join(['| OK   '.join(sick[:4]), sick[4]])) == ((3, 'NPU 1 chip 1', 'Critical'),)
    assert parse_health(A2) == parse_health('') == ()


@pytest.fixture
def npu_smi(tmp_path, monkeypatch):
    """A program of that name that prints a text."""
    def install(text, code=0):
        (tmp_path / 'out').write_text(text)
        (tmp_path / 'npu-smi').write_text(f'#!/bin/sh\ncat "{tmp_path}/out"\nexit {code}\n')
        (tmp_path / 'npu-smi').chmod(0o755)
        return {'PATH': f'{tmp_path}:/usr/bin:/bin'}
    return install


def test_this_process_and_its_ranks_are_no_others(npu_smi):
    with subprocess.Popen(['sleep', '60']) as child:
        own = (os.getpid(), os.getppid(), child.pid)
        mine = ''.join(f'| {n}   0 | {pid} | python | 1 |\n' for n, pid in enumerate(own))
        usage = find_users(npu_smi(table([(n, '910B3', 0) for n in range(8)], mine + '| 3 0 | 1234567 | x | 5 |\n')))
        child.kill()
    assert usage == ([User(3, 'NPU 3', 1234567, 'x', 5)], '`npu-smi info`', 8, ())


def test_open_files_where_npu_smi_fails(npu_smi, tmp_path):
    """A process that has a node open, in a container that has two of them."""
    (tmp_path / 'dev').mkdir()
    for name in ('davinci4', 'davinci10', 'davinci_manager'):
        (tmp_path / 'dev' / name).touch()
    os.symlink('/proc', tmp_path / 'proc')
    with open(tmp_path / 'dev' / 'davinci10') as node, subprocess.Popen(
            ['sh', '-c', 'exec 3<&0; sleep 60 & echo $!'], stdin=node, stdout=subprocess.PIPE, text=True) as shell:
        pid = int(shell.stdout.readline())  # a child of a process that has ended: no relative
        shell.wait()
        try:
            for environ in (npu_smi('', 1), {'PATH': ''}):
                usage = find_users(environ, tmp_path)
                assert usage.users == [User(1, f'{tmp_path}/dev/davinci10', pid, 'sleep')] and usage.devices == 2
        finally:
            os.kill(pid, 9)


# --- what a run says of them ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('world_size, nnodes, first_910, pid, refused', (
    (2, 1, True, os.getppid(), True),  # HCCL of the first 910 cannot share
    (2, 1, False, os.getppid(), False),  # ports of its own on the NPU
    (16, 2, False, os.getppid(), True),  # which all nodes would need
    (2, 1, True, 4194999, False),  # outside this container: not known for certain
    (1, 1, True, os.getppid(), False)))
def test_said_before_a_run(monkeypatch, world_size, nnodes, first_910, pid, refused):
    from seresnet_timm.ascend.hccl import Machine
    from seresnet_timm.launch import hccl
    from seresnet_timm.launch.plan import Node
    users = [User(1, 'NPU 1', pid, 'python', 62), User(1, 'NPU 1', 4194998, 'other'), User(6, 'NPU 6', 6, 'far')]
    monkeypatch.setattr(npu_users, 'find_users', lambda _: npu_users.Usage(users, '`npu-smi info`', 8))
    monkeypatch.setattr(hccl.devices, 'device_count', lambda _: 8)
    monkeypatch.delenv('ASCEND_RT_VISIBLE_DEVICES', raising=False)
    settings = SimpleNamespace(device='npu:1' if world_size == 1 else 'npu', nproc=world_size // nnodes,
                               world_size=world_size, nnodes=nnodes)
    shared, notes, problems = hccl.check_users(settings, Node(), Machine(first_910, (8, 3)), {})
    said = (problems if refused else notes)[0]
    assert shared and len(notes) + len(problems) == 1, (notes, problems)
    assert f'NPU 1: python (pid {pid}, 62 MB), other (pid 4194998)' in said and '--devices 0,2,3,4,5,7.' in said
    assert 'far' not in said or settings.nproc > 6
    shown = {'ASCEND_RT_VISIBLE_DEVICES': '2,3'}
    monkeypatch.setenv('ASCEND_RT_VISIBLE_DEVICES', '2,3')
    monkeypatch.setattr(hccl.devices, 'device_count', lambda _: 2)
    assert hccl.check_users(SimpleNamespace(**{**vars(settings), 'device': 'npu', 'nproc': 2}), Node(),
                            Machine(first_910), shown) == (False, [], [])


def test_an_npu_that_is_not_healthy_is_named_before_a_run(monkeypatch):
    from seresnet_timm.ascend.hccl import Machine
    from seresnet_timm.launch import hccl
    from seresnet_timm.launch.plan import Node
    usage = npu_users.Usage([], '`npu-smi info`', 8, ((1, 'NPU 1', 'Critical'), (6, 'NPU 6', 'Alarm')))
    monkeypatch.setattr(npu_users, 'find_users', lambda _: usage)
    monkeypatch.setattr(hccl.devices, 'device_count', lambda _: 4)
    monkeypatch.setenv('ASCEND_RT_VISIBLE_DEVICES', '0,1,2,3')
    settings = SimpleNamespace(device='npu', nproc=4, world_size=4, nnodes=1)
    shared, notes, problems = hccl.check_users(settings, Node(), Machine(False, (8, 3)), {})
    assert not shared and not problems and len(notes) == 1 and notes[0].startswith('NPU 1 is not healthy')
    assert '`npu-smi info`: Critical' in notes[0] and '--devices' in notes[0]
