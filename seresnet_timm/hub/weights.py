"""Pretrained weights of timm's own names: into the cache from which `timm.create_model(pretrained=True)` takes them

timm names a repository of the Hub for most of its weights, whose files it takes from huggingface_hub's cache, and an
address for some, which it takes from torch.hub's cache. Weights are downloaded once per machine, before a run starts;
all else then loads them offline. Without a network they can be brought in by hand: see `fetch_weights.py`.
"""
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ContextManager, Iterator, List, Optional, Tuple

from huggingface_hub import constants
from huggingface_hub.hf_api import ModelInfo
from timm.models import get_pretrained_cfg
from timm.models._builder import _resolve_pretrained_source
from timm.models._hub import HF_WEIGHTS_NAME, _get_safe_alternatives
from torch.hub import HASH_REGEX, download_url_to_file, get_dir

from seresnet_timm.errors import RunError, first_line, printable
from seresnet_timm.hub.cache import (
    cache_folder,
    comment_on,
    commit_of,
    examine,
    keep_hashes,
    remove_damaged,
    set_ref,
)
from seresnet_timm.hub.client import offline, say
from seresnet_timm.hub.errors import explained, is_unreachable, reason, redact, remedy
from seresnet_timm.hub.pull import Source, ask_for_files, commit_of_answer, download_verified
from seresnet_timm.hub.repository import digest_of, digest_on_hub
from seresnet_timm.process import FIRST_ANSWER, within

READ_TIMEOUT = 30  # seconds without a byte, of a download that has begun


@dataclass(frozen=True)
class Pretrained:
    """Where timm takes the weights of a name from.

    Attributes:
        name: timm's name.
        repo_id: Repository on the Hub; None for weights with an address.
        revision: Its revision; None for the main branch.
        files: Names that the file may have, the preferred one first.
        url: Address; None for weights on the Hub.
    """
    name: str
    repo_id: Optional[str]
    revision: Optional[str]
    files: Tuple[str, ...]
    url: Optional[str] = None

    @property
    def where(self) -> str:
        return f'{self.repo_id} at {constants.ENDPOINT}' if self.repo_id else str(self.url)

    @property
    def by_hand(self) -> str:
        """How to have them without the Hub, as a sentence."""
        return (f'Without the Hub, bring {" or ".join(self.files[:1] if self.repo_id else self.files)} here and call '
                f'`seresnet-timm weights fetch {self.name} --from FILE`; --mirror URL takes another server.')


def source_of(name: str) -> Optional[Pretrained]:
    """Where timm takes the pretrained weights of a name from; None where it needs no download, or has none."""
    if ':' in name:
        return None
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.has_weights:
        return None
    kind, place = _resolve_pretrained_source(config.to_dict())
    if kind == 'url':
        url, file = place if isinstance(place, (list, tuple)) else (place, None)
        return Pretrained(name, None, None, (file or os.path.basename(urllib.parse.urlparse(url).path),), url)
    if kind != 'hf-hub':
        return None
    place, file = place if isinstance(place, (list, tuple)) else (place, HF_WEIGHTS_NAME)
    repo_id, _, revision = place.partition('@')
    safe = [] if config.custom_load == 'hf' else list(_get_safe_alternatives(file))
    return Pretrained(name, repo_id, revision or None, (*safe, file))


def download(name: str) -> Optional[Path]:
    """Have the pretrained weights of a name in the cache; their file, None for a name without such weights.

    Raises:
        RunError: They are not in the cache, or damaged, and cannot be downloaded.
    """
    source = source_of(name)
    if source is None:
        return None
    try:
        with explained(source.repo_id or name, 'download'):
            if source.repo_id is None:
                return _download_url(source)
            try:
                return download_from_hub(source, Source(source.repo_id))
            except Exception as e:
                if not is_unreachable(e):
                    raise
                return _from_cache(source, e)
    except RunError as e:  # the name is right, so that another way helps whatever the Hub answers
        raise RunError(str(e) if source.by_hand in str(e) else f'{e} {source.by_hand}') from None


@contextmanager
def downloaded(name: str) -> Iterator[None]:
    """Have the pretrained weights of a name in the cache, and use no network while they are loaded."""
    load: ContextManager[Any] = offline() if download(name) is not None else nullcontext()
    with load:
        yield


def download_from_hub(source: Pretrained, hub: Source) -> Path:
    """Download weights from a Hub and verify them; their file in the cache."""
    return download_listed(source, hub, ask_for_files(hub, source.revision))


