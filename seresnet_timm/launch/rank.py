"""One rank: sets up the process, then runs the script's `main`. torchrun runs this module."""
import ctypes
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional

from seresnet_timm.errors import RunError, UsageError, way_on
from seresnet_timm.step import fast as fast_step


def job_of(plan) -> Dict[str, Any]:
    """What a rank needs to know of the plan, as JSON values."""
    from seresnet_timm.launch.plan import as_record
    script = plan.script
    return {
        'verb': plan.verb,
        'script': {'name': script.name, 'path': script.path, 'reason': script.reason,
                   'sha256': script.sha256, 'tag': script.tag},
        'argv': plan.script_argv,
        'args': vars(plan.args),
        'device': plan.device,
        'loss_scale': plan.opts.loss_scale,
        'half_weights': plan.opts.amp_level == 'O2' and plan.verb == 'train',
        'fast_step': plan.opts.fast_step == 'auto',
        'fuse_bn': plan.opts.fuse_bn,
        'cpu_affinity': plan.opts.cpu_affinity,
        'prof': plan.opts.prof,
        'fast_jpeg': plan.opts.fast_jpeg,
        'plan': as_record(plan),
        'record': plan.record,
        'batch_size': plan.args.batch_size,
        'dtypes': [plan.args.amp_dtype if plan.args.amp else None, plan.args.model_dtype],
        'output_dir': None if plan.output_dir is None else str(plan.output_dir),
    }


def execute(job: Dict[str, Any]) -> None:
    """Run the script in this process.

    Args:
        job: As from `job_of`.

    Raises:
        UsageError: The script refused its arguments.
        RunError: Training failed, or the device did.
    """
    bind_cores(job)
    hush_orphans()
    fast_step.set_up(job['device'], job['fast_step'])
    from seresnet_timm.ascend import optim  # noqa: F401  (likewise)
    from seresnet_timm.models import seresnet as models  # noqa: F401  (registers itself with timm)
    from seresnet_timm.step.profile import profiled
    if job['device'] == 'cpu':
        keep_gloo_alive()
    if job['device'].startswith('npu'):
        from seresnet_timm.ascend.setup import set_up
        set_up(job['device'], job['dtypes'])

    import torch

    from seresnet_timm.checkpoints import safe_pickle
    # timm reads --initial-checkpoint and --pretrained-path itself
    with profiled(job['prof'], job['device']), torch.serialization.safe_globals(safe_pickle.allowed()):
        try:
            if job['script']['path'] is None:
                _run_bundled(job)
            else:
                _run_timms(job)
        except RuntimeError as e:  # torch.OutOfMemoryError is one
            explained = explain(e, job)
            if explained is None:
                raise
            raise RunError(explained + way_on(job['output_dir'])) from e


def explain(error: RuntimeError, job: Dict[str, Any]) -> Optional[str]:
    """What an error of the device means and what to do; None if it is none."""
    import torch

    from seresnet_timm.ascend.errors import explain as explain_npu
    index = os.environ.get('LOCAL_RANK', '0')
    device = job['device'] if ':' in job['device'] or job['device'] == 'cpu' else f'{job["device"]}:{index}'
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        less = max(1, job['batch_size'] // 2)
        keep = f', or -b {less} --grad-accum-steps 2 for as many images a step' if job['verb'] == 'train' else ''
        figures = text.splitlines()[0].partition('If reserved')[0].rstrip('. ')  # there advice on settings begins
        return f'{device} is out of memory with -b {job["batch_size"]} ({figures}): try -b {less}{keep}.'
    return explain_npu(text, device)


def collect_no_imports() -> None:
    """Switch garbage collection on, for what comes after the imports; their objects stay, and are shared by forks."""
    gc.freeze()
    gc.enable()


def _run_bundled(job: Dict[str, Any]) -> None:
    from timm.utils import setup_default_logging

    from seresnet_timm.engine import train, validate
    collect_no_imports()
    setup_default_logging()
    if job['verb'] == 'train':
        train.main(
            job['argv'], plan=job['plan'], loss_scale=job['loss_scale'], half_weights=job['half_weights'],
            fast_jpeg=job['fast_jpeg'])
    else:
        validate.main(
            job['argv'], print_decisions=False, record=job['record'], fast_jpeg=job['fast_jpeg'],
            fuse_bn=job['fuse_bn'])


def _run_timms(job: Dict[str, Any]) -> None:
    from seresnet_timm.runs.settings import RunSettings, Script
    from seresnet_timm.timm_scripts.load import run

    script = Script(**job['script'])
    output = job['output_dir'] if job['verb'] == 'train' else job['record'] and str(Path(job['record']).parent)
    run(RunSettings(
        verb=job['verb'], script=script, args=job['args'], device=job['device'], loss_scale=job['loss_scale'],
        amp_level='O2' if job['half_weights'] else None, fast_jpeg=job['fast_jpeg'], fast_step=job['fast_step'],
        fuse_bn=job['fuse_bn'], output=output), before_main=collect_no_imports)


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


def bind_cores(job: Dict[str, Any]) -> None:
    """Give this rank an equal share of the cores that its node's ranks may use, in order.

    The ModelZoo does so with taskset. `auto` binds on the NPU, unless torch_npu is told to do it (CPU_AFFINITY_CONF).
    """
    mode = job['cpu_affinity']
    if mode == 'auto':
        bind = job['device'].startswith('npu') and 'CPU_AFFINITY_CONF' not in os.environ
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
    with open(sys.argv[1]) as f:
        job = json.load(f)
    try:
        execute(job)
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
