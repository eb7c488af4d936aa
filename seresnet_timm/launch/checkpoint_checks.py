"""What can be said of a run's checkpoints before it starts: refusals, and notes for the plan"""
import copy
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model
from timm.models import clean_state_dict
from timm.optim import create_optimizer_v2, optimizer_kwargs

from seresnet_timm.checkpoints import fit, resume
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.engine.model_info import describe_other_classes, describe_other_start, describe_unnamed
from seresnet_timm.engine.teacher import trainable_shapes
from seresnet_timm.errors import UsageError, first_names
from seresnet_timm.launch.combinations import STREAMS
from seresnet_timm.launch.first_look import INITIAL_WEIGHTS
from seresnet_timm.launch.reader_dataset import kind_of
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.settings import RunSettings, num_epochs

# arguments of a network that change how it is trained, not what it computes
OF_TRAINING = ('drop_rate', 'drop_path_rate', 'drop_block_rate', 'bn_momentum', 'num_classes', 'in_chans', 'img_size',
               'zero_init_last', 'exportable', 'scriptable', 'pretrained')
FLAGS = {'bn_eps': '--bn-eps', 'global_pool': '--gp'}


def check_train_weights(run: Any) -> Iterator[str]:
    args = run.args
    if args.resume:
        yield from _other_start(run)
        yield from _check_resume(run)
        return
    if run.flag('initial_checkpoint'):
        checkpoint = run.read(run.flag('initial_checkpoint'))
        yield from _misfit(run, checkpoint, 'initial_checkpoint', use_ema=True)
        yield from filter(None, [describe_other_start(checkpoint, run.settings.class_names, args)])
        run.notes += _other_network(run, checkpoint) + checkpoint.notes_of_choice(use_ema=True)
    path = run.flag('pretrained_path')
    if path and not path.endswith(('.npz', '.npy')):  # which timm's models read
        yield from _check_pretrained(run, run.read(path))


def check_checkpoint(run: Any) -> Iterator[str]:
    path = run.args.checkpoint
    if path and not os.path.isdir(path):
        checkpoint = run.read(path)
        yield from _misfit(run, checkpoint, 'checkpoint', use_ema=run.args.use_ema)
        yield from filter(None, [describe_other_classes(checkpoint, run.settings.class_names, run.args)])
        run.notes += _other_network(run, checkpoint) + checkpoint.notes_of_choice(run.args.use_ema)
        if run.args.use_ema and not checkpoint.has_ema:
            run.notes.append(f'{path} holds no moving average (--use-ema): its weights are evaluated.')


def check_named_weights(run: Any) -> Iterator[str]:
    """The weights in the folder that `--model` names, or that was pulled from the Hub. A dry run pulls none."""
    folder = run.settings.model_folder or run.args.model.partition('local-dir:')[2]
    if not folder or not run.args.pretrained or any(run.flag(k) for k in ('checkpoint', 'pretrained_path', 'resume')):
        return
    from seresnet_timm.hub.repository import WEIGHTS  # here, as a training without the Hub does not need it
    path = next((Path(folder) / name for name in WEIGHTS if (Path(folder) / name).is_file()), None)
    if path is not None:
        checkpoint = read_checkpoint(path)
        yield from filter(None, [fit.describe_not_finite(checkpoint, checkpoint.weights, run.model)])


def unnamed_classes(settings: RunSettings, checkpoints: Dict[str, Checkpoint]) -> List[str]:
    """Which checkpoints of a run hold no class names, a sentence each."""
    paths = [settings.args.get(flag) for flag in ('resume', 'initial_checkpoint', 'checkpoint')]
    return [s for s in (describe_unnamed(p, checkpoints[p], settings) for p in paths if p in checkpoints) if s]


