"""`average`: the numbers by torch's AveragedModel and update_bn, what carries over, and what is refused."""
import json
import shutil

import pytest
import torch
from checkpoint_files import TINY, tiny_model
from conftest import run_here, train_flags
from timm.data import resolve_data_config
from torch.optim.swa_utils import AveragedModel, update_bn
from training import bundled_settings, load

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.data import loaders
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.engine import train as engine
from seresnet_timm.models.create import create_from_info
from seresnet_timm.models.info import ModelInfo

pytestmark = pytest.mark.preloaded


@pytest.fixture(scope='module')
def finished(few_digits, tmp_path_factory):
    """A training of four epochs, with a moving average of the weights."""
    output = tmp_path_factory.mktemp('average')
    engine.main(bundled_settings(*train_flags(
        few_digits, output, '--epochs', 4, '--model-ema', '--model-ema-decay', 0.5, '--crop-pct', 0.9)))
    return output / 'run'


def averaged_by_torch(paths, key='state_dict') -> AveragedModel:
    """Weights and buffers, in float64."""
    info = read_checkpoint(paths[0]).info
    average = None
    for path in paths:
        model = create_from_info(info, 'a test')
        model.load_state_dict(load(path)[key])
        average = average or AveragedModel(model.double(), use_buffers=True)
        average.update_parameters(model.double())
    return average


@pytest.mark.parametrize('flags, key, epochs', (
    (('--last', 3), 'state_dict', (1, 2, 3)), (('--use-ema',), 'state_dict_ema', (0, 1, 2, 3))))
def test_average_is_that_of_torch(finished, tmp_path, flags, key, epochs):
    out = tmp_path / 'a.pth.tar'
    result = run_here('average', finished, *flags, '--out', out)
    assert result.returncode == 0, result.stderr
    assert "BatchNorm's running statistics are averaged too" in result.stdout
    paths = [finished / f'checkpoint-{i}.pth.tar' for i in epochs]
    expected, found, newest = averaged_by_torch(paths, key).module.state_dict(), load(out), load(paths[-1])
    assert found['state_dict'].keys() == newest[key].keys()
    for name, value in found['state_dict'].items():
        assert value.dtype == newest[key][name].dtype
        if value.is_floating_point():  # torch computes a running mean, in another order
            torch.testing.assert_close(value, expected[name].float(), rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(value, newest[key][name])
    assert found['model_info'] == newest['model_info'] and len(found['model_info']['class_names']) == 10
    assert found['averaged']['epochs'] == list(epochs) and found['epoch'] == 3


def test_other_verbs_take_it(finished, few_digits, tmp_path):
    out = tmp_path / 'a.pth.tar'
    assert run_here('average', finished / 'checkpoint-2.pth.tar', finished / 'checkpoint-3.pth.tar', '--out', out
                    ).returncode == 0
    result = run_here('validate', '--data-dir', few_digits, '--checkpoint', out, '--device', 'cpu', '--workers', 0)
    assert result.returncode == 0 and json.loads(result.stdout.split('--result')[1])['crop_pct'] == 0.9
    assert run_here('predict', out, few_digits / 'val' / '3', '--workers', 0, '--device', 'cpu').returncode == 0
    assert run_here('convert', out, tmp_path / 'a.safetensors').returncode == 0
    assert run_here(*train_flags(few_digits, tmp_path, '--initial-checkpoint', out, '--dry-run')).returncode == 0


def test_statistics_are_those_of_torchs_update_bn(finished, few_digits, tmp_path):
    run, out = tmp_path / 'run', tmp_path / 'run' / 'averaged.pth.tar'
    shutil.copytree(finished, run)
    result = run_here('average', run, '--last', 2, '--data-dir', few_digits, '--device', 'cpu')
    assert result.returncode == 0, result.stderr
    assert 'recomputed from 96 training images' in result.stdout
    average = averaged_by_torch([run / f'checkpoint-{i}.pth.tar' for i in (2, 3)]).module.float()
    settings = bundled_settings(*train_flags(few_digits, tmp_path, '--crop-pct', 0.9))
    args = settings.namespace()
    args.distributed, args.rank = False, 0
    update_bn(loaders.train_loader(loaders.LoaderSetup(
        args, resolve_data_config(vars(args)), torch.device('cpu'), None, choose_decoder(args, 'auto')[0]))[0], average)
    found = load(out)['state_dict']
    for name, value in average.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert load(out)['averaged']['statistics'] == 'recomputed'
    before = load(run / 'checkpoint-3.pth.tar')['state_dict']
    assert not torch.equal(found['bn1.running_mean'], before['bn1.running_mean'])


def write(path, model, **info):
    values = dict(name='seresnet18_ascend', kwargs=dict(channels=[8, 8, 8, 16], stem_width=8), num_classes=3,
                  class_names=['a', 'b', 'c'], input_size=[3, 32, 32], mean=[0.5] * 3, std=[0.5] * 3)
    torch.save({'state_dict': model.state_dict(), 'model_info': ModelInfo(**{**values, **info}).to_dict()}, path)
    return path


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f'{i}.pth.tar', tiny_model(i)) for i in range(2)]


