"""Weights under the keys and prefixes of other tools: loaded bit for bit, or refused with both names and a remedy."""
import argparse
import re

import pytest
import timm
import torch
from checkpoint_files import TINY, tiny_model
from safetensors.torch import load_file

from seresnet_timm import cli
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.convert import convert
from seresnet_timm.checkpoints.fit import load_weights, model_of
from seresnet_timm.checkpoints.inspect import describe, inspect
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import UsageError

NAME = 'seresnet18_ascend'


@pytest.fixture(scope='module')
def own():
    return tiny_model(1).state_dict()


@pytest.fixture(scope='module')
def other():
    return tiny_model(2).state_dict()


def under(prefix, weights):
    return {prefix + k: v for k, v in weights.items()}


def load(content, path, **kwargs):
    """Load into a new model; its weights."""
    torch.save(content, path)
    model = tiny_model(3)
    load_weights(model, path, NAME, **kwargs)
    return model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize('prefix', [
    'module.', '_orig_mod.', 'module._orig_mod.', 'module.module.', 'model.', 'net.', 'backbone.', 'encoder.',
    'student.', 'module.model.', 'model._orig_mod.', '_orig_mod.model.module.', 'any_word.', 'ema_model.',
    'trunk.module.'])
def test_a_shared_prefix_is_taken_off(own, tmp_path, prefix):
    assert equal(load({'state_dict': under(prefix, own)}, tmp_path / 'x.pth'), own)


@pytest.mark.parametrize('part, word', [
    ('layer1.0.', '_orig_mod.'), ('layer1.', '_fsdp_wrapped_module.'), ('layer2.0.', '_checkpoint_wrapped_module.')])
@pytest.mark.parametrize('prefix', ['', '_forward_module.', 'module._fsdp_wrapped_module.'])
def test_a_wrapped_part_of_a_network(own, tmp_path, part, word, prefix):
    """One block was compiled, or checkpoints its activations: its word is in the middle of the names."""
    names = under(prefix, {k.replace(part, part + word, 1): v for k, v in own.items()})
    assert any(word in name for name in names)
    assert equal(load({'state_dict': names}, tmp_path / 'x.pth'), own)
    convert(str(tmp_path / 'x.pth'), str(tmp_path / 'o.safetensors'), model=None)
    assert equal(load_file(tmp_path / 'o.safetensors'), own)


def test_counters_of_old_torch_and_weights_in_one_memory(own, tmp_path):
    """torch loads a counter of shape [1]; safetensors do not take two weights in one memory."""
    old = {k: v.reshape(1) if not v.ndim else v for k, v in own.items()}
    assert equal(load(old, tmp_path / 'x.pth'), own)
    tied = {**own, 'bn1.bias': own['bn1.weight']}
    torch.save(tied, tmp_path / 'y.pth')
    convert(str(tmp_path / 'y.pth'), str(tmp_path / 'y.safetensors'))
    assert equal(load_file(tmp_path / 'y.safetensors'), tied)


def test_values_beyond_float32_and_a_head_of_another_rank(own, tmp_path):
    large = {**own, 'fc.weight': own['fc.weight'].double() * 1e300}
    column = {**own, 'fc.bias': own['fc.bias'][:, None]}
    for content, words in ((large, 'fc.weight .float64 beyond float32'),
                           (column, 'of another shape: fc.bias 3x1 for 3'),
                           ({'epoch': 3}, 'it holds no weights, only epoch')):
        with pytest.raises(UsageError, match=words):
            load(content, tmp_path / 'x.pth')


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_input_channels_are_those_of_the_weights(tmp_path, channels):
    """Of a bare state dict, and of a file that says something else; named where there is a flag for it."""
    model = timm.create_model('test_resnet', num_classes=3, in_chans=channels)
    path = tmp_path / 'x.pth'
    for more in ({}, {'args': argparse.Namespace(model='test_resnet', in_chans=7, num_classes=9)}):
        torch.save({'state_dict': model.state_dict(), 'arch': 'test_resnet', **more}, path)
        made, info = model_of(read_checkpoint(path))
        assert made.conv1[0].in_channels == channels and info.num_classes == 3
    if channels != 3:
        with pytest.raises(UsageError, match=rf'it takes images of {channels} channels? .--in-chans {channels}\b'):
            load_weights(timm.create_model('test_resnet', num_classes=3), path, 'test_resnet')


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.'])
def test_files_from_before_batch_norm_counted(own, tmp_path, prefix):
    """As torchvision's of 2016 and the SENets of Cadene: torch loads them too."""
    path = tmp_path / 'x.pth'
    old = {k: v for k, v in own.items() if not k.endswith('num_batches_tracked')}
    zero = {k: v if k in old else torch.zeros_like(v) for k, v in own.items()}
    assert equal(load(under(prefix, old), path), zero)
    kept = next(k for k in own if k not in old)
    torch.save({**old, kept: own[kept]}, path)  # some of them are missing
    with pytest.raises(UsageError, match='missing'):
        load_weights(tiny_model(3), path, NAME)


