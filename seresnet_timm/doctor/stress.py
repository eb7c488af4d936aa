"""`seresnet-timm doctor --stress`: torch_npu's stress detection on every NPU, and what else it has against faults."""
from typing import List

from seresnet_timm.ascend import fault_tolerance
from seresnet_timm.ascend.fault import SICK
from seresnet_timm.doctor.check import Check
from seresnet_timm.doctor.machine import Machine
from seresnet_timm.doctor.probe_processes import run_probe

SECONDS = 1800  # for one NPU; the detection takes minutes


def check_fault_tolerance(machine: Machine) -> List[Check]:
    """What the installed torch_npu has, and what of it is on."""
    if machine.pair.torch_npu is None:
        return []
    checks = []
    for name, sentence in fault_tolerance.OFFERED.items():
        old = fault_tolerance.WATCHDOG[1] if name == fault_tolerance.WATCHDOG[0] else None
        known = name if fault_tolerance.knows(name) else old if old and fault_tolerance.knows(old) else None
        if known:
            value = machine.environ.get(known)
            state = 'not set' if value is None else f'set to {value}'
            checks.append(Check('faults', known, 'note', f'{state}; {sentence}'))
    checks += [Check('faults', f'value {i}', 'error', text, 'correct or unset it')
               for i, text in enumerate(fault_tolerance.wrong_values(machine.environ), 1)]
    return checks


def run_stress_detection(machine: Machine, device: str) -> List[Check]:
    """Stress detection on the chosen NPUs, one after the other: no other job may run there."""
    kind, _, index = device.partition(':')
    if kind != 'npu':
        return [Check('stress', 'all', 'note', f'not run: --stress is for NPUs, the device is {device}')]
    checks = []
    for number in [int(index)] if index else range(len(machine.npus)):
        probe = run_probe('stress', machine.environ, number, timeout=SECONDS)
        result, remark = probe.data.get('result', 1), probe.failure or probe.data.get('remark', '')
        name, why = f'npu:{number}', f': {remark}' if remark else ''
        if result == 0 and not probe.failure:
            checks.append(Check('stress', name, 'ok', 'no fault found'))
        elif result == 2:
            checks.append(Check('stress', name, 'error', 'a fault of the hardware was found', SICK))
        else:
            checks.append(Check('stress', name, 'warning', f'not tested{why}',
                                'it needs an A2 or newer, 10 GB of free memory, and no other process on the machine'))
    return checks
