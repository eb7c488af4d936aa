"""Push and pull: the real client against a Hub on the loopback interface, and all that can go wrong between them."""
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from checkpoint_files import save_modelzoo
from conftest import ROOT, train_flags
from hub_server import Fault, HubServer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import seresnet_timm  # noqa: F401  (registers the models)
from seresnet_timm.checkpoints.read import read_checkpoint

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all

TOKEN = 'hf_tokenofme'
SMALL = dict(channels=[8, 16, 32, 64])
FLAGS = ['--license', 'apache-2.0']
EVERY_PUSH = {'model.safetensors', 'config.json', 'README.md'}


class Client:
    """Commands in real processes, see hub_client.py. `home` is their HF_HOME."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.home, self.is_running = folder, folder / 'home', False
        self.environment = {
            **os.environ, 'HF_ENDPOINT': url, 'HF_HOME': str(self.home), 'HF_TOKEN': TOKEN, 'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DOWNLOAD_TIMEOUT': '3', 'HF_HUB_ETAG_TIMEOUT': '3', 'TMPDIR': str(folder / 'tmp'),
            'HTTP_PROXY': '', 'http_proxy': '', 'ALL_PROXY': '', 'TIMM_SCRIPTS': '',
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
        for name in ('HUGGINGFACE_HUB_CACHE', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE'):
            self.environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / 'tests' / 'hub_client.py')],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True)
        assert self.process.stdout.readline() == 'ready\n'

    def start(self, *argv, **request) -> int:
        """Start a command; its process id. `wait` has to follow."""
        request = {
            'argv': list(map(str, argv)), 'cwd': str(self.folder), 'stdout': str(self.folder / 'out'),
            'stderr': str(self.folder / 'err'), **request}
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        self.is_running = True
        return self._answer('pid')

    def wait(self) -> SimpleNamespace:
        code = self._answer('exit')
        self.is_running = False
        out, err = ((self.folder / name).read_text() for name in ('out', 'err'))
        assert TOKEN not in out + err and 'secretsignature' not in out + err
        return SimpleNamespace(code=code, out=out, err=err)

    def _answer(self, word: str) -> int:
        first, number = self.process.stdout.readline().split()
        assert first == word
        return int(number)

    def run(self, *argv, **request) -> SimpleNamespace:
        self.start(*argv, **request)
        return self.wait()

    def python(self, code: str, **request) -> SimpleNamespace:
        return self.run(code=code, **request)

    def forget(self) -> None:
        """Empty HF_HOME: a fresh machine."""
        shutil.rmtree(self.home, ignore_errors=True)

    def leftovers(self) -> list:
        """Files that no finished command should leave: parts of downloads, and what pushes write before they send."""
        return [*self.home.rglob('*.incomplete'), *(self.folder / 'tmp').glob('seresnet-timm-*')]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub')
    (folder / 'tmp').mkdir()
    with HubServer(folder / 'blobs', users={TOKEN: 'me', 'hf_tokenofother': 'other'}) as hub:
        client = Client(folder, hub.url)
        yield hub, client
        client.process.stdin.close()
        client.process.wait()


@pytest.fixture
def hub(world):
    """The Hub, empty."""
    hub = world[0]
    hub.repos.clear()
    hub.faults.clear()
    hub.requests.clear()
    for blob in hub.folder.iterdir():
        blob.unlink()
    return hub


@pytest.fixture
def client(world):
    """The client, with an empty HF_HOME."""
    client = world[1]
    if client.is_running:  # a test failed before its command ended
        client.wait()
    client.forget()
    yield client
    assert client.leftovers() == []


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    """A small SE-ResNet of three classes, as timm's train.py saves it."""
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=3, **SMALL)
    for name, buffer in model.named_buffers():
        if 'running' in name:
            buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp('checkpoint') / 'c.pth.tar'
    args = Namespace(model='seresnet18_ascend', num_classes=3, model_kwargs=SMALL, img_size=32, mean=[0.4, 0.5, 0.6])
    torch.save({'state_dict': model.state_dict(), 'arch': 'seresnet18_ascend', 'epoch': 4, 'args': args}, path)
    return path


