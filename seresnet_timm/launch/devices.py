"""`--devices 0,2-5`: which NPUs or GPUs a node's processes use, by the variable that hides the others"""
import os
import re
from pathlib import Path
from typing import Dict, List, Mapping, MutableMapping, Optional

from seresnet_timm.ascend import installation, visible
from seresnet_timm.errors import UsageError, counted

VISIBLE = {'npu': visible.NAME, 'cuda': 'CUDA_VISIBLE_DEVICES'}
MOST = 1024  # numbers of a list; no machine has as many devices


def parse_devices(text: str, flag: str = '--devices') -> List[int]:
    """Numbers of '0,2-5', ascending, as torch_npu needs them.

    Raises:
        UsageError: It is not a list of devices.
    """
    numbers: List[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?\s*', part)
        if match is None:
            raise UsageError(f"{flag} '{text}' is not a list of device numbers: give numbers and ranges, such as "
                             '0,2-5.')
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
        allowed = _visible(name, environ[name])
        hidden = [n for n in numbers if allowed is None or n not in allowed]
        if hidden:
            raise UsageError(f'--devices {text} names {visible.list_numbers(hidden)}, which {name}={environ[name]} '
                             f'does not allow: name devices of that list, or unset {name}.')
    if nodes and numbers[-1] >= len(nodes):
        missing = [n for n in numbers if n >= len(nodes)]
        raise UsageError(f'--devices {text} names {visible.list_numbers(missing)}, but this machine has '
                         f'{visible.describe_numbers(nodes)}.')
    for name in VISIBLE.values():
        environ[name] = ','.join(map(str, numbers))


def check_visible(environ: Mapping[str, str], root: Path = Path('/')) -> None:
    """Refuse a list of visible NPUs with which torch_npu finds none, or fewer than the list names.

    Raises:
        UsageError: The variable is set, and is no such list.
    """
    problem = visible.find_problem(environ, root)
    if problem is not None:
        raise UsageError(f'{": ".join(problem)}.')


def real_numbers(count: int, environ: Mapping[str, str]) -> Dict[int, int]:
    """Number of each NPU in the machine, to the number by which a process knows it."""
    named = _visible(VISIBLE['npu'], environ.get(VISIBLE['npu'], ''))
    return {real: index for index, real in enumerate((named or range(count))[:count])}


def _visible(name: str, value: str) -> Optional[List[int]]:
    """Numbers of a list of visible devices; None if it is no such list, as with the UUIDs of GPUs."""
    try:
        return parse_devices(value, name)
    except UsageError:
        return None


def set_visible(options: Mapping[str, object]) -> None:
    """Make the devices of `--devices` the only visible ones of this process and its ranks."""
    if 'devices' in options:
        hide_other_devices(str(options['devices']), os.environ)
    else:
        check_visible(os.environ)
