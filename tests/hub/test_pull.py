"""Pulls with the real client from a Hub on the loopback interface, and everything that can go wrong."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import timm
import torch
from hub_server import Fault

import seresnet_timm  # noqa: F401  (registers the models)
from hub.commands import (
    CDN,
    EVERY_PUSH,
    FLAGS,
    HEAD,
    INFO,
    SMALL,
    git_oid,
    logits,
    logits_of,
    mostly_slow,
    one_sentence,
    sha,
    wait_for,
)

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all
LIMIT = {'RateLimit': '"api";r=0;t=77'}


def test_out(pushed, client, tmp_path):
    out = tmp_path / 'model'
    result = client.run('pull', 'me/x', out)
    assert result.code == 0 and f'local-dir:{out}' in result.out, result.err
    assert {p.name for p in out.iterdir()} == EVERY_PUSH
    assert (out / 'model.safetensors').read_bytes() == pushed.read('me/x', 'model.safetensors')
    assert timm.create_model(f'local-dir:{out}', pretrained=True).num_classes == 3
    os.unlink(out / 'config.json')
    assert client.run('pull', 'me/x', out).code == 0 and (out / 'config.json').is_file()  # again, over the old one
    (out / 'notes.txt').write_text('mine')
    one_sentence(client.run('pull', 'me/x', out), 2, 'not from an earlier pull')
    assert [p.name for p in tmp_path.iterdir()] == ['model'] and (out / 'notes.txt').read_text() == 'mine'


def test_an_old_pickle_is_left_alone(pushed, client):
    pushed.write('me/x', {'pytorch_model.bin': b'pickle'})
    result = client.run('pull', 'me/x')
    assert result.code == 0 and 'pytorch_model.bin' not in result.out


@pytest.mark.parametrize('fault, parts', mostly_slow((
    (Fault(INFO, status=401, message='Invalid credentials in Authorization header'), ('token', 'HF_TOKEN')),
    (Fault(INFO, status=403, message='Forbidden'), ('me/x', '403', 'may not read')),
    (Fault(INFO, status=403, code='GatedRepo'), ('me/x', 'gated')),
    (Fault(INFO, status=404, code='RepoNotFound'), ('no model me/x',)),
    (Fault(INFO, status=404, code='RevisionNotFound'), ('me/x', 'branch, tag or commit')),
    (Fault(INFO, status=429, headers=LIMIT), ('me/x', '429 (wait 77 s)', 'later')),
    (Fault(INFO, status=500), ('me/x', '500')),
    (Fault(INFO, status=503), ('me/x', '503')),
    (Fault(INFO, 'drop'), ('me/x', 'broke off')),
    (Fault(INFO, 'slow'), ('me/x', 'in time')),
    (Fault(INFO, 'redirect'), ('me/x', 'not a Hub', 'HF_ENDPOINT')),
    (Fault(INFO, 'garbage'), ('me/x', 'not a Hub')),
    (Fault(INFO, 'truncate'), ('me/x',)),
    (Fault(INFO, 'hash'), ('me/x', 'damaged twice')),
    (Fault(HEAD, status=403, message='Forbidden'), ('me/x', '403')),
    (Fault(HEAD, status=404, code='EntryNotFound'), ('me/x', 'no longer has the file model.safetensors')),
    (Fault(HEAD, 'garbage'), ('me/x',)),
    (Fault(CDN, status=404), ('me/x', 'storage', '404')),
    (Fault(CDN, status=500), ('me/x', '500')),
    (Fault(CDN, 'flip'), ('me/x', 'model.safetensors', 'damaged twice')),
    (Fault(CDN, 'length'), ('me/x', 'a length that is not the one on the Hub')),
    (Fault(CDN, 'drop'), ('me/x', 'broke off')),
    (Fault(CDN, 'redirect'), ('me/x',)),
)), ids=lambda f: f'{f.where.split("/")[1]}-{f.kind}-{f.status}{f.code}' if isinstance(f, Fault) else '')
def test_pull_fault(pushed, client, checkpoint, fault, parts, tmp_path):
    """One sentence, nothing written, and the next pull is whole; a fault of one request is got over where it can be."""
    client.forget()
    fault.hits = 0
    pushed.faults.append(fault)
    start = time.time()
    one_sentence(client.run('pull', 'me/x', tmp_path / 'out'), 1, *parts)
    assert time.time() - start < 20
    assert list(tmp_path.iterdir()) == [] and client.leftovers() == []
    blobs = list(client.home.rglob('blobs/*'))
    assert all(b.name in (sha(b), git_oid(b)) for b in blobs)  # nothing damaged stays in the cache
    pushed.faults.clear()
    assert client.run('pull', 'me/x', tmp_path / 'out').code == 0
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert torch.equal(logits(model), logits_of(checkpoint, num_classes=3, **SMALL))


@pytest.mark.parametrize('fault', mostly_slow((
    Fault(INFO, status=503, times=1), Fault(CDN, 'drop', times=1), Fault(CDN, 'truncate', times=2),
    Fault(CDN, 'flip', times=1), Fault(CDN, 'trickle', times=1, seconds=5), Fault(HEAD, 'hash', times=1),
    Fault('GET /me/x/resolve/.*/config.json', 'flip', times=1),
)), ids=lambda f: f'{f.where.split("/")[1]}-{f.kind}')
def test_pull_gets_over(pushed, client, fault):
    client.forget()
    fault.hits = 0
    pushed.faults.append(fault)
    result = client.run('pull', 'me/x')
    assert result.code == 0 and fault.hits > 0, result.err
    assert f'{pushed.repos["me/x"].files()["model.safetensors"].blob} verified' in result.out
    if fault.kind == 'flip':
        assert 'not have the hash' in result.err and 'removed' in result.err


def test_damage_in_the_cache(pushed, client):
    """A flipped byte that another program's download has left: timm would load it, pull finds and replaces it."""
    assert client.run('pull', 'me/x').code == 0
    blob = next(b for b in client.home.rglob('blobs/*') if b.stat().st_size > 100_000)
    data = bytearray(blob.read_bytes())
    data[-100] ^= 1
    blob.write_bytes(data)
    pushed.faults.append(Fault('.', 'drop'))
    one_sentence(client.run('pull', 'me/x'), 1, 'damaged and was removed')
    assert not blob.exists()
    pushed.faults.clear()
    assert client.run('pull', 'me/x').code == 0 and sha(blob) == blob.name