@pytest.fixture(scope='module')
def run(world, few_digits, tmp_path_factory) -> Path:
    """The folder of a real training of two epochs."""
    output = tmp_path_factory.mktemp('runs')
    result = world[1].run(*train_flags(few_digits, output, '--model-kwargs', 'channels=(8,16,32,64)'))
    assert result.code == 0, result.err
    return output / 'run'


@pytest.fixture
def pushed(hub, client, checkpoint):
    """me/x on the Hub."""
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0, result.err
    hub.requests.clear()
    return hub


def one_sentence(result, code: int, *parts: str) -> None:
    """A command failed with this exit code, and says so in one line with these parts in it."""
    assert result.code == code, (result.code, result.out, result.err)
    lines = [line for line in result.err.splitlines() if line.startswith('seresnet-timm: error')]
    assert len(lines) == 1 and 'Traceback' not in result.err, result.err
    for part in parts:
        assert part in lines[0], lines[0]
    if 'HUB_SENTENCES' in os.environ:  # to read them
        with open(os.environ['HUB_SENTENCES'], 'a') as f:
            f.write(lines[0] + '\n')


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))


def logits_of(path: Path, **kwargs) -> torch.Tensor:
    model = timm.create_model('seresnet18_ascend', **kwargs)
    model.load_state_dict(read_checkpoint(path).content['state_dict'])
    return logits(model)


# what a user does with a pushed model, in an environment that has nothing else of it
USE = '''
import seresnet_timm, timm, torch
model = timm.create_model('{name}', pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)), 'logits.pt')
'''


# --- push and pull ----------------------------------------------------------------------------------------------------

def test_push_then_timm_then_pull(hub, client, checkpoint):
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0, result.err
    files = hub.repos['me/x'].files()
    assert set(files) == EVERY_PUSH and not hub.repos['me/x'].private
    assert files['model.safetensors'].is_lfs and files['model.safetensors'].blob in result.out

    client.forget()
    expected = logits_of(checkpoint, num_classes=3, **SMALL)
    assert client.python(USE.format(name='hf-hub:me/x')).code == 0
    assert torch.equal(torch.load(client.folder / 'logits.pt'), expected)

    client.forget()
    result = client.run('pull', 'me/x')
    assert result.code == 0, result.err
    commit = hub.repos['me/x'].branches['main']
    assert f'me/x: commit {commit}' in result.out and 'import seresnet_timm, timm' in result.out
    for name in EVERY_PUSH:
        assert f'sha256 {hashlib.sha256(hub.read("me/x", name)).hexdigest()} verified' in result.out
    folder = next(Path(line) for line in result.out.splitlines() if line.startswith('/'))
    assert (folder / 'model.safetensors').read_bytes() == hub.read('me/x', 'model.safetensors')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert torch.equal(logits(model), expected)


def test_config_says_what_is_there(pushed):
    config = json.loads(pushed.read('me/x', 'config.json'))
    assert config['architecture'] == 'seresnet18_ascend' and config['requires'] == 'import seresnet_timm'
    assert (config['num_classes'], config['num_features']) == (3, 64)
    cfg = config['pretrained_cfg']
    assert cfg['input_size'] == [3, 32, 32] and cfg['mean'] == [0.4, 0.5, 0.6] and cfg['license'] == 'apache-2.0'
    borrowed = {'tag', 'url', 'file', 'hf_hub_id', 'origin_url', 'paper_ids', 'paper_name', 'source'}
    assert not borrowed & set(cfg)
    with safe_open(pushed.blob(pushed.repos['me/x'].files()['model.safetensors'].blob), framework='pt') as f:
        assert f.metadata() == {'format': 'pt'}


