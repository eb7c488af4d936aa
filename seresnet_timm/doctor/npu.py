"""Checks of `seresnet-timm doctor` that concern NPUs: a function takes the machine and returns findings."""
import os
import re
import sys
from typing import List

from seresnet_timm.ascend import (
    cann_versions,
    hccl,
    hccl_network,
    hccl_ports,
    hccl_timeouts,
    installation,
    npu_users,
    visible,
    wheels,
)
from seresnet_timm.ascend.environment import CHECKED, DEAD, VARIABLES
from seresnet_timm.ascend.errors import diagnose_text
from seresnet_timm.ascend.fault import SET_ENV, SICK
from seresnet_timm.doctor.check import Check
from seresnet_timm.doctor.machine import NO_NPU_SEEN, Machine
from seresnet_timm.doctor.probe_processes import error_summary
from seresnet_timm.errors import counted

INSTALL_DRIVER = 'install the driver of the NPU; in a container mount /usr/local/Ascend/driver'


def check_torch_npu(machine: Machine) -> List[Check]:
    """Whether torch_npu is installed, fits this torch, and imports."""
    pair = machine.pair
    if pair.torch_npu is None:
        status = machine.npu_fault if machine.has_ascend else 'note'
        return [Check('versions', 'torch_npu', status, 'not installed', wheels.install_command(pair))]
    version = (pair.torch_npu or 'of unknown version') + (f', requires {pair.pin}' if pair.pin else '')
    incompatible = wheels.incompatibility(pair)
    if incompatible:
        return [Check('versions', 'torch_npu', machine.npu_fault, f'{version}: {incompatible.problem}',
                      incompatible.remedy)]
    if machine.npu.failure:
        return [Check('versions', 'torch_npu', machine.npu_fault,
                      f'{version}; does not import: {machine.npu.failure}', import_remedy(pair, machine.npu.failure))]
    checks = [Check('versions', 'torch_npu', 'ok', f'{version}; pairs with this torch')]
    if pair.cuda:
        checks.append(Check('versions', 'CUDA build', 'warning', 'torch is a CUDA build, which torch_npu refuses on a '
                            'machine with a GPU', wheels.install_command(pair)))
    return checks


def import_remedy(pair: wheels.Pair, failure: str) -> str:
    """What to do about an error of `import torch_npu`."""
    first = diagnose_text(failure).first
    fault = first.fault if first else ''
    if fault in ('torch_pair', 'symbol', 'cuda_build', 'cuda_library', 'torch_npu_missing'):
        return wheels.install_command(pair)
    if fault == 'cann_missing':
        return SET_ENV
    pip = f'{sys.executable} -m pip install'
    module = re.search(r"No module named '(\w+)", failure)
    if module and module.group(1) not in ('torch', 'torch_npu'):
        return f'{pip} {module.group(1)}'
    if first is not None and first.known and fault not in ('own', 'killed', 'aborted', 'illegal_instruction'):
        return first.remedy
    version = f'=={pair.torch_npu}' if pair.torch_npu else ''
    return f'{SET_ENV}; if that has been done: {pip} --force-reinstall --no-deps torch_npu{version}'


def check_cann(machine: Machine) -> List[Check]:
    """CANN, the driver and the firmware."""
    missing = 'warning' if machine.has_ascend and not machine.npus else 'note'
    checks, torch_npu = [], machine.pair.torch_npu
    home, how = installation.cann_home(machine.root, machine.environ)
    if home is None and how.endswith('does not exist'):
        checks.append(Check('cann', 'cann', 'warning', f'not found: {how}',
                            f'open a new shell, and {SET_ENV}'))
    elif home is None:
        belongs = f' ({cann_versions.describe(torch_npu)})' if torch_npu else ''
        checks.append(Check('cann', 'cann', missing, f'not found: {how}',
                            f'install the CANN of this NPU{belongs}, then source its set_env.sh'))
    else:
        version = installation.cann_version(home) or 'of unknown version'
        checks.append(Check('cann', 'cann', 'ok', f'{version} in {home} ({how})'))
        if not any(machine.environ.get(name) for name in ('ASCEND_HOME_PATH', 'ASCEND_TOOLKIT_HOME')):
            script = installation.set_env_script(home)
            checks.append(Check('cann', 'set_env.sh', missing, 'not sourced in this shell',
                                f'source {script}' if script else SET_ENV))
        other = installation.other_cann(home, machine.environ)
        if other:
            checks.append(Check('cann', 'two versions', 'warning', f'{home} is of {version}, but {other}',
                                f'open a new shell, and {SET_ENV}'))
        if torch_npu:
            wrong = cann_versions.mismatch(torch_npu, version)
            status = 'warning' if wrong else 'note'
            checks.append(Check('cann', 'pairing', status, *(wrong or (cann_versions.describe(torch_npu),))))
    for part, fault in (('driver', missing), ('firmware', 'note')):
        version = installation.driver_version(machine.root, part)
        checks.append(Check('cann', part, 'ok' if version else fault, version or 'no version file', INSTALL_DRIVER))
    return checks


