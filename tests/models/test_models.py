"""The SE-ResNets against an independent implementation on torchvision's ResNet."""
import subprocess

import preloaded
import pytest
import timm
import torch
import torch.nn as nn
from reference_network import DEPTHS, _formats, randomize, reference_network
from timm.models import get_pretrained_cfg

from seresnet_timm.models.seresnet import checkpoint_filter_fn


@pytest.mark.parametrize(
    'depth', [d if d in (18, 50) else pytest.param(d, marks=pytest.mark.slow) for d in DEPTHS])
def test_logits_and_gradients_equal_the_reference(depth):
    reference = randomize(reference_network(depth, 10)).eval()
    model = timm.create_model(f'seresnet{depth}_ascend', num_classes=10).eval()
    model.load_state_dict(checkpoint_filter_fn(reference.state_dict(), model))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    outputs, gradients = [], []
    for net in (reference, model):
        x_ = x.clone().requires_grad_()
        output = net(x_)
        nn.functional.cross_entropy(output, torch.tensor([1, 2])).backward()
        outputs.append(output.detach())
        gradients.append(x_.grad)
    assert outputs[0].std() > 0.1  # the comparison is of numbers of order one
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


def test_three_line_script():
    script = '''import seresnet_timm, timm
model = timm.create_model('seresnet50_ascend')
print(sum(p.numel() for p in model.parameters()))'''
    result = subprocess.run([preloaded.python(), '-c', script], capture_output=True, text=True)
    assert result.stdout.strip() == '28071976', result.stderr


def test_se_bottleneck_is_a_sixteenth():
    model = timm.create_model('seresnet18_ascend')
    assert model.layer1[0].se.fc1.weight.shape == (4, 64, 1, 1)
    assert model.layer1[0].se.fc1.bias is None and model.layer1[0].se.fc2.bias is None


@pytest.mark.parametrize('depth', (18, 50))
def test_initial_weights_are_distributed_as_the_references(depth):
    """torchvision's initialisation, PyTorch's default for linear layers: same bounds, same spread."""
    torch.manual_seed(0)
    reference = checkpoint_filter_fn(reference_network(depth).state_dict(), None)
    own = timm.create_model(f'seresnet{depth}_ascend').state_dict()
    assert own.keys() == reference.keys()
    for name, w in own.items():
        r = reference[name]
        assert w.shape == r.shape, name
        if w.numel() < 2000 or w.ndim < 2:
            assert 'bn' not in name or torch.equal(w, r), name  # BatchNorm starts at one and zero, the last one too
            continue
        assert abs(w.std() / r.std() - 1) < 0.1, name
        assert abs(w.abs().max() / r.abs().max() - 1) < 0.4, name
        if '.se.' in name:
            assert w.abs().max() <= w.shape[1] ** -0.5, name


def test_pretrained_config():
    cfg = get_pretrained_cfg('seresnet50_ascend')
    assert cfg.tag == 'moskomule_in1k'
    assert cfg.url.endswith('/seresnet50-60a8950a85b2b.pkl')
    assert (cfg.input_size, cfg.interpolation, cfg.crop_pct) == ((3, 224, 224), 'bilinear', 0.875)
    assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cfg.license == 'mit' and 'moskomule' in cfg.origin_url and cfg.paper_ids == 'arXiv:1709.01507'
    assert timm.list_models('seresnet*_ascend*', pretrained=True) == ['seresnet50_ascend.moskomule_in1k']
    assert timm.list_models('seresnet*_ascend') == [f'seresnet{d}_ascend' for d in (18, 34, 50, 101, 152)]


def test_pretrained_weights_load_from_the_download_cache(tmp_path, monkeypatch):
    """timm's own download path, on a file of the public weights' format that lies in torch's cache."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    reference = randomize(reference_network(50)).eval()
    (tmp_path / 'checkpoints').mkdir()
    torch.save(reference.state_dict(), tmp_path / 'checkpoints' / 'seresnet50-60a8950a85b2b.pkl',
               _use_new_zipfile_serialization=False)
    x = torch.randn(1, 3, 64, 64)
    model = timm.create_model('seresnet50_ascend', pretrained=True).eval()
    torch.testing.assert_close(model(x), reference(x), atol=1e-4, rtol=1e-4)
    adapted = timm.create_model('seresnet50_ascend.moskomule_in1k', pretrained=True, num_classes=7, in_chans=1)
    assert adapted(x[:, :1]).shape == (1, 7)
    assert torch.equal(adapted.layer2[0].conv1.weight, model.layer2[0].conv1.weight)


def test_checkpoint_filter_accepts_every_format():
    reference, formats = _formats()
    x = torch.randn(1, 3, 64, 64)
    expected = reference(x)
    for name, checkpoint in formats.items():
        model = timm.create_model('seresnet18_ascend', num_classes=10).eval()
        model.load_state_dict(checkpoint_filter_fn(checkpoint, model))
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.fixture(scope='module')
def pair():
    """Ours and timm's seresnet50, which shows how a timm model behaves."""
    return [timm.create_model(name, num_classes=10).eval() for name in ('seresnet50_ascend', 'seresnet50')]


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_features_only():
    shapes, infos = [], []
    for name in ('seresnet50_ascend', 'seresnet50'):
        model = timm.create_model(name, features_only=True, out_indices=(1, 3)).eval()
        shapes.append([f.shape for f in model(X)])
        infos.append(model.feature_info.get_dicts())
    assert shapes[0] == shapes[1] and infos[0] == infos[1]


def test_forward_intermediates(pair):
    (final, maps), (final_timm, maps_timm) = [m.forward_intermediates(X) for m in pair]
    assert [m.shape for m in maps] == [m.shape for m in maps_timm]
    assert torch.equal(final, pair[0].forward_features(X))


def test_reset_classifier_and_input_channels():
    model = timm.create_model('seresnet50_ascend', in_chans=1)
    model.reset_classifier(3)
    assert model(X[:, :1]).shape == (2, 3)
    model.reset_classifier(0)
    assert model(X[:, :1]).shape == (2, 2048)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('seresnet18_ascend', num_classes=10)
        model.set_grad_checkpointing(enable)
        model.train()(X).sum().backward()
        gradients.append(model.layer1[0].se.fc1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path():
    model = timm.create_model('seresnet18_ascend', num_classes=10, drop_path_rate=0.5)
    assert model.layer4[1].drop_path.drop_prob == 0.5
    model.train()
    assert not torch.equal(model(X), model(X))


def test_fx_and_export(pair):
    expected = pair[0](X)
    torch.testing.assert_close(torch.fx.symbolic_trace(pair[0])(X), expected)
    exported = torch.export.export(pair[0], (X,), dynamic_shapes=({0: torch.export.Dim('batch', min=2)},))
    torch.testing.assert_close(exported.module()(X), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exported.module()(torch.cat([X, X]))[2:], expected, atol=1e-5, rtol=1e-5)


def test_torchscript(pair):
    torch.testing.assert_close(torch.jit.script(pair[0])(X), pair[0](X), atol=1e-5, rtol=1e-5)
