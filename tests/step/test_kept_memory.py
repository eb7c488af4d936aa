"""`--lean-se auto`: decided by what a step needs, and by the memory of the device."""
from argparse import Namespace

import pytest
from conftest import run_here

from seresnet_timm import device as devices
from seresnet_timm.launch import describe as describing
from seresnet_timm.launch.plan import make_plan
from seresnet_timm.step.kept_memory import decide_lean_se, step_gib

GIB = 2 ** 30


def flags(**more):
    return Namespace(**{**dict(model='seresnet50_ascend', batch_size=128, img_size=None, input_size=None), **more})


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
    assert step_gib(flags(model='resnet50')) is None and step_gib(flags(model='seresnet18_ascend.untrained')) < one / 3


def test_memory_decides():
    for memory, more, wanted, words in (
            (12 * GIB, {}, True, 'needs about 13.2 GiB without them, of 12.0'),
            (15 * GIB, {}, True, '13.2'), (16 * GIB, {}, False, '13.2 of 16.0 GiB'),
            (12 * GIB, dict(amp=True), False, 'of 12.0'), (GIB, dict(grad_checkpointing=True), False, 'saves more'),
            (GIB, dict(torchcompile='inductor'), False, '--torchcompile'), (None, {}, False, 'not known'),
            (GIB, dict(model='resnet50'), False, 'SE-ResNets')):
        found, reason = decide_lean_se(flags(**more), 'cuda', memory, fast=True)
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


def test_wrong_value_is_refused():
    result = run_here('train', '--lean-se', 'maybe', '--dry-run')
    assert result.returncode == 2 and '--lean-se' in result.stderr
