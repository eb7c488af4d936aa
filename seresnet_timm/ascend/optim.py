"""torch_npu's fused SGD as a timm optimizer: `--opt npufusedsgd`

`NpuFusedSGD` updates all parameters of a group in a few operators instead of a few per parameter. Importing this
module registers it with timm. The name has no underscore: timm splits names at the last one, and `npu_fused_sgd` would
silently become `sgd`.

Without the launcher: `python train.py --device-modules seresnet_timm seresnet_timm.ascend.optim --opt npufusedsgd ...`
"""
import sys
from typing import Optional

import torch
from timm.optim import OptimInfo, get_optimizer_class
from timm.optim._optim_factory import default_registry

from seresnet_timm.ascend.operators import FALLBACK, kind_of
from seresnet_timm.ascend.runtime import why_unavailable
from seresnet_timm.errors import UsageError

NAME = 'npufusedsgd'
FUSED = {torch.optim.SGD: 'aten::_fused_sgd_', torch.optim.Adam: 'aten::_fused_adam_',
         torch.optim.AdamW: 'aten::_fused_adamw_'}


def npu_fused_sgd(params, **kwargs):
    """Create the optimizer; arguments and steps are those of `torch.optim.SGD`.

    Raises:
        UsageError: There is no NPU.
    """
    missing = why_unavailable()
    if missing:
        raise UsageError(f'--opt {NAME} needs an NPU ({missing}): use --opt momentum, the same steps on any device.')
    from torch_npu.optim import NpuFusedSGD
    return NpuFusedSGD(params, **kwargs)


default_registry.register(OptimInfo(
    name=NAME,
    opt_class=npu_fused_sgd,
    description="torch_npu's SGD with classical momentum, fused over the parameters",
    has_eps=False,
    has_momentum=True,
))


def fused_without_kernel(opt: str) -> Optional[str]:
    """The operator of torch's fused form of a timm optimizer, if it would run on the CPU with the loaded torch_npu.

    It does in every release for Adam (2.6.0 to 2.14.0), and for SGD in some (2.6.0, 2.8.0, 2.9.1).
    """
    if 'torch_npu' not in sys.modules:
        return None
    try:
        operator = FUSED.get(get_optimizer_class(opt, bind_defaults=False))
    except ValueError:  # unknown
        return None
    return operator if operator is not None and kind_of(operator) == FALLBACK else None
