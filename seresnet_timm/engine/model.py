"""The model of a training: its initial weights, its place on the device, compiled and distributed"""
import logging
import re
from contextlib import nullcontext
from typing import Any, Callable, Dict, Mapping, Optional

import torch
import torch.nn as nn
from timm import utils
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.models import clean_state_dict, safe_model_name

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import load_weights, named_for
from seresnet_timm.checkpoints.read import read_once
from seresnet_timm.engine.forward import Forward
from seresnet_timm.models.create import create_from_args
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step import fast as fast_step
from seresnet_timm.step import graph
from seresnet_timm.step.freeze import freeze
from seresnet_timm.step.half_weights import exchange_in_half, use_half_weights

_logger = logging.getLogger('train')


def short_name(name: str) -> str:
    """timm's short name of a model, for log lines and names of folders; of ModelScope too, which timm does not know."""
    return safe_model_name(re.sub('^modelscope:', 'hf-hub:', name))


def create_model(settings: RunSettings, args, checkpoints: Mapping[str, Checkpoint]) -> nn.Module:
    """Create the model, with the initial weights that the flags ask for."""
    if args.fast_norm:
        set_fast_norm()
    model = create_from_args(
        args,
        folder=settings.model_folder,
        drop_rate=args.drop,
        drop_path_rate=args.drop_connect if args.drop_path is None else args.drop_path,
        drop_block_rate=args.drop_block,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        **dict(dict(pretrained=args.pretrained), **pretrained_arguments(settings, args, checkpoints)),
    )
    load_initial_weights(model, args.initial_checkpoint, args, checkpoints)
    with torch.no_grad():
        classifier = model.get_classifier()
        if args.head_init_scale is not None:
            classifier.weight.mul_(args.head_init_scale)
            classifier.bias.mul_(args.head_init_scale)
        if args.head_init_bias is not None:
            classifier.bias.fill_(args.head_init_bias)
    freeze_and_halve(model, settings)
    args.num_classes = model.num_classes if args.num_classes is None else args.num_classes
    if utils.is_primary(args):
        num_params = sum(p.numel() for p in model.parameters())
        _logger.info(f'Model {short_name(args.model)} created, param count:{num_params}')
    return model


def pretrained_arguments(settings: RunSettings, args, checkpoints: Mapping[str, Checkpoint]) -> Dict[str, Any]:
    """What `--pretrained-path` tells timm: the file, or its weights where timm does not find them under their names.

    A run that resumes takes all weights from its checkpoint: the file that it began with may be gone.
    """
    if args.resume:
        return dict(pretrained=False)
    path = getattr(args, 'pretrained_path', None)  # older scripts do not have it
    if not path:
        return {}
    overlay = dict(num_classes=-1, file=path)  # adapt the head
    if not path.endswith(('.npz', '.npy')):  # which timm's models read
        checkpoint = read_once(path, checkpoints)
        named = named_for(checkpoint, create_from_args(args, folder=settings.model_folder, meta=True), use_ema=True)
        timms = clean_state_dict(checkpoint.weights_or_ema(use_ema=True))
        if named.weights.keys() != timms.keys() or checkpoint.format == 'python2' or not checkpoint.has_timms_keys:
            overlay = dict(num_classes=-1, state_dict=named.weights)
    return dict(pretrained=True, pretrained_cfg_overlay=overlay)


def load_initial_weights(
        model: nn.Module, path: Optional[str], args, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Load all weights of `--initial-checkpoint`, which names the path, if there is one and the run does not resume."""
    if path and not args.resume:
        load_weights(model, read_once(path, checkpoints), args.model, use_ema=True)


def freeze_and_halve(model: nn.Module, settings: RunSettings) -> None:
    """Freeze the layers of `--freeze`; keep the other weights in float16 for `--amp-level O2`."""
    if settings.freeze:
        freeze(model, settings.freeze)
    if settings.half_weights:
        use_half_weights(model)


def place_model(model: nn.Module, args, forward: Forward) -> nn.Module:
    """Move the model to its device in its dtype and memory format; split or synchronise its BatchNorm."""
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=forward.device, dtype=forward.dtype)
    if args.channels_last:
        fast_step.to_channels_last(model)
    if args.distributed and args.sync_bn:
        args.dist_bn = ''  # running statistics agree already
        model = convert_sync_batchnorm(model)
    return model


def capture_step(model: nn.Module, args, data_config: Dict[str, Any], forward: Forward) -> Optional[str]:
    """Capture the kernels of a step, for batches as the loader makes them; the reason if that fails, else None."""
    size = (args.batch_size * max(1, args.aug_splits), *data_config['input_size'])
    images = torch.zeros(size, device=forward.device, dtype=forward.dtype)
    context = forward.autocast(cache_enabled=False) if args.amp else nullcontext()
    return graph.capture(model.train(), forward.lay_out(images), context, _logger)


def compile_and_distribute(settings: RunSettings, task, args, device: torch.device) -> None:
    """Compile the model, then wrap it in DDP, so that evaluation can use the compiled model."""
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        distribute(settings, task, device, **(dict(broadcast_buffers=False) if args.no_ddp_bb else {}))


def distribute(settings: RunSettings, task, device: torch.device, prepare: Optional[Callable] = None, **more) -> None:
    """Wrap the model of a task in DDP.

    Args:
        settings: Settings of the run.
        task: timm's task.
        device: Device of this rank.
        prepare: What does it; None for the task's own `prepare_distributed`.
        more: Further arguments of DDP.
    """
    fast_step.match_gradient_strides(task.get_trainable_module())
    (prepare or task.prepare_distributed)(
        device_ids=None if device.type == 'cpu' else [device],  # DDP takes no device ids on the CPU
        **fast_step.in_terms_of_this_torch(more),
        **fast_step.ddp_arguments(device, settings.fast_step),
    )
    if settings.half_weights:
        exchange_in_half(task.get_trainable_module())
