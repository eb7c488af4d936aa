"""A pass through a network, forward and backward, in which every input, output and gradient of a module is seen.

`run` puts a mark on each tensor that enters or leaves a module. A mark hands the value, and later its gradient, to a
`Pass`, which stores them (`Recording`) or compares them with stored ones (`Checking`), and says what the network goes
on with. If that is always the stored value, each module works on the inputs of the reference, and so does each
operation between two modules: what then differs is the cause, and no error is handed on.

A mark copies its tensor. So a module that changes its input in place changes the copy, which backward hooks of torch do
not allow.
"""
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch.utils._pytree import tree_flatten, tree_unflatten

from seresnet_timm.errors import RunError, first_line, printable
from seresnet_timm.inference.trace_file import DTYPES, Place, TraceReader, TraceWriter

# arguments of modules that are a share of dropped values
DROP_RATES = ('drop_rate', 'attn_drop_rate', 'drop_path_rate', 'proj_drop_rate', 'drop_prob', 'dropout', 'attn_drop')

PART = 2 ** 16  # values that are compared at once: float64 of them and of what is computed stay in a core's cache


@dataclass(frozen=True)
class Figures:
    """How far values b are from those of the reference a.

    Attributes:
        max: max |b - a| / max |a|.
        mean: mean |b - a| / mean |a|.
        cosine: a . b / (|a| |b|).
        zero: a is all zero.
        not_finite: How many of b are NaN or infinite.
        reference_not_finite: How many of a are.
    """
    max: float = 0.
    mean: float = 0.
    cosine: float = 1.
    zero: bool = False
    not_finite: int = 0
    reference_not_finite: int = 0


def figures(a: torch.Tensor, b: torch.Tensor) -> Figures:
    """Compare two tensors of one shape. Values that are not finite are counted, and left out where they are equal."""
    a, b = (t.detach().cpu().flatten() for t in (a, b))
    if not a.numel():
        return Figures()
    largest_error, errors, largest, sizes, aa, bb, ab = (0.,) * 7
    for x, y in zip(a.split(PART), b.split(PART)):
        x, y = x.double(), y.double()
        error, size = (y - x).abs_(), x.abs()
        errors, sizes = errors + float(error.sum()), sizes + float(size.sum())
        largest_error, largest = max(largest_error, float(error.max())), max(largest, float(size.max()))
        aa, bb, ab = aa + float(x @ x), bb + float(y @ y), ab + float(x @ y)
    if not math.isfinite(errors):
        bad_a, bad_b = ~a.isfinite(), ~b.isfinite()
        counts, bad = dict(not_finite=int(bad_b.sum()), reference_not_finite=int(bad_a.sum())), bad_a | bad_b
        if not bool(((a == b) | (a.isnan() & b.isnan()))[bad].all()):
            return Figures(math.inf, math.inf, math.nan, **counts)
        return replace(figures(a[~bad], b[~bad]), **counts)
    norms = math.sqrt(aa) * math.sqrt(bb)
    cosine = ab / norms if norms else float(not errors)
    return Figures(_ratio(largest_error, largest), _ratio(errors, sizes), min(1., cosine), zero=not largest)


def _ratio(error: float, size: float) -> float:
    if not size:
        return math.inf if error else 0.
    return error / size


class Pass(Protocol):
    """What happens to the values and gradients of a pass."""
    scale = 1.  # of the loss, which the gradients have too

    def value(self, place: Place, x: torch.Tensor) -> torch.Tensor:
        """Take a value, and return a new tensor for the network to go on with."""

    def gradient(self, place: Place, grad: torch.Tensor) -> torch.Tensor:
        """The same for a gradient."""

    def last(self, place: Place, x: torch.Tensor) -> None:
        """Take a value that the network does not go on with: a weight's gradient, a buffer."""

    def marked(self, place: Place, x: torch.Tensor) -> None:
        """Take note of the tensor object that the network goes on with."""


class Recording(Pass):
    """Stores all values and gradients."""

    def __init__(self, writer: TraceWriter, scale: float = 1.):
        self.writer, self.scale = writer, scale

    def value(self, place: Place, x: torch.Tensor) -> torch.Tensor:
        self.writer.add(place, x)
        return x.clone()

    def gradient(self, place: Place, grad: torch.Tensor) -> torch.Tensor:
        self.writer.add(place, grad if self.scale == 1 else grad.float() / self.scale)
        return grad

    def last(self, place: Place, x: torch.Tensor) -> None:
        self.writer.add(place, x.float() / self.scale if self.scale != 1 and 'gradient' in place.what else x)

    def marked(self, place: Place, x: torch.Tensor) -> None:
        self.writer.note(place, x)


