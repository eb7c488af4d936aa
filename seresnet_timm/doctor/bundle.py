"""Logs of a run in one file for a bug report, without secrets, addresses and names of users and machines"""
import gzip
import io
import os
import platform
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

from seresnet_timm.doctor import environment_report
from seresnet_timm.doctor.diagnose import Report, as_dict, describe
from seresnet_timm.doctor.secrets import Cleaner
from seresnet_timm.errors import RunError, UsageError, printable
from seresnet_timm.files import as_json, atomic_path
from seresnet_timm.runs.folder import RunFolder

MAX_TOTAL = 256 << 20  # characters of all texts
SUFFIXES = ('.tar.gz', '.tgz')


def check_name(path: str) -> None:
    """Refuse a name that does not say what the file is.

    Raises:
        UsageError: It has another ending.
    """
    if not path.endswith(SUFFIXES):
        raise UsageError(f'--bundle {printable(path)}: name a file that ends in .tar.gz.')


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
        print(f'Wrote {printable(path)}. Replaced in it: {replaced or "nothing"}. Look into it before you send it: '
              'a log may hold names of files and classes.')


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
        yield prefix + name, lambda source=source: re.sub(r'\n{100,}', '\n\n[lines left out]\n\n', '\n'.join(
            source.lines()))


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
    lines += [f'  of {cleaner.clean(s.name)} {s.left_out >> 20} MiB in the middle but for lines that name an error'
              for s in report.logs.sources if s.left_out]
    return '\n'.join(lines) + '\n'


def _add(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode('utf-8', errors='backslashreplace')
    info = tarfile.TarInfo(f'diagnosis/{name}')
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    tar.addfile(info, io.BytesIO(data))
