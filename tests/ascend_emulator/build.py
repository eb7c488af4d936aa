"""Build the emulator for the torch and torch_npu of this Python: five stand-ins for CANN's libraries, and the router.

The result lies in a cache, under the hash of the sources and the versions; another call finds it there.
`python -m ascend_emulator.build` prints the folder.
"""
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import List

HERE = Path(__file__).resolve().parent
CANN = HERE / 'cann'

# What `import torch` finds in a folder of sys.path and calls, as it does torch_npu's own entry point: every process
# that imports torch gets the router, the ranks that torchrun starts and spawned loader workers too.
ENTRY_POINTS = '[torch.backends]\nascend_emulator = ascend_emulator:autoload\n'


def is_cuda_build() -> bool:
    """Whether torch is a CUDA build that make_venv.py calls a CPU build, and shares its allocator settings' names."""
    torch = Path(find_spec('torch').submodule_search_locations[0])
    return (torch / 'lib' / 'libtorch_cuda.so').exists() and (torch / 'include/c10/core/AllocatorConfig.h').exists()


def cache_folder() -> Path:
    """Where the emulator of these sources and versions belongs."""
    digest = hashlib.sha256(f'{version("torch")} {version("torch_npu")} {is_cuda_build()} {sys.version}'.encode())
    for path in sorted([*CANN.iterdir(), *HERE.glob('*.cpp'), HERE / 'build.py']):
        digest.update(path.read_bytes())
    base = os.environ.get('ASCEND_EMULATOR_CACHE') or Path.home() / '.cache' / 'seresnet_timm'
    return Path(base) / 'ascend_emulator' / digest.hexdigest()[:16]


def build() -> Path:
    """Build what is not in the cache yet.

    Returns:
        The folder of the libraries; `site` in it belongs on PYTHONPATH.

    Raises:
        RuntimeError: There is no compiler, or it failed.
    """
    folder = cache_folder()
    if (folder / 'site').is_dir():
        return folder
    if shutil.which('g++') is None or shutil.which('gcc') is None:
        raise RuntimeError('g++ is not installed: the Ascend emulator cannot be built.')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
        _build_into(Path(tmp))
        try:
            os.rename(tmp, folder)
        except OSError:
            if not (folder / 'site').is_dir():  # else another process was faster
                raise
            return folder
        os.mkdir(tmp)  # what TemporaryDirectory removes
    return folder


def _build_into(out: Path) -> None:
    third_party = Path(find_spec('torch_npu').submodule_search_locations[0]) / 'include' / 'third_party'
    headers = [f'-I{third_party}/acl/inc', f'-I{third_party}/hccl/inc', f'-I{CANN}']
    # CANN's headers warn; ours must not, see -Wall in the emulator's README
    cxx = ['g++', '-O2', '-fPIC', '-shared', '-std=c++17', '-w', *headers]

    _run(['gcc', '-O2', '-fPIC', '-c', str(CANN / 'unsupported.c'), '-o', str(out / 'unsupported.o')])
    # one library holds all symbols that libtorch_npu.so is linked to; the loader finds them wherever they are
    _run([*cxx, str(CANN / 'ascendcl.cpp'), str(CANN / 'acl_op_compiler.cpp'), str(out / 'unsupported.o'),
          '-Wl,-soname,libascendcl.so', '-o', str(out / 'libascendcl.so')])
    (out / 'unsupported.o').unlink()
    link = ['-Wl,--no-as-needed', f'-L{out}', '-lascendcl', '-Wl,-rpath,$ORIGIN']
    _run([*cxx, str(CANN / 'hccl.cpp'), *link, '-lrt', '-lpthread', '-Wl,-soname,libhccl.so',
          '-o', str(out / 'libhccl.so')])
    # torch_npu looks symbols up in these with dlsym, which searches what they are linked to
    for name in ('acl_op_compiler', 'ge_runner', 'graph', 'acl_tdt_channel'):
        _run(['gcc', '-shared', '-x', 'c', '/dev/null', *link, f'-Wl,-soname,lib{name}.so',
              '-o', str(out / f'lib{name}.so')])
    _run(_router_command(out))
    if is_cuda_build():
        torch = find_spec('torch').submodule_search_locations[0]
        _run(['g++', '-O1', '-fPIC', '-shared', '-std=c++20', '-w', f'-I{torch}/include',
              str(HERE / 'allocator_keys.cpp'), f'-L{torch}/lib', '-lc10', '-o', str(out / 'allocator_keys.so')])

    for name in ('runtime', 'compiler'):
        (out / name).mkdir()  # torch_npu looks whether CANN has them

    site = out / 'site'
    info = site / 'ascend_emulator-0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: ascend-emulator\nVersion: 0\n')
    (info / 'entry_points.txt').write_text(ENTRY_POINTS)


def _router_command(out: Path) -> List[str]:
    torch, torch_npu = (Path(find_spec(name).submodule_search_locations[0]) for name in ('torch', 'torch_npu'))
    includes = [torch / 'include', torch / 'include' / 'torch' / 'csrc' / 'api' / 'include',
                sysconfig.get_paths()['include'], HERE]
    return [
        'g++', '-O1', '-fPIC', '-shared', '-std=c++20', '-w', '-DTORCH_EXTENSION_NAME=_ascend_router',
        *(f'-I{i}' for i in includes), str(HERE / 'router.cpp'), f'-L{torch / "lib"}', f'-L{out}',
        f'-L{torch_npu / "lib"}', '-ltorch_python', '-ltorch_cpu', '-ltorch', '-lc10', '-ltorch_npu', '-lascendcl',
        '-Wl,-rpath,$ORIGIN', '-Wl,--allow-shlib-undefined',
        '-o', str(out / '_ascend_router.so'),
    ]


def _run(command: List[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f'The Ascend emulator does not build:\n{" ".join(command)}\n{result.stderr[-4000:]}')


if __name__ == '__main__':
    print(build())
