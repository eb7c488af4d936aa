"""`--graph`: what is captured, what is said where it is not, and that a capture leaves the numbers as they are.

No GPU or NPU is needed: a stand-in for `make_graphed_callables` runs the passes that the real one runs, and replays the
network on the tensors of the capture.
"""
import argparse
import copy
import logging
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from conftest import run_here, train_flags
from timm.models import create_model
from training import valid_record

import seresnet_timm  # noqa: F401  (registers the models)
from seresnet_timm.launch import describe as describing
from seresnet_timm.launch.plan import make_plan
from seresnet_timm.step import graph

LOGGER = logging.getLogger('test_graph')
FLAGS = dict(grad_accum_steps=1, kd_model_name=None, grad_checkpointing=False, sync_bn=False, distributed=False, drop=0,
             drop_path=None, drop_connect=None, drop_block=None)


def why(device='cuda', module=torch.cuda, bundled=True, half_weights=False, **flags):
    return graph.why_not_captured(argparse.Namespace(**{**FLAGS, **flags}), device, module, bundled, half_weights)


def test_where_it_is_captured_and_where_not():
    assert why() is None and why(sync_bn=True) is None and why(distributed=True) is None and why('npu:1') is None
    for reason, words in (
            (why('cpu', None), 'CPU'), (why(bundled=False), '--scripts bundled'), (why('npu', None), 'no npu here'),
            (why('npu', object()), 'has no torch.npu.make_graphed_callables'), (why(grad_accum_steps=2), 'gradients'),
            (why(half_weights=True), '--amp-level O2'), (why(grad_checkpointing=True), '--grad-checkpointing'),
            (why(sync_bn=True, distributed=True), '--sync-bn'), (why(drop_path=0.1), '--drop-path'),
            (why(drop=0.2), '--drop '),
            (why(train_img_sizes=[128, 224]), '--train-img-sizes'), (why(kd_model_name='resnet50'), '--kd-model-name')):
        assert words in reason and not reason.endswith('.')


def test_plan_says_why_not_and_refuses_what_contradicts_it(few_digits):
    settings = make_plan('train', ['--data-dir', 'D', '--model', 'seresnet18_ascend', '--device', 'cpu', '--scripts',
                                   'bundled', '--dry-run', '--graph']).settings
    assert not settings.graph
    assert dict(describing.step(settings))['graph'] == '--graph is not used: a CPU has no graphs of kernels'
    data = ('--data-dir', few_digits, '--model', 'seresnet18_ascend', '--num-classes', '10', '--img-size', '32',
            '--device', 'cpu', '--dry-run', '--graph')
    for verb, flags, words in (
            ('train', ['--torchcompile'], 'leave one out (--torchcompile-mode reduce-overhead'),
            ('train', ['--fast-step', 'off'], 'contradict each other'),
            ('validate', ['--pretrained'], '--graph is a flag of train')):
        result = run_here(verb, *data, *flags)
        assert result.returncode == 2 and words in result.stderr, result.stderr


def test_training_that_falls_back_is_the_same(few_digits, tmp_path):
    rows = []
    for name, more in (('a', []), ('b', ['--graph'])):
        result = run_here(*train_flags(few_digits, tmp_path / name, '--epochs', 1, '-b', 20, *more))
        assert result.returncode == 0, result.stderr
        rows.append((tmp_path / name / 'run' / 'summary.csv').read_bytes())
    assert rows[0] == rows[1] and 'a CPU has no graphs of kernels' in result.stderr
    settings = valid_record(tmp_path / 'b' / 'run')['settings']
    assert settings['graph'] is False and 'CPU' in settings['reasons']['graph']


# --- the capture ------------------------------------------------------------------------------------------------------

class Device:
    """What `make_graphed_callables` of a device does with a network, with what it was asked for."""

    def __init__(self):
        self.replays = 0

    def make_graphed_callables(self, model, sample):
        static, eager, was_training = sample[0].clone(), model.forward, model.training
        for _ in range(4):  # three passes that warm up, and the capture
            out = eager(static)
            torch.autograd.grad(out, [p for p in model.parameters() if p.requires_grad], torch.ones_like(out))

        def forward(x):
            if model.training != was_training:
                return eager(x)
            self.replays += 1
            static.copy_(x)  # fails for another shape, or is expanded
            return eager(static)
        model.forward = forward
        return model


@pytest.fixture
def device(monkeypatch):
    found = Device()
    monkeypatch.setattr(torch.cpu, 'make_graphed_callables', found.make_graphed_callables, raising=False)
    return found


def network():
    torch.manual_seed(0)
    return create_model('seresnet18_ascend', num_classes=5, channels=(8, 8, 16, 16)).train()


def train(model):
    """Losses of steps, the last on fewer images, with an evaluation between them; weights and buffers."""
    generator, losses = torch.Generator().manual_seed(1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for number in (4, 4, 0, 4, 2, 4, 3):
        x = torch.randn(number or 4, 3, 32, 32, generator=generator)
        if not number:
            with torch.no_grad():
                losses.append(model.eval()(x).sum().item())
            model.train()
            continue
        loss = F.cross_entropy(model(x), torch.arange(number))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def test_a_captured_training_is_the_same(device):
    plain, captured = network(), network()
    assert graph.capture(captured, torch.zeros(4, 3, 32, 32), nullcontext(), LOGGER) is None
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), captured.state_dict().values()))
    (losses, state), (others, other) = train(plain), train(captured)
    assert losses == others and state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert device.replays == 4  # not the evaluation, and not the steps on fewer images


def test_a_capture_that_fails_leaves_the_training_as_it_is(monkeypatch, caplog):
    def fails(model, sample):
        model(sample[0])
        model.forward = None
        raise RuntimeError('operation not permitted when stream is capturing\nmore')
    monkeypatch.setattr(torch.cpu, 'make_graphed_callables', fails, raising=False)
    plain, other = network(), network()
    expected = train(copy.deepcopy(plain))[0]
    assert graph.capture(other, torch.zeros(4, 3, 32, 32), nullcontext(), LOGGER)
    assert 'could not be captured (operation not permitted when stream is capturing)' in caplog.text
    assert train(other)[0] == expected


def test_running_out_of_memory_is_an_error(monkeypatch):
    def fails(model, sample):
        raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(torch.cpu, 'make_graphed_callables', fails, raising=False)
    with pytest.raises(torch.OutOfMemoryError):
        graph.capture(network(), torch.zeros(4, 3, 32, 32), nullcontext(), LOGGER)