def test_push_of_a_run(hub, client, run, few_digits):
    result = client.run('push', run, 'me/digits', *FLAGS, '--message', 'First', '--tag', 'v1', '--private')
    assert result.code == 0, result.err
    repo = hub.repos['me/digits']
    head = repo.branches['main']
    assert repo.private and repo.tags == {'v1': head} and repo.messages[head] == 'First'
    assert set(repo.files()) == EVERY_PUSH | {'curves.png'}
    config = json.loads(hub.read('me/digits', 'config.json'))
    assert config['label_names'] == sorted(p.name for p in (few_digits / 'train').iterdir())

    best = read_checkpoint(run / 'model_best.pth.tar').content
    weights = load_file(hub.blob(repo.files()['model.safetensors'].blob))
    assert all(torch.equal(v, weights[k]) for k, v in best['state_dict'].items())
    with open(run / 'summary.csv') as f:
        row = next(r for r in csv.DictReader(f) if int(float(r['epoch'])) == best['epoch'])
    card = hub.read('me/digits', 'README.md').decode()
    metadata = yaml.safe_load(card.split('---')[1])
    assert metadata['license'] == 'apache-2.0' and metadata['library_name'] == 'timm'
    figures = metadata['model-index'][0]['results'][0]
    assert figures['metrics'][0]['value'] == round(float(row['eval_top1']), 4)
    assert figures['dataset']['name'] == 'digits'
    assert f'Top-1 {float(row["eval_top1"]):.3f} %' in card and '](curves.png)' in card
    assert 'import seresnet_timm' in card and "create_model('hf-hub:me/digits', pretrained=True)" in card
    assert 'seresnet-timm train' in card and 'opt: momentum' in card and torch.__version__ in card
    assert str(run.parent) not in card and str(few_digits) not in card  # folders of this machine
    assert TOKEN not in card and TOKEN not in json.dumps(config)


def test_evaluation_of_what_was_pushed(hub, client, run, few_digits):
    """validate on the Hub's model, verified, has the top-1 of the run's own checkpoint."""
    assert client.run('push', run, 'me/digits', *FLAGS).code == 0
    client.forget()
    flags = ['--data-dir', few_digits, '--workers', 0, '-b', 16, '--device', 'cpu']
    result = client.run('validate', '--model', 'hf-hub:me/digits', *flags)
    assert result.code == 0, result.err
    own = client.run(
        'validate', '--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,32,64)', '--img-size', 32,
        '--num-classes', 10, '--checkpoint', run / 'model_best.pth.tar', *flags)
    figures = [json.loads(r.out.split('--result\n')[1]) for r in (result, own)]
    for key in ('top1', 'top5', 'loss', 'img_size', 'crop_pct', 'interpolation'):
        assert figures[0][key] == figures[1][key]

    # damaged on the way, twice: nothing is evaluated
    client.forget()
    hub.faults.append(Fault('GET /_cdn/', 'flip'))
    one_sentence(client.run('validate', '--model', 'hf-hub:me/digits', *flags), 1, 'me/digits', 'arrived damaged twice')


def test_timms_own_architectures(hub, client, tmp_path):
    model = timm.create_model('test_resnet', num_classes=5, in_chans=1)
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    one_sentence(client.run('push', tmp_path / 'w.safetensors', 'me/r', *FLAGS), 2, 'w.safetensors', '--model')
    args = Namespace(model='test_resnet', in_chans=1)
    torch.save({'state_dict': model.state_dict(), 'args': args}, tmp_path / 'w.pth')
    assert client.run('push', tmp_path / 'w.pth', 'me/r', *FLAGS).code == 0
    config = json.loads(hub.read('me/r', 'config.json'))
    assert 'requires' not in config and config['num_classes'] == 5 and config['model_args']['in_chans'] == 1
    assert 'seresnet_timm' not in hub.read('me/r', 'README.md').decode()
    code = ('import timm, torch\nm = timm.create_model("hf-hub:me/r", pretrained=True)\n'
            'torch.save(m.state_dict(), "w.pt")')
    assert client.python(code).code == 0
    for k, v in torch.load(client.folder / 'w.pt').items():
        assert torch.equal(v, model.state_dict()[k])


