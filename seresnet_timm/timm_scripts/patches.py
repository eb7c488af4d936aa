"""What is changed in the code of timm's scripts, in memory, and why: where no replaced name will do, see `overrides`

Each patch is one function on the script's syntax tree. It finds the upstream code exactly once and changes it; or finds
that upstream has fixed it and reports that; or refuses. The file on disk is never changed. `_seresnet_timm` in the
patched code is the object with the overrides of the run.

Line numbers are those of v1.0.28 (train.py 1fb02d26, validate.py 1ff87867).
"""
import ast
from typing import Callable, Dict, Tuple

from seresnet_timm.timm_scripts.syntax import expression, find_all, find_assignment, find_function, replace_once

APPLIED, FIXED = 'applied', 'not needed, fixed upstream'


# --- train.py ---------------------------------------------------------------------------------------------------------

def scale_loss_on_npu(tree: ast.Module) -> str:
    """Scale the loss of fp16 AMP on the NPU, with the scaler that suits the device and `--loss-scale`.

    Upstream (line 615): `if device.type in ('cuda',) and amp_dtype == torch.float16`, then `NativeScaler(...)`.
    Without: on an NPU small gradients underflow to zero; with torch.amp's scaler on a 910A ranks skip different steps.
    Checked by: test_runs.py, a run with `--loss-scale` whose scaler and scale are in the checkpoint.
    """
    main = find_function(tree, 'main')
    if not find_all(main, "device.type in ('cuda',)") and find_all(main, "device.type in ('cuda', 'npu')"):
        replace_once(main, "device.type in ('cuda', 'npu')", '_seresnet_timm.scales_loss(device)')
    else:
        replace_once(main, "device.type in ('cuda',)", '_seresnet_timm.scales_loss(device)')
    replace_once(main, 'NativeScaler(device=device.type)', '_seresnet_timm.create_loss_scaler(device)')
    return APPLIED


def keep_losses_on_device(tree: ast.Module) -> str:
    """Read the training loss when it is logged, not every step.

    Upstream (line 1320): `losses_m.update(loss.item() * accum_steps, batch_size)`, and `metric=losses_m.avg` for every
    step of the schedule (line 1364), which no schedule of timm reads.
    Without: the host waits for the device every step and cannot queue the next one.
    Checked by: test_runs.py counts the reads of a training epoch.
    """
    train = find_function(tree, 'train_one_epoch')
    if not find_all(train, 'loss.item()') and not find_all(
            train, 'losses_m.update(loss.item() * accum_steps, batch_size)'):
        return FIXED
    find_assignment(train, 'losses_m', 'utils.AverageMeter').value = expression('_seresnet_timm.device_meter(device)')
    replace_once(train, 'loss.item() * accum_steps', 'loss.detach() * accum_steps')
    replace_once(train, 'lr_scheduler.step_update(num_updates=num_updates, metric=losses_m.avg)',
                 'lr_scheduler.step_update(num_updates=num_updates)')
    return APPLIED


def go_on_within_epoch(tree: ast.Module) -> str:
    """Count the batches and updates of an epoch from where the run goes on.

    Upstream (lines 1210 and 1217): `num_updates = epoch * updates_per_epoch`, `enumerate(loader)`.
    Without: a run that goes on in the middle of an epoch has its end too late, and the learning rate of its beginning.
    Checked by: test_training.py, weights of resumed runs.
    """
    train = find_function(tree, 'train_one_epoch')
    replace_once(train, 'epoch * updates_per_epoch',
                 'epoch * updates_per_epoch + _seresnet_timm.batches_done // accum_steps')
    replace_once(train, 'enumerate(loader)', 'enumerate(loader, _seresnet_timm.batches_done)')
    return APPLIED


# --- validate.py ------------------------------------------------------------------------------------------------------

def fold_batch_norm(tree: ast.Module) -> str:
    """Fold BatchNorm into the convolutions, as `--fuse-bn` says.

    Upstream (line 254): `model = model.to(device=device, dtype=model_dtype)`.
    Without: an evaluation takes longer; nothing is wrong.
    Checked by: test_fuse_bn.py, equal results with and without.
    """
    replace_once(find_function(tree, 'validate'), 'model.to(device=device, dtype=model_dtype)',
                 '_seresnet_timm.fold_batch_norm(model).to(device=device, dtype=model_dtype)')
    return APPLIED


def evaluate_on_all_ranks(tree: ast.Module) -> str:
    """Add the sums of the ranks, each of which evaluates its share of the images, and read them when they are logged.

    An image that cannot be read counts as wrong, and not in the loss.

    Upstream (lines 209, 343, 364, 394-398): one process; `loss.item()`, `acc1.item()`, `acc5.item()` every batch.
    Without: every rank would print the results of its own share, and the host would wait for the device every batch.
    Checked by: test_runs.py, results of two and three processes against one.
    """
    validate = find_function(tree, 'validate')
    replace_once(validate, 'torch.device(args.device)', '_seresnet_timm.init_distributed(args)')
    for meter in ('losses', 'top1', 'top5'):
        find_assignment(validate, meter, 'AverageMeter').value = expression('_seresnet_timm.device_meter(device)')
    replace_once(validate, '(top1.avg, top5.avg)', '_seresnet_timm.means_over_ranks(top1, top5, losses)')
    replace_once(validate, 'losses.update(loss.item(), batch_size)', '_seresnet_timm.add_loss(losses, loss, target)')
    replace_once(validate, 'top1.update(acc1.item(), batch_size)', 'top1.update(acc1, batch_size)')
    replace_once(validate, 'top5.update(acc5.item(), batch_size)', 'top5.update(acc5, batch_size)')
    return APPLIED


PATCHES: Dict[str, Tuple[Callable[[ast.Module], str], ...]] = {
    'train.py': (scale_loss_on_npu, keep_losses_on_device, go_on_within_epoch),
    'validate.py': (fold_batch_norm, evaluate_on_all_ranks),
}
