"""Whether a run can continue from a checkpoint: what its optimizer, epoch and average say against the run's flags"""
from typing import Any, Dict, Iterator, List, Optional

import torch

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.run_state import what_is_wrong
from seresnet_timm.errors import printable
from seresnet_timm.models.create import not_finite

# entries of a parameter group that do not tell which optimizer it is
COMMON = frozenset("""
    params param_names lr initial_lr lr_scale weight_decay foreach fused maximize capturable differentiable
    decoupled_weight_decay amsgrad
""".split())
# flags that decide how weights are put into groups
GROUPING = ('opt', 'weight_decay', 'layer_decay', 'layer_decay_min_scale', 'layer_decay_no_opt_scale',
            'kd_distill_type', 'kd_model_name')
INSTEAD = 'start from its weights with --initial-checkpoint, or continue without its optimizer with --no-resume-opt'


def _flag(args: Any, name: str) -> Any:
    """Value of a flag; None where the script has no such flag."""
    return getattr(args, name, None)


def problems(checkpoint: Checkpoint, args: Any, optimizer: Optional[torch.optim.Optimizer]) -> Iterator[str]:
    """Why a run cannot resume from a checkpoint, each a sentence.

    Args:
        checkpoint: As from `read_checkpoint`.
        args: Flags of train.py.
        optimizer: The optimizer that the run would have; None if it is not known.
    """
    path, content = checkpoint.path, checkpoint.content
    if checkpoint.format in ('safetensors', 'python2') or checkpoint.weights_key not in (None, 'state_dict', 'model'):
        yield (f'Checkpoint {path} is not a file of a training that --resume continues: start from its weights with '
               '--initial-checkpoint.')
        return
    epoch, version = content.get('epoch'), content.get('version', 1)
    first = -1 if checkpoint.run_state else 0  # -1: saved in the middle of epoch 0
    if epoch is not None and (not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < first):
        yield f'Checkpoint {path}: its epoch is {printable(repr(epoch))}, not a number from 0: the file is damaged.'
    if not isinstance(version, int):
        yield f'Checkpoint {path}: its version is {printable(repr(version))}, not a number: the file is damaged.'
    if _flag(args, 'no_resume_opt'):
        return
    wrong = describe_run_state(checkpoint)
    if wrong is not None:
        yield f'{wrong}: {INSTEAD}.'
    elif checkpoint.run_state and _flag(args, 'start_epoch') is None and isinstance(version, int) and (
            checkpoint.epochs != checkpoint.run_state['epoch']):
        place = checkpoint.run_state['epoch']
        yield (f'Checkpoint {path}: its entries epoch ({epoch}) and version ({content.get("version")}) do not belong '
               f'to its run_state, which goes on with epoch {place}: another tool changed the file. Name the '
               f'epoch to go on with, --start-epoch {place}.')
    if 'optimizer' not in content:
        lightning = ' (PyTorch Lightning calls it optimizer_states)' if 'optimizer_states' in content else ''
        yield f'Checkpoint {path} holds no optimizer state{lightning}: {INSTEAD}.'
        return
    if epoch is None and _flag(args, 'start_epoch') is None:
        yield f'Checkpoint {path} does not say its epoch: name the one to continue with, --start-epoch N.'
    groups = _groups(content['optimizer'])
    if groups is None:
        yield f'Checkpoint {path}: its optimizer state has no parameter groups: {INSTEAD}.'
    elif optimizer is not None:
        yield from _optimizer_problems(checkpoint, groups, optimizer, args)
    if _state_not_finite(content['optimizer']):
        yield f'Checkpoint {path}: its optimizer state is not finite (NaN or infinity): {INSTEAD}.'


def describe_run_state(checkpoint: Checkpoint) -> Optional[str]:
    """A clause if a run cannot go on with the `run_state` of a checkpoint; files of others have none."""
    state = checkpoint.content.get('run_state')
    wrong = what_is_wrong(state) if state else None
    return wrong and (f'Checkpoint {checkpoint.path}: its run_state cannot be resumed from ({printable(wrong)}), as '
                      'the file is damaged, or another tool or version wrote it')


def _groups(state: Any) -> Optional[List[Dict[str, Any]]]:
    groups = state.get('param_groups') if isinstance(state, dict) else None
    if not isinstance(groups, list) or not groups or not isinstance(state.get('state'), dict):
        return None
    if not all(isinstance(g, dict) and isinstance(g.get('params'), list) for g in groups):
        return None
    return groups