def test_modelzoo_checkpoint(hub, client, few_digits, tmp_path):
    """A file of the ModelZoo's main.py is evaluated, converted and pushed; pulled anew, its top-1 is the same.

    Its `arch` is wrong, as in all of theirs: the weights tell what it is.
    """
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    torch.nn.init.normal_(model.fc.weight)
    save_modelzoo(model, tmp_path / 'm.pth.tar')
    flags = ['--data-dir', few_digits, '--workers', 0, '-b', 16, '--device', 'cpu', '--img-size', 32]
    named = ['--model', 'seresnet18_ascend', '--num-classes', 10, '--checkpoint']
    assert client.run('convert', tmp_path / 'm.pth.tar', tmp_path / 'm.safetensors').code == 0
    assert client.run('push', tmp_path / 'm.pth.tar', 'me/m', *FLAGS).code == 0
    config = json.loads(hub.read('me/m', 'config.json'))
    assert (config['architecture'], config['num_classes']) == ('seresnet18_ascend', 10)
    sent = load_file(hub.blob(hub.repos['me/m'].files()['model.safetensors'].blob))
    assert all(torch.equal(v, sent[k]) for k, v in model.state_dict().items())
    client.forget()
    results = [client.run('validate', *flags, *more) for more in (
        [*named, tmp_path / 'm.pth.tar'], [*named, tmp_path / 'm.safetensors'], ['--model', 'hf-hub:me/m'])]
    assert [r.code for r in results] == [0] * 3, [r.err for r in results]
    figures = [json.loads(r.out.split('--result\n')[1]) for r in results]
    assert figures[0]['top1'] > 0 and len({(f['top1'], f['top5'], f['loss']) for f in figures}) == 1, figures


def test_moving_average(hub, client, checkpoint, run, tmp_path):
    saved = read_checkpoint(checkpoint).content
    ema = {k: v + 1 for k, v in saved['state_dict'].items()}
    torch.save(dict(saved, state_dict_ema=ema), tmp_path / 'e.pth.tar')
    for flags, shift in (([], 0), (['--ema'], 1)):
        assert client.run('push', tmp_path / 'e.pth.tar', 'me/e', *FLAGS, *flags).code == 0
        sent = load_file(hub.blob(hub.repos['me/e'].files()['model.safetensors'].blob))
        assert torch.equal(sent['fc.weight'], saved['state_dict']['fc.weight'] + shift)
    one_sentence(client.run('push', checkpoint, 'me/e', '--ema'), 2, 'no moving average')

    # a run that evaluated its moving average: that is pushed, and raw weights do not get its top-1
    best = read_checkpoint(run / 'model_best.pth.tar').content
    shutil.copytree(run, tmp_path / 'run')
    best['args'].model_ema = True
    best['state_dict_ema'] = {k: v + 1 for k, v in best['state_dict'].items()}
    torch.save(best, tmp_path / 'run/model_best.pth.tar')
    for flags, shift in (([], 1), (['--no-ema'], 0)):
        hub.repos.clear()
        assert client.run('push', tmp_path / 'run', 'me/e', *FLAGS, *flags).code == 0
        sent = load_file(hub.blob(hub.repos['me/e'].files()['model.safetensors'].blob))
        assert torch.equal(sent['fc.weight'], best['state_dict']['fc.weight'] + shift)
        card = hub.read('me/e', 'README.md').decode()
        assert ('Top-1' in card) == bool(shift) and ('were not evaluated' in card) != bool(shift)


def test_card_on_the_hub_is_kept(hub, client, checkpoint):
    card = b'---\nlicense: mit\n---\n# By hand\n'
    hub.write('me/x', {'README.md': card})
    result = client.run('push', checkpoint, 'me/x')  # the licence is the card's
    assert result.code == 0 and 'card: kept' in result.out, result.err
    assert hub.read('me/x', 'README.md') == card
    assert json.loads(hub.read('me/x', 'config.json'))['pretrained_cfg']['license'] == 'mit'
    one_sentence(client.run('push', checkpoint, 'me/x', '--license', 'apache-2.0'), 2, 'says license: mit')
    hub.write('me/y', {'README.md': b'# No licence\n'})
    one_sentence(client.run('push', checkpoint, 'me/y'), 2, 'me/y', '--license')


