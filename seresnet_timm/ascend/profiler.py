"""torch_npu's profiler."""
from pathlib import Path

import torch_npu


def profiler(path: Path, wait: int, warmup: int, active: int):
    """Profiler of host and NPU; writes a folder for Ascend's MindStudio Insight and TensorBoard."""
    p = torch_npu.profiler
    return p.profile(
        activities=[p.ProfilerActivity.CPU, p.ProfilerActivity.NPU],
        schedule=p.schedule(wait=wait, warmup=warmup, active=active, repeat=1),
        on_trace_ready=p.tensorboard_trace_handler(str(path)),
    )
