"""`seresnet-timm bench step --count`: launches, bytes, FLOPs and memory of a training step, and a roofline

A dispatch mode sees every operator that torch dispatches while a step runs. Nothing is computed: the tensors are on the
meta device, so the figures need no hardware and no time, and hold for every device.
  * launches: operators without views and without allocations; a device gets at least one kernel for each
  * read, written: every tensor that an operator takes or makes, once; an operator that reads one twice (BatchNorm in
    training) counts it once, so this is a lower limit
  * live: the most bytes at once of what the operators made; weights are not counted
  * FLOPs: of convolutions and matrix products, two for each multiplication with its addition (torch.utils.flop_counter)
"""
import sys
import weakref
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from seresnet_timm.models.create import create_model
from seresnet_timm.step.fast import create_optimizer
from seresnet_timm.step.moving_average import copy_counters_at_once

SGD = dict(opt='momentum', lr=0.1, momentum=0.9, weight_decay=1e-4)
ALLOCATIONS = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided')


class Counts(NamedTuple):
    """What was dispatched.

    Attributes:
        launches: Number of operators.
        read: Bytes.
        written: Bytes.
        flops: FLOPs.
        live: Bytes, the most at once.
    """
    launches: int = 0
    read: int = 0
    written: int = 0
    flops: int = 0
    live: int = 0


