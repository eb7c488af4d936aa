"""Loss scaling of fp16 mixed precision on every device."""
from typing import Any, Dict, Optional, Tuple

import torch
from timm.utils import NativeScaler


class FixedGradScaler(torch.amp.GradScaler):
    """GradScaler whose scale never changes; a step whose gradients overflow is still skipped."""

    is_fixed = True

    def update(self, new_scale=None) -> None:
        super().update(self._init_scale)


class LossScaler(NativeScaler):
    """timm's NativeScaler on a grad scaler of the device.

    Args:
        grad_scaler: The device's scaler.
        loss_scale: Fixed scale, None for a dynamic one.
    """

    def __init__(self, grad_scaler: torch.amp.GradScaler, loss_scale: Optional[float] = None):
        self._scaler = grad_scaler
        self._loss_scale = loss_scale

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        if self._loss_scale is not None:
            state_dict = dict(state_dict, scale=self._loss_scale)  # that of this run, not the saved one
        super().load_state_dict(state_dict)


def current_scale(loss_scaler: Optional[NativeScaler]) -> Optional[float]:
    """The scale of the loss now, fixed or dynamic; None without a scaler. The host waits for the device."""
    return None if loss_scaler is None else float(loss_scaler._scaler.get_scale())


def create_loss_scaler(
        device: torch.device,
        amp: bool,
        amp_dtype: str,
        loss_scale: Optional[float] = None,
) -> Tuple[Optional[NativeScaler], str]:
    """Loss scaler for mixed precision.

    Args:
        device: Device of the training.
        amp: Mixed precision is on.
        amp_dtype: 'float16' or 'bfloat16'.
        loss_scale: Fixed scale, None for a dynamic one.

    Returns:
        The scaler, None where none is needed, and the reason.
    """
    needed, reason = describe_loss_scaler(device.type, amp, amp_dtype, loss_scale)
    if not needed:
        return None, reason
    if device.type == 'npu':
        from seresnet_timm.ascend import scaler
        grad_scaler = scaler.DynamicGradScaler() if loss_scale is None else scaler.FixedGradScaler(loss_scale)
        return LossScaler(grad_scaler, loss_scale), reason
    if loss_scale is not None:
        return LossScaler(FixedGradScaler(device=device.type, init_scale=float(loss_scale)), float(loss_scale)), reason
    return NativeScaler(device=device.type), reason


def describe_loss_scaler(kind: str, amp: bool, amp_dtype: str, loss_scale: Optional[float]) -> Tuple[bool, str]:
    """Whether a loss scaler is needed on a kind of device, and which or why not."""
    if not amp:
        return False, 'none, not mixed precision'
    if amp_dtype == 'bfloat16':
        return False, 'none, bfloat16 has the exponent range of float32'
    if kind == 'cpu' and loss_scale is None:
        return False, "none, as in timm's script for float16 on the CPU"
    scale = 'dynamic' if loss_scale is None else f'static {loss_scale:g}'
    return True, f"{scale}, torch_npu's: ranks agree on overflow" if kind.startswith('npu') else scale
