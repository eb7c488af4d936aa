"""`seresnet-timm train | validate`, in order: parse and plan, check, print, start the ranks."""
import gc
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

from seresnet_timm.ascend import setup as npu_setup
from seresnet_timm.engine.signals import stop_in_calls
from seresnet_timm.errors import UsageError, refuse, reworded
from seresnet_timm.launch import cluster
from seresnet_timm.launch.outputs import name_outputs_of_hub
from seresnet_timm.launch.parse import typed_before_the_plan
from seresnet_timm.launch.plan import Node, Plan, make_plan
from seresnet_timm.launch.waiting import wait_for_ranks
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.settings import RunSettings


def run(verb: str, argv: Sequence[str], recipe_name: Optional[str] = None) -> None:
    """Plan, check and run a script.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        recipe_name: Recipe whose settings are the defaults, and whose closing lines are printed.

    Raises:
        UsageError: The command line, the machine, the data or a checkpoint is wrong; all that was found is named.
        RunError: A process failed, or what the run needs cannot be downloaded.
    """
    gc.disable()  # imports make a million objects that stay: the rank switches it on after them
    try:
        with stop_in_calls():
            _run(verb, argv, recipe_name)
    finally:
        gc.enable()


def _run(verb: str, argv: Sequence[str], recipe_name: Optional[str]) -> None:
    from seresnet_timm.launch import handover
    start = time.time()
    typed = typed_before_the_plan(argv)
    try:
        job = cluster.detect(os.environ, cluster.Asked(typed['nproc'], typed['nnodes']))
    except UsageError:
        make_plan(verb, argv, recipe_name)  # tells it with all other mistakes
        raise
    seconds = typed['rdzv_timeout'] or Node.rdzv_timeout
    if job is not None and job.why_not_needed:
        print(job.why_not_needed, file=sys.stderr)
        return
    if handover.receives(job):
        npu_setup.set_environment(os.environ)
        node = Node(job=job, rdzv_timeout=seconds)
        settings = handover.receive(node.rdzv_timeout)  # local rank 0 plans and checks, once per node
        if settings is not None:
            start_ranks(settings, node)
        return
    with ExitStack() as stack:
        with handover.give_to_other_ranks(job, seconds) as (give, tell_of_download):
            user = dict(os.environ)
            npu_notes = npu_setup.set_environment(os.environ)
            plan = make_plan(verb, argv, recipe_name)
            settings = prepare(plan, npu_notes, stack, user, tell_of_download)
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


def prepare(
        plan: Plan,
        npu_notes: Sequence[str],
        stack: ExitStack,
        user: Mapping[str, str],
        before_download: Callable[[], None] = lambda: None,
) -> RunSettings:
    """Pull what the run needs, check everything, print the plan; the final settings.

    Args:
        plan: The plan.
        npu_notes: What was set in the environment for the NPU.
        stack: Takes what is kept until the run has ended.
        user: The environment as the user set it.
        before_download: Called before something is downloaded.
    """
    settings = plan.settings
    if settings.device.startswith('npu'):
        settings = replace(settings, notes=settings.notes + list(npu_notes))
    from seresnet_timm.launch import checks, describe, downloads, hccl, trackers
    settings, hccl_problems = hccl.prepare(settings, plan.node, user, stack)
    if downloads.needs_the_hub(settings):  # nothing is pulled for a run that is refused
        refuse(plan.problems)
    settings, other_classes = name_outputs_of_hub(downloads.pull_model(settings, plan, stack, before_download))
    settings = downloads.pull_teacher(settings, plan, stack, before_download)
    changes = []
    if not settings.script.is_bundled:
        from seresnet_timm.timm_scripts.load import check as check_script
        changes = check_script(settings.script)
    if plan.node.is_first_of_node:
        problems = plan.problems + other_classes + hccl_problems
        if settings.verb == 'train' and plan.node.is_first:  # on other nodes rank 0 of this run may hold it already
            problems += filter(None, [RunFolder(settings.output).why_busy()])
        if plan.node.is_first:
            problems += trackers.check_trackers(settings)
        with reworded(plan.as_typed):
            notes = checks.check(settings, plan.dry_run, problems, plan.checkpoints)
        settings = replace(settings, notes=settings.notes + notes)
    settings = replace(settings, reasons={**settings.reasons, **describe.choices(settings)})
    if plan.node.is_first or plan.dry_run and plan.node.is_first_of_node:
        describe.print_plan(settings, plan.node, changes, is_quiet=settings.verbosity < 0 and not plan.dry_run)
    if not plan.dry_run and plan.node.is_first_of_node:
        stack.enter_context(downloads.downloaded(settings, before_download))
    return settings


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
        from seresnet_timm.launch import rank, watch
        if not node.is_rank:
            cluster.forget(os.environ)  # one process, whatever a scheduler's variables say
        else:
            os.environ.update(node.job.rank_env or {})
        store = wait_for_ranks(node.job, node.rdzv_timeout) if node.is_rank else None
        with watch.watch_this_process(settings):
            rank.run(settings, checkpoints)
        del store  # of rank 0: the other ranks need it until here
    else:
        from seresnet_timm.launch import processes
        gc.freeze()  # else the end of this process, after a signal too, takes seconds
        gc.enable()
        if checkpoints:
            checkpoints.clear()  # the ranks read them themselves
        processes.run(settings, node)
