"""`seresnet-timm compare`: the same weights and batch on two sides, module by module, forward and backward.

A side is a network on a device in a precision. The pass of the reference is stored (`trace_file.py`), then the tested
side runs twice and is compared with it (`trace.py`):

    local        each module, and each operation between two, gets the values and gradients of the reference: what
                 differs is the cause
    accumulated  the network runs as it is: what a difference becomes on its way

How much may differ is the larger of two numbers: TOLERANCE, and `NOISE_FACTOR` times what random changes of the size of
the rounding do to the reference itself. The second one matters where rounding decides: a gradient that is zero but for
rounding, a BatchNorm of few values, equal values under a MaxPool.
"""
import ctypes
import math
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.nn as nn

from seresnet_timm import device as devices
from seresnet_timm.errors import RunError, first_names
from seresnet_timm.inference import trace
from seresnet_timm.inference.compare_batch import Batch
from seresnet_timm.inference.trace import Checking, Figures, Recording, Settings, figures
from seresnet_timm.inference.trace_file import Place, TraceReader, TraceWriter

# by the precision of the arithmetic: of one module on equal inputs, and from the input of the network on
TOLERANCE: Dict[str, Dict[str, float]] = {
    'local': {'float32': 1e-4, 'float16': 5e-3, 'bfloat16': 4e-2},
    'accumulated': {'float32': 1e-3, 'float16': 5e-2, 'bfloat16': 0.4},
}
HALF_GRADIENTS = 2  # times as much of gradients in half precision
WEIGHT_TOLERANCE = 1e-6  # of the weights of two checkpoints, relative to the largest value
NOISE_FACTOR = 10
ROUNDING = {'float32': 2. ** -24, 'float16': 2. ** -11, 'bfloat16': 2. ** -8}
LOSS_SCALE = 1024.  # for gradients in float16
PASSES = ('local', 'accumulated')
DEFAULT = Settings()


@dataclass(frozen=True)
class Arithmetic:
    """In what a side computes.

    Attributes:
        precision: 'float32', 'float16' or 'bfloat16' (weights and values), or 'amp'.
        amp_dtype: Of autocast under 'amp'.
        hf32: Convolutions and matrix products of float32 have 11 bits, HF32 on npu and TF32 on cuda.
        loss_scale: Scale of the loss, for float16; None for LOSS_SCALE.
    """
    precision: str = 'float32'
    amp_dtype: str = 'float16'
    hf32: bool = False
    loss_scale: Optional[float] = None

    @property
    def rounding(self) -> str:
        """The key of TOLERANCE and ROUNDING; HF32 has as many bits as float16."""
        if self.precision == 'amp':
            return self.amp_dtype
        return 'float16' if self.hf32 and self.precision == 'float32' else self.precision

    @property
    def scale(self) -> float:
        is_half = 'float16' in (self.precision, self.amp_dtype if self.precision == 'amp' else '')
        return (self.loss_scale or LOSS_SCALE) if is_half else 1.

    def describe(self) -> str:
        text = f'amp {self.amp_dtype}' if self.precision == 'amp' else self.precision
        return text + (f', loss scale {self.scale:g}' if self.scale != 1 else '') + (', HF32' if self.hf32 else '')


@dataclass(frozen=True)
class Side:
    """A network on a device.

    Attributes:
        model: The network, on the CPU in float32; as it was after each pass, but that it no longer drops values.
        device: Where it runs.
        arithmetic: In what.
        origin: Where its weights come from.
    """
    model: nn.Module
    device: torch.device
    arithmetic: Arithmetic = Arithmetic()
    origin: str = ''

    def describe(self) -> str:
        found = [f'{self.device} ({devices.device_name(self.device.type)})', self.arithmetic.describe()]
        for package in ('torch', *(['torch_npu'] if self.device.type == 'npu' else [])):
            try:
                found.append(f'{package} {version(package)}')
            except PackageNotFoundError:
                pass
        return ', '.join(found)


@dataclass
class Difference:
    """What differs at a place, or does not.

    Attributes:
        place: Where.
        type: Class of the module.
        figures: How much; None if there is nothing to compare, and `problem` says why.
        limit: Up to where it counts as equal.
        measure: Which of the figures is compared with it, 'max' or 'mean'.
        problem: Why there are no figures.
    """
    place: Place
    type: str
    figures: Optional[Figures]
    limit: float = 0.
    measure: str = 'max'
    problem: Optional[str] = None

    @property
    def error(self) -> float:
        return math.inf if self.figures is None else getattr(self.figures, self.measure)

    @property
    def differs(self) -> bool:
        return self.problem is not None or not self.error <= self.limit

    @property
    def excess(self) -> float:
        """The error, as a multiple of what is allowed."""
        return self.error / self.limit if self.limit else math.inf * bool(self.error) if self.error else 0.

    @property
    def is_backward(self) -> bool:
        return 'gradient' in self.place.what


