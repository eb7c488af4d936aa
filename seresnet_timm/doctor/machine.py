"""What the checks of `seresnet-timm doctor` look at: files, environment variables, and what the probes reported."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from seresnet_timm.ascend import installation, wheels
from seresnet_timm.doctor.probe_processes import Probe, run_probe

NO_NPU_SEEN = 'torch_npu sees no NPU'


@dataclass(frozen=True)
class Machine:
    """A machine as `inspect_machine` found it.

    Attributes:
        requested: 'auto', or the device that was asked for.
        root: Folder that stands for / where files of CANN, the driver and the kernel are read.
        environ: Environment variables of a training.
        pair: The installed torch and torch_npu.
        nodes: Device nodes of the NPUs.
        missing_nodes: Further device nodes that an NPU needs and that do not exist.
        imports: The imports that every training makes, with torch_npu loaded by torch where it is installed.
        without_backends: The same with no backend loaded, if the first failed.
        npu: `import torch_npu` and its devices; None if it was not tried.
        jpeg: The JPEG decoders.
    """
    requested: str
    root: Path
    environ: Mapping[str, str]
    pair: wheels.Pair
    nodes: List[Path] = field(default_factory=list)
    missing_nodes: List[Path] = field(default_factory=list)
    imports: Probe = Probe({}, None)
    without_backends: Probe = Probe({}, None)
    npu: Optional[Probe] = None
    jpeg: Probe = Probe({}, None)

    @property
    def needs_npu(self) -> bool:
        """The training was asked to run on an NPU."""
        return self.requested.startswith('npu')

    @property
    def has_ascend(self) -> bool:
        """Something here is meant for an NPU."""
        return self.needs_npu or self.pair.torch_npu is not None or bool(self.nodes)

    @property
    def npu_fault(self) -> str:
        """Status of a fault of the NPU: without --device npu a training can still use a GPU or the CPU."""
        return 'error' if self.needs_npu else 'warning'

    @property
    def torch_works(self) -> bool:
        return 'torch' in self.imports.data or 'torch' in self.without_backends.data

    @property
    def npus(self) -> List[Dict[str, Any]]:
        return self.npu.data['devices'] if self.npu is not None and self.npu.failure is None else []

    @property
    def gpus(self) -> List[str]:
        return (self.imports.data if 'torch' in self.imports.data else self.without_backends.data).get(
            'cuda_devices', [])

    @property
    def why_no_npu(self) -> Optional[str]:
        """Why no NPU can be used, as a clause; None if one can."""
        if self.pair.torch_npu is None:
            return 'torch_npu is not installed'
        incompatible = wheels.incompatibility(self.pair)
        if incompatible:
            return incompatible.problem
        if self.npu.failure:
            return f'torch_npu does not import: {self.npu.failure}'
        return None if self.npus else NO_NPU_SEEN

    @property
    def why_no_gpu(self) -> Optional[str]:
        """Why no GPU can be used, as a clause; None if one can."""
        if self.gpus:
            return None
        return 'torch sees no GPU' if self.pair.cuda else 'this torch is built without CUDA'


def inspect_machine(requested: str, root: Path, environ: Mapping[str, str]) -> Machine:
    """Read the files and run the probes, each in a process of its own."""
    pair = wheels.installed_pair()
    nodes, missing_nodes = installation.device_nodes(root)
    found: Dict[str, Probe] = {'jpeg': run_probe('jpeg', environ)}
    if pair.torch is not None:
        found['imports'] = run_probe('packages', environ)
        if 'torch' not in found['imports'].data:  # is torch broken, or a backend that it loads?
            found['without_backends'] = run_probe('packages', {**environ, 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'})
    if pair.torch_npu is not None and wheels.incompatibility(pair) is None:
        found['npu'] = run_probe('npu', environ)
    return Machine(requested, root, environ, pair, nodes, missing_nodes, **found)
