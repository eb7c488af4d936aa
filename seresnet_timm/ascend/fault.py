"""A kind of fault: its role, causes and remedy; what the sentences of faults have in common"""
from dataclasses import dataclass
from typing import Tuple

# What a fault is for the run, from the first to blame to the last: a fault of this process, a link between devices (or
# the process at its other end has died), a fault elsewhere, a wait for another rank, a message about another message,
# a setting or a version that is not right and did not stop the run.
CAUSE, LINK, ELSEWHERE, WAIT, MESSENGER, ADVICE = ROLES = ('cause', 'link', 'elsewhere', 'wait', 'messenger', 'advice')

SET_ENV = ('source the set_env.sh of CANN in this shell: `source /usr/local/Ascend/ascend-toolkit/set_env.sh` (CANN '
           '8.5 and newer: `source /usr/local/Ascend/cann/set_env.sh`)')
DOCTOR = '`seresnet-timm doctor` checks the installation'
DRIVER = 'install the driver that belongs to this CANN: see the version table of CANN'
PYTHON_PACKAGES = '`pip install numpy decorator sympy cffi protobuf attrs pyyaml scipy psutil absl-py`'
HEALTH = '`npu-smi info` shows health, memory and processes of each NPU'
HEALTHY = ('OK', '', '-', 'NA')  # what npu-smi says of an NPU in order
SICK = ('`npu-smi info -t health -i ID` shows the reason; leave the NPU out with --devices or '
        'ASCEND_RT_VISIBLE_DEVICES, and have it replaced if the fault stays')
PLOG = '~/ascend/log/debug/plog/plog-PID_*.log of this rank (ASCEND_PROCESS_LOG_PATH replaces ~/ascend/log)'
RUN_PLOG = '~/ascend/log/run/plog and debug/plog of all ranks (ASCEND_GLOBAL_EVENT_ENABLE=1 writes more)'
OTHERS = 'the logs of all other ranks, the earliest error first, then their plog in ~/ascend/log/debug/plog'
DMESG = '`dmesg`, and plog in ~/ascend/log/debug/plog'
THIS = 'the error text itself, and `seresnet-timm doctor`'
LOST = '{subject} lost contact with the other ranks: '
BLOCKING = 'run again with ASCEND_LAUNCH_BLOCKING=1, which names the operator that fails'


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        role: One of `ROLES`.
        what: What happened, a clause.
        causes: Likely causes, the likeliest first.
        remedy: What to do.
        log: Which log tells more.
    """
    role: str
    what: str
    causes: Tuple[str, ...]
    remedy: str
    log: str = PLOG
