"""Loss scaling on the NPU."""
from typing import Optional

import torch_npu
from timm.utils import NativeScaler


class NpuScaler(NativeScaler):
    """timm's NativeScaler on torch_npu's GradScaler.

    On the Atlas training series (910A) an overflow saturates and is reported through a flag of the one device on which
    it happened. torch_npu's scaler shares that flag between ranks; `torch.amp.GradScaler` does not, so that ranks may
    skip different steps and diverge.
    Source: torch_npu/npu/amp/grad_scaler.py, `_sync_dist_overflow_count`.

    Args:
        loss_scale: Fixed scale, None for a dynamic one.
    """

    def __init__(self, loss_scale: Optional[float] = None):
        self._loss_scale = None if loss_scale is None else float(loss_scale)
        if loss_scale is None:
            self._scaler = torch_npu.npu.amp.GradScaler()
        else:
            self._scaler = torch_npu.npu.amp.GradScaler(init_scale=self._loss_scale, dynamic=False)

    def load_state_dict(self, state_dict) -> None:
        if self._loss_scale is not None:
            state_dict = dict(state_dict, scale=self._loss_scale)  # what is asked for, not what was saved
        super().load_state_dict(state_dict)
