"""`seresnet-timm train | validate`: the plan, the checks that cost nothing, then the processes."""
import gc
import os
import sys
import time
from pathlib import Path
from typing import Optional, Sequence

from seresnet_timm.ascend import setup as npu_setup
from seresnet_timm.launch import cluster
from seresnet_timm.launch import flags as options
from seresnet_timm.launch import plan as planning


def run(verb: str, argv: Sequence[str], recipe_name: Optional[str] = None) -> None:
    """Check, plan and run a script.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        recipe_name: Recipe whose settings are the defaults, and whose closing lines are printed.

    Raises:
        UsageError: The command line, the machine, the data or a checkpoint is wrong; all that was found is named.
        RunError: A process failed.
    """
    if any(a in ('-h', '--help') for a in argv):
        print_help(verb, recipe_name)
        return
    gc.disable()  # imports make a million objects that stay: the worker switches it on after them
    try:
        _run(verb, argv, recipe_name)
    finally:
        gc.enable()


def _run(verb: str, argv: Sequence[str], recipe_name: Optional[str]) -> None:
    start = time.time()
    npu_notes = npu_setup.set_environment(os.environ)
    plan = planning.make_plan(verb, argv, recipe_name)
    if plan.device.startswith('npu'):
        plan.notes += npu_notes

    # from here on torch and timm are needed; what could be refused without them has been
    from seresnet_timm.launch import checks as preflight
    from seresnet_timm.launch import processes
    from seresnet_timm.launch import rank as worker
    if plan.rank('LOCAL_RANK') == 0:  # once a node
        preflight.check(plan.verb, plan.args, bundled=plan.script.path is None)
    if plan.rank('RANK') == 0 and (plan.node_rank == 0 or plan.opts.dry_run):
        print_plan(plan)
    if plan.opts.dry_run:
        print('Dry run: nothing was started.')
        return

    if plan.recipe and plan.verb == 'validate' and plan.rank('RANK') == 0 and plan.node_rank == 0:
        folder = Path('output/validate') / time.strftime(f'%Y%m%d-%H%M%S-{os.getpid()}')
        folder.mkdir(parents=True, exist_ok=True)
        plan.record = str(folder)
    if plan.is_rank or plan.world_size == 1:
        if not plan.is_rank:
            cluster.forget(os.environ)  # one process, whatever a scheduler's variables say
        os.environ.update((plan.job.rank_env or {}) if plan.job else {})
        worker.execute(planning.settings_of(plan))
    else:
        gc.enable()
        processes.run(plan)
    if plan.recipe and plan.rank('RANK') == 0 and plan.node_rank == 0:
        finish_recipe(plan, time.time() - start)


def print_help(verb: str, recipe_name: Optional[str]) -> None:
    parser = planning.bundled_parser(verb, f'bash recipes/{recipe_name}.sh' if recipe_name else f'seresnet-timm {verb}')
    options.add_launcher_help(parser)
    parser.print_help()


def print_plan(plan: planning.Plan) -> None:
    """Print every decision once, with its reason, before anything starts."""
    print(f'Plan: {plan.verb} {plan.args.model}', file=sys.stderr)
    for label, text in planning.describe(plan):
        print(f'  {label:<14} {text}', file=sys.stderr)
    for note in plan.notes:
        print(f'  note           {note}', file=sys.stderr)
    sys.stderr.flush()


def finish_recipe(plan: planning.Plan, seconds: float) -> None:
    """Print the ModelZoo's closing lines and write its log."""
    from seresnet_timm.launch import recipes as recipe
    if plan.verb == 'train':
        folder = plan.output_dir
        result = recipe.train_result(folder, seconds)
    else:
        folder = Path(plan.record)
        result = recipe.eval_result(plan.record, seconds)
    print('\n'.join(recipe.final_lines(result)))
    log = recipe.write_log(folder, plan.world_size, plan.images_a_step, result)
    print(f'Log: {log}', file=sys.stderr)
