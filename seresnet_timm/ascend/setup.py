"""What a process sets in torch_npu and its environment before it trains, and why."""
import importlib.util
import os
from typing import List, MutableMapping, Optional, Sequence, Tuple

from seresnet_timm.ascend.environment import DEAD, VARIABLES
from seresnet_timm.errors import UsageError

# what is set, in which words the plan shows it, and the reason
DECISIONS: Tuple[Tuple[str, str], ...] = (
    ('jit_compile off', 'ready-made kernels; else a 910A compiles each operator at its first shape, for minutes'),
    ('HF32 on', 'float32 convolutions and matrix products at 11 bits where the chip can, as timm has TF32 on GPUs'),
    ('internal formats as torch_npu has them', 'on for the 910A, off from the A2 on'),
)


def set_environment(environ: MutableMapping[str, str]) -> List[str]:
    """Set the recommended variables that the user has not set. Before torch_npu is imported, which reads some then.

    Args:
        environ: Environment of this process, which its ranks inherit; unchanged where torch_npu is not installed.

    Returns:
        Notes for the plan: what was set and why, what of the user's was kept, and what of the user's is dead.
    """
    if importlib.util.find_spec('torch_npu') is None:
        return []
    notes = []
    for name, variable in VARIABLES.items():
        if variable.recommended is None:
            continue
        if name in environ:
            notes.append(f'{name}={environ[name]}: yours, kept; {variable.recommended} is recommended for training.')
        else:
            environ[name] = variable.recommended
            notes.append(f'{name}={variable.recommended}: {variable.reason}.')
    return notes + [f'{name} is set, to no effect: {reason}.' for name, reason in DEAD.items() if name in environ]


def describe() -> str:
    """What is set in torch_npu, for the plan."""
    return '; '.join(f'{what} ({why})' for what, why in DECISIONS)


def set_up(device: str, dtypes: Sequence[Optional[str]] = ()) -> None:
    """Set torch_npu up in this process, once, before anything else uses the device.

    Args:
        device: 'npu', or with an index. Without one the rank's own, from LOCAL_RANK.
        dtypes: Names of the dtypes that the run computes in.

    Raises:
        UsageError: The chip does not compute in one of them.
    """
    import torch
    import torch_npu

    _, _, index = device.partition(':')
    torch.npu.set_device(int(index or os.environ.get('LOCAL_RANK', 0)))  # before the first use makes it device 0
    torch_npu.npu.set_compile_mode(jit_compile=False)
    torch.npu.conv.allow_hf32 = True
    torch.npu.matmul.allow_hf32 = True
    if 'bfloat16' in dtypes and not torch.npu.is_bf16_supported():
        raise UsageError(f'{torch.npu.get_device_name()} does not compute in bfloat16: use --amp --amp-dtype float16.')
