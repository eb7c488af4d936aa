"""Errors of devices and memory as sentences: what happened and what to do."""
import os
from typing import Optional

from seresnet_timm.runs.settings import RunSettings


def explain(error: RuntimeError, settings: RunSettings) -> Optional[str]:
    """What an error of the device means and what to do; None if the error has another cause."""
    import torch

    from seresnet_timm.ascend.errors import explain as explain_npu
    index = os.environ.get('LOCAL_RANK', '0')
    device = settings.device
    if ':' not in device and device != 'cpu':
        device = f'{device}:{index}'
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        batch_size = settings.args['batch_size']
        less = max(1, batch_size // 2)
        keep = f', or -b {less} --grad-accum-steps 2 for as many images a step' if settings.verb == 'train' else ''
        figures = text.splitlines()[0].partition('If reserved')[0].rstrip('. ')  # there advice on settings begins
        return f'{device} is out of memory with -b {batch_size} ({figures}): try -b {less}{keep}.'
    return explain_npu(text, device)