def _optimizer_problems(
        checkpoint: Checkpoint, groups: List[Dict[str, Any]], optimizer: torch.optim.Optimizer, args: Any,
) -> Iterator[str]:
    theirs = {k for g in groups for k in g} - COMMON
    own = {k for g in optimizer.param_groups for k in g} - COMMON
    saved, own_name = checkpoint.args, _flag(args, 'opt')
    if theirs - own and own - theirs:
        was = f' (--opt {printable(saved["opt"])})' if saved.get('opt') not in (None, _flag(args, 'opt')) else ''
        yield (f'Checkpoint {checkpoint.path} has the state of another optimizer than --opt {own_name}{was}: name the '
               f'optimizer of that run, or {INSTEAD}.')
        return
    sizes, own_sizes = [len(g['params']) for g in groups], [len(g['params']) for g in optimizer.param_groups]
    if sizes == own_sizes:
        return
    flags = [f'--{k.replace("_", "-")} was {_given(saved[k])} and is {_given(getattr(args, k))}' for k in GROUPING
             if k in saved and hasattr(args, k) and saved[k] != getattr(args, k)]
    why = f' ({"; ".join(flags)})' if flags else ' (--freeze, --weight-decay and --layer-decay decide them)'
    yield (f'Checkpoint {checkpoint.path} has other parameter groups than this run, {len(sizes)} of {_sizes(sizes)} '
           f'weights, not {len(own_sizes)} of {_sizes(own_sizes)}{why}: give the flags of that run, or {INSTEAD}.')


def _given(value: Any) -> str:
    return 'not given' if value is None else printable(value)


def _sizes(sizes: List[int]) -> str:
    return ', '.join(map(str, sizes[:4])) + (' ...' if len(sizes) > 4 else '')


def _state_not_finite(state: Any) -> bool:
    entries = state.get('state') if isinstance(state, dict) else None
    return any(not_finite(entry) for entry in (entries or {}).values() if isinstance(entry, dict))


def notes(
        checkpoint: Checkpoint,
        args: Any,
        optimizer: Optional[torch.optim.Optimizer],
        num_epochs: int,
) -> Iterator[str]:
    """What a run of so many epochs takes from the checkpoint it resumes from, and what it cannot, each a sentence."""
    path, content = checkpoint.path, checkpoint.content
    done = _flag(args, 'start_epoch') if _flag(args, 'start_epoch') is not None else checkpoint.epochs
    if done is None:
        yield f'{path} does not say its epoch: the run starts at epoch 0.'
    elif checkpoint.epoch is not None and 'version' not in content and _flag(args, 'start_epoch') is None and (
            not checkpoint.run_state):
        yield (f"{path} has no version: as in old files of timm's, its epoch {checkpoint.epoch} is the one to go on "
               f'with. If it is the last one that was trained, add --start-epoch {checkpoint.epoch + 1}.')
    if done is not None and done >= num_epochs:
        yield f'{path}: {done} epochs are complete, of {num_epochs}: nothing is left to train. Give more --epochs.'
    if _flag(args, 'model_ema') and not checkpoint.has_ema:
        yield f'{path} holds no moving average (--model-ema): a new one starts at its weights.'
    if checkpoint.has_ema and not _flag(args, 'model_ema'):
        yield f'{path} holds a moving average, which is left out: --model-ema continues it.'
    if _flag(args, 'no_resume_opt'):
        yield f'--no-resume-opt: the optimizer starts without the state in {path}.'
        return
    scales = _flag(args, 'amp') and _flag(args, 'amp_dtype') == 'float16' and _flag(args, 'device') != 'cpu'
    if scales and 'amp_scaler' not in content:
        yield f'{path} holds no loss scale: it starts at its first value.'
    groups = _groups(content.get('optimizer'))
    if groups is None or optimizer is None:
        return
    if not content['optimizer']['state']:
        yield f'{path}: its optimizer has settings but no state: momenta start at 0.'
    saved, own_name = checkpoint.args.get('opt'), _flag(args, 'opt')
    if isinstance(saved, str) and saved != _flag(args, 'opt'):
        yield f'{path} was saved with --opt {printable(saved)}, this run has --opt {own_name}.'
    kept = _kept(groups, optimizer, args)
    if kept:
        yield (f'From the optimizer state in {path}, not from the flags: {", ".join(kept)}. --no-resume-opt takes the '
               'flags.')


def _kept(groups: List[Dict[str, Any]], optimizer: torch.optim.Optimizer, args: Any) -> List[str]:
    """Settings of the optimizer in which the file overrides the flags."""
    result = []
    for saved, own in zip(groups, optimizer.param_groups):
        for key, value in own.items():
            if key in ('params', 'param_names', 'initial_lr', 'lr_scale') or key not in saved:
                continue
            theirs = saved.get('initial_lr', saved['lr']) if key == 'lr' else saved[key]
            if key == 'lr' and not _flag(args, 'lr') or key in COMMON - {'lr', 'weight_decay'}:
                continue
            if isinstance(theirs, (int, float, tuple, list)) and _plain(theirs) != _plain(value):
                result.append(f'{key.replace("_", " ")} {theirs} (given: {value})')
    return list(dict.fromkeys(result))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
