"""`--freeze`: layers that a training leaves as they are

Their weights get no gradients, and they compute as in evaluation, with the statistics of BatchNorm that they came
with and without dropout, so that they give the same features in every step and afterwards.
"""
from typing import Dict, List

import torch.nn as nn

from seresnet_timm.errors import UsageError, did_you_mean

BACKBONE = 'backbone'  # everything but the classifier


class _KeepInEvaluation:
    """Before a step: the frozen layers compute as in evaluation, whatever `train()` was called with."""

    def __init__(self, names: List[str]):
        self.names = names

    def __call__(self, model: nn.Module, _inputs) -> None:
        if model.training:
            modules: Dict[str, nn.Module] = dict(model.named_modules())
            for name in self.names:
                modules[name].training = False


def freeze(model: nn.Module, last: str) -> nn.Module:
    """Freeze layers, with the weights that they have.

    Args:
        model: As from timm; changed in place. Its layers are registered in the order in which they compute.
        last: `BACKBONE`, or the name of the last layer or stage to freeze; those before it are frozen too.

    Returns:
        The model.

    Raises:
        UsageError: There is no such layer, or nothing would be left to train.
    """
    names = frozen_layers(model, last)
    modules = dict(model.named_modules())
    for name in ['', *names]:  # the model's own are those of its input, such as positions
        for parameter in modules[name].parameters(recurse=False):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f'--freeze {last} leaves no weights to train: name an earlier layer.')
    model.register_forward_pre_hook(_KeepInEvaluation(names))
    return model


def frozen_layers(model: nn.Module, last: str) -> List[str]:
    """Names of the layers to freeze, without those that hold further layers which are not frozen.

    Raises:
        UsageError: There is no such layer.
    """
    names = [name for name, _ in model.named_modules() if name]
    if last == BACKBONE:
        classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None
        heads = classifier if isinstance(classifier, (tuple, list)) else [classifier]
        trained = {id(part) for head in heads if isinstance(head, nn.Module) for part in head.modules()}
        if not any(p.requires_grad for head in heads if isinstance(head, nn.Module) for p in head.parameters()):
            raise UsageError('--freeze: this model has no classifier that could be trained alone: name the last layer '
                             f'to freeze, {_stages(model)}.')
        names = [name for name, module in model.named_modules() if name and id(module) not in trained]
    elif last not in names:
        raise UsageError(f"--freeze '{last}' is no layer of this model: "
                         f'{did_you_mean(last, names, f"there are {_stages(model)}.")}')
    else:
        end = max(i for i, name in enumerate(names) if name == last or name.startswith(f'{last}.'))
        names = names[:end + 1]
    done = set(names)
    return [name for name in names if all(not child or f'{name}.{child}' in done
                                          for child, _ in model.get_submodule(name).named_modules())]


def describe(model: nn.Module) -> str:
    """How much of a model is trained, for the plan."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f'{trained:,} of {total:,} weights are trained'


def _stages(model: nn.Module) -> str:
    return ', '.join(name for name, child in model.named_children() if any(True for _ in child.parameters()))
