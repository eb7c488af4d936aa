"""The backward pass and the optimizer's step"""
from typing import Any, Optional

import torch
from timm import utils

from seresnet_timm.step import heartbeat
from seresnet_timm.step.bad_steps import BadSteps


def backward(
        loss: torch.Tensor,
        task: Any,
        optimizer: torch.optim.Optimizer,
        args,
        loss_scaler: Optional[Any],
        need_update: bool,
        bad_steps: Optional[BadSteps] = None,
) -> None:
    """Backward pass; if the gradients are complete then, clip them and take the optimizer's step.

    Args:
        loss: Loss of the batch.
        task: timm's task of the model.
        optimizer: Optimizer.
        args: Flags of train.py: `clip_grad` and `clip_mode` are read.
        loss_scaler: timm's scaler; None without one.
        need_update: The gradients are complete.
        bad_steps: Skips steps whose loss or gradients are not finite; None takes every step.
    """
    heartbeat.mark()
    if bad_steps is not None:
        loss = bad_steps.poison(loss)
    create_graph = getattr(optimizer, 'is_second_order', False)
    clip_parameters = None
    if args.clip_grad is not None:
        clip_parameters = task.get_clip_parameters(exclude_head='agc' in args.clip_mode)
    if loss_scaler is not None:
        loss_scaler(
            loss,
            optimizer,
            clip_grad=args.clip_grad,
            clip_mode=args.clip_mode,
            parameters=clip_parameters,
            create_graph=create_graph,
            need_update=need_update,
        )
        return
    loss.backward(create_graph=create_graph)
    if need_update:
        if bad_steps is not None:
            bad_steps.look()
        if args.clip_grad is not None:
            utils.dispatch_clip_grad(clip_parameters, value=args.clip_grad, mode=args.clip_mode)
        (optimizer if bad_steps is None else bad_steps).step()
