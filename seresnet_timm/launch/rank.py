"""One rank: sets up the process, then runs the script, from RunSettings. torchrun runs this module."""
import ctypes
import gc
import multiprocessing.util
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from seresnet_timm.engine.signals import stop_early, stop_in_calls
from seresnet_timm.errors import RunError, UsageError, first_line, keep_exit_code, print_any_text
from seresnet_timm.launch import limits, network, watch
from seresnet_timm.launch.explain import explain
from seresnet_timm.process import end_with_parent
from seresnet_timm.runs.error_file import record_error
from seresnet_timm.runs.folder import RunFolder, resume_hint
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.runs.status import final_state
from seresnet_timm.step import heartbeat


def run(settings: RunSettings, checkpoints: Optional[Mapping[str, Any]] = None) -> None:
    """Run the script in this process.

    Args:
        settings: Settings of the run.
        checkpoints: Checkpoints that this process has read, by their path.

    Raises:
        UsageError: The device refused the settings.
        RunError: Training failed, or the device did.
    """
    set_up_process(settings)
    silence_loader_workers_of_a_dead_rank()
    import torch

    from seresnet_timm.checkpoints import safe_pickle
    from seresnet_timm.data.worker_errors import end_worker_at_queue_error, raise_where_loader_waits
    from seresnet_timm.engine.loudness import loudness
    from seresnet_timm.step.profile import profiled
    end_worker_at_queue_error()
    raise_where_loader_waits()
    # loader workers put their sockets there; else each makes a folder, which stays when torch ends them by a signal
    multiprocessing.util.get_temp_dir()
    # timm reads --initial-checkpoint and --pretrained-path itself
    with profiled(settings.prof, settings.device), torch.serialization.safe_globals(safe_pickle.allowed()), \
            output_folder(settings), final_state(settings), loudness(settings.verbosity):
        try:
            _run_script(settings, checkpoints or {})
        except (RuntimeError, OSError, IndexError, MemoryError) as e:  # torch.OutOfMemoryError is a RuntimeError
            explained = explain(e, settings)
            if explained is None:
                raise
            raise RunError(explained + resume_hint(settings)) from e
        except Exception as e:
            if not type(e).__module__.startswith('wandb.'):
                raise
            raise RunError(f'--log-wandb: {first_line(e)}. WANDB_MODE=offline keeps the log on this machine.'
                           f'{resume_hint(settings)}') from e


def set_up_process(settings: RunSettings) -> None:
    """Prepare this process to compute with the settings of a run.

    Raises:
        UsageError: The device refused the settings.
    """
    set_cpu_affinity(settings)
    if settings.nnodes > 1:
        network.name_interface(os.environ)
    from seresnet_timm.step import fast
    fast.set_up(settings.device, settings.fast_step, settings.block_end)
    from seresnet_timm import models  # noqa: F401  (registers itself with timm)
    from seresnet_timm.ascend import optim  # noqa: F401  (likewise)
    from seresnet_timm.launch.checks import import_modules
    import_modules(settings.args.get('device_modules') or [])
    if settings.device == 'cpu':
        never_destroy_gloo_group()
    prepare_device(settings)


def prepare_device(settings: RunSettings) -> None:
    """Set the threads of the CPU up in this process, and torch_npu, if the device of the run is an NPU.

    Raises:
        UsageError: The chip does not compute in the precision of the run.
    """
    from seresnet_timm import device as devices
    devices.limit_threads()
    if settings.device.startswith('npu'):
        from seresnet_timm.ascend.setup import set_up
        set_up(settings.device, settings.dtypes, settings.internal_format)


@contextmanager
def output_folder(settings: RunSettings) -> Iterator[None]:
    """Keep other trainings out of the folder of a training: rank 0 does, which writes into it.

    Raises:
        UsageError: Another training writes into it, or did so and has ended since this one was planned.
    """
    if settings.verb != 'train' or int(os.environ.get('RANK', 0)):
        yield
        return
    folder = RunFolder(settings.output)
    with folder.exclusive():
        if not settings.restarts and folder.holds_another_run(settings):
            raise UsageError(f'Another training has written into {folder.path} since this one was planned: start it '
                             'again with --resume auto to go on there, or name another folder with --experiment or '
                             '--output.')
        yield


