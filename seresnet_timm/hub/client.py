"""Requests to the Hub: retries, time limits, names like org/name@revision."""
import os
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Tuple

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import seresnet_timm
from seresnet_timm.errors import UsageError
from seresnet_timm.hub.errors import SERVER_ERRORS, broke_off, reason, redact, status_of

RETRY_WAITS = (1, 2)  # seconds, after an answer of a Hub in trouble
TIMEOUT = 120  # seconds without an answer; the Hub's own client waits for ever in some requests


def _split(repo_id: str, revision: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """Repository and revision of 'org/name@revision'.

    Raises:
        UsageError: It is not such a name.
    """
    name, at, given = repo_id.partition('@')
    if at and (not given or revision is not None):
        raise UsageError(f"'{repo_id}' is not a model on the Hub with one revision: write org/name@revision.")
    try:
        validate_repo_id(name)
        is_valid = name.count('/') == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"'{name}' is not the name of a model on the Hub: write organisation/name, of letters, "
                         "digits, '-', '_' and '.'.")
    return name, given or revision


def _api(token: Optional[str]) -> HfApi:
    return HfApi(token=token, library_name='seresnet_timm', library_version=seresnet_timm.__version__)


def _ask(request: Callable[[], Any]) -> Any:
    """Answer to a request; a Hub in trouble is asked again, twice."""
    for wait in RETRY_WAITS:
        try:
            return request()
        except Exception as e:
            if status_of(e) not in SERVER_ERRORS and not broke_off(e):
                raise
            _say(f'Trying again in {wait} s: {reason(e)}.')
            time.sleep(wait)
    return request()


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr)


@contextmanager
def _no_endless_wait() -> Iterator[None]:
    """Give the requests of huggingface_hub that have no time limit one; its requests-based versions cannot."""
    session = huggingface_hub.get_session() if hasattr(huggingface_hub, 'get_session') else None
    if not hasattr(session, 'timeout'):
        yield
        return
    before = session.timeout
    session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT if 'HF_HUB_DOWNLOAD_TIMEOUT' in os.environ else TIMEOUT
    try:
        yield
    finally:
        session.timeout = before
