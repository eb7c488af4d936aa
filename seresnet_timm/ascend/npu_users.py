"""Which processes use which NPU: by `npu-smi info`, else by the device nodes that processes have open."""
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import psutil

from seresnet_timm.ascend import installation
from seresnet_timm.ascend.fault import HEALTHY

BUS_ID = re.compile(r'[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]|NA')
TIMEOUT = 30  # seconds; the tool waits for the driver


class User(NamedTuple):
    """A process that uses an NPU.

    Attributes:
        device: Number of the NPU as torch_npu counts, if every NPU is visible.
        where: The same as npu-smi names it.
        pid: Process id, by the tool; it may be one outside this container.
        name: Name of the process.
        megabytes: Memory that it uses on the NPU; None if it is not known.
    """
    device: int
    where: str
    pid: int
    name: str
    megabytes: Optional[int] = None

    def describe(self) -> str:
        memory = '' if self.megabytes is None else f', {self.megabytes} MB'
        return f'{self.name or "a process"} (pid {self.pid}{memory})'


class Usage(NamedTuple):
    """Processes that use NPUs, how they were found, the number of NPUs, and what is said of those that are not healthy.

    The last has the number of the NPU, its name and its health as npu-smi has them.
    """
    users: List[User]
    how: str
    devices: int
    sick: Tuple[Tuple[int, str, str], ...] = ()


def find_users(environ: Mapping[str, str], root: Path = Path('/')) -> Usage:
    """Processes that use an NPU, this one and its relatives left out.

    Args:
        environ: The environment, whose PATH has npu-smi.
        root: Folder that stands for /.
    """
    usage = _by_npu_smi(environ) or _by_open_files(root)
    own = _relatives()
    return usage._replace(users=[user for user in usage.users if user.pid not in own])


def _relatives() -> List[int]:
    """This process, those above it, and those below it, or below its launcher: its ranks, or its fellow ranks."""
    this = psutil.Process()
    pids = [this.pid]
    with suppress(psutil.Error):
        pids += [p.pid for p in this.parents()]
        fellows = this.parent() if 'TORCHELASTIC_RUN_ID' in os.environ or 'SLURM_PROCID' in os.environ else this
        pids += [p.pid for p in (fellows or this).children(recursive=True)]
    return pids


# --- npu-smi ----------------------------------------------------------------------------------------------------------

def _by_npu_smi(environ: Mapping[str, str]) -> Optional[Usage]:
    result = run_npu_smi(environ)
    if result is None or not result.works:
        return None
    count = len(parse_chips(result.output))
    return Usage(parse(result.output), '`npu-smi info`', count, parse_health(result.output)) if count else None


class Table(NamedTuple):
    """What `npu-smi info` printed, or why it did not, and whether it ended well."""
    output: str
    works: bool


def run_npu_smi(environ: Mapping[str, str]) -> Optional[Table]:
    """Run `npu-smi info`; None if there is no such tool on PATH.

    It may be a script, whose child still waits for a driver that hangs when the script has been killed: all its
    processes are, and nothing more is read.
    """
    tool = shutil.which('npu-smi', path=environ.get('PATH'))
    if tool is None:
        return None
    try:
        process = subprocess.Popen([tool, 'info'], env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, encoding='utf-8', errors='replace',
                                   start_new_session=True)
    except OSError as e:
        return Table(str(e), False)
    try:
        return Table(process.communicate(timeout=TIMEOUT)[0], process.returncode == 0)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that waits in the kernel cannot be killed
            process.wait(1)
        if process.stdout:
            process.stdout.close()
        return Table(f'no answer within {TIMEOUT} s', False)


class _Chip(NamedTuple):
    """A device of the table: its own number or its place, NPU, chip and health."""
    order: int
    npu: int
    chip: int
    health: str


