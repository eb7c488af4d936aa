"""Any checkpoint is read, recognised and converted bit for bit; the ModelZoo's network and main.py take ours."""
import json
import subprocess
import sys

import pytest
import timm
import torch
from checkpoint_files import (
    as_modelzoo_saves,
    linear_se_names,
    save_foreign_safetensors,
    save_modelzoo,
    save_moskomule,
    save_run,
    save_timm,
    tiny_model,
)
from conftest import ROOT
from reference_network import randomize, reference_network

from seresnet_timm.checkpoints.convert import convert
from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.inspect import inspect
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.recognise import recognise
from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError


@pytest.fixture(scope='module')
def model():
    return randomize(timm.create_model('seresnet18_ascend', num_classes=3))


def refused(capsys, *argv, code=2) -> str:
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in argv])
    assert e.value.code == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    return lines[0]


def equal(path, weights) -> bool:
    found = read_checkpoint(path).weights
    return found.keys() == weights.keys() and all(
        torch.equal(found[k], w) and found[k].dtype == w.dtype for k, w in weights.items())


WRITERS = {
    'modelzoo.pth.tar': save_modelzoo,
    'modelzoo_npu_1.5.pth.tar': lambda m, p: save_modelzoo(m, p, old_npu=True),
    'moskomule.pkl': save_moskomule,
    'timm.pth.tar': save_timm,
    'foreign.safetensors': save_foreign_safetensors,
    'torchvision.pth': lambda m, p: torch.save(linear_se_names(m.state_dict()), p),
}


CHAIN = (('a.pth.tar', 'timm'), ('b.modelzoo', 'modelzoo'), ('c.safetensors', None), ('d.pth', None))


@pytest.mark.parametrize('name, chain', (
    ('modelzoo.pth.tar', CHAIN),
    *((name, CHAIN[:1]) for name in WRITERS if name != 'modelzoo.pth.tar'),
    *(pytest.param(name, CHAIN, marks=pytest.mark.slow) for name in WRITERS if name != 'modelzoo.pth.tar')))
def test_round_trips(model, tmp_path, name, chain):
    """Through our formats in turn: the same names, bits and dtypes, and the network recognised."""
    source = tmp_path / name
    WRITERS[name](model, source)
    facts = inspect(str(source))
    assert (facts['architecture'], facts['num_classes']) == ('seresnet18_ascend', 3)
    for target, to in chain:
        converted = convert(str(source), str(tmp_path / target), to)
        source = tmp_path / target
        assert to == 'modelzoo' or equal(source, model.state_dict()), target
        assert converted['epochs'] == facts['epochs'] or facts['epochs'] is None
        assert converted['architecture'] == 'seresnet18_ascend'
    assert len(list(tmp_path.iterdir())) == 1 + len(chain), 'something was left behind'


def test_modelzoos_network_and_main_take_it(model, tmp_path):
    """An oracle: the network on torchvision loads it strictly, with equal logits; main.py finds what it looks for."""
    source = save_run(model, tmp_path)
    convert(str(source), str(tmp_path / 'modelzoo.pth.tar'), 'modelzoo')
    checkpoint = torch.load(tmp_path / 'modelzoo.pth.tar', weights_only=True)
    network = reference_network(18, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    wrapped = torch.nn.Module()
    wrapped.module = network  # as DDP names it
    wrapped.load_state_dict(checkpoint['state_dict'])
    optimizer.load_state_dict(checkpoint['optimizer'])
    assert checkpoint['epoch'] == 5 and checkpoint['best_acc1'].to('cpu') == 61.5
    assert checkpoint['amp'].keys() == as_modelzoo_saves(model)['amp'].keys()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.eval()(x), model.eval()(x), atol=1e-5, rtol=1e-5)


