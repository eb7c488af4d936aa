"""Get timm's scripts of a release into the verified cache, from the web, a mirror, a file or an archive."""
import bz2
import gzip
import http.client
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Optional

from seresnet_timm.errors import RunError, UsageError, first_line
from seresnet_timm.files import fsync
from seresnet_timm.process import FIRST_ANSWER, within
from seresnet_timm.timm_scripts import known

MAX_BYTES = 2 ** 20  # of a script, which has about 70 kB
MAX_ARCHIVE_BYTES = 2 ** 27  # of an unpacked archive; timm's repository has 14 MB
TIMEOUT = 30  # seconds without an answer


def fetch(
        tag: Optional[str] = None,
        mirror: Optional[str] = None,
        source: Optional[str] = None,
        sha256: Optional[Dict[str, str]] = None,
) -> Path:
    """Put both scripts of a tag into the cache, verified; or change nothing.

    Args:
        tag: Release tag of timm, None for the one that suits the installed timm.
        mirror: Address of the folder that holds `<tag>/train.py`, None for timm's repository.
        source: File or folder to take them from instead of the web: a folder or archive (.zip, .tar.gz) that holds
            train.py and validate.py, or one of the two itself.
        sha256: Hashes by script name, required for a tag that the table does not know.

    Returns:
        The cache folder of the tag.

    Raises:
        UsageError: Unknown tag without hashes, or a source that does not hold the scripts.
        RunError: The download failed, or what came is not the script.
    """
    tag = tag or known.tag_for_installed_timm()[0]
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._+-]*', tag):
        raise UsageError(f'{tag!r} is not a release tag of timm: tags look like {known.NEWEST}.')
    expected = known.SHA256.get(tag) or sha256
    if not expected:
        raise UsageError(f'The scripts of timm {tag} are not known here (known: {", ".join(known.SHA256)}): give their '
                         'hashes with --sha256 train.py=HASH validate.py=HASH.')
    if sha256 and tag in known.SHA256 and sha256 != known.SHA256[tag]:
        raise UsageError(f'--sha256 contradicts the known hashes of timm {tag}: leave it out.')

    read = _source_reader(Path(source)) if source else _web_reader(mirror or known.REPOSITORY, tag)
    files: Dict[str, bytes] = {}
    for name in expected:
        data = read(name)
        if data is None:
            continue  # a source that is one of the two files
        digest = known.sha256_of(data)
        if digest != expected[name]:
            what = 'is a web page, not a script (a proxy or log-in page?)' if data.lstrip()[:1] == b'<' else \
                f'has the hash {digest}, not that of timm {tag}, {expected[name]}'
            raise RunError(f'{name} from {source or mirror or known.REPOSITORY} {what}: nothing was kept.')
        files[name] = data
    if not files:
        raise UsageError(f'{source} holds neither train.py nor validate.py.')
    return _write(tag, files, expected)


def _web_reader(base: str, tag: str) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        url = f'{base.rstrip("/")}/{tag}/{name}'
        try:
            # takes proxies from HTTPS_PROXY and HTTP_PROXY
            with within(FIRST_ANSWER, lambda: urllib.request.build_opener().open(url, timeout=TIMEOUT)) as response:
                data = response.read(MAX_BYTES + 1)
                announced = response.headers.get('Content-Length')
        except urllib.error.HTTPError as e:
            raise RunError(f'{url} answered {e.code} {e.reason}: check the tag, name a --mirror, or copy the scripts '
                           'here and use --from FILE_OR_DIR.')
        except http.client.IncompleteRead as e:
            raise RunError(f'{url} ended after {len(e.partial)} bytes, too early: try again.')
        except (OSError, http.client.HTTPException, ValueError) as e:
            reason = getattr(e, 'reason', None) or e
            raise RunError(f'{url} cannot be reached ({reason}): set HTTPS_PROXY, name a --mirror, or copy the scripts '
                           'here and use --from FILE_OR_DIR.')
        if len(data) > MAX_BYTES:
            raise RunError(f'{url} is larger than a script can be ({MAX_BYTES} bytes): check --mirror.')
        if announced and announced.isdigit() and len(data) < int(announced):
            raise RunError(f'{url} ended after {len(data)} of {announced} bytes: try again.')
        return data
    return read


