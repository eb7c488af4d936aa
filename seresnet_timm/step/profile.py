"""A trace of five training steps, of any script: `--prof DIR`."""
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from seresnet_timm.errors import printable

WAIT, WARMUP, ACTIVE = 5, 2, 5  # optimizer steps


@contextmanager
def profiled(folder: Optional[str], device: str) -> Iterator[None]:
    """Profile optimizer steps 8 to 12 of rank 0 and write the trace into a folder.

    Args:
        folder: Folder to create; None profiles nothing.
        device: Device of the run.
    """
    if folder is None or os.environ.get('RANK', '0') != '0':
        yield
        return
    from torch.optim.optimizer import register_optimizer_step_post_hook

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if device.startswith('npu'):
        from seresnet_timm.ascend.profiler import profiler
    else:
        profiler = _profiler
    with profiler(path, WAIT, WARMUP, ACTIVE) as p:
        hook = register_optimizer_step_post_hook(lambda *_: p.step())
        try:
            yield
        finally:
            hook.remove()


def _profiler(path: Path, wait: int, warmup: int, active: int):
    """torch's profiler; writes `trace.json` for Chrome's trace viewer or Perfetto."""
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    def write(p) -> None:
        p.export_chrome_trace(str(path / 'trace.json'))
        print(f'Profile: {printable(path / "trace.json")}')
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    steps = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    return profile(activities=activities, schedule=steps, on_trace_ready=write)