@dataclass
class Checking(Pass):
    """Compares all values and gradients with stored ones.

    Attributes:
        reader: The stored ones.
        substitute: The network goes on with the stored ones, not with its own.
        scale: Scale of the loss.
        noise: Relative size of random changes to what the network goes on with, 0 for none.
        generator: Gives them.
        is_pooling: Whether a module takes the largest of several values, by its name.
        found: Figures by place, in the order of the pass; a text where there are none.
    """
    reader: TraceReader
    substitute: bool
    scale: float = 1.
    noise: float = 0.
    generator: Optional[torch.Generator] = None
    is_pooling: Callable[[str], bool] = lambda _name: False
    found: Dict[Place, Any] = field(default_factory=dict)

    def value(self, place: Place, x: torch.Tensor) -> torch.Tensor:
        return self._next(place, x, self._check(place, x, 1.), 1.)

    def gradient(self, place: Place, grad: torch.Tensor) -> torch.Tensor:
        return self._next(place, grad, self._check(place, grad, self.scale), self.scale)

    def last(self, place: Place, x: torch.Tensor) -> None:
        self._check(place, x, self.scale if 'gradient' in place.what else 1.)

    def _check(self, place: Place, x: torch.Tensor, scale: float) -> Optional[torch.Tensor]:
        """Note the figures of a place.

        Returns:
            The value that the network goes on with, if it is the stored one.
        """
        if place not in self.reader:
            self.found[place] = 'not in the reference'
            return None
        stored = self.reader.get(place)
        if stored.shape != x.shape:
            self.found[place] = f'has shape {tuple(x.shape)}, {tuple(stored.shape)} in the reference'
            return None
        found = x.detach().cpu()
        self.found[place] = figures(stored, found if scale == 1 else found.double() / scale)
        return stored if self.substitute else None

    def _next(self, place: Place, x: torch.Tensor, stored: Optional[torch.Tensor], scale: float) -> torch.Tensor:
        result = x.detach().clone() if stored is None else (
            stored if scale == 1 else stored.double() * scale).to(x.device, x.dtype)
        return self._changed(place, result) if self.noise and x.is_floating_point() else result

    def _changed(self, place: Place, x: torch.Tensor) -> torch.Tensor:
        changes = torch.rand(x.shape, generator=self.generator, dtype=torch.float32).mul_(2).sub_(1).to(x.device)
        result = x * changes.mul(self.noise).add_(1)
        if place.what == 'input' and self.is_pooling(place.module):
            result += 1e-30 * changes  # equal values, as the zeros of a ReLU: which one is taken is chance
        return result

    def finish(self, reached: Callable[[Place], bool]) -> None:
        """Note the stored places that the pass did not reach, of those that it should have."""
        for place in self.reader.places:
            if place not in self.found and reached(place):
                self.found[place] = 'missing'