def test_cache_without_the_hub(pushed, client):
    assert client.run('pull', 'me/x').code == 0
    for fault in (Fault('.', 'drop'), Fault('.', status=503), Fault('.', status=429)):
        pushed.faults[:] = [fault]
        result = client.run('pull', 'me/x')
        assert result.code == 0 and 'from the cache' in result.out and 'Using the verified copy' in result.err


def test_offline_in_a_fresh_process(pushed, client):
    """HF_HUB_OFFLINE=1: pull and timm use the cache, no request is made; an empty cache is named at once."""
    assert client.run('pull', 'me/x').code == 0
    pushed.requests.clear()
    env = {**client.environment, 'HF_HUB_OFFLINE': '1'}
    code = '''if True:
        import time
        from seresnet_timm import cli
        cli.main(['pull', 'me/x'])
        import seresnet_timm, timm
        assert timm.create_model('hf-hub:me/x', pretrained=True).num_classes == 3
        start = time.time()
        for argv in (['pull', 'me/other'], ['push', 'none', 'me/x']):
            try: cli.main(argv)
            except SystemExit as e: print('exit', e.code)
        assert time.time() - start < 2
    '''
    result = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert result.returncode == 0 and not pushed.requests, result.stderr
    assert 'Using the verified copy of me/x' in result.stderr and ': HF_HUB_OFFLINE is set.' in result.stderr
    assert 'me/other is not in the cache' in result.stderr and 'exit 1\n' in result.stdout
    assert 'HF_HUB_OFFLINE is set, me/x cannot be pushed' in result.stderr and 'exit 2\n' in result.stdout


