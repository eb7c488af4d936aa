"""`--devices 0,2-5`: which NPUs or GPUs a node's processes use, by the variable that hides the others"""
import os
import re
from pathlib import Path
from typing import Dict, List, Mapping, MutableMapping, Optional

from seresnet_timm.ascend import installation
from seresnet_timm.errors import UsageError, counted, first_names

VISIBLE = {'npu': 'ASCEND_RT_VISIBLE_DEVICES', 'cuda': 'CUDA_VISIBLE_DEVICES'}
MOST = 1024  # numbers of a list; no machine has as many devices


def parse_devices(text: str, flag: str = '--devices') -> List[int]:
    """Numbers of '0,2-5', ascending, as torch_npu needs them.

    Raises:
        UsageError: It is no list of devices.
    """
    numbers: List[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?\s*', part)
        if match is None:
            raise UsageError(f"{flag} '{text}' is no list of device numbers: give numbers and ranges, such as 0,2-5.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST:
            raise UsageError(f'{flag} {text}: the range {part.strip()} ends before it begins, or is too long.')
        numbers += range(first, last + 1)
    twice = next((n for n in numbers if numbers.count(n) > 1), None)
    if twice is not None:
        raise UsageError(f'{flag} {text} names device {twice} twice: name each once.')
    return sorted(numbers)


def check_options(options: Mapping[str, object], modelzoo: Mapping[str, object]) -> None:
    """Refuse `--devices` with flags that contradict it.

    Raises:
        UsageError: They do.
    """
    if 'devices' not in options:
        return
    text, device, nproc = str(options['devices']), str(options.get('device') or 'auto'), options.get('nproc', 'auto')
    count = len(parse_devices(text))
    if 'device_list' in modelzoo:
        raise UsageError('--devices and --device_list mean the same: give one.')
    if device == 'cpu' or ':' in device:
        what = 'has no numbers' if device == 'cpu' else 'is one device'
        raise UsageError(f'--devices {text} and --device {device} contradict each other, as {device} {what}: leave out '
                         'one of them.')
    if nproc != 'auto' and nproc != str(count):
        raise UsageError(f'--devices {text} names {counted(count, "device")}, and --nproc asks for {nproc}, '
                         'one for each device: leave out --nproc.')


def hide_other_devices(text: str, environ: MutableMapping[str, str], root: Path = Path('/')) -> None:
    """Set the variables that make the named devices the only visible ones, before torch looks for devices.

    Raises:
        UsageError: A device does not exist, or a variable that is set hides it.
    """
    numbers = parse_devices(text)
    nodes, _ = installation.device_nodes(root)
    for name in VISIBLE.values():
        if name not in environ:
            continue
        visible = _visible(name, environ[name])
        hidden = [n for n in numbers if visible is None or n not in visible]
        if hidden:
            raise UsageError(f'--devices {text} names {_list(hidden)}, which {name}={environ[name]} does not allow: '
                             f'name devices of that list, or unset {name}.')
    if nodes and numbers[-1] >= len(nodes):
        missing = [n for n in numbers if n >= len(nodes)]
        raise UsageError(f'--devices {text} names {_list(missing)}, but this machine has {_numbers(nodes)}.')
    for name in VISIBLE.values():
        environ[name] = ','.join(map(str, numbers))


def check_visible(environ: Mapping[str, str], root: Path = Path('/')) -> None:
    """Refuse a list of visible NPUs with which torch_npu finds none, or fewer than the list names.

    Raises:
        UsageError: The variable is set, and is no such list.
    """
    name = VISIBLE['npu']
    value = environ.get(name)
    nodes, _ = installation.device_nodes(root)
    if value is None or not nodes:
        return
    if not re.fullmatch(r'[0-9]+(,[0-9]+)*', value.strip()):
        raise UsageError(f"{name}='{value}' is no list of NPUs, such as 0,1,2,3: correct it, or unset it.")
    numbers = [int(n) for n in value.split(',')]
    if numbers != sorted(set(numbers)):
        raise UsageError(f'{name}={value} is not ascending without doubles, and NPUs after the first wrong number are '
                         'not seen: correct it, or use --devices.')
    missing = [n for n in numbers if n >= len(nodes)]
    if missing:
        raise UsageError(f'{name}={value} names {_list(missing)}, but this machine has {_numbers(nodes)}: '
                         'correct it, or unset it.')


def real_numbers(count: int, environ: Mapping[str, str]) -> Dict[int, int]:
    """Number of each NPU in the machine, to the number by which a process knows it."""
    visible = _visible(VISIBLE['npu'], environ.get(VISIBLE['npu'], ''))
    return {real: index for index, real in enumerate((visible or range(count))[:count])}


def _visible(name: str, value: str) -> Optional[List[int]]:
    """Numbers of a list of visible devices; None if it is no such list, as with the UUIDs of GPUs."""
    try:
        return parse_devices(value, name)
    except UsageError:
        return None


def _numbers(nodes: List[Path]) -> str:
    """How many NPUs there are, and their numbers, which in a container are not those of the device nodes."""
    told = f'{len(nodes)} NPU(s), which have the numbers 0 to {len(nodes) - 1}'
    names = [node.name for node in nodes]
    if names == [f'davinci{i}' for i in range(len(names))]:
        return told
    return f'{told} ({first_names(names, 8)}, in this order)'


def _list(numbers: List[int]) -> str:
    return ', '.join(map(str, numbers[:8])) + (' ...' if len(numbers) > 8 else '')


def set_visible(options: Mapping[str, object]) -> None:
    """Make the devices of `--devices` the only visible ones of this process and its ranks."""
    if 'devices' in options:
        hide_other_devices(str(options['devices']), os.environ)
    else:
        check_visible(os.environ)