def test_branch_is_made(pushed, client, checkpoint):
    result = client.run('push', checkpoint, 'me/x', '--revision', 'v2/small')
    assert result.code == 0 and 'branch: v2/small made' in result.out, result.err
    assert set(pushed.repos['me/x'].branches) == {'main', 'v2/small'}
    assert client.run('pull', 'me/x@v2/small').code == 0
    assert client.python(USE.format(name='hf-hub:me/x')).code == 0
    result = client.run('push', checkpoint, 'me/new', *FLAGS, '--revision', 'dev')
    assert result.code == 0, result.err
    assert set(pushed.repos['me/new'].files('dev')) == EVERY_PUSH and pushed.repos['me/new'].files() == {}


def test_push_again_changes_nothing(pushed, client, checkpoint):
    before = dict(pushed.repos['me/x'].branches)
    result = client.run('push', checkpoint, 'me/x')
    assert result.code == 0 and pushed.repos['me/x'].branches == before
    assert not any(r.startswith('PUT') for r in pushed.requests)


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
    one_sentence(client.run('pull', 'me/x', out), 2, 'not of an earlier pull')
    assert [p.name for p in tmp_path.iterdir()] == ['model'] and (out / 'notes.txt').read_text() == 'mine'


def test_an_old_pickle_is_left_alone(pushed, client):
    pushed.write('me/x', {'pytorch_model.bin': b'pickle'})
    result = client.run('pull', 'me/x')
    assert result.code == 0 and 'pytorch_model.bin' not in result.out


# --- requests that cannot be ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('argv, parts', (
    (['push', 'CKPT', 'me/x'], ('me/x', '--license')),
    (['push', 'CKPT', 'me', *FLAGS], ("'me'", 'organisation/name')),
    (['push', 'CKPT', 'me/x/y', *FLAGS], ("'me/x/y'",)),
    (['push', 'CKPT', '../x', *FLAGS], ("'../x'",)),
    (['push', 'CKPT', 'me/x@dev', *FLAGS], ('--revision',)),
    (['push', 'CKPT', 'me/x', '--license', 'My Licence'], ('--license', 'apache-2.0')),
    (['push', 'CKPT', 'me/x', *FLAGS, '--model', 'resnet18'], ('does not fit resnet18',)),
    (['push', 'CKPT', 'me/x', *FLAGS, '--num-classes', '7'], ('3 classes',)),
    (['push', 'CKPT', 'me/x', *FLAGS, '--model', 'seresnet18_ascent'], ('did you mean seresnet18_ascend',)),
    (['push', '/nowhere.pth', 'me/x', *FLAGS], ('/nowhere.pth does not exist',)),
    (['push', '/tmp', 'me/x', *FLAGS], ('run.json',)),
    (['pull', 'x'], ("'x'", 'organisation/name')),
    (['pull', 'me/x@'], ('org/name@revision',)),
    (['pull', 'me/x', 'w.safetensors'], ('OUT is a folder',)),
    (['pull', 'me/x', '/no/such/folder'], ('/no/such does not exist',)),
), ids=lambda a: ' '.join(a) if isinstance(a, list) else '')
def test_wrong_request(hub, client, checkpoint, argv, parts):
    one_sentence(client.run(*(checkpoint if a == 'CKPT' else a for a in argv)), 2, *parts)
    assert not hub.repos


def test_no_token(hub, client, checkpoint):
    one_sentence(client.run('push', checkpoint, 'me/x', *FLAGS, env={'HF_TOKEN': ''}), 2, 'HF_TOKEN')
    assert not hub.requests


def test_public_is_not_taken_for_private(pushed, client, checkpoint):
    one_sentence(client.run('push', checkpoint, 'me/x', '--private'), 2, 'me/x', 'public')
    one_sentence(client.run('push', checkpoint, 'me/x', '--tag', 'v1', '--private'), 2, 'public')