@dataclass
class Comparison:
    """The outcome.

    Attributes:
        reference: The reference, in words.
        tested: The other side, in words.
        network: The network and the batch, lines of text.
        notes: What is worth knowing of both.
        passes: 'local' and 'accumulated' -> the places in the order of the pass, forward before backward.
        weights: Of two checkpoints: places whose weights were compared.
    """
    reference: str
    tested: str
    network: List[str]
    notes: List[str] = field(default_factory=list)
    passes: Dict[str, List[Difference]] = field(default_factory=dict)
    weights: List[Difference] = field(default_factory=list)

    @property
    def has_equal_layers(self) -> bool:
        """Both have the same weights by name and shape, so that their outputs can be compared."""
        return not any(d.problem for d in self.weights)

    def first(self, name: str, backward: bool) -> Optional[Difference]:
        """The first place of a pass that differs."""
        return next((d for d in self.passes.get(name, []) if d.differs and d.is_backward == backward), None)

    @property
    def equal(self) -> bool:
        return not any(d.differs for found in (self.weights, *self.passes.values()) for d in found)


@dataclass
class Reference:
    """A pass that was stored.

    Attributes:
        reader: The file.
        settings: How it ran, and how the tested side runs.
        idle: Names of the layers that were not called.
        noise: Precision -> pass -> place -> the largest and mean relative change that rounding makes.
    """
    reader: TraceReader
    settings: Settings
    idle: List[str]
    noise: Dict[str, Dict[str, Dict[str, Tuple[float, float]]]]


def record(
        side: Side,
        batch: Batch,
        settings: Settings,
        writer: TraceWriter,
        file: Path,
        kinds: List[str],
) -> Reference:
    """Run the reference, and find out what rounding does to it.

    Args:
        side: The reference.
        batch: The batch.
        settings: How the passes run.
        writer: Collects the trace.
        file: File to write the trace to.
        kinds: Precisions whose rounding is looked at.
    """
    idle = _run(side, batch, Recording(writer, side.arithmetic.scale), settings)
    writer.write(file)
    reference = Reference(TraceReader(file), settings, idle, {})
    for kind in kinds:
        passes = {}
        for name in PASSES:
            checking = Checking(reader=reference.reader, substitute=name == 'local', scale=side.arithmetic.scale,
                                noise=ROUNDING[kind], generator=torch.Generator().manual_seed(0))
            _run(side, batch, checking, settings)
            passes[name] = {str(p): (f.max, f.mean) for p, f in checking.found.items() if isinstance(f, Figures)}
        reference.noise[kind] = passes
    return reference


def check(side: Side, batch: Batch, reference: Reference, rtol: Optional[float] = None) -> Dict[str, List[Difference]]:
    """Run the tested side twice, and compare both passes with the reference.

    Args:
        side: The tested side.
        batch: The batch of the reference.
        reference: The reference.
        rtol: Tolerance over those of TOLERANCE.
    """
    kind = side.arithmetic.rounding
    types = {name: type(module).__name__ for name, module in side.model.named_modules()}
    passes = {}
    for name in PASSES:
        checking = Checking(reader=reference.reader, substitute=name == 'local', scale=side.arithmetic.scale)
        _run(side, batch, checking, reference.settings)
        noise = reference.noise.get(kind, {}).get(name, {})
        found = []
        for place in _in_order(checking.found, reference.reader, side.model):
            figures, problem = checking.found[place], None
            if not isinstance(figures, Figures):
                figures, problem = None, figures
            is_smooth = name == 'local' and ('gradient' not in place.what or kind == 'float32')
            changes = noise.get(str(place), (0., 0.))[0 if is_smooth else 1]
            factor = HALF_GRADIENTS if 'gradient' in place.what and kind != 'float32' else 1
            limit = max(rtol or TOLERANCE[name][kind] * factor, NOISE_FACTOR * changes)
            found.append(Difference(
                place, types.get(place.module, '?'), figures, limit, 'max' if is_smooth else 'mean', problem))
        passes[name] = found
    return passes


def _run(side: Side, batch: Batch, pass_: trace.Pass, settings: Settings) -> List[str]:
    """Run a pass of a side."""
    arithmetic, device = side.arithmetic, side.device
    is_amp = arithmetic.precision == 'amp'
    dtype = torch.float32 if is_amp else getattr(torch, arithmetic.precision)
    context = devices.autocast(device, is_amp, arithmetic.amp_dtype) if is_amp else nullcontext
    try:
        with _moved(side.model, device, dtype, pass_) as model:
            return trace.run(model, batch.images.to(device, dtype), batch.targets.to(device), pass_,
                             replace(settings, context=context))
    except torch.OutOfMemoryError:
        raise RunError(f'{device} is out of memory with -b {len(batch.images)}: try a smaller one.')


