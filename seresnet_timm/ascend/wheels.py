"""Which torch and torch_npu are installed, whether they may be imported together, and how to install a pair that may.

Neither is imported to find out: the wrong pair does not raise but aborts the process, and `import torch` alone loads
torch_npu through its entry point.
"""
import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import platform
import re
import sys
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

# The torch that each supported torch_npu is built for, and the torchvision of that torch. constraints/ holds a file for
# each, which is the text that `constraints` returns.
TORCHVISION = {
    '2.6.0': '0.21.0',
    '2.7.1': '0.22.1',
    '2.8.0': '0.23.0',
    '2.9.0': '0.24.0',
    '2.9.1': '0.24.1',
    '2.10.0': '0.25.0',
    '2.11.0': '0.26.0',
    '2.12.0': '0.27.0',
    '2.13.0': '0.28.0',
    '2.14.0': '0.29.0',
}
OLDEST = (2, 6, 0)
# The newest whose torch is a CPU build on PyPI, on aarch64. On x86-64 PyPI has CUDA builds only.
NEWEST_FROM_PYPI = '2.10.0'
# CPU builds for both machines. Their versions end in +cpu, which PyPI does not allow: such a pin excludes its builds.
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'

# From this release on torch_npu registers allocator settings by names that torch's CUDA builds have registered too:
# "Duplicated key 'pinned_reserve_segment_size_mb'", and the process aborts, GPU or not (run on x86-64: 2.10.0.post7,
# 2.14.0; 2.9.0.post9 imports). In every release it refuses a torch that sees a GPU.
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
            'torch_npu is not installed', f'on a machine with Ascend NPUs, after CANN: {install_command(pair)}')
    if pair.torch is None:
        return Incompatible('torch is not installed', install_command(pair))
    wanted = wanted_torch(pair)
    if wanted is not None and wanted < OLDEST:
        return Incompatible(
            f'torch_npu {pair.torch_npu} is older than {dotted(OLDEST)}, the oldest that this package works with',
            install_command(pair))
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


def install_command(pair: Pair, machine: Optional[str] = None) -> str:
    """The command that installs a matching pair with its torchvision, starting from what is installed.

    Args:
        pair: What is installed.
        machine: As `uname -m` prints it; None for this one.
    """
    installed = wanted_torch(pair) if pair.torch_npu is not None else None
    supported = installed is not None and installed >= OLDEST
    wanted = dotted(installed) if supported else _nearest(pair.torch)
    if not supported or not release(pair.torch_npu):
        torch_npu = f"'torch_npu=={wanted}.*'"
    else:
        torch_npu = '' if '+' in pair.torch_npu else f'torch_npu=={pair.torch_npu}'  # no index has a build of one's own
    torch = torch_pin(wanted, machine)
    # pip keeps a CUDA build whose version fits the pin
    keeps_it = pair.cuda is not None and '+cpu' not in torch and dotted(release(pair.torch)) == wanted
    return ' '.join(filter(None, (
        f'{_pip()} uninstall -y torch torchvision &&' if keeps_it else '', f'{_pip()} install', torch,
        torchvision_pin(wanted, machine), torch_npu, _index(torch))))


def reinstall_torch_command(pair: Pair, machine: Optional[str] = None) -> str:
    """The command that installs the installed version of torch anew: a CPU build where torch_npu needs one."""
    version = dotted(release(pair.torch))
    if not version:
        return install_command(pair, machine)
    pin = f'torch=={version}' if pair.torch_npu is None else torch_pin(version, machine)
    return ' '.join(filter(None, (f'{_pip()} install --force-reinstall --no-deps', pin, _index(pin))))


def add_package_command(name: str, pair: Pair, machine: Optional[str] = None) -> str:
    """The command that installs timm or torchvision and leaves the installed torch alone.

    Without torch's version pip takes the newest torchvision, and moves torch to the release which that needs.
    """
    version = dotted(release(pair.torch or ''))
    if not version:
        return f'{_pip()} install {name}'
    if name == 'torchvision':
        cuda = pair.cuda is not None and version in TORCHVISION
        name = f'torchvision=={TORCHVISION[version]}' if cuda else torchvision_pin(version, machine)
    return ' '.join(filter(None, (f'{_pip()} install torch=={version}', name, _index(name))))


def needs_cpu_index(torch: str, machine: Optional[str] = None) -> bool:
    """Whether the CPU build of a torch is on PyTorch's CPU index only, and not on PyPI."""
    return (machine or platform.machine()) != 'aarch64' or release(torch) > release(NEWEST_FROM_PYPI)


def torch_pin(torch: str, machine: Optional[str] = None) -> str:
    """Requirement that only the CPU build of a torch meets among those of PyPI and of the CPU index."""
    return f'torch=={torch}' + ('+cpu' if needs_cpu_index(torch, machine) else '')


def torchvision_pin(torch: str, machine: Optional[str] = None) -> str:
    """Requirement that the torchvision of that CPU build meets; one for a CUDA build does not import beside it."""
    if torch not in TORCHVISION:
        return 'torchvision'
    return f'torchvision=={TORCHVISION[torch]}' + ('+cpu' if needs_cpu_index(torch, machine) else '')


def constraints(torch: str) -> str:
    """Text of the constraints file of a supported torch_npu, for pip's -c."""
    lines = [
        f'# torch_npu {torch} in any post release, with the CPU build of its torch: pip install PACKAGE -c FILE',
        f"# Versions with +cpu are on PyTorch's CPU index only: --extra-index-url {CPU_INDEX}, or a mirror of it.",
        f'torch_npu == {torch}.*',
    ]
    for pin in (torch_pin, torchvision_pin):
        name, version = pin(torch, 'aarch64').split('==')
        other = pin(torch, 'x86_64').split('==')[1]
        if version == other:
            lines.append(f'{name} == {version}')
        else:
            lines += [f'{name} == {version} ; platform_machine == "aarch64"',
                      f'{name} == {other} ; platform_machine != "aarch64"']
    return '\n'.join(lines) + '\n'


def constraints_file(torch: str) -> Path:
    return Path(__file__).parent / 'constraints' / f'torch_npu-{torch}.txt'


def _index(pin: str) -> str:
    return f'--extra-index-url {CPU_INDEX}' if '+cpu' in pin else ''


def _nearest(torch: Optional[str]) -> str:
    """A supported release for an installed torch: the same, else one that differs in the last number only."""
    wanted = release(torch or '')
    same = [v for v in TORCHVISION if release(v)[:2] == wanted[:2]]
    return next((v for v in same if release(v) == wanted), same[-1] if same else NEWEST_FROM_PYPI)


def _pip() -> str:
    return f'{sys.executable} -m pip'


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
