"""What a run needs of the machine: disk space for checkpoints, shared memory for batches, files, threads, memory

A run is refused only if it is certain to fail; what may become too little is a note of the plan.
"""
import os
import resource
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import psutil
import torch
from timm.data import resolve_data_config

from seresnet_timm import process
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.data.loaders import LoaderSetup, loads_in_threads
from seresnet_timm.data.worker_errors import SHM
from seresnet_timm.data.workers import MAX_WORKERS, describe_workers
from seresnet_timm.engine.flags import defaults_of
from seresnet_timm.errors import counted
from seresnet_timm.launch import limits
from seresnet_timm.launch.limits import mib

# copies of the weights that an optimizer keeps, for the usual ones; 0 for others, of which nothing is certain
COPIES: Dict[str, int] = dict(
    {'momentum': 1, 'nesterov': 1, 'lion': 1},
    **dict.fromkeys(('adam', 'adamw', 'nadam', 'nadamw', 'radam', 'adamp', 'lamb'), 2))
PREFETCH = 2  # batches of a worker that wait, torch's default
FILES_OF_A_PROCESS = 64  # open before the loaders start: libraries, logs, sockets
FILES_OF_A_RANK = 8  # logs and pipes, in the process that starts the ranks
FILES_OF_A_WORKER = 5  # pipes of a worker process, in the main one
ENOUGH_FILES = 1024
MOST_WORKERS, MOST_OF_A_CORE = 1024, 64  # on any machine; more are a mistake, whatever their limits say
BYTES_OF_A_WORKER = 10 * 2 ** 20  # of its own, which it does not share with its parent; measured 12 MiB


def check_resources(run: Any) -> Iterator[str]:
    """Problems of a run as sentences; its notes are added.

    Args:
        run: The run, a `Checked`.
    """
    if run.settings.verb == 'train':
        yield from _check_disk(run)
    yield from _check_process(run)
    yield from _check_workers(run)


# --- disk -------------------------------------------------------------------------------------------------------------

def checkpoint_bytes(run: Any) -> Optional[int]:
    """Size of a checkpoint, without what is not certain; None if the model is not known."""
    if run.model is None:
        return None
    weights = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in run.model.parameters() if p.requires_grad)
    momentum = 0 if run.flag('momentum') == 0 and run.args.opt in ('momentum', 'nesterov') else 1
    state = COPIES.get(run.args.opt.lower(), 0) * trained * momentum
    return weights * (2 if run.flag('model_ema') else 1) + state


def _check_disk(run: Any) -> Iterator[str]:
    size = checkpoint_bytes(run)
    folder = Path(run.settings.output).absolute()
    existing = next((p for p in (folder, *folder.parents) if p.is_dir()), None)
    if size is None or existing is None:
        return
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < size:
        yield (f'A checkpoint has at least {mib(size)}, but files of this process are limited to {mib(limit)}: raise '
               'the limit (`ulimit -f unlimited`).')
    try:
        free = shutil.disk_usage(existing).free
        status = os.statvfs(existing)
    except OSError:
        return  # the check of the output folder says why
    if free < size:
        yield (f'A checkpoint needs at least {mib(size)}, {existing} has {mib(free)} free: free disk space, or name '
               'another folder with --output.')
    elif status.f_files and not status.f_favail:
        yield f'{existing} has no inode left for new files: remove files, or name another folder with --output.'
    else:
        # `last`, `previous`, `model_best`, the history, and the one that is being written
        most = size * (4 + (run.flag('checkpoint_hist') or 10))
        if free < most:
            run.notes.append(f'Checkpoints of this run may take {mib(most)} ({mib(size)} each), {existing} has '
                             f'{mib(free)} free: a lower --checkpoint-hist keeps fewer.')


def _check_process(run: Any) -> Iterator[str]:
    """Files, threads and memory without which no process of the run can work."""
    processes, memory = run.settings.nproc, 0
    if run.settings.device == 'cpu' and run.model is not None:
        weights = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
        memory = checkpoint_bytes(run) if run.settings.verb == 'train' else weights
    files = FILES_OF_A_RANK * processes if processes > 1 else 0
    yield from limits.check(processes, files, run.flag('workers') or 0, memory)


# --- loader workers ---------------------------------------------------------------------------------------------------

