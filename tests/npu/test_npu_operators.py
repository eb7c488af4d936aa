"""Nothing that the recipes compute on the NPU runs on the CPU.

torch_npu's own registrations decide: the emulator's router replaces the kernels that torch_npu has, and no others, and
all tests here run with TORCH_NPU_FALLBACK_CPU_DISABLE=1, with which torch_npu refuses what it has no kernel for.
"""
import json
import os
import sys
import warnings
from dataclasses import replace

import ascend_emulator
import npu_kernels
import preloaded
import pytest
import torch
from conftest import run_here, train_flags
from timm.optim import create_optimizer_v2, list_optimizers
from training import load

from npu.ranks import npu_cli
from seresnet_timm.ascend import operators, optim
from seresnet_timm.doctor import operator_steps
from seresnet_timm.doctor import operators as doctor_operators
from seresnet_timm.launch.recipes import all_recipes
from seresnet_timm.launch.trial import settings_to_measure, training_step

pytestmark = pytest.mark.preloaded


@pytest.mark.parametrize('name, kind, call', [
    ('aten::relu', 'kernel', lambda x: x.relu()),
    ('aten::isinf', 'composite', lambda x: x.isinf()),
    ('aten::addcmul_', 'kernel', lambda x: x.addcmul_(x, x)),
    ('aten::special_airy_ai', 'fallback', torch.special.airy_ai),
    ('aten::linalg_cholesky_ex', 'fallback', lambda x: torch.linalg.cholesky_ex(x)[0]),
    ('aten::special_i1e', 'fallback', torch.special.i1e),
    ('aten::frac_', 'kernel', lambda x: x.frac_()),
    ('aten::unfold', 'kernel', lambda x: x.unfold(0, 2, 1)),
])
def test_kinds_are_what_torch_npu_does(name, kind, call):
    """The look-up agrees with torch_npu itself, which refuses to compute on the CPU."""
    assert os.environ[operators.NO_FALLBACK] == '1'
    x = torch.randn(4, 4).to('npu')
    if kind == 'fallback':
        with pytest.raises(RuntimeError, match='CPU fallback is disabled'):
            call(x)
    else:
        call(x)
    assert operators.kind_of(name) == kind


def test_watch_finds_what_ascend_does_not_take():
    x = torch.ones(2, 3, 4, 4).to('npu')
    with operators.Watch() as watched:
        x.relu()
        torch.ones(3).relu()
        x.long().sum()
        x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).relu()
    assert 'aten::relu' in watched.operators
    assert set(watched.constraints) == {'int64 reduction', 'channels_last'}
    assert watched.constraints['int64 reduction'] == {'aten::sum'}
    assert 'aten::relu' in watched.constraints['channels_last']
    with operators.Watch() as watched:
        torch.ones(3).double().relu()
    assert not watched.operators


