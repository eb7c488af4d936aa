"""Gates are timm's own, maps are those of the formula; what is written is complete or not there."""
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import run_here
from PIL import Image

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.inference import explain, explain_files
from seresnet_timm.inference.load import load_model, untrained_model
from seresnet_timm.inference.predict import ImageFiles
from seresnet_timm.models.lean_se import set_lean_se

SETTINGS = SimpleNamespace(device='cpu', args=dict(batch_size=2, workers=0))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for i in range(3):
        Image.effect_noise((80, 60 + i), 90).convert('RGB').save(folder / f'{i}.png')
    return sorted(map(str, folder.iterdir()))


def untrained(name, size=64, **kwargs):
    loaded = untrained_model(name, 7, size, 0, kwargs)
    loaded.model.eval()
    return loaded


def batch_of(loaded, files):
    dataset = ImageFiles(files, loaded.data_config)
    return torch.stack([dataset[i][1] for i in range(len(files))])


def gates_by_hand(model, images):
    """The formula, from what goes into timm's SE modules, by their name."""
    found = {}

    def hook(name):
        def keep(module, args):
            hidden = F.linear(args[0].mean((2, 3)), module.fc1.weight.flatten(1), module.fc1.bias).relu()
            found[name] = F.linear(hidden, module.fc2.weight.flatten(1), module.fc2.bias).sigmoid()
        return keep
    handles = [m.register_forward_pre_hook(hook(n)) for n, m in model.named_modules() if type(m).__name__ == 'SEModule']
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize('lean', (True, False))
@pytest.mark.parametrize('name', ('seresnet18_ascend', 'seresnet18', 'legacy_seresnet18'))
def test_gates(images, name, lean):
    """By image, class and depth; our networks with lean and plain blocks, and timm's."""
    set_lean_se(lean)
    try:
        loaded = untrained(name) if name != 'seresnet18' else load_seresnet18()
        explainer = explain.Explainer(SETTINGS, loaded)
        seen = list(explainer.run(images, [1, 4, 1]))
    finally:
        set_lean_se()
    expected = gates_by_hand(loaded.model, batch_of(loaded, images))
    assert [s.group for s in seen] == [1, 4, 1] and explainer.counts == {1: 2, 4: 1}
    assert [b.name for b in explainer.blocks] == list(expected) and len(expected) == 8
    assert list(dict.fromkeys(b.stage for b in explainer.blocks)) == ['layer1', 'layer2', 'layer3', 'layer4']
    for block in explainer.blocks:
        values = expected[block.name].double()
        torch.testing.assert_close(block.sums[1], values[0] + values[2], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(block.sums[4], values[1], rtol=1e-5, atol=1e-6)


def load_seresnet18():
    loaded = untrained('seresnet18_ascend')
    loaded.model = timm.create_model('seresnet18', num_classes=7).eval()
    return loaded


@pytest.mark.parametrize('target', (None, 5))
@pytest.mark.parametrize('name', ('seresnet18_ascend', 'resnet18'))
def test_map_of_a_linear_head_is_cam(images, name, target):
    """CAM: the features times the class's weights of the linear layer."""
    loaded = untrained(name, size=128)
    torch.nn.init.normal_(loaded.model.fc.weight)
    seen = list(explain.Explainer(SETTINGS, loaded, target).run(images, None))
    with torch.no_grad():
        batch = batch_of(loaded, images)
        features, logits = loaded.model.forward_features(batch), loaded.model(batch)
    for n, s in enumerate(seen):
        chosen = logits[n].argmax() if target is None else target
        cam = torch.einsum('chw,c->hw', features[n], loaded.model.fc.weight[chosen]).relu()
        assert s.target == chosen and s.predicted == logits[n].argmax() and s.map.shape == (4, 4)
        assert s.probability == pytest.approx(float(logits[n].softmax(0).max()), rel=1e-5)
        np.testing.assert_allclose(s.map, (cam / cam.max()).numpy(), rtol=1e-4, atol=1e-5)
        assert s.image.shape == (128, 128, 3) and 0 <= s.image.min() and s.image.max() <= 1


def test_map_of_an_inner_layer(images):
    """An image of 64 pixels ends at 2 x 2: the last layer of 4 x 4 is taken. It is Grad-CAM by the formula."""
    loaded = untrained('seresnet18_ascend')
    explainer = explain.Explainer(SETTINGS, loaded)
    assert (explainer.layer, explainer.map_size) == ('layer3', '4 x 4')
    seen = list(explainer.run(images, None))
    kept = []
    handle = loaded.model.layer3.register_forward_hook(lambda m, a, out: kept.append(out))
    batch = batch_of(loaded, images).requires_grad_()
    logits = loaded.model(batch)
    handle.remove()
    gradient, = torch.autograd.grad(logits.max(dim=1).values.sum(), kept[0])
    cam = (kept[0] * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    for n, s in enumerate(seen):
        np.testing.assert_allclose(s.map, (cam[n] / cam[n].max()).detach().numpy(), rtol=1e-3, atol=1e-5)
    assert explain.Explainer(SETTINGS, loaded, layer='layer2').map_size == '8 x 8'


@pytest.mark.parametrize('name, kwargs', (
    ('mobilenetv3_small_050', {}), ('vgg11', {}), ('regnety_002', {}), ('convnext_atto', {}),
    ('swin_tiny_patch4_window7_224', dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)))))