def broken(tmp_path, kind):
    model = tiny_model(2)
    if kind == 'nan':
        model.fc.bias.data[1] = float('nan')
    if kind in ('sparse', 'without values'):
        change = torch.Tensor.to_sparse if kind == 'sparse' else lambda t: t.to('meta')
        torch.save({**model.state_dict(), 'fc.weight': change(model.fc.weight.data)}, tmp_path / 'x')
        return tmp_path / 'x'
    if kind == 'outputs':
        import timm
        return write(tmp_path / 'x', timm.create_model('seresnet18_ascend', **{**TINY, 'num_classes': 4}),
                     num_classes=4, class_names=list('abcd'))
    if kind == 'text':
        (tmp_path / 'x').write_text('nothing')
        return tmp_path / 'x'
    info = {'classes': dict(class_names=['a', 'c', 'b']), 'mean': dict(mean=[0.4] * 3), 'same': {}}.get(kind, {})
    return write(tmp_path / 'x', tiny_model(0) if kind == 'same' else model, **info)


@pytest.mark.parametrize('kind, text', (
    ('nan', 'has weights that are not finite (NaN or infinity): fc.bias'),
    ('sparse', 'has weights that cannot be averaged: fc.weight (sparse)'),
    ('without values', 'has weights that cannot be averaged: fc.weight (without values)'),
    ('outputs', 'they differ in the number of classes (3, 4)'),
    ('classes', 'their classes differ (class 1 is b, c)'),
    ('mean', 'they differ in the mean ([0.5, 0.5, 0.5], [0.4, 0.4, 0.4])'),
    ('same', 'hold the same weights, which would count twice'),
    ('text', 'x'),
))
def test_files_that_do_not_go_together(files, tmp_path, kind, text):
    result = run_here('average', *files, broken(tmp_path, kind), '--out', tmp_path / 'a.pth.tar')
    assert result.returncode == 2 and text in result.stderr and 'Traceback' not in result.stderr, result.stderr
    assert not (tmp_path / 'a.pth.tar').exists()


def test_wrong_command_lines(finished, files, few_digits, tmp_path):
    (tmp_path / 'void').mkdir()
    other = tmp_path / 'other'
    shutil.copytree(few_digits / 'train' / '0', other / 'train' / 'zero')
    for argv, text in (
            ((files[0],), 'is one checkpoint: name two or more'),
            ((*files, '--last', 2), '--last counts the checkpoints of a run'),
            ((finished, '--last', 1), 'is too small: give at least 2'),
            ((finished, '--last', 9), 'has 4 checkpoints with a number (checkpoint-N.pth.tar), 9 are needed'),
            ((finished, files[0]), 'Name one folder of a run, or files'),
            ((*files, '--use-ema'), 'holds no moving average'),
            ((*files, '--out', files[1]), 'is the file that is read'),
            ((*files, '--out', tmp_path / 'a.safetensors'), 'seresnet-timm convert'),
            ((*files, '--data-dir', few_digits), 'has no run.json'),
            ((finished, '--data-dir', tmp_path / 'none'), 'none does not exist: check the path'),
            ((finished, '--data-dir', tmp_path / 'void'), 'is empty'),
            ((finished, '--data-dir', few_digits, '-b', 1, '--device', 'cpu'), 'A batch of 1 has a single value'),
            ((finished, '--data-dir', other), 'has other classes than the checkpoints'),
            ((finished, '--out', finished / 'last.pth.tar'), 'is a checkpoint of a run, which resumes from it'),
            ((finished, '--out', finished / 'checkpoint-0.pth.tar'), 'is the file that is read'),
            ((finished, '--out', finished / 'checkpoint-9.pth.tar'), 'would be taken for a checkpoint of the run'),
            ((finished, '--out', finished / '..' / 'run' / 'model_best.pth.tar'), 'is a checkpoint of a run'),
            ((tmp_path / 'none', files[0]), 'none')):
        result = run_here('average', *argv)
        assert result.returncode == 2 and text in result.stderr, (argv, result.stderr)


def test_flags_without_effect_are_told(files, tmp_path):
    result = run_here('average', *files, '--out', tmp_path / 'a.pth.tar', '-b', 4)
    assert result.returncode == 0 and 'have no effect without --data-dir' in result.stderr
