"""Every model is made in one place; what comes from a file that was only named is taken from a whitelist."""
import ast
import inspect
import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch

from seresnet_timm.errors import UsageError, printable
from seresnet_timm.models import trusted
from seresnet_timm.models.create import (
    check_model_name,
    count_not_finite,
    create_from_args,
    create_from_info,
    create_model,
    trusted_kwargs,
)
from seresnet_timm.models.info import ModelInfo

PACKAGE = Path(trusted.__file__).parent.parent


def flags(model='seresnet18_ascend', **kwargs) -> Namespace:
    return Namespace(**{**dict(
        model=model, num_classes=None, in_chans=None, input_size=None, gp=None, model_kwargs={}), **kwargs})


def test_only_one_file_calls_timm():
    for path in PACKAGE.rglob('*.py'):
        used = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
                and n.attr == 'create_model' and ast.unparse(n.value).startswith('timm')
                or isinstance(n, ast.ImportFrom) and (n.module or '').startswith('timm')
                and any(alias.name == 'create_model' for alias in n.names)]
        assert not used or path == PACKAGE / 'models' / 'create.py', path


def test_from_args():
    args = flags(num_classes=5, input_size=(1, 32, 32), gp='max', model_kwargs=dict(channels=(4, 4, 8, 8)))
    model = create_from_args(args, drop_rate=None)
    assert (model.num_classes, model.conv1.in_channels, model.fc.in_features) == (5, 1, 8)
    assert create_from_args(args, meta=True).conv1.weight.device.type == 'meta'


@pytest.mark.parametrize('kwargs, more, message', [
    (dict(model_kwargs=dict(nonsense=1)), {}, "does not take 'nonsense': leave out nonsense=1 of --model-kwargs."),
    (dict(model_kwargs=dict(channels=3)), {}, 'leave out channels=3 of --model-kwargs.'),
    (dict(model_kwargs=dict(drop_rate='x', replace_stem_pool='no', zero_init_last=0)), {},
     'drop_rate=x is a text: give a number; --model-kwargs replace_stem_pool=no is a text: give True or False.'),
    (dict(bn_eps=0.1), dict(bn_eps=0.1), "does not take 'bn_eps': leave out --bn-eps."),
    (dict(model='vit_tiny_patch16_224', drop_block=0.1), dict(drop_block_rate=0.1), 'leave out --drop-block.'),
    (dict(model='test_convnext', drop_connect=0.1, model_kwargs=dict(drop_path_rate=0.1, drop_path=None, x=3)), {},
     'leave out x=3 of --model-kwargs.'),
    (dict(model='seresnet19_ascend'), {}, "Unknown model 'seresnet19_ascend': did you mean seresnet18_ascend?"),
    (dict(model='seresnet50_ascend.imagenet'), {}, "no weights 'imagenet': there are moskomule_in1k."),
    (dict(model='org/name'), {}, "Use 'hf-hub:org/name'"),
    (dict(model='local-dir:/no/such'), {}, 'holds no config.json'),
])
def test_wrong_arguments(kwargs, more, message):
    """One sentence that names the flag that was given."""
    with pytest.raises(UsageError, match=re.escape(message)):
        create_from_args(flags(**kwargs), meta=True, **more)


def test_never_the_network():
    with pytest.raises(ValueError, match='pulled first'):
        create_model('hf-hub:org/name')


