"""`seresnet-timm doctor`: what is installed, whether it fits together, and whether a training would run.

torch is not imported here. What may abort the process is tried in processes of its own (probe.py), so that an abort of
torch_npu is a finding.

`--json` prints one object:

    schema          1; a higher number when a field below changes its meaning or is removed
    ok              a training on `device` would run
    device          'npu', 'cuda' or 'cpu', with an index if one was named: the one named, else the best that works
    device_reason   why this one
    checks          list of objects, in the order of the text output:
        section     'versions', 'cann', 'devices', 'hccl', 'environment', 'faults', 'data', 'smoke test' or
                    'stress'
        name        what was looked at, unique in its section
        status      'ok'; 'note': nothing to do; 'warning': a training still runs; 'error': a training fails
        value       what was found, text
        remedy      what to do, text; null with 'ok' and 'note'
"""
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Mapping, Optional, Sequence

from seresnet_timm.doctor import general, npu, stress, system
from seresnet_timm.doctor.check import Check
from seresnet_timm.doctor.machine import inspect_machine
from seresnet_timm.errors import RunError, UsageError, counted

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Outcome of an examination.

    Attributes:
        device: Device that a training would use.
        device_reason: Why this one.
        checks: What was found.
    """
    device: str
    device_reason: str
    checks: List[Check]

    @property
    def ok(self) -> bool:
        return not _errors(self.checks)


def examine(
        device: str = 'auto',
        root: Path = Path('/'),
        environ: Optional[Mapping[str, str]] = None,
        seconds: float = 5,
        timeout: float = 180,
        with_stress: bool = False,
        smoke_test: bool = True,
) -> Report:
    """Make all checks, and the smoke test if no check failed.

    Args:
        device: 'auto', or the device to train on, as for --device.
        root: Folder that stands for / where files of CANN, the driver and the kernel are read.
        environ: Environment variables for the checks and the processes that they start; None for those of this process.
        seconds: How long the smoke test computes.
        timeout: Seconds after which a smoke test that does not end has failed.
        with_stress: Run torch_npu's stress detection too, for minutes.
        smoke_test: Make the smoke test.
    """
    machine = inspect_machine(device, root, dict(os.environ if environ is None else environ))
    chosen, reason = general.choose_device(machine)
    checks = [
        *general.check_torch(machine),
        *system.check_system(machine),
        *npu.check_torch_npu(machine),
        *general.check_autoload(machine),
        *general.check_packages(machine),
        *npu.check_cann(machine),
        *npu.check_nodes(machine),
        *npu.check_npu_smi(machine),
        *npu.check_npus(machine),
        *npu.check_npu_users(machine),
        *general.check_gpus(machine),
        *general.check_chosen_device(machine),
        *npu.check_interface(machine),
        *npu.check_ports(machine, chosen),
        *npu.check_values(machine),
        *npu.check_environment(machine, chosen),
        *npu.check_home(machine),
        *stress.check_fault_tolerance(machine),
        *general.check_decoder(machine),
        *general.check_scripts(machine),
    ]
    if not smoke_test:
        return Report(chosen, reason, checks)
    if not _errors(checks):
        checks += general.run_smoke_checks(machine, chosen, seconds, timeout)
        if with_stress:
            checks += stress.run_stress_detection(machine, chosen)
    else:
        checks.append(Check('smoke test', 'all', 'note', 'not run: fix the errors above first'))
    return Report(chosen, reason, checks)


def _errors(checks: Sequence[Check]) -> int:
    return sum(c.status == 'error' for c in checks)


def as_json(report: Report) -> str:
    return json.dumps({
        'schema': SCHEMA, 'ok': report.ok, 'device': report.device, 'device_reason': report.device_reason,
        'checks': [asdict(c) for c in report.checks],
    }, indent=2)


def as_text(report: Report) -> str:
    lines = []
    for section in dict.fromkeys(c.section for c in report.checks):
        checks = [c for c in report.checks if c.section == section]
        width = max(len(c.name) for c in checks)
        lines.append(section)
        for check in checks:
            mark = {'warning': 'warning: ', 'error': 'ERROR: '}.get(check.status, '')
            lines.append(f'  {check.name:<{width}}  {mark}{check.value}')
            if check.remedy:
                lines.append(f'  {"":<{width}}  -> {check.remedy}')
        lines.append('')
    return '\n'.join([*lines, f'device: {report.device} ({report.device_reason})'])


def run(device: str, seconds: float, timeout: float, in_json: bool, with_stress: bool = False) -> None:
    """`seresnet-timm doctor`: examine the machine and print what was found.

    Raises:
        UsageError: The device is unknown.
        RunError: A training would fail.
    """
    if not re.fullmatch(r'(auto|(npu|cuda|cpu)(:\d+)?)', device):
        raise UsageError(f'--device {device} is unknown: use auto, npu, cuda or cpu, or one with an index (npu:0).')
    report = examine(device, seconds=seconds, timeout=timeout, with_stress=with_stress)
    print(as_json(report) if in_json else as_text(report))
    errors = _errors(report.checks)
    if errors:
        sys.stdout.flush()
        raise RunError(f'a training on {report.device} would fail here: {counted(errors, "error")}, see what to do '
                       '(->) above.')
    if not in_json:
        print(f'A training on {report.device} runs here.')
