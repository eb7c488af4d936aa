"""Folders of empty wheels that offer pip what the real indexes do: names, versions and requirements."""
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict

from seresnet_timm.ascend import wheels

# what this package needs besides
OTHERS = {
    'timm': '1.0.31', 'safetensors': '0.8', 'huggingface_hub': '2.4', 'numpy': '2.4', 'pillow': '12.3',
    'simplejpeg': '1.9', 'pyyaml': '6.0.4', 'filelock': '4.3', 'psutil': '7.2.2', 'tqdm': '4.70', 'setuptools': '84.2',
    'decorator': '5.2',
}


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    stem = f'{name}-{version}'
    with zipfile.ZipFile(folder / f'{stem}-py3-none-any.whl', 'w') as z:
        metadata = ['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}', 'Provides-Extra: npu']
        tags = ['Wheel-Version: 1.0', 'Generator: test', 'Root-Is-Purelib: true', 'Tag: py3-none-any']
        z.writestr(f'{stem}.dist-info/METADATA', '\n'.join([*metadata, *(f'Requires-Dist: {r}' for r in requires), '']))
        z.writestr(f'{stem}.dist-info/WHEEL', '\n'.join([*tags, '']))
        z.writestr(f'{stem}.dist-info/RECORD', '')


def make_indexes(root: Path) -> Dict[str, Path]:
    """What PyPI offers each machine, and PyTorch's CPU index; CUDA builds need `nvidia`."""
    folders = {name: root / name for name in ('aarch64', 'x86_64', 'cpu')}
    for folder in folders.values():
        folder.mkdir()
    for machine, cuda_from in (('aarch64', (2, 11)), ('x86_64', (0,))):
        pypi = folders[machine]
        write_wheel(pypi, 'nvidia', '1')
        for name, version in OTHERS.items():
            write_wheel(pypi, name, version)
        write_wheel(
            pypi, 'seresnet_timm', '1', 'torch >= 2.6', 'torchvision >= 0.21', 'torch_npu >= 2.6; extra == "npu"')
        for version, torchvision in (*wheels.TORCHVISION.items(), ('2.14.1', '0.29.1')):
            cuda = wheels.release(version) >= cuda_from
            write_wheel(pypi, 'torch', version, 'nvidia' + '; platform_machine == "x86_64"' * (not cuda))
            write_wheel(pypi, 'torchvision', torchvision, f'torch=={version}')
            label = '+cpu' if machine == 'x86_64' and wheels.release(version) < (2, 12) else ''
            write_wheel(pypi, 'torch_npu', version, f'torch=={version}{label}')
    cpu = folders['cpu']
    for version, torchvision in wheels.TORCHVISION.items():
        write_wheel(cpu, 'torch', f'{version}+cpu')
        write_wheel(cpu, 'torchvision', f'{torchvision}+cpu', f'torch=={version}')
    return folders


def pip_would_install(machine: str, folders: list, *arguments: str) -> dict:
    """Versions by name that pip chooses on a machine; {} if nothing fits."""
    code = (f'import platform, runpy; platform.machine = lambda: {machine!r}; '
            'runpy.run_module("pip", run_name="__main__")')
    result = subprocess.run(
        [sys.executable, '-c', code, '--isolated', 'install', '--quiet', '--dry-run', '--ignore-installed', '--report',
         '-', '--no-index', *(f'--find-links={f}' for f in folders), *arguments], capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith('PIP_')})
    if result.returncode:
        assert 'ResolutionImpossible' in result.stderr or 'No matching distribution' in result.stderr, result.stderr
        return {}
    return {i['metadata']['name']: i['metadata']['version'] for i in json.loads(result.stdout)['install']}
