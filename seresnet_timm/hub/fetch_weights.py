"""Bring pretrained weights into the cache from the Hub, a mirror, or a file that was carried here

They lie where `timm.create_model(pretrained=True)` finds them without a network, as if it had downloaded them.
"""
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Tuple

import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg

from seresnet_timm.checkpoints.file_kind import other_kind
from seresnet_timm.checkpoints.read import file_format, read_checkpoint
from seresnet_timm.errors import RunError, UsageError, first_line, printable
from seresnet_timm.files import atomic_path, temporary_folder
from seresnet_timm.hub.cache import cache_folder, commit_of, examine, keep_hashes, remove_file, set_ref
from seresnet_timm.hub.client import hub_name, say, split_name
from seresnet_timm.hub.errors import explained, is_answer, is_unreachable, reason, redact
from seresnet_timm.hub.pull import Source, ask_for_files, commit_of_answer, pull
from seresnet_timm.hub.repository import CONFIG, WEIGHTS, choose_files, digest_of, is_commit
from seresnet_timm.hub.weights import (
    Pretrained,
    download,
    download_address,
    download_listed,
    find_in_cache,
    hash_in_name,
    source_of,
    url_cache,
    why_no_download,
)
from seresnet_timm.models.create import check_model_name, create_model

SUFFIXES = ('.safetensors', '.bin', '.pth', '.pt', '.pkl', '.tar', '.npz')


@dataclass
class Fetched:
    """Weights that are in the cache now.

    Attributes:
        name: timm's name, or 'hf-hub:org/name'.
        path: Their file.
        sha256: Its hash.
        checked: What the hash was compared with; None if nothing tells what it should be.
    """
    name: str
    path: Path
    sha256: str
    checked: Optional[str]


def fetch_weights(
        name: str,
        file: Optional[str] = None,
        mirror: Optional[str] = None,
        sha256: Optional[str] = None,
) -> Fetched:
    """Put the pretrained weights of a model into the cache, or change nothing.

    Args:
        name: timm's name of them, or a model on the Hub.
        file: File to take them from, or folder that holds it; of a model on the Hub, its folder with config.json.
        mirror: Address of a mirror of the Hub, of a folder that holds the file, or of the file itself.
        sha256: Hash that the file must have.

    Raises:
        UsageError: There is no such model, it has no weights to fetch, or the file is not theirs.
        RunError: The download failed, or what came has another hash.
    """
    if file is not None and mirror is not None:
        raise UsageError('--from and --mirror exclude each other: leave out one.')
    sha256 = None if sha256 is None else _checked_digest(sha256)
    if mirror is not None and not re.match(r'https?://[^/]', mirror):
        raise UsageError(f"--mirror '{printable(mirror[:200])}' is not an address: write https://...")
    if hub_name(name) is not None or '/' in name:
        return _fetch_model(name, file, mirror, sha256)
    check_model_name(name, flag='')
    source = source_of(name)
    if source is None:
        raise UsageError(f'timm has no pretrained weights of {name} to fetch.')
    if file is not None:
        return _take(source, _find_file(source, Path(file)), sha256, f'from {file}')
    if mirror is not None:
        return _fetch_from_mirror(source, mirror, sha256)
    path = download(name) or Path()
    found = digest_of(path, 'sha256').value
    if sha256 not in (None, found):
        raise RunError(f'{path} has the SHA-256 {found}, --sha256 is {sha256}: remove the file if it is wrong.')
    named = source.repo_id or hash_in_name(path.name) and found.startswith(hash_in_name(path.name) or '')
    return Fetched(name, path, found, '--sha256' if sha256 else f'what {source.where} names' if named else None)


def _checked_digest(text: str) -> str:
    digest = text.lower().removeprefix('sha256:')
    if not re.fullmatch(r'[0-9a-f]{64}', digest):
        raise UsageError(f"--sha256 '{printable(text[:80])}' is not a SHA-256: give its 64 hexadecimal digits.")
    return digest


def _fetch_model(name: str, file: Optional[str], mirror: Optional[str], sha256: Optional[str]) -> Fetched:
    """Put a model of the Hub into the cache: with its configuration, so that `hf-hub:org/name` works offline."""
    repo_id, revision = split_name(name)
    if file is not None:
        return _take_folder(repo_id, revision, Path(file), sha256)
    pulled = pull(repo_id, revision=revision, mirror=None if mirror is None else mirror.rstrip('/'))
    weights = next(n for n in pulled.sha256 if n in WEIGHTS)
    found = pulled.sha256[weights]
    if sha256 not in (None, found):
        raise RunError(f'{weights} of {repo_id} has the SHA-256 {found}, --sha256 is {sha256}.')
    return Fetched(f'hf-hub:{repo_id}', pulled.folder / weights, found, f'what {mirror or constants.ENDPOINT} names')