@pytest.mark.parametrize('key', [
    'state_dict', 'model', 'model_state_dict', 'net', 'network', 'weights', 'module', 'params', 'ema_state_dict',
    'my_own_key', 'app.weights_of_mine'])
def test_keys_of_nesting(own, tmp_path, key):
    path = tmp_path / 'x.pth'
    content = dict(own)
    for k in reversed(key.split('.')):
        content = {k: content}
    assert equal(load({**content, 'epoch': 3, 'optimizer_state_dict': {'state': {}}}, path), own)
    assert inspect(str(path))['architecture'] is None or key  # inspect reads it too
    assert any(key in line for line in describe(inspect(str(path)))) or key == 'state_dict'


def test_nested_twice_and_half_wrapped(own, tmp_path):
    path = tmp_path / 'x.pth'
    assert equal(load({'state_dict': {'model': under('module.', own)}}, path), own)
    half = dict(list(under('module.', own).items())[:40] + list(own.items())[40:])
    assert equal(load(half, path), own)
    assert equal(load({'state_dict': {**under('model.', own), 'criterion.weight': torch.ones(3)}}, path), own)


def test_body_and_head_under_two_prefixes(own, tmp_path):
    joined = {('head.' if k.startswith('fc.') else 'backbone.') + k: v for k, v in own.items()}
    assert equal(load({'meta': {}, 'state_dict': joined}, tmp_path / 'x.pth'), own)
    more = {**joined, 'neck.weight': torch.ones(2, 2)}
    with pytest.raises(UsageError, match=r'missing: fc.weight.*|backbone\.'):
        load({'state_dict': more}, tmp_path / 'x.pth')


@pytest.mark.parametrize('make, names', [
    (lambda a, b: {**under('teacher.', b), **under('student.', a)}, ('teacher.', 'student.')),
    (lambda a, b: {'state_dict': {**under('module.encoder_q.', a), **under('module.encoder_k.', b),
                                  'module.queue': torch.randn(8, 16)}}, ('encoder_q.', 'encoder_k.')),
    (lambda a, b: {'state_dict': {**a, **under('ema_model.', b)}}, ('without a prefix', 'ema_model.')),
    (lambda a, b: {'state_dict': {**under('model.', a), **under('ema.', b)}}, ('model.', 'ema.')),
    (lambda a, b: {**a, **under('module.', b)}, ('module.',)),
    (lambda a, b: {'net1': a, 'net2': b}, ('net1', 'net2')),
    (lambda a, b: {'student': a, 'teacher': b, 'epoch': 1}, ('student', 'teacher')),
    (lambda a, b: {'app': {'one': {'net1': a}, 'two': {'net2': b}, 'optim': {'w': {'exp_avg': b['conv1.weight']}}}},
     ('app.one.net1', 'app.two.net2')),
], ids=['distillation', 'moco', 'average', 'lightning', 'ddp', 'keys', 'dino', 'deep'])
def test_two_networks_are_refused_and_can_be_chosen(own, other, tmp_path, make, names):
    path, before = tmp_path / 'x.pth', tiny_model(3)
    torch.save(make(own, other), path)
    model = tiny_model(3)
    with pytest.raises(UsageError, match='--network') as e:
        load_weights(model, path, NAME)
    assert all(name in str(e.value) for name in names) and str(path) in str(e.value)
    assert equal(model.state_dict(), before.state_dict()), 'nothing was loaded'
    network = str(e.value).rpartition('--network ')[2].split('`')[0]
    convert(str(path), str(tmp_path / 'one.safetensors'), network=network)
    written = load_file(tmp_path / 'one.safetensors')
    assert equal(written, own) or equal(written, other)
    if 'without a prefix' in names or names == ('module.',):
        convert(str(path), str(tmp_path / 'one.safetensors'), network='')
        assert equal(load_file(tmp_path / 'one.safetensors'), own)


