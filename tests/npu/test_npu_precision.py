"""fp16 on the NPU: O1 and O2 against the CPU's, and an overflow on one rank."""
import copy
import functools
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import train_flags
from timm.utils import NativeScaler
from training import load

from npu.ranks import npu_cli, run_ranks
from seresnet_timm.step import loss_scaler as devices_loss_scaler
from seresnet_timm.step.half_weights import use_half_weights

pytestmark = pytest.mark.preloaded


def gradients(model, device: str, amp: bool):
    """Logits, and gradients of the scaled loss as one vector, unscaled."""
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
    y = (torch.arange(8) % 4).to(device)
    with torch.autocast(device, torch.float16, enabled=amp):
        logits = model(x)
        loss = F.cross_entropy(logits, y)
    (loss * 128).backward()
    return logits.detach().float().cpu(), torch.cat([p.grad.flatten().cpu() for p in model.parameters()]) / 128


@pytest.mark.parametrize('level', ['O2', pytest.param('O1', marks=pytest.mark.slow)])
def test_agrees_with_the_cpus_half(level):
    """As near float32 as the CPU's own fp16 is, and as near to that: logits within 0.5 %, gradients within 1.2 times
    the distance from the CPU's fp16 to float32.

    The two round differently: the npu sums products in fp32 and rounds once, autocast keeps other layers in float32.
    """
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=4)
    float_logits, float_gradient = gradients(copy.deepcopy(model), 'cpu', amp=False)
    if level == 'O2':
        use_half_weights(model)
    (cpu_logits, cpu_gradient), (npu_logits, npu_gradient) = (
        gradients(copy.deepcopy(model).to(device), device, amp=True) for device in ('cpu', 'npu'))
    torch.testing.assert_close(npu_logits, cpu_logits, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(npu_logits, float_logits, rtol=5e-3, atol=5e-3)

    rounding = (cpu_gradient - float_gradient).norm()
    assert rounding < 0.15 * float_gradient.norm()
    assert (npu_gradient - cpu_gradient).norm() < 1.2 * rounding
    assert 0.1 * rounding < (npu_gradient - float_gradient).norm() < 1.2 * rounding


@pytest.mark.parametrize('loss_scale', [None, 512.])
def test_scaler_states_move(loss_scale):
    """The NPU's scaler goes on from timm's state and the other way round; a fixed scale is what is asked for."""
    npu = devices_loss_scaler.create_loss_scaler(torch.device('npu'), True, 'float16', loss_scale)[0]
    assert isinstance(npu, NativeScaler) and npu.state_dict_key == 'amp_scaler'
    saved_by_timm = torch.amp.GradScaler('cpu', init_scale=4096.).state_dict()
    npu.load_state_dict(saved_by_timm)
    assert npu.state_dict()['scale'] == (loss_scale or 4096.)
    npu.load_state_dict(npu.state_dict())
    timms = NativeScaler(device='cpu')
    timms.load_state_dict(npu.state_dict())
    assert timms.state_dict()['scale'] == (loss_scale or 4096.)


def test_loss_scale_is_in_the_checkpoint(few_digits, tmp_path):
    """O2 at a fixed scale on two ranks: near float32's losses, float32 in the checkpoint, HCCL has carried fp16."""
    from ascend_emulator import read_counters
    from recipe_runs import rows
    losses, sent = {}, {}
    for level in ('O0', 'O2'):
        (tmp_path / level).mkdir()
        result = npu_cli(*train_flags(
            few_digits, tmp_path / level, '--device', 'npu', '--nproc', 2, '--epochs', 1, '--lr', 1e-4, '--no-aug',
            '--val-split', 'val', '--amp-level', level, '--loss-scale', 128), counters=tmp_path / level)
        assert result.returncode == 0, result.stderr
        losses[level] = rows(tmp_path / level / 'run')[0]['train_loss']
        sent[level] = read_counters(tmp_path / level)[0]['collective_bytes']
    checkpoint = load(tmp_path / 'O2' / 'run' / 'last.pth.tar')
    assert {v.dtype for k, v in checkpoint['state_dict'].items() if 'num_batches' not in k} == {torch.float32}
    assert checkpoint['amp_scaler']['scale'] == 128
    assert losses['O2'] == pytest.approx(losses['O0'], rel=0.02) and losses['O2'] != losses['O0']
    assert sent['O2'] < 0.75 * sent['O0']


OVERFLOW = """
import logging, timm, seresnet_timm
from timm.task import ClassificationTask
from timm.utils import NativeScaler
from seresnet_timm.step.loss_scaler import create_loss_scaler
from seresnet_timm.ascend.setup import set_up
device = torch.device('npu', rank)
set_up(f'npu:{rank}')
logging.basicConfig()
SCALERS = {
    'dynamic': lambda: create_loss_scaler(device, True, 'float16')[0],
    'fixed': lambda: create_loss_scaler(device, True, 'float16', 64.)[0],
    'torch.amp': lambda: NativeScaler(device='npu'),
}
for name, create in SCALERS.items():
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=10, channels=(8, 16, 24, 32)).to(device)
    task = ClassificationTask(model, criterion=torch.nn.CrossEntropyLoss(), device=device)
    task.prepare_distributed(device_ids=[device], broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.)
    scaler = create()
    scaler.load_state_dict(dict(torch.amp.GradScaler('cpu', init_scale=64.).state_dict()))
    generator = torch.Generator().manual_seed(rank)
    weights, scales = [], []
    for step in range(5):
        x, y = torch.randn(4, 3, 32, 32, generator=generator), torch.randint(10, (4,), generator=generator)
        optimizer.zero_grad()
        with torch.autocast('npu', torch.float16):
            loss = task(x.to(device), y.to(device))['loss']
        if step == 2 and rank == 1:
            loss = loss * 1e7  # the logits' gradient in fp16 overflows, on this rank only
        scaler(loss, optimizer)
        weights.append([p.double().sum().item() for p in model.parameters()])
        scales.append(scaler.state_dict()['scale'])
    result[name] = dict(weights=weights, scales=scales)
"""


@pytest.fixture(scope='module')
def overflows(tmp_path_factory):
    return functools.lru_cache(lambda soc: run_ranks(OVERFLOW, 2, tmp_path_factory.mktemp(soc), soc=soc))


@pytest.mark.xdist_group('overflows')
@pytest.mark.parametrize('soc', ['Ascend910A', pytest.param('Ascend910B1', marks=pytest.mark.slow)])
@pytest.mark.parametrize('scaler', ['dynamic', 'fixed'])
def test_overflow_on_one_rank_skips_the_step_on_all(overflows, soc, scaler):
    """All ranks keep their weights in that step, and are bit-identical in every step."""
    first, second = (overflows(soc)[r][scaler] for r in (0, 1))
    assert first['weights'] == second['weights']
    changed = [a != b for a, b in zip(first['weights'], first['weights'][1:])]
    assert changed == [True, False, True, True]
    assert all(value == value for step in first['weights'] for value in step), 'NaN'
    half = [64., 64., 32., 32., 32.] if scaler == 'dynamic' else [64.] * 5
    assert first['scales'] == second['scales'] == half


@pytest.mark.slow
@pytest.mark.xdist_group('overflows')
def test_torchs_own_scaler_lets_ranks_diverge_on_a_910a(overflows):
    """Why ours is torch_npu's: the flag stays on the device that overflowed, and one rank alone skips the step."""
    first, second = (overflows('Ascend910A')[r]['torch.amp'] for r in (0, 1))
    assert first['weights'][:2] == second['weights'][:2]
    assert first['weights'][2] != second['weights'][2] == second['weights'][1]
    assert first['weights'][4] != second['weights'][4] and first['scales'] != second['scales']
    on_a2 = [overflows('Ascend910B1')[r]['torch.amp']['weights'] for r in (0, 1)]
    assert on_a2[0] == on_a2[1]  # Inf crosses the all-reduce


@pytest.mark.parametrize('scale', [
    pytest.param((), id='dynamic'), pytest.param(('--loss-scale', 64), id='fixed', marks=pytest.mark.slow)])
def test_overflow_flag_of_one_device_in_a_training(few_digits, tmp_path, scale):
    """From some step on, rank 1's 910A says that it overflows: both skip these steps."""
    result = npu_cli(
        *train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 2, '-b', 5, '--epochs', 1, '--amp', *scale),
        soc='Ascend910A', fault='overflow:rank=1:after=4000')
    assert result.returncode == 0, result.stderr
    state = load(tmp_path / 'run' / 'last.pth.tar')['amp_scaler']
    if scale:
        told = re.search(r'(\d+) steps? overflowed in fp16 at loss scale 64', result.stderr)
        assert told and 2 < int(told[1]) < 10 and state['scale'] == 64
        return
    logs = [result.stdout, ''.join(p.read_text() for p in (tmp_path / 'run' / 'logs').rglob('1/stdout.log'))]
    skipped = [log.count('Gradient overflow. Skipping step') for log in logs]
    assert skipped[0] == skipped[1] and 2 < skipped[0] < 10, skipped
    assert state['scale'] == 65536 / 2 ** skipped[0]


def test_fixed_scale_tells_of_overflows(few_digits, tmp_path):
    """A scale that overflows always: nothing but zero gradients, and a warning that says so."""
    result = npu_cli(*train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 1, '--epochs', 1, '--amp',
                                  '--loss-scale', 1e9))
    assert result.returncode == 0, result.stderr
    assert '6 steps overflowed in fp16 at loss scale 1e+09' in result.stderr


@pytest.mark.parametrize('flags', [('--amp', '--amp-dtype', 'bfloat16'), ('--model-dtype', 'bfloat16')])
def test_no_bfloat16_on_a_910a(few_digits, tmp_path, flags):
    result = npu_cli(*train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 1, *flags), soc='Ascend910A')
    assert result.returncode == 2
    assert 'Ascend910A does not compute in bfloat16: use --amp --amp-dtype float16' in result.stderr
    assert 'Traceback' not in result.stderr and not (tmp_path / 'run' / 'summary.csv').exists()
