"""`modelscope:org/name` with ModelScope's own SDK against a server on this machine."""
import json
import os
import shutil

import pytest
import timm
from conftest import NARROW, run_here

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.hub import modelscope
from seresnet_timm.hub.modelscope import split_name

os.environ.update(modelscope.SETTINGS)  # which the SDK reads when it is imported
pytest.importorskip('modelscope_hub', reason="ModelScope's SDK is not installed: pip install modelscope")
from modelscope_server import Server
from timm_scripts import NO_SCRIPTS, TIMM_SCRIPTS

NAME = 'modelscope:me/digits'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A small network's weights, as timm saves them."""
    import torch
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('checkpoint') / 'small.pth.tar'
    model = timm.create_model('seresnet18_ascend', num_classes=3, channels=(8, 8, 16, 16))
    torch.save({'arch': 'seresnet18_ascend', 'state_dict': model.state_dict(), 'epoch': 0,
                'model_info': {'schema': 1, 'name': 'seresnet18_ascend', 'kwargs': {'channels': [8, 8, 16, 16]},
                               'num_classes': 3, 'class_names': ['a', 'b', 'c']}}, path)
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    for name, value in {'MODELSCOPE_ENDPOINT': server.address, 'MODELSCOPE_CACHE': str(tmp_path / 'cache'),
                        'MODELSCOPE_HOME': str(tmp_path / 'home'), 'MODELSCOPE_API_TOKEN': 'ms-good'}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    server.server_close()


def push(checkpoint, *more):
    return run_here('push', checkpoint, NAME, '--license', 'apache-2.0', *more)


def refusal(result, code=1):
    """The one sentence of a command that fails."""
    assert result.returncode == code, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('seresnet-timm: error: ') and 'Traceback' not in result.stderr
    return last


def test_round_trip(server, checkpoint, tmp_path):
    result = push(checkpoint, '--tag', 'v1')
    assert result.returncode == 0, result.stderr
    there = server.repositories['me/digits']
    assert set(there['master']) == {'model.safetensors', 'config.json', 'README.md'} and there['v1'] == there['master']
    card = there['master']['README.md'].decode()
    assert 'license: apache-2.0' in card and 'hf-hub:' not in card and f'seresnet-timm pull {NAME} FOLDER' in card

    result = run_here('pull', f'{NAME}@v1', tmp_path / 'model')
    assert result.returncode == 0, result.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / 'model').iterdir()} == there['v1']
    assert f"local-dir:{tmp_path / 'model'}" in result.stdout and 'not verified' not in result.stdout
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model.num_classes == 3

    before = len(server.requests)
    again = run_here('pull', NAME)
    assert again.returncode == 0 and not [r for r in server.requests[before:] if 'FilePath' in r], 'it is in the cache'
    inspected = run_here('inspect', NAME, '--json')
    assert json.loads(inspected.stdout)['architecture'] == 'seresnet18_ascend', inspected.stderr
    assert run_here('convert', NAME, tmp_path / 'weights.safetensors').returncode == 0


def test_a_card_is_kept(server, checkpoint):
    server.repositories['me/digits'] = {'master': {'README.md': b'mine'}}
    assert 'the one on ModelScope is kept' in push(checkpoint).stdout
    assert server.repositories['me/digits']['master']['README.md'] == b'mine'


def test_private(server, checkpoint):
    assert push(checkpoint, '--private').returncode == 0 and server.private['me/digits']
    server.private['me/digits'] = False
    assert 'is public on ModelScope' in refusal(push(checkpoint, '--private'), 2)


def test_damage_on_the_way(server, checkpoint, tmp_path, monkeypatch):
    push(checkpoint)
    server.faults['damage'] = ('model.safetensors', 1)
    result = run_here('pull', NAME, tmp_path / 'model')
    assert result.returncode == 0 and 'downloading it again' in result.stderr
    assert (tmp_path / 'model/model.safetensors').read_bytes() == server.repositories[
        'me/digits']['master']['model.safetensors']
    monkeypatch.setenv('MODELSCOPE_CACHE', str(tmp_path / 'other'))
    server.faults['damage'] = ('model.safetensors', 99)
    assert 'arrived damaged' in refusal(run_here('pull', NAME, tmp_path / 'never'))
    assert not (tmp_path / 'never').exists()
    assert not list((tmp_path / 'other').rglob('*.safetensors')), 'nothing damaged is left'


def test_without_a_network(server, checkpoint, tmp_path, monkeypatch):
    push(checkpoint)
    assert run_here('pull', NAME).returncode == 0
    server.shutdown()
    server.server_close()
    result = run_here('pull', NAME)
    assert result.returncode == 0 and 'from the cache' in result.stdout
    assert 'Using the verified copy' in result.stderr
    weights, = (tmp_path / 'cache').rglob('model.safetensors')
    with open(weights, 'r+b') as f:
        f.seek(-1, os.SEEK_END)
        f.write(b'x')
    assert 'is damaged' in refusal(run_here('pull', NAME))
    shutil.rmtree(tmp_path / 'cache')
    text = refusal(run_here('pull', NAME))
    assert 'is not in the cache' in text and 'local-dir:FOLDER' in text and server.address in text
    assert 'cannot be reached' in refusal(push(checkpoint))


