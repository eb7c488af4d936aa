"""What goes wrong between this machine and the Hub, as one sentence: what, which repository, what to do.

huggingface_hub raises its own errors, those of its HTTP library (requests, httpx or httpx2, by its version) and the
operating system's, some wrapped in others.
"""
import errno
import logging
import os
import re
from contextlib import contextmanager
from typing import Iterator, Optional

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from seresnet_timm.errors import RunError, UsageError, first_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SERVER_ERRORS = (500, 502, 503, 504)


def redact(text: str) -> str:
    """A text without tokens, passwords in addresses, and the query strings of signed addresses."""
    token = get_token()
    if token:
        text = text.replace(token, '***')
    text = re.sub(r'\bhf_\w{4,}', 'hf_***', text)
    text = re.sub(r'//[^/\s@]+@', '//***@', text)
    return re.sub(r'(https?://[^\s?\'"]+)\?[^\s\'")]+', r'\1', text)


class _Redact(logging.Filter):
    """Redacts what huggingface_hub logs: its warnings on requests that it repeats hold signed addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


@contextmanager
def _discreet_logs() -> Iterator[None]:
    """Redact huggingface_hub's log, and keep its HTTP library from logging every address at level INFO."""
    handlers = logging.getLogger('huggingface_hub').handlers
    redacts = _Redact()
    http = [logging.getLogger(name) for name in ('httpx', 'httpx2', 'httpcore', 'httpcore2', 'urllib3')]
    levels = [logger.level for logger in http]
    for handler in handlers:
        handler.addFilter(redacts)
    for logger in http:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(redacts)
        for logger, level in zip(http, levels):
            logger.setLevel(level)


@contextmanager
def explained(repo_id: str, doing: str) -> Iterator[None]:
    """Turn what is raised by the Hub, the network or the disk into a RunError of one sentence.

    Args:
        repo_id: Repository, named in the sentence.
        doing: 'pull' or 'push'.
    """
    try:
        with _discreet_logs():
            yield
    except (UsageError, RunError) as e:
        raise type(e)(redact(str(e))) from None
    except Exception as e:
        sentence = explain(e, repo_id, doing)
        if sentence is None:
            raise
        raise RunError(redact(sentence)) from None  # the chain may hold a token


def explain(error: BaseException, repo_id: str, doing: str) -> Optional[str]:
    """The sentence for an error; None if it is none of the Hub, the network or the disk."""
    error = root_cause(error)
    if isinstance(error, OfflineModeIsEnabled):
        return f'{repo_id} cannot be reached, as HF_HUB_OFFLINE is set: unset it to {doing}.'
    status = status_of(error)
    if status is not None:
        return _explain_answer(error, status, repo_id, doing)
    if is_network(error):
        return f'{repo_id}: {reason(error)}. {remedy(error)}'
    if isinstance(error, FileMetadataError) or 'JSON' in type(error).__name__:
        return (f'{repo_id}: what answers at {constants.ENDPOINT} is not a Hub (a log-in page, a proxy, or a redirect '
                'elsewhere?): check HF_ENDPOINT and HTTPS_PROXY.')
    if isinstance(error, OSError):
        if 'Consistency check failed' in str(error):
            return f'{repo_id}: a file arrived with another length than the Hub names: {doing} again.'
        if error.errno in DISK_FULL:
            where = error.filename or constants.HF_HUB_CACHE
            return (f'{repo_id}: no room to write {where} ({error.strerror}): free some, or set HF_HOME (cache) or '
                    'TMPDIR to a larger disk.')
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return (f'{repo_id}: {error.filename or constants.HF_HUB_CACHE} cannot be written ({error.strerror}): set '
                    'HF_HOME to a folder that can.')
        return f'{repo_id}: {first_line(error)}.'
    if isinstance(error, ValueError):  # huggingface_hub's word for an answer that it does not understand
        return f'{repo_id}: the Hub refuses this or answers nonsense ({first_line(error)}).'
    return None


def root_cause(error: BaseException) -> BaseException:
    """The error under those that huggingface_hub wraps around it."""
    while error.__cause__ is not None and (
            isinstance(error, LocalEntryNotFoundError) or type(error) in (RuntimeError, ValueError)):
        error = error.__cause__
    return error


def status_of(error: BaseException) -> Optional[int]:
    """HTTP status that the Hub answered with, None if it did not answer."""
    response = getattr(error, 'response', None) if isinstance(error, HfHubHTTPError) else None
    return None if response is None else response.status_code


def is_network(error: BaseException) -> bool:
    """The Hub did not answer, or not to the end."""
    library = type(error).__module__.split('.')[0]
    if isinstance(error, HfHubHTTPError) or 'JSON' in type(error).__name__:
        return False  # an answer, though requests has an error of its own for what is not JSON
    return library in ('requests', 'urllib3', 'httpx', 'httpx2', 'httpcore', 'httpcore2') or isinstance(
        error, (ConnectionError, TimeoutError))


