"""A Hugging Face Hub on the loopback interface, for the real huggingface_hub client: models only, LFS only (no Xet).

    with HubServer(folder) as hub:  # hub.url is for HF_ENDPOINT
        hub.faults.append(Fault(r'GET /_cdn/', 'flip'))

Repositories live in memory, blobs in a folder. What huggingface_hub 0.36, 1.x and 2.4 ask of a Hub to push and pull:

    POST       /api/repos/create                         make a repository; 409 where it exists
    DELETE     /api/repos/delete                         delete it
    GET        /api/models/{repo}[/revision/{rev}]       commit and files; ?blobs=true with their hashes
    GET        /api/models/{repo}/refs, /tree/{rev}      branches and tags; files
    POST       /api/models/{repo}/branch|tag/{rev}       make one
    POST       /api/validate-yaml                        the card's metadata
    POST       /api/models/{repo}/preupload/{rev}        which files go by LFS
    POST       /{repo}.git/info/lfs/objects/batch        where to put them
    PUT, POST  /_lfs/{sha256}, /_lfs/verify              the blob, and whether it came
    POST       /api/models/{repo}/commit/{rev}           ndjson: header, file (base64), lfsFile
    HEAD, GET  /{repo}/resolve/{rev}/{path}              file, or redirect to the CDN; X-Repo-Commit, ETag, X-Linked-*
    GET        /_cdn/{sha256}                            blob, with Range

The CDN has another origin than the Hub (localhost, not 127.0.0.1), as the real one has: else the client's HEAD would
follow the redirect. `python tests/hub_server.py DIR [MBIT_PER_SECOND]` serves until it is killed.
"""
import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from hub_store import Fault, File, Repo, git_oid

ERROR_CODES = {404: 'RepoNotFound'}
LFS_SUFFIXES = ('.safetensors', '.bin', '.pth', '.png')
BLOCK = 1 << 20


