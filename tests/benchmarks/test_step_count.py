"""`bench step --count`: launches, bytes and FLOPs of a training step, from operators whose figures are known."""
import json

import pytest
import step_count
import torch
import torch.nn as nn
import torch.nn.functional as F

from seresnet_timm.cli.main import main
from seresnet_timm.models.create import create_model


def test_counts_are_those_of_the_operators():
    x, w = torch.empty(8, 16, device='meta'), torch.empty(4, 16, device='meta')
    with step_count.Count() as count:
        y = x @ w.t()  # a product of 8 x 16 and 16 x 4
        y.add_(1)  # in place: read and written
        y.view(32).detach()  # no launch
        torch.empty(100, device='meta')
        z = torch.addcmul(y, y, x[:, :1].expand(8, 4), out=torch.empty(8, 4, device='meta'))
    assert dict(count.operators) == {'aten.mm.default': 1, 'aten.add_.Tensor': 1, 'aten.addcmul.out': 1}
    assert count.counts == step_count.Counts(
        launches=3, read=4 * (8 * 16 + 4 * 16 + 32 + 32 + 8), written=4 * 3 * z.numel(), flops=2 * 8 * 16 * 4,
        live=4 * (32 + 100))  # `empty(100)` is freed at once


def test_live_memory_is_the_most_at_once():
    x = torch.empty(1000, device='meta')
    with step_count.Count() as count:
        a = x + 1
        b = a.view(10, 100) * 2
        del a
        c = b.exp()
        c.mul_(2)
        del b, c
        (x + 1) + 1  # both at once, and freed
        x + 1
    assert count.counts.live == 2 * 4 * 1000


def test_a_convolution_and_its_gradients():
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False, device='meta')
    images = torch.empty(2, 3, 16, 16, device='meta', requires_grad=True)
    with step_count.Count() as count:
        conv(images).sum().backward()
    one = 2 * 2 * 8 * 16 * 16 * 3 * 9  # output values, and a multiplication and an addition for each input of one
    assert count.counts.flops == 3 * one


@pytest.mark.parametrize('model,launches', (('resnet50', 408), ('seresnet50', 648)))
def test_launches_of_timms_networks(model, launches):
    assert step_count.count_step(create_model(model, meta=True), 128, 224).counts.launches == launches


def test_launches_do_not_depend_on_the_device():
    network, images, target = create_model('seresnet18').train(), torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    with step_count.Count() as count:
        F.cross_entropy(network(images), target).backward()
    assert count.operators == step_count.count_step(create_model('seresnet18', meta=True), 128, 224).operators


def test_command_prints_the_counts(tmp_path, capsys):
    file = tmp_path / 'c.json'
    main(['bench', 'step', '--count', '--roofline', '--model', 'seresnet18_ascend', '--rival', 'resnet18',
          '--without-se', 'resnet18', '-b', '4', '--img-size', '64', '--json', str(file)])
    out, counts = capsys.readouterr().out, json.loads(file.read_text())['counts']
    assert len(counts) == 4 and 'computed from published peaks, not measured' in out
    for name, parts in counts.items():
        assert name in out and parts['optimizer']['launches'] < 10
        step, roof = parts['forward, loss, backward'], parts['roofline']['Ascend 910']
        assert step['launches'] == sum(parts['operators'].values()) and f'{step["launches"]:,}' in out
        # fp16 has half the bytes of float32, but for labels, counters and what BatchNorm keeps
        assert roof['memory_ms'] == pytest.approx(1e3 * (step['read'] + step['written']) / 2 / 1.2e12, rel=0.02)
        assert roof['images_per_second'] == pytest.approx(4e3 / max(roof['memory_ms'], roof['compute_ms']))


def test_flags_of_a_step_that_runs_are_refused(capsys):
    for flags, words in ((['--amp'], 'leave out --amp'), (['--rounds', '3', '--profile'], '--profile and --rounds'),
                         (['-b', '0'], 'at least 1')):
        with pytest.raises(SystemExit) as e:
            main(['bench', 'step', '--count', *flags])
        assert e.value.code == 2 and words in capsys.readouterr().err
