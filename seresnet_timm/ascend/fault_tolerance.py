"""torch_npu's means against faults: what the installed version has, what is switched on, what is offered."""
import importlib.util
import inspect
import mmap
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

WATCHDOG = ('TORCH_HCCL_ASYNC_ERROR_HANDLING', 'HCCL_ASYNC_ERROR_HANDLING')  # the newer name first
SYNC = 'ACL_DEVICE_SYNC_TIMEOUT'
SNAPSHOT, SNAPSHOT_PATH = 'OOM_SNAPSHOT_ENABLE', 'OOM_SNAPSHOT_PATH'
ASD, OLD_ASD = 'NPU_ASD_CONFIG', 'NPU_ASD_ENABLE'

# what doctor says of each, where the installed torch_npu has it
OFFERED: Dict[str, str] = {
    WATCHDOG[0]: 'on unless it is 0: a thread that ends the process at a network error of HCCL, and tells of '
                 'collectives that do not end',
    SYNC: 'set by a training on several NPUs, above the time-outs of HCCL: a device that does not answer ends the run',
    SNAPSHOT: f'offered: 1 writes what held the memory at an out-of-memory, into {SNAPSHOT_PATH} or the current '
              'folder; it slows allocation',
    ASD: 'offered: enable:true looks for silent corruption in gradients, bfloat16 and float32 only; up to 1.5 GB '
         'and 2 % or more of the speed',
}


def _package() -> Optional[Path]:
    spec = importlib.util.find_spec('torch_npu')
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def knows(name: str, package: Optional[Path] = None) -> bool:
    """Whether the installed torch_npu reads a variable: its libraries and sources contain the name.

    Args:
        name: Name of the variable.
        package: Folder of torch_npu; None for the installed one.
    """
    folder = package or _package()
    if folder is None:
        return False
    files = [*folder.glob('lib/libtorch_npu.so'), *folder.glob('utils/*.py'), *folder.glob('asd/*.py')]
    for file in files:
        with suppress(OSError, ValueError), open(file, 'rb') as f, \
                mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:  # ValueError: empty
            position = content.find(name.encode())
            while position >= 0:
                around = content[max(0, position - 1):position] + content[position + len(name):position + len(name) + 1]
                if not re.search(rb'[A-Z_]', around):  # not a part of a longer name
                    return True
                position = content.find(name.encode(), position + 1)
    return False


def wrong_values(environ: Mapping[str, str]) -> Iterator[str]:
    """Values with which torch_npu does not import, or that it replaces, each a sentence."""
    if ASD in environ:
        pairs = parse_asd(environ[ASD])
        for key in ('enable', 'with_checksum'):
            if pairs.get(key, 'true') not in ('true', 'false'):
                yield f'{ASD}={environ[ASD]}: {key} is true or false, got {pairs[key]}: correct or unset it.'
        if 'enable' not in pairs:
            yield f'{ASD}={environ[ASD]} switches nothing on: write {ASD}=enable:true, or unset it.'
    if environ.get(OLD_ASD, '0') not in ('0', '1', '2', '3'):
        yield f"{OLD_ASD}='{environ[OLD_ASD]}' is not a number from 0 to 3: correct it, or unset it."
    for name in (SNAPSHOT, *WATCHDOG):
        if name in environ and not re.fullmatch(r'[0-9]', environ[name]):
            yield f"{name}='{environ[name]}' is not 0 or 1: correct it, or unset it."


def parse_asd(text: str) -> Dict[str, str]:
    """Keys and values of 'enable:true,with_checksum:false'."""
    items = (item.split(':') for item in text.split(','))
    return {item[0]: item[1] for item in items if len(item) == 2}


def describe_set(environ: Mapping[str, str], dtypes: Sequence[Optional[str]]) -> List[str]:
    """What the plan says of the variables that the user set.

    Args:
        environ: The environment.
        dtypes: Names of the dtypes that the run computes in; None for float32.
    """
    notes = []
    for name in WATCHDOG:
        if environ.get(name) == '0':
            notes.append(f"{name}=0 switches torch_npu's watchdog off: a network error of HCCL does not end the run.")
    if environ.get(SNAPSHOT, '0') != '0':
        notes.append(f'{SNAPSHOT}={environ[SNAPSHOT]}: an out-of-memory writes what held the memory into '
                     f'{environ.get(SNAPSHOT_PATH) or "the current folder"} ({SNAPSHOT_PATH}).')
    asd = ASD if parse_asd(environ.get(ASD, '')).get('enable') == 'true' else None
    asd = asd or (OLD_ASD if environ.get(OLD_ASD, '0') != '0' else None)
    if asd and 'float16' in dtypes:
        notes.append(f'{asd} looks for silent corruption in bfloat16 and float32 only: this run computes in float16, '
                     'where it finds nothing, or takes a change of the loss scale for a fault; use --amp-dtype '
                     'bfloat16 where the chip has it, or unset it.')
    elif asd:
        notes.append(f'{asd}={environ[asd]}: torch_npu looks for silent corruption in gradients, for up to 1.5 GB of '
                     'device memory and 2 % or more of the speed.')
    return notes


# --- stress detection -------------------------------------------------------------------------------------------------

def stress_detect(index: int) -> Tuple[Optional[int], str]:
    """Let torch_npu's stress detection compute on one NPU, for minutes.

    Args:
        index: The NPU.

    Returns:
        0: sound, 1: it did not run, 2: a fault of the hardware; None if torch_npu has no such function. And a remark.
    """
    import torch
    import torch_npu  # noqa: F401
    detect = getattr(torch.npu, 'stress_detect', None)
    if detect is None:
        return None, 'this torch_npu has no stress_detect'
    torch.npu.set_device(index)
    try:
        takes_type = bool(inspect.signature(detect).parameters)
        return int(detect('aic') if takes_type else detect()), ''
    except (RuntimeError, TypeError, ValueError) as e:
        return 1, (str(e).strip().splitlines() or [type(e).__name__])[0]
