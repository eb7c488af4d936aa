"""A checkpoint that was only named writes nothing, fetches nothing, looks into no folder and controls no terminal."""
import io
import json
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import timm
import torch
from checkpoint_files import TINY, save_run, tiny_model
from safetensors.torch import save_file

from seresnet_timm.checkpoints.convert import convert
from seresnet_timm.checkpoints.fit import load_weights, model_of
from seresnet_timm.checkpoints.inspect import describe, inspect, misfits
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError
from seresnet_timm.hub.upload import _arguments, read_source
from seresnet_timm.inference.load import load_model
from seresnet_timm.models.create import create_from_info


class Server:
    """A web server on the loopback that records what is asked of it."""

    def __init__(self):
        asked = self.asked = []
        answer = io.BytesIO()
        torch.save({}, answer)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer.getvalue())

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}/weights.pth'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def as_args(weights, kwargs, path):
    torch.save({'state_dict': weights, 'arch': 'seresnet18_ascend', 'args': Namespace(
        model='seresnet18_ascend', num_classes=3, model_kwargs=kwargs)}, path)


def as_model_info(weights, kwargs, path):
    torch.save({'state_dict': weights, 'model_info': dict(schema=1, name='seresnet18_ascend', kwargs=kwargs)}, path)


def as_safetensors(weights, kwargs, path):
    info = json.dumps(dict(schema=1, name='seresnet18_ascend', kwargs=kwargs))
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={'model_info': info})


@pytest.mark.parametrize('write, name', [
    (as_args, 'c.pth.tar'), (as_model_info, 'c.pth.tar'), (as_safetensors, 'c.safetensors')])
@pytest.mark.parametrize('case', ['overlay', 'url', 'checkpoint_path', 'cache_dir'])
def test_settings_that_reach_out(server, tmp_path, case, write, name):
    """What timm would fetch and write (the control), no verb does; file and key are named."""
    cache = tmp_path / 'cache'
    kwargs = {
        'overlay': dict(pretrained=True, pretrained_cfg_overlay=dict(url=server.url), cache_dir=str(cache)),
        'url': dict(pretrained_cfg=dict(url=server.url), pretrained=True, cache_dir=str(cache)),
        'checkpoint_path': dict(checkpoint_path=str(tmp_path / 'secret')),
        'cache_dir': dict(cache_dir=str(cache)),
    }[case]
    if case in ('overlay', 'url'):
        with pytest.raises(RuntimeError, match='Missing key'):  # the answer holds no weights
            timm.create_model('seresnet18_ascend', **dict(kwargs, cache_dir=str(tmp_path / 'control')))
        assert server.asked and (tmp_path / 'control').exists(), 'the control'
        server.asked.clear()
    path = tmp_path / 'files' / name
    path.parent.mkdir()
    write(tiny_model().state_dict(), {**{k: v for k, v in TINY.items() if k != 'num_classes'}, **kwargs}, path)
    before = sorted(tmp_path.rglob('*'))
    verbs = (
        lambda: read_checkpoint(path).info,
        lambda: model_of(read_checkpoint(path)),
        lambda: load_model(str(path)),
        lambda: load_model(str(path), model_name='seresnet18_ascend'),
        lambda: read_source(path),
        lambda: convert(str(path), str(tmp_path / 'out.pth')),
        lambda: misfits(str(path), 'seresnet18_ascend'),
    )
    key = next(iter(kwargs))
    place = 'args.model_kwargs' if write is as_args else 'model_info.kwargs'
    for verb in verbs:
        with pytest.raises(UsageError) as e:
            verb()
        assert f"{path}: {place} has '{key}'" in str(e.value)
    assert f"'{key}'" in inspect(str(path))['refused']
    assert not server.asked and sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', [
    'local-dir:{}', 'hf-hub:../../{}', 'hf-hub:org/name@../../../x', '{}/model', 'x\x1b[2J'])
