"""Exported models give the model's outputs in another runtime; what does not is never written."""
import argparse
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from seresnet_timm import cli
from seresnet_timm.errors import RunError
from seresnet_timm.inference.export import export
from seresnet_timm.inference.load import LoadedModel
from seresnet_timm.models.info import ModelInfo


def random_model(num_classes: int = 5) -> torch.nn.Module:
    """A network whose BatchNorms have statistics of their own, as after training."""
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=num_classes)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(m.weight, 0.5, 1)
            torch.nn.init.normal_(m.bias, 0, 0.2)
    return model.eval()


@pytest.fixture(scope='module')
def model():
    return random_model()


@pytest.fixture(scope='module')
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('run') / 'last.pth.tar'
    args = argparse.Namespace(model='seresnet18_ascend', img_size=64, crop_pct=1.0)
    ema = {k: v * 2 if k == 'fc.weight' else v for k, v in model.state_dict().items()}
    torch.save({'state_dict': model.state_dict(), 'state_dict_ema': ema, 'epoch': 3, 'args': args,
                'arch': 'seresnet18_ascend'}, path)
    return path


def failure(capsys, *argv) -> tuple:
    """Exit code and message of a command that fails."""
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in argv])
    return e.value.code, capsys.readouterr().err


def test_onnx(checkpoint, model, tmp_path, capsys):
    out = tmp_path / 'model.onnx'
    cli.main(['export', str(checkpoint), str(out), '--soc', '310P3', '--atc-batch-size', '8', '1'])
    printed = capsys.readouterr()
    assert (f'atc --model={out} --framework=5 --output={tmp_path}/model --soc_version=Ascend310P3 --input_format=NCHW '
            '--input_shape=input:-1,3,64,64 --dynamic_batch_size=1,8') in printed.out.splitlines()
    assert '64 x 64 (bilinear, crop 1, center)' in printed.err and 'epoch 3' in printed.err
    assert [p.name for p in tmp_path.iterdir()] == ['model.onnx']  # no half-written or external data beside it

    proto = onnx.load(out)
    assert [(o.domain, o.version) for o in proto.opset_import] == [('', 13)]
    properties = {p.key: p.value for p in proto.metadata_props}
    preprocessing = json.loads(properties['preprocessing'])
    assert properties['model'] == 'seresnet18_ascend' and preprocessing['input_size'] == [3, 64, 64]
    assert preprocessing['mean'] == pytest.approx(IMAGENET_DEFAULT_MEAN)
    assert preprocessing['std'] == pytest.approx(IMAGENET_DEFAULT_STD)
    info = ModelInfo.from_dict(json.loads(properties['model_info']), str(out))
    assert (info.name, info.num_classes, info.input_size, info.crop_pct) == ('seresnet18_ascend', 5, [3, 64, 64], 1)

    session = onnxruntime.InferenceSession(out)
    for batch_size in (1, 3, 8):
        x = torch.randn(batch_size, 3, 64, 64)
        with torch.inference_mode():
            expected = model(x).numpy()
        actual, = session.run(['logits'], {'input': x.numpy()})
        assert actual.shape == (batch_size, 5)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_pixels_as_input(checkpoint, model, tmp_path, capsys):
    out = tmp_path / 'model.onnx'
    cli.main(['export', str(checkpoint), str(out), '--uint8', '--opset', '11'])
    assert 'opset 11' in capsys.readouterr().out
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    with torch.inference_mode():
        expected = model((pixels / 255 - mean) / std).numpy()
    actual, = onnxruntime.InferenceSession(out).run(['logits'], {'input': pixels.numpy()})
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_program_with_the_moving_average(checkpoint, model, tmp_path, capsys):
    out = tmp_path / 'model.pt2'
    cli.main(['export', str(checkpoint), str(out), '--use-ema'])
    assert 'atc --' not in capsys.readouterr().out
    files = {'metadata.json': ''}
    module = torch.export.load(out, extra_files=files).module()
    assert json.loads(files['metadata.json'])['num_classes'] == 5
    for batch_size in (1, 4):
        x = torch.randn(batch_size, 3, 64, 64)
        with torch.inference_mode():
            features = model.forward_head(model.forward_features(x), pre_logits=True)
            expected = torch.nn.functional.linear(features, 2 * model.fc.weight, model.fc.bias)
            np.testing.assert_allclose(module(x).numpy(), expected.numpy(), atol=1e-4)


