"""ASCEND_RT_VISIBLE_DEVICES: which lists of NPUs torch_npu takes"""
import re
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

from seresnet_timm.ascend import installation
from seresnet_timm.errors import first_names

NAME = 'ASCEND_RT_VISIBLE_DEVICES'
CORRECT = 'correct it, or unset it'


def find_problem(environ: Mapping[str, str], root: Path = Path('/')) -> Optional[Tuple[str, str]]:
    """What is wrong with the list, with which torch_npu finds no NPU or fewer than it names, and what to do.

    Args:
        environ: The environment.
        root: Folder that stands for /.

    Returns:
        None if the variable is not set, is right, or this machine has no NPU.
    """
    value = environ.get(NAME)
    nodes, _ = installation.device_nodes(root)
    if value is None or not nodes:
        return None
    if not re.fullmatch(r'[0-9]+(,[0-9]+)*', value.strip()):
        return f"{NAME}='{value}' is not a list of NPUs, such as 0,1,2,3", CORRECT
    numbers = [int(n) for n in value.split(',')]
    if numbers != sorted(set(numbers)):
        return (f'{NAME}={value} is not ascending without doubles, and NPUs after the first wrong number are not seen',
                'correct it, or use --devices')
    missing = [n for n in numbers if n >= len(nodes)]
    if missing:
        return (f'{NAME}={value} names {list_numbers(missing)}, but this machine has {describe_numbers(nodes)}',
                CORRECT)
    return None


def describe_numbers(nodes: List[Path]) -> str:
    """How many NPUs there are, and their numbers, which in a container are not those of the device nodes."""
    told = 'one NPU, which has the number 0' if len(nodes) == 1 else (
        f'{len(nodes)} NPUs, which have the numbers 0 to {len(nodes) - 1}')
    names = [node.name for node in nodes]
    if names == [f'davinci{i}' for i in range(len(names))]:
        return told
    return f'{told} ({first_names(names, 8)}, in this order)'


def list_numbers(numbers: List[int]) -> str:
    return ', '.join(map(str, numbers[:8])) + (' ...' if len(numbers) > 8 else '')