@contextmanager
def _moved(model: nn.Module, device: torch.device, dtype: torch.dtype, pass_: trace.Pass) -> Iterator[nn.Module]:
    """A network on a device in a dtype, with noise in its weights if the pass has noise; as it was afterwards.

    It is not copied: what was put in place of a method of a module would still call the module of the original.
    """
    noise = pass_.noise if isinstance(pass_, Checking) else 0.
    changes = noise or dtype != torch.float32
    kept = {name: x.detach().clone() for name, x in _tensors(model, changes)}
    training = {module: module.training for module in model.modules()}
    try:
        model.to(device=device, dtype=dtype)
        if noise:
            with torch.no_grad():
                for x in model.parameters():
                    x.mul_((1 + noise * (2 * torch.rand(x.shape, generator=pass_.generator) - 1)).to(device, dtype))
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        model.to(device='cpu', dtype=torch.float32)
        with torch.no_grad():
            for name, x in _tensors(model, changes):
                x.copy_(kept[name])
        for module, mode in training.items():
            module.training = mode
        trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc keeps most of what a pass has freed
        if trim is not None:
            trim(0)


def _tensors(model: nn.Module, with_weights: bool) -> Iterator[Tuple[str, torch.Tensor]]:
    """What a pass changes: buffers; weights too if it converts them."""
    yield from model.named_buffers()
    if with_weights:
        yield from model.named_parameters()


def _in_order(found: Dict[Place, Any], reference: TraceReader, model: nn.Module) -> List[Place]:
    """Places in the order of the computation: weights' gradients behind the gradient of their module's output."""
    order = {place: float(i) for i, place in enumerate(reference.places)}
    previous = -1.
    for place in found:  # those that the reference does not have follow the one before them
        previous = order.setdefault(place, previous + 1e-3)
    parents = {name for name, module in model.named_modules() if any(True for _ in module.children())}
    last = {place.module: i for place, i in order.items()
            if place.what == 'output gradient' and place.module not in parents}

    def rank(place: Place) -> Tuple[bool, float]:
        here: Optional[float] = order[place]
        if place.what == 'weight gradient' and place.module not in parents:
            here = last.get(place.module)
        elif place.what == 'weight gradient':  # complete when those of the modules in it are
            inner = place.module + '.' if place.module else ''
            here = max((i for name, i in last.items() if name.startswith(inner)), default=None)
        return 'gradient' in place.what, order[place] if here is None else here + 0.5
    return sorted(found, key=rank)


def compare_weights(a: nn.Module, b: nn.Module, rtol: Optional[float] = None) -> List[Difference]:
    """Compare the weights and buffers of two networks, in the order of the first."""
    ours, theirs = a.state_dict(), b.state_dict()
    types = {name: type(module).__name__ for name, module in [*b.named_modules(), *a.named_modules()]}
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        module, _, item = name.rpartition('.')
        problem, measured = None, None
        if name not in theirs or name not in ours:
            problem = 'only in the first' if name in ours else 'only in the second'
        elif ours[name].shape != theirs[name].shape:
            problem = f'has shape {tuple(theirs[name].shape)}, {tuple(ours[name].shape)} in the first'
        else:
            measured = figures(ours[name], theirs[name])
        found.append(Difference(Place(module, 0, 'weight', item), types.get(module, '?'), measured,
                                rtol or WEIGHT_TOLERANCE, 'max', problem))
    return found


def compare_sides(reference: str, model: nn.Module, tested: Side, rtol: Optional[float]) -> Comparison:
    """The comparison of two sides before their outputs are compared: with their weights, if they have two models."""
    result = Comparison(reference, tested.describe(), [])
    if tested.model is not model:
        result.weights = compare_weights(model, tested.model, rtol)
        if not result.has_equal_layers:
            result.notes.append('The two have different weights by name or shape: their outputs were not compared.')
    return result


def compare(
        reference: Side,
        tested: Side,
        batch: Batch,
        settings: Settings = DEFAULT,
        rtol: Optional[float] = None,
) -> Comparison:
    """Compare two sides in this process.

    Args:
        reference: The reference.
        tested: What is compared with it.
        batch: What both get.
        settings: How they run.
        rtol: Tolerance over those of TOLERANCE.
    """
    result = compare_sides(reference.describe(), reference.model, tested, rtol)
    if not result.has_equal_layers:
        return result
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as folder, TraceWriter() as writer:
        stored = record(reference, batch, settings, writer, Path(folder) / 'trace', [tested.arithmetic.rounding])
        result.passes = check(tested, batch, stored, rtol)
        result.notes += notes_on(stored)
    return result


def notes_on(reference: Reference) -> List[str]:
    """What limits the meaning of a comparison."""
    notes, zero = [], set()
    for place in reference.reader.places:
        if place.what == 'weight gradient' and not bool(reference.reader.get(place).any()):
            zero.add('.'.join(filter(None, (place.module, place.item))))
    if zero:
        notes.append(f'{len(zero)} weights have gradients of exactly zero in the reference, so what is before them is '
                     f'not tested by gradients: {first_names(sorted(zero), 3)}.')
    if reference.idle:
        notes.append(f'{len(reference.idle)} layers are not called: {first_names(reference.idle, 5)}.')
    return notes
