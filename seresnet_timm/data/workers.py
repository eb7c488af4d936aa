"""The default number of loader workers, and how a number of them is written"""
from typing import Tuple

from seresnet_timm import process
from seresnet_timm.errors import counted

MAX_WORKERS = 16  # per rank; more than a fast decoder needs to keep one device busy


def workers_for_images(num_images: int, batch_size: int) -> Tuple[int, str]:
    """Workers that load a number of images once, and the reason; none for few images, which start sooner so."""
    cores = process.cores()
    return min(cores, 8, num_images // (2 * batch_size)), f'{num_images} images, {cores} cores'


def describe_workers(workers: int, processes: int) -> str:
    """The loader workers of a run: '1 loader worker', '2 loader workers for each of 8 processes'."""
    each = f' for each of {processes} processes' if processes > 1 else ''
    return counted(workers, 'loader worker') + each


def default_workers(device: str, ranks: int) -> Tuple[int, str]:
    """Workers of each rank's loader, and the reason.

    Args:
        device: npu, cuda or cpu, with or without an index.
        ranks: Processes on this node.
    """
    cores = process.cores()
    share = cores // ranks
    of = f'{share} of {cores} cores per process' if ranks > 1 else f'{cores} cores'
    if device.startswith('cpu'):
        # the model needs the cores too, and takes longer per image than decoding
        return max(1, min(4, share // 4)), f'{of}, which the model uses too'
    return max(1, min(MAX_WORKERS, share - 1)), f'{of}, one of them for the process itself'