def check_nodes(machine: Machine) -> List[Check]:
    """The device nodes in /dev."""
    dev = machine.root / 'dev'
    if not machine.nodes:
        status = machine.npu_fault if machine.needs_npu and not machine.npus else 'note'
        return [Check('devices', 'nodes', status, f'no NPU (davinci*) in {dev}',
                      'run on an Ascend server; start a container with --device=/dev/davinci0 and so on')]
    value = f'{counted(len(machine.nodes), "NPU")} in {dev}'
    closed = [n for n in machine.nodes if not os.access(n, os.R_OK | os.W_OK)]
    if machine.missing_nodes:
        names = [f'/dev/{n.name}' for n in machine.missing_nodes]
        return [Check('devices', 'nodes', machine.npu_fault, f'{value}, but no {", ".join(names)}',
                      f'start the container with {" ".join(f"--device={n}" for n in names)}')]
    if closed:
        return [Check('devices', 'nodes', machine.npu_fault, f'{value}, {len(closed)} closed to this user',
                      'sudo usermod -aG HwHiAiUser $USER (the group of the nodes), then log in again')]
    return [Check('devices', 'nodes', 'ok', value)]


def check_npu_smi(machine: Machine) -> List[Check]:
    """What the driver's own tool reports."""
    table = npu_users.run_npu_smi(machine.environ)
    if table is None:
        return [Check('devices', 'npu-smi', 'note', 'not on PATH; it comes with the driver')] if machine.nodes else []
    output = table.output
    if not table.works:
        return [Check('devices', 'npu-smi', machine.npu_fault, f'`npu-smi info` fails: {error_summary(output)}',
                      'check that the driver is loaded (lsmod | grep drv_) and that this user may use it')]
    unhealthy = npu_users.parse_health(output)
    if unhealthy:
        return [Check('devices', 'npu-smi', 'warning',
                      ', '.join(f'{name} reports {health}' for _, name, health in unhealthy),
                      SICK)]
    version = re.search(r'npu-smi\s+(\d\S*)', output)
    return [Check('devices', 'npu-smi', 'ok', version.group(1) if version else 'runs')]


def check_npus(machine: Machine) -> List[Check]:
    """The NPUs that torch_npu sees, and their free memory."""
    named = machine.environ.get(visible.NAME)
    npus = machine.npus
    problem = visible.find_problem(machine.environ, machine.root)
    wrong = [] if problem is None else [Check('devices', 'visible', machine.npu_fault, *problem)]
    if not npus:
        sees_none = machine.why_no_npu == NO_NPU_SEEN
        status = machine.npu_fault if sees_none and (machine.nodes or machine.needs_npu) else 'note'
        if wrong and sees_none:  # that is why
            return wrong
        remedy = 'look at `npu-smi info`, and at dmesg for errors of the driver'
        if named is not None and not wrong:
            remedy += f'; {visible.NAME} is "{named}"'
        return [*wrong, Check('devices', 'npu', status, f'none: {machine.why_no_npu}', remedy)]
    bf16 = 'bfloat16' if machine.npu.data['bf16'] else 'no bfloat16: use float16'
    chosen = '' if named is None else f', ASCEND_RT_VISIBLE_DEVICES={named}'
    checks = wrong + [Check('devices', 'npu', 'ok', f'{len(npus)} x {npus[0]["name"]}, '
                    f'{npus[0]["total_memory"] / 2 ** 30:.0f} GiB each, {bf16}{chosen}')]
    busy = [str(i) for i, d in enumerate(npus) if d['free_memory'] < d['total_memory'] / 2]
    if busy:
        checks.append(Check('devices', 'npu memory', 'warning', f'less than half is free on NPU {", ".join(busy)}',
                            'end the processes that use it (npu-smi info), or leave it out with '
                            'ASCEND_RT_VISIBLE_DEVICES'))
    return checks


def check_npu_users(machine: Machine) -> List[Check]:
    """Other processes that use the NPUs."""
    if not machine.nodes and not machine.npus:
        return []
    usage = npu_users.find_users(machine.environ, machine.root)
    told = [f'{user.where}: {user.describe()}' for user in usage.users]
    if not told:
        return [Check('devices', 'other processes', 'note', f'none on {counted(usage.devices, "NPU")}, by {usage.how}')]
    more = f' and {len(told) - 8} more' if len(told) > 8 else ''
    return [Check('devices', 'other processes', 'warning', f'{"; ".join(told[:8])}{more}, by {usage.how}',
                  'end them, or pick other NPUs for a training with --devices')]


def check_home(machine: Machine) -> List[Check]:
    """The home folder, below which CANN writes its logs and the operators that it compiles."""
    home = machine.environ.get('HOME')
    elsewhere = all(machine.environ.get(name) for name in ('ASCEND_PROCESS_LOG_PATH', 'ASCEND_CACHE_PATH'))
    if not (machine.nodes or machine.npus) or home is None or elsewhere or 'ASCEND_WORK_PATH' in machine.environ:
        return []
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return []
    return [Check('environment', 'HOME', 'warning', f"'{home}' cannot be written by this user: CANN keeps its logs and "
                  'compiled operators there',
                  'export HOME=DIR with a folder of this user, or ASCEND_WORK_PATH=DIR')]