def test_a_push_that_fails(server, checkpoint):
    server.faults['commit'] = 500
    result = push(checkpoint)
    refusal(result)
    assert 'this push made the repository' in result.stderr and 'The same command continues' in result.stderr
    del server.faults['commit']
    assert push(checkpoint).returncode == 0
    assert 'model.safetensors' in server.repositories['me/digits']['master']


@pytest.mark.parametrize('argv, words, code', (
    (['pull', 'modelscope:me'], "'modelscope:me' is not the name of a model on ModelScope", 2),
    (['pull', 'modelscope:me/x/y'], 'is not the name', 2),
    (['pull', 'modelscope:../x'], 'is not the name', 2),
    (['pull', 'modelscope:me/x@'], 'cannot be a branch', 2),
    (['pull', 'modelscope:me/x@../../y'], 'cannot be a branch', 2),
    (['pull', 'modelscope:me/none'], 'me/none is not on ModelScope', 1),
    (['push', 'CKPT', 'modelscope:me/x'], '--license', 2),
    (['push', 'CKPT', 'modelscope:me/x', '--license', 'My Licence'], 'is not an identifier', 2),
    (['push', 'CKPT', 'modelscope:me/x@dev', '--license', 'mit'], 'name the branch with --revision', 2),
    (['push', 'CKPT', 'modelscope:me/x', '--license', 'mit', '--revision', 'a..b'], '--revision', 2),
    (['push', 'CKPT', 'modelscope:me/x', '--license', 'mit', '--revision', 'dev'], 'push without --revision', 2),
    (['push', 'CKPT', 'modelscope:me/x', '--license', 'mit', '--tag', 'a b'], '--tag', 2),
    (['push', '/nowhere.pth', 'modelscope:me/x', '--license', 'mit'], '/nowhere.pth does not exist', 2),
    (['train', '--model', 'modelscope:me/none', '--data-dir', 'DATA', '--dry-run'], 'me/none is not on ModelScope', 1),
    (['validate', '--model', 'modelscope:../x', '--data-dir', 'DATA'], 'is not the name', 2),
    (['train', '--model', 'test_resnet', '--kd-model-name', 'modelscope:me', '--data-dir', 'DATA'], 'not the name', 2),
), ids=lambda a: ' '.join(a) if isinstance(a, list) else '')
def test_refused(server, checkpoint, few_digits, argv, words, code):
    places = {'CKPT': checkpoint, 'DATA': few_digits}
    assert words in refusal(run_here(*[places.get(a, a) for a in argv]), code)
    assert not [r for r in server.requests if not r.startswith('GET')], 'nothing was sent'


@pytest.mark.parametrize('faults, words', (
    ({'status': 500}, 'cannot be reached'), ({'status': 401}, 'MODELSCOPE_API_TOKEN'),
    ({'no_hashes': True}, 'no SHA-256')))
def test_answers_that_are_of_no_use(server, checkpoint, faults, words):
    push(checkpoint)
    server.faults.update(faults)
    assert words in refusal(run_here('pull', NAME))


def test_no_token_and_a_wrong_one(server, checkpoint, monkeypatch):
    monkeypatch.setenv('MODELSCOPE_API_TOKEN', 'ms-0123abcd-secret')
    text = refusal(push(checkpoint))
    assert 'does not accept the token' in text and 'secret' not in text
    monkeypatch.delenv('MODELSCOPE_API_TOKEN')
    assert 'A push needs a token' in refusal(push(checkpoint), 2)


def test_other_files_of_a_repository_are_not_taken(server, checkpoint, tmp_path):
    push(checkpoint)
    server.repositories['me/digits']['master']['run.py'] = b'print(1)'
    assert run_here('pull', NAME, tmp_path / 'model').returncode == 0
    assert not (tmp_path / 'model/run.py').exists()


def test_names():
    assert split_name('modelscope:me/x') == ('me/x', None)
    assert split_name('ModelScope:me/x@v1') == ('me/x', 'v1')
    assert not modelscope.is_name('hf-hub:me/x') and not modelscope.is_name('me/x')


# --- train and validate -----------------------------------------------------------------------------------------------

def downloads(server):
    return [r for r in server.requests if 'FilePath=model.safetensors' in r]


