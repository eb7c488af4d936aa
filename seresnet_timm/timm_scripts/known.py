"""Known versions of timm's scripts, and where their verified copies are kept.

No distribution of timm on PyPI holds its train.py and validate.py: they are at the root of timm's repository, one tag
per release.
"""
import os
from pathlib import Path
from typing import Dict, Optional, Tuple

NAMES = ('train.py', 'validate.py')
REPOSITORY = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models'

SHA256: Dict[str, Dict[str, str]] = {
    'v1.0.26': {
        'train.py': '4dbf00cb971ac246ead5fd37ae4dfb3b9183864962cc2c819f7c2706582ec1f7',
        'validate.py': 'ac3f1c64480bee4f1dba28fc2dd8dcd205c38fcd1002b26e0e3013cdb5ae0b0f',
    },
    'v1.0.27': {
        'train.py': '1fb02d26fe16536bc7de2c987980644353117c2b2b8046532261464093cd1ac6',
        'validate.py': 'ac3f1c64480bee4f1dba28fc2dd8dcd205c38fcd1002b26e0e3013cdb5ae0b0f',
    },
    'v1.0.28': {
        'train.py': '1fb02d26fe16536bc7de2c987980644353117c2b2b8046532261464093cd1ac6',
        'validate.py': '1ff87867c808997ce443eb8ff8b2c7324519cdd0ec9dafbc3d5e666f89436749',
    },
}
NEWEST = 'v1.0.28'
# lists the hashes of a cached tag that the table does not know
MANIFEST = 'SHA256SUMS'


def tag_for_installed_timm() -> Tuple[str, str]:
    """Tag that matches the installed timm, else the newest known, and the reason."""
    from importlib.metadata import version as installed_version  # 20 ms of a start
    version = installed_version('timm')
    if f'v{version}' in SHA256:
        return f'v{version}', f'matches the installed timm {version}'
    return NEWEST, f'the newest known; the installed timm is {version}'


def tag_of(name: str, sha256: str) -> Optional[str]:
    """Newest known tag whose script of this name has this hash."""
    return next((tag for tag in reversed(SHA256) if SHA256[tag][name] == sha256), None)


def sha256_of(data: bytes) -> str:
    import hashlib
    return hashlib.sha256(data).hexdigest()


def cache_dir() -> Path:
    """Folder of the verified scripts, one subfolder per tag."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'seresnet_timm' / 'timm_scripts'


def expected_hashes(folder: Path) -> Dict[str, str]:
    """Hashes that a cached tag's files must have: the table's, else those it was fetched with."""
    if folder.name in SHA256:
        return SHA256[folder.name]
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return {}
    lines = [line.split() for line in manifest.read_text(errors='replace').splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2}
