"""Moving average of the weights (`--model-ema`) in few launches

timm averages all weights by one operation on a list, but copies each BatchNorm's counter of batches by itself: 53
launches for a ResNet-50. Here the counters of the average are parts of one tensor, and one operation copies them all.
"""
from functools import partial
from typing import List

import torch
from timm.utils import ModelEmaV3

from seresnet_timm.models.batch_counters import NAME, are_together, put_together


def copy_counters_at_once(average: ModelEmaV3) -> None:
    """Make `average.update` copy the counters by one operation; its values stay timm's."""
    if average.foreach and not average.exclude_buffers:
        average.apply_update_ = partial(_apply_update, average)


def _apply_update(average: ModelEmaV3, model: torch.nn.Module, decay: float) -> None:
    """timm's `apply_update_` for weights on one device."""
    values, model_values, counters, model_counters = [], [], [], []
    for (name, value), model_value in zip(average.module.state_dict().items(), model.state_dict().values()):
        if value.is_floating_point():
            values.append(value)
            model_values.append(model_value)
        elif name.endswith(NAME) and value.dim() == 0 and value.dtype == model_value.dtype == torch.int64:
            counters.append(value)
            model_counters.append(model_value)
        else:
            value.copy_(model_value)
    average._foreach_lerp_(values, model_values, weight=1. - decay)
    if counters and not are_together(counters):
        counters = _counters_in_one_tensor(average.module)
    if counters and are_together(counters):
        torch.stack(model_counters, out=counters[0].as_strided((len(counters),), (1,)))
    else:  # a layer has two names
        for value, model_value in zip(counters, model_counters):
            value.copy_(model_value)


def _counters_in_one_tensor(module: torch.nn.Module) -> List[torch.Tensor]:
    buffers = dict(module.named_buffers(remove_duplicate=False))
    counters = [buffers[name] for name in module.state_dict() if name.endswith(NAME) and buffers[name].dim() == 0]
    put_together(counters)
    return counters