def _chips(text: str) -> List[_Chip]:
    """The devices of `npu-smi info`, in the order in which torch_npu counts them.

    A device has two rows: `| 0  910B3 | OK | power ... |`, then `| 0 | 0000:C1:00.0 | load ... |`, in which a second
    number is the device's own (Phy-ID on the A3, Device on cards of several chips). On the Ascend 950 number and name
    have a column each, and the second row has neither.
    """
    chips: List[_Chip] = []
    npu, health = None, ''
    for cells in _rows(text):
        if len(cells) > 1 and re.search('process id', cells[1], re.I):
            break
        if len(cells) == 4:
            cells = [f'{cells[0]} {cells[1]}'.strip() or '0', *cells[2:]]
        first = cells[0].split()
        if len(cells) == 3 and BUS_ID.fullmatch(cells[1]):
            if npu is not None and first and first[0].isdigit():
                own = int(first[1]) if len(first) > 1 and first[1].isdigit() else len(chips)
                chips.append(_Chip(own, npu, int(first[0]), health))
        elif len(cells) == 3 and len(first) >= 2 and first[0].isdigit():
            npu, health = int(first[0]), cells[1]
    return sorted(chips)


def parse_chips(text: str) -> List[Tuple[int, int]]:
    """NPU and chip of each device of `npu-smi info`, in the order in which torch_npu counts them."""
    return [(c.npu, c.chip) for c in _chips(text)]


def parse_health(text: str) -> Tuple[Tuple[int, str, str], ...]:
    """Devices that are not healthy: number as torch_npu counts, name, and what npu-smi says of its health."""
    chips = _chips(text)
    several = len({c.npu for c in chips}) < len(chips)
    return tuple((index, _where(c.npu, c.chip, several), c.health) for index, c in enumerate(chips)
                 if c.health.upper() not in HEALTHY)


def _where(npu: int, chip: int, several: bool) -> str:
    return f'NPU {npu} chip {chip}' if several else f'NPU {npu}'


def parse(text: str) -> List[User]:
    """Processes of `npu-smi info`: `| 4  0 | 3046287 | python3.9 | 62 |` under the heading with `Process id`."""
    order: Dict[Tuple[int, int], int] = {key: index for index, key in enumerate(parse_chips(text))}
    several = len({npu for npu, _ in order}) < len(order)
    found, is_process_table = [], False
    for cells in _rows(text):
        if len(cells) >= 4 and re.search(r'process id', cells[1], re.I):
            is_process_table = True
        elif is_process_table and len(cells) >= 4 and cells[1].isdigit():  # a fifth: the id in the container
            numbers = [int(n) for n in cells[0].split() if n.isdigit()]
            key = (numbers[0], numbers[1] if len(numbers) > 1 else 0) if numbers else None
            if key in order:
                memory = re.match(r'[0-9]+', cells[3])
                found.append(User(order[key], _where(*key, several), int(cells[1]), cells[2],
                                  int(memory[0]) if memory else None))
    return found


def _rows(text: str) -> Iterable[List[str]]:
    for line in text.splitlines():
        line = line.strip()
        if line.startswith('|') and line.endswith('|'):
            yield [cell.strip() for cell in line[1:-1].split('|')]


# --- open files -------------------------------------------------------------------------------------------------------

def _by_open_files(root: Path) -> Usage:
    """Processes of this user, or all for root, that have a device node open."""
    nodes, _ = installation.device_nodes(root)
    order = {str(node): index for index, node in enumerate(nodes)}
    found = []
    for process in (root / 'proc').glob('[0-9]*'):
        targets = set()
        with suppress(OSError):  # ended, or of another user
            for link in (process / 'fd').iterdir():
                with suppress(OSError):
                    targets.add(os.readlink(link))
        for target in sorted(targets & set(order)):
            name = ''
            with suppress(OSError):
                name = (process / 'comm').read_text(errors='replace').strip()
            found.append(User(order[target], target, int(process.name), name))
    return Usage(sorted(found), 'the open files of /dev/davinci*', len(nodes))
