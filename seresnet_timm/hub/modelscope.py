"""Models on ModelScope, by its own SDK: `modelscope:org/name` or `modelscope:org/name@revision`

The SDK asks and transfers. What it brings is compared here with the SHA-256 that ModelScope lists, and gets its place
in the cache when it is complete. A snapshot is named by its hashes, as ModelScope names no commit. Address
(MODELSCOPE_ENDPOINT), token (MODELSCOPE_API_TOKEN, or `modelscope login`) and cache (MODELSCOPE_CACHE) are the SDK's.
"""
import contextlib
import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from seresnet_timm import errors
from seresnet_timm.engine.rules import is_revision
from seresnet_timm.errors import RunError, UsageError, first_line, first_names, printable
from seresnet_timm.files import temporary_folder
from seresnet_timm.hub.cache import cache_folder, commit_of, keep_hashes, kept_hashes, set_ref
from seresnet_timm.hub.client import is_repository, say
from seresnet_timm.hub.repository import CONFIG, WEIGHTS, Pulled, choose_files, digest_of, is_digest, read_config
from seresnet_timm.process import FIRST_ANSWER, within

PREFIX = 'modelscope:'
BRANCH = 'master'  # ModelScope's main branch
INSTALL = "pip install 'seresnet_timm[modelscope]', or pip install 'modelscope>=1.40,<2'"

# of the SDK: a bad connection is said after seconds, and a push is one commit or none
SETTINGS = {
    'MODELSCOPE_API_MAX_RETRIES': '1',
    'MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS': '1',
    'MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS': '2',
    'MODELSCOPE_UPLOAD_FAILED_FILE_MAX_RETRY_ROUNDS': '1',
    'MODELSCOPE_UPLOAD_RECOVERY_ENABLED': 'false',
}


# --- names and the SDK ------------------------------------------------------------------------------------------------

def is_name(text: str) -> bool:
    return text.lower().startswith(PREFIX)


def split_name(text: str) -> Tuple[str, Optional[str]]:
    """Repository and revision in 'modelscope:org/name@revision', both checked.

    Raises:
        UsageError: One of them is not valid; a valid one names no file outside its folder in the cache.
    """
    repo_id, at, revision = text[len(PREFIX):].partition('@')
    shown = printable(text if len(text) <= 120 else f'{text[:120]}...')
    if not is_repository(repo_id):
        raise UsageError(f"'{shown}' is not the name of a model on ModelScope: write {PREFIX}org/name, with letters, "
                         "digits, '-', '_' and '.'.")
    if at and not is_revision(revision):
        raise UsageError(f"'{shown}': what follows @ cannot be a branch, tag or commit: git does not allow this name.")
    return repo_id, revision or None


def make_api(cache: Optional[Path] = None) -> Any:
    """The SDK's object for requests; it keeps its locks in `cache`, by default the user's.

    Raises:
        RunError: The SDK is not installed.
    """
    for variable, value in SETTINGS.items():  # the SDK reads them when it is imported
        os.environ.setdefault(variable, value)
    try:
        from modelscope_hub import HubApi, HubConfig
    except ImportError:
        raise RunError(f"ModelScope's SDK is not installed: {INSTALL}.")
    config = HubConfig()
    config.cache_dir = cache or config.cache_dir
    return HubApi(config=config)


