"""Errors of the Hub, the network and the disk, each as one sentence: what happened, which repository, what to do.

huggingface_hub raises its own errors, those of its HTTP library (requests, httpx or httpx2, by its version) and those
of the operating system, some of them wrapped in others.
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

from seresnet_timm import errors
from seresnet_timm.errors import RunError, UsageError, first_line, printable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SERVER_ERRORS = (500, 502, 503, 504)


PROXY_ASKS = ('the proxy asks for a user name and password (407): write them into its address in HTTPS_PROXY, as '
              'USER:PASSWORD@HOST:PORT.')


def redact(text: str) -> str:
    """A text without tokens, passwords in addresses, and the query strings of signed addresses."""
    return errors.redact(text, (get_token() or '',))


class _Redact(logging.Filter):
    """Redacts the log of huggingface_hub: it holds signed addresses, and warnings that the Hub sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        lines = redact(record.getMessage()).splitlines()
        record.msg, record.args = '\n'.join(map(printable, lines)), ()
        return True


@contextmanager
def _redacted_logs() -> Iterator[None]:
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
    """Turn errors of the Hub, the network and the disk into a RunError of one sentence, without secrets.

    Args:
        repo_id: Repository, named in the sentence.
        doing: 'pull' or 'push'.
    """
    try:
        with _redacted_logs():
            yield
    except (UsageError, RunError) as e:
        raise type(e)(printable(redact(str(e)))) from None
    except Exception as e:
        sentence = explain(e, repo_id, doing)
        if sentence is None:
            raise
        raise RunError(printable(redact(sentence))) from None  # the chain may hold a token


def explain(error: BaseException, repo_id: str, doing: str) -> Optional[str]:
    """The sentence for an error; None if the error has another cause."""
    error = root_cause(error)
    if isinstance(error, OfflineModeIsEnabled):
        return f'{repo_id} cannot be reached, as HF_HUB_OFFLINE is set: unset it to {doing}.'
    status = status_of(error)
    if status is not None and isinstance(error, HfHubHTTPError):
        return _explain_answer(error, status, repo_id, doing)
    if is_without_xet(error):
        return (f'{repo_id}: the Hub at {constants.ENDPOINT} has no Xet storage, which huggingface_hub asks for: set '
                f'HF_HUB_DISABLE_XET=1 and {doing} again.')
    if is_network(error):
        return f'{repo_id}: {reason(error)}. {remedy(error)}'
    if is_answer(error):
        return (f'{repo_id}: the server at {constants.ENDPOINT} is not a Hub (a log-in page, a proxy, or a redirect to '
                'another site?): check HF_ENDPOINT and HTTPS_PROXY.')
    if isinstance(error, ImportError) and 'SOCKS' in str(error):
        return f'{repo_id}: {first_line(error)}; or set HTTPS_PROXY to an HTTP proxy.'
    if isinstance(error, OSError):
        if 'Consistency check failed' in str(error):
            return f'{repo_id}: a file arrived with a length that is not the one on the Hub: {doing} again.'
        if error.errno in DISK_FULL:
            where = error.filename or constants.HF_HUB_CACHE
            return (f'{repo_id}: the disk is too full to write {where} ({error.strerror}): free disk space, or set '
                    'HF_HOME (cache) or TMPDIR to a folder on a larger disk.')
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return (f'{repo_id}: {error.filename or constants.HF_HUB_CACHE} cannot be written ({error.strerror}): set '
                    'HF_HOME to a folder that you can write to.')
        return f'{repo_id}: {first_line(error)}.'
    if isinstance(error, ValueError):  # huggingface_hub raises this for an answer that it does not understand
        return f'{repo_id}: the Hub refuses the request, or its answer is not valid ({first_line(error)}).'
    return None


def root_cause(error: BaseException) -> BaseException:
    """The error under those that huggingface_hub wraps around it."""
    while error.__cause__ is not None and (
            isinstance(error, LocalEntryNotFoundError) or type(error) in (RuntimeError, ValueError)):
        error = error.__cause__
    return error


def status_of(error: BaseException) -> Optional[int]:
    """HTTP status of the answer of the Hub; None if there was no answer."""
    response = getattr(error, 'response', None) if isinstance(error, HfHubHTTPError) else None
    return None if response is None else response.status_code


def is_answer(error: BaseException) -> bool:
    """True if a server answered: that it does not give what is asked for, or as no Hub answers."""
    return status_of(error) is not None or isinstance(error, FileMetadataError) or 'JSON' in type(error).__name__


def is_network(error: BaseException) -> bool:
    """True if the Hub did not answer, or not completely."""
    library = type(error).__module__.split('.')[0]
    if isinstance(error, HfHubHTTPError) or 'JSON' in type(error).__name__:
        return False  # it answered; `requests` has its own error for an answer that is not JSON
    return library in ('requests', 'urllib3', 'httpx', 'httpx2', 'httpcore', 'httpcore2') or isinstance(
        error, (ConnectionError, TimeoutError))