def test_tag_that_exists(pushed, client, checkpoint):
    assert client.run('push', checkpoint, 'me/x', '--tag', 'v1').code == 0
    one_sentence(client.run('push', checkpoint, 'me/x', '--tag', 'v1'), 2, 'me/x', 'tag v1')


# --- faults of a pull -------------------------------------------------------------------------------------------------

INFO, CDN, HEAD = 'GET /api/models/me/x', 'GET /_cdn/', 'HEAD /me/x/resolve/.*/model.safetensors'
LIMIT = {'RateLimit': '"api";r=0;t=77'}


@pytest.mark.parametrize('fault, parts', (
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
    (Fault(HEAD, status=404, code='EntryNotFound'), ('me/x', 'no file model.safetensors')),
    (Fault(HEAD, 'garbage'), ('me/x',)),
    (Fault(CDN, status=404), ('me/x', 'storage', '404')),
    (Fault(CDN, status=500), ('me/x', '500')),
    (Fault(CDN, 'flip'), ('me/x', 'model.safetensors', 'damaged twice')),
    (Fault(CDN, 'length'), ('me/x', 'another length')),
    (Fault(CDN, 'drop'), ('me/x', 'broke off')),
    (Fault(CDN, 'redirect'), ('me/x',)),
), ids=lambda f: f'{f.where.split("/")[1]}-{f.kind}-{f.status}{f.code}' if isinstance(f, Fault) else '')
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


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


@pytest.mark.parametrize('fault', (
    Fault(INFO, status=503, times=1), Fault(CDN, 'drop', times=1), Fault(CDN, 'truncate', times=2),
    Fault(CDN, 'flip', times=1), Fault(CDN, 'trickle', times=1, seconds=5), Fault(HEAD, 'hash', times=1),
    Fault('GET /me/x/resolve/.*/config.json', 'flip', times=1),
), ids=lambda f: f'{f.where.split("/")[1]}-{f.kind}')
def test_pull_gets_over(pushed, client, fault):
    client.forget()
    fault.hits = 0
    pushed.faults.append(fault)
    result = client.run('pull', 'me/x')
    assert result.code == 0 and fault.hits > 0, result.err
    assert f'{pushed.repos["me/x"].files()["model.safetensors"].blob} verified' in result.out
    if fault.kind == 'flip':
        assert 'not what the Hub says' in result.err and 'removed' in result.err


def test_damage_in_the_cache(pushed, client):
    """A flipped byte that another program's download has left: timm would load it, pull finds and mends it."""
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
        from seresnet_timm.cli import main as cli
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
                'from seresnet_timm.cli import main as cli\ncli.main(["pull", "me/x"])')
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