def _source_reader(source: Path) -> Callable[[str], Optional[bytes]]:
    if source.is_dir():
        return lambda name: _read_script(source / name) if (source / name).is_file() else None
    if not source.is_file():
        raise UsageError(f'--from {source} does not exist.')
    if source.suffix == '.py':
        return lambda name: _read_script(source) if source.name == name else None
    try:
        found = _read_zip(source) if zipfile.is_zipfile(source) else _read_tar(source)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as e:
        # RuntimeError: zipfile's for an encrypted member or an unknown compression
        raise UsageError(f'--from {source} is neither a script nor an archive of one that can be read '
                         f'({first_line(e)}).')
    return found.get


def _read_script(path: Path) -> bytes:
    try:
        with open(path, 'rb') as f:
            return _limited(f.read(MAX_BYTES + 1), str(path))
    except OSError as e:
        raise UsageError(f'Cannot read {path}: {e.strerror}.')


def _limited(data: bytes, name: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise UsageError(f'{name} is larger than a script can be ({MAX_BYTES} bytes): nothing was kept, check --from.')
    return data


def _read_zip(source: Path) -> Dict[str, bytes]:
    with zipfile.ZipFile(source) as archive:
        members = {Path(m.filename).name: m for m in archive.infolist() if _is_at_root(m.filename)}
        found = {}
        for name, member in members.items():
            with archive.open(member) as f:
                found[name] = _limited(f.read(MAX_BYTES + 1), f'{member.filename!r} in {source}')
        return found


def _read_tar(source: Path) -> Dict[str, bytes]:
    with open(source, 'rb') as f:
        magic = f.read(2)
    opener = {b'\x1f\x8b': gzip.open, b'BZ': bz2.open, b'\xfd7': lzma.open}.get(magic, open)
    found = {}
    with opener(source, 'rb') as f, tarfile.open(fileobj=_LimitedFile(f, source), mode='r:') as archive:
        for member in archive:
            if not _is_at_root(member.name):
                continue
            if not member.isfile():
                raise UsageError(f'{member.name!r} in {source} is a link or a folder, not a script: check --from.')
            found[Path(member.name).name] = _limited(
                archive.extractfile(member).read(MAX_BYTES + 1), f'{member.name!r} in {source}')
    return found


class _LimitedFile:
    """The unpacked content of an archive, which is not read beyond a limit."""

    def __init__(self, file: BinaryIO, source: Path):
        self._file, self._source = file, source

    def _check(self, position: int) -> None:
        if position > MAX_ARCHIVE_BYTES:
            raise UsageError(f'--from {self._source} has more than {MAX_ARCHIVE_BYTES} bytes when unpacked, more than '
                             "an archive of timm can have: name timm's train.py and validate.py themselves.")

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def read(self, size: int) -> bytes:
        self._check(self._file.tell() + size)
        return self._file.read(size)


def _is_at_root(name: str) -> bool:
    """True for the scripts at the root of an archive, or in its one folder, as GitHub's archives have them."""
    return Path(name).name in known.NAMES and len(Path(name).parts) <= 2


def _write(tag: str, files: Dict[str, bytes], expected: Dict[str, str]) -> Path:
    """Write a tag's folder beside the cache and rename it into place."""
    cache = known.cache_dir()
    folder = cache / tag
    tmp = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f'.{tag}-', dir=cache))
        for name in known.NAMES:  # keep a script that was fetched before and is not in this source
            old = folder / name
            if name in expected and name not in files and old.is_file():
                if known.sha256_of(old.read_bytes()) == expected[name]:
                    files = dict(files, **{name: old.read_bytes()})
        for name, data in files.items():
            (tmp / name).write_bytes(data)
            fsync(tmp / name)
        (tmp / known.MANIFEST).write_text(''.join(f'{expected[name]}  {name}\n' for name in files))
        fsync(tmp / known.MANIFEST)
        _replace_folder(tmp, folder)
        fsync(cache)
    except OSError as e:
        if tmp is not None:
            shutil.rmtree(tmp, ignore_errors=True)
        raise RunError(f'Cannot write to the cache {cache} ({e.strerror}): make it writable, or set XDG_CACHE_HOME.')
    return folder


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; if that fails, what was there stays."""
    if not folder.exists():
        os.rename(new, folder)
        return
    backup = new.with_name(new.name + '-old')
    os.rename(folder, backup)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(backup, folder)
        raise
    shutil.rmtree(backup)
