"""`seresnet-timm train | validate`, in order: parse and plan, check, print, start the ranks."""
import gc
import os
import time
from dataclasses import replace
from typing import Any, Dict, Optional, Sequence

from seresnet_timm.ascend import setup as npu_setup
from seresnet_timm.errors import RunError, first_line
from seresnet_timm.launch import cluster
from seresnet_timm.launch.plan import Node, Plan, make_plan
from seresnet_timm.runs.settings import RunSettings


def run(verb: str, argv: Sequence[str], recipe_name: Optional[str] = None) -> None:
    """Plan, check and run a script.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        recipe_name: Recipe whose settings are the defaults, and whose closing lines are printed.

    Raises:
        UsageError: The command line, the machine, the data or a checkpoint is wrong; all that was found is named.
        RunError: A process failed.
    """
    gc.disable()  # imports make a million objects that stay: the rank switches it on after them
    try:
        _run(verb, argv, recipe_name)
    finally:
        gc.enable()


def _run(verb: str, argv: Sequence[str], recipe_name: Optional[str]) -> None:
    from seresnet_timm.launch import handover
    start = time.time()
    job = cluster.detect(os.environ)
    if handover.receives(job):
        npu_setup.set_environment(os.environ)
        settings = handover.receive()  # local rank 0 plans and checks, once a node
        if settings is not None:
            start_ranks(settings, Node(job=job))
        return
    with handover.give_to_other_ranks(job) as give:
        npu_notes = npu_setup.set_environment(os.environ)
        plan = make_plan(verb, argv, recipe_name)
        settings = prepare(plan, npu_notes)
        if plan.dry_run and not plan.node.is_first_of_node:
            return
        if plan.dry_run:
            print('Dry run: nothing was started.')
            return
        give(settings)
    start_ranks(settings, plan.node, plan.checkpoints)
    if recipe_name and plan.node.is_first:
        from seresnet_timm.launch import modelzoo_report
        modelzoo_report.finish(settings, time.time() - start)


def prepare(plan: Plan, npu_notes: Sequence[str]) -> RunSettings:
    """Pull what the run needs, check everything, print the plan; the final settings."""
    settings = plan.settings
    if settings.device.startswith('npu'):
        settings = replace(settings, notes=settings.notes + list(npu_notes))
    from seresnet_timm.launch import checks, describe
    settings = pull_model(settings, plan.dry_run)
    changes = []
    if not settings.script.is_bundled:
        from seresnet_timm.timm_scripts.load import check as check_script
        changes = check_script(settings.script)
    if plan.node.is_first_of_node:
        notes = checks.check(settings, plan.dry_run, plan.problems, plan.checkpoints)
        settings = replace(settings, notes=settings.notes + notes)
    settings = replace(settings, reasons={**settings.reasons, **describe.choices(settings)})
    if plan.node.is_first or plan.dry_run and plan.node.is_first_of_node:
        describe.print_plan(settings, plan.node, changes)
    if not plan.dry_run and settings.args.get('pretrained') and plan.node.is_first_of_node:
        download_pretrained(settings)
    return settings


def pull_model(settings: RunSettings, dry_run: bool) -> RunSettings:
    """Pull a model of the Hub, once a node; only its configuration in a dry run."""
    name = settings.args['model']
    if not name.startswith('hf-hub:'):
        return settings
    from seresnet_timm.hub.pull import pull
    pulled = pull(name.partition(':')[2], with_weights=bool(settings.args.get('pretrained')) and not dry_run)
    return replace(settings, model_folder=str(pulled.folder), model_commit=pulled.commit)


def download_pretrained(settings: RunSettings) -> None:
    """Get pretrained weights into the cache once, before the ranks start: they load them from there.

    Raises:
        RunError: The weights cannot be downloaded.
    """
    if settings.model_folder or settings.args.get('pretrained_path') or settings.args.get('checkpoint'):
        return
    from seresnet_timm.models.create import create_model
    try:
        create_model(settings.args['model'], pretrained=True)
    except Exception as e:  # HTTP clients and the file system have their own
        raise RunError(f'The pretrained weights of {settings.args["model"]} cannot be loaded ({first_line(e)}): check '
                       'the connection, or name a file with --pretrained-path.') from e
    if not settings.args.get('dataset'):  # which may be on the Hub too
        os.environ['HF_HUB_OFFLINE'] = '1'  # what the ranks need is in the cache


def start_ranks(settings: RunSettings, node: Node, checkpoints: Optional[Dict[str, Any]] = None) -> None:
    """From settings to running ranks: in this process, or by torchrun for several.

    Args:
        settings: Settings of the run.
        node: This node's part.
        checkpoints: Checkpoints that this process has read, by their path.

    Raises:
        UsageError: A rank refused its settings.
        RunError: A rank failed.
    """
    if node.is_rank or settings.world_size == 1:
        from seresnet_timm.launch import rank
        if not node.is_rank:
            cluster.forget(os.environ)  # one process, whatever a scheduler's variables say
        elif node.job.rank_env:
            os.environ.update(node.job.rank_env)
        rank.run(settings, checkpoints)
    else:
        from seresnet_timm.launch import processes
        gc.enable()
        if checkpoints:
            checkpoints.clear()  # the ranks read them themselves
        processes.run(settings, node)
