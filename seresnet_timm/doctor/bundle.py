"""Logs of a run in one file for a bug report, without secrets, addresses and names of users and machines"""
import getpass
import gzip
import io
import os
import platform
import re
import socket
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from seresnet_timm.doctor import environment_report
from seresnet_timm.doctor.diagnose import Report, as_dict, describe
from seresnet_timm.errors import RunError, UsageError, printable
from seresnet_timm.files import as_json, atomic_path, why_not_writable
from seresnet_timm.runs.folder import RunFolder

MAX_TOTAL = 256 << 20  # characters of all texts
SUFFIXES = ('.tar.gz', '.tgz')
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


def check_path(path: str) -> None:
    """Refuse a path that cannot become the file.

    Raises:
        UsageError: It cannot.
    """
    if not path.endswith(SUFFIXES):
        raise UsageError(f'--bundle {printable(path)}: name a file that ends in .tar.gz.')
    why = why_not_writable(path, is_folder=False)
    if why:
        raise UsageError(f'--bundle {printable(path)} cannot be written: {why}.')


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
        values = {v for k, v in environ.items() if re.fullmatch(f'(?i){_SECRET_NAME}', k) and len(v) >= 6}
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


def write(report: Report, path: str, quiet: bool = False) -> None:
    """Write the bundle. The same logs give the same bytes.

    Args:
        report: What was read and found.
        path: The file to write.
        quiet: Print nothing.

    Raises:
        RunError: It cannot be written.
    """
    cleaner = Cleaner()
    left_out: List[str] = []
    try:
        with atomic_path(path) as tmp, open(tmp, 'wb') as raw, gzip.GzipFile(
                filename='', mode='wb', fileobj=raw, mtime=0) as packed, tarfile.open(
                fileobj=packed, mode='w', format=tarfile.PAX_FORMAT) as tar:
            total = 0
            for name, read in _texts(report):
                text = read()
                if total + len(text) > MAX_TOTAL:
                    left_out.append(f'{name} (the bundle would be too large)')
                    continue
                total += len(text)
                _add(tar, cleaner.clean(name), cleaner.clean(text))
            _add(tar, 'README.txt', _contents(report, cleaner, left_out))
    except OSError as e:
        raise RunError(f'{printable(path)} could not be written ({e.strerror or e}).')
    if not quiet:
        replaced = ', '.join(f'{n} {kind}{"s" if n > 1 and not kind.endswith("s") else ""}'
                             for kind, n in sorted(cleaner.counts.items()))
        print(f'Wrote {printable(path)}. Replaced in it: {replaced or "nothing"}. Look into it before you send it: a '
        f'log may '
              'hold names of files and classes.')


def _texts(report: Report) -> Iterator[Tuple[str, Callable[[], str]]]:
    """Name and content of each file of the bundle, in an order that does not depend on the machine."""
    yield 'diagnosis.txt', lambda: '\n'.join(describe(report)) + '\n'
    yield 'diagnosis.json', lambda: as_json(as_dict(report), indent=2) + '\n'
    yield 'versions.txt', _versions
    yield 'environment.txt', lambda: ''.join(
        f'{k}={v}\n' for k, v in environment_report.variables(os.environ).items())
    if report.logs.folder is not None:
        folder = RunFolder(report.logs.folder)
        for file in (folder.record, folder.args, folder.summary):
            if file.is_file() and not file.is_symlink():
                yield file.name, lambda file=file: file.read_text(encoding='utf-8', errors='replace')
    for source in sorted(report.logs.sources, key=lambda s: s.name):
        name = 'standard-input.txt' if source.path is None else re.sub(r'\.gz$', '', source.name)
        prefix = '' if name.startswith('plog/') else 'logs/' if not name.startswith('logs/') else ''
        yield prefix + name, lambda source=source: '\n'.join(source.lines())


def _versions() -> str:
    lines = [f'system {platform.system()} {platform.release()} {platform.machine()}']
    lines += [f'{name} {version or "not installed"}' for name, version in environment_report.versions().items()]
    for name in ('driver', 'firmware'):
        with suppress(OSError):
            lines.append(f'{name}: ' + ' '.join(Path('/usr/local/Ascend', name, 'version.info').read_text().split()))
    return '\n'.join(lines) + '\n'


def _contents(report: Report, cleaner: Cleaner, left_out: List[str]) -> str:
    lines = ['Made by `seresnet-timm diagnose --bundle`.', '', 'Replaced:']
    lines += [f'  {kind}: {n}' for kind, n in sorted(cleaner.counts.items())] or ['  nothing']
    lines += ['', 'The same number stands for the same address in all files.', '', 'Left out:',
              '  checkpoints, pictures, and other files that are no logs',
              '  environment variables that are not about the NPU, torch or the launcher']
    lines += [f'  {cleaner.clean(name)}' for name in left_out]
    lines += [f'  the first {s.left_out >> 20} MiB of '
    f'{cleaner.clean(s.name)}' for s in report.logs.sources if s.left_out]
    return '\n'.join(lines) + '\n'


def _add(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode('utf-8', errors='backslashreplace')
    info = tarfile.TarInfo(f'diagnosis/{name}')
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    tar.addfile(info, io.BytesIO(data))