class Count(TorchDispatchMode):
    """Counts what reaches the dispatcher.

    Attributes:
        operators: Name of an operator that starts a kernel -> times.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter = Counter()
        self._read = self._written = self._flops = self._live = self._most_live = 0
        self._storages: Dict[int, int] = {}

    @property
    def counts(self) -> Counts:
        return Counts(sum(self.operators.values()), self._read, self._written, self._flops,
                      self._most_live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        namespace, _, name = func._schema.name.partition('::')
        if func.is_view or namespace == 'profiler':
            return result
        given, changed = _tensors_of(func, args, kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self._follow([x for x in made if not any(x is given_before for given_before in changed)])
        if name in ALLOCATIONS:
            return result
        self.operators[str(func)] += 1
        self._read += sum(_bytes(x) for x in given)
        self._written += sum(_bytes(x) for x in _distinct([*changed, *made]))
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self._flops += flops(*args, **kwargs, out_val=result)
        return result

    def _follow(self, tensors: List[torch.Tensor]) -> None:
        """Count the memory of new tensors until it is free."""
        for storage in (x.untyped_storage() for x in tensors):
            if storage._cdata not in self._storages:
                self._storages[storage._cdata] = storage.nbytes()
                self._live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata)
        self._most_live = max(self._most_live, self._live)

    def _freed(self, key: int) -> None:
        self._live -= self._storages.pop(key)


def _tensors_of(func: Any, args: Any, kwargs: Any) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
    """Tensors that an operator reads, and those that it changes."""
    given, changed = [], []
    values = list(zip(func._schema.arguments, args))
    values += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
    for argument, value in values:
        tensors = [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed += tensors
        if not argument.is_out:
            given += tensors
    return _distinct(given), changed


def _distinct(tensors: List[torch.Tensor]) -> List[torch.Tensor]:
    return list({id(x): x for x in tensors}.values())


def _bytes(x: torch.Tensor) -> int:
    """Bytes of the values; those that are expanded count once."""
    number = 1
    for size, stride in zip(x.shape, x.stride()):
        number *= size if stride else 1
    return number * x.element_size()


# --- networks ---------------------------------------------------------------------------------------------------------

@contextmanager
def block_end(lean: bool) -> Iterator[None]:
    """Networks of this package run with or without the blocks that save memory."""
    from seresnet_timm.models.lean_se import set_block_end
    set_block_end('lean' if lean else 'light')
    try:
        yield
    finally:
        set_block_end()


def contenders(model: str, rivals: Tuple[str, ...]) -> Dict[str, Tuple[Callable[[], nn.Module], bool, bool]]:
    """Networks by name: how one is made, whether its blocks save memory, and whether it is of this package."""
    made: Dict[str, Any] = {
        f'{model}, --lean-se off': (lambda: create_model(model, meta=True), False, True),
        f'{model}, --lean-se on': (lambda: create_model(model, meta=True), True, True),
    }
    for rival in rivals:
        made[f'{rival} (timm)'] = (lambda rival=rival: create_model(rival, meta=True), False, False)
    depth = ''.join(c for c in model if c.isdigit())
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
    from reference_network import DEPTHS, reference_network
    if int(depth or 0) in DEPTHS:
        made["the reference's"] = (lambda: _on_meta(reference_network, int(depth)), False, False)
    return made


def _on_meta(make: Callable[..., nn.Module], *args: Any) -> nn.Module:
    with torch.device('meta'):
        return make(*args)


def count_step(network: nn.Module, batch_size: int, img_size: int, dtype: torch.dtype = torch.float32) -> Count:
    """Forward, loss and backward of a step; on the meta device, all values in one dtype."""
    network = network.to(dtype=dtype).train()
    images = torch.empty(batch_size, 3, img_size, img_size, device='meta', dtype=dtype)
    target = torch.empty(batch_size, dtype=torch.long, device='meta')
    network(images)  # the first step of a network does more
    with Count() as count:
        F.cross_entropy(network(images), target).backward()
    return count


def count_update(network: nn.Module, ours: bool) -> Dict[str, Counts]:
    """Optimizer, zero_grad and moving average of a step, each by itself.

    The optimizer is that of accelerators: torch's choice there is `foreach`, that of this package `fused`.
    """
    network = network.to_empty(device='cpu').train()  # whose fused kernels dispatch as those of a GPU
    for value in network.state_dict().values():
        value.zero_()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = create_optimizer(network, **SGD) if ours else create_optimizer_v2(network, foreach=True, **SGD)
    average = ModelEmaV3(network, foreach=True)
    if ours:
        copy_counters_at_once(average)
    optimizer.step()  # creates the momentum
    average.update(network)  # puts the counters together
    counts = {}
    for name, call in (('optimizer', optimizer.step), ('EMA', lambda: average.update(network)),
                       ('zero_grad', optimizer.zero_grad)):
        with Count() as count:
            call()
        counts[name] = count.counts
    return counts


def run(model: str, rivals: Tuple[str, ...], batch_size: int, img_size: int) -> Dict[str, Any]:
    """Count the step of every network.

    Returns:
        Name of a network -> part of its step -> `Counts` as JSON values; and `operators` of forward and backward.
    """
    report: Dict[str, Any] = {}
    for name, (make, lean, ours) in contenders(model, rivals).items():
        with block_end(lean):
            step = count_step(make(), batch_size, img_size)
            half = count_step(make(), batch_size, img_size, torch.float16)
            report[name] = {'forward, loss, backward': step.counts._asdict(), 'operators': dict(step.operators),
                            'roofline': roofline(half.counts, batch_size)}
            for part, counts in count_update(make(), ours).items():
                report[name][part] = counts._asdict()
    return report


def print_report(report: Dict[str, Any], with_roofline: bool) -> None:
    """The figures as tables."""
    print(f'{"":<34}{"forward, loss, backward":^58}   {"launches of":^30}')
    print(f'{"":<34}{"launches":>10}{"GB read":>12}{"GB written":>12}{"GFLOP":>12}{"GB live":>12}   '
          f'{"optimizer":>10}{"zero_grad":>10}{"EMA":>10}')
    for name, parts in report.items():
        step = parts['forward, loss, backward']
        print(f'{name:<34}{step["launches"]:>10,}' + ''.join(
            f'{step[key] / 1e9:>12,.2f}' for key in ('read', 'written', 'flops', 'live')) + '   ' + ''.join(
            f'{parts[key]["launches"]:>10,}' for key in ('optimizer', 'zero_grad', 'EMA')))
    if with_roofline:
        print('\nRoofline, computed from published peaks, not measured: the same step with all values in fp16, without '
              'the\noptimizer; no device reaches it. ms: the longer of the times for FLOPs and for bytes.')
        for name, parts in report.items():
            for device, row in parts['roofline'].items():
                print(f'{name:<34}{device:<20}{max(row["compute_ms"], row["memory_ms"]):>8.1f} ms'
                      f'{row["images_per_second"]:>10,.0f} images/s  (FLOPs {row["compute_ms"]:.1f} ms, bytes '
                      f'{row["memory_ms"]:.1f} ms)')


# --- roofline ---------------------------------------------------------------------------------------------------------

class Device(NamedTuple):
    """Published peaks of a device.

    Attributes:
        flops: Of fp16 matrix products, a second.
        bandwidth: Of its memory, bytes a second.
    """
    flops: float
    bandwidth: float


DEVICES = {
    # Huawei, launch of the Ascend 910, August 2019: 256 TFLOPS of fp16. Memory: Liao et al., Ascend: a Scalable and
    # Unified Architecture for Ubiquitous Deep Neural Network Computing, HPCA 2021: 1.2 TB/s
    'Ascend 910': Device(256e12, 1.2e12),
    # Huawei publishes no data sheet of the chip; the Atlas 800T A2 is sold with 313 TFLOPS of fp16 a processor (910B3;
    # others of the series have 280 to 414), and its memory is given as 1.6 TB/s
    'Atlas A2 (910B3)': Device(313e12, 1.6e12),
    # NVIDIA H100 Tensor Core GPU, data sheet, SXM: 1,979 TFLOPS of fp16 with sparsity, half of it without; 3.35 TB/s
    'H100 SXM': Device(989e12, 3.35e12),
}


def roofline(counts: Counts, batch_size: int) -> Dict[str, Dict[str, float]]:
    """Images a second that a device cannot exceed, by its FLOPs or its bytes; computed, not measured."""
    found = {}
    for name, device in DEVICES.items():
        compute, memory = counts.flops / device.flops, (counts.read + counts.written) / device.bandwidth
        found[name] = {
            'compute_ms': 1e3 * compute, 'memory_ms': 1e3 * memory,
            'images_per_second': batch_size / max(compute, memory),
        }
    return found