def test_killed_while_uploading(hub, client, checkpoint):
    hub.faults.append(Fault('PUT', 'trickle', times=1, seconds=30))
    pid = client.start('push', checkpoint, 'me/x', *FLAGS)
    wait_for(lambda: any(r.startswith('PUT') for r in hub.requests))
    os.kill(pid, signal.SIGKILL)
    assert client.wait().code == -signal.SIGKILL and client.leftovers()
    assert hub.repos['me/x'].files() == {}  # nothing is half there
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0 and set(hub.repos['me/x'].files()) == EVERY_PUSH and client.leftovers() == []


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def test_disk_full(pushed, client, checkpoint, tmp_path):
    size = pushed.repos['me/x'].files()['model.safetensors'].size
    client.forget()
    result = client.run('pull', 'me/x', tmp_path / 'out', max_file_size=size // 2)
    one_sentence(result, 1, 'me/x', 'no room')
    assert list(tmp_path.iterdir()) == [] and client.leftovers() == []
    result = client.run('push', checkpoint, 'me/y', *FLAGS, max_file_size=size // 2)
    one_sentence(result, 1, 'cannot be written')
    assert 'me/y' not in pushed.repos
    assert client.run('pull', 'me/x', tmp_path / 'out').code == 0


@pytest.mark.parametrize('files, parts', (
    ({'config.json': b'{"num_classes": 3}', 'model.safetensors': b'x'}, ('me/z', 'names no architecture')),
    ({'config.json': b'{"architecture": "vit_of_mine", "requires": "import vits"}', 'model.safetensors': b'x'},
     ("me/z is a 'vit_of_mine'", '`import vits`')),
    ({'config.json': b'{"architecture": "vit_of_mine"}', 'model.safetensors': b'x'}, ('newer timm',)),
    ({'config.json': b'not json', 'model.safetensors': b'x'}, ('me/z', 'not JSON')),
    ({'config.json': b'{"architecture": "resnet18"}'}, ('me/z', 'no weights')),
    ({'model.safetensors': b'x'}, ('me/z', 'no config.json')),
), ids=('no architecture', 'plugin', 'unknown architecture', 'no json', 'no weights', 'no config'))
def test_repository_that_is_no_model(hub, client, tmp_path, files, parts):
    hub.write('me/z', files)
    one_sentence(client.run('pull', 'me/z', tmp_path / 'out'), 1, *parts)
    assert list(tmp_path.iterdir()) == []


# --- faults of a push -------------------------------------------------------------------------------------------------

CREATE, PUT, BATCH, COMMIT = '/api/repos/create', 'PUT', 'objects/batch', '/commit/'


@pytest.mark.parametrize('fault, parts', (
    (Fault('.', status=401, message='Invalid credentials in Authorization header'), ('token', 'HF_TOKEN', 'me/x')),
    (Fault(CREATE, status=403, message='No rights'), ('403', 'write to me')),
    (Fault(CREATE, status=429, headers={'Retry-After': '55'}), ('me/x', '429', 'wait 55 s')),
    (Fault(CREATE, status=500), ('me/x', '500')),
    (Fault(CREATE, 'drop'), ('me/x', 'broke off')),
    (Fault(CREATE, 'slow'), ('me/x', 'in time')),
    (Fault('validate-yaml', status=404), ('me/x', 'read-only mirror')),
    (Fault('preupload', status=403, message='Forbidden'), ('403', 'write to me')),
    (Fault(BATCH, status=507, message='No storage left'), ('me/x', '507', 'storage')),
    (Fault(PUT, status=403, message='Forbidden'), ('me/x', '403')),
    (Fault(PUT, 'flip'), ('me/x', '400', 'BadDigest')),
    (Fault(COMMIT, status=409), ('me/x', '409')),
    (Fault(COMMIT, status=412), ('me/x', '412', 'nothing was overwritten')),
    (Fault(COMMIT, status=413), ('me/x', '413')),
    (Fault(COMMIT, status=503), ('me/x', '503')),
    (Fault(COMMIT, 'drop'), ('me/x', 'broke off')),
    (Fault(COMMIT, 'truncate'), ('me/x',)),
    (Fault(COMMIT, 'garbage'), ('me/x', 'not a Hub')),
    (Fault(COMMIT, 'redirect'), ('me/x',)),
    (Fault(INFO + '/revision', 'hash'), ('me/x', 'is not what was sent')),
), ids=lambda f: f'{f.where.strip("/").replace("/", "-")}-{f.kind}-{f.status}' if isinstance(f, Fault) else '')
def test_push_fault(hub, client, checkpoint, fault, parts):
    fault.hits = 0
    hub.faults.append(fault)
    one_sentence(client.run('push', checkpoint, 'me/x', *FLAGS), 1, *parts)
    assert client.leftovers() == []
    hub.faults.clear()
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0, result.err
    sent = load_file(hub.blob(hub.repos['me/x'].files()['model.safetensors'].blob))
    expected = read_checkpoint(checkpoint).content['state_dict']
    assert all(torch.equal(v, sent[k]) for k, v in expected.items())


@pytest.mark.parametrize('fault', (
    Fault(PUT, 'drop', times=1), Fault(PUT, status=500, times=1), Fault(PUT, status=503, times=1),
    Fault(PUT, status=429, headers={'Retry-After': '1'}, times=1), Fault(CREATE, status=503, times=1),
), ids=lambda f: f'{f.where.strip("/").replace("/", "-")}-{f.kind}-{f.status}')
def test_push_gets_over(hub, client, checkpoint, fault):
    fault.hits = 0
    hub.faults.append(fault)
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0 and fault.hits == 1, result.err
    assert set(hub.repos['me/x'].files()) == EVERY_PUSH


def test_commit_of_another(pushed, client, checkpoint, tmp_path):
    """Somebody commits while a push uploads: 412, and theirs stays."""
    pushed.faults.append(Fault('preupload', 'slow', seconds=1))
    saved = read_checkpoint(checkpoint).content
    saved['state_dict']['fc.bias'] += 1
    torch.save(saved, tmp_path / 'c.pth.tar')
    client.start('push', tmp_path / 'c.pth.tar', 'me/x', '--tag', 'mine')
    wait_for(lambda: any('preupload' in r for r in pushed.requests))
    theirs = pushed.write('me/x', {'config.json': b'{"architecture": "theirs"}'})
    one_sentence(client.wait(), 1, 'me/x', '412')
    assert pushed.repos['me/x'].branches['main'] == theirs and not pushed.repos['me/x'].tags


def test_namespace_of_others(hub, client, checkpoint):
    one_sentence(client.run('push', checkpoint, 'other/x', *FLAGS), 1, '403', 'write to other')
    hub.write('other/y', {'README.md': b'---\nlicense: mit\n---\n'})
    one_sentence(client.run('push', checkpoint, 'other/y'), 1, '403', 'write to other')


def test_token_is_never_shown(hub, client, checkpoint, tmp_path):
    """Not in errors that quote it, not on the Hub, not in the cache."""
    hub.faults.append(Fault(CREATE, status=500, message=f'Cannot use {TOKEN} here'))
    one_sentence(client.run('push', checkpoint, 'me/x', *FLAGS), 1, '500', 'Cannot use ***')
    hub.faults.clear()
    result = client.run('push', checkpoint, 'me/x', *FLAGS, env={'HF_TOKEN': 'hf_wröng\x01'})
    assert result.code != 0 and 'hf_wr' not in result.err + result.out and 'Traceback' not in result.err
    saved = read_checkpoint(checkpoint).content
    saved['args'].opt_kwargs = {'note': TOKEN}  # what somebody put on a command line
    torch.save(saved, tmp_path / 'c.pth.tar')
    assert client.run('push', tmp_path / 'c.pth.tar', 'me/x', *FLAGS).code == 0
    assert 'note: ***' in hub.read('me/x', 'README.md').decode()
    for path in (*hub.folder.iterdir(), *(p for p in client.home.rglob('*') if p.is_file())):
        assert TOKEN.encode() not in path.read_bytes(), path


def test_no_host_name_of_the_hub():
    for path in (ROOT / 'seresnet_timm').rglob('*.py'):
        assert not re.search(r'huggingface\.co|hf\.co|hf-mirror', path.read_text()), path


def test_predict_from_the_hub(pushed, client, checkpoint, few_digits):
    """What predict says of a model on the Hub is what it says of the file; a damaged download is not used."""
    image = next((few_digits / 'val' / '3').iterdir())
    results = []
    for model in ('hf-hub:me/x', checkpoint):
        result = client.run('predict', model, image, '--json', '--device', 'cpu')
        assert result.code == 0, result.err
        assert '32 x 32' in result.err and 'mean 0.4, 0.5, 0.6' in result.err
        results.append(json.loads(result.out))
    assert results[0] == results[1] and len(results[0][0]['predictions']) == 3

    client.forget()
    pushed.faults.append(Fault('GET /_cdn/', 'flip'))
    result = client.run('predict', 'hf-hub:me/x', image, '--json', '--device', 'cpu')
    one_sentence(result, 1, 'me/x', 'arrived damaged twice')
    assert result.out == ''
