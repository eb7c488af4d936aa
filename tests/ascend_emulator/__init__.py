"""An emulated Ascend server for tests: torch_npu's own code on stand-ins for CANN. See README.md beside this file.

`start()` before torch is imported makes this process, and those that it starts, see eight NPUs.
"""
import atexit
import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Dict, Optional, Set

COUNTERS = (  # in the order of `Counter` in cann/emulator.h
    'host_waits', 'copies_to_device', 'copies_to_host', 'copies_on_device', 'side_stream_copies', 'stream_waits',
    'allocations', 'operators', 'overflows', 'all_reduces', 'broadcasts', 'all_gathers', 'reduce_scatters', 'reduces',
    'barriers', 'collective_bytes',
)

# Operators that stay torch_npu's own: allocation, storage, views, and copies between host and device.
TORCH_NPUS_OWN = {
    'empty.memory_format', 'empty_strided', 'empty_like', 'new_empty_strided', 'empty_with_format',
    'unsafe_empty_with_format', 'empty_with_swapped_memory', 'as_strided', 'as_strided_', 'view', '_reshape_alias',
    'resize_', 'resize_as_', 'set_', 'set_.source_Storage', 'set_.source_Storage_storage_offset', 'set_.source_Tensor',
    'is_set_to', 'record_stream', 'is_pinned', '_pin_memory', 'pin_memory', '_local_scalar_dense', '_to_copy', 'copy_',
    '_copy_from', '_copy_from_and_resize', 'get_storage_size', 'copy_memory_', 'convolution_overrideable',
    'convolution_backward_overrideable', '_lazy_clone', '_has_compatible_shallow_copy_type',
}

# Operators whose kernel in torch_npu does nothing but compute on the CPU.
FALLING_BACK = {'_fused_adam_', '_fused_adam_.tensor_lr'}
# Operators that torch_npu registers a kernel for, once it is loaded: not the router's.
OPERATORS: Set[str] = set()


def start() -> None:
    """Build the emulator if need be, and have this process and its children use it. Call it before importing torch."""
    assert 'torch' not in sys.modules, 'torch is imported already'
    os.environ.update(environment())
    folder = Path(os.environ['ASCEND_EMULATOR'])
    for name in ('ascendcl', 'acl_op_compiler', 'hccl', 'ge_runner', 'graph', 'acl_tdt_channel'):
        ctypes.CDLL(str(folder / f'lib{name}.so'), mode=ctypes.RTLD_GLOBAL)  # LD_LIBRARY_PATH is read at the start only
    sys.path[1:1] = [str(folder / 'site')]


def environment(**settings: object) -> Dict[str, str]:
    """Environment variables for a process that shall run on the emulator.

    Args:
        settings: devices, soc, memory_mb, fault, trace, counters: see cann/emulator.h; `counters` is a folder into
            which every process writes its counters when it ends.
    """
    from ascend_emulator.build import build
    folder = str(build())

    def prepend(name: str, *paths: str) -> str:
        rest = [p for p in os.environ.get(name, '').split(os.pathsep) if p and p not in paths]
        return os.pathsep.join([*paths, *rest])
    return {
        'ASCEND_EMULATOR': folder,
        'LD_LIBRARY_PATH': prepend('LD_LIBRARY_PATH', folder),
        'PYTHONPATH': prepend('PYTHONPATH', f'{folder}/site', str(Path(__file__).resolve().parent.parent)),
        'ASCEND_HOME_PATH': folder,  # what set_env.sh of a CANN sets
        'ASCEND_OPP_PATH': folder,
        'TORCH_NPU_FALLBACK_CPU_DISABLE': '1',  # an operator without a kernel of torch_npu is an error
        'TASK_QUEUE_ENABLE': '0',  # the router computes at once, it must not overtake torch_npu's queue
        **{f'ASCEND_EMULATOR_{k.upper()}': str(v) for k, v in settings.items()},
    }