class HubServer(ThreadingHTTPServer):
    """The server; its attributes are the test's to read and to set.

    Attributes:
        users: User name by token; a user may write to the namespace of that name.
        repos: By 'namespace/name'.
        faults: What goes wrong; the first that applies to a request does.
        requests: 'METHOD /path' of all requests so far.
        seen_tokens: Tokens that came with them.
        rate: Bytes a second of blobs, both ways; None for as fast as it goes.
    """
    daemon_threads = True

    def __init__(
            self, folder: Path, port: int = 0, users: Optional[Dict[str, str]] = None, rate: Optional[float] = None):
        super().__init__(('127.0.0.1', port), Handler)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        self.cdn = f'http://localhost:{self.server_address[1]}'
        self.users = users or {'hf_tokenofme': 'me'}
        self.repos: Dict[str, Repo] = {}
        self.faults: List[Fault] = []
        self.requests: List[str] = []
        self.seen_tokens: set = set()
        self.rate = rate

    def blob(self, sha256: str) -> Path:
        return self.folder / sha256

    def read(self, repo: str, path: str, revision: str = 'main') -> bytes:
        """Content of a file."""
        return self.blob(self.repos[repo].files(revision)[path].blob).read_bytes()

    def write(self, repo: str, files: Dict[str, bytes], branch: str = 'main') -> str:
        """Commit files, as a user with a browser would; makes the repository. Returns the commit."""
        r = self.repos.setdefault(repo, Repo(private=False))
        new = dict(r.files(branch))
        for path, data in files.items():
            new[path] = self.add(data, path.endswith(LFS_SUFFIXES))
        return r.commit(new, branch, 'by hand')

    def add(self, data: bytes, is_lfs: bool) -> File:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blob(sha256).write_bytes(data)
        return File(sha256, git_oid(data), len(data), is_lfs)

    def handle_error(self, request, client_address):
        pass  # a client that was killed, or has hung up

    def __enter__(self) -> 'HubServer':
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Failure(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = '', headers: Optional[Dict[str, str]] = None):
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # headers and body go one after the other
    server: HubServer

    def log_message(self, *_):
        pass

    # --- one request --------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(url.query)
        request = f'{self.command} {url.path}'
        self.server.requests.append(request)
        fault = next((f for f in self.server.faults if f.applies(request)), None)
        self.fault = fault.kind if fault else None
        self.seconds = fault.seconds if fault else 0
        try:
            if self.fault == 'drop':
                return self.drop()
            self.body = None if self.command == 'PUT' else self.read_body()
            if self.fault == 'status':
                self.body = self.body if self.body is not None else self.read_body()
                raise Failure(fault.status, fault.message or f'Fault {fault.status}', fault.code, fault.headers)
            if self.fault == 'redirect':
                return self.answer(b'', 302, {'Location': f'{self.server.cdn}/login'})
            if self.fault == 'garbage' or url.path == '/login':
                return self.answer(b'<html><body>Please log in</body></html>', headers={'Content-Type': 'text/html'})
            for methods, pattern, method in ROUTES:
                match = pattern.fullmatch(url.path)
                if match and self.command in methods:
                    parts = {k: urllib.parse.unquote(v) for k, v in match.groupdict().items() if v is not None}
                    return method(self, **parts)
            raise Failure(404, f'The test Hub has no route {request}')
        except Failure as e:
            headers = {'X-Error-Message': e.message, **({'X-Error-Code': e.code} if e.code else {}), **e.headers}
            self.answer_json({'error': e.message}, e.status, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def drop(self) -> None:
        """Close the connection; of an upload, when half of it has come."""
        length = int(self.headers.get('Content-Length') or 0)
        if self.command == 'PUT' and length:
            self.rfile.read(length // 2)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        return b''.join(self.blocks())

    def blocks(self) -> Iterator[bytes]:
        """The body of the request, in blocks."""
        if self.headers.get('Transfer-Encoding', '').lower() == 'chunked':
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get('Content-Length') or 0)
        while left:
            block = self.rfile.read(min(left, BLOCK))
            if not block:
                raise ConnectionError('The client has hung up.')
            left -= len(block)
            yield block

    def answer(self, data: bytes, status: int = 200, headers: Optional[Dict[str, str]] = None) -> None:
        """Send an answer, spoiled as the fault says."""
        if self.fault == 'slow':
            time.sleep(self.seconds)
        if data and self.fault == 'flip':
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:]
        if data and self.fault == 'length':
            data = data[:-1]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command == 'HEAD':
            return
        half = len(data) // 2
        if self.server.rate and self.fault is None and len(data) > BLOCK:
            start = time.perf_counter()
            for i in range(0, len(data), BLOCK):
                self.wfile.write(data[i:i + BLOCK])
                self.keep_rate(start, i + BLOCK)
            return
        self.wfile.write(data[:half] if self.fault in ('truncate', 'trickle') else data)
        if self.fault == 'truncate':
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        if self.fault == 'trickle':
            time.sleep(self.seconds)
            self.wfile.write(data[half:])

    def keep_rate(self, start: float, size: int) -> None:
        if self.server.rate:
            time.sleep(max(0., start + size / self.server.rate - time.perf_counter()))

    def answer_json(self, value: Any, status: int = 200, headers: Optional[Dict[str, str]] = None) -> None:
        self.answer(json.dumps(value).encode(), status, {'Content-Type': 'application/json', **(headers or {})})

    # --- rights -------------------------------------------------------------------------------------------------------

    def user(self) -> Optional[str]:
        header = self.headers.get('Authorization', '')
        if not header.startswith('Bearer '):
            return None
        token = header[len('Bearer '):]
        self.server.seen_tokens.add(token)
        if token not in self.server.users:
            raise Failure(401, 'Invalid credentials in Authorization header')
        return self.server.users[token]

    def repo(self, name: str, write: bool = False) -> Repo:
        user, found = self.user(), self.server.repos.get(name)
        if found is None or found.private and user != name.split('/')[0]:
            # what is private is not told from what does not exist
            raise Failure(401 if user is None else 404, 'Repository not found', 'RepoNotFound')
        if write and user is None:
            raise Failure(401, 'Invalid username or password.')
        if write and user != name.split('/')[0]:
            raise Failure(403, f'Forbidden: you must have write access to {name}')
        return found

    def commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise Failure(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return sha

    # --- API ----------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        user, request = self.user(), json.loads(self.body)
        namespace = request.get('organization') or user
        name = f'{namespace}/{request["name"]}'
        if user is None:
            raise Failure(401, 'Invalid username or password.')
        if namespace != user:
            raise Failure(403, f"You don't have the rights to create a model under the namespace \"{namespace}\"")
        url = f'{self.server.url}/{name}'
        if name in self.server.repos:
            return self.answer_json({'error': 'You already created this model repo', 'url': url}, 409)
        self.server.repos[name] = Repo(request.get('visibility') == 'private' or request.get('private') is True)
        self.answer_json({'url': url, 'name': name})

    def delete(self) -> None:
        user, request = self.user(), json.loads(self.body)
        name = f'{request.get("organization") or user}/{request["name"]}'
        self.repo(name, write=True)
        del self.server.repos[name]
        self.answer_json({})

    def info(self, name: str, rev: str = 'main') -> None:
        repo = self.repo(name)
        sha = self.commit_of(repo, rev)
        siblings = []
        for path, f in repo.commits[sha].items():
            hashes = {}
            if 'blobs' in self.query:
                hashes = {'size': f.size, 'blobId': f.oid}
                if f.is_lfs:
                    hashes['lfs'] = {'sha256': f.blob, 'size': f.size, 'pointerSize': 134}
            siblings.append({'rfilename': path, **hashes})
        if self.fault == 'hash':
            for s in siblings:
                s.update(blobId='0' * 40, **({'lfs': {**s['lfs'], 'sha256': '0' * 64}} if 'lfs' in s else {}))
        self.answer_json({
            'id': name, 'modelId': name, 'author': name.split('/')[0], 'sha': sha, 'private': repo.private,
            'gated': False, 'disabled': False, 'downloads': 0, 'likes': 0, 'tags': [], 'siblings': siblings})

    def tree(self, name: str, rev: str) -> None:
        repo = self.repo(name)
        self.answer_json([{
            'type': 'file', 'path': path, 'oid': f.oid, 'size': f.size,
            **({'lfs': {'oid': f.blob, 'size': f.size, 'pointerSize': 134}} if f.is_lfs else {}),
        } for path, f in repo.commits[self.commit_of(repo, rev)].items()])

    def refs(self, name: str) -> None:
        repo = self.repo(name)
        self.answer_json({
            'branches': [{'name': n, 'ref': f'refs/heads/{n}', 'targetCommit': c} for n, c in repo.branches.items()],
            'tags': [{'name': n, 'ref': f'refs/tags/{n}', 'targetCommit': c} for n, c in repo.tags.items()],
            'converts': []})

    def branch(self, name: str, rev: str) -> None:
        repo = self.repo(name, write=True)
        if rev in repo.branches:
            raise Failure(409, 'Reference already exists')
        start = json.loads(self.body or b'{}').get('startingPoint', 'main')
        repo.branches[rev] = self.commit_of(repo, start)
        self.answer_json({}, 201)

    def tag(self, name: str, rev: str) -> None:
        repo, tag = self.repo(name, write=True), json.loads(self.body)['tag']
        if tag in repo.tags:
            raise Failure(409, 'Tag already exists')
        repo.tags[tag] = self.commit_of(repo, rev)
        self.answer_json({}, 201)

    def validate_yaml(self) -> None:
        import yaml
        content = json.loads(self.body)['content']
        metadata = yaml.safe_load(content.split('---\n')[1]) if content.startswith('---\n') else {}
        errors = [] if not metadata or 'license' in metadata else [{'message': '"license" is required'}]
        self.answer_json({'errors': errors, 'warnings': []}, 400 if errors else 200)

    def preupload(self, name: str, rev: str) -> None:
        repo = self.repo(name, write=True)
        files = repo.commits[self.commit_of(repo, rev)]
        self.answer_json({'files': [{
            'path': f['path'], 'shouldIgnore': False,
            'uploadMode': 'lfs' if f['path'].endswith(LFS_SUFFIXES) else 'regular',
            'oid': files[f['path']].etag if f['path'] in files else None,
        } for f in json.loads(self.body)['files']]})

    def commit(self, name: str, rev: str) -> None:
        repo = self.repo(name, write=True)
        if rev not in repo.branches:
            raise Failure(404, f'Invalid rev id: {rev}', 'RevisionNotFound')
        files, message = dict(repo.files(rev)), ''
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry['value']
            if entry['key'] == 'header':
                message = value['summary']
                if value.get('parentCommit') not in (None, repo.branches[rev]):
                    raise Failure(412, 'A commit has happened since. Please refresh and try again.')
            elif entry['key'] == 'file':
                files[value['path']] = self.server.add(base64.b64decode(value['content']), is_lfs=False)
            elif entry['key'] == 'lfsFile':
                blob = self.server.blob(value['oid'])
                if not blob.exists():
                    raise Failure(400, f'LFS object {value["oid"]} was not uploaded')
                pointer = ('version https://git-lfs.github.com/spec/v1\n'
                           f'oid sha256:{value["oid"]}\nsize {blob.stat().st_size}\n')
                files[value['path']] = File(value['oid'], git_oid(pointer.encode()), blob.stat().st_size, is_lfs=True)
            elif entry['key'] == 'deletedFile':
                files.pop(value['path'], None)
        sha = repo.commit(files, rev, message)
        self.answer_json({
            'success': True, 'commitOid': sha, 'commitUrl': f'{self.server.url}/{name}/commit/{sha}', 'hookOutput': ''})

    # --- LFS ----------------------------------------------------------------------------------------------------------

    def lfs_batch(self, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for o in json.loads(self.body)['objects']:
            entry = {'oid': o['oid'], 'size': o['size']}
            if not self.server.blob(o['oid']).exists():
                entry['actions'] = {
                    'upload': {'href': f'{self.server.cdn}/_lfs/{o["oid"]}?X-Amz-Signature=secretsignature'},
                    'verify': {'href': f'{self.server.url}/_lfs/verify'}}
            objects.append(entry)
        self.answer_json({'transfer': 'basic', 'objects': objects})

    def lfs_put(self, oid: str) -> None:
        digest = hashlib.sha256()
        part = self.server.folder / f'{oid}.{threading.get_ident()}'
        start, size = time.perf_counter(), 0
        try:
            with open(part, 'wb') as f:
                for block in self.blocks():
                    if self.fault == 'trickle':
                        time.sleep(self.seconds)
                    if self.fault == 'flip':
                        block = bytes([block[0] ^ 1]) + block[1:]
                    digest.update(block)
                    f.write(block)
                    size += len(block)
                    self.keep_rate(start, size)
            if digest.hexdigest() != oid:
                raise Failure(400, 'BadDigest')
            part.rename(self.server.blob(oid))
        finally:
            part.unlink(missing_ok=True)
        self.answer(b'', headers={'ETag': '"x"'})

    def lfs_verify(self) -> None:
        request = json.loads(self.body)
        blob = self.server.blob(request['oid'])
        if not blob.exists() or blob.stat().st_size != request['size']:
            raise Failure(404, 'Object not found')
        self.answer_json({})

    # --- files --------------------------------------------------------------------------------------------------------

    def resolve(self, name: str, rev: str, path: str) -> None:
        repo = self.repo(name)
        sha = self.commit_of(repo, rev)
        f = repo.commits[sha].get(path)
        if f is None:
            raise Failure(404, 'Entry not found', 'EntryNotFound', {'X-Repo-Commit': sha})
        etag = '0' * len(f.etag) if self.fault == 'hash' else f.etag
        headers = {'X-Repo-Commit': sha, 'Accept-Ranges': 'bytes'}
        if f.is_lfs:
            self.answer(b'', 302, {
                **headers, 'X-Linked-Etag': f'"{etag}"', 'X-Linked-Size': str(f.size),
                'Location': f'{self.server.cdn}/_cdn/{f.blob}?Signature=secretsignature'})
        else:
            self.answer(self.server.blob(f.blob).read_bytes(), headers={**headers, 'ETag': f'"{etag}"'})

    def cdn(self, oid: str) -> None:
        if self.headers.get('Authorization'):
            raise Failure(400, 'A token was sent to the CDN')
        data = self.server.blob(oid).read_bytes()
        wanted = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if wanted:
            start, end = int(wanted[1]), int(wanted[2]) if wanted[2] else len(data) - 1
            return self.answer(
                data[start:end + 1], 206, {'Content-Range': f'bytes {start}-{end}/{len(data)}'})
        self.answer(data, headers={'ETag': f'"{oid}"'})


_REPO, _REV = r'(?P<name>[\w.\-]+/[\w.\-]+)', r'(?P<rev>[^/]+)'
ROUTES: List[Tuple[Tuple[str, ...], re.Pattern, Any]] = [(tuple(m.split()), re.compile(p), f) for m, p, f in (
    ('POST', r'/api/repos/create', Handler.create),
    ('DELETE', r'/api/repos/delete', Handler.delete),
    ('POST', r'/api/validate-yaml', Handler.validate_yaml),
    ('POST', rf'/api/models/{_REPO}/preupload/{_REV}', Handler.preupload),
    ('POST', rf'/api/models/{_REPO}/commit/{_REV}', Handler.commit),
    ('POST', rf'/api/models/{_REPO}/branch/{_REV}', Handler.branch),
    ('POST', rf'/api/models/{_REPO}/tag/{_REV}', Handler.tag),
    ('GET', rf'/api/models/{_REPO}/refs', Handler.refs),
    ('GET', rf'/api/models/{_REPO}/tree/{_REV}', Handler.tree),
    ('GET HEAD', rf'/api/models/{_REPO}/revision/{_REV}', Handler.info),
    ('GET HEAD', rf'/api/models/{_REPO}', Handler.info),
    ('POST', rf'/{_REPO}\.git/info/lfs/objects/batch', Handler.lfs_batch),
    ('POST', r'/_lfs/verify', Handler.lfs_verify),
    ('PUT', r'/_lfs/(?P<oid>\w{64})', Handler.lfs_put),
    ('GET HEAD', r'/_cdn/(?P<oid>\w{64})', Handler.cdn),
    ('GET HEAD', rf'/{_REPO}/resolve/{_REV}/(?P<path>.+)', Handler.resolve),
)]


if __name__ == '__main__':
    server = HubServer(Path(sys.argv[1]), rate=float(sys.argv[2]) * 125_000 if len(sys.argv) > 2 else None)
    print(server.url, flush=True)
    server.serve_forever()
