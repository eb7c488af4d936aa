"""Forward: how the batches of a loader get through a model, in training and in evaluation"""
from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple

import torch
from timm import utils

from seresnet_timm import device as devices


@dataclass(frozen=True)
class Forward:
    """Device, precision and memory format of a run.

    Attributes:
        device: Device of the model.
        autocast: Factory of the context in which the model runs.
        dtype: Dtype of the model and of its input; None for float32.
        prefetched: The loader has moved its batches to the device.
        channels_last: Memory format of model and input.
        distributed: The run has several processes.
    """
    device: torch.device
    autocast: Callable[[], Any]
    dtype: Optional[torch.dtype] = None
    prefetched: bool = True
    channels_last: bool = False
    distributed: bool = False

    @classmethod
    def from_args(cls, args, device: torch.device) -> 'Forward':
        """The set-up that a script's flags ask for."""
        return cls(
            device=device,
            autocast=devices.autocast(device, args.amp, args.amp_dtype),
            dtype=getattr(torch, args.model_dtype) if args.model_dtype else None,
            prefetched=not args.no_prefetcher,
            channels_last=args.channels_last,
            distributed=args.distributed,
        )

    def move(self, input: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """A batch on the device; the prefetcher has moved it already."""
        if self.prefetched:
            return input, target
        return input.to(device=self.device, dtype=self.dtype), target.to(device=self.device)

    def lay_out(self, input: torch.Tensor) -> torch.Tensor:
        """An input in the memory format of the model."""
        return input.contiguous(memory_format=torch.channels_last) if self.channels_last else input


def set_up_device(args) -> torch.device:
    """Set up the device of this rank and its process group; `rank`, `world_size` and so on are added to the flags."""
    device = utils.init_distributed_device(args)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device
