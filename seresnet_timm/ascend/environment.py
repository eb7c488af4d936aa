"""Environment variables of torch_npu, CANN and HCCL: what to set, why, and which have no effect.

A variable is in DEAD if neither torch_npu's sources nor its libraries contain its name (2.6.0.post5 to 2.14.0).
"""
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

TORCH_NPU_DOCS = "torch_npu's environment variable reference"
HCCL_DOCS = "CANN's environment variable reference, collective communication"
CANN_DOCS = "CANN's environment variable reference"
SET_CHECKED = 'set the variable: your value is checked and kept'


@dataclass(frozen=True)
class Variable:
    """A variable that torch_npu, CANN or HCCL reads.

    Attributes:
        recommended: Value for training; None if the default is right, or if the value depends on the machine.
        reason: What it does, and why this value.
        source: The document that describes it.
        chosen: What the package does with it where that depends on the machine or the run; for the table of the docs.
        override: How to change it.
    """
    recommended: Optional[str]
    reason: str
    source: str
    chosen: str = 'left as it is'
    override: str = 'set the variable: your value is kept'


VARIABLES: Dict[str, Variable] = {
    'TASK_QUEUE_ENABLE': Variable(
        '2', 'two-level launch queue: less host time per step, more peak memory; no effect under '
             'ASCEND_LAUNCH_BLOCKING=1 (default 1)', TORCH_NPU_DOCS),
    'CPU_AFFINITY_CONF': Variable(
        None, "binds torch_npu's threads to cores near their NPU (default: off); set, it replaces the launcher's own "
              'binding of each process to its share of the cores', TORCH_NPU_DOCS),
    'HCCL_CONNECT_TIMEOUT': Variable(
        '1800', 'seconds that ranks wait for each other at the first collective: slow loading of data or weights '
                'exceeds 120, error EI0006 (default 120, up to 7200)', HCCL_DOCS),
    'HCCL_EXEC_TIMEOUT': Variable(
        None, 'seconds that a collective may take (default 1836); 0 is never; the 910A takes steps of 68, from 1',
        HCCL_DOCS, 'set where `--hang-timeout` or `--data-timeout` let a rank wait longer', SET_CHECKED),
    'HCCL_BUFFSIZE': Variable(None, 'MB of device memory, taken twice by every communicator (default 200)', HCCL_DOCS),
    'HCCL_IF_IP': Variable(
        None, "this machine's address for HCCL; takes priority over HCCL_SOCKET_IFNAME", HCCL_DOCS,
        'several nodes: the address on the way to node 0, or `--local-addr`', SET_CHECKED),
    'HCCL_SOCKET_IFNAME': Variable(
        None, 'interface for HCCL, e.g. eth or =eth0', HCCL_DOCS, override=SET_CHECKED),
    'HCCL_IF_BASE_PORT': Variable(
        None, 'first of the 32 host ports of HCCL, 16 before CANN 8.2 (default 60000)', HCCL_DOCS,
        'set where the default ports are taken on node 0: 910A, or CANN before 8.1', SET_CHECKED),
    'HCCL_WHITELIST_DISABLE': Variable(None, '1 is the default already', HCCL_DOCS),
    'HCCL_OP_EXPANSION_MODE': Variable(None, 'AIV is for inference only on the A2 series: leave it unset', HCCL_DOCS),
    'ASCEND_RT_VISIBLE_DEVICES': Variable(
        None, 'NPUs that this process may use, ascending, e.g. 0,1', CANN_DOCS,
        'set by `--devices`', 'set it, or `--devices 0,2-5`'),
    'ASCEND_LAUNCH_BLOCKING': Variable(None, '1 waits after every operator: for finding errors, slow', TORCH_NPU_DOCS),
    'COMBINED_ENABLE': Variable(None, '1 merges operators on non-contiguous tensors (default 0)', TORCH_NPU_DOCS),
    'INF_NAN_MODE_ENABLE': Variable(
        None, 'the Atlas training series (910A) can only saturate on overflow; A2 and later give Inf and NaN by '
              'default', TORCH_NPU_DOCS),
    'PYTORCH_NPU_ALLOC_CONF': Variable(
        None, 'settings of the allocator; from torch 2.10 on PYTORCH_ALLOC_CONF, setting both is an error',
        TORCH_NPU_DOCS),
    'TORCH_DEVICE_BACKEND_AUTOLOAD': Variable(
        None, '0 keeps `import torch` from loading torch_npu', "torch's documentation of torch.backends"),
}

