"""HCCL before a run: what the machine is, and what its checks find."""
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from seresnet_timm.ascend import installation

# what a launcher sets for the ranks of its node
VARIABLES = (
    'HCCL_IF_IP', 'HCCL_IF_BASE_PORT', 'HCCL_HOST_SOCKET_PORT_RANGE', 'HCCL_NPU_SOCKET_PORT_RANGE',
    'HCCL_CONNECT_TIMEOUT', 'HCCL_EXEC_TIMEOUT', 'HCCL_EVENT_TIMEOUT', 'ACL_DEVICE_SYNC_TIMEOUT')
FIRST_910 = re.compile(r'(Ascend)?910(Pro|Premium)?[AB]?')  # A2: Ascend910B1 and so on; A3: Ascend910_9391


@dataclass(frozen=True)
class Machine:
    """What HCCL's variables depend on.

    Attributes:
        is_first_910: The chip is one of the Atlas training series (910A); None if it is not known.
        cann: Version of CANN, e.g. (8, 2); None if it is not known.
    """
    is_first_910: Optional[bool] = None
    cann: Optional[Tuple[int, int]] = None

    @property
    def takes_port_ranges(self) -> bool:
        """HCCL_HOST_SOCKET_PORT_RANGE and HCCL_NPU_SOCKET_PORT_RANGE have an effect."""
        return self.is_first_910 is False and self.cann is not None and self.cann >= (8, 1)

    @property
    def ports(self) -> int:
        """Number of host ports from HCCL_IF_BASE_PORT on."""
        return 16 if self.cann is not None and self.cann < (8, 2) else 32


def inspect(device_name: Optional[str], environ: Mapping[str, str], root: Path = Path('/')) -> Machine:
    """What this machine is.

    Args:
        device_name: Name of the chip by torch_npu, such as Ascend910B1; None if no NPU was found.
        environ: The environment, which names CANN's folder.
        root: Folder that stands for /.
    """
    home, _ = installation.cann_home(root, environ)
    version = re.match(r'(\d+)\.(\d+)', (installation.cann_version(home) or '') if home else '')
    return Machine(
        None if device_name is None else FIRST_910.fullmatch(device_name) is not None,
        (int(version[1]), int(version[2])) if version else None)


@dataclass
class Findings:
    """What a check finds.

    Attributes:
        problems: Why the run would fail, each a sentence.
        notes: What the plan says, each a sentence.
        environ: Variables to set.
    """
    problems: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    environ: Dict[str, str] = field(default_factory=dict)

    def add(self, other: 'Findings') -> None:
        self.problems += other.problems
        self.notes += other.notes
        self.environ.update(other.environ)

    def set(self, name: str, value: str, reason: str) -> None:
        self.environ[name] = value
        self.notes.append(f'{name}={value}: {reason}.')
