"""What is changed in timm's scripts, in memory, and why

Each patch is one function on the script's syntax tree. It finds the upstream code exactly once and changes it; or finds
that upstream has fixed it and says so; or refuses. The file on disk is never touched. `_seresnet_timm` in the patched
code is the module `script_helpers`.

Line numbers are those of v1.0.28 (train.py 1fb02d26, validate.py 1ff87867).
"""
import ast
from typing import Callable, Dict, List, Optional, Tuple

APPLIED, FIXED = 'applied', 'not needed, fixed upstream'


class PatchMismatch(Exception):
    """The script is neither as the patch expects it nor fixed upstream: what was looked for, and how often found."""


# --- looking for code -------------------------------------------------------------------------------------------------

def _same(a: ast.AST, b: ast.AST) -> bool:
    return type(a) is type(b) and ast.dump(a) == ast.dump(b)  # to dump every node takes a second


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode='eval').body


def _find(scope: ast.AST, source: str) -> List[ast.AST]:
    """Every place in `scope` where the expression `source` stands."""
    wanted = _expression(source)
    return [node for node in ast.walk(scope) if _same(node, wanted)]


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    if len(found) != 1:
        raise PatchMismatch(f'{len(found)} functions named {name}, expected 1')
    return found[0]


class _Replace(ast.NodeTransformer):
    def __init__(self, old: str, new: str):
        self._old, self._new = _expression(old), new

    def visit(self, node: ast.AST) -> ast.AST:
        if _same(node, self._old):
            return ast.copy_location(_expression(self._new), node)
        return super().generic_visit(node)


def _replace_once(scope: ast.AST, old: str, new: str) -> None:
    count = len(_find(scope, old))
    if count != 1:
        raise PatchMismatch(f'{count} x `{old}`, expected 1')
    _Replace(old, new).visit(scope)


def _assignment(scope: ast.AST, target: str, function: str) -> ast.Assign:
    """The one assignment `target = function(...)`."""
    found = [
        n for n in ast.walk(scope)
        if isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name)
        and n.targets[0].id == target and isinstance(n.value, ast.Call) and ast.unparse(n.value.func) == function
    ]
    if len(found) != 1:
        raise PatchMismatch(f'{len(found)} x `{target} = {function}(...)`, expected 1')
    return found[0]


def _wrap(call: ast.Call, function: str, *arguments: str) -> ast.Call:
    """`function(call, *arguments)`."""
    args = [call, *(_expression(a) for a in arguments)]
    return ast.copy_location(ast.Call(_expression(function), args, []), call)


# --- train.py ---------------------------------------------------------------------------------------------------------

def scale_loss_on_npu(tree: ast.Module) -> str:
    """Scale the loss of fp16 AMP on the NPU, with the scaler that suits the device and `--loss-scale`.

    Upstream (line 615): `if device.type in ('cuda',) and amp_dtype == torch.float16`, then `NativeScaler(...)`.
    Without: on an NPU small gradients underflow to zero; with torch.amp's scaler on a 910A ranks skip different steps.
    Checked by: test_timm_patches.py, a run with `--loss-scale` whose scaler and scale are in the checkpoint.
    """
    main = _function(tree, 'main')
    if not _find(main, "device.type in ('cuda',)") and _find(main, "device.type in ('cuda', 'npu')"):
        _replace_once(main, "device.type in ('cuda', 'npu')", '_seresnet_timm.scales_loss(device)')
    else:
        _replace_once(main, "device.type in ('cuda',)", '_seresnet_timm.scales_loss(device)')
    _replace_once(main, 'NativeScaler(device=device.type)', '_seresnet_timm.create_loss_scaler(device)')
    return APPLIED


def offer_half_weights(tree: ast.Module) -> str:
    """Let `--amp-level O2` train with fp16 weights and float32 masters.

    Upstream (lines 519 and 972): `model = create_model(...)`, `task.prepare_distributed(...)`.
    Without: O1 (autocast) only.
    Checked by: test_half_weights.py runs both scripts with it.
    """
    main = _function(tree, 'main')
    assign = _assignment(main, 'model', 'create_model')
    assign.value = _wrap(assign.value, '_seresnet_timm.prepare_model')
    calls = [n for n in ast.walk(main) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
             and ast.unparse(n.value.func) == 'task.prepare_distributed']
    if len(calls) != 1:
        raise PatchMismatch(f'{len(calls)} x `task.prepare_distributed(...)`, expected 1')
    calls[0].value = _wrap(calls[0].value, '_seresnet_timm.prepare_ddp')
    return APPLIED