@contextlib.contextmanager
def explained(repo_id: str, doing: str) -> Iterator[None]:
    """Turn errors of the SDK, the network and the disk into a RunError of one sentence, without secrets."""
    loggers = [logging.getLogger(name) for name in ('modelscope', 'modelscope_hub', 'urllib3')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # it logs what it also raises
        yield
    except (UsageError, RunError):
        raise
    except Exception as e:
        sentence = _explain(e, repo_id, doing)
        if sentence is None:
            raise
        raise RunError(_redact(sentence)) from None  # the chain may hold a token
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _redact(text: str) -> str:
    text = errors.redact(text, (os.environ.get('MODELSCOPE_API_TOKEN', ''),))
    return printable(re.sub(r'\bms-[0-9a-f]{8}-[\w-]+', 'ms-***', text))


def is_unreachable(error: BaseException) -> bool:
    """True if ModelScope did not answer, or not completely."""
    name, library = type(error).__name__, type(error).__module__.split('.')[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or name in ('ServerError', 'RateLimitError') or (
        library in ('requests', 'urllib3') and 'JSON' not in name)


def _explain(error: BaseException, repo_id: str, doing: str) -> Optional[str]:
    name, library = type(error).__name__, type(error).__module__.split('.')[0]
    token = 'set MODELSCOPE_API_TOKEN, or log in with `modelscope login`'
    if name == 'NotExistError':
        return f'{repo_id} is not on ModelScope ({endpoint()}), or is private: check the name and revision, {token}.'
    if name in ('AuthenticationError', 'PermissionDeniedError'):
        return f'{repo_id}: ModelScope does not accept the token for this {doing}: {token}.'
    if is_unreachable(error):
        return f'{repo_id}: {_reason(error)}. {_remedy(doing)}'
    if isinstance(error, OSError) and error.errno is not None:
        return (f'{repo_id}: {error.filename or "a file"} cannot be written ({error.strerror}): free disk space, or '
                'set MODELSCOPE_CACHE or TMPDIR to another folder.')
    if library in ('modelscope_hub', 'modelscope', 'requests') or isinstance(error, ValueError):
        return (f'{repo_id}: ModelScope ({endpoint()}) refuses the request, or its answer is not valid: '
                f'{first_line(error)}. {_remedy(doing)}')
    return None


def _reason(error: BaseException) -> str:
    what = first_line(error) if isinstance(error, TimeoutError) else type(error).__name__
    return f'ModelScope cannot be reached at {endpoint()} ({what})'


def _remedy(doing: str) -> str:
    by_hand = '' if doing == 'push' else (
        ' Without a network, put its config.json and weights into a folder and name this as local-dir:FOLDER.')
    return f'Check the network, HTTPS_PROXY and MODELSCOPE_ENDPOINT.{by_hand}'


def endpoint() -> str:
    """ModelScope's address, as the SDK reads it."""
    from modelscope_hub import HubConfig
    return str(HubConfig().endpoint)


def has_token() -> bool:
    from modelscope_hub import HubConfig
    return bool(HubConfig().token)


# --- pull -------------------------------------------------------------------------------------------------------------

def fetch(name: str, with_weights: bool = True, cache: Optional[Path] = None) -> Pulled:
    """Download a model into the cache, every file compared with the hash that ModelScope lists for it.

    Args:
        name: 'modelscope:org/name', or 'modelscope:org/name@revision'.
        with_weights: False downloads the configuration only.
        cache: Folder to download to, instead of the cache.
    """
    repo_id, revision = split_name(name)
    api = make_api(cache)
    root = cache or cache_root()
    with explained(repo_id, 'pull'):
        try:
            listed = within(FIRST_ANSWER, lambda: _hashes_of(api, repo_id, revision))
        except Exception as e:
            if not is_unreachable(e):
                raise
            return _from_cache(repo_id, revision, with_weights, e)
        names = choose_files(repo_id, list(listed), with_weights)
        for file in names:
            if not is_digest(listed[file]):
                raise RunError(f'{repo_id}: ModelScope lists no SHA-256 of {file}, so it cannot be verified.')
        wanted = {file: listed[file] for file in names}
        all_names = choose_files(repo_id, list(listed), with_weights=any(n in listed for n in WEIGHTS))
        snapshot = _snapshot_of({file: listed[file] for file in all_names})
        folder = cache_folder(repo_id, root) / 'snapshots' / snapshot
        if not _is_whole(folder, wanted):
            _download(api, repo_id, revision, wanted, folder)
        keep_hashes(repo_id, snapshot, wanted, root)
        set_ref(repo_id, revision or BRANCH, snapshot, root)
    return Pulled(repo_id, snapshot, folder, wanted, read_config(repo_id, folder))


def cache_root() -> Path:
    """Folder of this package in ModelScope's cache."""
    own = os.environ.get('MODELSCOPE_CACHE')
    return Path(own or Path.home() / '.cache' / 'modelscope').expanduser() / 'seresnet_timm'


def _hashes_of(api: Any, repo_id: str, revision: Optional[str]) -> Dict[str, str]:
    """SHA-256 of every file at the top of a repository, by name; '' where ModelScope lists none."""
    files = api.list_repo_files(repo_id, 'model', revision=revision or BRANCH, recursive=False)
    return {f.path: (f.sha256 or '').lower() for f in files if not f.is_dir}


def _snapshot_of(hashes: Dict[str, str]) -> str:
    text = ''.join(f'{value}  {name}\n' for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_whole(folder: Path, hashes: Dict[str, str]) -> bool:
    return all((folder / name).is_file() and digest_of(folder / name, 'sha256').value == value
               for name, value in hashes.items())


def _download(api: Any, repo_id: str, revision: Optional[str], hashes: Dict[str, str], folder: Path) -> None:
    """Download files beside their place and verify them; the folder gets its name when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent, '.pull-') as tmp:
        new = tmp / 'new'
        for name, expected in hashes.items():
            for attempt in (1, 2):
                path = Path(api.download_file(
                    repo_id, 'model', name, revision=revision or BRANCH, local_dir=tmp / 'sdk', force=True))
                actual = digest_of(path, 'sha256').value
                if actual == expected:
                    break
                path.unlink()
                if attempt == 2:
                    raise RunError(f'{repo_id}: {name} arrived damaged twice (hash {actual[:12]}, ModelScope lists '
                                   f'{expected[:12]}) and was removed: try again, or use another proxy.')
                say(f'{repo_id}: {name} does not have the hash that ModelScope lists: downloading it again.')
            new.mkdir(exist_ok=True)
            shutil.move(str(path), new / name)
        if folder.exists():  # damaged, as it is not whole
            os.rename(folder, tmp / 'old')
        os.rename(new, folder)


def _from_cache(repo_id: str, revision: Optional[str], with_weights: bool, error: BaseException) -> Pulled:
    """The verified copy in the cache, where ModelScope cannot be asked."""
    why, root = _redact(_reason(error)), cache_root()
    snapshot = commit_of(repo_id, revision or BRANCH, root)
    hashes = kept_hashes(repo_id, snapshot, root) if snapshot else {}
    if snapshot is None or CONFIG not in hashes or with_weights and not any(n in hashes for n in WEIGHTS):
        wanted = f'{repo_id}@{revision}' if revision else repo_id
        raise RunError(f'{wanted} is not in the cache ({root}), and {why}. {_remedy("pull")}')
    folder = cache_folder(repo_id, root) / 'snapshots' / snapshot
    if not _is_whole(folder, hashes):
        raise RunError(f'{repo_id} in the cache ({folder}) is damaged, and {why}: pull again when ModelScope can be '
                       'reached.')
    say(f'Using the verified copy of {repo_id} in the cache: {why}.')
    return Pulled(repo_id, snapshot, folder, hashes, read_config(repo_id, folder), cached=why)


# --- push -------------------------------------------------------------------------------------------------------------

class Target(NamedTuple):
    """What is on ModelScope before a push."""
    exists: bool
    has_card: bool
    revision: str = BRANCH


def inspect_target(api: Any, repo_id: str, private: bool, revision: Optional[str] = None) -> Target:
    """What is on ModelScope; nothing is written there.

    Raises:
        UsageError: The repository is public and should be private, or it has no such branch.
    """
    revision = revision or BRANCH
    try:
        branches = within(FIRST_ANSWER, lambda: api.legacy.list_revisions_detail(repo_id, 'model')[0]) \
            if revision != BRANCH else []
        names = within(FIRST_ANSWER, lambda: _hashes_of(api, repo_id, None))
    except Exception as e:
        if type(e).__name__ != 'NotExistError':
            raise
        if revision != BRANCH:
            raise UsageError(f'{repo_id} is not on ModelScope yet, and a new model has the branch {BRANCH} only: push '
                             f'without --revision, make the branch {revision} on its page, and push again.')
        return Target(False, False)
    if revision != BRANCH:
        known = [str(b.get('Revision')) for b in branches]
        if revision not in known:
            raise UsageError(f'{repo_id} has no branch {revision} on ModelScope (it has {first_names(known, 3)}): make '
                             "it on the page of the model, as ModelScope's SDK makes none, or leave out --revision.")
        names = _hashes_of(api, repo_id, revision)
    if private and api.get_repo(repo_id, 'model').private is False:
        raise UsageError(f'{repo_id} is public on ModelScope: make it private on its page, or leave out --private.')
    return Target(True, 'README.md' in names, revision)


def upload(api: Any, repo_id: str, files: Dict[str, Path], target: Target, **settings: Any) -> Dict[str, str]:
    """Send files in one commit and compare what ModelScope lists then with what was sent; their SHA-256 by name.

    Args:
        api: Of `make_api`.
        repo_id: 'organisation/name'.
        files: Path by the name on ModelScope; all in one folder that holds nothing else.
        target: What is there.
        settings: `private`, `license`, `message` and `tag`.
    """
    sha256 = {name: digest_of(path, 'sha256').value for name, path in files.items()}
    [folder] = {path.parent for path in files.values()}
    if not target.exists:
        api.create_repo(repo_id, 'model', visibility='private' if settings['private'] else 'public',
                        license=settings['license'])
    try:
        api.upload_folder(repo_id, 'model', folder, commit_message=settings['message'], revision=target.revision,
                          use_cache=False)
        listed = _hashes_of(api, repo_id, target.revision)
    except Exception:
        if not target.exists:
            say(f'{repo_id}: this push made the repository on ModelScope, and it may be empty. The same command '
                'continues; its page can delete it.')
        raise
    wrong: List[str] = [name for name, value in sha256.items() if listed.get(name) != value]
    if wrong:
        raise RunError(f'{repo_id}: {first_names(wrong, 3)} on ModelScope is not what was sent: push again.')
    if settings['tag'] is not None:
        api.create_repo_tag(repo_id, 'model', settings['tag'], revision=target.revision)
    return sha256
