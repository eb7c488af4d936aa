"""HCCL's time-outs: each in its range, and in an order in which the first one that ends a wait names its cause

    --hang-timeout  <  HCCL_EXEC_TIMEOUT  <  HCCL_EVENT_TIMEOUT  <  ACL_DEVICE_SYNC_TIMEOUT

torch_npu raises the time-out of torch's default process group to HCCL_EXEC_TIMEOUT + 1800 s. It cannot do so for 0
(never), so that its watchdog ends the run first.
"""
import re
from typing import Mapping, Optional

from seresnet_timm.ascend.hccl import Findings, Machine

CONNECT, EXEC, EVENT = 'HCCL_CONNECT_TIMEOUT', 'HCCL_EXEC_TIMEOUT', 'HCCL_EVENT_TIMEOUT'
SYNC = 'ACL_DEVICE_SYNC_TIMEOUT'
DEFAULT_EXEC, DEFAULT_EVENT = 1836, 1868
STEP = 68  # of HCCL_EXEC_TIMEOUT on the first 910
MAX_EXEC_910 = 17340
MAX = 2 ** 31 - 1
MARGIN = 32  # between one time-out and the next, as between the two defaults


def check_timeouts(
        environ: Mapping[str, str],
        machine: Machine,
        waits: Mapping[str, float],
        takes_sync: bool = False,
) -> Findings:
    """Check HCCL's time-outs, and raise those that the user has not set where a run may wait longer.

    Args:
        environ: The environment as the user set it.
        machine: This machine.
        waits: Seconds that ranks may wait for one of them, by the flag that says so; 0 for no limit.
        takes_sync: torch_npu knows ACL_DEVICE_SYNC_TIMEOUT.
    """
    found = Findings()
    connect = _number(found, environ, CONNECT, 120, 7200)
    last = MAX_EXEC_910 if machine.is_first_910 else MAX
    exec_ = _number(found, environ, EXEC, 1 if machine.is_first_910 else 0, last)
    event = _number(found, environ, EVENT, 0, MAX)
    sync = _number(found, environ, SYNC, 1, MAX)
    if found.problems:
        return found
    _check_connect(found, connect, waits.get('--rdzv-timeout', 0))
    exec_ = _decide_exec(found, exec_, machine, {f: s for f, s in waits.items() if f != '--rdzv-timeout'})
    event = _decide_event(found, event, exec_, is_default=EXEC not in environ and EXEC not in found.environ)
    if sync is not None and (not event or sync <= event):
        what = f'{EVENT}={event}' if event else f'{EVENT}=0 (never)'
        found.notes.append(f'{SYNC}={sync} ends a wait before {what} does, without naming the rank that is waited for: '
                           'a larger value, or none, lets HCCL say it.')
    elif sync is None and takes_sync and event and event + MARGIN <= MAX:
        found.set(SYNC, str(event + MARGIN), 'a device that does not answer ends the run (507046) instead of waiting '
                                             f'for ever; above {EVENT}, so that HCCL names a rank first')
    return found


def _number(found: Findings, environ: Mapping[str, str], name: str, low: int, high: int) -> Optional[int]:
    text = environ.get(name)
    if text is None:
        return None
    if not re.fullmatch(r'[0-9]+', text.strip()) or not low <= int(text) <= high:
        found.problems.append(f"{name}='{text}' is not a number of seconds from {low} to {high}: correct or unset it.")
        return None
    return int(text)


def _check_connect(found: Findings, connect: Optional[int], rendezvous: float) -> None:
    """Nodes that wait for each other longer than HCCL does would fail after they have met."""
    if connect is None and rendezvous > 1800:
        found.set(CONNECT, str(min(7200, int(rendezvous))), f'as long as --rdzv-timeout {rendezvous:g}')
    elif connect is not None and connect < rendezvous:
        found.notes.append(f'{CONNECT}={connect} is less than --rdzv-timeout {rendezvous:g}: ranks that are not ready '
                           'at the same time fail with EI0006.')


def _decide_exec(
        found: Findings, exec_: Optional[int], machine: Machine, waits: Mapping[str, float]) -> int:
    """Seconds that a collective may take: longer than a run lets its ranks wait."""
    flag = max(waits, key=lambda name: waits[name], default=None)
    longest = waits[flag] if flag else 0
    if exec_ is None:
        if longest + MARGIN <= DEFAULT_EXEC:
            return DEFAULT_EXEC
        wanted = min(-(-int(longest + MARGIN) // STEP) * STEP, MAX_EXEC_910 if machine.is_first_910 else MAX)
        found.set(EXEC, str(wanted), f'ranks may wait {longest:g} s for one of them ({flag})')
        if wanted < longest:
            found.notes.append(f'{flag} {longest:g} has no effect beyond {wanted} s: HCCL of this chip ends then.')
        return wanted
    if machine.is_first_910 and exec_ % STEP:
        counts = max(STEP, exec_ // STEP * STEP)
        found.notes.append(f'{EXEC}={exec_} counts as {counts}: this chip takes steps of {STEP} s.')
        exec_ = counts
    if exec_ == 0:
        found.notes.append(f"{EXEC}=0 (never) is more than the time-out of torch's process group: torch_npu's watchdog "
                           'ends a collective after 1800 s without a trace in plog; a number, such as '
                           f'{DEFAULT_EXEC}, lets HCCL say what it waited for.')
    elif exec_ <= longest:
        found.notes.append(f'{EXEC}={exec_} ends a run before {flag} {longest:g} does: raise the first or lower the '
                           'second.')
    return exec_


def _decide_event(found: Findings, event: Optional[int], exec_: int, is_default: bool) -> int:
    """HCCL_EVENT_TIMEOUT is above HCCL_EXEC_TIMEOUT; 0 is never."""
    if event is None:
        if 0 < exec_ < DEFAULT_EVENT:
            return DEFAULT_EVENT
        event = min(exec_ + MARGIN, MAX) if exec_ else 0
        found.set(EVENT, str(event), f'it has to be above {EXEC}' + ('' if exec_ else ', which is 0 (never)'))
    elif event and (not exec_ or event <= exec_):
        default = ' (its default)' if is_default else ' (never)' if not exec_ else ''
        found.problems.append(f'{EVENT}={event} has to be above {EXEC}={exec_}{default}: raise the first, or lower the '
                              'second.')
    return event
