"""Finding timm's scripts and fetching them: from the web, a mirror, a proxy, a file; verified, or not at all."""
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, run_cli
from timm_scripts import SMALL, file_of

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.timm_scripts import fetch as fetching
from seresnet_timm.timm_scripts import find as finding
from seresnet_timm.timm_scripts import known

pytestmark = pytest.mark.preloaded

FILES = {'train.py': b"print('train')\n", 'validate.py': b"print('validate')\n"}
HASHES = {name: known.sha256_of(data) for name, data in FILES.items()}
TAG = 'v9.9.9'
NEWEST = file_of('validate.py', 'v1.0.28')  # no other tag has this file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no scripts of the machine's."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('TIMM_SCRIPTS', raising=False)
    for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / 'cache' / 'seresnet_timm' / 'timm_scripts'


@contextmanager
def server(respond):
    """A loopback HTTP server; `respond(handler)` answers every GET."""
    class Handler(http.server.BaseHTTPRequestHandler):
        requests = []

        def do_GET(self):
            self.requests.append(self.path)
            respond(self)

        def log_message(self, *args):
            pass
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f'http://127.0.0.1:{httpd.server_port}', Handler.requests
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def answer(handler, data: bytes, status=200, length=None, content_type='text/plain'):
    handler.send_response(status)
    handler.send_header('Content-Type', content_type)
    handler.send_header('Content-Length', str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


def serve_files(handler):
    answer(handler, FILES[Path(handler.path).name])


def assert_cached(cache: Path) -> None:
    assert {p.name: p.read_bytes() for p in (cache / TAG).glob('*.py')} == FILES
    assert [p.name for p in cache.iterdir()] == [TAG]


def test_mirror(cache):
    with server(serve_files) as (url, requests):
        assert fetching.fetch(TAG, mirror=url + '/timm/', sha256=HASHES) == cache / TAG
    assert requests == [f'/timm/{TAG}/train.py', f'/timm/{TAG}/validate.py']
    assert_cached(cache)
    script = finding.find('train.py')
    assert script.path == str(cache / TAG / 'train.py') and 'verified cache' in script.describe()


def test_command_line(cache, tmp_path):
    env = {'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'TIMM_SCRIPTS': ''}
    hashes = [f'{name}={digest}' for name, digest in HASHES.items()]
    result = run_cli('scripts', env=env)
    assert result.stdout.count('bundled') == 2 and "timm's own is not on this machine" in result.stdout
    with server(serve_files) as (url, _):
        result = run_cli('scripts', 'fetch', '--tag', TAG, '--mirror', url, '--sha256', *hashes, env=env)
    assert result.returncode == 0 and result.stdout.count('verified') == 2, result.stderr
    result = run_cli('scripts', env=env)
    assert str(cache / TAG / 'train.py') in result.stdout and 'bundled' not in result.stdout


def test_proxy(cache, monkeypatch):
    """A host that exists only behind the proxy."""
    with server(serve_files) as (url, requests):
        monkeypatch.setenv('http_proxy', url)
        fetching.fetch(TAG, mirror='http://timm.invalid', sha256=HASHES)
    assert requests[0] == f'http://timm.invalid/{TAG}/train.py'
    assert_cached(cache)


def truncated(handler):
    answer(handler, FILES['train.py'][:5], length=len(FILES['train.py']))
    handler.wfile.flush()
    handler.connection.shutdown(2)


@pytest.mark.parametrize('respond, hint', (
    (lambda h: answer(h, b'x' + FILES['train.py'], content_type='text/x-python'), 'has the hash'),
    (lambda h: answer(h, b'<!DOCTYPE html><title>Log in</title>', content_type='text/html'), 'is a web page'),
    (truncated, 'ended after 5'),
    (lambda h: answer(h, b'', status=404), 'answered 404'),
    (lambda h: answer(h, b'', status=503), 'answered 503'),
    (lambda h: answer(h, b'x' * 2_000_000), 'larger than a script can be'),
), ids=('wrong', 'html', 'truncated', '404', '503', 'large'))
def test_bad_download_changes_nothing(cache, respond, hint):
    with server(serve_files) as (url, _):
        fetching.fetch(TAG, mirror=url, sha256=HASHES)
    with server(respond) as (url, _):
        with pytest.raises(RunError, match=hint) as e:
            fetching.fetch(TAG, mirror=url, sha256=HASHES)
    assert '\n' not in str(e.value)
    assert_cached(cache)


def test_second_file_bad_keeps_the_first_out(cache):
    def respond(handler):
        answer(handler, FILES['train.py'])  # validate.py too
    with server(respond) as (url, _):
        with pytest.raises(RunError, match='validate.py from'):
            fetching.fetch(TAG, mirror=url, sha256=HASHES)
    assert not cache.exists()


def test_no_network(cache):
    with pytest.raises(RunError, match='cannot be reached .*: set HTTPS_PROXY, name a --mirror, or .* --from'):
        fetching.fetch(TAG, mirror='http://127.0.0.1:9', sha256=HASHES)
    assert not cache.exists()


def test_cache_not_writable(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with server(serve_files) as (url, _):
        with pytest.raises(RunError, match='Cannot write to the cache .* XDG_CACHE_HOME'):
            fetching.fetch(TAG, mirror=url, sha256=HASHES)
    assert (tmp_path / 'file').read_text() == ''


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / 'source'
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / 'timm.zip', 'w') as z:
        for name, data in FILES.items():
            z.writestr(f'pytorch-image-models-9.9.9/{name}', data)
        z.writestr('pytorch-image-models-9.9.9/timm/models/train.py', b'no')
    with tarfile.open(tmp_path / 'timm.tar.gz', 'w:gz') as t:
        for name, data in FILES.items():
            info = tarfile.TarInfo(f'pytorch-image-models-9.9.9/{name}')
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return tmp_path


@pytest.mark.parametrize('source', ('source', 'timm.zip', 'timm.tar.gz'))
def test_from_file_or_folder(cache, sources, source):
    fetching.fetch(TAG, source=str(sources / source), sha256=HASHES)
    assert_cached(cache)


def test_from_single_files(cache, sources):
    fetching.fetch(TAG, source=str(sources / 'source' / 'train.py'), sha256=HASHES)
    assert [p.name for p in (cache / TAG).glob('*.py')] == ['train.py']
    with pytest.raises(UsageError, match=r"timm's validate.py is not on this machine"):
        finding.find('validate.py', 'timm')
    fetching.fetch(TAG, source=str(sources / 'source' / 'validate.py'), sha256=HASHES)
    assert_cached(cache)


@pytest.mark.parametrize('source, hint', (
    ('nowhere', 'does not exist'), ('empty', 'holds neither'), ('broken.zip', 'neither a script nor an archive')))
def test_bad_source(cache, tmp_path, source, hint):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.zip').write_bytes(b'PK\3\4 not really')
    with pytest.raises(UsageError, match=hint):
        fetching.fetch(TAG, source=str(tmp_path / source), sha256=HASHES)
    assert not cache.exists()


LARGE = 2 ** 28  # bytes; zeros, which take a thousandth of it when compressed


class Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def read(self, size=-1):
        return bytes(size)


def write_tar(path: Path, *members, mode='w:gz') -> None:
    with tarfile.open(path, mode) as t:
        for name, size, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = size, kind, link
            t.addfile(info, Zeros() if size else None)


@pytest.fixture(scope='module')
def bombs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('bombs')
    with zipfile.ZipFile(folder / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        with z.open('timm/train.py', 'w', force_zip64=True) as f:
            for _ in range(LARGE // 2 ** 20):
                f.write(bytes(2 ** 20))
    large = ('timm/train.py', 2 ** 22, tarfile.REGTYPE, '')
    write_tar(folder / 'member.tar.gz', large)
    write_tar(folder / 'plain.tar', large, mode='w')
    write_tar(folder / 'other.tar.gz', ('timm/README.md', LARGE, tarfile.REGTYPE, ''),
              ('timm/train.py', 0, tarfile.REGTYPE, ''))
    write_tar(folder / 'name.tar.gz', ('a', LARGE, tarfile.GNUTYPE_LONGNAME, ''))
    write_tar(folder / 'link.tar.xz', ('timm/train.py', 0, tarfile.SYMTYPE, '/etc/passwd'), mode='w:xz')
    write_tar(folder / 'hardlink.tar.bz2', ('timm/train.py', 0, tarfile.LNKTYPE, 'timm/other'), mode='w:bz2')
    (folder / 'folder').mkdir()
    (folder / 'folder' / 'train.py').write_bytes(bytes(2 ** 20 + 1))
    return folder


@pytest.mark.parametrize('source, hint', (
    ('bomb.zip', "'timm/train.py' in .*bomb.zip is larger than a script can be"),
    ('member.tar.gz', 'is larger than a script can be'), ('plain.tar', 'is larger than a script can be'),
    ('other.tar.gz', 'more than an archive of timm can have'), ('name.tar.gz', 'more than an archive of timm can have'),
    ('link.tar.xz', 'is a link or a folder'), ('hardlink.tar.bz2', 'is a link or a folder'),
    ('folder', 'train.py is larger than a script can be'), ('folder/train.py', 'is larger than a script can be')))
def test_no_source_is_read_beyond_the_size_of_a_script(cache, bombs, source, hint):
    tracemalloc.start()
    with pytest.raises(UsageError, match=hint) as e:
        fetching.fetch(TAG, source=str(bombs / source), sha256=HASHES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert '\n' not in str(e.value) and not cache.exists()
    assert peak < 2 ** 24


def test_tags():
    with pytest.raises(UsageError, match='scripts of timm v9.9.9 are not known here .* --sha256'):
        fetching.fetch(TAG)
    with pytest.raises(UsageError, match='contradicts the known hashes'):
        fetching.fetch('v1.0.28', sha256=HASHES)
    with pytest.raises(UsageError, match='is not a release tag'):
        fetching.fetch('../x', sha256=HASHES)
    for tag in ('', '.', 'v1\x1b[2J', 'v1\\x', 'a b'):
        with pytest.raises(UsageError, match='is not a release tag') as e:
            fetching.fetch(tag or '..', sha256=HASHES)
        assert '\x1b' not in str(e.value)
    tag, reason = known.tag_for_installed_timm()
    assert tag in known.SHA256 and 'the newest known' in reason or 'matches' in reason
    assert all(len(digest) == 64 for files in known.SHA256.values() for digest in files.values())


def test_known_tag_takes_nothing_else(cache, sources):
    with pytest.raises(RunError, match='not that of timm v1.0.28'):
        fetching.fetch('v1.0.28', source=str(sources / 'source'))
    assert not cache.exists()


@pytest.mark.skipif(not NEWEST, reason="TIMM_SCRIPTS does not name a folder with timm's scripts v1.0.28")
def test_timms_own_files_are_known(cache):
    fetching.fetch('v1.0.28', source=str(NEWEST.parent))
    script = finding.find('validate.py', 'timm')
    assert script.tag == 'v1.0.28' and "timm's validate.py v1.0.28" in script.describe()


def test_changed_cache_is_refused(cache, sources):
    fetching.fetch(TAG, source=str(sources / 'source'), sha256=HASHES)
    (cache / TAG / 'train.py').write_text('print("other")')
    with pytest.raises(UsageError, match='has been changed since it was verified'):
        finding.find('train.py')


def test_order(cache, sources, monkeypatch):
    """--scripts PATH, then TIMM_SCRIPTS, then the cache, then the bundled script."""
    assert finding.find('train.py').path is None
    fetching.fetch(TAG, source=str(sources / 'source'), sha256=HASHES)
    assert finding.find('train.py').path == str(cache / TAG / 'train.py')
    monkeypatch.setenv('TIMM_SCRIPTS', str(sources / 'source'))
    assert finding.find('train.py').path == str(sources / 'source' / 'train.py')
    assert finding.find('train.py', str(SMALL)).reason.startswith('--scripts ')
    assert finding.find('train.py', 'bundled').path is None
    monkeypatch.setenv('TIMM_SCRIPTS', str(sources / 'nowhere'))
    with pytest.raises(UsageError, match='TIMM_SCRIPTS .*nowhere: there is no train.py'):
        finding.find('train.py')


def test_checkout_behind_an_editable_install(cache, tmp_path):
    """A timm that Python imports from a checkout, as `pip install -e` links it."""
    checkout = tmp_path / 'pytorch-image-models'
    (checkout / 'timm').mkdir(parents=True)
    (checkout / 'timm' / '__init__.py').write_text('')
    (checkout / 'pyproject.toml').write_text('')
    for name, data in FILES.items():
        (checkout / name).write_bytes(data)
    code = ("import sys; sys.orig_argv = ['python', 'seresnet-timm']\n"
            "from seresnet_timm.cli.main import main; main(['scripts'])")
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            env={**os.environ, 'PYTHONPATH': f'{checkout}{os.pathsep}{ROOT}'})
    assert f'timm is installed from this checkout: {checkout}/train.py' in result.stdout, result.stderr