def _other_start(run: Any) -> Iterator[str]:
    """Weights that a run began with, which it does not read when it goes on, so that they may be gone."""
    args = run.args
    if RunFolder(run.settings.output).owns(args.resume):
        given = [flag for flag in INITIAL_WEIGHTS if run.flag(flag)]
        if given or args.pretrained:
            name = f'--{(given or ["pretrained"])[0].replace("_", "-")}'
            gone = '; that file is gone, and is not needed' if given and not os.path.exists(run.flag(given[0])) else ''
            run.notes.append(f'The run goes on with the weights of {args.resume}, not with those of {name}, with which '
                             f'it began{gone}.')
    elif run.flag('initial_checkpoint'):
        yield ('--resume and --initial-checkpoint both name weights to start with: leave out --initial-checkpoint, as '
               '--resume replaces its weights.')


def _check_resume(run: Any) -> Iterator[str]:
    args, last = run.args, RunFolder(run.args.resume).last
    if last.is_file():
        raise UsageError(f'--resume {args.resume} is the folder of a run: name its last checkpoint, --resume {last}.')
    checkpoint = run.read(args.resume)
    misfit = list(_misfit(run, checkpoint, 'resume', use_ema=False))
    optimizer = None if misfit else _optimizer(run)
    found = misfit + list(resume.problems(checkpoint, args, optimizer))
    if run.flag('model_ema') and checkpoint.has_ema and not found:
        found += _misfit(run, checkpoint, 'resume', use_ema=True)
    yield from found
    yield from filter(None, [describe_other_classes(checkpoint, run.settings.class_names, args)])
    if not found:
        run.notes += resume.notes(checkpoint, args, optimizer, num_epochs(vars(args)))
        run.notes += _other_network(run, checkpoint) + _other_images(run, checkpoint) + _starts_again(run, checkpoint)
        folder = RunFolder(checkpoint.path.rpartition('/')[0] or '.')
        if checkpoint.path == str(folder.best) and folder.last.is_file():
            run.notes.append(f'{checkpoint.path} is the best epoch ({checkpoint.epoch}), not the last: --resume '
                             f'{folder.last} continues where the run ended.')


def _starts_again(run: Any, checkpoint: Checkpoint) -> List[str]:
    """A dataset that can only be read from its start, in the middle of an epoch."""
    state = checkpoint.run_state
    if not state.get('batches') or state.get('is_trained') or kind_of(vars(run.args)) not in STREAMS:
        return []
    return [f'--dataset {run.args.dataset} has no positions: epoch {state["epoch"]} starts again at its first images.']


def _as_trained(run: Any) -> torch.nn.Module:
    """The network without memory as it is trained: `--split-bn` adds layers."""
    if not run.flag('split_bn'):
        return run.model
    with torch.device('meta'):  # as the network, which is changed
        return convert_splitbn_model(copy.deepcopy(run.model), max(run.flag('aug_splits') or 0, 2))


def _optimizer(run: Any) -> Optional[torch.optim.Optimizer]:
    """The optimizer of the run, on a network without memory; None if it cannot be made here."""
    if run.model is None:
        return None
    kwargs: Dict[str, Any] = {**optimizer_kwargs(cfg=run.args), **(run.flag('opt_kwargs') or {})}
    kwargs['lr'] = kwargs.get('lr') or 0.1
    try:
        model = _as_trained(run)
        if run.teacher is not None and run.args.kd_distill_type == 'feature':
            model = trainable_shapes(run.args, run.teacher.model, model)
        return create_optimizer_v2(model, **kwargs)
    except Exception:  # `check_optimizer` says what is wrong; others need their device
        return None


def _misfit(run: Any, checkpoint: Checkpoint, flag: str, use_ema: bool) -> Iterator[str]:
    """Weights that do not fit the model, are not finite, or whose optimizer state does not carry over."""
    if run.model is None:
        return
    args, model = run.args, run.model
    if flag == 'resume':
        model = _as_trained(run)
    weights = fit.weights_for(checkpoint, model, use_ema)
    misfit = fit.describe_misfit(weights, model, checkpoint.arch_unlike(args.model))
    found = clean_state_dict(checkpoint.weights_or_ema(use_ema))
    if misfit:
        new_head = ('; --pretrained-path takes its other weights and starts a new classifier'
                    if flag == 'initial_checkpoint' and misfit.startswith('it has ') else '')
        yield f'Checkpoint {checkpoint.path} does not fit {args.model}: {misfit}{new_head}.'
    elif flag == 'resume' and weights.keys() != found.keys():
        unexpected = first_names([k for k in found if k not in weights], fit.MAX_NAMED)
        split_bn = ('it was trained with --split-bn: give the flag again' if fit.SPLIT_BN in unexpected else
                    'start from it with --initial-checkpoint instead of --resume')
        yield (f'Checkpoint {checkpoint.path} names its weights otherwise than {args.model} does ({unexpected}), as '
               f'the ModelZoo and other tools do, and its optimizer state does not carry over: {split_bn}.')
    yield from filter(None, [fit.describe_not_finite(checkpoint, weights, model)])


