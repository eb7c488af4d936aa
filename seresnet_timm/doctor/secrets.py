"""Secrets, addresses and names in a text for strangers, and what is written in their place

It takes what may be a secret; `errors.redact`, for what is printed or pushed, only what certainly is one.
"""
import getpass
import json
import os
import re
import socket
from collections import deque
from contextlib import suppress
from typing import Dict, List, Optional, Tuple
from urllib.parse import quote

from seresnet_timm.errors import is_secret

_SECRET_NAME = (r'(?:[\w-]{0,40}(?:token|passw(?:or)?d|passwd|passphrase|secret|api[_ -]?key|access[_-]?key|'
                r'private[_-]?key|wandb[_-]?key|credential|authorization|cookie)s?(?:[_-]?(?:key|id|value|secret))*|'
                r'(?:[\w-]{0,40}_)?(?:pwd|[as]k)|auth|密码|口令|令牌|密钥)')
# no words of a language, no keys of a state_dict
_ODD = r'(?=[\w.+/=-]*\d)(?=[\w.+/=-]*[A-Za-z])[\w.+/=-]{8,}'
_LONG = r'(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])(?!\w+[._])[A-Za-z0-9+/=-]{16,}'
_SECRETS: Tuple[Tuple['re.Pattern[str]', str], ...] = (
    (re.compile(r'-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)', re.DOTALL), '<secret>'),
    (re.compile(r'(?<![A-Za-z0-9])(?:hf|gh[pousr]|glpat|sk|pk|xox[abprs]|AKIA|ms)[_-][A-Za-z0-9_-]{10,}'), '<secret>'),
    (re.compile(r'\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bgithub_pat_\w{20,}|\bapi_org_\w{20,}'), '<secret>'),
    (re.compile(r'\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?'), '<secret>'),
    (re.compile(r'(?i)\b(Bearer|Basic)\s+[\w.~+/=-]{6,}'), r'\1 <secret>'),
    (re.compile(r'(?i)(authorization\\*["\']?\s*[:=]\s*\\*["\']?)(?!<secret>|(?:Bearer|Basic) <)(?:\w+\s+)?[^\s"\',]+'),
     r'\1<secret>'),
    # a flag and its value as two items of a list, or two words
    (re.compile(rf'(?i)("--?{_SECRET_NAME}"\s*,\s*)"[^"]*"'), r'\1"<secret>"'),
    (re.compile(rf"(?i)('--?{_SECRET_NAME}'\s*,\s*)'[^']*'"), r"\1'<secret>'"),
    (re.compile(rf'(?i)(--?{_SECRET_NAME})([ =])(?!-)[^\s"\',]+'), r'\1\2<secret>'),
    (re.compile(r'(?i)((?:\s-u|--(?:proxy-)?user)[ =])[^\s:]+:\S+|(\bsshpass\s+-p ?|\bmysql\w* .*?-p)\S+'),
     r'\1\2<secret>'),
    # an entry of a container's environment: its name, then its value
    (re.compile(rf'(?i)(\\*["\']?\bname\\*["\']?\s*:\s*\\*["\']?{_SECRET_NAME}\\*["\']?\s*,?\s*\\*["\']?value\\*["\']?'
                r'\s*:\s*)(?:\\*"[^"]*"|\\*\'[^\']*\'|[^\s,}\]]+)'), r'\1<secret>'),
    (re.compile(rf'(?i)(\\*["\']?(?<![A-Za-z0-9]){_SECRET_NAME}\\*["\']?\s*(?:[:=：]|=>|->)\s*)'
                r'(?!<secret>|None\b|null\b|true\b|false\b|\\*""|\'\'|(?:Bearer|Basic) <)'
                r'(?:\\*"[^"]*"|\'[^\']*\'|[^\s,;}\]&]+)'), r'\1<secret>'),
    (re.compile(rf'(?i)((?<![A-Za-z0-9]){_SECRET_NAME}(?:\s+is|\s+for \w+:?)?\s+["\']?)(?!<secret>){_ODD}'),
     r'\1<secret>'),
    (re.compile(rf'(?i)(\bkey["\']?(?:\s*[:=]|\s+is)?\s*["\']?){_LONG}|(wandb\.login\(.*?key ?= ?["\'])[^"\']+'),
     r'\1\2<secret>'),
    (re.compile(r'(?i)(\blogin\s+\S+\s+password\s+)\S+'), r'\1<secret>'),  # ~/.netrc
    (re.compile(r'(?i)\b(sk|sig|signature|x-amz-\w+)=[^&\s"\']{8,}'), r'\1=<secret>'),
    (re.compile(r'(\b\w{1,20}://)(?!<user>)[^\s"\'<>/]*@|(\b\w{1,20}://)(?!<user>)[^\s"\'<>:/]{1,200}:[^\s"\'<>]{1,200}?'
                r'@(?=[\w.-]+(?::\d+)?(?:[/\s"\']|$))'), r'\1\2<user>@'),
    (re.compile(r'\b[\w.-]{1,64}:[^\s:@/"\'<>]{1,200}@(?=[\w.-]+)'), '<user>@'),
    (re.compile(r'\b[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+\b'), '<mail>'),
    # keys of W&B; a commit looks the same, and is named as one
    (re.compile(r'(?<![0-9A-Za-z@/-])(?<!commit[ =])(?<!commit: )(?<!revision[ =])(?<!sha[=:])(?<!sha: )(?<!rev )'
                r'(?<!HEAD )(?<!commit": ")(?<!revision": ")(?<!sha": ")[0-9a-f]{40}(?![0-9A-Za-z])'), '<secret>'),
)
# a line without one of these words holds no secret; most lines of a log are such
_HINT = re.compile(r'token|passw|passphrase|secret|key|credential|auth|cookie|pwd|[as]k\b|密码|口令|令牌|密钥|@|hf[_-]|'
                   r'gh[pousr][_-]|glpat|[sp]k[_-]|xox|akia|asia|ms[_-]|eyj|bearer|basic| -u|-user|mysql|sshpass|sig|'
                   r'x-amz|[0-9a-f]{40}')
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
        values = {v for k, v in environ.items() if is_secret(k)}
        values.update(m[1] for v in environ.values() for m in re.finditer(r'://[^/\s:]*:([^\s]+)@', v))  # of proxies
        values = {form for v in values if len(v) >= 6 for form in (v, quote(v, safe=''), json.dumps(v)[1:-1])}
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
        text = self._without_secrets(text)
        if self._home:
            text = re.sub(rf'{re.escape(self._home)}(?=[/\s:"\',;]|$)', '~', text)
        text = self._sub(_HOMES, r'\1<user>', text, 'home folder')
        text = self._sub(_HOST_LINE, r'\1<host>', text, 'machine name')
        for pattern, to in self._names:
            text = self._sub(pattern, to, text, 'name')
        return _IP.sub(self._address, text)

    def _without_secrets(self, text: str) -> str:
        """Only lines that may hold a secret are looked at closely, with the lines around them."""
        text = self._sub(*_SECRETS[0], text, 'secret')  # of several lines
        lines = text.split('\n')
        hints = [i for i, line in enumerate(lines) if _HINT.search(line.lower())]
        wanted = deque(sorted({n for i in hints for n in (i - 1, i, i + 1) if 0 <= n < len(lines)}))
        parts: List[str] = []
        done = 0
        while wanted:
            first = last = wanted.popleft()
            while wanted and wanted[0] == last + 1:
                last = wanted.popleft()
            block = '\n'.join(lines[first:last + 1])
            for pattern, to in _SECRETS[1:]:
                block = self._sub(pattern, to, block, 'secret')
            parts += lines[done:first] + [block]
            done = last + 1
        return '\n'.join(parts + lines[done:])

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
