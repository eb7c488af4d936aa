"""Requests to the Hub: retries, time limits, names like org/name@revision."""
import os
import re
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Tuple

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from seresnet_timm.errors import UsageError, printable
from seresnet_timm.hub.errors import SERVER_ERRORS, is_broken_off, reason, redact, status_of
from seresnet_timm.version import __version__

RETRY_WAITS = (1, 2)  # seconds, after an answer of a Hub that has a problem
TIMEOUT = 120  # seconds without an answer; some requests of huggingface_hub have no time limit
MAX_REVISION = 200  # characters; the revision becomes the name of a file in the cache


def split_name(name: str, revision: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """Repository and revision of 'org/name@revision', or of a name and a revision, both checked.

    Raises:
        UsageError: One of them is not valid; a valid one names no file outside its folder in the cache.
    """
    repo_id, at, given = name.partition('@')
    if at and (not given or revision is not None):
        raise UsageError(f"'{printable(name)}' does not name a model on the Hub and one revision: write "
                         'org/name@revision.')
    try:
        validate_repo_id(repo_id)
        is_valid = re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id, re.ASCII) is not None
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"'{printable(repo_id)}' is not the name of a model on the Hub: write organisation/name, with "
                         "letters, digits, '-', '_' and '.'.")
    revision = given or revision
    if revision is not None and not is_revision(revision):
        raise UsageError(f"{repo_id}: '{printable(revision)}' cannot be a branch, tag or commit: git does not allow "
                         'this name.')
    return repo_id, revision


def is_revision(text: str) -> bool:
    """True if a text is a valid branch, tag or commit, by the rules of `git check-ref-format --allow-onelevel`."""
    parts = text.split('/')
    return (
        0 < len(text) <= MAX_REVISION
        and text == printable(text)
        and not re.search(r'[ ~^:?*\[\\]|\.\.|@\{', text)
        and not text.startswith('-')
        and not text.endswith('.')
        and text != '@'
        and not any(not p or p.startswith('.') or p.endswith('.lock') for p in parts)
    )


def make_api(token: Optional[str]) -> HfApi:
    return HfApi(token=token, library_name='seresnet_timm', library_version=__version__)


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
