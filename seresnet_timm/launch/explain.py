"""Errors of devices, memory and loader workers as sentences: what happened and what to do."""
import os
import re
from typing import Optional

from seresnet_timm.checkpoints import save_errors
from seresnet_timm.launch import limits
from seresnet_timm.runs.settings import RunSettings


def explain(error: Exception, settings: RunSettings) -> Optional[str]:
    """What an error of the device or of loader workers means and what to do; None if it has another cause."""
    from seresnet_timm.ascend import errors
    from seresnet_timm.data import worker_errors
    from seresnet_timm.data.data_folder import DataFolderGone
    if isinstance(error, DataFolderGone):
        return str(error)
    of_worker = worker_errors.explain(error, settings.args.get('workers'))
    if of_worker is not None:
        return of_worker
    if isinstance(error, OSError):
        return save_errors.explain(error) or limits.explain(error)
    index = os.environ.get('LOCAL_RANK', '0')
    device = settings.device
    if ':' not in device and device != 'cpu':
        device = f'{device}:{index}'
    text = str(error)
    label = re.search(r'(?:index|Target) (-?\d+) is out of bounds', text)
    if label and '/' in (settings.args.get('dataset') or ''):  # folders are counted before the run
        return (f'--dataset {settings.args["dataset"]} has an image of class {label[1]}, the model has '
                f'{settings.args.get("num_classes")} outputs, for the classes from 0 on: give --num-classes.')
    if is_out_of_memory(error, device):
        batch_size = settings.args['batch_size']
        less = max(1, batch_size // 2)
        keep = ''
        if settings.verb == 'train':
            keep = f', or -b {less} --grad-accum-steps 2 for the same number of images per step'
        lines = [line for line in text.splitlines() if 'memory' in line] or text.splitlines()
        figures = lines[0].partition('If reserved')[0].strip().rstrip('. ')  # there advice on settings begins
        return f'{device} is out of memory with -b {batch_size} ({figures}): try -b {less}{keep}.'
    return limits.explain(error) or errors.explain(text, device)


def is_out_of_memory(error: Exception, device: str) -> bool:
    """Whether tensors did not fit into the memory of their device."""
    import torch

    from seresnet_timm.ascend import errors
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text or (
        # torch_npu to 2.9 raises a RuntimeError, and CANN's own texts are others
        device.startswith('npu') and errors.is_out_of_memory(text))
