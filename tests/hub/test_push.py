"""Pushes with the real client to a Hub on the loopback interface, and everything that can go wrong."""
import json
import os
import re
import shutil
import signal
from argparse import Namespace

import pytest
import timm
import torch
from conftest import ROOT, run_cli
from hub_store import Fault
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import seresnet_timm  # noqa: F401  (registers the models)
from hub.commands import (
    BATCH,
    COMMIT,
    CREATE,
    EVERY_PUSH,
    FLAGS,
    INFO,
    PUT,
    SMALL,
    TOKEN,
    USE,
    mostly_slow,
    one_sentence,
    wait_for,
)
from seresnet_timm.checkpoints.read import read_checkpoint

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all


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
    for k, v in torch.load(client.folder / 'w.pt', weights_only=True).items():
        assert torch.equal(v, model.state_dict()[k])


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


def test_branch_is_made(pushed, client, checkpoint):
    result = client.run('push', checkpoint, 'me/x', '--revision', 'v2/small')
    assert result.code == 0 and 'branch: v2/small created' in result.out, result.err
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


def test_no_token(hub, client, checkpoint):
    one_sentence(client.run('push', checkpoint, 'me/x', *FLAGS, env={'HF_TOKEN': ''}), 2, 'HF_TOKEN')
    assert not hub.requests


def test_public_is_not_taken_for_private(pushed, client, checkpoint):
    one_sentence(client.run('push', checkpoint, 'me/x', '--private'), 2, 'me/x', 'public')
    one_sentence(client.run('push', checkpoint, 'me/x', '--tag', 'v1', '--private'), 2, 'public')


def test_tag_that_exists(pushed, client, checkpoint):
    assert client.run('push', checkpoint, 'me/x', '--tag', 'v1').code == 0
    one_sentence(client.run('push', checkpoint, 'me/x', '--tag', 'v1'), 2, 'me/x', 'tag v1')


def test_tag_that_cannot_be_made(hub, client, checkpoint):
    hub.faults.append(Fault('/tag/', status=404))
    result = client.run('push', checkpoint, 'me/x', *FLAGS, '--tag', 'v1')
    one_sentence(result, 1, 'me/x has the model, as commit', hub.repos['me/x'].branches['main'], 'not the tag v1')
    assert not hub.repos['me/x'].tags and 'model.safetensors' in hub.repos['me/x'].files()


@pytest.mark.parametrize('fault, parts', mostly_slow((
    (Fault('.', status=401, message='Invalid credentials in Authorization header'), ('token', 'HF_TOKEN', 'me/x')),
    (Fault(CREATE, status=403, message='No rights'), ('403', 'write to me')),
    (Fault(CREATE, status=429, headers={'Retry-After': '55'}), ('me/x', '429', 'wait 55 s')),
    (Fault(CREATE, status=500), ('me/x', '500')),
    (Fault(CREATE, 'drop'), ('me/x', 'was closed too early')),
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
    (Fault(COMMIT, 'drop'), ('me/x', 'was closed too early')),
    (Fault(COMMIT, 'truncate'), ('me/x',)),
    (Fault(COMMIT, 'garbage'), ('me/x', 'not a Hub')),
    (Fault(COMMIT, 'redirect'), ('me/x',)),
    (Fault(INFO + '/revision', 'hash'), ('me/x', 'is not what was sent')),
)), ids=lambda f: f'{f.where.strip("/").replace("/", "-")}-{f.kind}-{f.status}' if isinstance(f, Fault) else '')
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


@pytest.mark.parametrize('fault', mostly_slow((
    Fault(PUT, 'drop', times=1), Fault(PUT, status=500, times=1), Fault(PUT, status=503, times=1),
    Fault(PUT, status=429, headers={'Retry-After': '1'}, times=1), Fault(CREATE, status=503, times=1),
)), ids=lambda f: f'{f.where.strip("/").replace("/", "-")}-{f.kind}-{f.status}')
def test_push_gets_over(hub, client, checkpoint, fault):
    fault.hits = 0
    hub.faults.append(fault)
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0 and fault.hits == 1, result.err
    assert set(hub.repos['me/x'].files()) == EVERY_PUSH