def check_interface(machine: Machine) -> List[Check]:
    """The network interface that HCCL uses."""
    chosen, found = hccl_network.choose_interface(machine.environ, hccl_network.Nodes())
    if found.problems:
        what, _, remedy = found.problems[0].rstrip('.').rpartition(': ')
        return [Check('hccl', 'interface', 'warning', what, remedy)]
    names = [f'{name} {addresses[0]}' for name, addresses in hccl_network.all_addresses().items() if addresses]
    setting = machine.environ.get('HCCL_SOCKET_IFNAME')
    if machine.environ.get('HCCL_IF_IP') is None and setting is not None:
        names = [name for name in names if hccl_network.matches_interface(setting, name.split(' ')[0])]
    elif chosen.address is None:
        return [Check('hccl', 'interface', 'note', f'HCCL chooses from {", ".join(names) or "none"}; for several '
                      'machines give --local-addr')]
    else:
        return [Check('hccl', 'interface', 'ok', f'{chosen.address}, by HCCL_IF_IP')]
    return [Check('hccl', 'interface', 'ok', f'{", ".join(names)}, by HCCL_SOCKET_IFNAME={setting}')]


def check_ports(machine: Machine, device: str) -> List[Check]:
    """The ports on which HCCL listens."""
    base = machine.environ.get('HCCL_IF_BASE_PORT', str(hccl_network.HCCL_BASE_PORT))
    if not hccl_ports.is_base_port(base):
        return [Check('hccl', 'ports', 'warning', f"HCCL_IF_BASE_PORT='{base}' is not a port",
                      f'set it to a number from {hccl_ports.LOWEST} to {hccl_ports.HIGHEST}, or unset it')]
    all_ports = hccl_ports.ports_from(int(base), hccl.inspect(None, machine.environ, machine.root))
    count, ports = len(all_ports), f'{all_ports[0]}-{all_ports[-1]}'
    busy = hccl_ports.taken_ports(all_ports, None)
    if busy:
        checks = [Check('hccl', 'ports', 'warning', f'{", ".join(map(str, busy))} of {ports} in use',
                        f'end the processes that listen there (ss -ltnp), or set HCCL_IF_BASE_PORT to the first of '
                        f'{count} free ports; a training does so by itself on one node')]
    else:
        checks = [Check('hccl', 'ports', 'ok', f'{ports} are free')]
    if hccl_network.exposed_ports(machine.root, int(base), count):
        checks.append(Check('hccl', 'reserved ports', _only_a_note_without_npu(device, 'warning'),
                            f'the kernel may give {ports} to any outgoing connection',
                            f'sudo sysctl -w net.ipv4.ip_local_reserved_ports={ports}'))
    return checks


def check_values(machine: Machine) -> List[Check]:
    """Time-outs and port ranges of HCCL that a training would refuse."""
    this = hccl.inspect(None, machine.environ, machine.root)
    problems = hccl_timeouts.check_timeouts(machine.environ, this, {}).problems
    parts = [problem.rstrip('.').rpartition(': ') for problem in problems]
    checks = [Check('hccl', f'time-outs {i}', 'warning', what, remedy) for i, (what, _, remedy) in enumerate(parts, 1)]
    for name in (hccl_ports.HOST, hccl_ports.NPU):
        try:
            hccl_ports.parse_range(machine.environ.get(name, 'auto'))
        except ValueError as e:
            checks.append(Check('hccl', name, 'warning', f'{name}={machine.environ[name]} is not a list of ports: {e}',
                                'correct it, or unset it'))
    return checks


def check_environment(machine: Machine, device: str) -> List[Check]:
    """Variables of torch_npu, CANN and HCCL: their values, and those without effect."""
    checks = []
    for name, variable in {**VARIABLES, **CHECKED}.items():
        value = machine.environ.get(name)
        if value is None and variable.recommended is None:
            continue
        text = 'not set' if value is None else f'set to {value}'
        if variable.recommended is not None and value != variable.recommended:
            text += f', recommended {variable.recommended}'
        checks.append(Check('environment', name, 'note', f'{text}: {variable.reason} [{variable.source}]'))
    for name in (n for n in DEAD if n in machine.environ):
        checks.append(Check('environment', name, _only_a_note_without_npu(device, 'warning'),
                            f'set to {machine.environ[name]}, no effect: {DEAD[name]}', f'unset {name}'))
    both = {'PYTORCH_NPU_ALLOC_CONF', 'PYTORCH_ALLOC_CONF'} <= set(machine.environ)
    if both and wheels.release(machine.pair.torch or '') >= (2, 10):
        checks.append(Check('environment', 'allocator', _only_a_note_without_npu(device, 'error'),
                            'PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set',
                            'unset PYTORCH_NPU_ALLOC_CONF'))
    return checks


def _only_a_note_without_npu(device: str, status: str) -> str:
    return status if device.startswith('npu') else 'note'
