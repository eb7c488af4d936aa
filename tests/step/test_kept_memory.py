"""`--lean-se auto`: decided by what a step needs, and by the memory of the device."""
import importlib
import json
from argparse import Namespace
from contextlib import ExitStack

import pytest
from conftest import run_here

from seresnet_timm import device as devices
from seresnet_timm.data.scheduled import most_pixels
from seresnet_timm.launch import describe as describing
from seresnet_timm.launch.downloads import pull_model
from seresnet_timm.launch.plan import make_plan
from seresnet_timm.step import kept_memory

GIB = 2 ** 30


def flags(**more):
    return Namespace(**{
        **dict(batch_size=128, img_size=None, input_size=None, train_img_sizes=None, train_batch_sizes=None), **more})


def step_gib(args, model='seresnet50_ascend'):
    return kept_memory.step_gib(args, model, most_pixels(args))


def decide_lean_se(args, *device_and_memory, model='seresnet50_ascend', fast=True):
    return kept_memory.decide_lean_se(args, model, most_pixels(args), *device_and_memory, fast)


def test_step_needs_what_was_measured():
    """Peak of a step on 16 images of 224 pixels with timm's layers, see RESULTS.md: 1,890 MiB."""
    assert step_gib(flags(batch_size=16)) * 1024 == pytest.approx(1890, rel=0.06)
    one = step_gib(flags())
    assert step_gib(flags(img_size=112)) < 0.3 * one and step_gib(flags(amp=True)) < 0.6 * one
    assert step_gib(flags(input_size=[3, 224, 448])) == pytest.approx(2 * one, rel=0.03)
    assert step_gib(flags(model_ema=True)) - one == pytest.approx(4 * 28.1e6 / GIB, rel=0.01)
    sizes = flags(train_img_sizes=[128, 224, 288], train_batch_sizes=[384, 128, 64])
    assert step_gib(sizes) == pytest.approx(one, rel=0.01)
    assert step_gib(flags(train_img_sizes=[160, 448])) == pytest.approx(4 * one, rel=0.05)
    assert step_gib(flags(), 'resnet50') is None and step_gib(flags(), 'seresnet18_ascend') < one / 3


def test_memory_decides():
    for memory, more, wanted, words in (
            (12 * GIB, {}, True, 'needs about 13.2 GiB without them, of 12.0'),
            (15 * GIB, {}, True, '13.2'), (16 * GIB, {}, False, '13.2 of 16.0 GiB'),
            (12 * GIB, dict(amp=True), False, 'of 12.0'), (GIB, dict(grad_checkpointing=True), False, 'saves more'),
            (GIB, dict(torchcompile='inductor'), False, '--torchcompile'), (None, {}, False, 'not known'),
            (GIB, dict(model='resnet50'), False, 'SE-ResNets')):
        model = more.pop('model', 'seresnet50_ascend')
        found, reason = decide_lean_se(flags(**more), 'cuda', memory, model=model)
        assert found is wanted and words in reason, (more, reason)
    assert decide_lean_se(flags(), 'cpu', GIB, fast=False) == (False, '--fast-step off')


def test_plan_decides_and_says_why(monkeypatch):
    def plan(*more):
        settings = make_plan('train', [
            '--data-dir', 'D', '--model', 'seresnet50_ascend', '--device', 'cpu', '--dry-run', '--scripts', 'bundled',
            *more]).settings
        return settings.lean_se, settings.block_end, dict(describing.step(settings))['step']
    monkeypatch.setattr(devices, 'total_memory', lambda device: 32 * GIB)
    assert plan()[:2] == ('off', 'light') and 'in few kernels (a step needs about 13.2 of 32.0 GiB)' in plan()[2]
    several = plan('--nproc', '4')
    assert several[:2] == ('on', 'lean') and 'memory-saving SE blocks (a step needs about 13.2 GiB' in several[2]
    assert plan('--nproc', '4', '--lean-se', 'off')[:2] == ('off', 'light')
    assert plan('--lean-se', 'on')[:2] == ('on', 'lean')
    assert plan('--fast-step', 'off')[:2] == ('off', 'timm') and 'SE blocks' not in plan('--fast-step', 'off')[2]
    assert plan('--fast-step', 'off', '--lean-se', 'on')[:2] == ('on', 'lean')


@pytest.mark.parametrize('source', ('local-dir', 'hf-hub'))
def test_network_of_a_folder_decides(tmp_path, monkeypatch, source):
    """Its architecture is in the folder; that of a Hub model is known once it was pulled."""
    (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'seresnet50_ascend', 'num_classes': 10}))
    monkeypatch.setattr(devices, 'total_memory', lambda device: 8 * GIB)
    monkeypatch.setattr(
        importlib.import_module('seresnet_timm.hub.pull'), 'pull',
        lambda *a, **kw: Namespace(folder=tmp_path, commit='c' * 40))
    name = f'{source}:{tmp_path if source == "local-dir" else "org/name"}'

    def settings(*more):
        argv = ['--data-dir', 'D', '--model', name, '--device', 'cpu', '--scripts', 'bundled', *more]
        plan = make_plan('train', argv)
        with ExitStack() as stack:
            return pull_model(plan.settings, plan, stack, lambda: None)
    found = settings()
    assert found.lean_se == 'on' and 'needs about 13.2 GiB' in found.reasons['lean_se']
    assert found.args['channels_last'] and 'native layout' in found.reasons['channels_last']
    assert found.block_end == 'lean' and settings('-b', '16').block_end == 'light'
    named = settings('--lean-se', 'off', '--channels-last')
    assert named.lean_se == 'off' and named.args['channels_last'] and 'channels_last' not in named.reasons
    assert settings('--fast-step', 'off').lean_se == 'off'


def test_wrong_value_is_refused():
    result = run_here('train', '--lean-se', 'maybe', '--dry-run')
    assert result.returncode == 2 and '--lean-se' in result.stderr
