"""Make the environment of the tests on the emulated Ascend server: `python make_venv.py FOLDER`.

torch_npu needs a CPU build of exactly its version of torch. PyPI has one for aarch64; for x86-64 PyPI's is built for
CUDA, with which `import torch_npu` ends the process. Where pip finds no CPU build, nothing is installed: exit code 3,
and what to do. Arguments for pip, e.g. an index with CPU builds, go into NPU_PIP_ARGS.
"""
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TORCH, TORCHVISION = '2.13.0', '0.28.0'
CANNOT = 3


def main() -> None:
    folder = Path(sys.argv[1])
    stamp = folder / '.ready'
    recipe = f'torch {TORCH}, torchvision {TORCHVISION}\n' + (ROOT / 'setup.cfg').read_text()
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
    check_cpu_build([*pip, 'install', *more])
    run([*pip, 'install', *more, f'torch=={TORCH}'])
    run([*pip, 'install', f'torch_npu=={TORCH}', f'torchvision=={TORCHVISION}'])
    run([*pip, 'install', '-e', f'{ROOT}[demo,test]'])
    stamp.write_text(recipe)
    build(folder)


def check_cpu_build(install: list) -> None:
    """Give up unless pip would install a CPU build of torch; looks at its metadata only."""
    report = subprocess.run(
        [*install, '--quiet', '--dry-run', '--ignore-installed', '--report', '-', f'torch=={TORCH}'],
        capture_output=True, text=True)
    if report.returncode:
        give_up(f'pip does not find torch {TORCH} for this machine: {report.stderr.strip().splitlines()[-1]}')
    names = {item['metadata']['name'].lower() for item in json.loads(report.stdout)['install']}
    if any(name.startswith(('nvidia', 'cuda-', 'triton')) for name in names):
        give_up(f'pip finds a CUDA build of torch {TORCH} only, with which torch_npu does not import. Name an index '
                "with CPU builds, PyTorch's own or a mirror of it: NPU_PIP_ARGS='--index-url URL' make test-npu")


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