def download_listed(source: Pretrained, hub: Source, info: ModelInfo, sha256: Optional[str] = None) -> Path:
    """Download weights, of a repository whose files the Hub has listed; `sha256` is compared with what it names."""
    siblings = {s.rfilename: s for s in info.siblings or []}
    file = next((f for f in source.files if f in siblings), None)
    if file is None:
        raise RunError(f'{source.repo_id} has no weights that timm reads ({" or ".join(source.files)}).')
    expected, commit = digest_on_hub(hub.repo_id, siblings[file]), commit_of_answer(hub, info)
    if sha256 is not None and expected.kind == 'sha256' and expected.value != sha256:
        raise RunError(f'{file} of {source.repo_id} at {hub.endpoint or constants.ENDPOINT} has the SHA-256 '
                       f'{expected.value}, --sha256 is {sha256}: nothing was kept.')
    path = download_verified(hub, file, commit, expected)
    found = expected.value if expected.kind == 'sha256' else digest_of(path, 'sha256').value
    keep_hashes(hub.repo_id, commit, {file: found})
    if source.revision != commit:
        set_ref(hub.repo_id, source.revision or constants.DEFAULT_REVISION, commit)
    return path


def url_cache() -> Path:
    """Folder where timm looks for weights with an address."""
    return Path(get_dir()) / 'checkpoints'


def find_in_cache(source: Pretrained) -> Optional[Path]:
    """File of weights in the cache that timm would load; None if there is none. Nothing is read."""
    if source.repo_id is None:
        path = url_cache() / source.files[0]
        return path if path.is_file() else None
    commit = commit_of(source.repo_id, source.revision)
    folder = cache_folder(source.repo_id) / 'snapshots' / (commit or '')
    found: List[Path] = [folder / f for f in source.files if commit and (folder / f).is_file()]
    return found[0] if found else None


def brought_in_by_hand(name: str) -> Optional[str]:
    """What the weights in the cache were compared with when they were brought in; None if they were downloaded."""
    source = source_of(name)
    if source is None or not source.repo_id:
        return None
    commit = commit_of(source.repo_id, source.revision)
    return comment_on(source.repo_id, commit) if commit is not None else None


def _from_cache(source: Pretrained, error: BaseException) -> Path:
    why, path = reason(error), find_in_cache(source)
    if path is None:
        raise RunError(f'The pretrained weights of {source.name} ({source.where}) are not in the cache '
                       f'({constants.HF_HUB_CACHE}), and {why}. {remedy(error)} {source.by_hand}')
    copy = examine(str(source.repo_id), path.parent.name, path.name)
    if copy.state == 'damaged':
        raise RunError(f'The pretrained weights of {source.name} in the cache ({path}) are damaged '
                       f'{remove_damaged(path)}, and {why}. {remedy(error)} {source.by_hand}')
    what = 'verified' if copy.state == 'verified' else 'not verified, as no hash of them is known'
    say(f'Pretrained weights of {source.name}: those in the cache ({what}), as {why}.')
    return path


# --- weights with an address ------------------------------------------------------------------------------------------

def _download_url(source: Pretrained) -> Path:
    path = find_in_cache(source)
    if path is not None:
        if not has_named_hash(path):
            say(f'{path} does not have the hash that its name says: if it does not load, remove it.')
        return path
    path = url_cache() / source.files[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError('HF_HUB_OFFLINE is set')
        download_address(str(source.url), path)
    except Exception as e:
        raise RunError(
            f'The pretrained weights of {source.name} are not in the cache ({path}), and {source.url} cannot be '
            f'downloaded ({why_no_download(e)}). Check the network, or set HTTPS_PROXY. {source.by_hand}') from None
    if not has_named_hash(path):
        say(f'{path} does not have the hash that its name says; timm does not check it.')
    return path


def download_address(url: str, path: Path) -> None:
    """Download a file; a server that does not answer is given up after seconds, also behind a proxy."""
    request = urllib.request.Request(url, method='HEAD', headers={'User-Agent': 'torch.hub'})

    def reach() -> None:
        try:
            urllib.request.urlopen(request, timeout=FIRST_ANSWER).close()
        except urllib.error.HTTPError as e:
            if e.code not in (403, 405, 501):  # servers that answer GET only
                raise
    within(FIRST_ANSWER, reach)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(READ_TIMEOUT)
    try:
        download_url_to_file(url, str(path), progress=False)
    finally:
        socket.setdefaulttimeout(before)


def has_named_hash(path: Path) -> bool:
    """True if a file has the hash whose first digits are in its name, or its name says none."""
    named = hash_in_name(path.name)
    return named is None or digest_of(path, 'sha256').value.startswith(named)


def hash_in_name(name: str) -> Optional[str]:
    """First digits of a SHA-256 in the name of a file: torch.hub's `name-0123abcd.pth`, or a blob of a Hub's cache."""
    if re.fullmatch(r'[0-9a-f]{64}', name.partition('.')[0]):
        return name.partition('.')[0]
    found = HASH_REGEX.search(name)
    return found[1] if found and len(found[1]) >= 8 else None


def why_no_download(error: BaseException) -> str:
    """Why a download failed, for a sentence."""
    cause = getattr(error, 'reason', None) if isinstance(error, urllib.error.URLError) else None
    if isinstance(error, urllib.error.HTTPError):
        return f'the server answers {error.code} {printable(error.reason)}'
    text = first_line(cause) if isinstance(cause, BaseException) else str(cause or first_line(error))
    return printable(redact(text))
