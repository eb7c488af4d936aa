"""Models in huggingface_hub's cache: their hashes, and what is used without the Hub

A link in the cache leads to a file whose name is its hash. On a file system without symbolic links, and in a copy of a
cache made with `cp -rL`, there is none: `pull` keeps the hashes in a file beside the snapshots, as of sha256sum.
"""
import errno
import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.files import atomic_path, try_lock
from seresnet_timm.hub.client import say
from seresnet_timm.hub.errors import reason, remedy
from seresnet_timm.hub.repository import (
    CONFIG,
    WEIGHTS,
    Pulled,
    choose_files,
    digest_of,
    is_commit,
    is_digest,
    read_config,
)

NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM)
HASHES = 'sha256'  # folder beside `snapshots`, with a file for each commit


class Copy(NamedTuple):
    """A file in the cache.

    Attributes:
        state: 'verified', 'damaged', or 'unknown' where nothing tells what its hash should be.
        sha256: Its hash.
        why: What its hash was compared with, or what is wrong or unknown.
    """
    state: str
    sha256: str
    why: str


def remove_file(path: Path) -> None:
    """Remove a file from the cache: the link in the snapshot, and the blob that it leads to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def remove_damaged(path: Path) -> str:
    """Remove a damaged file from the cache, where this user may; what became of it, for a sentence."""
    try:
        remove_file(path)
    except OSError as e:
        if e.errno not in NOT_WRITABLE:
            raise
        return f'and cannot be removed ({path}: {e.strerror})'
    return 'and was removed'


def cache_folder(repo_id: str, root: Optional[Path] = None) -> Path:
    """Folder of a repository in the cache, or in another one."""
    return Path(root or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type='model')


def set_ref(repo_id: str, revision: str, commit: str, root: Optional[Path] = None) -> None:
    """Write which commit a revision is, after all its files are verified: timm reads it when it is offline."""
    path = cache_folder(repo_id, root) / 'refs' / revision
    if path.is_file() and path.read_text() == commit:
        return
    _write(path, commit)


def commit_of(repo_id: str, revision: Optional[str], root: Optional[Path] = None) -> Optional[str]:
    """Commit that a revision is, as the cache says; None if it does not."""
    ref = cache_folder(repo_id, root) / 'refs' / (revision or constants.DEFAULT_REVISION)
    commit = ref.read_text().strip() if ref.is_file() else revision or ''
    return commit if is_commit(commit) else None


def keep_hashes(
        repo_id: str,
        commit: str,
        sha256: Dict[str, str],
        root: Optional[Path] = None,
        comment: Optional[str] = None,
) -> None:
    """Keep the hashes of files of a snapshot, with those that are there; `comment` says where they come from."""
    path = cache_folder(repo_id, root) / HASHES / commit
    kept = {**kept_hashes(repo_id, commit, root), **sha256}
    lines = [f'# {comment}\n'] if comment else []
    text = ''.join(lines + [f'{value}  {name}\n' for name, value in sorted(kept.items())])
    if not path.is_file() or path.read_text() != text:
        _write(path, text)


def kept_hashes(repo_id: str, commit: str, root: Optional[Path] = None) -> Dict[str, str]:
    """SHA-256 by file name, as `keep_hashes` wrote them."""
    path = cache_folder(repo_id, root) / HASHES / commit
    lines = path.read_text(errors='replace').splitlines() if path.is_file() else []
    pairs = [line.split('  ', 1) for line in lines if not line.startswith('#')]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and is_digest(pair[0])}


def comment_on(repo_id: str, commit: str) -> Optional[str]:
    """What was said of the hashes of a snapshot when they were kept."""
    path = cache_folder(repo_id) / HASHES / commit
    first = path.read_text(errors='replace').partition('\n')[0] if path.is_file() else ''
    return first[2:] if first.startswith('# ') else None


def _write(path: Path, text: str) -> None:
    """Write a small file into the cache; in one that cannot be written, e.g. another user's, it is left out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as tmp:
            Path(tmp).write_text(text)
    except OSError as e:
        if e.errno not in NOT_WRITABLE:
            raise
        say(f'{path} cannot be written ({e.strerror}): a later use without the Hub does not find what it would say.')