@pytest.fixture
def ten(tmp_path_factory, few_digits):
    """Weights for the ten digits."""
    import torch
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('ten') / 'ten.pth.tar'
    model = timm.create_model('seresnet18_ascend', num_classes=10, **NARROW)
    torch.save({'arch': 'seresnet18_ascend', 'state_dict': model.state_dict(), 'epoch': 0,
                'model_info': {'schema': 1, 'name': 'seresnet18_ascend', 'num_classes': 10, 'in_chans': 3,
                               'kwargs': {k: list(v) for k, v in NARROW.items()},
                               'class_names': sorted(p.name for p in (few_digits / 'val').iterdir())}}, path)
    return path


def training(few_digits, tmp_path, *more):
    return ('train', '--data-dir', few_digits, '--img-size', 32, '-b', 50, '--workers', 0, '--device', 'cpu', '--nproc',
            1, '--epochs', 1, '--warmup-epochs', 0, '--output', tmp_path / 'runs', '--experiment', 'x', *more)


def test_train_and_validate_pull_it_once(server, ten, few_digits, tmp_path):
    assert push(ten, '--tag', 'v1').returncode == 0
    named = ('--model', 'ModelScope:me/digits@v1')
    dry = run_here(*training(few_digits, tmp_path, *named, '--pretrained', '--dry-run'))
    assert dry.returncode == 0, dry.stderr
    assert not downloads(server) and not list((tmp_path / 'cache').iterdir()) and not (tmp_path / 'runs').exists()
    assert 'modelscope:me/digits@v1, files ' in dry.stdout + dry.stderr

    result = run_here(*training(few_digits, tmp_path, *named, '--pretrained'))
    assert result.returncode == 0, result.stderr
    assert len(downloads(server)) == 1
    held = read_checkpoint(tmp_path / 'runs/x/last.pth.tar')
    assert held.info.name == 'seresnet18_ascend' and held.args['model'] == 'modelscope:me/digits@v1'
    server.shutdown()
    server.server_close()
    evaluated = [run_here('validate', '--data-dir', few_digits, '--img-size', 32, '-b', 50, '--workers', 0, '--device',
                          'cpu', *model) for model in (named, ('--checkpoint', ten))]
    assert [r.returncode for r in evaluated] == [0, 0], evaluated[0].stderr
    assert 'Using the verified copy' in evaluated[0].stderr
    first, second = (json.loads(r.stdout.partition('--result\n')[2]) for r in evaluated)
    assert first['top1'] == second['top1']
    shutil.rmtree(tmp_path / 'cache')
    text = refusal(run_here('validate', '--data-dir', few_digits, *named))
    assert 'is not in the cache' in text and 'local-dir:FOLDER' in text


def test_a_configuration_in_the_cache_has_no_weights(server, ten, few_digits, tmp_path):
    push(ten)
    assert run_here(*training(few_digits, tmp_path, '--model', NAME)).returncode == 0, 'random weights'
    assert not downloads(server)
    server.faults['status'] = 500
    assert 'is not in the cache' in refusal(run_here('pull', NAME))
    server.faults.clear()
    assert run_here('pull', NAME).returncode == 0 and len(downloads(server)) == 1
    server.faults['status'] = 500
    assert run_here('pull', NAME).returncode == 0


def test_a_teacher(server, ten, few_digits, tmp_path):
    push(ten)
    flags = ('--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4',
             '--kd-model-name', NAME)
    dry = run_here(*training(few_digits, tmp_path, *flags, '--dry-run'))
    assert dry.returncode == 0 and 'teacher ' in dry.stdout + dry.stderr, dry.stderr
    assert not downloads(server) and not list((tmp_path / 'cache').iterdir())  # the push has made it
    result = run_here(*training(few_digits, tmp_path, *flags))
    assert result.returncode == 0 and len(downloads(server)) == 1, result.stderr


def test_push_to_a_branch(server, checkpoint, tmp_path):
    assert push(checkpoint).returncode == 0
    repository = server.repositories['me/digits']
    repository['dev'], before = {}, dict(repository['master'])
    assert 'has no branch other' in refusal(push(checkpoint, '--revision', 'other'), 2)
    result = push(checkpoint, '--revision', 'dev', '--tag', 'v2')
    assert result.returncode == 0 and 'branch dev' in result.stdout, result.stderr
    assert repository['master'] == before and set(repository['dev']) == set(before) and repository['v2'] == repository[
        'dev']
    assert f'seresnet-timm pull {NAME}@dev FOLDER' in repository['dev']['README.md'].decode()
    assert run_here('pull', f'{NAME}@dev', tmp_path / 'model').returncode == 0
    assert 'has no branch v2' in refusal(push(checkpoint, '--revision', 'v2'), 2), 'a tag is no branch'


@pytest.mark.skipif(not TIMM_SCRIPTS, reason=NO_SCRIPTS)
def test_timms_script(server, ten, few_digits, tmp_path):
    push(ten)
    result = run_here(*training(few_digits, tmp_path, '--model', NAME, '--pretrained', '--scripts', TIMM_SCRIPTS))
    assert result.returncode == 0 and len(downloads(server)) == 1, result.stderr
