"""Steps with a non-finite loss or gradients are skipped and counted on the device; the host looks at log points only

How a step is skipped, in order of preference:

    loss scaler        the scaler decides, as always; here its decision is counted only
    fused optimizers   torch's kernels skip the update where their `found_inf` is 1, as they do for a loss scaler
    other optimizers   weights and state are copied before the step, and put back by `torch.where` after it: up to three
                       passes over them, and their memory once more during the step

On an NPU the third way would start a thousand more kernels in each step, more than the step itself: there a bad step
without a loss scaler is counted and not skipped, so that the run ends after `--max-bad-steps`, with the last
checkpoint.

The running statistics of BatchNorm saw the bad batch in the forward pass: they are put back too, but on an NPU. All
ranks skip the same steps, because a non-finite loss of one rank makes its gradients NaN, and gradients are summed over
the ranks. A healthy run computes the same numbers, bit for bit. The moving average and the schedules count a skipped
step, as with a loss scaler; optimizers that count their steps on the host (for bias correction) do so too.
"""
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

MIN_LOSS_SCALE = 1e-4  # below it a dynamic loss scale has collapsed; fairseq's limit
STATISTICS = ('running_mean', 'running_var')
# dtypes of torch's own check, the one of its loss scaler
CHECKED = (torch.float32, torch.float16)
COUNTED = ('total', 'row', 'longest', 'began')


class Figures(NamedTuple):
    """What the host reads at a log point: numbers of the epoch, and the loss scale.

    Attributes:
        total: Steps that were skipped.
        row: Skipped steps in a row until now.
        longest: The most in a row.
        began: Step, from 0 in the epoch, that began the last row; -1 if an earlier epoch did.
        loss_scale: Dynamic loss scale; 1 without one.
    """
    total: float
    row: float
    longest: float
    began: float
    loss_scale: float

    def ends_run(self, most: int) -> bool:
        """Whether there are too many in a row, or the loss scale has collapsed."""
        return self.longest >= most or self.loss_scale < MIN_LOSS_SCALE