def test_the_network_whose_shapes_fit_is_taken(own, tmp_path):
    torch.manual_seed(0)
    wider = timm.create_model(NAME, **dict(TINY, channels=(8, 8, 8, 32))).state_dict()
    assert equal(load({**under('teacher.', wider), **under('student.', own)}, tmp_path / 'x.pth'), own)


def test_what_is_missing_or_too_much_is_refused(own, tmp_path):
    headless = {k: v for k, v in own.items() if not k.startswith('fc.')}
    for content, word in ((headless, 'fc.weight'), ({**own, 'fc2.weight': torch.ones(3, 3)}, 'fc2.weight'),
                          (under('model.', {**own, 'aux.weight': torch.ones(1)}), 'aux.weight')):
        with pytest.raises(UsageError, match=word):
            load(content, tmp_path / 'x.pth')


def test_an_average_of_torchvisions_references(own, other, tmp_path):
    """Its names have `module.`, and a counter beside them; it is taken only if asked for."""
    path = tmp_path / 'x.pth'
    content = {'model': own, 'model_ema': {**under('module.', other), 'n_averaged': torch.tensor(2)}, 'epoch': 3,
               'args': argparse.Namespace(model=NAME), 'scaler': {}}
    assert equal(load(content, path), own) and equal(load(content, path, use_ema=True), other)
    for flags, expected in ((dict(), own), (dict(use_ema=True), other)):
        convert(str(path), str(tmp_path / 'o.safetensors'), **flags)
        assert equal(load_file(tmp_path / 'o.safetensors'), expected)


@pytest.mark.parametrize('keys, raw, average', (
    (('state_dict',), '', ''), (('state_dict', 'optimizer'), '', ''),
    (('params_ema',), 'moving average', 'moving average'),
    (('params', 'params_ema'), 'weights under params, not under params_ema (moving average)',
     'weights under params_ema (moving average), not under params'),
    (('model', 'state_dict', 'ema'), 'weights under state_dict, not under model or ema (moving average)',
     'weights under ema (moving average), not under state_dict or model'),
    (('ema.model', 'net'), 'weights under net, not under ema.model (moving average)',
     'weights under ema.model (moving average), not under net')))
def test_the_choice_of_several_weights_is_told(own, tmp_path, keys, raw, average):
    content = {'epoch': 3}
    for key in keys:
        outer, _, inner = key.partition('.')
        content[outer] = {inner: own} if inner else {'state': {}} if key == 'optimizer' else own
    checkpoint = Checkpoint(str(tmp_path / 'x.pth'), 'zip', content)
    assert (checkpoint.describe_choice(), checkpoint.describe_choice(use_ema=True)) == (raw, average)


def test_every_verb_tells_the_choice_of_several_weights(few_digits, tmp_path, capsys):
    path, kwargs = tmp_path / 'x.pth', dict(TINY, num_classes=10)
    weights = timm.create_model(NAME, **kwargs).state_dict()
    args = argparse.Namespace(model=NAME, model_kwargs=kwargs, img_size=32)
    torch.save({'params': weights, 'params_ema': {k: v.clone() for k, v in weights.items()}, 'args': args}, path)
    choice = {(): 'weights under params, not under params_ema (moving average)',
              ('--use-ema',): 'weights under params_ema (moving average), not under params'}
    image = next(few_digits.glob('val/*/*'))
    for flags, text in choice.items():
        for command in (
                ('predict', path, image, '--device', 'cpu', '-j', '0'),
                ('convert', path, tmp_path / 'o.safetensors'),
                ('validate', '--data-dir', few_digits, '--checkpoint', path, '--device', 'cpu', '--dry-run')):
            cli.main([*map(str, command), *flags])
            assert text in capsys.readouterr().err.replace('\n', ' '), command
    flags = ('--model', NAME, '--model-kwargs', f'channels={TINY["channels"]}', 'stem_width=8', '--img-size', '32')
    cli.main(['train', '--data-dir', str(few_digits), *flags, '--initial-checkpoint', str(path), '--device', 'cpu',
              '--dry-run', '--output', str(tmp_path)])
    assert choice['--use-ema',] in capsys.readouterr().err
    cli.main(['inspect', str(path)])
    assert re.search('moving average *yes, under params_ema\n', capsys.readouterr().out)


