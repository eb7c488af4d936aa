"""How many workers a loader gets when nobody says"""
import os
from typing import Tuple

MOST = 16  # a rank's; more than a fast decoder needs to keep one device busy


def default_workers(device: str, ranks: int) -> Tuple[int, str]:
    """Workers of each rank's loader, and the reason.

    Args:
        device: npu, cuda or cpu, with or without an index.
        ranks: Processes on this node.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    share = cores // ranks
    of = f'{share} of {cores} cores a process' if ranks > 1 else f'{cores} cores'
    if device.startswith('cpu'):
        # the model needs the cores itself, and takes longer for an image than decoding does
        return max(1, min(4, share // 4)), f'{of}, which the model computes on as well'
    return max(1, min(MOST, share - 1)), f'{of}, one of them for the process itself'