class BadSteps:
    """Guard of a training's steps.

    Args:
        module: The network.
        optimizer: Its optimizer.
        device: Their device.
        loss_scaler: timm's scaler; None without one.
    """

    def __init__(
            self,
            module: torch.nn.Module,
            optimizer: torch.optim.Optimizer,
            device: torch.device,
            loss_scaler: Optional[Any] = None,
    ):
        self._optimizer = optimizer
        self._skips_itself = bool(getattr(optimizer, '_step_supports_amp_scaling', False))
        self._scaler = getattr(loss_scaler, '_scaler', None)
        self._puts_back = device.type != 'npu'
        self._statistics = [
            value.view(-1) for m in module.modules() for value in (getattr(m, name, None) for name in STATISTICS)
            if torch.is_tensor(value) and self._puts_back]
        self._sizes = [value.numel() for value in self._statistics]
        self._good_statistics: Optional[torch.Tensor] = None
        self._one = torch.ones((), device=device)
        self._found = torch.zeros((), device=device)
        self._total = self._row = self._longest = self._began = torch.zeros((), device=device)
        self._step = 0
        if self._scaler is not None:
            self._watch(self._scaler)

    def _watch(self, scaler: Any) -> None:
        """Keep what the scaler found, which its `update` forgets."""
        update = scaler.update

        def keep_and_update(*args, **kwargs):
            states = getattr(scaler, '_per_optimizer_states', {})
            found = (states.get(id(self._optimizer)) or {}).get('found_inf_per_device') or {}
            values = [v.reshape(()).to(self._found.device) for v in found.values() if torch.is_tensor(v)]
            self._found = torch.stack(values).amax().float() if values else torch.zeros_like(self._found)
            return update(*args, **kwargs)
        scaler.update = keep_and_update

    def start_epoch(self, is_begun: bool = False) -> None:
        """Begin to count anew, unless the epoch was begun before; a row of bad steps goes on."""
        self._good_statistics = self._flat_statistics()
        if is_begun:
            return
        self._total, self._longest, self._step = torch.zeros_like(self._total), self._row, 0
        self._began = torch.where(self._row > 0, -self._one, self._began)

    def state_dict(self) -> Dict[str, Any]:
        """What was counted so far."""
        return dict({name: float(getattr(self, f'_{name}')) for name in COUNTED}, step=self._step)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        for name in COUNTED:
            setattr(self, f'_{name}', state[name] * self._one)
        self._step = state['step']

    @staticmethod
    def poison(loss: torch.Tensor) -> torch.Tensor:
        """The same loss; if it is not finite, its gradients are NaN."""
        return loss * (loss.detach() * 0 + 1)

    def look(self) -> None:
        """Note whether the gradients are finite. They are complete, and not clipped yet."""
        self._found.zero_()
        by_dtype: Dict[torch.dtype, List[torch.Tensor]] = {}
        for p in self._parameters():
            if p.grad is not None:
                by_dtype.setdefault(p.grad.dtype, []).append(p.grad)
        for dtype, gradients in by_dtype.items():
            if dtype in CHECKED:
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
            else:
                largest = torch.stack(torch._foreach_norm(gradients, float('inf')))
                self._found = torch.maximum(self._found, (~largest.isfinite().all()).float())

    def step(self) -> None:
        """Take the optimizer's step, if the gradients are finite."""
        optimizer: Any = self._optimizer
        if self._skips_itself:
            optimizer.found_inf = self._found
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf
            return
        if not self._puts_back:
            optimizer.step()
            return
        before = {key: tensor.clone() for key, tensor in self._tensors()}
        optimizer.step()
        bad = self._found.bool()
        for key, tensor in self._tensors():
            # state that the step has created starts at zero, the slow weights of lookahead at the weights
            start = before.get((key[0], '')) if key[1] == 'lookahead_slow_buff' else None
            good = before.pop(key, None) if key[1] else before[key]
            good = good if good is not None else start if start is not None else torch.zeros_like(tensor)
            tensor.copy_(torch.where(bad, good, tensor))

    def _parameters(self) -> List[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group['params']]

    def _tensors(self) -> List[Tuple[Tuple[int, str], torch.Tensor]]:
        """Weights, and the optimizer's state on their device."""
        state = getattr(self._optimizer, '_base_optimizer', self._optimizer).state
        found = []
        for index, p in enumerate(self._parameters()):
            found.append(((index, ''), p.detach()))
            found += [((index, name), value) for name, value in state.get(p, {}).items()
                      if torch.is_tensor(value) and value.device == p.device]
        return found

    def count(self) -> None:
        """Count the step that was taken or skipped; if it was skipped, put the running statistics back."""
        # each operator here starts a kernel in each step: they are few
        bad = self._found.clamp(max=1)  # it is the sum over the ranks with torch_npu's loss scaler
        self._total = self._total + bad
        self._row = torch.addcmul(bad, self._row, bad)
        self._longest = torch.maximum(self._longest, self._row)
        self._began = self._began.masked_fill(self._row == 1, self._step)
        self._step += 1
        if self._statistics:
            self._good_statistics = torch.where(bad.bool(), self._good_statistics, self._flat_statistics())
            torch._foreach_copy_(self._statistics, self._good_statistics.split(self._sizes))

    def _flat_statistics(self) -> Optional[torch.Tensor]:
        return torch.cat(self._statistics).float() if self._statistics else None

    def figures(self) -> torch.Tensor:
        """`Figures` on the device."""
        scale = getattr(self._scaler, '_scale', None)
        is_dynamic = torch.is_tensor(scale) and not hasattr(self._scaler, 'is_fixed')
        scale = scale.reshape(()).to(self._one.device) if is_dynamic else self._one
        return torch.stack((self._total, self._row, self._longest, self._began, scale.float()))