def test_names_that_lead_elsewhere(tmp_path, name):
    """A folder that a file names is not looked into; the weights tell what they are, or the file is refused."""
    other = tmp_path / 'other'
    timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=3), str(other))
    name = name.format(other)
    weights = timm.create_model('seresnet18_ascend', num_classes=3).state_dict()
    torch.save({'state_dict': weights, 'args': Namespace(model=name)}, tmp_path / 'c.pth')
    torch.save({'state_dict': weights, 'model_info': dict(name=name)}, tmp_path / 'd.pth')
    try:
        assert read_checkpoint(tmp_path / 'c.pth').info.name == 'seresnet18_ascend'
    except UsageError as e:
        assert name.startswith('hf-hub:') and 'c.pth' in str(e)
    with pytest.raises(UsageError, match='d.pth') as e:
        load_model(str(tmp_path / 'd.pth'))
    assert '\x1b' not in str(e.value)


def test_data_folder_is_not_looked_into(tmp_path):
    """Names of classes are those in the file, not those of the folder that its arguments name today."""
    for name in ('a', 'b', 'c'):
        (tmp_path / 'data' / 'train' / name).mkdir(parents=True)
        (tmp_path / 'data' / 'train' / name / '1.png').write_bytes(b'')
    model = tiny_model()
    kwargs = {k: v for k, v in TINY.items() if k != 'num_classes'}
    torch.save({'state_dict': model.state_dict(), 'args': Namespace(
        model='seresnet18_ascend', data_dir=str(tmp_path / 'data'), model_kwargs=kwargs)}, tmp_path / 'c.pth')
    assert load_model(str(tmp_path / 'c.pth')).info.class_names is None
    assert read_source(tmp_path / 'c.pth').info.class_names is None


def test_memory_is_not_taken_before_weights_fit(tmp_path, monkeypatch):
    """A small file that asks for a large network is refused by shapes alone."""
    torch.save({'state_dict': tiny_model().state_dict(), 'model_info': dict(
        name='seresnet18_ascend', num_classes=3, kwargs=dict(channels=[2048] * 4))}, tmp_path / 'c.pth')
    made = []
    monkeypatch.setattr(timm, 'create_model', lambda *a, create=timm.create_model, **k: (
        made.append(torch.empty(0).device.type), create(*a, **k))[1])
    with pytest.raises(UsageError, match='does not fit seresnet18_ascend'):
        model_of(read_checkpoint(tmp_path / 'c.pth'))
    assert set(made) == {'meta'}


def repeated(value, depth=13):
    """A list of lists that are all the same one: a file of some bytes, and 9 ** 13 values when it is written out."""
    for _ in range(depth):
        value = [value] * 9
    return value


def itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize('content', [
    lambda: {'model_info': dict(name='seresnet18_ascend', mean=repeated(0.5))}, lambda: {'epoch': repeated(1)},
    lambda: {'args': Namespace(img_size=repeated(1))}, lambda: {'optimizer': {'param_groups': repeated('x')}},
    lambda: {'args': itself()}, lambda: {'state_dict_ema': {'fc.weight': torch.ones(1).expand(10 ** 9, 64)}},
], ids=['mean', 'epoch', 'args', 'optimizer', 'itself', 'tensor'])
def test_values_that_have_nearly_no_end(tmp_path, content):
    torch.save({'state_dict': tiny_model().state_dict(), **content()}, tmp_path / 'c.pth')
    with pytest.raises(UsageError, match='c.pth is refused: it'):
        read_checkpoint(tmp_path / 'c.pth')


def test_weights_that_share_memory_are_taken(tmp_path):
    weights = tiny_model().state_dict()
    torch.save({'state_dict': {**weights, 'tied': weights['conv1.weight'], 'wide': torch.ones(1).expand(3, 5)}},
               tmp_path / 'c.pth')
    assert read_checkpoint(tmp_path / 'c.pth').weights['wide'].shape == (3, 5)