def keep_losses_on_device(tree: ast.Module) -> str:
    """Read the training loss when it is logged, not every step.

    Upstream (line 1320): `losses_m.update(loss.item() * accum_steps, batch_size)`, and `metric=losses_m.avg` for every
    step of the schedule (line 1364), which no schedule of timm's reads.
    Without: the host waits for the device every step and cannot queue the next one.
    Checked by: test_timm_patches.py counts the reads of a training epoch.
    """
    train = _function(tree, 'train_one_epoch')
    if not _find(train, 'loss.item()') and not _find(train, 'losses_m.update(loss.item() * accum_steps, batch_size)'):
        return FIXED
    _assignment(train, 'losses_m', 'utils.AverageMeter').value = _expression('_seresnet_timm.DeviceMeter(device)')
    _replace_once(train, 'loss.item() * accum_steps', 'loss.detach() * accum_steps')
    _replace_once(train, 'lr_scheduler.step_update(num_updates=num_updates, metric=losses_m.avg)',
                  'lr_scheduler.step_update(num_updates=num_updates)')
    return APPLIED


def evaluate_exactly(tree: ast.Module) -> str:
    """Evaluate with the package's loop: every image once on any number of ranks, no wait for the device per batch.

    Upstream (lines 1382-1469): `validate` reads loss and accuracies every batch (line 1447), averages the ranks'
    averages and counts the images that pad uneven ranks twice (line 1434).
    Without: top-1 depends on the number of processes.
    Checked by: test_timm_patches.py, evaluation of two processes against one.
    """
    validate = _function(tree, 'validate')
    names = [a.arg for a in validate.args.args]
    expected = ['model', 'loader', 'loss_fn', 'args', 'device', 'amp_autocast', 'model_dtype', 'log_suffix']
    if names != expected:
        raise PatchMismatch(f'validate({", ".join(names)}), expected validate({", ".join(expected)})')
    call = '_seresnet_timm.validate(model, loader, args, device, amp_autocast, model_dtype, log_suffix, _logger)'
    validate.body = [ast.copy_location(ast.Return(_expression(call)), validate.body[0])]
    return APPLIED


def allow_ddp_on_cpu(tree: ast.Module) -> str:
    """Give DDP no device ids on the CPU.

    Upstream (line 972): `task.prepare_distributed(device_ids=[device], ...)`.
    Without: `--device cpu` on several processes ends with a ValueError of DDP's.
    Checked by: test_timm_patches.py, a run of two processes.
    """
    main = _function(tree, 'main')
    calls = [n for n in ast.walk(main) if isinstance(n, ast.Call)
             and ast.unparse(n.func) == 'task.prepare_distributed']
    if len(calls) != 1:
        raise PatchMismatch(f'{len(calls)} x `task.prepare_distributed(...)`, expected 1')
    ids = next((k for k in calls[0].keywords if k.arg == 'device_ids'), None)
    if ids is None or not _same(ids.value, _expression('[device]')):
        return FIXED
    ids.value = _expression("None if device.type == 'cpu' else [device]")
    return APPLIED


def set_up_fast_step(tree: ast.Module) -> str:
    """Use torch's fused optimizers, and gradients as views of DDP's buckets, where `fast_step` says so.

    Upstream (lines 916 and 972): `create_optimizer_v2(...)`, `task.prepare_distributed(...)`.
    Without: the step is slower; nothing is wrong.
    Checked by: test_fast_step.py, the optimizer of timm's script.
    """
    main = _function(tree, 'main')
    _assignment(main, 'optimizer', 'create_optimizer_v2').value.func = _expression('_seresnet_timm.create_optimizer')
    call = next(n for n in ast.walk(main) if isinstance(n, ast.Call)
                and ast.unparse(n.func) == 'task.prepare_distributed')
    call.keywords.append(ast.keyword(arg=None, value=_expression('_seresnet_timm.ddp_arguments(device)')))
    return APPLIED


def seed_shuffle(tree: ast.Module) -> str:
    """Let the shuffle of several processes depend on `--seed`.

    Upstream (line 788): `loader_train = create_loader(...)`, whose DistributedSampler keeps its seed of 0.
    Without: runs of different seeds see the images in the same order.
    Checked by: test_timm_patches.py, equal losses with the bundled script on two processes.
    """
    assign = _assignment(_function(tree, 'main'), 'loader_train', 'create_loader')
    assign.value = _wrap(assign.value, '_seresnet_timm.seed_sampler', 'args.seed')
    return APPLIED


