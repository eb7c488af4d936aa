"""Pulls with the real client from a Hub on the loopback interface, and everything that can go wrong."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import timm
import torch
from hub_store import Fault, git_oid
from safetensors.torch import load_file

import seresnet_timm  # noqa: F401  (registers the models)
from hub.commands import (
    CDN,
    EVERY_PUSH,
    FLAGS,
    HEAD,
    INFO,
    SMALL,
    logits,
    logits_of,
    mostly_slow,
    one_sentence,
    sha,
    wait_for,
)
from seresnet_timm.checkpoints.read import read_checkpoint

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
    (Fault(INFO, 'drop'), ('me/x', 'was closed too early')),
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
    (Fault(CDN, 'drop'), ('me/x', 'was closed too early')),
    (Fault(CDN, 'redirect'), ('me/x',)),
)), ids=lambda f: f'{f.where.split("/")[1]}-{f.kind}-{f.status}{f.code}' if isinstance(f, Fault) else '')
def test_pull_fault(pushed, client, checkpoint, fault, parts, tmp_path):
    """One sentence, nothing written, and the next pull is whole; a fault of one request is got over where it can be."""
    client.forget()
    fault.hits = 0
    pushed.faults.append(fault)
    start = time.time()
    one_sentence(client.run('pull', 'me/x', tmp_path / 'out'), 1, *parts)
    assert time.time() - start < 60  # a slow answer takes 120 s
    assert list(tmp_path.iterdir()) == [] and client.leftovers() == []
    blobs = list(client.home.rglob('blobs/*'))
    assert all(b.name in (sha(b), git_oid(b.read_bytes())) for b in blobs)  # nothing damaged stays in the cache
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


def without_links(client, *folders):
    """The cache as `cp -rL` copies it, or a file system without links has it; only some of its folders."""
    cache = client.home / 'hub' / 'models--me--x'
    shutil.copytree(cache, client.folder / 'copy', symlinks=False)
    shutil.rmtree(cache)
    for folder in ('snapshots', 'refs', *folders):
        shutil.copytree(client.folder / 'copy' / folder, cache / folder)
    shutil.rmtree(client.folder / 'copy')
    assert not any(p.is_symlink() for p in cache.rglob('*'))
    return next(cache.rglob('snapshots/*/model.safetensors'))


@pytest.mark.parametrize('folder', ('sha256', 'blobs'))
def test_cache_without_links(pushed, client, folder):
    """The hashes that pull keeps, or the blobs, tell whether a file is whole; a damaged one is fetched again."""
    assert client.run('pull', 'me/x').code == 0
    file = without_links(client, folder)
    pushed.faults.append(Fault('.', status=429))
    result = client.run('pull', 'me/x')
    assert result.code == 0 and 'Using the verified copy' in result.err and 'not verified' not in result.out
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    result = client.run('pull', 'me/x')
    assert result.code == 1 and ('damaged and was removed' if folder == 'sha256' else 'is not known') in result.err
    pushed.faults.clear()
    assert client.run('pull', 'me/x').code == 0
    assert sha(next(client.home.rglob('model.safetensors'))) == pushed.repos['me/x'].files()['model.safetensors'].blob


def test_cache_that_tells_no_hash(pushed, client):
    """A copy of which nothing is known is not called damaged; with the Hub its hashes are known again."""
    assert client.run('pull', 'me/x').code == 0
    file = without_links(client)
    before = file.read_bytes()
    pushed.faults.append(Fault('.', status=429))
    result = client.run('pull', 'me/x')
    one_sentence(result, 1, 'the hash that', 'is not known', f'local-dir:{file.parent}')
    assert 'damaged' not in result.err and file.read_bytes() == before
    pushed.faults.clear()
    assert client.run('pull', 'me/x').code == 0
    pushed.faults.append(Fault('.', status=429))
    assert 'Using the verified copy' in client.run('pull', 'me/x').err


def test_cache_without_links_and_with_a_checksum(pushed, client, tmp_path):
    """torch's archives hold a CRC-32 of every part."""
    weights = load_file(pushed.blob(pushed.repos['me/x'].files()['model.safetensors'].blob))
    torch.save(weights, tmp_path / 'w.bin')
    pushed.write('me/x', {'pytorch_model.bin': (tmp_path / 'w.bin').read_bytes()})
    del pushed.repos['me/x'].files()['model.safetensors']
    assert client.run('pull', 'me/x').code == 0
    shutil.rmtree(client.home / 'hub' / 'models--me--x' / 'sha256')
    cache = client.home / 'hub' / 'models--me--x'
    for path in cache.rglob('snapshots/*/*'):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    shutil.rmtree(cache / 'blobs')
    pushed.faults.append(Fault('.', status=429))
    result = client.run('pull', 'me/x')
    assert result.code == 0 and 'the hash of config.json' in result.err and 'not verified' in result.out, result.err
    data = bytearray(next(cache.rglob('pytorch_model.bin')).read_bytes())
    data[len(data) // 2] ^= 1
    next(cache.rglob('pytorch_model.bin')).write_bytes(data)
    one_sentence(client.run('pull', 'me/x'), 1, 'pytorch_model.bin in the cache is damaged')


def test_read_only_cache_of_another_user(pushed, client):
    """It is used, with the Hub and without; nothing is written to it."""
    assert client.run('pull', 'me/x').code == 0
    cache = client.home / 'hub' / 'models--me--x'
    (cache / 'blobs' / 'x.incomplete').write_text('of a download of the other user')
    shutil.rmtree(cache / 'sha256')
    code = '''if True:
        import encodings.idna, os, stringprep  # of this user, as is Python
        from pathlib import Path
        for p in Path(os.environ['HF_HOME']).rglob('*'):
            p.chmod(0o555 if p.is_dir() else 0o444)
        Path(os.environ['HF_HOME']).chmod(0o755)
        for p in Path(os.environ['HF_HOME']).parents:
            p.chmod(p.stat().st_mode | 0o111) if p.stat().st_uid == os.getuid() and str(p).startswith('/tmp/') else None
        os.setuid(65534)
        from seresnet_timm import cli
        cli.main(['pull', 'me/x'])
    '''
    if os.getuid():
        pytest.skip('needs another user')
    try:
        _use_of_a_read_only_cache(pushed, client, code)
    finally:
        (cache / 'blobs' / 'x.incomplete').unlink()


def _use_of_a_read_only_cache(pushed, client, code):
    online = client.python(code)
    assert online.code == 0 and 'model.safetensors' in online.out, online.err
    pushed.faults.append(Fault('.', status=429))
    offline = client.python(code)
    assert offline.code == 0 and 'Using the verified copy' in offline.err, offline.err


def test_dry_run_leaves_the_cache_alone(pushed, client, few_digits):
    client.forget()
    result = client.run('train', '--model', 'hf-hub:me/x', '--pretrained', '--data-dir', few_digits, '--device', 'cpu',
                        '-b', 4, '--dry-run')
    assert result.code == 0 and 'Dry run: nothing was started.' in result.out, result.err
    assert not [p for p in client.home.rglob('*') if p.is_file()] and not list((client.folder / 'tmp').iterdir())


@pytest.mark.parametrize('verb', (pytest.param('predict', marks=pytest.mark.slow), 'validate', 'push'))
def test_old_checkpoint_of_a_model_on_the_hub(hub, client, few_digits, checkpoint, tmp_path, verb):
    """Without the Hub: used if the file holds all that is needed, else what is missing is named."""
    saved = read_checkpoint(checkpoint).content
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    settings = dict(mean=[.4] * 3, std=[.2] * 3, interpolation='bilinear', crop_pct=1., input_size=[3, 32, 32])
    for name, known in (('whole', settings), ('part', {'mean': [.4] * 3})):
        saved['args'] = Namespace(model='hf-hub:me/gone', num_classes=10, **known)
        torch.save({**saved, 'arch': 'hf-hub:me/gone', 'state_dict': model.state_dict()}, tmp_path / f'{name}.pth.tar')

    def argv(name):
        file = tmp_path / f'{name}.pth.tar'
        return {'predict': ['predict', file, few_digits / 'val', '--device', 'cpu'],
                'validate': ['validate', '--checkpoint', file, '--data-dir', few_digits, '--device', 'cpu',
                             '--workers', 0],
                'push': ['push', file, 'me/x', *FLAGS]}[verb]
    hub.faults.append(Fault('GET /api/models/me/gone', status=429))
    result = client.run(*argv('whole'))
    assert result.code == 0 and 'seresnet18_ascend' in result.err + result.out, result.err
    result = client.run(*argv('part'))
    one_sentence(result, 1, 'me/gone', 'std', 'crop_pct', '--model seresnet18_ascend')
    assert 'mean,' not in result.err
    assert client.run(*argv('part'), '--model', 'seresnet18_ascend').code == 0


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
        for argv in (['pull', 'me/other'], ['push', '/etc/hostname', 'me/x']):
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
    assert time.time() - start < 5 and 'Trying again' not in result.err
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
