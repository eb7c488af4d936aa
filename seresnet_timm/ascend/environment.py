"""Environment variables of torch_npu, CANN and HCCL: what to set, why, and which have no effect.

A variable is in DEAD if neither torch_npu's sources nor its libraries contain its name (2.6.0.post5 to 2.14.0).
"""
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

TORCH_NPU_DOCS = "torch_npu's environment variable reference"
HCCL_DOCS = "CANN's environment variable reference, collective communication"
CANN_DOCS = "CANN's environment variable reference"


@dataclass(frozen=True)
class Variable:
    """A variable that torch_npu, CANN or HCCL reads.

    Attributes:
        recommended: Value for training; None if the default is right, or if the value depends on the machine.
        reason: What it does, and why this value.
        source: The document that describes it.
    """
    recommended: Optional[str]
    reason: str
    source: str


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
    'HCCL_EXEC_TIMEOUT': Variable(None, 'seconds that a collective may take (default 1800)', HCCL_DOCS),
    'HCCL_BUFFSIZE': Variable(None, 'MB of device memory, taken twice by every communicator (default 200)', HCCL_DOCS),
    'HCCL_IF_IP': Variable(None, "this machine's address for HCCL; takes priority over HCCL_SOCKET_IFNAME", HCCL_DOCS),
    'HCCL_SOCKET_IFNAME': Variable(None, 'interface for HCCL, e.g. eth or =eth0', HCCL_DOCS),
    'HCCL_IF_BASE_PORT': Variable(None, 'first of the 16 host ports of HCCL (default 60000)', HCCL_DOCS),
    'HCCL_WHITELIST_DISABLE': Variable(None, '1 is the default already', HCCL_DOCS),
    'HCCL_OP_EXPANSION_MODE': Variable(None, 'AIV is for inference only on the A2 series: leave it unset', HCCL_DOCS),
    'ASCEND_RT_VISIBLE_DEVICES': Variable(None, 'NPUs that this process may use, ascending, e.g. 0,1', CANN_DOCS),
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