def decode_fast(tree: ast.Module) -> str:
    """Decode of a JPEG only what its crop needs, with randomness by (seed, epoch, index), as `--fast-jpeg` says.

    Upstream (lines 788 and 823): `create_loader(dataset_train, ...)`, `create_loader(dataset_eval, ...)`.
    Without: timm's loading: two to three times the time for an image, and a resumed run augments differently.
    Checked by: test_fast_jpeg.py, equal losses with the bundled script.
    """
    main = _function(tree, 'main')
    train = _assignment(main, 'loader_train', '_seresnet_timm.seed_sampler')
    evaluate = _assignment(main, 'loader_eval', 'create_loader')
    for call, is_training in ((train.value.args[0], True), (evaluate.value, False)):
        if not call.args:
            raise PatchMismatch('`create_loader` is called without a first argument')
        call.args[0] = _wrap(call.args[0], '_seresnet_timm.fast_dataset', 'args', repr(is_training))
    for assign in (train, evaluate):
        assign.value = _wrap(assign.value, '_seresnet_timm.finish_loader', 'args')
    return APPLIED


def start_workers_early(tree: ast.Module) -> str:
    """Start the loaders' workers before the first collective, on several processes.

    Upstream (lines 788 and 823): `loader_train = create_loader(...)`, `loader_eval = create_loader(...)`, whose workers
    are forked at their first pass, right after a collective.
    Without: about once in a hundred runs on gloo a worker deadlocks at the fork, see `loaders.start_workers`.
    Checked by: test_timm_patches.py, equal losses with the bundled script on two processes with workers.
    """
    main = _function(tree, 'main')
    train = _assignment(main, 'loader_train', '_seresnet_timm.finish_loader')
    train.value = _wrap(train.value, '_seresnet_timm.start_train_workers', 'args')
    evaluate = _assignment(main, 'loader_eval', '_seresnet_timm.finish_loader')
    evaluate.value = _wrap(evaluate.value, '_seresnet_timm.start_eval_workers', 'args')
    return APPLIED


def save_atomically(tree: ast.Module) -> str:
    """Save checkpoints so that a crash leaves the old one or the new one.

    Upstream (line 994): `saver = utils.CheckpointSaver(...)`, which unlinks before it renames and does not flush.
    Without: a crash or a full disk while saving can lose `last` and `model_best`.
    Checked by: test_checkpoints.py kills a saving process; test_timm_patches.py finds the run state in a checkpoint.
    """
    assign = _assignment(_function(tree, 'main'), 'saver', 'utils.CheckpointSaver')
    assign.value.func = _expression('_seresnet_timm.AtomicCheckpointSaver')
    return APPLIED


def continue_history(tree: ast.Module) -> str:
    """Keep best metric, checkpoint history and one CSV header when a run resumes into its own folder.

    Upstream (lines 994 and 1131): the saver starts without history, and `write_header=best_metric is None`.
    Without: `model_best` is overwritten by a worse one, and summary.csv gets a second header.
    Checked by: test_timm_patches.py resumes a run.
    """
    main = _function(tree, 'main')
    if any(isinstance(n, ast.Attribute) and n.attr == 'load_state_dict_from_checkpoint' for n in ast.walk(main)):
        return FIXED
    assign = _assignment(main, 'saver', '_seresnet_timm.AtomicCheckpointSaver')
    assign.value = _wrap(assign.value, '_seresnet_timm.continue_run', 'args', 'output_dir')
    calls = [n for n in ast.walk(main) if isinstance(n, ast.Call) and ast.unparse(n.func) == 'utils.update_summary']
    if len(calls) != 1:
        raise PatchMismatch(f'{len(calls)} x `utils.update_summary(...)`, expected 1')
    calls[0].keywords = [k for k in calls[0].keywords if k.arg != 'write_header']
    return APPLIED


def record_epochs(tree: ast.Module) -> str:
    """Measure images/s by the reference's definition and write `run.json`, as the bundled script does.

    Upstream (line 1183): `def train_one_epoch(epoch, model, loader, optimizer, args, ...)`.
    Without: no FPS for the results table and the final lines.
    Checked by: test_recipes.py reads them.
    """
    train = _function(tree, 'train_one_epoch')
    names = [a.arg for a in train.args.args][:5]
    if names != ['epoch', 'model', 'loader', 'optimizer', 'args']:
        raise PatchMismatch(f'train_one_epoch({", ".join(names)}, ...)')
    train.decorator_list.append(_expression('_seresnet_timm.record_epoch'))
    return APPLIED


# --- validate.py ------------------------------------------------------------------------------------------------------

