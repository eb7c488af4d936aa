"""Every name of torch_npu that this package uses, and how. Data only: nothing here imports torch_npu.

A name that is used and not listed, or listed and missing in a wheel, fails tests/ascend/test_torch_npu_contract.py.
What the wheels hold is in tests/golden/torch_npu_names.json. `torch.npu` is the module `torch_npu.npu`.
"""
from typing import Dict, NamedTuple, Tuple


class Use(NamedTuple):
    """How a name is used.

    Attributes:
        kind: 'call', or 'set' for a setting that is assigned, or 'value'.
        positional: Most arguments that are given by position, `self` not counted.
        keywords: Arguments that are given by name, where they are given.
    """
    kind: str = 'call'
    positional: int = 0
    keywords: Tuple[str, ...] = ()


SET, VALUE = Use('set'), Use('value')
DEVICE = Use(positional=1)  # a device, or nothing for the current one

NAMES: Dict[str, Use] = {
    'torch_npu.npu.amp.GradScaler': Use(keywords=(
        'init_scale', 'growth_factor', 'backoff_factor', 'growth_interval', 'dynamic', 'enabled')),
    'torch_npu.npu.amp.GradScaler.scale': Use(positional=1),
    'torch_npu.npu.amp.GradScaler.unscale_': Use(positional=1),
    'torch_npu.npu.amp.GradScaler.step': Use(positional=1),
    'torch_npu.npu.amp.GradScaler.update': Use(positional=1),
    'torch_npu.npu.amp.GradScaler.get_scale': Use(),
    'torch_npu.npu.amp.GradScaler.state_dict': Use(),
    'torch_npu.npu.amp.GradScaler.load_state_dict': Use(positional=1),

    # which FixedGradScaler overrides or sets
    'torch_npu.npu.amp.GradScaler._unscale_grads_': Use(positional=4),
    'torch_npu.npu.utils.is_support_inf_nan': Use(),
    'torch_npu.npu_get_float_status': Use(positional=1),
    'torch_npu.npu_clear_float_status': Use(positional=1),

    'torch_npu.optim.NpuFusedSGD': Use(positional=1, keywords=(
        'lr', 'momentum', 'dampening', 'weight_decay', 'nesterov')),

    'torch_npu.npu.set_compile_mode': Use(keywords=('jit_compile',)),
    'torch_npu.npu.config.allow_internal_format': SET,
    'torch_npu.npu.matmul.allow_hf32': SET,
    'torch_npu.npu.conv.allow_hf32': SET,

    'torch_npu.npu.is_available': Use(),
    'torch_npu.npu.device_count': Use(),
    'torch_npu.npu.get_device_name': DEVICE,
    'torch_npu.npu.get_device_properties': DEVICE,
    'torch_npu.npu.is_bf16_supported': Use(),
    'torch_npu.npu.set_device': Use(positional=1),
    'torch_npu.npu.synchronize': DEVICE,
    'torch_npu.npu.Stream': DEVICE,
    'torch_npu.npu.Event': Use(keywords=('enable_timing',)),
    'torch_npu.npu.manual_seed_all': Use(positional=1),
    'torch_npu.npu.get_rng_state': DEVICE,
    'torch_npu.npu.set_rng_state': Use(positional=2),
    'torch_npu.npu.empty_cache': Use(),
    'torch_npu.npu.mem_get_info': DEVICE,
    'torch_npu.npu.memory_allocated': DEVICE,
    'torch_npu.npu.max_memory_allocated': DEVICE,
    'torch_npu.npu.reset_peak_memory_stats': DEVICE,
    'torch_npu.npu.memory_reserved': DEVICE,

    'torch_npu.profiler.profile': Use(keywords=('activities', 'schedule', 'on_trace_ready')),
    'torch_npu.profiler.schedule': Use(keywords=('wait', 'warmup', 'active', 'repeat')),
    'torch_npu.profiler.tensorboard_trace_handler': Use(positional=1),
    'torch_npu.profiler.ProfilerActivity.CPU': VALUE,
    'torch_npu.profiler.ProfilerActivity.NPU': VALUE,
}

# by which `import torch` loads torch_npu
ENTRY_POINT = ('torch.backends', 'torch_npu')

# not in torch_npu, whatever one would expect, and what to use instead
ABSENT: Dict[str, str] = {
    'torch_npu.npu.OutOfMemoryError': 'torch.OutOfMemoryError, which torch_npu raises',
}

# names that only some releases have: the code looks with getattr whether they are there
OPTIONAL: Dict[str, Use] = {
    'torch_npu.npu.stress_detect': Use(positional=1),
    'torch_npu.npu.memory_snapshot': Use(),
}