def _check_pretrained(run: Any, checkpoint: Checkpoint) -> Iterator[str]:
    """timm leaves out what does not fit, without a word to the user: at least half of the network must be there."""
    if run.model is None:
        return
    weights = fit.weights_for(checkpoint, run.model, use_ema=True)
    yield from filter(None, [fit.describe_not_finite(checkpoint, weights, run.model)])
    family = getattr(sys.modules[type(run.model).__module__], 'checkpoint_filter_fn', None)
    if family is not None:
        try:
            weights = family(dict(weights), run.model)
        except Exception:  # it computes with weights, which have no memory here
            return
    head = fit.classifier_keys(run.model)
    body = [k for k in run.model.state_dict() if k not in head]
    missing = [k for k in body if k not in weights]
    if 2 * len(missing) > len(body):
        misfit = fit.describe_misfit(weights, run.model, checkpoint.arch_unlike(run.args.model))
        yield f'Checkpoint {checkpoint.path} does not fit {run.args.model}: {misfit}.'
    elif missing:
        run.notes.append(f'{checkpoint.path}: {len(missing)} weights of {run.args.model} are not in it and start as in '
                         f'a new network: {first_names(missing, fit.MAX_NAMED)}.')
    run.notes += _other_network(run, checkpoint) + checkpoint.notes_of_choice(use_ema=True)


# --- notes ------------------------------------------------------------------------------------------------------------

def _info(checkpoint: Checkpoint) -> Optional[ModelInfo]:
    try:
        return checkpoint.info
    except UsageError:  # the flags describe the network
        return None


def _other_network(run: Any, checkpoint: Checkpoint) -> List[str]:
    """Arguments of the network that are not in its weights, and differ between the file and this run."""
    info = _info(checkpoint)
    if info is None or run.model is None:
        return []
    own = ModelInfo.of_model(run.model).kwargs
    differs = [k for k in {**info.kwargs, **own} if k not in OF_TRAINING and info.kwargs.get(k) != own.get(k)]
    result = []
    given = {'bn_eps': run.flag('bn_eps'), 'global_pool': run.flag('gp'), **(run.args.model_kwargs or {})}
    for key in differs:
        saved = info.kwargs.get(key)
        if saved is None and given.get(key) is None and not (
                run.settings.model_folder or run.args.model.startswith('local-dir:')):
            continue  # both have the default
        flag = f'{FLAGS[key]} {saved}' if key in FLAGS else f'--model-kwargs {key}={saved}'
        remedy = f'{flag} keeps it' if saved is not None else 'leave the flag out to keep its network'
        result.append(f'{checkpoint.path} was trained with {key} {_value(saved)}, this run has {_value(own.get(key))}: '
                      f'{remedy}.')
    return result


def _other_images(run: Any, checkpoint: Checkpoint) -> List[str]:
    info = _info(checkpoint)
    if info is None or run.model is None:
        return []
    config = resolve_data_config(vars(run.args), model=run.model)
    pairs: List[Tuple[str, Any, Any]] = [(k, getattr(info, k), config.get(k)) for k in ('mean', 'std', 'input_size')]
    differs = [f'{k.replace("_", " ")} {list(a)}, now {list(b)}' for k, a, b in pairs
               if a is not None and b is not None and list(a) != list(b)]
    if not differs:
        return []
    return [f'{checkpoint.path} was trained on other images than this run has: {"; ".join(differs)}.']


def _value(value: Any) -> str:
    return 'at its default' if value is None else str(value)