def _check_workers(run: Any) -> Iterator[str]:
    workers = run.flag('workers') or 0
    if run.settings.verb == 'validate':
        splits = [False]
    else:
        splits = [True, False] if run.flag('val_split') else [True]
    num_forking = sum(not _are_threads(run, is_training) for is_training in splits) if workers else 0
    yield from _check_number(run, workers, len(splits), num_forking)
    if not workers:
        return
    yield from _check_files(run, workers, workers * num_forking)
    if num_forking and run.model is not None and os.path.isdir(SHM):
        yield from _check_shm(run, workers)


def _are_threads(run: Any, is_training: bool) -> bool:
    """Whether the workers of a loader are certainly threads."""
    decoder, _ = choose_decoder(run.args, run.settings.fast_jpeg)
    args = Namespace(**{**defaults_of(run.settings.verb), **vars(run.args), 'distributed': False})
    if run.model is None or getattr(args, 'naflex_loader', False) or getattr(args, 'tf_preprocessing', False):
        return False
    config = resolve_data_config(vars(run.args), model=run.model)
    try:
        return loads_in_threads(LoaderSetup(args, config, torch.device('cpu'), decoder=decoder), is_training)
    except (AssertionError, KeyError, ValueError, IndexError):  # a check of the transforms says why
        return False


def _check_number(run: Any, workers: int, loaders: int, num_forking: int) -> Iterator[str]:
    total, cores = workers * run.settings.nproc, process.cores()
    what = describe_workers(workers, run.settings.nproc)
    limit, least = limits.most_processes(), total * num_forking * BYTES_OF_A_WORKER
    memory, allowed = psutil.virtual_memory().total, min(process.memory_limits())
    if limit is not None and total * loaders > limit:
        yield f'{what} are more than the {limit} processes that this machine allows: use fewer (-j).'
    elif total > max(MOST_WORKERS, MOST_OF_A_CORE * cores):
        yield (f'{what} are too many for {counted(cores, "core")}, which load no faster with more than one each: use '
               'fewer (-j).')
    elif least > memory:
        yield f'{what} take at least {mib(least)} of memory, this machine has {mib(memory)}: use fewer (-j).'
    elif least > allowed:
        yield f'{what} take at least {mib(least)} of memory, the container allows {mib(allowed)}: use fewer (-j).'
    elif total > max(MAX_WORKERS, 4 * cores):
        run.notes.append(f'{what} are many for {cores} cores: more than one per core does not load faster (-j).')


def _check_files(run: Any, workers: int, forked: int) -> Iterator[str]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    needed = FILES_OF_A_PROCESS + max(workers, FILES_OF_A_WORKER * forked)  # a thread has an image file open
    if soft < needed:
        yield (f'{describe_workers(max(workers, forked), 1)} need at least {needed} open files, the limit is {soft}: '
               'raise it (`ulimit -n 65536`), or use fewer workers (-j).')
    elif soft < max(ENOUGH_FILES, 2 * needed):
        run.notes.append(f'At most {soft} files can be open, which may be too few for {workers} loader workers: '
                         '`ulimit -n 65536` raises the limit.')


def _check_shm(run: Any, workers: int) -> Iterator[str]:
    if torch.multiprocessing.get_sharing_strategy() != 'file_descriptor':
        return
    channels, height, width = resolve_data_config(vars(run.args), model=run.model)['input_size']
    bytes_each = 4 if run.flag('no_prefetcher') else 1
    pixels = run.args.batch_size * height * width
    sides = run.flag('train_img_sizes') or ()
    if sides:
        images = run.flag('train_batch_sizes') or [run.args.batch_size] * len(sides)
        pixels = max(n * side ** 2 for n, side in zip(images, sides))
    batch = pixels * channels * bytes_each
    usage = shutil.disk_usage(SHM)
    waiting = batch * workers * PREFETCH * run.settings.nproc
    if usage.total < batch:
        yield (f'A batch has {mib(batch)}, the shared memory for loader workers {mib(usage.total)} ({SHM}): make it '
               f'larger (`docker run --shm-size 8g`, `mount -o remount,size=8g {SHM}`), load without worker processes '
               '(-j 0), or use a smaller batch (-b).')
    elif usage.free < waiting:
        run.notes.append(
            f'Batches of {describe_workers(workers, run.settings.nproc)} take up to '
            f'{mib(waiting)} of shared memory, {SHM} has {mib(usage.free)} free: make it larger (`docker run '
            '--shm-size 8g`), or use fewer workers (-j).')
