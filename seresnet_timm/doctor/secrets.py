"""Secrets, addresses and names in a text for strangers, and what is written in their place

It takes what may be a secret; `errors.redact`, for what is printed or pushed, only what certainly is one.
"""
import getpass
import os
import re
import socket
from contextlib import suppress
from typing import Dict, Optional, Tuple

from seresnet_timm.errors import is_secret

_SECRET_NAME = (r'(?:[\w-]*(?:token|passw(?:or)?d|passwd|secret|api[_-]?key|access[_-]?key|private[_-]?key|credential|'
                r'authorization|cookie)s?)')
_SECRETS: Tuple[Tuple['re.Pattern[str]', str], ...] = (
    (re.compile(r'-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)', re.DOTALL), '<secret>'),
    (re.compile(r'\b(?:hf|gh[pousr]|glpat|sk|pk|xox[abprs]|AKIA|ms)[_-][A-Za-z0-9_-]{10,}'), '<secret>'),
    (re.compile(r'\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bgithub_pat_\w{20,}|\bapi_org_\w{20,}'), '<secret>'),
    (re.compile(r'\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?'), '<secret>'),
    (re.compile(r'(?i)\b(Bearer|Basic)\s+[\w.~+/=-]{6,}'), r'\1 <secret>'),
    # a flag and its value as two items of a list, or two words
    (re.compile(rf'(?i)("--?{_SECRET_NAME}"\s*,\s*)"[^"]*"'), r'\1"<secret>"'),
    (re.compile(rf"(?i)('--?{_SECRET_NAME}'\s*,\s*)'[^']*'"), r"\1'<secret>'"),
    (re.compile(rf'(?i)(--?{_SECRET_NAME})([ =])(?!-)[^\s"\',]+'), r'\1\2<secret>'),
    (re.compile(rf'(?i)(["\']?\b{_SECRET_NAME}["\']?\s*[:=]\s*)(?!<secret>|None\b|null\b|true\b|false\b|""|\'\')'
                r'(?:"[^"]*"|\'[^\']*\'|[^\s,;}\]&]+)'), r'\1<secret>'),
    (re.compile(r'(?i)\b(sk|sig|signature|x-amz-\w+)=[^&\s"\']{8,}'), r'\1=<secret>'),
    (re.compile(r'(\w+://)[^/\s:@"\']*(?::[^/\s@"\']*)?@'), r'\1<user>@'),
    (re.compile(r'\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b'), '<mail>'),
)
_HOMES = re.compile(r'(/(?:home|Users|data/home)/)(?!<user>)[^/\s:"\',;]+')
_HOST_LINE = re.compile(r'(?m)^(\s*(?:host|hostname|nodename)\s*[:=] ?)\S+')
_IP = re.compile(r'(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)|'
                 r'(?<![\w:.])(?:[0-9a-fA-F]{1,4}:){2,7}(?::?[0-9a-fA-F]{1,4}){1,7}(?![\w:.])|'
                 r'(?<![\w:])[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*::[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*(?![\w:])')
_CLOCK = re.compile(r'\d{1,2}:\d\d:\d\d(?::\d+)?')
_KEPT = ('127.0.0.1', '0.0.0.0', '255.255.255.255')


class Cleaner:
    """Replaces secrets, addresses and names. The same address gets the same number in all files.

    Args:
        environ: Environment variables; the values of those that hold secrets are replaced wherever they occur.

    Attributes:
        counts: How many of each kind were replaced.
    """

    def __init__(self, environ: Optional[Dict[str, str]] = None):
        environ = dict(os.environ) if environ is None else environ
        self.counts: Dict[str, int] = {}
        self._addresses: Dict[str, str] = {}
        values = {v for k, v in environ.items() if is_secret(k) and len(v) >= 6}
        self._values = sorted(values, key=len, reverse=True)
        names = []
        with suppress(Exception):  # no entry for this user
            names.append((getpass.getuser(), '<user>'))
        names += [(environ.get('USER', ''), '<user>'), (socket.gethostname(), '<host>'),
                  (socket.gethostname().partition('.')[0], '<host>')]
        known = ('root', 'user', 'localhost', 'ubuntu', 'main', 'train', 'test', 'data', 'python', 'npu')
        self._names = [(re.compile(rf'(?<![\w-]){re.escape(name)}(?![\w-])'), to) for name, to in dict(names).items()
                       if len(name) > 2 and name.lower() not in known]
        home = environ.get('HOME', '')
        self._home = home.rstrip('/') if home.count('/') > 1 or home == '/root' else ''

    def clean(self, text: str) -> str:
        for value in self._values:
            if value in text:
                self._count('secret', text.count(value))
                text = text.replace(value, '<secret>')
        for pattern, to in _SECRETS:
            text = self._sub(pattern, to, text, 'secret')
        if self._home:
            text = re.sub(rf'{re.escape(self._home)}(?=[/\s:"\',;]|$)', '~', text)
        text = self._sub(_HOMES, r'\1<user>', text, 'home folder')
        text = self._sub(_HOST_LINE, r'\1<host>', text, 'machine name')
        for pattern, to in self._names:
            text = self._sub(pattern, to, text, 'name')
        return _IP.sub(self._address, text)

    def _address(self, match: 're.Match[str]') -> str:
        text = match[0]
        if text in _KEPT or _CLOCK.fullmatch(text) or text.count(':') == 2 and '::' not in text:
            return text
        if '.' in text and any(int(part) > 255 for part in text.split('.')):
            return text
        self._count('address')
        return self._addresses.setdefault(text, f'<address {len(self._addresses) + 1}>')

    def _sub(self, pattern: 're.Pattern[str]', to: str, text: str, kind: str) -> str:
        text, count = pattern.subn(to, text)
        self._count(kind, count)
        return text

    def _count(self, kind: str, count: int = 1) -> None:
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
