"""Which files make a model on the Hub, and their hashes."""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import timm
from huggingface_hub import constants

from seresnet_timm.errors import RunError
from seresnet_timm.hub import card as model_card

CONFIG, CARD, SAFE_WEIGHTS = 'config.json', 'README.md', 'model.safetensors'
WEIGHTS = (SAFE_WEIGHTS, 'pytorch_model.bin')  # timm's names, in its order


# --- pull -------------------------------------------------------------------------------------------------------------

@dataclass
class Pulled:
    """A model that was pulled and verified.

    Attributes:
        repo_id: 'organisation/name'.
        commit: Commit on the Hub.
        folder: Where its files are: `out`, else the snapshot in the cache.
        sha256: Hash of every file, by name.
        config: Content of config.json.
        cached: Why the Hub was not asked; None if it was.
    """
    repo_id: str
    commit: str
    folder: Path
    sha256: Dict[str, str]
    config: Dict[str, Any]
    cached: Optional[str] = None


class Expected(NamedTuple):
    """What the Hub says of a file: hash function ('sha256', or 'git' for the object id of a small file) and hash."""
    kind: str
    value: str


def _choose(repo_id: str, names: List[str], with_weights: bool) -> List[str]:
    """The files of a repository that make the model, and its card."""
    if CONFIG not in names:
        raise RunError(f'{repo_id} is not a timm model: it has no {CONFIG}.')
    chosen = [CONFIG]
    if with_weights:
        weights = next((n for n in WEIGHTS if n in names), None)
        if weights is None:
            raise RunError(f'{repo_id} holds no weights that timm reads ({" or ".join(WEIGHTS)}).')
        chosen.append(weights)
    return chosen + [n for n in (CARD, model_card.CURVES) if n in names]


def _expected(repo_id: str, sibling) -> Expected:
    if sibling.lfs is not None:
        return Expected('sha256', sibling.lfs['sha256'])
    if not sibling.blob_id:
        raise RunError(f'{repo_id}: the Hub at {constants.ENDPOINT} names no hash of {sibling.rfilename}, so that it '
                       'cannot be verified: use another HF_ENDPOINT.')
    return Expected('git', sibling.blob_id)


def _digests(path: Path) -> Dict[str, str]:
    """Hashes of a file: SHA-256, and git's object id."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f'blob {path.stat().st_size}\0'.encode())
    is_small = path.stat().st_size <= 20_000_000  # the Hub keeps larger ones in LFS, whose hash is SHA-256
    buffer = memoryview(bytearray(1 << 18))
    with open(path, 'rb', buffering=0) as f:
        while length := f.readinto(buffer):
            sha256.update(buffer[:length])
            if is_small:
                git.update(buffer[:length])
    return {'sha256': sha256.hexdigest(), 'git': git.hexdigest()}


def _read_config(repo_id: str, folder: Path) -> Dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except ValueError as e:
        raise RunError(f'{repo_id}: its {CONFIG} is not JSON ({e}).')
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise RunError(f'{repo_id} is not a timm model: its {CONFIG} names no architecture.')
    return config


def plugin_of(architecture: str) -> Optional[str]:
    """Python package that registers an architecture with timm; None if timm itself does."""
    package = timm.model_entrypoint(architecture).__module__.split('.')[0]
    return None if package == 'timm' else package