# read by CANN, or by some releases of torch_npu only; checked or chosen before a run
CHECKED: Dict[str, Variable] = {
    'TORCH_NPU_FALLBACK_CPU_DISABLE': Variable(
        None, '1 makes an operator without an NPU kernel an error that names it; else it runs on the CPU, slowly, with '
              'one warning. Read at the first such operator of a process: it holds for the whole run', TORCH_NPU_DOCS),
    'HCCL_EVENT_TIMEOUT': Variable(
        None, 'seconds that the device waits for an event (default 1868); has to be above HCCL_EXEC_TIMEOUT', HCCL_DOCS,
        'set to HCCL_EXEC_TIMEOUT + 32 where its default is too low', SET_CHECKED),
    'HCCL_HOST_SOCKET_PORT_RANGE': Variable(
        None, 'host ports of HCCL, e.g. 60000-60031, or auto; from CANN 8.1 on, not on the 910A', HCCL_DOCS,
        'set where the default ports are taken: A2 and later with CANN 8.1 and later', SET_CHECKED),
    'HCCL_NPU_SOCKET_PORT_RANGE': Variable(
        None, 'ports of HCCL on the NPU (default 16666); all ranks set it, or none', HCCL_DOCS,
        'set where another process uses an NPU of the run; one node', SET_CHECKED),
    'RANK_TABLE_FILE': Variable(
        None, 'torch_npu would make its links from this file, and the ranks meet through torchrun', TORCH_NPU_DOCS,
        'unset', 'none: under torchrun it does not fit'),
    'ACL_DEVICE_SYNC_TIMEOUT': Variable(
        None, 'seconds after which waiting for the device is an error (507046) instead of a hang', TORCH_NPU_DOCS,
        'several NPUs: HCCL_EVENT_TIMEOUT + 32, so that HCCL names a rank first, if torch_npu knows it', SET_CHECKED),
    'TORCH_HCCL_ASYNC_ERROR_HANDLING': Variable(
        None, "torch_npu's watchdog, on by default: ends the process at a network error of HCCL", TORCH_NPU_DOCS,
        override='0 switches it off, with a line in the plan'),
    'HCCL_ASYNC_ERROR_HANDLING': Variable(
        None, 'the old name of TORCH_HCCL_ASYNC_ERROR_HANDLING', TORCH_NPU_DOCS,
        override='0 switches it off, with a line in the plan'),
    'OOM_SNAPSHOT_ENABLE': Variable(
        None, 'writes what held the memory at an out-of-memory, into OOM_SNAPSHOT_PATH or the current folder; it slows '
              'allocation', TORCH_NPU_DOCS, 'offered', '1 switches it on'),
    'NPU_ASD_CONFIG': Variable(
        None, 'looks for silent corruption in gradients, bfloat16 and float32 only; up to 1.5 GB and 2 % or more of '
              'the speed', TORCH_NPU_DOCS, 'offered; checked before torch_npu reads it', 'enable:true switches it on'),
    'NPU_ASD_ENABLE': Variable(
        None, 'the same before torch_npu 7.1', TORCH_NPU_DOCS, 'offered; checked before torch_npu reads it',
        '1 switches it on'),
}

# Values that `seresnet-timm tune` tries: which is fastest depends on the machine
TUNED: Dict[str, Tuple[str, ...]] = {
    'TASK_QUEUE_ENABLE': ('1', '2'),
    'CPU_AFFINITY_CONF': ('1', '2'),
    'TORCH_NPU_LAZY_FUSION': ('True',),
}

DEAD: Dict[str, str] = {
    'PTCOPY_ENABLE': 'torch_npu no longer reads it',
    'DYNAMIC_OP': 'torch_npu no longer reads it',
    'TRI_COMBINED_ENABLE': 'torch_npu no longer reads it; only COMBINED_ENABLE remains',
    'BMMV2_ENABLE': 'torch_npu no longer reads it',
    'ALLOW_FP32': 'torch_npu no longer reads it; torch.npu.matmul.allow_hf32 decides',
    'NPU_CALCULATE_DEVICE': 'torch_npu no longer reads it; --device npu:I and ASCEND_RT_VISIBLE_DEVICES choose',
}


def as_table() -> str:
    """The table of docs/ascend-environment.md: variable, what is set, why, how to override."""
    rows = ['| variable | what is set | what it does, and why | how to change it |', '|---|---|---|---|']
    for name, variable in {**VARIABLES, **CHECKED}.items():
        value = variable.chosen if variable.recommended is None else f'`{variable.recommended}`'
        rows.append(f'| `{name}` | {value} | {variable.reason} | {variable.override} |')
    rows += [f'| `{name}` | left as it is; the plan says that it has no effect | {reason} | - |'
             for name, reason in DEAD.items()]
    return '\n'.join(rows) + '\n'