@pytest.mark.parametrize('where', (PUT, COMMIT, 'preupload'))
def test_no_empty_repository_remains(hub, client, checkpoint, where):
    """A push that ends half-way removes what it made, or says what remains; never what was there before."""
    hub.faults.append(Fault(where, status=403, message='Forbidden'))
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    one_sentence(result, 1, '403')
    assert 'is deleted again' in result.err and not hub.repos
    hub.faults.append(Fault('DELETE', 'drop'))
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert 'created by this push and empty' in result.err and 'The same command continues' in result.err
    assert hub.repos['me/x'].files() == {}
    client.run('push', checkpoint, 'me/x', *FLAGS)
    hub.faults.clear()
    assert 'me/x' in hub.repos and client.run('push', checkpoint, 'me/x', *FLAGS).code == 0  # continues


def test_a_commit_without_an_answer_is_kept(hub, client, checkpoint):
    """The Hub has the commit, and its answer is lost: the repository is not deleted."""
    hub.faults.append(Fault(COMMIT, 'truncate'))
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 1 and 'was not confirmed' in result.err and set(hub.repos['me/x'].files()) == EVERY_PUSH


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


def test_killed_while_uploading(hub, client, checkpoint):
    hub.faults.append(Fault('PUT', 'trickle', times=1))
    pid = client.start('push', checkpoint, 'me/x', *FLAGS)
    wait_for(lambda: any(r.startswith('PUT') for r in hub.requests))
    os.kill(pid, signal.SIGKILL)
    assert client.wait().code == -signal.SIGKILL and client.leftovers()
    assert hub.repos['me/x'].files() == {}  # nothing is half there
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0 and set(hub.repos['me/x'].files()) == EVERY_PUSH and client.leftovers() == []


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


def test_a_hub_without_xet(hub, client, checkpoint, tmp_path):
    """The client's default is Xet, which mirrors and private Hubs may not have: the sentence names the variable."""
    pytest.importorskip('hf_xet')
    environment = dict(client.environment, HF_HUB_DISABLE_XET='0', HF_HOME=str(tmp_path / 'home'))
    result = run_cli('push', checkpoint, 'me/x', *FLAGS, env=environment, fresh=True)
    assert result.returncode == 1 and 'HF_HUB_DISABLE_XET=1 and push again' in result.stderr
    assert 'Traceback' not in result.stderr and 'me/x' not in hub.repos


def test_no_host_name_of_the_hub():
    for path in (ROOT / 'seresnet_timm').rglob('*.py'):
        assert not re.search(r'huggingface\.co|hf\.co|hf-mirror', path.read_text()), path


def test_class_names_travel_in_the_file(hub, client, run, checkpoint, few_digits, tmp_path):
    """A run that was moved, and its data renamed or deleted, has the same names; an older file has none but those that
    are given."""
    saved = read_checkpoint(run / 'model_best.pth.tar').content
    shutil.copytree(run, tmp_path / 'moved')
    other = tmp_path / 'other'
    for i in range(10):
        shutil.copytree(few_digits / 'train' / str(i), other / 'train' / f'renamed {i}')
    saved['args'].data_dir = str(other)
    torch.save(saved, tmp_path / 'moved' / 'model_best.pth.tar')
    assert client.run('push', tmp_path / 'moved', 'me/x', *FLAGS).code == 0
    names = [str(i) for i in range(10)]
    assert json.loads(hub.read('me/x', 'config.json'))['label_names'] == names

    old = {k: v for k, v in saved.items() if k != 'model_info'}
    torch.save(old, tmp_path / 'moved' / 'model_best.pth.tar')
    result = client.run('push', tmp_path / 'moved', 'me/y', *FLAGS)
    assert 'class names: unknown' in result.out and '--class-names FILE' in result.out, result.err
    assert 'label_names' not in hub.read('me/y', 'config.json').decode()
    (tmp_path / 'names.txt').write_text('\n'.join(f'digit {i}' for i in range(10)))
    result = client.run('push', tmp_path / 'moved', 'me/y', '--class-names', tmp_path / 'names.txt')
    assert result.code == 0 and 'class names' not in result.out, result.err
    assert json.loads(hub.read('me/y', 'config.json'))['label_names'] == [f'digit {i}' for i in range(10)]
    one_sentence(client.run('push', checkpoint, 'me/z', *FLAGS, '--class-names', tmp_path / 'names.txt'), 2, '10 names')