def test_moving_average_and_dtype(model, tmp_path, capsys):
    source = save_run(model, tmp_path)
    average = read_checkpoint(source).ema
    main(['convert', str(source), str(tmp_path / 'ema.safetensors'), '--ema'])
    assert equal(tmp_path / 'ema.safetensors', average) and not equal(tmp_path / 'ema.safetensors', model.state_dict())
    main(['convert', str(source), str(tmp_path / 'half.safetensors'), '--dtype', 'float16'])
    out = capsys.readouterr().out
    assert 'float16 (11,2' in out and 'int64 (20)' in out and 'SHA-256 of the weights verified' in out
    expected = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    assert equal(tmp_path / 'half.safetensors', expected)
    assert 'no moving average' in refused(capsys, 'convert', tmp_path / 'half.safetensors', tmp_path / 'x.pth', '--ema')


@pytest.mark.slow
def test_same_bytes_twice(model, tmp_path):
    """What is written depends on the weights and the flags alone, not on the name, the process or its hash seed."""
    source = save_run(model, tmp_path)
    code = 'from seresnet_timm.checkpoints.convert import convert\n'
    pairs = []
    for suffix in ('.safetensors', '.pth', '.modelzoo'):
        to = 'modelzoo' if suffix == '.modelzoo' else None
        here, elsewhere = (tmp_path / f'{name}{suffix}' for name in ('a', 'another name'))
        convert(str(source), str(here), to)
        code += f'convert({str(source)!r}, {str(elsewhere)!r}, {to!r})\n'
        pairs.append((here, elsewhere))
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
    for here, elsewhere in pairs:
        assert here.read_bytes() == elsewhere.read_bytes(), here.suffix
    assert read_checkpoint(tmp_path / 'a.safetensors').info.class_names == ['a', 'b', 'c']


def test_inspect(model, tmp_path, capsys):
    save_modelzoo(model, tmp_path / 'm.pth.tar')
    main(['inspect', str(tmp_path / 'm.pth.tar')])
    text = capsys.readouterr().out
    assert 'seresnet18_ascend (recognised by its weights; the file calls it resnext101_32x8d)' in text
    assert any(line.split() == ['metric', 'top1', '77.500'] for line in text.splitlines())
    assert 'ModelZoo checkpoint' in text and 'loss scale 1024' in text and 'CRC-32 of every part verified' in text
    main(['inspect', '--json', str(tmp_path / 'm.pth.tar')])
    facts = json.loads(capsys.readouterr().out)
    import hashlib
    assert facts['sha256'] == hashlib.sha256((tmp_path / 'm.pth.tar').read_bytes()).hexdigest()
    assert (facts['epochs'], facts['metric'], facts['metric_name']) == (100, 77.5, 'top1')
    assert facts['dtype']['float32'] == sum(
        v.numel() for v in model.state_dict().values() if v.is_floating_point())
    assert facts['parameters'] == sum(p.numel() for p in model.parameters())
    message = refused(capsys, 'inspect', tmp_path / 'm.pth.tar', '--model', 'seresnet34_ascend', code=1)
    assert '112 weights do not fit seresnet34_ascend' in message
    main(['inspect', str(tmp_path / 'm.pth.tar'), '--model', 'seresnet18_ascend'])
    assert 'does not fit' not in capsys.readouterr().out


@pytest.mark.parametrize('name', ['resnet50', 'seresnet50', 'seresnet34_ascend', 'resnet50d', 'mobilenetv3_small_050'])
def test_recognise(name):
    with torch.device('meta'):
        weights = timm.create_model(name, num_classes=7).state_dict()
    expected = None if name in ('resnet50d', 'mobilenetv3_small_050') else name
    assert recognise(weights) == expected
    assert recognise({k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')}) == expected


def test_not_finite_is_told(model, tmp_path):
    weights = dict(model.state_dict(), **{'fc.bias': torch.tensor([1., float('nan'), float('inf')])})
    torch.save(weights, tmp_path / 'c.pth')
    assert inspect(str(tmp_path / 'c.pth'))['not_finite'] == 2


@pytest.mark.parametrize('argv, hint', [
    (('c.pth', 'c.safetensors', '--to', 'timm'), 'has the wrong ending'),
    (('c.pth', 'd.pth', '--to', 'onnx'), '--to onnx is unknown: there are timm, modelzoo'),
    (('c.pth', 'd.pth', '--dtype', 'float8'), '--dtype float8 is unknown: did you mean float32'),
    (('c.pth', 'd.pth', '--model', 'seresnet34_ascend'), '112 missing: layer1.2.conv1.weight, '),
    (('c.pth', 'd.pth', '--model', 'seresnet18_ascent'), 'did you mean seresnet18_ascend?'),
    (('resnet.pth', 'd.pth', '--to', 'modelzoo'), 'is resnet18: the ModelZoo has only SE-ResNets'),
    (('empty.pth', 'd.pth'), 'nothing to convert'),
    (('none.pth', 'd.pth'), 'does not exist'),
])
def test_refusals(model, tmp_path, capsys, monkeypatch, argv, hint):
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), 'c.pth')
    torch.save(timm.create_model('resnet18', num_classes=3).state_dict(), 'resnet.pth')
    torch.save({'epoch': 3}, 'empty.pth')
    before = sorted(p.name for p in tmp_path.iterdir())
    assert hint in refused(capsys, 'convert', *argv)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize('target', (
    'c.pth', 'run/../c.pth', 'link.pth', 'run/last.pth.tar', 'run/checkpoint-3.pth.tar'))