@pytest.mark.parametrize('name, kwargs, size', [
    ('seresnet18_ascend', dict(num_classes=3, channels=(4, 4, 8, 8), in_chans=1), None),
    ('test_vit', dict(num_classes=4, img_size=64), 96), ('test_efficientnet', dict(bn_eps=0.1, act_layer='gelu'), None),
    ('test_convnext', dict(num_classes=0), None), ('vit_tiny_patch16_224', dict(img_size=(64, 32)), None),
])
def test_info_makes_the_model_again(name, kwargs, size):
    """What a run saves is enough: the same shapes and the same function."""
    model = create_model(name, **kwargs).eval()
    data = timm.data.resolve_data_config({'in_chans': kwargs.get('in_chans')}, model=model)
    info = ModelInfo.of_model(model, data, [f'c{i}' for i in range(model.num_classes)])
    again = ModelInfo.from_dict(json.loads(json.dumps(info.to_dict())), 'file')
    assert again == info and (again.class_names or []) == [f'c{i}' for i in range(model.num_classes)]
    other = create_from_info(again, 'file').eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, info.in_chans, *(getattr(getattr(model, 'patch_embed', None), 'img_size', None) or (64, 64)))
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    if size:
        resized = create_from_info(again, 'file', img_size=size, meta=True)
        assert resized.patch_embed.img_size == (size, size)
    assert create_from_info(again, 'file', num_classes=7, meta=True).num_classes == 7


REACHING_OUT = {
    'pretrained': True, 'pretrained_cfg': {'url': 'http://127.0.0.1/'}, 'pretrained_cfg_overlay': {'file': 'w.pth'},
    'checkpoint_path': '/tmp/w.pth', 'cache_dir': '/tmp/x', 'file': 'w.pth', 'url': 'http://127.0.0.1/',
    'state_dict': {}, 'hf_hub_id': 'a/b', 'custom_load': True, 'pretrained_model_args': {}, 'pretrained_filter_fn': 'x',
    'kwargs_filter': ['num_classes'], 'features_only': True, 'feature_cls': 'hook', 'pruned': True, 'device': 'npu',
    'dtype': 'float16', 'scriptable': True, 'model_cfg': {}, 'cfg': {}, 'block': 'os.system', 'block_args': {'a': 1},
    'hybrid_backbone': 'x', 'norm_kwargs': {}, 'nonsense': 1, 'pretrained_strict': False, '': 1, '\x1b[2J': 1, 3: 1,
}


@pytest.mark.parametrize('key', REACHING_OUT, ids=repr)
def test_arguments_that_are_never_taken_from_a_file(key):
    with pytest.raises(UsageError) as e:
        trusted_kwargs({'drop_rate': 0.1, key: REACHING_OUT[key]}, 'c.pth')
    message = str(e.value)
    assert message.startswith('c.pth: model_kwargs has') and printable(key) in message and '\x1b' not in message
    with pytest.raises(UsageError):
        create_from_info(ModelInfo('seresnet18_ascend', {key: REACHING_OUT[key]}), 'c.pth')


@pytest.mark.parametrize('kwargs', [
    {'act_layer': '../../x'}, {'act_layer': 'os.system()'}, {'act_layer': 'a\n'}, {'norm_layer': 'x' * 41},
    {'channels': {'a': 1}}, {'channels': [1] * 65}, {'channels': [[1]]}, {'channels': 65537}, {'depths': [257]},
    {'num_classes': 10 ** 7}, {'num_classes': '5'}, {'drop_rate': float('nan')}, {'bn_eps': float('inf')},
    {'bn_eps': '1'}, {'qkv_bias': 'yes'}, {'layers': [float('nan')]}, {'img_size': 1 << 70}, {'img_size': -70000},
    {'drop_rate': 1e300}, {'global_pool': ['avg']}, {'global_pool': 3},
], ids=repr)
def test_values_that_are_never_taken_from_a_file(kwargs):
    with pytest.raises(UsageError):
        trusted_kwargs(kwargs, 'c.pth')
    with pytest.raises(UsageError):
        trusted_kwargs([kwargs], 'c.pth')