def remove_leftovers(repo_id: str, root: Optional[Path] = None) -> List[Path]:
    """Remove parts of files that no process is downloading; a process that is holds the lock of the file."""
    cache = cache_folder(repo_id, root)
    removed = []
    for part in (cache / 'blobs').glob('*.incomplete'):
        path = cache.parent / '.locks' / cache.name / f'{part.name.split(".")[0]}.lock'
        try:
            lock = try_lock(path) if path.exists() else None
            if lock is None and path.exists():
                continue
            part.unlink(missing_ok=True)
        except OSError as e:
            if e.errno in NOT_WRITABLE:
                continue  # of another user
            raise
        if lock is not None:
            lock.release()
        removed.append(part)
    return removed


def examine(repo_id: str, commit: str, name: str) -> Copy:
    """Compare a file of a snapshot with the hash that it should have."""
    cache = cache_folder(repo_id)
    path = cache / 'snapshots' / commit / name
    sha256 = digest_of(path, 'sha256').value
    blob = Path(os.readlink(path)).name if path.is_symlink() else ''
    kept = kept_hashes(repo_id, commit).get(name)
    if is_digest(blob):
        is_whole = blob == (sha256 if len(blob) == 64 else digest_of(path, 'git').value)
        return Copy('verified' if is_whole else 'damaged', sha256, 'the hash that the Hub named')
    if kept is not None:
        return Copy('verified' if kept == sha256 else 'damaged', sha256, 'the hash that the Hub named')
    blobs = cache / 'blobs'  # copied with the snapshot, by `cp -rL`
    if (blobs / sha256).is_file() or (blobs / digest_of(path, 'git').value).is_file():
        return Copy('verified', sha256, 'the hash that the Hub named')
    if name in (CONFIG, 'README.md', 'curves.png'):
        return Copy('unknown', sha256, 'no hash of it is known')
    try:
        checkpoint = read_checkpoint(path)
    except UsageError as e:
        return Copy('damaged', sha256, str(e))
    if checkpoint.holds_checksum:
        return Copy('verified', sha256, checkpoint.integrity)
    return Copy('unknown', sha256, 'no hash of it is known')


def pull_from_cache(repo_id: str, revision: Optional[str], error: BaseException, with_weights: bool) -> Pulled:
    """The model as it is in the cache, every file compared with the hash that the Hub named for it.

    Args:
        repo_id: 'organisation/name'.
        revision: Branch, tag or commit; the main branch if None.
        error: Why the Hub cannot be asked.
        with_weights: False takes the configuration only.

    Raises:
        RunError: The cache does not hold it, holds it damaged, or nothing tells whether its weights are whole.
    """
    why = reason(error)
    commit = commit_of(repo_id, revision)
    folder = cache_folder(repo_id) / 'snapshots' / (commit or '')
    names = [p.name for p in folder.iterdir()] if commit and folder.is_dir() else []
    if commit is None or CONFIG not in names or with_weights and not any(n in names for n in WEIGHTS):
        wanted = f'{repo_id}@{revision}' if revision else repo_id
        raise RunError(
            f'{wanted} is not in the cache ({constants.HF_HUB_CACHE}), and {why}. {remedy(error)} Without the Hub, '
            f'copy {cache_folder(repo_id).name} from the cache of a machine that has pulled it, or put its {CONFIG} '
            'and weights into a folder and name this as local-dir:FOLDER.')
    sha256, unknown = {}, []
    for name in choose_files(repo_id, names, with_weights):
        copy = examine(repo_id, commit, name)
        if copy.state == 'damaged':
            raise RunError(f'{repo_id}: {name} in the cache is damaged {remove_damaged(folder / name)}, and {why}: '
                           'pull again when the Hub can be reached.')
        if copy.state == 'unknown' and name in WEIGHTS:
            raise RunError(
                f'{repo_id}: the hash that {folder / name} should have is not known, as it is not a link of the cache '
                f'and was not put there by `seresnet-timm pull`, and {why}: pull it once where the Hub can be reached, '
                f'or use it unverified as local-dir:{folder}.')
        unknown += [name] if copy.state == 'unknown' else []
        sha256[name] = copy.sha256
    what = 'verified copy' if not unknown else 'copy'
    but = f'; the hash of {" and ".join(unknown)} is not known' if unknown else ''
    by_hand = comment_on(repo_id, commit)
    what, but = (what, but) if by_hand is None else ('copy', f'; it came {by_hand}')
    say(f'Using the {what} of {repo_id} in the cache, commit {commit}: {why}{but}.')
    return Pulled(repo_id, commit, folder, sha256, read_config(repo_id, folder), cached=why, unverified=unknown)