def is_unreachable(error: BaseException) -> bool:
    """No Hub to be had now: offline mode, network, or a Hub that is down or asks to wait."""
    return is_network(error) or status_of(error) in (429, *SERVER_ERRORS)


def reason(error: BaseException) -> str:
    """Why the Hub cannot be reached, as a clause."""
    if isinstance(error, OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    status = status_of(error)
    if status is not None:
        return f'the Hub at {constants.ENDPOINT} answers {status}{_wait(error)}'
    name = type(error).__name__
    if 'Timeout' in name:
        return f'the Hub at {constants.ENDPOINT} does not answer in time'
    if 'Redirect' in name:
        return f'the Hub at {constants.ENDPOINT} redirects for ever'
    if broke_off(error):
        return f'the connection to the Hub at {constants.ENDPOINT} broke off'
    return f'the Hub at {constants.ENDPOINT} cannot be reached ({first_line(error) or name})'


def broke_off(error: BaseException) -> bool:
    """The Hub was reached, and hung up."""
    return type(error).__name__ in ('RemoteProtocolError', 'ReadError', 'WriteError', 'ChunkedEncodingError') or (
        'Connection aborted' in str(error))


def remedy(error: BaseException) -> str:
    if status_of(error) is not None:
        return 'Try again later.'
    names = ('HF_ENDPOINT', 'HTTPS_PROXY', 'HTTP_PROXY', 'https_proxy', 'http_proxy')
    set_ones = [n for n in names if os.environ.get(n)]
    if set_ones:
        return f'Check the network, and {" and ".join(set_ones)}; then try again.'
    return 'Check the network, set HTTPS_PROXY or a mirror (HF_ENDPOINT), and try again.'



def _wait(error: BaseException) -> str:
    """How long the Hub asks to wait, from `Retry-After` or `RateLimit` (r=requests left, t=seconds)."""
    headers = error.response.headers
    seconds = headers.get('Retry-After', '')
    if not seconds.isdigit():
        found = re.search(r'\bt=(\d+)', headers.get('RateLimit', ''))
        seconds = found[1] if found else ''
    return f' (wait {seconds} s)' if seconds else ''


def _explain_answer(error: HfHubHTTPError, status: int, repo_id: str, doing: str) -> str:
    namespace = repo_id.split('/')[0]
    has_token = get_token() is not None
    renew = 'set HF_TOKEN, or log in again with `hf auth login`'
    if isinstance(error, GatedRepoError):
        return f'{repo_id} is gated: accept its terms on its page, and set HF_TOKEN to a token of that account.'
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no such branch, tag or commit: name one that it has, as org/name@revision.'
    if isinstance(error, EntryNotFoundError):
        path = str(error.response.url).split('?')[0].rsplit('/', 1)[-1]
        return f'{repo_id} has no file {path} any more: {doing} again.'
    message = (getattr(error, 'server_message', None) or '').strip().rstrip('.')
    if status == 401 and (has_token and 'nvalid credentials' in message + str(error) or doing == 'push'):
        return f'The Hub does not accept your token (401) for {repo_id}: {renew}.'
    is_storage = not str(error.response.url).startswith(constants.ENDPOINT)
    if is_storage and status in (401, 403, 404, 410):
        return f'{repo_id}: the storage of the Hub refuses the transfer ({status}): {doing} again.'
    if status == 404 and doing == 'push' and not isinstance(error, RepositoryNotFoundError):
        return (f'{repo_id}: {constants.ENDPOINT} takes no uploads (404), it may be a read-only mirror: push with '
                'another HF_ENDPOINT.')
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        private = '' if has_token else ' (private: set HF_TOKEN)'
        return f'There is no model {repo_id} on the Hub, or you may not see it{private}: check the name.'
    if status == 403:
        if doing == 'push':
            return (f'{repo_id}: your token may not write to {namespace} (403): use a token with write access to that '
                    'account or organisation.')
        return f'{repo_id}: your token may not read it (403): use one that may.'
    if status == 409:
        return f'{repo_id}: the Hub is at another change of this repository (409): {doing} again in a moment.'
    if status == 412:
        return f'{repo_id} was changed by somebody else meanwhile (412): nothing was overwritten, {doing} again.'
    if status == 413:
        return f'{repo_id}: a file is too large for the Hub (413).'
    if status == 429:
        return f'{repo_id}: the Hub limits your requests (429): {doing} again later{_wait(error)}.'
    if status == 507:
        return f'{repo_id}: {namespace} has no storage left on the Hub (507): delete something there, or enlarge it.'
    if status >= 500:
        return f'{repo_id}: the Hub has a problem ({status}{": " + message if message else ""}): {doing} again later.'
    return f'{repo_id}: the Hub refuses ({status}{": " + first_line(Exception(message)) if message else ""}).'
