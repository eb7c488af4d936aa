"""torch_npu: whether it is installed and can be imported, and the devices that it sees."""
import importlib.util
import os
from typing import Any, Dict, List, Optional

from seresnet_timm.ascend.wheels import describe_incompatibility


def _is_installed() -> bool:
    return importlib.util.find_spec('torch_npu') is not None


def disable_incompatible_torch_npu() -> None:
    """Keep `import torch` from loading an incompatible torch_npu: with some builds of torch it aborts the process.

    Call it before torch is imported; `why_unavailable` then gives the reason.
    """
    if _is_installed() and describe_incompatibility() is not None:
        os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'


def why_unavailable() -> Optional[str]:
    """Load torch_npu and look for a device.

    Returns:
        None if an NPU can be used, else what is missing, as a clause.
    """
    if not _is_installed():
        return 'torch_npu is not installed'
    incompatible = describe_incompatibility()
    if incompatible is not None:
        return incompatible
    try:
        import torch
        import torch_npu  # noqa: F401  (registers torch.npu)
    except (ImportError, OSError, RuntimeError) as e:
        # without CANN's libraries the import itself fails
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        return f'torch_npu does not import ({reason}); has the CANN set_env.sh been sourced?'
    if not torch.npu.is_available() or torch.npu.device_count() == 0:
        named = os.environ.get('ASCEND_RT_VISIBLE_DEVICES')
        return 'torch_npu is installed but sees no NPU' + (
            '' if named is None else f" (ASCEND_RT_VISIBLE_DEVICES='{named}')")
    return None


def list_devices() -> List[Dict[str, Any]]:
    """Load torch_npu and list the NPUs that it sees: `name`, `free_memory` and `total_memory` in bytes."""
    import torch
    import torch_npu  # noqa: F401
    devices = []
    for index in range(torch.npu.device_count() if torch.npu.is_available() else 0):
        free, total = torch.npu.mem_get_info(index)
        devices.append(dict(name=torch.npu.get_device_name(index), free_memory=free, total_memory=total))
    return devices


def supports_bfloat16() -> bool:
    """Whether the current NPU computes in bfloat16; torch_npu is loaded."""
    import torch
    return bool(torch.npu.is_bf16_supported())