class _Mark(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: torch.Tensor, pass_: Pass, place: Place) -> torch.Tensor:
        ctx.pass_, ctx.place = pass_, place.gradient()
        return pass_.value(place, x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return ctx.pass_.gradient(ctx.place, grad), None, None


@dataclass(frozen=True)
class Settings:
    """How a pass runs.

    Attributes:
        training: Modules are in training mode.
        backward: There is a backward pass.
        lean_se: The ends of residual blocks run as one operation, as they do in a training.
        context: Makes the context of the forward pass: autocast, or nothing.
    """
    training: bool = True
    backward: bool = True
    lean_se: bool = False
    context: Callable[[], Any] = torch.enable_grad


def run(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, pass_: Pass, settings: Settings) -> List[str]:
    """Run a pass.

    Args:
        model: The network; its gradients and buffers change.
        images: The batch.
        targets: A class for each image, for the loss.
        pass_: What happens to the values.
        settings: How it runs.

    Returns:
        Names of the layers that were not called.

    Raises:
        RunError: A module fails; it is named.
    """
    model.train(settings.training)
    switch_off_dropping(model)
    names = {module: name for name, module in model.named_modules()}
    hidden = set(_ends_of_blocks(model)) if settings.lean_se else set()
    if isinstance(pass_, Checking):
        kinds = {name: type(module).__name__ for module, name in names.items()}
        pass_.is_pooling = lambda name: 'MaxPool' in kinds.get(name, '')
    with _marks({m: n for m, n in names.items() if m not in hidden}, pass_) as (calls, stack):
        try:
            with settings.context():
                output = model(images)
            if settings.backward:
                (_loss(output, targets) * pass_.scale).backward()
        except (RuntimeError, TypeError, ValueError, IndexError) as e:
            if isinstance(e, torch.OutOfMemoryError):
                raise
            where = f'{stack[-1][0] or "the network"} fails' if stack else 'the backward pass fails'
            raise RunError(f'On {images.device} in {str(images.dtype)[6:]} {printable(where)}: '
                           f'{printable(first_line(e))}') from e
    for name, x in model.named_buffers():
        module, _, item = name.rpartition('.')
        pass_.last(Place(module, 0, 'buffer', item), x)
    for name, parameter in model.named_parameters():
        module, _, item = name.rpartition('.')
        if parameter.grad is not None:
            pass_.last(Place(module, 0, 'weight gradient', item), parameter.grad)
    if isinstance(pass_, Checking):
        pass_.finish(lambda place: settings.backward or 'gradient' not in place.what)
    return [n for m, n in names.items() if m not in hidden and n not in calls and not any(m.children())]


@contextmanager
def _marks(names: Dict[nn.Module, str], pass_: Pass) -> Iterator[Tuple[Dict[str, int], List[Tuple[str, int]]]]:
    """Mark what enters and leaves modules.

    Yields:
        Number of calls of each module, and the modules that are running.
    """
    calls: Dict[str, int] = {}
    stack: List[Tuple[str, int]] = []

    def mark(values: Any, name: str, call: int, what: str) -> Any:
        leaves, structure = tree_flatten(values)
        done: Dict[int, torch.Tensor] = {}  # attention looks whether query and key are one tensor
        for i, x in enumerate(leaves):
            if isinstance(x, torch.Tensor) and x.dtype in DTYPES:
                if id(x) not in done:
                    place = Place(name, call, what, str(i))
                    done[id(x)] = _Mark.apply(x, pass_, place)
                    pass_.marked(place, done[id(x)])
                leaves[i] = done[id(x)]
        return tree_unflatten(leaves, structure)

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        name = names[module]
        stack.append((name, calls.get(name, 0)))
        calls[name] = stack[-1][1] + 1
        return mark((args, kwargs), *stack[-1], 'input')

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        output = mark(output, *stack[-1], 'output')
        stack.pop()
        return output

    handles = [h for m in names for h in (
        m.register_forward_pre_hook(before, with_kwargs=True), m.register_forward_hook(after, with_kwargs=True))]
    try:
        yield calls, stack
    finally:
        for handle in handles:
            handle.remove()


def _ends_of_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that `models.lean_se` runs as one operation, unless they have hooks."""
    for block in model.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last = 2 if isinstance(block, BasicBlock) else 3
            yield getattr(block, f'bn{last}')
            yield getattr(block, f'act{last}')
            if block.se is not None:
                yield from block.se.modules()


def switch_off_dropping(model: nn.Module) -> None:
    """Set all shares of dropped values to 0: two devices do not drop the same ones."""
    for module in model.modules():
        if type(module).__name__.startswith(('Drop', 'PatchDrop', 'AlphaDrop', 'FeatureAlphaDrop')):
            for name in ('p', 'prob', 'drop_prob', 'drop_rate'):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.)
            if not any(True for _ in module.children()):
                module.eval()
        for name in DROP_RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.)


def _loss(output: Any, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of outputs of classes, half the mean square of others; the sum of all of a network."""
    losses = []
    for x in tree_flatten(output)[0]:
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.requires_grad:
            x = x.float()
            is_classes = x.ndim == 2 and x.shape[0] == targets.shape[0] and x.shape[1] > 1
            losses.append(F.cross_entropy(x, targets % x.shape[1]) if is_classes else x.square().mean() / 2)
    if not losses:
        raise RunError('The network has no output with a gradient: give --forward-only.')
    return torch.stack(losses).sum()