@pytest.mark.slow
def test_other_families(images, name, kwargs):
    loaded = untrained(name, **kwargs)
    seen = list(explain.Explainer(SETTINGS, loaded).run(images, None))
    assert len(seen) == 3 and all(s.map.ndim == 2 and np.isfinite(s.map).all() for s in seen)
    if 'swin' not in name and 'convnext' not in name:
        return
    assert not explain.Explainer(SETTINGS, loaded).blocks


@pytest.mark.slow
def test_grey_images_and_weights_that_are_not_finite(images, tmp_path):
    """Of one channel; NaN gives a map of nothing and null in the JSON."""
    loaded = untrained('seresnet18_ascend', in_chans=1, channels=(8, 8, 8, 8))
    loaded.info = replace(loaded.info, input_size=[1, 64, 64], mean=[0.5], std=[0.5])
    explainer = explain.Explainer(SETTINGS, loaded)
    explain_files.write(explainer, images[:1], None, tmp_path / 'grey', 1)
    assert sorted(p.suffix for p in (tmp_path / 'grey').iterdir()) == ['.json', '.png', '.png']
    torch.nn.init.constant_(loaded.model.layer2[0].conv1.weight, float('nan'))
    explain_files.write(explain.Explainer(SETTINGS, loaded), images[:1], None, tmp_path / 'nan', 1)
    document = json.loads((tmp_path / 'nan' / 'explain.json').read_text())
    assert document['images'][0]['probability'] is None and set(document['blocks'][-1]['mean']) == {None}


def test_tokens_give_no_map(images):
    with pytest.raises(UsageError, match='no Squeeze-and-Excitation, and it ends with tokens'):
        explain.Explainer(SETTINGS, untrained('vit_tiny_patch16_224', depth=1))


def test_nothing_speaks_for_the_class():
    features, gradient = torch.ones(1, 2, 3, 3), -torch.ones(1, 2, 3, 3)
    assert not explain.class_activation(features, gradient).any()
    last = explain.class_activation(*(t.permute(0, 2, 3, 1) for t in (features, -gradient)), channels_last=True)
    assert (last == 1).all() and last.shape == (1, 3, 3)


@pytest.fixture
def explained(digits_run, few_digits, tmp_path):
    def call(*argv):
        return run_here('explain', digits_run, *argv, '--output', tmp_path / 'out', '--workers', 0, '--device', 'cpu')
    return call


