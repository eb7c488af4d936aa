"""Requests to the Hub: retries, time limits, names like org/name@revision."""
import os
import re
import sys
import time
import urllib.parse
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Tuple, Union

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from seresnet_timm.engine.rules import is_revision
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.hub.errors import SERVER_ERRORS, is_broken_off, reason, redact, status_of
from seresnet_timm.process import FIRST_ANSWER, within
from seresnet_timm.version import __version__

RETRY_WAITS = (1, 2)  # seconds, after an answer of a Hub that has a problem
TIMEOUT = 120  # seconds without an answer; some requests of huggingface_hub have no time limit
MAX_SHOWN = 120  # characters of a name in a sentence
SOURCE = re.compile(r'(hf-hub|hf_hub):', re.IGNORECASE)  # timm's two spellings
# hosts of addresses that people paste, also where they use a mirror
HOSTS = {urllib.parse.urlsplit(constants._HF_DEFAULT_ENDPOINT).hostname}


def split_name(name: str, revision: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """Repository and revision that a text names, both checked; the only reader of names of repositories.

    Args:
        name: 'org/name', 'org/name@revision', with 'hf-hub:' before it or not, or the address of its page.
        revision: Branch, tag or commit, where it is not part of `name`.

    Raises:
        UsageError: One of them is not valid; a valid one names no file outside its folder in the cache.
    """
    text = SOURCE.sub('', name, count=1)
    repo_id, given = _split_address(text) if _is_address(text) else _split_at(text)
    if given is not None and (not given or revision is not None):
        raise UsageError(f"'{_shown(name)}' does not name a model on the Hub and one revision: write "
                         'org/name@revision.')
    if not is_repository(repo_id):
        raise UsageError(f"'{_shown(name)}' is not the name of a model on the Hub: write org/name, i.e. "
                         "organisation/name, with letters, digits, '-', '_' and '.'.")
    revision = given or revision
    if revision is not None and not is_revision(revision):
        raise UsageError(f"{repo_id}: '{_shown(revision)}' cannot be a branch, tag or commit: git does not allow "
                         'this name.')
    return repo_id, revision


def hub_name(model: str) -> Optional[str]:
    """'org/name' or 'org/name@revision' of the model on the Hub that `--model` or MODEL names; None for other models.

    Raises:
        UsageError: It names a model on the Hub, in a way that cannot be.
    """
    if not SOURCE.match(model) and not _is_address(model):
        return None
    repo_id, revision = split_name(model)
    return f'{repo_id}@{revision}' if revision else repo_id


def is_repository(text: str) -> bool:
    """True for 'organisation/name' as the Hub allows it."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return re.fullmatch(r'[\w.-]+/[\w.-]+', text, re.ASCII) is not None


def _split_at(text: str) -> Tuple[str, Optional[str]]:
    """Both parts of 'org/name@revision'; a slash at the end, as shells complete folders, is left out."""
    repo_id, at, given = text.partition('@')
    return re.sub(r'(?<=[^/])/\Z', '', repo_id), given if at else None


def _host(address: str) -> Optional[str]:
    return urllib.parse.urlsplit(address).hostname


def _is_address(text: str) -> bool:
    return '://' in text or text.partition('/')[0].lower() in HOSTS


def _split_address(text: str) -> Tuple[str, Optional[str]]:
    """Repository and revision in the address of a page: of the model, of its files, or of one of them."""
    try:
        address = urllib.parse.urlsplit(text if '://' in text else f'https://{text}')
    except ValueError:
        return text, None
    parts = [urllib.parse.unquote(p) for p in address.path.strip('/').split('/')]
    if address.scheme == 'hf':
        parts = [address.netloc, *parts]
    elif (address.hostname or '').removeprefix('www.') not in {*HOSTS, _host(constants.ENDPOINT)}:
        return text, None
    if parts[0] == 'models' and len(parts) > 2:
        del parts[0]
    if parts[0] in ('datasets', 'spaces', 'api'):
        raise UsageError(f"'{_shown(text)}' is not the address of a model: write org/name.")
    if len(parts) > 3 and parts[2] in ('tree', 'blob', 'resolve', 'commit', 'raw'):
        # only in the address of a file can a revision be followed by more, and only a branch has slashes
        revision = '/'.join(parts[3:]) if parts[2] == 'tree' else parts[3]
        return '/'.join(parts[:2]), None if revision == constants.DEFAULT_REVISION else revision
    last, at, revision = parts[-1].partition('@')
    return '/'.join([*parts[:-1], last]), revision if at else None


def _shown(text: str) -> str:
    """A text from a user for a sentence: without commands for the terminal, and not longer than a line."""
    return redact(printable(text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'))


def make_api(token: Union[str, bool, None], endpoint: Optional[str] = None) -> HfApi:
    return HfApi(endpoint, token=token, library_name='seresnet_timm', library_version=__version__)


def ask(request: Callable[[], Any]) -> Any:
    """Answer to a request; a Hub that has a problem is asked up to three times."""
    for wait in RETRY_WAITS:
        try:
            return request()
        except Exception as e:
            if status_of(e) not in SERVER_ERRORS and not is_broken_off(e):
                raise
            say(f'Trying again in {wait} s: {reason(e)}.')
            time.sleep(wait)
    return request()


def first_answer(request: Callable[[], Any]) -> Any:
    """Answer to the first request of a command: a Hub that does not answer is given up after seconds.

    huggingface_hub's own limits are for one attempt to connect to one address; a name server, or a proxy, can take
    longer.
    """
    limit = constants.HF_HUB_ETAG_TIMEOUT if 'HF_HUB_ETAG_TIMEOUT' in os.environ else FIRST_ANSWER
    return ask(lambda: within(limit, request))


@contextmanager
def offline() -> Iterator[None]:
    """Let this process and those that it starts take files of the Hub from the cache only."""
    before, variable = constants.HF_HUB_OFFLINE, os.environ.get('HF_HUB_OFFLINE')
    reset = getattr(huggingface_hub.utils, 'reset_sessions', lambda: None)  # before version 1 a session keeps the mode
    constants.HF_HUB_OFFLINE, os.environ['HF_HUB_OFFLINE'] = True, '1'
    reset()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if variable is None:
            del os.environ['HF_HUB_OFFLINE']
        else:
            os.environ['HF_HUB_OFFLINE'] = variable
        reset()


def say(text: str) -> None:
    print(printable(redact(text)), file=sys.stderr)


@contextmanager
def time_limit() -> Iterator[None]:
    """Set a time limit for huggingface_hub's requests without one; its versions that use `requests` cannot have it."""
    session: Any = huggingface_hub.get_session() if hasattr(huggingface_hub, 'get_session') else None
    if not hasattr(session, 'timeout'):
        yield
        return
    before = session.timeout
    session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT if 'HF_HUB_DOWNLOAD_TIMEOUT' in os.environ else TIMEOUT
    try:
        yield
    finally:
        session.timeout = before