def test_names_of_other_weights_are_not_inherited(hub, client, tmp_path):
    """An older checkpoint that was trained from a model on the Hub, with as many classes as that has."""
    model = timm.create_model('seresnet18_ascend', num_classes=3, **SMALL)
    torch.save({'state_dict': model.state_dict(), 'args': Namespace(model='seresnet18_ascend', model_kwargs=SMALL)},
               tmp_path / 'a.pth')
    (tmp_path / 'names.txt').write_text('cat\ndog\nowl\n')
    assert client.run('push', tmp_path / 'a.pth', 'me/a', *FLAGS, '--class-names', tmp_path / 'names.txt').code == 0
    torch.save({'state_dict': model.state_dict(), 'args': Namespace(model='hf-hub:me/a')}, tmp_path / 'b.pth')
    result = client.run('push', tmp_path / 'b.pth', 'me/b', *FLAGS)
    assert result.code == 0 and 'class names: unknown' in result.out, result.err
    assert 'owl' not in hub.read('me/b', 'config.json').decode()
    assert 'base_model: me/a' in hub.read('me/b', 'README.md').decode()


def test_old_names_of_parameters(hub, client, checkpoint, tmp_path):
    """What README's imports take: `ema` beside `use_ema`, all by name, and `--ema` on the command line."""
    saved = read_checkpoint(checkpoint).content
    torch.save(dict(saved, state_dict_ema={k: v + 1 for k, v in saved['state_dict'].items()}), tmp_path / 'e.pth.tar')
    for use in ('ema=True', 'use_ema=True', 'ema=False', 'use_ema=False'):
        hub.repos.clear()
        result = client.python(
            f'from seresnet_timm.hub import pull, push\n'
            f'pushed = push({str(tmp_path / "e.pth.tar")!r}, repo_id="me/e", license="mit", model=None, '
            f'num_classes=None, {use}, private=False, revision=None, tag=None, message=None, token=None)\n'
            f'pulled = pull(repo_id="me/e", out=None, revision=None, token=None)\n'
            f'assert pulled.commit == pushed.commit and pulled.sha256 == pushed.sha256')
        assert result.code == 0, result.err
        sent = load_file(hub.blob(hub.repos['me/e'].files()['model.safetensors'].blob))
        assert torch.equal(sent['fc.weight'], saved['state_dict']['fc.weight'] + ('True' in use))
    for flag, shift in (('--ema', 1), ('--no-ema', 0), ('--use-ema', 1), ('--no-use-ema', 0)):
        result = client.run('push', tmp_path / 'e.pth.tar', 'me/e', flag)
        assert result.code == 0, result.err
        sent = load_file(hub.blob(hub.repos['me/e'].files()['model.safetensors'].blob))
        assert torch.equal(sent['fc.weight'], saved['state_dict']['fc.weight'] + shift)


@pytest.mark.parametrize('kwargs', (
    {'pretrained_cfg_overlay': {'url': 'http://127.0.0.1:9/x'}}, {'cache_dir': 'CACHE'}, {'checkpoint_path': 'CACHE/x'},
), ids=lambda k: next(iter(k)))
def test_arguments_of_a_file_that_reach_out(hub, client, checkpoint, tmp_path, kwargs):
    saved = read_checkpoint(checkpoint).content
    kwargs = {k: v.replace('CACHE', str(tmp_path / 'cache')) if isinstance(v, str) else v for k, v in kwargs.items()}
    saved['args'].model_kwargs = {**SMALL, **kwargs}
    torch.save(saved, tmp_path / 'c.pth.tar')
    one_sentence(client.run('push', tmp_path / 'c.pth.tar', 'me/x', *FLAGS), 2, next(iter(kwargs)))
    assert not hub.requests and not (tmp_path / 'cache').exists()
