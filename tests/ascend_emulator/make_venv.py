"""Make the environment of the tests on the emulated Ascend server: `python make_venv.py FOLDER [TORCH_NPU]`.

torch_npu needs a CPU build of its torch. PyPI has one for aarch64 up to torch 2.10, none for x86-64. Where pip finds no
CPU build, nothing is installed: exit code 3, and what to do. Arguments for pip, e.g. an index with CPU builds, go into
NPU_PIP_ARGS. With NPU_CUDA_BUILD=1 a CUDA build serves, several GB: it is then told that it is none, for these tests
only, and the emulator keeps it from aborting (allocator_keys.cpp).
"""
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WHEELS = runpy.run_path(str(ROOT / 'seresnet_timm' / 'ascend' / 'wheels.py'))
DEFAULT = WHEELS['NEWEST_FROM_PYPI'] if platform.machine() == 'aarch64' else '2.13.0'
CANNOT = 3


def main() -> None:
    folder = Path(sys.argv[1])
    torch_npu = sys.argv[2] if sys.argv[2:] and sys.argv[2] else DEFAULT
    torch = '.'.join(map(str, WHEELS['release'](torch_npu)))
    if torch not in WHEELS['TORCHVISION']:
        sys.exit(f'torch_npu {torch_npu} is not supported; these are: {", ".join(WHEELS["TORCHVISION"])}')
    torchvision = WHEELS['TORCHVISION'][torch]
    stamp = folder / '.ready'
    recipe = f'torch {torch}, torchvision {torchvision}, torch_npu {torch_npu}\n' + (ROOT / 'setup.cfg').read_text()
    if stamp.is_file() and stamp.read_text() == recipe:
        return build(folder)
    if platform.system() != 'Linux':
        give_up('torch_npu is for Linux only.')
    if shutil.which('g++') is None:
        give_up('g++ is not installed: the emulator is built from C++ (Debian: apt-get install g++).')

    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / 'bin' / 'python'), '-m', 'pip']
    subprocess.run([*pip, 'install', '--quiet', '--upgrade', 'pip'], check=True)
    more = shlex.split(os.environ.get('NPU_PIP_ARGS', ''))
    if os.environ.get('NPU_CUDA_BUILD') != '1':
        check_cpu_build([*pip, 'install', *more], torch)
    run([*pip, 'install', *more, f'torch=={torch}'])
    # a pin torch==X+cpu is not met by a CUDA build
    run([*pip, 'install', '--no-deps', f'torch_npu=={torch}.*' if torch == torch_npu else f'torch_npu=={torch_npu}'])
    run([*pip, 'install', f'torchvision=={torchvision}'])
    run([*pip, 'install', '-e', f'{ROOT}[demo,test]'])
    call_it_a_cpu_build(folder)
    stamp.write_text(recipe)
    build(folder)


def check_cpu_build(install: list, torch: str = DEFAULT) -> None:
    """Give up unless pip would install a CPU build of torch; looks at its metadata only."""
    report = subprocess.run(
        [*install, '--quiet', '--dry-run', '--ignore-installed', '--report', '-', f'torch=={torch}'],
        capture_output=True, text=True)
    if report.returncode:
        give_up(f'pip does not find torch {torch} for this machine: {report.stderr.strip().splitlines()[-1]}')
    names = {item['metadata']['name'].lower() for item in json.loads(report.stdout)['install']}
    if any(name.startswith(('nvidia', 'cuda-', 'triton')) for name in names):
        give_up(f'pip finds a CUDA build of torch {torch} only, with which torch_npu does not import. Name an index '
                "with CPU builds, PyTorch's own or a mirror of it: NPU_PIP_ARGS='--index-url URL' make test-npu. "
                'Or test with the CUDA build, 8 GB: NPU_CUDA_BUILD=1 make test-npu')


def call_it_a_cpu_build(folder: Path) -> None:
    """Where NPU_CUDA_BUILD allows a CUDA build, write into its version.py that it is none."""
    version = next(folder.glob('lib/python*/site-packages/torch/version.py'))
    text = version.read_text()
    if os.environ.get('NPU_CUDA_BUILD') == '1' and not re.search(r'^cuda\b.*= None$', text, re.M):
        text = re.sub(r"^(cuda\b.*=) '.*'$", r'\1 None', text, flags=re.M)
        version.write_text(re.sub(r"^(__version__ = '[\d.]+).*'$", r"\1+cpu'", text, flags=re.M))


def run(command: list) -> None:
    if subprocess.run(command).returncode:
        sys.exit(f'Failed: {shlex.join(command)}')


def build(folder: Path) -> None:
    """Check what was installed, and build the emulator, which the test processes then find in the cache."""
    command = [str(folder / 'bin' / 'python'), '-m', 'ascend_emulator.build']
    run([str(folder / 'bin' / 'python'), '-c',
         'import torch; assert torch.version.cuda is None, "a CUDA build of torch was installed"'])
    if subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT / 'tests')}).returncode:
        sys.exit('The emulator does not build.')


def give_up(reason: str) -> None:
    line = '=' * 100
    print(f'{line}\nTHE TESTS ON THE EMULATED ASCEND SERVER DO NOT RUN HERE: {reason}\n{line}', file=sys.stderr)
    sys.exit(CANNOT)


if __name__ == '__main__':
    os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'  # torch_npu does not load without the emulator
    main()
