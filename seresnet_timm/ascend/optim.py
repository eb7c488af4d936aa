"""torch_npu's fused SGD as a timm optimizer: `--opt npufusedsgd`

`NpuFusedSGD` updates all parameters of a group in a few operators instead of a few per parameter. Importing this
module registers it with timm. The name has no underscore: timm splits names at the last one, and `npu_fused_sgd` would
silently become `sgd`.

Without the launcher: `python train.py --device-modules seresnet_timm seresnet_timm.ascend.optim --opt npufusedsgd ...`
"""
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry

from seresnet_timm.ascend.runtime import why_unavailable
from seresnet_timm.errors import UsageError

NAME = 'npufusedsgd'


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