@pytest.mark.parametrize('values', [
    {'channels': [65536] * 4}, {'num_classes': 10 ** 6, 'channels': [65536] * 4}, {'layers': [256] * 4, 'x': 1},
    {'channels': 0}, {'channels': [8, 8, 8, -8]}, {'channels': []}, {'stem_type': 'none such'},
    {'act_layer': 'none_such'}, {'output_stride': 7},
], ids=repr)
def test_settings_that_make_no_network(values):
    """Too large, or no network at all: one sentence, and no memory taken."""
    peak = Path('/proc/self/status').read_text() if sys.platform == 'linux' else ''
    with pytest.raises(UsageError, match='c.pth'):
        create_from_info(ModelInfo('seresnet18_ascend', values), 'c.pth')
    if peak:
        before, after = (int(re.search(r'VmSize:\s+(\d+)', t)[1]) for t in (
            peak, Path('/proc/self/status').read_text()))
        assert after - before < 2e6, 'kB'


@pytest.mark.parametrize('name', [
    'local-dir:/etc', 'hf-hub:../../x', 'hf-hub:a/../b', 'hf-hub:a/b@../../c', 'hf-hub:a/b@x/../y', 'hf-hub:/a/b',
    'hf-hub:a', 'hf-hub:a/b@', 'hf-hub:a/b@\n', 'file:x', 'http://127.0.0.1/x', 'a/b', '../x', 'resnet18\x1b[2J',
    'resnet18\n', '', 'x' * 300, 5, None, ['resnet18'], 'hf-hub:.a/b', 'hf-hub:a/b@refs/pr/..',
], ids=repr)
def test_names_that_are_never_taken_from_a_file(name):
    if name is not None:
        with pytest.raises(UsageError) as e:
            ModelInfo.from_dict({'name': name}, 'c.pth')
        assert 'c.pth' in str(e.value) and not set('\x1b\n') & set(str(e.value))
    with pytest.raises(UsageError):
        create_from_info(ModelInfo(name='no_such_model' if name is None else None), 'c.pth')


def test_names_that_are_taken():
    for name in ('resnet18', 'seresnet50_ascend.moskomule_in1k', 'hf-hub:org/name@0123abc', 'hf-hub:a-b/c.d_e@v1.0',
                 'hf_hub:timm/resnet18.a1_in1k@refs/pr/1', 'vit_base_patch16_siglip_224.v2_webli'):
        assert ModelInfo.from_dict({'name': name}, 'c.pth').name == name
    for arch in timm.list_models(pretrained=True):
        assert trusted.trusted_name(arch, 'f') == arch
    with pytest.raises(UsageError, match="names the model 'no_such_model', which is unknown to timm"):
        create_from_info(ModelInfo(name='no_such_model'), 'c.pth')


@pytest.mark.parametrize('key, value', [
    ('num_classes', -1), ('num_classes', 2.5), ('num_classes', True), ('in_chans', 0), ('class_names', 'abc'),
    ('class_names', [1]), ('class_names', ['a' * 1001]), ('class_names', ['a', 'b']), ('input_size', [3, 224]),
    ('input_size', [3, 224, 10 ** 6]), ('input_size', 224), ('input_size', [3, '224', 224]), ('mean', [0.5, 0.5]),
    ('mean', [float('nan')] * 3), ('mean', '0.5'), ('std', [0, 0, 0]), ('std', [-1.0]), ('interpolation', 'x\n'),
    ('interpolation', 3), ('crop_pct', 0), ('crop_pct', float('inf')), ('crop_pct', [0.9]), ('crop_mode', '../x'),
    ('image_mode', 'x'),
    ('kwargs', []), ('kwargs', {'a': 1}), ('schema', 'x'),
], ids=repr)
def test_info_of_a_damaged_or_malicious_file(key, value):
    good = ModelInfo('resnet18', {'drop_rate': 0.1}, 3, 3, ['a', 'b', 'c'], [3, 32, 32], [0.5], [0.2], 'bilinear', 0.9)
    assert ModelInfo.from_dict(dict(good.to_dict(), later=1), 'c.pth') == good
    with pytest.raises(UsageError) as e:
        ModelInfo.from_dict(dict(good.to_dict(), **{key: value}), 'c.pth')
    assert 'c.pth' in str(e.value) and '\n' not in str(e.value)


