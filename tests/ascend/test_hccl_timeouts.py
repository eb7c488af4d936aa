"""HCCL's time-outs: ranges by chip, their order, and the run's own limits."""
import pytest

from seresnet_timm.ascend.hccl import Machine
from seresnet_timm.ascend.hccl_timeouts import CONNECT, EVENT, EXEC, SYNC, check_timeouts

FIRST_910, A2 = Machine(True), Machine(False)
USUAL = {'--hang-timeout': 600, '--rdzv-timeout': 300, '--data-timeout': 600}


def test_defaults_fit():
    found = check_timeouts({}, A2, USUAL)
    assert not (found.problems or found.notes or found.environ)
    assert check_timeouts({CONNECT: '1800', EXEC: '1836', EVENT: '1868', SYNC: '1900'}, FIRST_910, USUAL).notes == []


@pytest.mark.parametrize('environ, machine, words', (
    ({CONNECT: '119'}, A2, "HCCL_CONNECT_TIMEOUT='119' is not a number of seconds from 120 to 7200"),
    ({CONNECT: '7201'}, A2, 'from 120 to 7200'),
    ({CONNECT: '30m'}, A2, 'from 120 to 7200'),
    ({CONNECT: ''}, A2, 'from 120 to 7200'),
    ({CONNECT: '1800.0'}, A2, 'from 120 to 7200'),
    ({EXEC: '0'}, FIRST_910, 'from 1 to 17340'),
    ({EXEC: '17341'}, FIRST_910, 'from 1 to 17340'),
    ({EXEC: '-1'}, A2, 'from 0 to 2147483647'),
    ({EXEC: '2147483648'}, A2, 'from 0 to 2147483647'),
    ({EVENT: 'never'}, A2, 'from 0 to 2147483647'),
    ({SYNC: '0'}, A2, 'from 1 to 2147483647'),
    ({EVENT: '600'}, A2, 'HCCL_EVENT_TIMEOUT=600 has to be above HCCL_EXEC_TIMEOUT=1836 (its default)'),
    ({EVENT: '1836'}, A2, 'has to be above'),
    ({EXEC: '3600', EVENT: '3600'}, A2, 'HCCL_EVENT_TIMEOUT=3600 has to be above HCCL_EXEC_TIMEOUT=3600: raise'),
    ({EXEC: '0', EVENT: '3600'}, A2, 'HCCL_EXEC_TIMEOUT=0 (never)'),
    ({EXEC: '2000', EVENT: '1972'}, FIRST_910, 'HCCL_EXEC_TIMEOUT=1972')))
def test_refused(environ, machine, words):
    problems = check_timeouts(environ, machine, USUAL).problems
    assert len(problems) == 1 and words in problems[0] and problems[0].endswith('.'), problems


def test_all_wrong_values_at_once():
    assert len(check_timeouts({CONNECT: 'x', EXEC: 'y', EVENT: 'z'}, A2, USUAL).problems) == 3


@pytest.mark.parametrize('environ, machine, waits, expected', (
    ({EXEC: '1868'}, A2, {}, {EVENT: '1900'}),
    ({EXEC: '3600'}, FIRST_910, {}, {EVENT: '3568'}),  # 3600 counts as 3536
    ({EXEC: '0'}, A2, {}, {EVENT: '0'}),
    ({EXEC: '2147483647'}, A2, {}, {EVENT: '2147483647'}),
    ({}, A2, {'--hang-timeout': 3600}, {EXEC: '3672', EVENT: '3704'}),
    ({}, A2, {'--data-timeout': 7200}, {EXEC: '7276', EVENT: '7308'}),
    ({EVENT: '9999'}, A2, {'--data-timeout': 7200}, {EXEC: '7276'}),
    ({}, FIRST_910, {'--hang-timeout': 86400}, {EXEC: '17340', EVENT: '17372'}),
    ({}, A2, {'--rdzv-timeout': 3600}, {CONNECT: '3600'}),
    ({}, A2, {'--rdzv-timeout': 9000}, {CONNECT: '7200'}),
    ({CONNECT: '1800'}, A2, {'--rdzv-timeout': 3600}, {}),
    ({}, A2, {'--hang-timeout': 0, '--data-timeout': 0, '--rdzv-timeout': 1}, {})))
def test_adjusted(environ, machine, waits, expected):
    found = check_timeouts(environ, machine, {**USUAL, **waits})
    assert found.environ == expected and not found.problems, found
    assert all(any(f'{name}={value}: ' in note for note in found.notes) for name, value in expected.items())


@pytest.mark.parametrize('environ, machine, waits, note', (
    ({EXEC: '100'}, FIRST_910, {'--hang-timeout': 60, '--data-timeout': 0}, 'HCCL_EXEC_TIMEOUT=100 counts as 68'),
    ({EXEC: '30'}, FIRST_910, {'--hang-timeout': 60, '--data-timeout': 0}, 'HCCL_EXEC_TIMEOUT=30 counts as 68'),
    ({EXEC: '300'}, A2, {}, 'HCCL_EXEC_TIMEOUT=300 ends a run before --hang-timeout 600 does'),
    ({EXEC: '0'}, A2, {}, "torch_npu's watchdog ends a collective after 1800 s"),
    ({CONNECT: '120'}, A2, {}, 'HCCL_CONNECT_TIMEOUT=120 is less than --rdzv-timeout 300'),
    ({}, FIRST_910, {'--hang-timeout': 86400}, '--hang-timeout 86400 has no effect beyond 17340 s'),
    ({SYNC: '300'}, A2, {}, 'ACL_DEVICE_SYNC_TIMEOUT=300 ends a wait before HCCL_EVENT_TIMEOUT=1868')))
def test_said(environ, machine, waits, note):
    found = check_timeouts(environ, machine, {**USUAL, **waits})
    assert not found.problems and note in ' '.join(found.notes), found


def test_a_device_that_does_not_answer_ends_the_run_after_hccl():
    assert check_timeouts({}, A2, USUAL, takes_sync=True).environ == {SYNC: '1900'}
    assert check_timeouts({EXEC: '3600'}, A2, USUAL, takes_sync=True).environ == {EVENT: '3632', SYNC: '3664'}
    assert SYNC not in check_timeouts({EXEC: '0'}, A2, USUAL, takes_sync=True).environ
    assert not check_timeouts({SYNC: '4000'}, A2, USUAL, takes_sync=True).environ