@pytest.fixture(scope='module')
def report():
    """What `doctor --operators --json` prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'executable', preloaded.python())
        for name, value in preloaded.environment(ascend_emulator.environment(devices=1)).items():
            patch.setenv(name, value)
        result = run_here('doctor', '--operators', '--json')
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    return json.loads(result.stdout)


@pytest.mark.xdist_group('operators')
def test_doctor_lists_them(report):
    found = report['operators']
    assert report['ok'] and not report['failures'] and not report['constraints'] and len(found) > 60
    assert found['aten::convolution']['kind'] == 'kernel' and 'training with O2' in found['aten::convolution']['steps']
    own = {name for name, entry in found.items() if entry['kind'] == 'kernel' and name.startswith('aten::')}
    assert own <= {f'aten::{name}' for name in ascend_emulator.OPERATORS}
    text = '\n'.join(doctor_operators.as_text(report, '2.13.0'))
    assert 'aten::convolution ' in text and ' 0 RUNS ON THE CPU' in text


def test_doctor_names_what_runs_on_the_cpu(monkeypatch):
    def steps(_device):
        yield 'a step', lambda: torch.special.airy_ai(torch.ones(3).to('npu'))
    monkeypatch.setattr(operator_steps, 'steps', steps)
    found = doctor_operators.watch()
    assert 'aten::special_airy_ai' in found['failures']['a step']

    def steps_that_warn(_device):  # as a torch_npu does that does not know the variable
        yield 'a step', lambda: warnings.warn(
            "CAUTION: The operator 'aten::special_airy_ai' is not currently supported on the NPU backend and will fall "
            'back to run on the CPU. This may have performance implications.', stacklevel=1)
    monkeypatch.setattr(operator_steps, 'steps', steps_that_warn)
    assert doctor_operators.watch()['operators'] == {
        'aten::special_airy_ai': {'kind': 'fallback', 'steps': ['a step']}}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group('operators')
def test_recipes_reach_no_more_than_doctor_looks_at(report):
    """The training step of every recipe, as the launcher plans it and the bundled train.py makes it."""
    known = set(report['operators'])
    assert known <= set(npu_kernels.reached()), 'record them for the test of other releases'
    for name, recipe in all_recipes().items():
        if recipe.verb == 'validate':
            continue
        model = 'seresnet50_ascend' if recipe.settings.get('pretrained') else 'seresnet18_ascend'  # one with weights
        small = ['--preset', name, '--model', model, '--model-kwargs', 'channels=(8,8,8,8)', '-b', '4',
                 '--img-size', '64', '--device', 'npu', '--nproc', '1', '--workers', '0']
        if recipe.settings.get('kd_model_name'):
            small += ['--kd-model-name', 'resnetv2_50x1_bit']
        settings = settings_to_measure('train', small, has_data=False)
        settings = replace(settings, args={**settings.args, 'pretrained': False})
        step = training_step(settings)
        with operators.Watch() as watched:
            step()
            step()
        assert watched.operators <= known, name
        assert not watched.constraints, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_optimizer_of_timm_computes_on_the_cpu():
    device = torch.device('npu')
    elsewhere = ('bnb', 'fused', 'kron')  # packages for CUDA, torch.compile
    for name in list_optimizers():
        if name.startswith(elsewhere):
            continue
        model = operator_steps.network(device, operator_steps.Step())
        optimizer = create_optimizer_v2(model, name, lr=0.01, weight_decay=1e-4)
        with operators.Watch() as watched:
            for _ in range(2):
                images, targets = operator_steps.batch(device)
                loss = torch.nn.functional.cross_entropy(model(images), targets)
                loss.backward(create_graph=getattr(optimizer, 'is_second_order', False))
                optimizer.step()
                optimizer.zero_grad()  # gradients of second-order optimizers hold their graph
        assert not [o for o in watched.operators if operators.kind_of(o) == 'fallback'], name


def test_fused_adam_is_refused(few_digits, tmp_path):
    flags = train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 1, '--epochs', 1, '--dry-run')
    result = run_here(*flags, '--opt', 'adam', '--opt-kwargs', 'fused=True')
    assert result.returncode == 2 and 'no kernel for aten::_fused_adam_. Leave fused out' in result.stderr
    assert run_here(*flags, '--opt', 'adamw', '--opt-kwargs', 'fused=True').returncode == 0
    assert optim.fused_without_kernel('lamb') is None


def test_the_lists_of_the_wheels_are_what_is_registered():
    """tests/golden/npu_kernels.json, with which other releases are looked at, against the dispatcher."""
    import torch_npu
    registered = {name for name in ascend_emulator.OPERATORS if 'npu' not in name}
    assert registered == npu_kernels.kernels()[npu_kernels.same_release(torch_npu.__version__)]


RUNS = {
    'train': lambda data, out: train_flags(data, out, '--device', 'npu', '--nproc', 1, '--epochs', 1),
    'O2': lambda data, out: train_flags(
        data, out, '--device', 'npu', '--nproc', 1, '--epochs', 1, '--amp-level', 'O2', '--loss-scale', 128),
}


@pytest.mark.parametrize('name', ['train', pytest.param('O2', marks=pytest.mark.slow)])
def test_a_run_then_validate_predict_and_export(name, few_digits, tmp_path):
    """The real verbs, in one process that is watched."""
    run, image = tmp_path / 'run', sorted((few_digits / 'val' / '3').iterdir())[0]
    with operators.Watch() as watched:
        for argv in (RUNS[name](few_digits, tmp_path),
                     ['validate', '--data-dir', few_digits, '--checkpoint', run / 'last.pth.tar', '--device', 'npu',
                      '--nproc', 1, '-b', 16, '--workers', 0],
                     ['predict', run, image, '--device', 'npu', '-j', 0]):
            result = run_here(*argv)
            assert result.returncode == 0, result.stdout + result.stderr
    before = ascend_emulator.counters()['operators']
    result = run_here('export', run, tmp_path / 'model.pt2')
    assert result.returncode == 0, result.stdout + result.stderr
    assert ascend_emulator.counters()['operators'] == before, 'an export computes on the CPU'
    assert load(run / 'last.pth.tar')['epoch'] == 0
    assert {'aten::convolution_backward', 'aten::topk'} <= watched.operators
    assert not watched.constraints
    assert not [n for n in watched.operators if operators.kind_of(n) == 'fallback']


@pytest.mark.slow
@pytest.mark.parametrize('flags', [('--opt', 'adamw'), ('--opt', 'lamb'), ('--mixup', 0.2, '--smoothing', 0.1),
                                   ('--bce-loss',), ('--clip-grad', 1.), ('--model-ema',), ('--reprob', 0.5),
                                   ('--drop-path', 0.1, '--drop', 0.1)])
def test_other_flags(flags, few_digits, tmp_path):
    result = npu_cli(*train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 1, '--epochs', 1, *flags))
    assert result.returncode == 0, result.stderr


def test_the_emulator_has_no_kernel_that_torch_npu_has_not():
    assert len(ascend_emulator.OPERATORS) > 1400 and 'relu' in ascend_emulator.OPERATORS
    assert 'special_airy_ai.out' not in ascend_emulator.OPERATORS
