"""Writes docs/errors.md from the tables of seresnet_timm/ascend; `--check` only compares."""
import re
import sys
from pathlib import Path
from typing import List

from seresnet_timm.ascend import error_codes
from seresnet_timm.ascend.errors import fill
from seresnet_timm.ascend.fault import ROLES
from seresnet_timm.ascend.faults import FAULTS

PAGE = Path(__file__).with_name('errors.md')
ROLE_TEXT = dict(zip(ROLES, (
    'a fault of this process', 'a link between devices broke, or the process at the other end ended',
    'the fault is elsewhere', 'a wait for another rank: read the log of that rank', 'a message about another error',
    'a setting or version that is not right; it did not stop the run')))
HEAD = """# Errors of torch_npu, CANN, HCCL and the driver

[中文](zh-CN/errors.md)

`seresnet-timm diagnose RUN`, `FILE` or `-` (standard input) explains these errors. It reads all lines, whatever prefix
a launcher or logger has put before them, and names the fault that came first. `python docs/write_errors.py` writes this
page from its tables. A word in capitals, such as LIBRARY or DEVICE, stands for a value in the text of the error.

## How to read an error

* The first error is the cause. When one rank fails, all others end with time-outs (EI0002, EI0006, 107020, 507046,
  507048), up to half an hour later. Read the logs of all ranks.
* A code of CANN below a number says more than the number: EL0004 below 507013 means that the memory is full.
* A number means different things in ACL (`NPU function error`) and HCCL (`HCCL function error`, `OPS function error:
  Hccl...`).
* `ERRmmkkk` says who reports (mm: 00 torch_npu, 01 operators, 02 HCCL, 03 graph, 04 profiler) and what kind (kkk: 100 a
  call of ACL failed, 200 of HCCL, 300 of GE). ERR99999 says nothing about the NPU.
* The second letter of a code of CANN says who reports it: EE runtime, EI HCCL, EJ network, EZ operators, EH ACL, EL
  driver, E1 to E4 compilers, EK profiling. A code that ends with 9999 is an internal error: the lines below it name
  the cause.
* Operators run later than their calls, so an error can name a wrong line of Python. With ASCEND_LAUNCH_BLOCKING=1 it
  names the right one.
* plog, the log of CANN, is in `~/ascend/log/debug/plog/plog-PID_TIME.log`, and for communicators in
  `~/ascend/log/run/plog`. ASCEND_PROCESS_LOG_PATH replaces `~/ascend/log`, ASCEND_GLOBAL_LOG_LEVEL sets the level (0
  debug to 3 error). `diagnose` reads its lines with `[ERROR]`, and `status[LOST]` of HCCL's heartbeat. It shows an
  error that is not in these tables unchanged.
* Harmless messages: `Gradient overflow. Skipping step` now and then, `Non finite check and unscale`, operators that
  `will fall back to run on the CPU` (slow), `do not support double dtype`, `NPU warning, error code is N`.

Roles: """
TABLES = (
    (error_codes.ACL, 'Error numbers of ACL'), (error_codes.HCCL, 'Error numbers of HCCL'),
    (error_codes.CANN, 'Error codes of CANN'), (error_codes.NAMES, 'Names of hardware faults'),
    (error_codes.DRIVER, 'Return codes of the driver'))
# names of programs and packages, which are not capitalised
NAMES = ('gloo', 'npu-smi', 'pip', 'torch', 'torch_npu', 'torchrun', 'torchvision')


def page() -> str:
    """The page."""
    lines = [HEAD + '; '.join(f'**{role}**: {text}' for role, text in ROLE_TEXT.items()) + '.']
    for rows, title in TABLES:
        lines += ['', f'## {title}', '', '| code | meaning | fault |', '|---|---|---|']
        for names, meaning, fault, _ in rows:
            codes = names if rows is error_codes.NAMES else names.replace(' ', ', ')
            lines.append(f'| {codes} | {meaning} | [{fault}](#{fault}) |')
    lines += ['', '## Faults']
    for name in FAULTS:
        if name not in ('own', 'python', 'unknown', 'reported', 'inner', 'plog'):
            lines += ['', *_fault(name)]
    return '\n'.join(lines) + '\n'


def _fault(name: str) -> List[str]:
    fault = FAULTS[name]
    subject = {
        'subject': 'this rank', 'kind': 'NPU', 'an_operator': 'an operator', 'remote_or_another': 'another rank',
        'closer': 'another process', **({} if name == 'timeout_order' else {'limit': '1836'}), 'newer_device': '',
        'newer_host': '; from CANN 8.1 on, on A2 and newer, HCCL_HOST_SOCKET_PORT_RANGE=auto does it'}
    lines = [f'### {name}', '', f'{_text(fault.what, subject)} ({fault.role}).', '']
    lines += ['Likely causes:', ''] if fault.causes else []
    lines += [f'{i}. {fill(cause, subject)}' for i, cause in enumerate(fault.causes, 1)]
    lines += [''] if fault.causes else []
    return lines + [f'What to do: {_text(fault.remedy, subject)}.', '', f'Where to look: {_text(fault.log, subject)}.']


def _text(template: str, values: dict) -> str:
    optional = r'(\[[^\[\]]*\])'  # left out by `fill`, as its values are not known here
    parts = re.split(optional, template)
    parts[::2] = [re.sub(r'{(\w+)}', lambda m: values.get(m[1], m[1].upper()), part) for part in parts[::2]]
    text = fill(''.join(parts), values)
    return text if re.match(r'[\w-]*', text)[0] in NAMES else text[:1].upper() + text[1:]


if __name__ == '__main__':
    if sys.argv[1:] == ['--check']:
        sys.exit(0 if PAGE.read_text(encoding='utf-8') == page() else 'docs/errors.md is out of date: run python '
                 'docs/write_errors.py')
    PAGE.write_text(page(), encoding='utf-8')
