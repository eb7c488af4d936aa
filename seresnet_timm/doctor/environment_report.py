"""What a bug report needs (`seresnet-timm env`): versions, machine, devices and variables, without secrets"""
import getpass
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Mapping

import psutil

from seresnet_timm.doctor.doctor import examine
from seresnet_timm.errors import printable
from seresnet_timm.runs.record import installed_versions

# further packages that results or errors depend on
PACKAGES = ('numpy', 'pillow', 'simplejpeg', 'safetensors', 'huggingface_hub', 'onnx', 'onnxruntime', 'scikit-learn',
            'datasets', 'wandb')
SECTIONS = ('cann', 'devices', 'data')  # of doctor's findings; those on networks hold addresses
# variables that change a run
VARIABLES = re.compile(
    '(ASCEND|HCCL|NPU|TORCH|PYTORCH|CUDA|NCCL|GLOO|OMP|MKL|KMP|HF|HUGGINGFACE|TIMM|SLURM|MASTER|MA|VC|TASK_QUEUE|'
    'CPU_AFFINITY|COMBINED|INF_NAN|PYTHON|XDG_CACHE|WANDB|MODELSCOPE)(_|$)|(LOCAL_|GROUP_)?RANK$|(LOCAL_)?WORLD_SIZE$|'
    '(HTTPS?|NO|ALL)_PROXY$|LD_(LIBRARY_PATH|PRELOAD)$', re.IGNORECASE)
SECRET = re.compile('TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE', re.IGNORECASE)
ADDRESS = re.compile('ADDR|_IP$|PROXY|HOST|NODELIST|ENDPOINT|URL|SUBMIT|MASTER|USER|LAUNCH_NODE', re.IGNORECASE)
HIDDEN = '(set, hidden)'


def collect() -> Dict[str, Any]:
    """Facts of this machine, by section."""
    report = examine(smoke_test=False)
    found = {section: {c.name: c.value for c in report.checks if c.section == section} for section in SECTIONS}
    versions = installed_versions()
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    faults = {f'{c.section}: {c.name}': f'{c.status}: {c.value}' for c in report.checks
              if c.status in ('warning', 'error') and c.section != 'hccl'}
    machine = {
        'system': without_node(platform.platform()), 'processor': processor(), 'cores': str(os.cpu_count()),
        'memory': f'{psutil.virtual_memory().total / 2 ** 30:.1f} GiB',
        'device': f'{report.device} ({report.device_reason})'}
    facts = {'versions': versions, 'machine': machine, **found, 'variables': variables(os.environ), 'faults': faults}
    return {section: {k: hide_user(v) for k, v in rows.items()} for section, rows in facts.items()}


def processor() -> str:
    """Name of the CPU as Linux has it."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        text = ''
    name = re.search(r'^(?:model name|Model|Hardware)\s*:\s*(.+)$', text, re.MULTILINE)
    return f'{name[1] if name else platform.processor() or "unknown"}, {platform.machine()}'


def without_node(text: str) -> str:
    """A text without the name of this machine."""
    node = platform.node()
    return text.replace(node, 'machine') if node else text


def variables(environ: Mapping[str, str]) -> Dict[str, str]:
    """The variables that change a run; secrets and addresses are named, their values are not shown."""
    found = {}
    for name in sorted(environ):
        if VARIABLES.match(name):
            value = environ[name]
            is_hidden = SECRET.search(name) or ADDRESS.search(name) or '://' in value or '@' in value
            found[name] = HIDDEN if is_hidden and value else value
    return found


def hide_user(value: Any) -> Any:
    """A value with `~` for the home folder, and without the names of the user and the machine in paths."""
    if not isinstance(value, str):
        return value
    home = os.path.expanduser('~')
    if home not in ('', '/', '~'):
        value = re.sub(re.escape(home) + r'(?![\w.-])', '~', value)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = ''
    if user and user != 'root':
        value = re.sub(rf'(?<=/){re.escape(user)}(?=/|$)', 'USER', value)
    return without_node(value) if len(platform.node()) > 3 else value


def as_text(facts: Dict[str, Any]) -> str:
    lines = []
    for section, rows in facts.items():
        width = max(map(len, rows), default=0)
        lines += [section, *(f'  {name:<{width}}  {printable("not installed" if value is None else value)}'
                             for name, value in rows.items()), *([] if rows else ['  none']), '']
    return '\n'.join(lines).rstrip('\n')