class KnowsItsBatch(torch.nn.Module):
    """What an exporter gets wrong: a decision of Python's on the batch, which it sees once."""
    num_classes = 3
    pretrained_cfg: dict = {}

    def forward(self, x):
        x = x.mean(dim=(2, 3))
        return x if x.shape[0] == 2 else x + 1e-3


class WritesNaN(torch.nn.Module):
    num_classes = 3
    pretrained_cfg: dict = {}

    def forward(self, x):
        return x.mean(dim=(2, 3)) / torch.zeros(3)  # inf of another sign by runtime, or NaN: nothing to compare


@pytest.mark.parametrize('network, why', (
    (KnowsItsBatch(), 'with a batch of 1 its outputs are up to'),
    (WritesNaN(), 'the model has outputs that are not finite')), ids=('wrong', 'not a number'))
@pytest.mark.parametrize('before', (None, b'an earlier model'), ids=('new', 'existing'))
def test_wrong_outputs_are_not_written(network, why, before, tmp_path):
    out = tmp_path / 'model.onnx'
    if before:
        out.write_bytes(before)
    info = ModelInfo(
        name='x', num_classes=3, input_size=[3, 8, 8], crop_pct=1.0, crop_mode='center', interpolation='bilinear',
        mean=list(IMAGENET_DEFAULT_MEAN), std=list(IMAGENET_DEFAULT_STD))
    with pytest.raises(RunError, match=f'was not written: {why}'):
        export(LoadedModel(network, info, 'made here'), str(out))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_what_needs_no_model_is_refused_before_one_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    none = tmp_path / 'no.pth.tar'
    for argv, message in ((('export', none, tmp_path / 'm.bin'), 'name it .onnx or .pt2'),
                          (('export', none, tmp_path / 'm.onnx'), 'ONNX needs onnxruntime'),
                          (('convert', none, tmp_path / 'm.safetensors', '--to', 'modelzoo'), 'has the wrong ending'),
                          (('convert', none, tmp_path / 'm.pth', '--to', 'safetensors'), 'has the wrong ending')):
        code, text = failure(capsys, *argv)
        assert code == 2 and message in text and 'no.pth.tar does not exist' in text and '2 problems' in text, text


def test_missing_package(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    code, text = failure(capsys, 'export', checkpoint, tmp_path / 'm.onnx')
    assert code == 2 and 'pip install "seresnet-timm[export]"' in text and not list(tmp_path.iterdir())


def test_bad_requests(checkpoint, tmp_path, capsys):
    for argv, message in (
            (('export', checkpoint, tmp_path / 'm.bin'), 'name it .onnx or .pt2'),
            (('export', checkpoint, tmp_path / 'no' / 'm.onnx'), 'does not exist'),
            (('export', checkpoint, tmp_path, '--format', 'onnx'), 'is a folder, not a file'),
            (('export', checkpoint, tmp_path / 'm.onnx', '--soc', 'H100'), 'Ascend310P3'),
            (('export', checkpoint, tmp_path / 'm.onnx', '--opset', '18'), '--opset 18 is too large: give 11 to 15'),
            (('export', checkpoint, tmp_path / 'm.onnx', '--num-classes', '7'), '5 classes'),
            (('export', 'seresnet18_ascend', tmp_path / 'm.onnx'), 'There are no pretrained weights'),
            (('export', 'seresnet50_ascent', tmp_path / 'm.onnx'), 'did you mean seresnet50_ascend?'),
            (('export', tmp_path / 'no.pth.tar', tmp_path / 'm.onnx'), 'no.pth.tar does not exist'),
            (('export', tmp_path, tmp_path / 'm.onnx'), 'neither the folder of a run'),
    ):
        code, text = failure(capsys, *argv)
        assert code == 2 and message in text and text.count('error:') == 1, text
        assert not list(tmp_path.iterdir())
