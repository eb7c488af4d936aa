"""torch_npu: is it there, and does it see a device?"""
import importlib.util
from typing import Optional


def why_unavailable() -> Optional[str]:
    """Load torch_npu and look for a device.

    Returns:
        None if an NPU can be used, else one clause that says what is missing.
    """
    if importlib.util.find_spec('torch_npu') is None:
        return 'torch_npu is not installed'
    try:
        import torch
        import torch_npu  # noqa: F401  (registers torch.npu)
    except (ImportError, OSError, RuntimeError) as e:
        # without CANN's libraries the import itself fails
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        return f'torch_npu does not import ({reason}); has the CANN set_env.sh been sourced?'
    if not torch.npu.is_available():
        return 'torch_npu is installed but sees no NPU'
    return None