def is_without_xet(error: BaseException) -> bool:
    """True if the Hub, such as a mirror or a private one, answers that it has no storage of the kind Xet."""
    return re.search('404.*xet-(read|write)-token', str(error), re.DOTALL) is not None


def is_unreachable(error: BaseException) -> bool:
    """True if the Hub cannot be used now: offline mode, network, or a Hub that is down or asks to wait."""
    return is_network(error) or status_of(error) in (429, *SERVER_ERRORS)


def reason(error: BaseException) -> str:
    """Why the Hub cannot be reached, as a clause."""
    if isinstance(error, OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    status = status_of(error)
    if status is not None:
        return f'the Hub at {constants.ENDPOINT} answers {status}{_wait(error)}'
    if is_answer(error):
        return f'the server at {constants.ENDPOINT} does not answer as a Hub'
    name = type(error).__name__
    if 'Timeout' in name:
        return f'the Hub at {constants.ENDPOINT} does not answer in time'
    if 'Redirect' in name:
        return f'the Hub at {constants.ENDPOINT} redirects without end'
    if is_broken_off(error):
        return f'the connection to the Hub at {constants.ENDPOINT} was closed too early'
    return f'the Hub at {constants.ENDPOINT} cannot be reached ({first_line(error) or name})'


def is_broken_off(error: BaseException) -> bool:
    """True if the Hub was reached and closed the connection before its answer was complete."""
    return type(error).__name__ in ('RemoteProtocolError', 'ReadError', 'WriteError', 'ChunkedEncodingError') or (
        'Connection aborted' in str(error))


def remedy(error: BaseException) -> str:
    """What to do if the Hub cannot be reached, as a sentence."""
    if isinstance(error, OfflineModeIsEnabled):
        return 'Where there is a network, unset it.'
    if status_of(error) is not None:
        return 'Try again later.'
    names = ('HF_ENDPOINT', 'HTTPS_PROXY', 'HTTP_PROXY', 'https_proxy', 'http_proxy')
    set_ones = [n for n in names if os.environ.get(n)]
    if set_ones:
        return f'Check the network, and {" and ".join(set_ones)}; then try again.'
    return 'Check the network, set HTTPS_PROXY or a mirror (HF_ENDPOINT), and try again.'


def _wait(error: BaseException) -> str:
    """The time that the Hub asks to wait, from `Retry-After` or `RateLimit` (r=requests left, t=seconds)."""
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
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
        return (f'{repo_id} is gated: accept its terms on its page, and set HF_TOKEN to a token of the account that '
                'accepted them.')
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no such branch, tag or commit: name an existing one, as org/name@revision.'
    if isinstance(error, EntryNotFoundError):
        path = str(error.response.url).split('?')[0].rsplit('/', 1)[-1]
        return f'{repo_id} no longer has the file {path}: {doing} again.'
    if status == 407:
        return f'{repo_id}: {PROXY_ASKS}'
    message = (getattr(error, 'server_message', None) or '').strip().rstrip('.')
    if status == 401 and (has_token and 'nvalid credentials' in message + str(error) or doing == 'push'):
        return f'The Hub does not accept your token (401) for {repo_id}: {renew}.'
    is_storage = not str(error.response.url).startswith(constants.ENDPOINT)
    if is_storage and status in (401, 403, 404, 410):
        return f'{repo_id}: the storage of the Hub refuses the transfer ({status}): {doing} again.'
    if status == 404 and doing == 'push' and not isinstance(error, RepositoryNotFoundError):
        return (f'{repo_id}: {constants.ENDPOINT} does not accept uploads (404), it may be a read-only mirror: push '
                'with another HF_ENDPOINT.')
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        private = '' if has_token else ' (private: set HF_TOKEN)'
        return (f'There is no model {repo_id} on the Hub at {constants.ENDPOINT} ({status}), or your account cannot '
                f'see it{private}: check the name.')
    if status == 403:
        if doing == 'push':
            return (f'{repo_id}: your token may not write to {namespace} (403): use a token with write access to that '
                    'account or organisation.')
        token = 'your token may not read it' if has_token else 'it is not read without a token (HF_TOKEN)'
        return (f'{repo_id}: the Hub at {constants.ENDPOINT}, or a proxy before it, refuses (403): {token}, or the '
                'network does not allow it.')
    if status == 409:
        return f'{repo_id}: another change of this repository is in progress (409): {doing} again in a minute.'
    if status == 412:
        return (f'{repo_id} was changed by another commit during the {doing} (412): nothing was overwritten, {doing} '
                'again.')
    if status == 413:
        return f'{repo_id}: a file is too large for the Hub (413).'
    if status == 429:
        return f'{repo_id}: the Hub limits your requests (429): {doing} again later{_wait(error)}.'
    if status == 507:
        return f'{repo_id}: {namespace} has no storage left on the Hub (507): delete files there, or buy more storage.'
    if status >= 500:
        return f'{repo_id}: the Hub has a problem ({status}{": " + message if message else ""}): {doing} again later.'
    said = f': {first_line(Exception(message))}' if message else ''
    return f'{repo_id}: the Hub at {constants.ENDPOINT} refuses ({status}{said}).'