def test_weights_of_split_batch_norm(own, tmp_path):
    """Evaluation does not use the BatchNorm of further augmentation splits."""
    split = {**own, 'bn1.aux_bn.0.weight': torch.ones(8), 'layer1.0.bn1.aux_bn.0.bias': torch.ones(8)}
    assert equal(load({'state_dict': split}, tmp_path / 'x.pth'), own)


def test_weights_that_are_not_finite(own, tmp_path):
    path = tmp_path / 'x.pth'
    sick = {k: v.clone() for k, v in own.items()}
    sick['layer2.0.conv1.weight'].view(-1)[5] = float('nan')
    sick['fc.weight'][0, 0] = float('inf')
    for content in ({'state_dict': sick}, {'state_dict': own, 'state_dict_ema': sick}):
        with pytest.raises(UsageError, match='not finite.*layer2.0.conv1.weight, fc.weight') as e:
            load(content, path, use_ema=True)
        assert str(path) in str(e.value)
    assert equal(load({'state_dict': own, 'state_dict_ema': sick}, path), own), 'the average is not used'
    line, = (line for line in describe(inspect(str(path))) if line.startswith('moving average'))
    assert 'not finite' in line and 'fc.weight' in line
    torch.save({'state_dict': sick}, path)
    assert any('not finite' in line and 'fc.weight' in line for line in describe(inspect(str(path))))


def test_variances_below_zero(own, tmp_path):
    """Their square root is no number, unless what BatchNorm adds to them makes up for it."""
    path = tmp_path / 'x.pth'
    sick = {k: v.clone() for k, v in own.items()}
    sick['bn1.running_var'][0] = -1e-6
    assert equal(load({'state_dict': sick}, path), sick)
    assert any('below zero in bn1.running_var' in line for line in describe(inspect(str(path))))
    sick['layer1.0.bn2.running_var'][1] = -1e-4
    with pytest.raises(UsageError, match='x.pth has variances of BatchNorm below zero.*: layer1.0.bn2.running_var. '):
        load({'state_dict': sick}, path)
    path = tmp_path / 'y.pth'
    assert equal(load({'state_dict': own}, path), own)
    assert not any('below zero' in line for line in describe(inspect(str(path))))


def test_run_folders_and_folders_of_the_hub(own, tmp_path, capsys):
    """`inspect` and `convert` take what `predict` takes."""
    run, hub = tmp_path / 'run', tmp_path / 'hub'
    run.mkdir()
    hub.mkdir()
    torch.save({'state_dict': own}, run / 'last.pth.tar')
    convert(str(run / 'last.pth.tar'), str(hub / 'model.safetensors'))
    (hub / 'model.safetensors').rename(tmp_path / 'model.safetensors')
    from safetensors.torch import save_file
    save_file(own, hub / 'model.safetensors')
    (hub / 'config.json').write_text(
        '{"architecture": "seresnet18_ascend", "num_classes": 3, "model_args": {"channels": [8, 8, 8, 16], '
        '"stem_width": 8, "bn_eps": 0.5}, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "label_names": ["a", "b", "c"]}}')
    cli.main(['inspect', str(run), str(hub)])
    assert 'bn_eps=0.5' in capsys.readouterr().out
    cli.main(['convert', str(hub), str(tmp_path / 'o.safetensors')])
    info = read_checkpoint(tmp_path / 'o.safetensors').info
    assert info.kwargs['bn_eps'] == 0.5 and info.mean == [0.1, 0.2, 0.3] and info.class_names == ['a', 'b', 'c']
