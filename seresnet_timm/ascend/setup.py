"""Settings of torch_npu and its environment before a training, and why."""
import importlib.util
import os
from typing import List, MutableMapping, Optional, Sequence, Tuple

from seresnet_timm.ascend import fault_tolerance
from seresnet_timm.ascend.environment import DEAD, VARIABLES
from seresnet_timm.errors import UsageError

RANK_TABLE = 'RANK_TABLE_FILE'
# what is set, as the plan shows it, and the reason
DECISIONS: Tuple[Tuple[str, str], ...] = (
    ('jit_compile off', 'precompiled kernels; otherwise a 910A compiles each operator at its first shape, for minutes'),
    ('HF32 on', 'float32 convolutions and matrix products at 11 bits if the chip can, as timm uses TF32 on GPUs'),
    ('internal formats unchanged', "torch_npu's default: on for the 910A, off for the A2 and later"),
)


def set_environment(environ: MutableMapping[str, str]) -> List[str]:
    """Set the recommended variables that the user has not set, before torch_npu is imported and reads some of them.

    Args:
        environ: Environment of this process, which its ranks inherit; unchanged if torch_npu is not installed.

    Returns:
        Notes for the plan: what was set or unset and why, which of the user's variables were kept, and which have no
        effect.

    Raises:
        UsageError: A variable of torch_npu has a value with which it does not import.
    """
    if importlib.util.find_spec('torch_npu') is None:
        return []
    wrong = list(fault_tolerance.wrong_values(environ))
    if wrong:
        raise UsageError(' '.join(wrong))  # torch_npu would not even import
    notes = []
    if RANK_TABLE in environ:
        notes.append(f'{RANK_TABLE}={environ.pop(RANK_TABLE)} is unset: the ranks meet through torchrun, and torch_npu '
                     'would take their links from that file.')
    for name, variable in VARIABLES.items():
        if variable.recommended is None:
            continue
        if name in environ:
            notes.append(
                f'{name}={environ[name]} is kept as you set it; {variable.recommended} is recommended for training.')
        else:
            environ[name] = variable.recommended
            notes.append(f'{name}={variable.recommended}: {variable.reason}.')
    return notes + [f'{name} is set, but has no effect: {reason}.' for name, reason in DEAD.items() if name in environ]


def describe() -> str:
    """What is set in torch_npu, for the plan."""
    return '; '.join(f'{what} ({why})' for what, why in DECISIONS)


def set_up(device: str, dtypes: Sequence[Optional[str]] = (), internal_format: Optional[bool] = None) -> None:
    """Set torch_npu up in this process, once, before the first use of the device.

    Args:
        device: 'npu', or with an index. Without an index: the device LOCAL_RANK.
        dtypes: Names of the dtypes that the run computes in.
        internal_format: Tensors may be laid out in formats of the NPU; None for the default of the release.

    Raises:
        UsageError: The chip does not support one of them.
    """
    import torch
    import torch_npu

    _, _, index = device.partition(':')
    torch.npu.set_device(int(index or os.environ.get('LOCAL_RANK', 0)))  # before the first use makes it device 0
    torch_npu.npu.set_compile_mode(jit_compile=False)
    set_hf32(True)
    if internal_format is not None:
        torch.npu.config.allow_internal_format = internal_format  # can only be written
    if 'bfloat16' in dtypes and not torch.npu.is_bf16_supported():
        raise UsageError(f'{torch.npu.get_device_name()} does not compute in bfloat16: use --amp --amp-dtype float16.')


def set_hf32(allowed: bool) -> None:
    """Allow or forbid float32 convolutions and matrix products at 11 bits in this process; torch_npu is loaded."""
    import torch
    torch.npu.conv.allow_hf32 = allowed
    torch.npu.matmul.allow_hf32 = allowed
