"""Checks of `seresnet-timm doctor` that concern every machine: a function takes the machine and returns findings."""
import importlib.metadata
import platform
import sys
from typing import List, Tuple

from seresnet_timm.ascend import wheels
from seresnet_timm.ascend.fault import HEALTH
from seresnet_timm.doctor.check import Check
from seresnet_timm.doctor.machine import Machine
from seresnet_timm.doctor.npu import import_remedy
from seresnet_timm.doctor.probe_processes import NOT_FINISHED, WAITED_FOR_FAILED_RANK, Probe, run_smoke_test
from seresnet_timm.errors import UsageError

PIP = f'{sys.executable} -m pip install'
LIBRARIES = {'cpu': 'gloo', 'cuda': 'NCCL', 'npu': 'HCCL'}


def check_torch(machine: Machine) -> List[Check]:
    """Python, and whether torch imports."""
    python = f'{platform.python_version()}, {platform.machine()}, {sys.executable}'
    checks = [Check('versions', 'python', 'ok', python)]
    pair = machine.pair
    if pair.torch is None:
        remedy = wheels.install_command(pair) if machine.has_ascend else f'{PIP} torch torchvision'
        return [*checks, Check('versions', 'torch', 'error', 'not installed', remedy)]
    build = f'{pair.torch}, CUDA {pair.cuda} build' if pair.cuda else f'{pair.torch}, CPU build'
    if machine.torch_works:
        return [*checks, Check('versions', 'torch', 'ok', build)]
    failure = machine.without_backends.failure or ''
    remedy = wheels.reinstall_torch_command(pair)
    if failure.startswith(NOT_FINISHED):  # nothing is wrong with its files
        remedy = 'run doctor again when the machine is less busy; install torch on a local disk, not on a network drive'
    return [*checks, Check('versions', 'torch', 'error', f'{build}, does not import: {failure}', remedy)]


def check_autoload(machine: Machine) -> List[Check]:
    """Whether `import torch` loads torch_npu, as it does in every training, and does not fail because of it."""
    names = sorted({e.name for e in importlib.metadata.entry_points(group='torch.backends')})
    backends = ', '.join(names)
    if machine.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD', '1') != '1':
        return [Check('versions', 'autoload', 'note', 'off by TORCH_DEVICE_BACKEND_AUTOLOAD')]
    if not names:
        return [Check('versions', 'autoload', 'note', 'on; no installed package is loaded by `import torch`')]
    if 'torch' in machine.imports.data:
        return [Check('versions', 'autoload', 'ok', f'on; `import torch` loads {backends}')]
    if not machine.torch_works:
        return []
    incompatible, failure = wheels.incompatibility(machine.pair), machine.imports.failure
    remedy = incompatible.remedy if incompatible else import_remedy(machine.pair, failure)
    return [Check('versions', 'autoload', 'error', f'on; `import torch` fails because of {backends}: {failure}',
                  f'{remedy}; or train without the NPU: export TORCH_DEVICE_BACKEND_AUTOLOAD=0')]


