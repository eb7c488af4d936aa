"""Pretrained weights of timm's names: downloaded once, brought in by hand, and what is said without a network."""
import hashlib
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from hub_store import Fault
from safetensors.torch import load_file, save_file
from training import load

from hub.commands import one_sentence, sha
from seresnet_timm.errors import RunError
from seresnet_timm.hub import weights
from seresnet_timm.process import within

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all

NAME = 'test_resnet.r160_in1k'  # the smallest of timm that has weights on the Hub
REPO = f'timm/{NAME}'
OFFLINE = '''
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
'''


def run(client, *argv, before=''):
    """A command, after a few lines of Python in its process."""
    return client.python(f'{before}\nfrom seresnet_timm import cli\ncli.main({list(map(str, argv))!r})')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Weights of timm's test_resnet, as safetensors and as torch saves them."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp('carried here')
    state = timm.create_model('test_resnet').state_dict()
    save_file(state, folder / 'model.safetensors')
    torch.save(state, folder / 'w.pth')
    return folder


@pytest.fixture
def train(few_digits, tmp_path):
    """Command line of a training from them."""
    return ['train', '--model', NAME, '--pretrained', '--data-dir', few_digits, '--img-size', 32, '-b', 100,
            '--workers', 0, '--device', 'cpu', '--nproc', 1, '--epochs', 1, '--lr', 1e-20, '--warmup-epochs', 0,
            '--output', tmp_path / 'runs', '--experiment', 'x']


def publish(hub, files):
    hub.write(REPO, {'model.safetensors': (files / 'model.safetensors').read_bytes(), 'config.json': b'{}'})
    hub.requests.clear()


def test_a_run_downloads_once_and_verified(hub, client, files, train, tmp_path):
    """The launcher downloads, the rank asks for nothing; a flipped byte, which timm loads, is noticed."""
    publish(hub, files)
    hub.faults.append(Fault('GET /_cdn/', 'flip', times=1))
    result, source = run(client, *train), f'pretrained, {REPO} at {client.environment["HF_ENDPOINT"]}'
    assert result.code == 0 and 'does not have the hash' in result.err, result.err
    assert f'{source}, not in the cache: the run downloads them' in result.err
    of_files = [r.split('/')[1] for r in hub.requests if REPO in r or '_cdn' in r]
    assert of_files == ['api', 'timm', '_cdn', 'timm', '_cdn']
    trained = load(tmp_path / 'runs/x/last.pth.tar')['state_dict']
    assert torch.equal(trained['conv1.0.weight'], load_file(files / 'model.safetensors')['conv1.0.weight'])
    hub.requests.clear()
    again = run(client, *train[:-1], 'y', before=OFFLINE)
    assert again.code == 0 and f'{source}, in the cache\n' in again.err and not hub.requests


@pytest.mark.parametrize('verb', ('train', pytest.param('validate', marks=pytest.mark.slow), 'predict'))
def test_no_network(hub, client, train, few_digits, tmp_path, verb):
    """HF_HUB_OFFLINE, and a server that takes the connection and is silent: one sentence, at once, and no folder."""
    argv = {'train': train, 'predict': ['predict', NAME, few_digits / 'val', '--device', 'cpu'],
            'validate': ['validate', '--model', NAME, '--data-dir', few_digits, '--num-classes', 10, '--device', 'cpu',
                         '--workers', 0]}[verb]
    parts = NAME, 'not in the cache', f'weights fetch {NAME} --from FILE', '--mirror'
    one_sentence(run(client, *argv, before=OFFLINE), 1, 'HF_HUB_OFFLINE is set', *parts)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        start = time.time()
        before = ('from huggingface_hub import constants\n'
                  f'constants.ENDPOINT = "http://127.0.0.1:{silent.getsockname()[1]}"\n')
        one_sentence(run(client, *argv, before=before), 1, 'does not answer in time', *parts)
    assert time.time() - start < 10  # its limit is 3 s here
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('status, words', (
    (401, 'There is no model'), (403, 'refuses (403)'), (404, 'There is no model'), (407, 'USER:PASSWORD@HOST'),
    (418, 'refuses (418: '), (200, 'is not a Hub')))
