"""Models in huggingface_hub's cache."""
import os
from pathlib import Path
from typing import List, Optional

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from seresnet_timm.errors import RunError
from seresnet_timm.files import atomic_path, try_lock
from seresnet_timm.hub.client import say
from seresnet_timm.hub.errors import reason, remedy
from seresnet_timm.hub.repository import CONFIG, WEIGHTS, Pulled, choose_files, digest_of, is_commit, read_config


def remove_file(path: Path) -> None:
    """Remove a file from the cache: the link in the snapshot, and the blob that it leads to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def cache_folder(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type='model')


def set_ref(repo_id: str, revision: str, commit: str) -> None:
    """Write which commit a revision is, after all its files are verified: timm reads it when it is offline."""
    path = cache_folder(repo_id) / 'refs' / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as tmp:
        Path(tmp).write_text(commit)


def remove_leftovers(repo_id: str) -> List[Path]:
    """Remove parts of files that no process is downloading; a process that is holds the lock of the file."""
    cache = cache_folder(repo_id)
    removed = []
    for part in (cache / 'blobs').glob('*.incomplete'):
        path = cache.parent / '.locks' / cache.name / f'{part.name.split(".")[0]}.lock'
        lock = try_lock(path) if path.exists() else None
        if lock is None and path.exists():
            continue
        part.unlink(missing_ok=True)
        if lock is not None:
            lock.release()
        removed.append(part)
    return removed


def pull_from_cache(repo_id: str, revision: Optional[str], error: BaseException, with_weights: bool) -> Pulled:
    """The model as it is in the cache, every file compared with the hash that is its name there.

    Args:
        repo_id: 'organisation/name'.
        revision: Branch, tag or commit; the main branch if None.
        error: Why the Hub cannot be asked.
        with_weights: False takes the configuration only.

    Raises:
        RunError: The cache does not hold it, or holds it damaged.
    """
    why = reason(error)
    cache = cache_folder(repo_id)
    ref = cache / 'refs' / (revision or constants.DEFAULT_REVISION)
    commit = ref.read_text().strip() if ref.is_file() else revision or ''
    folder = cache / 'snapshots' / commit
    names = [p.name for p in folder.iterdir()] if is_commit(commit) and folder.is_dir() else []
    if CONFIG not in names or with_weights and not any(n in names for n in WEIGHTS):
        wanted = f'{repo_id}@{revision}' if revision else repo_id
        raise RunError(f'{wanted} is not in the cache ({constants.HF_HUB_CACHE}), and {why}. {remedy(error)}')
    sha256 = {}
    for name in choose_files(repo_id, names, with_weights):
        path = folder / name
        blob = Path(os.readlink(path)).name if path.is_symlink() else ''
        if not blob or digest_of(path, 'sha256' if len(blob) == 64 else 'git').value != blob:
            if blob:
                remove_file(path)
            removed = 'and was removed' if blob else 'or cannot be verified'
            raise RunError(f'{repo_id}: {name} in the cache is damaged {removed}, and {why}: pull again when the Hub '
                           'can be reached.')
        sha256[name] = blob if len(blob) == 64 else digest_of(path, 'sha256').value
    say(f'Using the verified copy of {repo_id} in the cache, commit {commit}: {why}.')
    return Pulled(repo_id, commit, folder, sha256, read_config(repo_id, folder), cached=why)
