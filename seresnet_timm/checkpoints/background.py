"""Saves in a thread, of a copy in the memory of the host: a training waits for the copy only"""
import copy
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch


class HostCopy:
    """Copies states into the memory of the host. Its buffers stay for the next copy, as new memory takes longer."""

    def __init__(self) -> None:
        self._buffers: List[torch.Tensor] = []
        self._used = 0
        self._seen: Dict[Tuple, torch.Tensor] = {}

    def __call__(self, value: Any) -> Any:
        """A copy of nested dictionaries, lists and tuples of tensors. The one before is overwritten.

        Tensors that are one in memory are one in the copy.
        """
        self._used, self._seen = 0, {}
        copied = self._copy(value)
        del self._buffers[self._used:]
        return copied

    def _copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(value.detach())
        if isinstance(value, dict):
            copied = copy.copy(value)  # keeps its class, and what torch attaches to a state_dict
            for key, item in value.items():
                copied[key] = self._copy(item)
            return copied
        return type(value)(map(self._copy, value)) if type(value) in (list, tuple) else value

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if place in self._seen:
            return self._seen[place]
        if self._used == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._used]
        if buffer.dtype != tensor.dtype or buffer.shape != tensor.shape or buffer.stride() != tensor.stride():
            buffer = self._buffers[self._used] = torch.empty_like(tensor, device='cpu')
        self._used += 1
        self._seen[place] = buffer.copy_(tensor)
        return buffer


class BackgroundSave:
    """One save at a time, in a thread. The interpreter does not end before it does."""

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None

    def start(self, save: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                save()
            except BaseException as e:
                self._error = e
        self._thread = threading.Thread(target=run, name='save')
        self._thread.start()

    def has_ended(self) -> bool:
        """Whether one was started that has ended, and `wait` was not called since."""
        return self._thread is not None and not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until it has ended; raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
