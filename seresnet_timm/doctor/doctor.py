"""`seresnet-timm doctor`: what is installed, whether it fits together, and whether a training would run.

Nothing of torch is imported here. What may die is tried in processes of their own (probe.py), so that an abort of
torch_npu is a finding and not the end.

`--json` prints one object:

    schema          1; raised when a field below changes its meaning or goes
    ok              a training on `device` would run
    device          'npu', 'cuda' or 'cpu', with an index if one was named: the one named, else the best that works
    device_reason   why this one
    checks          list of objects, in the order of the text output:
        section     'versions', 'cann', 'devices', 'hccl', 'environment', 'data' or 'smoke test'
        name        what was looked at, unique in its section
        status      'ok'; 'note': nothing to do; 'warning': a training runs, but; 'error': a training fails
        value       what was found, text
        remedy      what to do, text; null with 'ok' and 'note'
"""
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from seresnet_timm.ascend import hccl_network, installation, wheels
from seresnet_timm.ascend.environment import DEAD, VARIABLES
from seresnet_timm.doctor.probe_processes import WAITED_FOR_FAILED_RANK, Probe, error_summary, run_probe, run_smoke_test
from seresnet_timm.errors import RunError, UsageError

SCHEMA = 1
SET_ENV = 'source the set_env.sh of CANN, e.g. `source /usr/local/Ascend/ascend-toolkit/set_env.sh`'
PIP = f'{sys.executable} -m pip install'
LIBRARIES = {'cpu': 'gloo', 'cuda': 'NCCL', 'npu': 'HCCL'}


@dataclass
class Check:
    """One finding, as in the JSON."""
    section: str
    name: str
    status: str
    value: str
    remedy: Optional[str] = None


