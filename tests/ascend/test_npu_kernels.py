"""With no supported torch_npu an operator of a training runs on the CPU: by what the wheels register."""
import npu_kernels
import pytest
import torch

from seresnet_timm.ascend import wheels
from seresnet_timm.ascend.operators import named_in_warnings

KERNELS = npu_kernels.kernels()


def is_composite(name: str, kernels) -> bool:
    """Whether torch makes an operator of others: always, or by its form with `out` (structured operators)."""
    def has(operator: str, key: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f'aten::{operator}', key)
    if has(name, 'CompositeImplicitAutograd') or has(name, 'CompositeExplicitAutograd'):
        return True
    base = name.partition('.')[0].rstrip('_')
    outs = {f'{base}.{s.overload_name}' for s in torch._C._jit_get_all_schemas()
            if s.name == f'aten::{base}' and any(a.is_out for a in s.arguments)}
    outs = {out for out in outs if not has(out, 'CompositeExplicitAutograd')}  # that is made of the functional form
    return has(name, 'CompositeExplicitAutogradNonFunctional') and (not outs or bool(outs & kernels))


def test_every_supported_release_was_read():
    assert {wheels.dotted(wheels.release(version)) for version in KERNELS} == set(wheels.TORCHVISION)


@pytest.mark.parametrize('version', sorted(KERNELS))
def test_what_is_reached_has_a_kernel(version):
    names = [name.partition('::')[2] for name in npu_kernels.reached() if name.startswith('aten::')]
    assert len(names) > 100 and 'convolution_backward' in names and '_foreach_lerp_.Scalar' in names
    missing = {name for name in names if name not in KERNELS[version] and not is_composite(name, KERNELS[version])}
    assert not missing


@pytest.mark.parametrize('version', sorted(KERNELS))
def test_fused_optimizers(version):
    """AdamW's has a kernel everywhere; Adam's computes on the CPU where it has one, SGD's is missing in three."""
    lacks = {name for name in ('_fused_adamw_', '_fused_adam_', '_fused_sgd_') if name not in KERNELS[version]}
    assert lacks == ({'_fused_adam_', '_fused_sgd_'} if version in ('2.6.0.post5', '2.8.0.post5', '2.9.1') else set())


def test_warnings_name_the_operator():
    """As torch_npu 2.6.0 and 2.14.0 print them."""
    assert named_in_warnings([
        "CAUTION: The operator 'aten::_fused_adam_' is not currently supported on the NPU backend and will fall back "
        'to run on the CPU. This may have performance implications.',
        'CAUTION: The operator aten::unfold_backward is currently not supported on the NPU backend. Now this operator '
        'will fallback to run on the CPU and may have performance implications.',
        "Warning: CAUTION: The operator 'aten::special_i1e' is not currently supported on the NPU backend and will "
        'fall back to run on the CPU.',
        'TypedStorage is deprecated.']) == ['aten::_fused_adam_', 'aten::unfold_backward', 'aten::special_i1e']