def _take_folder(repo_id: str, revision: Optional[str], folder: Path, sha256: Optional[str]) -> Fetched:
    """A model of the Hub from a folder that holds its files."""
    if not folder.is_dir():
        raise UsageError(f'--from {folder} is not a folder: for a model on the Hub, name the one with its {CONFIG} and '
                         'weights in it.')
    names = choose_files(repo_id, [p.name for p in folder.iterdir()], with_weights=True)
    weights = next(n for n in names if n in WEIGHTS)
    found = {n: digest_of(folder / n, 'sha256').value for n in names}
    if sha256 not in (None, found[weights]):
        raise RunError(f'{folder / weights} has the SHA-256 {found[weights]}, not {sha256} (--sha256): nothing was '
                       'kept.')
    try:
        create_model(f'hf-hub:{repo_id}', folder, pretrained=True)
    except UsageError:
        raise
    except Exception as e:  # torch, safetensors and timm have their own
        raise UsageError(f'{folder} does not load as a model ({printable(first_line(e)[:200])}): nothing was kept.')
    commit = revision if revision and is_commit(revision) else found[weights][:40]
    known = commit_of(repo_id, revision)
    if known not in (None, commit) and (cache_folder(repo_id) / 'snapshots' / str(known) / weights).is_file():
        raise UsageError(f'{repo_id} is in the cache already, commit {known}: remove {cache_folder(repo_id)} to '
                         'replace it.')
    for name in names:
        _put_file(repo_id, folder / name, name, commit)
    checked = '--sha256' if sha256 else None
    keep_hashes(repo_id, commit, found, comment=f'from {folder}, compared with {checked or "no hash"}')
    if revision != commit:
        set_ref(repo_id, revision or constants.DEFAULT_REVISION, commit)
    return Fetched(f'hf-hub:{repo_id}', cache_folder(repo_id) / 'snapshots' / commit / weights, found[weights], checked)


# --- a file that is here ----------------------------------------------------------------------------------------------

def _find_file(source: Pretrained, path: Path) -> Path:
    """The file of weights that --from means."""
    if path.is_dir():
        known = [path / f for f in source.files if (path / f).is_file()]
        found = known[:1] or [p for p in sorted(path.iterdir()) if p.suffix in SUFFIXES]
        if len(found) != 1:
            raise UsageError(f'--from {path} holds {len(found) or "no"} files of weights ({source.files[0]}): name the '
                             'file.')
        return found[0]
    if not path.is_file():
        raise UsageError(f'--from {path} does not exist.')
    return path


