"""A ModelScope on 127.0.0.1, as far as its SDK asks for it: repositories in memory, faults on request"""
import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Server(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: 'org/name' -> branch or tag -> name of a file -> its bytes.
        private: 'org/name' -> whether it is.
        faults: 'damage' (a name whose bytes are changed on the way, and how often), 'status' (of every answer),
            'commit' (the status of the answer to a commit), 'no_hashes'.
        requests: Method and path of every request.
    """
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.repositories, self.private, self.blobs, self.faults, self.requests = {}, {}, {}, {}, []
        self.tokens, self.tags = {'ms-good'}, set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f'http://127.0.0.1:{self.server_address[1]}'


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, value, status=200):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/octet-stream' if isinstance(value, bytes) else 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def data(self, value):
        self.answer({'Code': 200, 'Success': True, 'Message': 'success', 'Data': value})

    def refuse(self, status, text):
        self.answer({'Code': status, 'Success': False, 'Message': text, 'RequestId': 'x'}, status)

    def start(self):
        """The parts of the path, the query and the body; None where a fault has answered."""
        self.server.requests.append(f'{self.command} {self.path}')
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if 'status' in self.server.faults:
            self.refuse(self.server.faults['status'], 'not now')
            return None
        address = urlsplit(self.path)
        return address.path.strip('/').split('/'), {k: v[0] for k, v in parse_qs(address.query).items()}, body

    def is_allowed(self):
        token = f'{self.headers.get("Authorization", "")} {self.headers.get("Cookie", "")}'
        return any(good in token for good in self.server.tokens)

    def do_GET(self):
        started = self.start()
        if started is None:
            return
        parts, query, _ = started
        server = self.server
        if parts[:3] == ['openapi', 'v1', 'models']:
            name = '/'.join(parts[3:5])
            if name not in server.repositories:
                return self.refuse(404, 'no such model')
            return self.answer({'success': True, 'data': {
                'id': name, 'private': server.private.get(name, False), 'owner': parts[3], 'name': parts[4]}})
        name = '/'.join(parts[3:5])
        repository = server.repositories.get(name)
        if parts[5:] == ['revisions'] and repository is not None:
            kinds = {kind: [{'Revision': r} for r in repository if (r in server.tags) == (kind == 'Tags')]
                     for kind in ('Branches', 'Tags')}
            return self.data({'RevisionMap': kinds})
        files = None if repository is None else repository.get(query.get('Revision', 'master'))
        if files is None or server.private.get(name) and not self.is_allowed():
            return self.refuse(404, 'no such model or revision')
        if parts[5:] == ['repo', 'files']:
            return self.data({'Files': [
                {'Path': k, 'Name': k, 'Type': 'blob', 'Size': len(v),
                 **({} if 'no_hashes' in server.faults else {'Sha256': hashlib.sha256(v).hexdigest()})}
                for k, v in files.items()]})
        data = files.get(query['FilePath'])
        if data is None:
            return self.refuse(404, 'no such file')
        damaged, times = server.faults.get('damage', ('', 0))
        if damaged == query['FilePath'] and times:
            server.faults['damage'] = (damaged, times - 1)
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.answer(data)

    def do_PUT(self):
        started = self.start()
        if started is not None:
            self.server.blobs[started[0][-1]] = started[2]
            self.data({})

    def do_POST(self):
        started = self.start()
        if started is None:
            return
        parts, _, body = started
        body, server = json.loads(body or b'{}'), self.server
        if not self.is_allowed():
            return self.refuse(401, 'log in')
        if parts == ['api', 'v1', 'models']:
            name = f'{body["Path"]}/{body["Name"]}'
            if name in server.repositories:
                return self.refuse(409, f'{name} already exists')
            server.repositories[name], server.private[name] = {'master': {}}, body['Visibility'] == 1
            return self.data({'Id': 1, 'Path': body['Path'], 'Name': body['Name']})
        if parts[2] == 'repos' and parts[-1] == 'batch':
            return self.data({'objects': [
                {'oid': o['oid'], 'actions': {} if o['oid'] in server.blobs else {
                    'upload': {'href': f'{server.address}/blobs/{o["oid"]}'}}} for o in body['objects']]})
        name = '/'.join(parts[4:6] if parts[2] == 'repos' else parts[3:5])
        if parts[-2] == 'commit':
            if 'commit' in server.faults:
                return self.refuse(server.faults['commit'], 'not now')
            files = server.repositories[name][parts[-1]]
            for action in body['actions']:
                files[action['path']] = (server.blobs[action['sha256']] if action['type'] == 'lfs' else
                                         base64.b64decode(action['content']))
            return self.data({'oid': 'c' * 40})
        if parts[-1] == 'tag':
            tag = body.get('TagName') or body.get('Tag') or body.get('tag') or body.get('Name')
            server.repositories[name][tag] = dict(server.repositories[name][body.get('Ref') or 'master'])
            server.tags.add(tag)
            return self.data({})
        self.refuse(404, self.path)