def test_the_title_says_that_no_place_speaks_for_the_class(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(explain_files, 'save_figure', lambda figure, *_: titles.append(figure.axes[1].get_title()))
    for highest in (0., 1.):
        heat = np.full((4, 4), highest)
        seen = explain.Seen('a.png', 0, 0, .5, 1, np.zeros((32, 32, 3), np.float32), heat)
        explain_files.draw_map(seen, ['a', 'b'], tmp_path / 'map.png')
    assert titles == ['Grad-CAM of b: no evidence for it', 'Grad-CAM of b']


def test_files(explained, few_digits, tmp_path):
    """Of a run's images; the folder of an image is its class."""
    result = explained(few_digits / 'val' / '3', few_digits / 'val' / '8', '--maps', 1)
    assert result.returncode == 0, result.stderr
    assert '8 SE blocks; gates of 14 images, by the class of their folder.' in result.stdout
    document = json.loads((tmp_path / 'out' / 'explain.json').read_text())
    drawn = [i['map'] for i in document['images'] if i['map']]
    assert sorted([*drawn, 'explain.json', 'gates.png']) == sorted(p.name for p in (tmp_path / 'out').iterdir())
    assert len(drawn) == 1 and [c['images'] for c in document['classes']] == [7, 7]
    for block in document['blocks']:
        by_class = [block['by_class'][c] for c in '38']
        np.testing.assert_allclose(np.mean(by_class, axis=0), block['mean'], rtol=1e-9)
        assert len(block['mean']) == block['channels'] and 0 < min(block['mean']) <= max(block['mean']) < 1
    for name in ('gates.png', drawn[0]):
        assert np.asarray(Image.open(tmp_path / 'out' / name).convert('L'), dtype=float).std() > 10
    again = explained(few_digits / 'val' / '3')
    assert again.returncode == 2 and 'exists and is not an empty folder' in again.stderr
    assert json.loads((tmp_path / 'out' / 'explain.json').read_text()) == document


def test_odd_names_and_an_unreadable_image(explained, few_digits, tmp_path):
    source = next((few_digits / 'val' / '3').iterdir())
    for name in ('a\x1b[1m $x.jpg', '\u732b.jpg'):
        shutil.copy(source, tmp_path / name)
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    result = explained(tmp_path)
    assert result.returncode == 1 and '1 of 3 files could not be read' in result.stderr
    assert 'bad.jpg: cannot be read' in result.stderr and '\x1b' not in result.stdout + result.stderr
    assert 'by the class that was predicted' in result.stdout
    document = json.loads((tmp_path / 'out' / 'explain.json').read_text('ascii'))
    assert {i['file'] for i in document['images']} == {str(tmp_path / n) for n in ('a\x1b[1m $x.jpg', '\u732b.jpg')}
    assert all((tmp_path / 'out' / i['map']).is_file() and i['map'].isascii() for i in document['images'])


@pytest.mark.parametrize('flags, hint', (
    (['--target', 'cat'], '--target cat is not a class of the model'),
    (['--target', '10'], '--target 10 is not a class of the model'),
    (['--layer', 'layer9'], '--layer layer9 is no layer of seresnet18_ascend: did you mean layer'),
    (['--layer', 'fc'], '--layer fc: its output is no feature map'),
    (['--maps', '-1'], '--maps'),
))
def test_refused(explained, few_digits, tmp_path, flags, hint):
    result = explained(few_digits / 'val' / '3', *flags)
    assert (result.returncode, result.stdout) == (2, '') and hint in result.stderr
    assert not (tmp_path / 'out').exists() and list(tmp_path.iterdir()) == []


def test_nothing_can_be_read(digits_run, tmp_path):
    (tmp_path / 'x.jpg').write_bytes(b'no')
    explainer = explain.Explainer(SETTINGS, load_model(str(digits_run)))
    said = 'None of the 1 images can be read, the first because it is a text file, not an image'
    with pytest.raises(RunError, match=said):
        explain_files.write(explainer, [str(tmp_path / 'x.jpg')], None, tmp_path / 'out', 5)
    assert [p.name for p in tmp_path.iterdir()] == ['x.jpg']


def test_full_disk(digits_run, few_digits, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(explain_files, 'write_json', full)
    explainer = explain.Explainer(SETTINGS, load_model(str(digits_run)))
    files = [str(p) for p in (few_digits / 'val' / '3').iterdir()][:1]
    with pytest.raises(RunError, match='cannot be written .No space left on device.'):
        explain_files.write(explainer, files, None, tmp_path / 'out', 0)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_several_classes_is_no_target():
    names = ['crane', 'dog', 'crane']
    loaded = SimpleNamespace(info=SimpleNamespace(class_names=names, num_classes=3), class_descriptions=None)
    assert explain.find_class(loaded, 'dog') == 1 and explain.find_class(loaded, '2') == 2
    with pytest.raises(UsageError, match='is the name of 2 classes: give an index, one of 0, 2'):
        explain.find_class(loaded, 'crane')
    assert explain.groups_of(loaded, ['a/dog/1.jpg']) == [1]
    assert explain.groups_of(loaded, ['a/dog/1.jpg', 'a/crane/1.jpg']) is None
