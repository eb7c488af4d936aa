"""Loss scaling on the NPU

On the Atlas training series (910A) an fp16 overflow saturates to 65504 and sets a flag of the one device on which it
happened; later chips compute with Inf and NaN, which the all-reduce of the gradients carries to every rank. torch_npu's
GradScaler handles both and shares the flag between ranks; `torch.amp.GradScaler` checks for Inf only, so that on a 910A
ranks skip different steps and diverge.
Source: torch_npu/npu/amp/grad_scaler.py, `_sync_dist_overflow_count`.
"""
import logging
from typing import Any, Dict, List

import torch
import torch.distributed as dist
import torch_npu

from seresnet_timm.errors import counted

_logger = logging.getLogger(__name__)


class DynamicGradScaler(torch_npu.npu.amp.GradScaler):
    """torch_npu's scaler, which also continues from the state of `torch.amp.GradScaler`.

    Its scale doubles after 2,000 good steps and is halved by a bad one, which is skipped on all ranks. It reads the
    outcome of every step on the host.
    """

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(dict(state_dict, dynamic=self._dynamic))


class FixedGradScaler(DynamicGradScaler):
    """torch_npu's scaler with a fixed scale: an overflow never reaches the weights, and the host never waits.

    torch_npu's scaler with `dynamic=False` does not check for overflows. Here the gradients of a step that overflowed
    on any rank become zero on the device, on every rank: only momentum and weight decay act in that step. Their number
    is logged when the state is saved.

    Args:
        scale: Loss scale, 1024 in the reference.
    """

    is_fixed = True

    def __init__(self, scale: float):
        super().__init__(init_scale=float(scale), dynamic=False)
        self._num_overflows = None  # on the device; created with the first gradients
        self._num_reported = 0

    def scale(self, outputs):
        if not self._clear_overflow_flag:  # update() resets it
            if not torch_npu.npu.utils.is_support_inf_nan():
                torch_npu.npu_clear_float_status(torch.zeros(8, device='npu'))
            self._clear_overflow_flag = True
        return super().scale(outputs)

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        result = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        overflow = self._overflow(gradients)
        for gradient in gradients:
            gradient.masked_fill_(overflow, 0.)
        self._num_overflows = overflow.int() if self._num_overflows is None else self._num_overflows + overflow
        return result

    @staticmethod
    def _overflow(gradients: List[torch.Tensor]) -> torch.Tensor:
        """Whether a gradient overflowed on any rank, as a 0-dim bool tensor on the device."""
        if torch_npu.npu.utils.is_support_inf_nan():
            # the same on all ranks: gradients are all-reduced
            return torch.stack([g.sum() for g in gradients]).sum().isfinite().logical_not()
        flag = torch_npu.npu_get_float_status(torch.zeros(8, device='npu'))[0]
        if dist.is_initialized():
            dist.all_reduce(flag)
        return flag != 0

    def state_dict(self) -> Dict[str, Any]:
        total = 0 if self._num_overflows is None else int(self._num_overflows)
        if total > self._num_reported:
            _logger.warning(
                f'{counted(total - self._num_reported, "step")} overflowed in fp16 at loss scale {self._init_scale:g}: '
                'their gradients were set to zero; lower --loss-scale, or omit it for a dynamic scale.')
            self._num_reported = total
        return super().state_dict()