class Doctor:
    """Examines a machine.

    Args:
        device: 'auto', or the device to train on, as for --device.
        root: Folder that stands for / where files of CANN, the driver and the kernel are read.
        environ: Environment variables, for the checks and for the processes that they start.
        seconds: How long the smoke test computes.
        timeout: Seconds after which a smoke test that does not end has failed.

    Attributes:
        checks: What was found.
        device: Device that a training would use, and `device_reason` why.
    """

    def __init__(
            self,
            device: str = 'auto',
            root: Path = Path('/'),
            environ: Optional[Mapping[str, str]] = None,
            seconds: float = 5,
            timeout: float = 180,
    ):
        self.requested = self.device = device
        self.device_reason = ''
        self.root, self.seconds, self.timeout = root, seconds, timeout
        self.environ = dict(os.environ if environ is None else environ)
        self.checks: List[Check] = []

        self.pair = wheels.installed_pair()
        self.nodes, self.missing_nodes = installation.device_nodes(root)
        self.wants_npu = device.startswith('npu')
        # something here is meant for an NPU
        self.has_ascend = self.wants_npu or self.pair.torch_npu is not None or bool(self.nodes)
        # a fault on the NPU's side ends a training there; without --device npu a GPU or the CPU is left
        self.npu_fault = 'error' if self.wants_npu else 'warning'
        self.imports = Probe({}, None)
        self.torch_works = False
        self.npus: List[Dict[str, Any]] = []
        self.has_bf16 = False
        self.gpus: List[str] = []
        self.no_npu: Optional[str] = None
        self.no_gpu: Optional[str] = None

    @property
    def ok(self) -> bool:
        return not any(c.status == 'error' for c in self.checks)

    def examine(self) -> None:
        """Make all checks; the smoke test where nothing stands against it."""
        self._check_torch()
        self._check_torch_npu()
        self._check_autoload()
        self._check_packages()
        self._check_cann()
        self._check_nodes()
        self._check_npu_smi()
        self._check_devices()
        self._choose_device()
        self._check_interface()
        self._check_ports()
        self._check_environment()
        self._check_decoder()
        self._check_scripts()
        self._check_computing()

    def _add(self, section: str, name: str, status: str, value: str, remedy: Optional[str] = None) -> None:
        self.checks.append(Check(section, name, status, value, remedy if status in ('warning', 'error') else None))

    def _probe(self, what: str, autoload: bool = True) -> Probe:
        """Run a check in a process of its own, which loads torch_npu with torch as a training would, or does not."""
        return run_probe(what, self.environ if autoload else {**self.environ, 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'})

    def _check_torch(self) -> None:
        self._add('versions', 'python', 'ok', f'{platform.python_version()}, {platform.machine()}, {sys.executable}')
        pair = self.pair
        if pair.torch is None:
            self._add('versions', 'torch', 'error', 'not installed', wheels.install_command(pair))
            return
        build = f'{pair.torch}, CUDA {pair.cuda} build' if pair.cuda else f'{pair.torch}, CPU build'
        self.imports = self._probe('packages')  # what a training does first
        probe = self.imports
        if 'torch' not in probe.data:
            probe = self._probe('torch', autoload=False)  # is it torch, or a backend that it loads?
        self.torch_works = 'torch' in probe.data
        self.gpus = probe.data.get('cuda_devices', [])
        if not self.torch_works:
            self._add('versions', 'torch', 'error', f'{build}, does not import: {probe.failure}',
                      f'{PIP} --force-reinstall torch=={wheels.dotted(wheels.release(pair.torch))}')
        else:
            self._add('versions', 'torch', 'ok', build)

    def _check_torch_npu(self) -> None:
        pair = self.pair
        unfit = wheels.incompatibility(pair)
        if pair.torch_npu is None:
            self.no_npu = 'torch_npu is not installed'
            self._add('versions', 'torch_npu', self.npu_fault if self.has_ascend else 'note', 'not installed',
                      wheels.install_command(pair))
            return
        asked = (pair.torch_npu or 'of unknown version') + (f', asks for {pair.pin}' if pair.pin else '')
        if unfit:
            self.no_npu = unfit.problem
            self._add('versions', 'torch_npu', self.npu_fault, f'{asked}: {unfit.problem}', unfit.remedy)
            return
        probe = self._probe('npu')
        if probe.failure:
            self.no_npu = f'torch_npu does not import: {probe.failure}'
            self._add('versions', 'torch_npu', self.npu_fault, f'{asked}; does not import: {probe.failure}',
                      self._import_remedy(probe.failure))
            return
        self.npus, self.has_bf16 = probe.data['devices'], probe.data['bf16']
        if not self.npus:
            self.no_npu = 'torch_npu sees no NPU'
        self._add('versions', 'torch_npu', 'ok', f'{asked}; pairs with this torch')
        if pair.cuda:
            self._add('versions', 'CUDA build', 'warning', 'torch is a CUDA build, which torch_npu refuses where there '
                      'is a GPU', wheels.install_command(pair))

    def _import_remedy(self, failure: str) -> str:
        """What to do about an error of `import torch_npu`."""
        if 'undefined symbol' in failure or 'Two accelerators' in failure:
            return wheels.install_command(self.pair)
        if 'libascend_hal.so' in failure:
            return 'install the driver of the NPU; in a container mount /usr/local/Ascend/driver'
        if 'cannot open shared object file' in failure:
            return SET_ENV
        module = re.search(r"No module named '(\w+)", failure)
        if module and module.group(1) not in ('torch', 'torch_npu'):
            return f'{PIP} {module.group(1)}'
        wanted = f'=={self.pair.torch_npu}' if self.pair.torch_npu else ''
        return f'{SET_ENV}; if that has been done: {PIP} --force-reinstall --no-deps torch_npu{wanted}'

    def _check_autoload(self) -> None:
        """Whether `import torch`, as every training says it, loads torch_npu, and lives."""
        names = sorted({e.name for e in importlib.metadata.entry_points(group='torch.backends')})
        if self.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD', '1') != '1':
            self._add('versions', 'autoload', 'note', 'off by TORCH_DEVICE_BACKEND_AUTOLOAD')
        elif not names:
            self._add('versions', 'autoload', 'note', 'on; nothing is installed that `import torch` would load')
        elif 'torch' in self.imports.data:
            self._add('versions', 'autoload', 'ok', f'on; `import torch` loads {", ".join(names)}')
        elif self.torch_works:
            unfit, failure = wheels.incompatibility(self.pair), self.imports.failure
            remedy = unfit.remedy if unfit else self._import_remedy(failure)
            dies = f'`import torch` dies of {", ".join(names)}'
            self._add('versions', 'autoload', 'error', f'on; {dies}: {failure}',
                      f'{remedy}; or do without the NPU: export TORCH_DEVICE_BACKEND_AUTOLOAD=0')

    def _check_packages(self) -> None:
        for name in ('torchvision', 'timm'):
            try:
                self._add('versions', name, 'ok', importlib.metadata.version(name))
            except importlib.metadata.PackageNotFoundError:
                self._add('versions', name, 'error', 'not installed', f'{PIP} {name}')
                return
        if not self.torch_works:
            return
        probe = self.imports if 'torch' in self.imports.data else self._probe('packages', autoload=False)
        if probe.failure:
            self._add('versions', 'imports', 'error', f'torchvision and timm do not import: {probe.failure}',
                      'install the torchvision that belongs to this torch, from the same index (0.24 to torch 2.9, '
                      '0.25 to 2.10 and so on)')

    def _check_cann(self) -> None:
        missing = 'warning' if self.has_ascend and not self.npus else 'note'
        home, how = installation.cann_home(self.root, self.environ)
        if home is None:
            self._add('cann', 'cann', missing, f'not found: {how}',
                      'install the CANN of this NPU, then source its set_env.sh')
        else:
            version = installation.cann_version(home) or 'of unknown version'
            self._add('cann', 'cann', 'ok', f'{version} in {home} ({how})')
            if not any(self.environ.get(name) for name in ('ASCEND_HOME_PATH', 'ASCEND_TOOLKIT_HOME')):
                script = installation.set_env_script(home)
                self._add('cann', 'set_env.sh', missing, 'not sourced in this shell',
                          f'source {script}' if script else SET_ENV)
            named = installation.cann_named_by_torch_npu()
            if named:
                self._add('cann', 'pairing', 'note', f"torch_npu's description names CANN {named} for its torch")
        for part, fault in (('driver', missing), ('firmware', 'note')):
            version = installation.driver_version(self.root, part)
            self._add('cann', part, 'ok' if version else fault, version or 'no version file',
                      'install the driver of the NPU; in a container mount /usr/local/Ascend/driver')

    def _check_nodes(self) -> None:
        value = f'{len(self.nodes)} NPU(s) in {self.root / "dev"}'
        locked = [n for n in self.nodes if not os.access(n, os.R_OK | os.W_OK)]
        if not self.nodes:
            fault = self.npu_fault if self.wants_npu and not self.npus else 'note'
            self._add('devices', 'nodes', fault, f'no NPU (davinci*) in {self.root / "dev"}',
                      'run on an Ascend server; start a container with --device=/dev/davinci0 and so on')
        elif self.missing_nodes:
            names = [f'/dev/{n.name}' for n in self.missing_nodes]
            self._add('devices', 'nodes', self.npu_fault, f'{value}, but no {", ".join(names)}',
                      f'start the container with {" ".join(f"--device={n}" for n in names)}')
        elif locked:
            self._add('devices', 'nodes', self.npu_fault, f'{value}, {len(locked)} closed to this user',
                      'sudo usermod -aG HwHiAiUser $USER (the group of the nodes), then log in again')
        else:
            self._add('devices', 'nodes', 'ok', value)

    def _check_npu_smi(self) -> None:
        tool = shutil.which('npu-smi', path=self.environ.get('PATH'))
        if tool is None:
            if self.nodes:
                self._add('devices', 'npu-smi', 'note', 'not on PATH; it comes with the driver')
            return
        try:
            result = subprocess.run([tool, 'info'], env=self.environ, capture_output=True, text=True, timeout=30)
            output, failed = result.stdout + result.stderr, result.returncode != 0
        except (OSError, subprocess.TimeoutExpired) as e:
            output, failed = str(e), True
        unwell = re.findall(r'\|\s*(Warning|Alarm|Critical)\s*\|', output)
        version = re.search(r'npu-smi\s+(\d\S*)', output)
        if failed:
            self._add('devices', 'npu-smi', self.npu_fault, f'`npu-smi info` fails: {error_summary(output)}',
                      'check that the driver is loaded (lsmod | grep drv_) and that this user may use it')
        elif unwell:
            self._add('devices', 'npu-smi', 'warning', f'{len(unwell)} NPU(s) report {", ".join(sorted(set(unwell)))}',
                      'see `npu-smi info -t health -i ID`; leave them out with ASCEND_RT_VISIBLE_DEVICES')
        else:
            self._add('devices', 'npu-smi', 'ok', version.group(1) if version else 'runs')

    def _check_devices(self) -> None:
        visible = self.environ.get('ASCEND_RT_VISIBLE_DEVICES')
        if self.npus:
            bf16 = 'bfloat16' if self.has_bf16 else 'no bfloat16: use float16'
            chosen = '' if visible is None else f', ASCEND_RT_VISIBLE_DEVICES={visible}'
            self._add('devices', 'npu', 'ok', f'{len(self.npus)} x {self.npus[0]["name"]}, '
                      f'{self.npus[0]["total_memory"] / 2 ** 30:.0f} GiB each, {bf16}{chosen}')
            busy = [str(i) for i, d in enumerate(self.npus) if d['free_memory'] < d['total_memory'] / 2]
            if busy:
                self._add('devices', 'npu memory', 'warning', f'less than half is free on NPU {", ".join(busy)}',
                          'end what runs there (npu-smi info), or leave them out with ASCEND_RT_VISIBLE_DEVICES')
        else:
            sees_none = self.no_npu == 'torch_npu sees no NPU'
            self._add('devices', 'npu', self.npu_fault if sees_none and (self.nodes or self.wants_npu) else 'note',
                      f'none: {self.no_npu}',
                      'look at `npu-smi info`, and at dmesg for errors of the driver' if visible is None else
                      f'ASCEND_RT_VISIBLE_DEVICES is "{visible}": name NPUs that exist, ascending, or unset it')
        if self.gpus:
            self._add('devices', 'cuda', 'ok', f'{len(self.gpus)} x {self.gpus[0]}')
        else:
            self.no_gpu = 'torch sees no GPU' if self.pair.cuda else 'this torch is built without CUDA'
            self._add('devices', 'cuda', 'note', f'none: {self.no_gpu}')

    def _choose_device(self) -> None:
        """As seresnet_timm.device.select_device does, on what the probes have seen."""
        kind, _, index = self.requested.partition(':')
        if kind != 'auto':
            self.device_reason = 'asked for with --device'
            count = {'cpu': 1, 'cuda': len(self.gpus), 'npu': len(self.npus)}[kind]
            if count <= int(index or 0):
                why = {'cuda': self.no_gpu, 'npu': self.no_npu}.get(kind) or f'there are {count}'
                self._add('devices', 'chosen', 'error', f'--device {self.requested} cannot be used: {why}',
                          'do what is said here, or name another device')
        elif self.npus:
            self.device, self.device_reason = 'npu', f'found {self.npus[0]["name"]}'
        elif self.gpus:
            self.device, self.device_reason = 'cuda', f'found {self.gpus[0]}; no npu: {self.no_npu}'
        else:
            self.device, self.device_reason = 'cpu', f'no npu: {self.no_npu}; no cuda: {self.no_gpu}'

    @property
    def _is_npu(self) -> bool:
        return self.device.startswith('npu')

    def _check_interface(self) -> None:
        here = hccl_network.addresses()
        listing = ', '.join(f'{name} {address}' for name, address in here.items()) or 'none'
        wanted, names = self.environ.get('HCCL_IF_IP'), self.environ.get('HCCL_SOCKET_IFNAME')
        fitting = [f'{n} {a}' for n, a in here.items() if names and hccl_network.matches_interface(names, n)]
        if wanted and wanted in here.values():
            self._add('hccl', 'interface', 'ok', f'{wanted}, by HCCL_IF_IP')
        elif wanted:
            self._add('hccl', 'interface', 'warning', f'HCCL_IF_IP={wanted} is no address of this machine: {listing}',
                      'set HCCL_IF_IP to one of them, or unset it')
        elif fitting:
            self._add('hccl', 'interface', 'ok', f'{", ".join(fitting)}, by HCCL_SOCKET_IFNAME={names}')
        elif names:
            self._add('hccl', 'interface', 'warning', f'HCCL_SOCKET_IFNAME={names} fits none of {listing}',
                      'set it to the beginning of a name, or to =NAME')
        else:
            self._add('hccl', 'interface', 'note', f'HCCL chooses from {listing}; between machines say --local-addr')

    def _check_ports(self) -> None:
        base = self.environ.get('HCCL_IF_BASE_PORT', str(hccl_network.HCCL_BASE_PORT))
        count = hccl_network.HCCL_PORTS
        if not base.isdigit() or not 1024 <= int(base) <= 65536 - count:
            self._add('hccl', 'ports', 'warning', f'HCCL_IF_BASE_PORT={base} is no port',
                      f'set it to a number from 1024 to {65536 - count}, or unset it')
            return
        ports = f'{base}-{int(base) + count - 1}'
        busy = hccl_network.busy_ports(int(base))
        if busy:
            self._add('hccl', 'ports', 'warning', f'{", ".join(map(str, busy))} of {ports} in use',
                      f'end what listens there (ss -ltnp), or set HCCL_IF_BASE_PORT to the first of {count} free ports')
        else:
            self._add('hccl', 'ports', 'ok', f'{ports} are free')
        if hccl_network.exposed_ports(self.root, int(base)):
            self._add('hccl', 'reserved ports', 'warning' if self._is_npu else 'note',
                      f'{ports} may be given to any outgoing connection',
                      f'sudo sysctl -w net.ipv4.ip_local_reserved_ports={ports}')

    def _check_environment(self) -> None:
        for name, variable in VARIABLES.items():
            value = self.environ.get(name)
            if value is None and variable.recommended is None:
                continue
            text = 'not set' if value is None else f'set to {value}'
            if variable.recommended is not None and value != variable.recommended:
                text += f', recommended {variable.recommended}'
            self._add('environment', name, 'note', f'{text}: {variable.reason} [{variable.source}]')
        for name in (n for n in DEAD if n in self.environ):
            self._add('environment', name, 'warning' if self._is_npu else 'note',
                      f'set to {self.environ[name]}, dead: {DEAD[name]}', f'unset {name}')
        both = {'PYTORCH_NPU_ALLOC_CONF', 'PYTORCH_ALLOC_CONF'} <= set(self.environ)
        if both and wheels.release(self.pair.torch or '') >= (2, 10):
            self._add('environment', 'allocator', 'error' if self._is_npu else 'note',
                      'PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set', 'unset PYTORCH_NPU_ALLOC_CONF')

    def _check_decoder(self) -> None:
        probe = self._probe('jpeg')
        if probe.failure:
            self._add('data', 'jpeg decoder', 'error', f'no JPEG can be decoded: {probe.failure}',
                      f'{PIP} --force-reinstall pillow')
            return
        found = probe.data
        more = f'; simplejpeg {found["simplejpeg"]} is installed' if found['simplejpeg'] else ''
        if found['c']:
            more += f"; the package's C decoder is built (libjpeg-turbo {found['c']})"
        if found['libjpeg_turbo']:
            self._add('data', 'jpeg decoder', 'ok', f'Pillow {found["pillow"]} with libjpeg-turbo{more}')
        else:
            self._add('data', 'jpeg decoder', 'warning', f'Pillow {found["pillow"]} without libjpeg-turbo: slow{more}',
                      f"{PIP} --force-reinstall pillow: PyPI's has it")

    def _check_scripts(self) -> None:
        from seresnet_timm.timm_scripts import find, known
        for name in known.NAMES:
            try:
                self._add('data', name, 'ok', find.find(name).describe())
            except UsageError as e:
                self._add('data', name, 'error', str(e), 'do that, or choose others with --scripts')
            except importlib.metadata.PackageNotFoundError:
                pass  # no timm, as is said above

    def _check_computing(self) -> None:
        if not self.ok:
            self._add('smoke test', 'all', 'note', 'not run: the errors above come first')
            return
        kind, _, index = self.device.partition(':')
        count = {'cpu': 2, 'cuda': len(self.gpus), 'npu': len(self.npus)}[kind]
        devices = [int(index)] if index and kind != 'cpu' else list(range(count))
        ranks = run_smoke_test(kind, devices, self.environ, self.seconds, self.timeout)
        for index, rank in zip(devices, ranks):
            name = f'process {index}' if kind == 'cpu' else f'{kind}:{index}'
            if rank.failure is None:
                self._add('smoke test', name, 'ok',
                          f'float32 products {rank.data["tflops"]:.3g} TFLOP/s; all-reduce of {len(devices)} over '
                          f'{LIBRARIES[kind]} {rank.data["all_reduce_mb_per_s"]:.0f} MB/s')
            else:
                phase = rank.data.get('phase', 'start')
                self._add('smoke test', name, 'error', f'fails at {phase}: {rank.failure}',
                          'mend the one that failed' if rank.failure == WAITED_FOR_FAILED_RANK else
                          self._smoke_remedy(kind, name, phase))

    def _smoke_remedy(self, kind: str, name: str, phase: str) -> str:
        if phase == 'all-reduce':
            return {
                'npu': 'see hccl above, and the links between the NPUs (hccn_tool -i 0 -link -g)',
                'cuda': 'run it with NCCL_DEBUG=INFO to see what NCCL lacks',
                'cpu': 'check the firewall and GLOO_SOCKET_IFNAME',
            }[kind]
        if phase == 'matmul':
            return f'see what else runs on {name}, and its health (npu-smi info)' if kind == 'npu' else \
                f'see what else runs on {name}, or name another with --device'
        return 'do what is said above; more memory or a longer --timeout may help too'


def as_json(doctor: Doctor) -> str:
    return json.dumps({
        'schema': SCHEMA, 'ok': doctor.ok, 'device': doctor.device, 'device_reason': doctor.device_reason,
        'checks': [asdict(c) for c in doctor.checks],
    }, indent=2)


def as_text(doctor: Doctor) -> str:
    lines = []
    for section in dict.fromkeys(c.section for c in doctor.checks):
        checks = [c for c in doctor.checks if c.section == section]
        width = max(len(c.name) for c in checks)
        lines.append(section)
        for check in checks:
            mark = {'warning': 'warning: ', 'error': 'ERROR: '}.get(check.status, '')
            lines.append(f'  {check.name:<{width}}  {mark}{check.value}')
            if check.remedy:
                lines.append(f'  {"":<{width}}  -> {check.remedy}')
        lines.append('')
    return '\n'.join([*lines, f'device: {doctor.device} ({doctor.device_reason})'])


def run(device: str, seconds: float, timeout: float, in_json: bool) -> None:
    """`seresnet-timm doctor`: examine the machine and print what was found.

    Raises:
        UsageError: The device is unknown.
        RunError: A training would fail.
    """
    if not re.fullmatch(r'(auto|(npu|cuda|cpu)(:\d+)?)', device):
        raise UsageError(f'--device {device} is unknown: use auto, npu, cuda or cpu, or one with an index (npu:0).')
    doctor = Doctor(device, seconds=seconds, timeout=timeout)
    doctor.examine()
    print(as_json(doctor) if in_json else as_text(doctor))
    errors = sum(c.status == 'error' for c in doctor.checks)
    if errors:
        sys.stdout.flush()
        raise RunError(f'a training on {doctor.device} would fail here: {errors} error(s), see what to do (->) above.')
    if not in_json:
        print(f'A training on {doctor.device} runs here.')