def _run_script(settings: RunSettings, checkpoints: Mapping[str, Any]) -> None:
    if not settings.script.is_bundled:
        from seresnet_timm.timm_scripts import load
        load.run(settings, before_main=resume_garbage_collection, checkpoints=checkpoints)
        return
    from timm.utils import setup_default_logging

    from seresnet_timm.engine import train, validate
    resume_garbage_collection()
    setup_default_logging()
    (train if settings.verb == 'train' else validate).main(settings, checkpoints)


def resume_garbage_collection() -> None:
    """Switch garbage collection on, for what comes after the imports; their objects stay, and are shared by forks."""
    gc.freeze()
    gc.enable()


def never_destroy_gloo_group() -> None:
    """Never let Python destroy gloo's process group: it goes with the process.

    A thread of gloo's drops the tensors of a finished collective with the group's lock held, and takes Python's lock
    for it. The group's destructor, called when Python drops the last reference to the group or to the DDP model, holds
    Python's lock and takes the group's: the two can wait for each other for ever (torch 2.13: about one run in fifty of
    two processes).
    """
    import torch.distributed as dist
    destroy = dist.destroy_process_group

    def destroy_process_group(group=None) -> None:
        if group is None and dist.is_initialized():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
        destroy(group)
    dist.destroy_process_group = destroy_process_group


def silence_loader_workers_of_a_dead_rank() -> None:
    """Let loader workers end without a traceback when this process is killed while it takes a batch from one.

    A thread of the worker hands the batch over; Python prints its error where the connection breaks.
    """
    parent, report = os.getpid(), sys.excepthook

    def excepthook(kind, value, traceback) -> None:
        if os.getpid() != parent and issubclass(kind, (ConnectionError, EOFError)):
            for _ in range(20):  # the kernel closes the connections of a dying process before it is gone
                if os.getppid() != parent:
                    return
                time.sleep(0.05)
        report(kind, value, traceback)
    sys.excepthook = excepthook


def set_cpu_affinity(settings: RunSettings) -> None:
    """Give this rank an equal share of the cores that its node's ranks may use, in order.

    The ModelZoo does so with taskset. `auto` binds on the NPU, unless torch_npu is told to do it (CPU_AFFINITY_CONF).
    """
    mode = settings.cpu_affinity
    if mode == 'auto':
        bind = settings.device.startswith('npu') and 'CPU_AFFINITY_CONF' not in os.environ
    else:
        bind = mode == 'cores'
    ranks = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    cores = sorted(os.sched_getaffinity(0))
    if not bind or ranks == 1 or len(cores) < ranks:
        return
    share, rank = len(cores) // ranks, int(os.environ['LOCAL_RANK'])
    os.sched_setaffinity(0, cores[rank * share:(rank + 1) * share])


def main() -> None:
    """A rank that torchrun started; see `_main`."""
    gc.disable()  # until everything is imported
    try:
        with stop_early(), stop_in_calls(is_told=False):
            _main()
    except KeyboardInterrupt:  # before the training; the launcher says so
        sys.exit(130)


def _main() -> None:
    """A rank: settings, heartbeats and the folder of the stacks are named on its command line."""
    end_with_parent()
    print_any_text()
    keep_exit_code()
    local_rank = int(os.environ['LOCAL_RANK'])
    watch.write_stacks_on_signal(Path(sys.argv[3]) / f'rank{local_rank}.txt')
    beats = Path(sys.argv[2])
    try:
        settings = RunSettings.read(Path(sys.argv[1]))
        heartbeat.start(beats, local_rank)
        heartbeat.keep_noting_that_python_runs()
        run(settings)
    except (UsageError, RunError) as e:
        # the launcher shows the first rank's error, once
        record_error(e, beats.parent, local_rank)
        sys.exit(e.exit_code)
    except Exception as e:
        limit = limits.explain(e)
        if limit is not None:
            record_error(RunError(limit), beats.parent, local_rank)
            sys.exit(1)
        record_error(e, beats.parent, local_rank)
        if os.environ['LOCAL_RANK'] != '0':
            raise  # into this rank's log; the launcher shows the first rank's
        sys.exit(1)


if __name__ == '__main__':
    main()