PREPROCESSING = (
    ('input_size', 'x'), ('input_size', [3, -32, 32]), ('input_size', [3, 60000, 60000]), ('crop_pct', 'x'),
    ('crop_pct', 1e-6), ('test_crop_pct', 1e-6), ('test_input_size', [3, 9000, 9000]), ('mean', {'a': 1}),
    ('std', [0, 0, 0]), ('interpolation', '../x'), ('crop_mode', '\x1b[2J'), ('label_names', [1]))


def test_size_of_the_resized_image():
    """The image is resized to the size of the input divided by the crop: a small crop takes all memory."""
    info = dict(name='resnet18', input_size=[3, 224, 224])
    for crop_pct in (1.15, 0.03):  # timm's largest
        assert ModelInfo.from_dict(dict(info, crop_pct=crop_pct), 'c.pth').crop_pct == crop_pct
    with pytest.raises(UsageError, match='c.pth: input_size and crop_pct ask for images of 224,000 pixels a side'):
        ModelInfo.from_dict(dict(info, crop_pct=0.001), 'c.pth')


def test_hub_folder(tmp_path):
    """A config.json is a stranger's file too."""
    model = timm.create_model('test_resnet', num_classes=2)
    timm.models.save_for_hf(model, str(tmp_path))
    made = create_model('hf-hub:org/name', folder=tmp_path, pretrained=True)
    assert torch.equal(made.conv1[0].weight, model.conv1[0].weight) and made.num_classes == 2
    config = json.loads((tmp_path / 'config.json').read_text())
    for change, message in (
            (dict(model_args={'pretrained_cfg_overlay': {'url': 'http://127.0.0.1/'}}), 'pretrained_cfg_overlay'),
            (dict(model_args={'checkpoint_path': '/etc/passwd'}), 'checkpoint_path'),
            *((dict(pretrained_cfg={**config['pretrained_cfg'], key: value}), key) for key, value in PREPROCESSING),
            (dict(pretrained_cfg=None), 'not a table'),
            (dict(architecture='no_such_model'), 'cannot be made'), (dict(architecture=3), 'names no architecture'),
            (dict(pretrained_cfg=3), 'not a table'),
            (dict(pretrained_cfg={**config['pretrained_cfg'], 'custom_load': 'hf'}), 'custom_load')):
        (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
        with pytest.raises(UsageError, match=message):
            create_model('hf-hub:org/name', folder=tmp_path)
    with open(tmp_path / 'config.json', 'wb') as f:
        f.truncate(1 << 33)
    with pytest.raises(UsageError, match='has 8,589.9 MB: it is no model configuration'):
        create_model(f'local-dir:{tmp_path}')
    for text in ('{', '[' * 99999):
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(UsageError, match='cannot be read'):
            create_model(f'local-dir:{tmp_path}')


def test_whitelist_holds_no_name_that_reaches_out():
    """No listed name is an argument of timm's factory or builder, where files, addresses and caches are named."""
    listed = trusted.COUNTS | trusted.SIZES | trusted.NUMBERS | trusted.SWITCHES | trusted.WORDS
    for function in (timm.create_model, timm.models.build_model_with_cfg):
        assert not listed & set(inspect.signature(function).parameters), function
    fields = set(timm.models.PretrainedCfg.__dataclass_fields__) - {'num_classes', 'pool_size'}
    assert not listed & fields


def test_check_model_name():
    for name in ('resnet18', 'resnet18.a1_in1k', 'seresnet18_ascend.untrained', 'hf-hub:a/b', 'local-dir:x'):
        check_model_name(name)
    with pytest.raises(UsageError) as e:
        check_model_name('\x1b[2Jresnet18')
    assert '\x1b' not in str(e.value)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted(dtype):
    values = torch.full((5000,), torch.finfo(dtype).max, dtype=dtype)  # of which the sum is infinite
    assert count_not_finite(values) == 0
    values[3], values[4], values[5] = float('nan'), float('inf'), float('-inf')
    assert count_not_finite(values) == 3