def autoload() -> None:
    """What `import torch` calls: load torch_npu and install the router."""
    import torch
    keys = Path(os.environ['ASCEND_EMULATOR']) / 'allocator_keys.so'
    if keys.exists():  # torch is a CUDA build
        ctypes.CDLL(str(keys)).ascend_emulator_forget_allocator_keys()
    import torch_npu  # noqa: F401
    make_torchvision_importable(torch)

    spec = importlib.util.spec_from_file_location(
        '_ascend_router', os.path.join(os.environ['ASCEND_EMULATOR'], '_ascend_router.so'))
    router = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(router)
    sys.modules['_ascend_router'] = router

    names = {n[len('aten::'):] for n in torch._C._dispatch_get_registrations_for_dispatch_key('PrivateUse1')
             if n.startswith('aten::')}
    OPERATORS.update(names)
    # not the ones that torch_npu has no kernel for: they reach its own fallback to the CPU, which is switched off
    computable = {
        n for n in names - FALLING_BACK - TORCH_NPUS_OWN
        if 'npu' not in n and torch._C._dispatch_has_computed_kernel_for_dispatch_key(f'aten::{n}', 'CPU')
    }
    with _quiet_stderr():  # torch warns of every kernel that is registered anew
        router.install(sorted(computable))

    _compute_kl_div(torch)
    atexit.register(_write_counters)


def _compute_kl_div(torch) -> None:
    """The gradient of kl_div by its target, an operator of torch_npu's own: torch has no kernel for the CPU."""
    def backward(grad, input, target, reduction=1, *, log_target=False):
        of_target = target.exp() * (target + 1 - input) if log_target else target.log() + 1 - input
        of_target = of_target if log_target else of_target.masked_fill(target <= 0, 0)
        return grad * of_target / (target.numel() if reduction == 1 else 1)  # 1: the mean
    library = torch.library.Library('npu', 'IMPL', 'PrivateUse1')
    with _quiet_stderr():
        library.impl('kl_div_target_backward', backward)
    sys.modules[__name__]._kl_div = library  # a library that is dropped takes its kernels along


def counters() -> Dict[str, int]:
    """What this process has done so far on all its NPUs, by name."""
    read = _runtime().ascend_emulator_read
    read.restype = ctypes.c_int64
    return {name: read(i) for i, name in enumerate(COUNTERS)}


def set_overflow(device: int = 0) -> None:
    """Set the overflow flag of a 910A."""
    _runtime().ascend_emulator_set_overflow(device, True)


def _runtime() -> ctypes.CDLL:
    return ctypes.CDLL(os.path.join(os.environ['ASCEND_EMULATOR'], 'libascendcl.so'))


def _write_counters() -> None:
    folder, values = os.environ.get('ASCEND_EMULATOR_COUNTERS'), counters()
    if folder and values['operators']:  # not of a launcher, which computes nothing
        path = Path(folder) / f'{os.environ.get("RANK", "0")}-{os.getpid()}.json'
        path.write_text(json.dumps(values))


def read_counters(folder: Path) -> Dict[int, Dict[str, int]]:
    """Counters that processes left in a folder, by rank."""
    return {int(p.name.split('-')[0]): json.loads(p.read_text()) for p in sorted(folder.glob('*.json'))}


def make_torchvision_importable(torch) -> None:
    """PyPI's torchvision for x86-64 is built for CUDA: beside a CPU torch its operators do not load, and it does not
    import without two of their schemas. Nothing here calls them."""
    spec = importlib.util.find_spec('torchvision')
    extension = Path(spec.submodule_search_locations[0]) / '_C.so' if spec else None
    if extension is None or not extension.exists():
        return
    try:
        ctypes.CDLL(str(extension))
    except OSError:
        library = torch.library.Library('torchvision', 'DEF')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        sys.modules[__name__]._torchvision = library  # a library that is dropped takes its schemas along


class _quiet_stderr:
    """What C++ writes to stderr goes nowhere."""

    def __enter__(self):
        sys.stderr.flush()
        self._kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *_error: Optional[object]):
        os.dup2(self._kept, 2)
        os.close(self._kept)
