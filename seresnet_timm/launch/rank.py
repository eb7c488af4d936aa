"""One rank: sets up the process, then runs the script's `main`. torchrun runs this module."""
import ctypes
import gc
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Optional

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step import fast as fast_step


def execute(settings: RunSettings) -> None:
    """Run the script in this process.

    Args:
        settings: Settings of the run.

    Raises:
        UsageError: The script refused its arguments.
        RunError: Training failed, or the device did.
    """
    bind_cores(settings)
    hush_orphans()
    fast_step.set_up(settings.device, settings.fast_step)
    from seresnet_timm.ascend import optim  # noqa: F401  (likewise)
    from seresnet_timm.models import seresnet as models  # noqa: F401  (registers itself with timm)
    from seresnet_timm.step.profile import profiled
    for module in settings.args.get('device_modules') or []:
        importlib.import_module(module)
    if settings.device == 'cpu':
        keep_gloo_alive()
    if settings.device.startswith('npu'):
        from seresnet_timm.ascend.setup import set_up
        set_up(settings.device, [settings.args['amp_dtype'] if settings.args['amp'] else None,
                                 settings.args.get('model_dtype')])

    import torch

    from seresnet_timm.checkpoints import safe_pickle
    # timm reads --initial-checkpoint and --pretrained-path itself
    with profiled(settings.prof, settings.device), torch.serialization.safe_globals(safe_pickle.allowed()):
        try:
            if settings.script.is_bundled:
                _run_bundled(settings)
            else:
                from seresnet_timm.timm_scripts.load import run
                run(settings, before_main=collect_no_imports)
        except RuntimeError as e:  # torch.OutOfMemoryError is one
            explained = explain(e, settings)
            if explained is None:
                raise
            raise RunError(explained + (RunFolder(settings.output).resume_hint() if settings.output else '')) from e


def explain(error: RuntimeError, settings: RunSettings) -> Optional[str]:
    """What an error of the device means and what to do; None if it is none."""
    import torch

    from seresnet_timm.ascend.errors import explain as explain_npu
    index = os.environ.get('LOCAL_RANK', '0')
    device, batch_size = settings.device, settings.args['batch_size']
    if ':' not in device and device != 'cpu':
        device = f'{device}:{index}'
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        less = max(1, batch_size // 2)
        keep = f', or -b {less} --grad-accum-steps 2 for as many images a step' if settings.verb == 'train' else ''
        figures = text.splitlines()[0].partition('If reserved')[0].rstrip('. ')  # there advice on settings begins
        return f'{device} is out of memory with -b {batch_size} ({figures}): try -b {less}{keep}.'
    return explain_npu(text, device)


def collect_no_imports() -> None:
    """Switch garbage collection on, for what comes after the imports; their objects stay, and are shared by forks."""
    gc.freeze()
    gc.enable()


def _run_bundled(settings: RunSettings) -> None:
    from timm.utils import setup_default_logging

    from seresnet_timm.engine import train, validate
    collect_no_imports()
    setup_default_logging()
    (train if settings.verb == 'train' else validate).main(settings)


def keep_gloo_alive() -> None:
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


def hush_orphans() -> None:
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


def bind_cores(settings: RunSettings) -> None:
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


def _die_with_parent() -> None:
    """Have the kernel end this rank when torchrun's agent is killed, so that none is left behind (Linux)."""
    pr_set_pdeathsig = 1
    parent = os.getppid()
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit('The launcher has ended.')


def main() -> None:
    gc.disable()  # until everything is imported
    _die_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler
    try:
        execute(RunSettings.read(Path(sys.argv[1])))
    except (UsageError, RunError) as e:
        # the launcher shows the first rank's error, once
        get_error_handler().record_exception(e)
        sys.exit(e.exit_code)
    except Exception as e:
        get_error_handler().record_exception(e)
        if os.environ['LOCAL_RANK'] != '0':
            raise  # into this rank's log; the launcher shows the first rank's
        sys.exit(1)


if __name__ == '__main__':
    main()