def _take(source: Pretrained, path: Path, sha256: Optional[str], origin: str) -> Fetched:
    """Check a file, and put it into the cache."""
    found = digest_of(path, 'sha256').value
    name = _name_in_cache(source, path)
    commit, on_hub = (None, {}) if sha256 else _ask_hub(source)
    expected: Optional[str]
    if sha256 is not None:
        expected, what = sha256, '--sha256'
    elif on_hub:
        name = next((n for n, value in on_hub.items() if value == found), name)
        expected, what = on_hub.get(name) or next(iter(on_hub.values())), f'what {constants.ENDPOINT} names'
    else:
        named = (path.name, path.resolve().name, source.files[0])  # a blob of another cache has its hash as its name
        expected, what = next(filter(None, map(hash_in_name, named)), None), 'the hash in its name'
    if expected is not None and not found.startswith(expected):
        raise RunError(f'The file {origin} has the SHA-256 {found}, not {expected} ({what}): nothing was kept.')
    checked = None if expected is None else what
    _check_that_timm_loads(source, path, name, origin)
    if source.repo_id is None:
        target = url_cache() / source.files[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as tmp:
            shutil.copyfile(path, tmp)
    else:
        target = _put(source, path, name, commit or found[:40])
        keep_hashes(source.repo_id, target.parent.name, {name: found},
                    comment=f'{origin}, compared with {checked or "no hash"}')
    return Fetched(source.name, target, found, checked)


def _ask_hub(source: Pretrained) -> Tuple[Optional[str], Dict[str, str]]:
    """Commit and hashes of the weights on the Hub; None and {} where it cannot be asked, or has none."""
    if source.repo_id is None:
        return None, {}
    hub = Source(source.repo_id)
    try:
        info = ask_for_files(hub, source.revision)
    except Exception as e:
        if not is_unreachable(e) and not is_answer(e):
            raise
        say(f'The Hub does not tell the hash of {source.name}: {reason(e)}.')
        return None, {}
    hashes = {s.rfilename: s.lfs['sha256'] for s in info.siblings or [] if s.lfs is not None}
    return commit_of_answer(hub, info), {f: hashes[f] for f in source.files if f in hashes}


def _name_in_cache(source: Pretrained, path: Path) -> str:
    """Name under which timm looks for a file of this format."""
    is_safe = file_format(str(path)) == 'safetensors'
    return next((f for f in source.files if f.endswith('.safetensors') == is_safe), source.files[0])


def _check_that_timm_loads(source: Pretrained, path: Path, name: str, origin: str) -> None:
    """Refuse a file that timm would not load as the weights of this name."""
    cfg = get_pretrained_cfg(source.name, allow_unregistered=True)
    if cfg is not None and cfg.custom_load:
        return  # in a format of its own, which only the network reads
    try:
        if name.endswith('.safetensors'):
            kind = other_kind(str(path))
            if kind is not None:
                raise UsageError(f'The file {origin} is {kind.rstrip(".")}: nothing was kept.')
            weights = load_file(path)
        else:
            read_checkpoint(path)  # refuses what is not only weights
            weights = torch.load(path, map_location='cpu', weights_only=True)
        create_model(source.name, pretrained=True, pretrained_cfg_overlay=dict(state_dict=dict(weights)))
    except UsageError:
        raise
    except Exception as e:  # torch, safetensors and timm have their own
        raise UsageError(f'The file {origin} does not load as the weights of {source.name} '
                         f'({printable(first_line(e)[:200].rstrip(":"))}): nothing was kept.') from e


def _put(source: Pretrained, path: Path, name: str, commit: str) -> Path:
    """Put a file into huggingface_hub's cache, as if it was downloaded; its path there.

    Args:
        source: Which weights.
        path: The file.
        name: Its name in the repository.
        commit: Commit on the Hub; where the Hub cannot be asked, digits of the file's hash stand for it: as soon as it
            can be asked again, huggingface_hub takes the newest commit, whose files replace these if they differ.
    """
    repo_id = str(source.repo_id)
    cache, digest = cache_folder(repo_id), digest_of(path, 'sha256').value
    old = find_in_cache(source)
    if old is not None:
        copy = examine(repo_id, old.parent.name, old.name)
        if copy.state == 'damaged':
            remove_file(old)
        elif copy.sha256 != digest:
            raise UsageError(f'{source.name} is in the cache already, with other weights ({old}, SHA-256 '
                             f'{copy.sha256}): remove {cache} to replace them.')
        else:
            return old
    target = _put_file(repo_id, path, name, commit)
    set_ref(repo_id, source.revision or constants.DEFAULT_REVISION, commit)
    return target


def _put_file(repo_id: str, path: Path, name: str, commit: str) -> Path:
    """Copy a file into a snapshot of the cache, as a link if the file system has links."""
    cache = cache_folder(repo_id)
    target, blob = cache / 'snapshots' / commit / name, cache / 'blobs' / digest_of(path, 'sha256').value
    for folder in (target.parent, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(blob, target.parent), target)
    except OSError:  # there are no links here
        blob = target
    with atomic_path(blob) as tmp:
        shutil.copyfile(path, tmp)
    return target


# --- a mirror ---------------------------------------------------------------------------------------------------------

def _fetch_from_mirror(source: Pretrained, mirror: str, sha256: Optional[str]) -> Fetched:
    """Weights from a mirror of the Hub, else from a server that only has the file."""
    is_file = urllib.parse.urlsplit(mirror).path.endswith(SUFFIXES)
    if source.repo_id is None or is_file:
        return _fetch_file(source, mirror, is_file, sha256)
    hub = Source(source.repo_id, token=False, endpoint=mirror.rstrip('/'))  # the token of the Hub is not for others
    with explained(source.repo_id, 'download'):
        try:
            info = ask_for_files(hub, source.revision)
        except Exception as e:
            if is_unreachable(e):
                why = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else first_line(e)
                raise RunError(f'{mirror} cannot be reached ({why}): check --mirror and HTTPS_PROXY, or use --from '
                               'FILE.')
            info = None  # no Hub
        if info is not None:
            path = download_listed(source, hub, info, sha256)
            return Fetched(source.name, path, digest_of(path, 'sha256').value, f'what {mirror} names')
    return _fetch_file(source, mirror, is_file, sha256)


def _fetch_file(source: Pretrained, mirror: str, is_file: bool, sha256: Optional[str]) -> Fetched:
    """Weights from the first address that has them."""
    base = mirror.rstrip('/')
    places = [f'{source.repo_id}/resolve/{source.revision or constants.DEFAULT_REVISION}/', f'{source.repo_id}/', '']
    addresses = [mirror] if is_file else [
        f'{base}/{place}{file}' for place in (places if source.repo_id else ['']) for file in source.files]
    with temporary_folder(tempfile.gettempdir(), 'seresnet-timm-weights-') as folder:
        for address in addresses:
            path = folder / os.path.basename(urllib.parse.urlsplit(address).path)
            try:
                download_address(address, path)
            except Exception as e:
                if isinstance(e, urllib.error.HTTPError) and e.code == 404 and address != addresses[-1]:
                    continue
                raise RunError(f'The weights of {source.name} cannot be downloaded from {redact(address)} '
                               f'({why_no_download(e)}): check --mirror, or use --from FILE.') from None
            return _take(source, path, sha256, f'from {redact(address)}')
    raise AssertionError('one address at least')
