"""Which torch and torch_npu are installed, and whether torch_npu may be imported with that torch.

Neither is imported to find out: the wrong pair does not raise but aborts the process, and `import torch` alone loads
torch_npu through its entry point.
"""
import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

# From this release on torch_npu registers allocator settings by names that torch's CUDA builds have registered too:
# "Duplicated key 'pinned_reserve_segment_size_mb'", and the process aborts, GPU or not (run: 2.10.0.post7, 2.14.0;
# 2.9.0.post9 imports). In every release it refuses a torch that sees a GPU.
ABORTS_WITH_CUDA = (2, 10)


class Pair(NamedTuple):
    """What is installed.

    Attributes:
        torch: Version of torch with its build, e.g. '2.9.0+cpu'; None if it is not installed.
        cuda: CUDA version of torch's build; None for a CPU build.
        torch_npu: Version of torch_npu; None if it is not installed, '' if its version is unknown.
        pin: What torch_npu asks for, e.g. 'torch==2.9.0'; None if it names no version.
    """
    torch: Optional[str]
    cuda: Optional[str]
    torch_npu: Optional[str]
    pin: Optional[str]


class Incompatible(NamedTuple):
    """Why torch_npu cannot be used, as a clause, and what to do, as another."""
    problem: str
    remedy: str


def installed_pair(path: Optional[List[str]] = None) -> Pair:
    """Read the installed torch and torch_npu from their files.

    Args:
        path: Folders to look in; None for those of this process.
    """
    torch, cuda = _version_of('torch', path), None
    if torch is not None:
        cuda = _constant('torch', 'cuda', path)
    torch_npu, pin = _version_of('torch_npu', path), None
    if torch_npu is not None:
        requires = next((d.requires or [] for d in _distributions('torch_npu', path)), [])
        pins = [re.sub(r'[\s()]', '', r.split(';')[0]) for r in requires if re.match(r'torch\b', r)]
        pin = pins[0] if pins else None
    return Pair(torch, cuda, torch_npu, pin)


def incompatibility(pair: Optional[Pair] = None) -> Optional[Incompatible]:
    """Why torch_npu cannot be imported; None if it may be tried."""
    pair = installed_pair() if pair is None else pair
    if pair.torch_npu is None:
        return Incompatible(
            'torch_npu is not installed', f'{install_command(pair)}, after CANN, on a machine with Ascend NPUs')
    if pair.torch is None:
        return Incompatible('torch is not installed', install_command(pair))
    wanted = wanted_torch(pair)
    if wanted is not None and release(pair.torch) != wanted:
        return Incompatible(
            f'torch_npu {pair.torch_npu} is built for torch {dotted(wanted)}, installed is {pair.torch}',
            install_command(pair))
    if pair.cuda is not None and (wanted or release(pair.torch))[:2] >= ABORTS_WITH_CUDA:
        return Incompatible(
            f'torch {pair.torch} is a CUDA build, with which torch_npu {pair.torch_npu} aborts the process',
            install_command(pair))
    return None


def describe_incompatibility(pair: Optional[Pair] = None) -> Optional[str]:
    """`incompatibility` as one clause."""
    found = incompatibility(pair)
    return f'{found.problem} ({found.remedy})' if found else None


def install_command(pair: Pair) -> str:
    """How to install a matching torch and torch_npu, starting from what is installed."""
    wanted = wanted_torch(pair) or (release(pair.torch) if pair.torch else None)
    if wanted is None:
        return "install torch and the torch_npu of the same version, see README's table"
    command = f'install the CPU build of torch {dotted(wanted)}: pip install torch=={dotted(wanted)} (on x86-64 ' \
              "from PyTorch's CPU index, which pytorch.org/get-started names)"
    if pair.torch_npu is None:
        return f'{command}, and torch_npu of the same version: pip install torch_npu=={dotted(wanted)}'
    return command


def wanted_torch(pair: Pair) -> Optional[Tuple[int, ...]]:
    """Release of torch that torch_npu is built for: that of its pin, else its own."""
    for text in (pair.pin.partition('==')[2] if pair.pin else '', pair.torch_npu or ''):
        if release(text):
            return release(text)
    return None


def release(version: str) -> Tuple[int, ...]:
    """(2, 9, 0) of '2.9.0', '2.9.0.post9', '2.9.0+cpu' and '2.9.0.*'; () if it has no number."""
    match = re.match(r'\d+(\.\d+)*', version)
    return (tuple(int(n) for n in match.group().split('.')) + (0, 0))[:3] if match else ()


def dotted(version: Tuple[int, ...]) -> str:
    return '.'.join(map(str, version))


def _distributions(name: str, path: Optional[List[str]]) -> List[importlib.metadata.Distribution]:
    return list(importlib.metadata.distributions(name=name, **({} if path is None else {'path': path})))


def _folder(name: str, path: Optional[List[str]]) -> Optional[Path]:
    """Folder of a top-level package, found and not imported."""
    spec = importlib.util.find_spec(name) if path is None else importlib.machinery.PathFinder.find_spec(name, path)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _version_of(name: str, path: Optional[List[str]]) -> Optional[str]:
    if _folder(name, path) is None:
        return None
    version = _constant(name, '__version__', path)  # with the build, which PyPI's metadata lacks
    return version or next((d.version for d in _distributions(name, path)), '')


def _constant(package: str, name: str, path: Optional[List[str]]) -> Optional[str]:
    """A string that is assigned in the version.py of a package."""
    try:
        tree = ast.parse((_folder(package, path) / 'version.py').read_text())
    except (OSError, SyntaxError):
        return None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
        is_it = any(isinstance(t, ast.Name) and t.id == name for t in targets)
        if is_it and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return node.value.value
    return None