def test_what_is_read_and_checkpoints_of_a_run_are_not_replaced(model, tmp_path, capsys, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'link.pth').symlink_to('c.pth')
    for name in ('c.pth', 'run/last.pth.tar', 'run/checkpoint-3.pth.tar'):
        torch.save(model.state_dict(), name)
    (tmp_path / 'run' / 'summary.csv').touch()
    before = (tmp_path / target).read_bytes()
    assert 'name another file to write' in refused(capsys, 'convert', 'c.pth', target)
    assert (tmp_path / target).read_bytes() == before


def test_values_that_half_precision_does_not_have(model, tmp_path, capsys):
    weights = dict(model.state_dict(), **{'fc.bias': torch.tensor([1., 7e4, 2.])})
    torch.save(weights, tmp_path / 'c.pth')
    argv = ('convert', tmp_path / 'c.pth', tmp_path / 'h.pth', '--dtype')
    assert 'too large for float16, in fc.bias' in refused(capsys, *argv, 'float16')
    main([*map(str, argv), 'bfloat16'])


def test_all_files_are_inspected(model, tmp_path, capsys):
    torch.save(model.state_dict(), tmp_path / 'c.pth')
    with pytest.raises(SystemExit) as e:
        main(['inspect', *(str(tmp_path / name) for name in ('none.pth', 'c.pth', 'gone.pth'))])
    text = capsys.readouterr()
    assert e.value.code == 2 and 'c.pth: weights' in text.out
    assert '2 problems' in text.err and 'none.pth' in text.err and 'gone.pth' in text.err


def test_names_that_are_not_as_many_as_the_outputs_are_told(model, tmp_path):
    source = save_run(model, tmp_path)
    content = dict(read_checkpoint(source).content)
    content['state_dict'] = {k: v[:2].clone() if k.startswith('fc.') else v for k, v in content['state_dict'].items()}
    content.pop('weights_sha256', None)
    torch.save(content, tmp_path / 'two.pth.tar')
    assert 'names 3 classes, its weights have 2' in inspect(str(tmp_path / 'two.pth.tar'))['refused']


def test_head_adapts_only_when_asked(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / 'c.pth')
    other = timm.create_model('seresnet18_ascend', num_classes=5)
    head = other.fc.weight.clone()
    with pytest.raises(UsageError, match='it has 3 classes'):
        load_weights(other, read_checkpoint(tmp_path / 'c.pth'), 'seresnet18_ascend')
    load_weights(other, read_checkpoint(tmp_path / 'c.pth'), 'seresnet18_ascend', adapt_head=True)
    assert torch.equal(other.fc.weight, head) and torch.equal(other.conv1.weight, model.conv1.weight)
    with pytest.raises(UsageError, match='111 of another shape: layer1.0.conv1.weight 64x64x3x3 for 8x64x3x3, '):
        load_weights(tiny_model(), read_checkpoint(tmp_path / 'c.pth'), 'seresnet18_ascend', adapt_head=True)