def load_any_checkpoint(tree: ast.Module) -> str:
    """Load ModelZoo and torchvision-style checkpoints into the SE-ResNets.

    Upstream (line 256): `load_checkpoint(model, args.checkpoint, args.use_ema)`, which knows timm's names only.
    Without: the weights that ModelZoo users have cannot be evaluated.
    Checked by: test_timm_patches.py evaluates one.
    """
    _replace_once(_function(tree, 'validate'), 'load_checkpoint(model, args.checkpoint, args.use_ema)',
                  '_seresnet_timm.load_checkpoint(model, args)')
    return APPLIED


def fold_batch_norm(tree: ast.Module) -> str:
    """Fold BatchNorm into the convolutions, as `--fuse-bn` says.

    Upstream (line 254): `model = model.to(device=device, dtype=model_dtype)`.
    Without: an evaluation takes longer; nothing is wrong.
    Checked by: test_fuse_bn.py, equal results with and without.
    """
    _replace_once(_function(tree, 'validate'), 'model.to(device=device, dtype=model_dtype)',
                  '_seresnet_timm.prepare_eval_model(model, args, device).to(device=device, dtype=model_dtype)')
    return APPLIED


def evaluate_on_all_ranks(tree: ast.Module) -> str:
    """Share the images among the ranks, each one once, add the ranks' sums, and read them when they are logged.

    Upstream (lines 209, 343, 364, 394-398, 430): one process; `loss.item()`, `acc1.item()`, `acc5.item()` every batch.
    Without: every rank would evaluate all images, and the host would wait for the device every batch.
    Checked by: test_timm_patches.py, results of two and three processes against one.
    """
    validate = _function(tree, 'validate')
    _replace_once(validate, 'torch.device(args.device)', '_seresnet_timm.init_distributed(args)')
    loader = _assignment(validate, 'loader', 'create_loader').value
    if not loader.args or not _same(loader.args[0], _expression('dataset')):
        raise PatchMismatch('`loader = create_loader(dataset, ...)` has another first argument')
    loader.args[0] = _expression('_seresnet_timm.share_of_rank(dataset, args)')
    for meter in ('losses', 'top1', 'top5'):
        _assignment(validate, meter, 'AverageMeter').value = _expression('_seresnet_timm.DeviceMeter(device)')
    _replace_once(validate, '(top1.avg, top5.avg)', '_seresnet_timm.means_over_ranks(top1, top5, losses)')
    _replace_once(validate, 'losses.update(loss.item(), batch_size)', 'losses.update(loss.detach(), batch_size)')
    _replace_once(validate, 'top1.update(acc1.item(), batch_size)', 'top1.update(acc1, batch_size)')
    _replace_once(validate, 'top5.update(acc5.item(), batch_size)', 'top5.update(acc5, batch_size)')
    _function(tree, 'write_results').decorator_list.append(_expression('_seresnet_timm.primary_only'))
    return APPLIED


def decode_fast_to_evaluate(tree: ast.Module) -> str:
    """Decode of a JPEG only what its crop needs, as `--fast-jpeg` says.

    Upstream (line 329): `loader = create_loader(dataset, ...)`.
    Without: timm's loading: three times the time for an image.
    Checked by: test_fast_jpeg.py, equal results with the bundled script.
    """
    validate = _function(tree, 'validate')
    assign = _assignment(validate, 'loader', 'create_loader')
    _replace_once(assign.value.args[0], 'dataset', '_seresnet_timm.fast_dataset(dataset, args, False)')
    assign.value = _wrap(assign.value, '_seresnet_timm.finish_loader', 'args')
    return APPLIED


PATCHES: Dict[str, Tuple[Callable[[ast.Module], str], ...]] = {
    'train.py': (
        scale_loss_on_npu, offer_half_weights, keep_losses_on_device, evaluate_exactly, allow_ddp_on_cpu,
        set_up_fast_step, seed_shuffle, decode_fast, start_workers_early, save_atomically, continue_history,
        record_epochs,
    ),
    'validate.py': (load_any_checkpoint, fold_batch_norm, evaluate_on_all_ranks, decode_fast_to_evaluate),
}


def apply_patches(name: str, tree: ast.Module) -> Tuple[List[Tuple[str, str]], Optional[str]]:
    """Apply the patches of a script to its tree.

    Args:
        name: 'train.py' or 'validate.py'.
        tree: The script, changed in place.

    Returns:
        What became of each patch as (patch, outcome), and the first mismatch as a sentence, None if there is none.
    """
    outcomes = []
    for patch in PATCHES[name]:
        try:
            outcomes.append((patch.__name__, patch(tree)))
        except PatchMismatch as e:
            return outcomes, f'patch {patch.__name__} does not match ({e})'
    ast.fix_missing_locations(tree)
    return outcomes, None
