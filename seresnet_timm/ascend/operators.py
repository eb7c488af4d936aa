"""Which operators of torch have a kernel for the NPU, which are made of others, and which would run on the CPU.

torch_npu computes an operator without a kernel on the CPU: it copies to the host, computes, and copies back, and says
so once, in a warning. With TORCH_NPU_FALLBACK_CPU_DISABLE=1 this is an error that names the operator. torch_npu reads
the variable at the first such operator of a process and never again, so it cannot be switched off later.
"""
import re
from typing import Any, Dict, Iterable, Iterator, List, Set

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_FALLBACK = 'TORCH_NPU_FALLBACK_CPU_DISABLE'
# kernels of torch_npu that do nothing but compute on the CPU: 2.7.1, 2.9.0 and 2.10 to 2.14; others have none at all
FALLING_BACK = ('aten::_fused_adam_', 'aten::_fused_adam_.tensor_lr')
# what torch_npu says once of an operator, at its first computation on the CPU
WARNING = re.compile(r"The operator '?(aten::[\w.]+).{0,80}(?:fall ?back|to run) ", re.S)
KERNEL, COMPOSITE, FALLBACK = 'kernel', 'composite', 'fallback'
# operators that reduce, which several Ascend chips have for floating point and int32 only
REDUCTIONS = ('sum', 'mean', 'prod', 'cumsum', 'amax', 'amin', 'norm', 'std', 'var')


class Watch(TorchDispatchMode):
    """Collects what reaches the dispatcher with a tensor on the NPU.

    Attributes:
        operators: Names, as 'aten::add.Tensor'.
        constraints: What Ascend does not take: 'float64', 'channels_last' or 'int64 reduction' -> names.
    """

    def __init__(self):
        super().__init__()
        self.operators: Set[str] = set()
        self.constraints: Dict[str, Set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.device.type == 'npu']
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.device.type == 'npu']
        if given or made:
            name = full_name(func)
            self.operators.add(name)
            for what in _broken(name, given, made):
                self.constraints.setdefault(what, set()).add(name)
        return result


def _broken(name: str, given: Any, made: Any) -> Iterator[str]:
    tensors = [*given, *made]
    if any(x.dtype in (torch.float64, torch.complex128) for x in tensors):
        yield 'float64'
    if any(x.ndim == 4 and min(x.shape[1:]) > 1 and not x.is_contiguous()
           and x.is_contiguous(memory_format=torch.channels_last) for x in tensors):
        yield 'channels_last'
    base = name.partition('::')[2].partition('.')[0]
    if base in REDUCTIONS and any(x.dtype == torch.int64 for x in given):
        yield 'int64 reduction'


def named_in_warnings(texts: Iterable[str]) -> List[str]:
    """Operators of which torch_npu warned that they run on the CPU."""
    return [match.group(1) for match in map(WARNING.search, texts) if match]


def full_name(func: Any) -> str:
    """Name of an overload as the dispatcher has it: 'aten::add.Tensor', 'aten::relu'."""
    return func.name() if callable(getattr(func, 'name', None)) else str(func)


def kind_of(name: str) -> str:
    """How an operator runs on the NPU: KERNEL of torch_npu, COMPOSITE of others, or FALLBACK to the CPU.

    torch_npu is loaded.
    """
    if name in FALLING_BACK:
        return FALLBACK
    table = torch._C._dispatch_dump_table(name)
    line = next((entry for entry in table.splitlines() if entry.startswith('PrivateUse1:')), '')
    if not line or '[backend fallback]' in line or 'fallback kernel' in line:
        return FALLBACK
    if '[kernel]' in line:
        return KERNEL
    out = _structured(name) if 'NonFunctional' in line else None
    return COMPOSITE if out is None else FALLBACK if kind_of(out) == FALLBACK else COMPOSITE


def _structured(name: str) -> Any:
    """The overload with `out` that computes a structured operator; None if there is none.

    Its functional and in-place forms allocate the result and call it.
    """
    namespace, _, rest = name.partition('::')
    base, _, overload = rest.partition('.')
    packet = getattr(getattr(torch.ops, namespace), re.sub('_$', '', base), None)
    own = [a.name for a in getattr(getattr(torch.ops, namespace), base).__getattr__(
        overload or 'default')._schema.arguments]
    for other in packet.overloads() if packet is not None else ():
        schema = getattr(packet, other)._schema
        inputs = [a.name for a in schema.arguments if not a.is_out]
        if len(inputs) < len(schema.arguments) and inputs == own:
            return f'{namespace}::{re.sub("_$", "", base)}.{other}'
    return None