def test_a_server_that_does_not_give_the_weights(client, files, few_digits, tmp_path, status, words):
    """Whatever it answers, the sentence says how to bring them in by hand; and a hash that it does not tell."""
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header('Content-Length', '11')
            self.end_headers()
            self.wfile.write(b'<html></html'[:11])

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        before = f'from huggingface_hub import constants\nconstants.ENDPOINT = "{url}"\n'
        for argv in (['predict', NAME, few_digits / 'val', '--device', 'cpu'], ['weights', 'fetch', NAME]):
            by_hand = f'bring model.safetensors here and call `seresnet-timm weights fetch {NAME} --from FILE`'
            one_sentence(run(client, *argv, before=before), 1, words, by_hand)
        one_sentence(run(client, 'pull', 'me/none', before=before), 1, words, 'local-dir:FOLDER')
        mirrored = run(client, 'weights', 'fetch', NAME, '--mirror', url, before=before)
        one_sentence(mirrored, *((2, f'The file from {url}', 'is a web page', 'nothing was kept') if status == 200 else
                                 (1, '--from FILE')))
        assert not list(client.home.rglob('*.safetensors'))
        result = run(client, 'weights', 'fetch', NAME, '--from', files / 'model.safetensors', before=before)
        assert result.code == 0 and 'does not tell the hash' in result.err and 'NOT VERIFIED' in result.out, result.err
        server.shutdown()


def test_weights_from_a_file(hub, client, files, train, tmp_path):
    """What was carried here is what --pretrained loads, without a network."""
    file, digest = files / 'model.safetensors', sha(files / 'model.safetensors')
    one_sentence(run(client, 'weights', 'fetch', NAME, '--from', file, '--sha256', 'f' * 64, before=OFFLINE), 1,
                 digest, 'nothing was kept')
    assert not list(client.home.rglob('*.safetensors'))
    result = run(client, 'weights', 'fetch', NAME, '--from', file, '--sha256', f'sha256:{digest.upper()}',
                 before=OFFLINE)
    assert result.code == 0 and f'{digest} verified with --sha256' in result.out, result.err
    assert run(client, *train, before=OFFLINE).code == 0
    trained = load(tmp_path / 'runs/x/last.pth.tar')['state_dict']
    assert torch.equal(trained['conv1.0.weight'], load_file(file)['conv1.0.weight'])
    again = run(client, 'weights', 'fetch', NAME, '--from', file, before=OFFLINE)
    assert again.code == 0 and 'NOT VERIFIED' in again.out
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'other.pth')
    one_sentence(run(client, 'weights', 'fetch', NAME, '--from', tmp_path / 'other.pth', before=OFFLINE), 2,
                 'in the cache already, with other weights')


def test_hash_of_a_file(hub, client, files, tmp_path):
    """What the Hub says decides, else the name of the file: torch.hub's, or a blob of another cache."""
    digest = sha(files / 'w.pth')
    for name, code in ((f'w-{digest[:8]}.pth', 0), ('w-0123abcd.pth', 1), (digest, 0), ('0' * 64, 1)):
        client.forget()
        shutil.copy(files / 'w.pth', tmp_path / name)
        result = run(client, 'weights', 'fetch', NAME, '--from', tmp_path / name, before=OFFLINE)
        assert result.code == code, (name, result.err)
        assert ('verified with the hash in its name' if code == 0 else 'nothing was kept') in result.out + result.err
    publish(hub, files)
    one_sentence(run(client, 'weights', 'fetch', NAME, '--from', files / 'w.pth'), 1, digest, 'nothing was kept')
    client.forget()
    result = run(client, 'weights', 'fetch', NAME, '--from', files)  # the folder
    assert result.code == 0 and 'verified with what http' in result.out
    assert (client.home / f'hub/models--timm--{NAME}/snapshots' / hub.repos[REPO].branches['main']).is_dir()