def test_nothing_answers(client):
    """An endpoint that refuses connections: one sentence that names repository and endpoint, at once."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        endpoint = f'http://user:password@127.0.0.1:{s.getsockname()[1]}'  # bound, not listening
        code = (f'from huggingface_hub import constants\nconstants.ENDPOINT = {endpoint!r}\n'
                'from seresnet_timm import cli\ncli.main(["pull", "me/x"])')
        start = time.time()
        result = client.python(code)
    assert time.time() - start < 5
    one_sentence(result, 1, 'me/x is not in the cache', 'cannot be reached', endpoint[-16:], 'HF_ENDPOINT')
    assert 'password' not in result.err


def test_killed_while_downloading(pushed, client):
    client.forget()
    pushed.faults.append(Fault(CDN, 'trickle', times=1))
    pid = client.start('pull', 'me/x')
    wait_for(lambda: CDN + pushed.repos['me/x'].files()['model.safetensors'].blob in pushed.requests)
    os.kill(pid, signal.SIGKILL)
    assert client.wait().code == -signal.SIGKILL and client.leftovers()
    result = client.run('pull', 'me/x')
    assert result.code == 0 and 'killed download had left' in result.err and client.leftovers() == []


def test_disk_full(pushed, client, checkpoint, tmp_path):
    size = pushed.repos['me/x'].files()['model.safetensors'].size
    client.forget()
    result = client.run('pull', 'me/x', tmp_path / 'out', max_file_size=size // 2)
    one_sentence(result, 1, 'me/x', 'too full')
    assert list(tmp_path.iterdir()) == [] and client.leftovers() == []
    result = client.run('push', checkpoint, 'me/y', *FLAGS, max_file_size=size // 2)
    one_sentence(result, 1, 'cannot be written')
    assert 'me/y' not in pushed.repos
    assert client.run('pull', 'me/x', tmp_path / 'out').code == 0


@pytest.mark.parametrize('files, parts', mostly_slow((
    ({'config.json': b'{"num_classes": 3}', 'model.safetensors': b'x'}, ('me/z', 'names no architecture')),
    ({'config.json': b'{"architecture": "vit_of_mine", "requires": "import vits"}', 'model.safetensors': b'x'},
     ("me/z is a 'vit_of_mine'", '`import vits`')),
    ({'config.json': b'{"architecture": "vit_of_mine"}', 'model.safetensors': b'x'}, ('newer timm',)),
    ({'config.json': b'not json', 'model.safetensors': b'x'}, ('me/z', 'not JSON')),
    ({'config.json': b'{"architecture": "resnet18"}'}, ('me/z', 'no weights')),
    ({'model.safetensors': b'x'}, ('me/z', 'no config.json')),
)), ids=('no architecture', 'plugin', 'unknown architecture', 'no json', 'no weights', 'no config'))
def test_repository_that_is_no_model(hub, client, tmp_path, files, parts):
    hub.write('me/z', files)
    one_sentence(client.run('pull', 'me/z', tmp_path / 'out'), 1, *parts)
    assert list(tmp_path.iterdir()) == []


def test_files_with_names_that_lead_outside(pushed, client, tmp_path):
    """A repository may name any file: those that make the model are taken, by their fixed names."""
    pushed.write('me/x', {'../../../../escaped.txt': b'x', '/escaped.txt': b'x', '..\\escaped.txt': b'x',
                          'a/../../README.md': b'x', '\x1b[31mred': b'x'})
    client.forget()
    result = client.run('pull', 'me/x', tmp_path / 'out')
    assert result.code == 0 and '\x1b' not in result.out + result.err, result.err
    assert {p.name for p in (tmp_path / 'out').iterdir()} == EVERY_PUSH
    assert not [*client.folder.rglob('*escaped*'), *tmp_path.rglob('*escaped*')]


def test_commit_that_leads_outside(pushed, client):
    """A Hub that names a path as the commit gets nothing written there."""
    client.forget()
    pushed.repos['me/x'].commits['../../../escaped'] = pushed.repos['me/x'].files()
    pushed.repos['me/x'].branches['main'] = '../../../escaped'
    one_sentence(client.run('pull', 'me/x'), 1, 'me/x', 'names no commit')
    assert not list(client.folder.rglob('*escaped*'))


@pytest.mark.parametrize('ref', mostly_slow(('../../../../x', '/etc', 'main', '\x1b[31m')))
def test_damaged_ref_in_the_cache(pushed, client, ref):
    """What a revision is, as the cache says, is a commit or nothing."""
    assert client.run('pull', 'me/x').code == 0
    next(client.home.rglob('refs/main')).write_text(ref)
    pushed.faults.append(Fault('.', 'drop'))
    one_sentence(client.run('pull', 'me/x'), 1, 'me/x is not in the cache')


def test_control_characters_of_the_hub(hub, client):
    """What a Hub and a repository say never moves the cursor or colours the terminal."""
    red = '\x1b[31mred\x07\u202e'
    hub.write('me/z', {'config.json': json.dumps({'architecture': red, 'requires': f'import {red}'}).encode(),
                       'model.safetensors': b'x'})
    result = client.run('pull', 'me/z')
    one_sentence(result, 1, r'\x1b[31mred', 'newer timm')
    assert not set('\x1b\x07\u202e') & set(result.err)
    hub.faults.append(Fault(INFO.replace('me/x', 'me/z'), status=400, message='\x1b[31mred\x9b31m'))
    result = client.run('pull', 'me/z')
    one_sentence(result, 1, 'me/z', '400')
    assert not set('\x1b\x9b') & set(result.err)


def test_advice_of_a_stranger_is_an_import_or_none(hub, client):
    hub.write('me/z', {'config.json': b'{"architecture": "vit_of_mine", "requires": "import os; os.system(1)"}',
                       'model.safetensors': b'x'})
    result = client.run('pull', 'me/z')
    one_sentence(result, 1, 'newer timm')
    assert 'os.system' not in result.err


@pytest.mark.parametrize('where, key, value', (
    ('model_args', 'pretrained_cfg_overlay', {'url': 'http://127.0.0.1:9/x'}), ('model_args', 'cache_dir', '/tmp/x'),
    ('model_args', 'checkpoint_path', '/etc/passwd'), ('pretrained_cfg', 'custom_load', 'hf'),
    ('pretrained_cfg', 'hf_hub_filename', 'other.bin'),
), ids=lambda v: v if isinstance(v, str) else '')
def test_configuration_that_reaches_out(pushed, client, few_digits, tmp_path, where, key, value):
    """timm passes on what a repository's config.json says of the model: only plain settings of it are taken."""
    config = json.loads(pushed.read('me/x', 'config.json'))
    config[where] = {**config.get(where, {}), key: value}
    pushed.write('me/x', {'config.json': json.dumps(config).encode(), 'other.bin': b'x'})
    image = next((few_digits / 'val' / '3').iterdir())
    for argv in (('pull', 'me/x', tmp_path / 'out'), ('predict', 'hf-hub:me/x', image, '--device', 'cpu')):
        one_sentence(client.run(*argv), 2, 'config.json of me/x', key, 'not taken from a file')
    assert not (tmp_path / 'out').exists()