def check_packages(machine: Machine) -> List[Check]:
    """torchvision and timm: installed, and importable beside this torch."""
    checks = []
    for name in ('torchvision', 'timm'):
        try:
            checks.append(Check('versions', name, 'ok', importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            remedy = wheels.add_package_command(name, machine.pair)
            return [*checks, Check('versions', name, 'error', 'not installed', remedy)]
    probe = machine.imports if 'torch' in machine.imports.data else machine.without_backends
    if machine.torch_works and probe.failure:
        checks.append(Check(
            'versions', 'imports', 'error', f'torchvision and timm do not import: {probe.failure}',
            f'install the torchvision that belongs to this torch: '
            f'{wheels.add_package_command("torchvision", machine.pair)}'))
    return checks


def check_gpus(machine: Machine) -> List[Check]:
    if machine.gpus:
        return [Check('devices', 'cuda', 'ok', f'{len(machine.gpus)} x {machine.gpus[0]}')]
    return [Check('devices', 'cuda', 'note', f'none: {machine.why_no_gpu}')]


def choose_device(machine: Machine) -> Tuple[str, str]:
    """The device that a training would use and why, by the rules of seresnet_timm.device.select_device."""
    if machine.requested != 'auto':
        return machine.requested, 'asked for with --device'
    if machine.npus:
        return 'npu', f'found {machine.npus[0]["name"]}'
    if machine.gpus:
        return 'cuda', f'found {machine.gpus[0]}; no npu: {machine.why_no_npu}'
    return 'cpu', f'no npu: {machine.why_no_npu}; no cuda: {machine.why_no_gpu}'


def check_chosen_device(machine: Machine) -> List[Check]:
    """Whether the device that was asked for exists."""
    kind, _, index = machine.requested.partition(':')
    if kind == 'auto':
        return []
    count = {'cpu': 1, 'cuda': len(machine.gpus), 'npu': len(machine.npus)}[kind]
    if count > int(index or 0):
        return []
    why = {'cuda': machine.why_no_gpu, 'npu': machine.why_no_npu}.get(kind) or f'there are {count}'
    return [Check('devices', 'chosen', 'error', f'--device {machine.requested} cannot be used: {why}',
                  'follow the remedies shown here, or name another device')]


def check_decoder(machine: Machine) -> List[Check]:
    """The JPEG decoders."""
    probe = machine.jpeg
    if probe.failure:
        return [Check('data', 'jpeg decoder', 'error', f'no JPEG can be decoded: {probe.failure}',
                      f'{PIP} --force-reinstall pillow')]
    found = probe.data
    more = f'; simplejpeg {found["simplejpeg"]} is installed' if found['simplejpeg'] else ''
    if found['c']:
        more += f"; the package's C decoder is built (libjpeg-turbo {found['c']})"
    if found['libjpeg_turbo']:
        return [Check('data', 'jpeg decoder', 'ok', f'Pillow {found["pillow"]} with libjpeg-turbo{more}')]
    return [Check('data', 'jpeg decoder', 'warning', f'Pillow {found["pillow"]} without libjpeg-turbo: slow{more}',
                  f"{PIP} --force-reinstall pillow: PyPI's build has it")]


def check_scripts(machine: Machine) -> List[Check]:
    """Which train.py and validate.py a training uses."""
    from seresnet_timm.timm_scripts import find, known
    checks = []
    for name in known.NAMES:
        try:
            checks.append(Check('data', name, 'ok', find.find(name).describe()))
        except UsageError as e:
            checks.append(Check('data', name, 'error', str(e), 'do that, or choose other scripts with --scripts'))
        except importlib.metadata.PackageNotFoundError:
            pass  # timm is not installed, which check_packages reports
    return checks


def run_smoke_checks(machine: Machine, device: str, seconds: float, timeout: float) -> List[Check]:
    """Compute and communicate on every device of the chosen kind."""
    kind, _, index = device.partition(':')
    count = {'cpu': 2, 'cuda': len(machine.gpus), 'npu': len(machine.npus)}[kind]
    devices = [int(index)] if index and kind != 'cpu' else list(range(count))
    ranks = run_smoke_test(kind, devices, machine.environ, seconds, timeout)
    return [_smoke_check(kind, i, rank, len(devices)) for i, rank in zip(devices, ranks)]


def _smoke_check(kind: str, index: int, rank: Probe, num_ranks: int) -> Check:
    name = f'process {index}' if kind == 'cpu' else f'{kind}:{index}'
    if rank.failure is None:
        return Check('smoke test', name, 'ok',
                     f'float32 products {rank.data["tflops"]:.3g} TFLOP/s; all-reduce of {num_ranks} over '
                     f'{LIBRARIES[kind]} {rank.data["all_reduce_mb_per_s"]:.0f} MB/s')
    phase = rank.data.get('phase', 'start')
    remedy = ('fix the rank that failed' if rank.failure == WAITED_FOR_FAILED_RANK else
              _smoke_remedy(kind, name, phase))
    return Check('smoke test', name, 'error', f'fails at {phase}: {rank.failure}', remedy)


def _smoke_remedy(kind: str, name: str, phase: str) -> str:
    if phase == 'all-reduce':
        return {
            'npu': 'see hccl above, and the links between the NPUs (hccn_tool -i 0 -link -g)',
            'cuda': 'run it with NCCL_DEBUG=INFO, which shows what NCCL lacks',
            'cpu': 'check the firewall and GLOO_SOCKET_IFNAME',
        }[kind]
    if phase == 'matmul':
        return f'look for other processes on {name}' + (f': {HEALTH}' if kind == 'npu' else
                                                        ', or name another device with --device')
    return 'follow the remedies shown above; more memory or a longer --timeout may help too'