def test_files_that_are_not_the_weights(hub, client, files, tmp_path):
    (tmp_path / 'text.pth').write_text('no weights')
    (tmp_path / 'page.safetensors').write_text('<html>log in</html>')
    save_file({'x': torch.zeros(1)}, tmp_path / 'other.safetensors')
    (tmp_path / 'cut.pth').write_bytes((files / 'w.pth').read_bytes()[:-1000])
    for name in ('text.pth', 'page.safetensors', 'other.safetensors', 'cut.pth', 'none.pth', '.'):
        one_sentence(run(client, 'weights', 'fetch', NAME, '--from', tmp_path / name, before=OFFLINE), 2)
    for argv in ((), ('fetch', 'nonesuch'), ('fetch', 'a/b/c'), ('fetch', NAME, '--sha256', 'abc'),
                 ('fetch', NAME, '--mirror', 'mirror.example'), ('fetch', 'hf-hub:me/x', '--from', files / 'w.pth')):
        one_sentence(run(client, 'weights', *argv, before=OFFLINE), 2)
    assert not list(client.home.rglob('snapshots/*'))


def test_mirror(hub, client, files):
    """A mirror of the Hub, the address of the file, and a folder of a web server; no token goes there."""
    publish(hub, files)
    dead = 'from huggingface_hub import constants\nconstants.ENDPOINT = "http://127.0.0.1:9"'
    hub.seen_tokens.clear()
    for place in ('', f'/{REPO}/resolve/main/model.safetensors'):
        client.forget()
        result = run(client, 'weights', 'fetch', NAME, '--mirror', hub.url + place, '--sha256',
                     sha(files / 'model.safetensors'), before=dead)
        assert result.code == 0 and sha(files / 'model.safetensors') in result.out, result.err
    assert not hub.seen_tokens
    client.forget()
    hub.faults.append(Fault('GET /_cdn/', 'flip'))
    one_sentence(run(client, 'weights', 'fetch', NAME, '--mirror', hub.url, before=dead), 1, 'damaged twice')
    one_sentence(run(client, 'weights', 'fetch', NAME, '--mirror', 'http://127.0.0.1:9', before=dead), 1,
                 'cannot be reached', '--from FILE')


def test_model_of_the_hub_from_a_folder(pushed, client, few_digits, tmp_path):
    assert client.run('pull', 'me/x', tmp_path / 'carried').code == 0
    client.forget()
    assert run(client, 'weights', 'fetch', 'me/x', '--from', tmp_path / 'carried', before=OFFLINE).code == 0
    image = next((few_digits / 'val' / '3').iterdir())
    result = run(client, 'predict', 'hf-hub:me/x', image, '--device', 'cpu', before=OFFLINE)
    assert result.code == 0 and 'compared with no hash' in result.err, result.err


class Page(BaseHTTPRequestHandler):
    """A web server with one file."""
    content = b'weights'

    def do_GET(self):
        self.send_response(200 if self.path.endswith('.pth') else 404)
        self.send_header('Content-Length', str(len(self.content)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(self.content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_weights_with_an_address(monkeypatch, tmp_path, capsys):
    """Some of timm's weights are not on the Hub: the same rules."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    name = f'w-{hashlib.sha256(Page.content).hexdigest()[:8]}.pth'
    with ThreadingHTTPServer(('127.0.0.1', 0), Page) as server, socket.socket() as silent:
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True).start()
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        monkeypatch.setattr(weights, 'FIRST_ANSWER', 0.5)
        for port, file in ((silent.getsockname()[1], name), (server.server_port, 'none.txt'), (9, name)):
            source = weights.Pretrained('tiny', None, None, (file,), f'http://127.0.0.1:{port}/{file}')
            start = time.time()
            with pytest.raises(RunError, match='tiny are not in the cache .* weights fetch tiny --from FILE'):
                weights._download_url(source)
            assert time.time() - start < 3  # the limit is 6 s otherwise
        assert not [p for p in tmp_path.rglob('*') if p.is_file()]
        source = weights.Pretrained('tiny', None, None, (name,), f'http://127.0.0.1:{server.server_port}/{name}')
        path = weights._download_url(source)
        server.shutdown()
    assert path.read_bytes() == Page.content and weights._download_url(source) == path
    path.write_bytes(b'damaged')
    assert weights._download_url(source) == path and 'does not have the hash' in capsys.readouterr().err


def test_every_name_of_timm_has_a_known_source():
    kinds = {(s.repo_id is None) + 2 * (s.url is None) for s in map(weights.source_of, timm.list_pretrained())}
    assert kinds == {1, 2}  # the Hub or an address, never both or none
    assert weights.source_of('seresnet101_ascend') is None and weights.source_of('hf-hub:me/x') is None


def test_within():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    start = time.time()
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(120))
    assert time.time() - start < 60
