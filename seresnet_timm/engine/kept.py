"""What a rank has for itself after an update, as far as the next one changes it before it is done

A run that stops while an update waits for its data goes on after the update before. Weights, moving average and
optimizer are still as they were then. Random generators, loader, losses and the buffers of the network (the running
statistics of BatchNorm) are not: they are kept after each update. The host does not wait for the device.
"""
from typing import Any, Dict, List, Tuple

import torch
from timm.utils import unwrap_model

from seresnet_timm.data.position import resumable
from seresnet_timm.data.random_state import own_state


class Kept:
    """What a rank has for itself now.

    Args:
        run: The training.
        place: Where a later run goes on.
        losses: LossMeter of the epoch.
        with_buffers: Those of the network too.

    Attributes:
        place: Where a later run goes on.
        rng: Random generators.
        loader: State of the loader; None for one without positions.
    """

    def __init__(self, run: Any, place: Any, losses: Any, with_buffers: bool = True):
        loader = resumable(run.train_loader)
        self.place = place
        self.rng = own_state(run.device)
        self.loader = None if loader is None else loader.state(place.batches)
        self._losses = None if losses is None else losses.copy()
        self._buffers = _flat(run.task.get_trainable_module()) if with_buffers else []

    def losses(self) -> Any:
        """State of the losses. The host waits for the device here."""
        return None if self._losses is None else self._losses.state_dict()

    def buffers(self) -> Dict[str, torch.Tensor]:
        """Buffers of the network, on the host."""
        found = {}
        for flat, parts in self._buffers:
            values = flat.cpu().split([shape.numel() for _, shape in parts])
            found.update({name: value.view(shape) for (name, shape), value in zip(parts, values)})
        return found


Parts = List[Tuple[str, torch.Size]]


def _flat(module: Any) -> List[Tuple[torch.Tensor, Parts]]:
    """Copy of the buffers: a tensor for each dtype and device, as a copy for each would start many kernels."""
    groups: Dict[Any, List[Tuple[str, torch.Tensor]]] = {}
    for name, value in unwrap_model(module).named_buffers():
        groups.setdefault((value.dtype, value.device), []).append((name, value.detach()))
    return [(torch.cat([value.reshape(-1) for _, value in group]), [(name, value.shape) for name, value in group])
            for group in groups.values()]