def test_control_characters_never_reach_the_terminal(tmp_path, capsys):
    evil = '\x1b]0;owned\x07\x1b[2J\n\u202e'
    weights = {**tiny_model().state_dict(), evil: torch.ones(1), 'fc.bias': torch.ones(3)}
    info = dict(name='seresnet18_ascend', num_classes=3, class_names=[evil, 'b', evil])
    torch.save({'state_dict': weights, 'arch': evil, 'model_info': info, 'optimizer': {}}, tmp_path / 'c.pth')
    checkpoint = read_checkpoint(tmp_path / 'c.pth')
    assert checkpoint.info.class_names == [evil, 'b', evil], 'kept as it is: a folder may be called so'
    with pytest.raises(UsageError) as e:
        load_weights(tiny_model(), checkpoint, 'seresnet18_ascend')
    with pytest.raises(SystemExit):
        main(['inspect', str(tmp_path / 'c.pth'), '--model', 'seresnet18_ascend'])
    main(['inspect', '--json', str(tmp_path / 'c.pth')])
    torch.save({evil: 1}, tmp_path / 'nothing.pth')
    with pytest.raises(UsageError) as nothing:
        inspect(str(tmp_path / 'nothing.pth'))
    printed = ''.join(capsys.readouterr()) + str(e.value) + str(nothing.value)
    assert not {c for c in printed if not c.isprintable()} - {'\n'}
    assert r'\x1b]0;owned\x07\x1b[2J\n\u202e' in printed
    assert all('\n' not in line for line in describe(inspect(str(tmp_path / 'c.pth'))))


def inspect_info(path):
    return read_checkpoint(path).info


@pytest.mark.parametrize('metadata', [
    {'model_info': '{'}, {'model_info': '[]'}, {'model_info': '{"schema": []}'}, {'epochs': 'x'}, {'metric': '\x1b'},
    {'model_info': '{"name": "resnet18", "num_classes": 1e400}'}, {'model_info': '[' * 100000},
])
def test_damaged_metadata(tmp_path, metadata):
    save_file(tiny_model().state_dict(), tmp_path / 'c.safetensors', metadata=metadata)
    with pytest.raises(UsageError, match='c.safetensors') as e:
        inspect_info(tmp_path / 'c.safetensors')
    assert '\x1b' not in str(e.value)


@pytest.mark.parametrize('args', [
    dict(model_kwargs=[1]), dict(img_size='x'), dict(img_size=-1), dict(input_size=[3]), dict(mean='x'),
    dict(in_chans=[]), dict(interpolation='../x'), dict(crop_pct=float('nan')), dict(num_classes='\x1b'),
    dict(gp={'a': 1}), dict(bn_eps=[float('inf')]),
], ids=repr)
def test_damaged_arguments(tmp_path, args):
    torch.save({'state_dict': {'x': torch.ones(1)}, 'args': args}, tmp_path / 'c.pth')
    with pytest.raises(UsageError, match='c.pth'):
        inspect_info(tmp_path / 'c.pth')


def test_run_saves_what_makes_its_model(tmp_path):
    """The saver writes `model_info`, timm reads the file all the same."""
    model = tiny_model()
    path = save_run(model, tmp_path)
    checkpoint = read_checkpoint(path)
    assert create_from_info(checkpoint.info, str(path)).fc.weight.shape == model.fc.weight.shape
    other = tiny_model(seed=1)
    timm.models.load_checkpoint(other, str(path), weights_only=False)
    assert torch.equal(other.fc.weight, checkpoint.ema['fc.weight']), 'timm takes the average'
    made, info = model_of(checkpoint, use_ema=True)
    assert torch.equal(made.fc.weight, checkpoint.ema['fc.weight']) and info.class_names == ['a', 'b', 'c']


@pytest.mark.parametrize('text', [
    'a0: &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
        f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n' for i in range(1, 12)),
    'model: &a [*a]\n', '[' * 3000, 'model: !!python/name:os.system\n', 'x: ' + 'a' * 300_000,
], ids=['repeated', 'itself', 'deep', 'python', 'large'])
def test_args_yaml_of_a_run_folder(tmp_path, text):
    """Flags of a checkpoint without them: plain values of a size that flags have."""
    torch.save({'state_dict': tiny_model().state_dict()}, tmp_path / 'c.pth')
    (tmp_path / 'args.yaml').write_text(text)
    run = SimpleNamespace(folder=SimpleNamespace(args=tmp_path / 'args.yaml'))
    with pytest.raises(UsageError, match='args.yaml'):
        _arguments(read_checkpoint(tmp_path / 'c.pth'), run)
