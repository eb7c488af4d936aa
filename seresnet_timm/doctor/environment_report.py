"""What a bug report needs (`seresnet-timm env`): versions, machine, devices and variables, without secrets"""
import os
import platform
import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import psutil

from seresnet_timm.doctor.doctor import examine
from seresnet_timm.doctor.secrets import Cleaner
from seresnet_timm.errors import is_secret, printable
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
ADDRESS = re.compile('ADDR|_IP$|PROXY|HOST|NODELIST|ENDPOINT|URL|SUBMIT|MASTER|USER|LAUNCH_NODE', re.IGNORECASE)
HIDDEN = '(set, hidden)'


def collect() -> Dict[str, Any]:
    """Facts of this machine, by section."""
    report = examine(smoke_test=False)
    found = {section: {c.name: c.value for c in report.checks if c.section == section} for section in SECTIONS}
    faults = {f'{c.section}: {c.name}': f'{c.status}: {c.value}' for c in report.checks
              if c.status in ('warning', 'error') and c.section != 'hccl'}
    machine = {
        'system': platform.platform(), 'processor': processor(), 'cores': str(os.cpu_count()),
        'memory': f'{psutil.virtual_memory().total / 2 ** 30:.1f} GiB',
        'device': f'{report.device} ({report.device_reason})'}
    facts = {'versions': versions(), 'machine': machine, **found, 'variables': variables(os.environ), 'faults': faults}
    cleaner = Cleaner()
    return {section: {k: hide_names(section, v, cleaner) for k, v in rows.items()} for section, rows in facts.items()}


def versions() -> Dict[str, Optional[str]]:
    """Versions of this package, of Python and of what results or errors depend on; None for what is not installed."""
    return installed_versions(PACKAGES)


def processor() -> str:
    """Name of the CPU as Linux has it."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        text = ''
    name = re.search(r'^(?:model name|Model|Hardware)\s*:\s*(.+)$', text, re.MULTILINE)
    return f'{name[1] if name else platform.processor() or "unknown"}, {platform.machine()}'


def variables(environ: Mapping[str, str]) -> Dict[str, str]:
    """The variables that change a run; secrets and addresses are named, their values are not shown."""
    found = {}
    for name in sorted(environ):
        if VARIABLES.match(name):
            value = environ[name]
            is_hidden = is_secret(name) or ADDRESS.search(name) or '://' in value or '@' in value
            found[name] = HIDDEN if is_hidden and value else value
    return found


def hide_names(section: str, value: Any, cleaner: Cleaner) -> Any:
    """A value without the names of user and machine; versions of four numbers are no addresses."""
    is_version = section in ('versions', 'cann') and '/' not in str(value)
    return value if value is None or is_version else cleaner.clean(value)


def as_text(facts: Dict[str, Any]) -> str:
    lines = []
    for section, rows in facts.items():
        width = max(map(len, rows), default=0)
        lines += [section, *(f'  {name:<{width}}  {printable("not installed" if value is None else value)}'
                             for name, value in rows.items()), *([] if rows else ['  none']), '']
    return '\n'.join(lines).rstrip('\n')
