"""Which files of a repository on the Hub make a model, and their hashes."""
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import timm
from huggingface_hub import constants
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from seresnet_timm.errors import RunError
from seresnet_timm.files import from_json, why_not_text

CONFIG, CARD, SAFE_WEIGHTS, CURVES = 'config.json', 'README.md', 'model.safetensors', 'curves.png'
WEIGHTS = (SAFE_WEIGHTS, 'pytorch_model.bin')  # timm's names, in its order


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
        unverified: Files whose hash was compared with nothing, as nothing tells it.
    """
    repo_id: str
    commit: str
    folder: Path
    sha256: Dict[str, str]
    config: Dict[str, Any]
    cached: Optional[str] = None
    unverified: List[str] = field(default_factory=list)


class Digest(NamedTuple):
    """Hash of a file.

    Attributes:
        kind: 'sha256', or 'git' for the object id of a small file.
        value: The hash in hexadecimal digits.
    """
    kind: str
    value: str


def choose_files(repo_id: str, names: List[str], with_weights: bool) -> List[str]:
    """The files of a repository that make the model, and its card; all have fixed names."""
    if CONFIG not in names:
        raise RunError(f'{repo_id} is not a timm model: it has no {CONFIG}.')
    chosen = [CONFIG]
    if with_weights:
        weights = next((n for n in WEIGHTS if n in names), None)
        if weights is None:
            raise RunError(f'{repo_id} has no weights that timm reads ({" or ".join(WEIGHTS)}).')
        chosen.append(weights)
    return chosen + [n for n in (CARD, CURVES) if n in names]


def digest_on_hub(repo_id: str, sibling: RepoSibling) -> Digest:
    """Hash that the Hub names for a file."""
    if sibling.lfs is not None:
        return Digest('sha256', sibling.lfs['sha256'])
    if not sibling.blob_id:
        raise RunError(f'{repo_id}: the Hub at {constants.ENDPOINT} names no hash of {sibling.rfilename}, so it cannot '
                       'be verified: use another HF_ENDPOINT.')
    return Digest('git', sibling.blob_id)


def digest_of(path: Path, kind: str) -> Digest:
    """Hash of a file, of the kind that the Hub names for it."""
    with open(path, 'rb') as f:
        return Digest(kind, sha_fileobj(f).hex() if kind == 'sha256' else git_hash(f.read()))


def is_digest(text: str) -> bool:
    """True for a SHA-256, or git's object id, in hexadecimal digits."""
    return re.fullmatch(r'[0-9a-f]{40}([0-9a-f]{24})?', text) is not None


def is_commit(text: str) -> bool:
    """True for git's name of a commit."""
    return is_digest(text)


def read_config(repo_id: str, folder: Path) -> Dict[str, Any]:
    """Content of config.json."""
    reason = why_not_text(folder / CONFIG)
    if reason:
        raise RunError(f'{repo_id}: its {CONFIG} cannot be read: {reason}.')
    try:
        config = from_json((folder / CONFIG).read_text(encoding='utf-8'))
    except ValueError as e:
        raise RunError(f'{repo_id}: its {CONFIG} is not JSON ({e}).')
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise RunError(f'{repo_id} is not a timm model: its {CONFIG} names no architecture.')
    return config


def plugin_of(architecture: str) -> Optional[str]:
    """Python package that registers an architecture with timm; None if timm itself does."""
    package = timm.model_entrypoint(architecture).__module__.split('.')[0]
    return None if package == 'timm' else package
