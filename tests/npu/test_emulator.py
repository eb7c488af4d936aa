"""The emulator itself: operators as on the CPU, collectives by formula, chips that differ, counters, refusals."""
import os
import subprocess

import ascend_emulator
import preloaded
import pytest
import timm
import torch
import torch.nn.functional as F

import seresnet_timm  # noqa: F401
from npu.ranks import run_ranks

G = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, 9, 9, generator=G)
W = torch.randn(8, 3, 3, 3, generator=G)
Y = torch.randn(4, 10, generator=G)
LABELS = torch.tensor([1, 0, 9, 3])

OPERATORS = {
    'convolution': lambda x, w, y, t: F.conv2d(x, w, stride=2, padding=1, groups=2),
    'transposed convolution': lambda x, w, y, t: F.conv_transpose2d(x, w.permute(1, 0, 2, 3).repeat(2, 1, 1, 1)),
    'pooling': lambda x, w, y, t: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1),
    'global pooling': lambda x, w, y, t: F.adaptive_avg_pool2d(x, 1) * x.mean((2, 3), keepdim=True),
    'batch norm': lambda x, w, y, t: F.batch_norm(x, None, None, training=True),
    'linear, matmul': lambda x, w, y, t: F.linear(y, y) @ y,
    'batched matmul': lambda x, w, y, t: torch.matmul(x, x.transpose(2, 3)),
    'activations': lambda x, w, y, t: F.relu(x) * x.sigmoid() + F.silu(x) + F.gelu(x) + F.hardswish(x),
    'cross entropy': lambda x, w, y, t: F.cross_entropy(y, t, label_smoothing=0.1, reduction='none'),
    'binary cross entropy': lambda x, w, y, t: F.binary_cross_entropy_with_logits(y, torch.zeros_like(y)),
    'Kullback-Leibler divergence': lambda x, w, y, t: sum(
        F.kl_div(y.log_softmax(1), target.detach(), reduction=reduction, log_target=is_log)
        for reduction in ('batchmean', 'sum', 'mean')
        for target, is_log in ((y.flip(0).log_softmax(1), True), (y.flip(0).softmax(1), False))),
    'indexing': lambda x, w, y, t: x[:, 1:5:2, [0, 3]] + torch.gather(y, 1, t[:, None]).sum() + y[y > 0].sum(),
    'concatenation': lambda x, w, y, t: torch.cat([x, x.flip(3)], 1).roll(1, 0).permute(0, 2, 3, 1).contiguous(),
    'interpolation': lambda x, w, y, t: F.interpolate(x, scale_factor=2., mode='bilinear'),
    'reductions': lambda x, w, y, t: x.amax((2, 3)) + x.std((2, 3)) + x.cumsum(1).sum((2, 3)) + x.norm(),
    'softmax': lambda x, w, y, t: y.log_softmax(1) * y.softmax(0) + torch.where(y > 0, y, y.exp()).clamp(-1, 2),
    'layer norm': lambda x, w, y, t: F.layer_norm(y, (10,)) + F.group_norm(x, 2)[:, 0, 0, :1],
}


@pytest.mark.parametrize('name', OPERATORS)
def test_operators_and_gradients_equal_the_cpus(name):
    results = {}
    for device in ('cpu', 'npu'):
        inputs = [t.detach().to(device).requires_grad_(t.is_floating_point()) for t in (X, W, Y, LABELS)]
        output = OPERATORS[name](*inputs)
        assert output.device.type == device
        (output * torch.linspace(-1, 1, output.numel()).view(output.shape).to(device)).sum().backward()
        results[device] = [output] + [t.grad for t in inputs if t.grad is not None]
    assert len(results['npu']) > 1
    for on_cpu, on_npu in zip(results['cpu'], results['npu']):
        # torch_npu has its own way to derive some, e.g. global pooling: the last bit may differ
        torch.testing.assert_close(on_npu.cpu(), on_cpu, rtol=2e-6, atol=0)


def test_in_place_out_and_views():
    x = torch.arange(12., device='npu').view(3, 4)
    view = x[1:, ::2]
    view.mul_(10)
    torch.add(x, 1, out=(out := torch.empty(0, device='npu')))
    values, indices = x.topk(2, dim=1)
    assert x.cpu().tolist() == [[0, 1, 2, 3], [40, 5, 60, 7], [80, 9, 100, 11]]
    assert torch.equal(out.cpu(), x.cpu() + 1) and indices.tolist() == [[3, 2], [2, 0], [2, 0]]
    assert view.data_ptr() == x[1:].data_ptr() and values[1].tolist() == [60, 40]


@pytest.mark.parametrize('arch', ['seresnet18_ascend', 'seresnet50_ascend'])
def test_a_step_of_the_model_equals_the_cpus(arch):
    weights = {}
    for device in ('cpu', 'npu'):
        torch.manual_seed(0)
        model = timm.create_model(arch, num_classes=10).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
        for _ in range(2):
            x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
            optimizer.zero_grad()
            F.cross_entropy(model(x), LABELS.to(device)).backward()
            optimizer.step()
        weights[device] = {k: v.cpu() for k, v in model.state_dict().items()}
    for k, v in weights['cpu'].items():
        assert torch.equal(v, weights['npu'][k]), k


def test_half_accumulates_in_float():
    """As the cube unit does: fp16 products summed in fp32, rounded once."""
    x, w = torch.randn(1, 512, 5, 5, generator=G).half(), torch.randn(4, 512, 3, 3, generator=G).half()
    expected = F.conv2d(x.float(), w.float()).half()
    assert torch.equal(F.conv2d(x.npu(), w.npu()).cpu(), expected)


def test_random_numbers_follow_the_npus_generator():
    torch.manual_seed(3)
    first = torch.rand(8, device='npu')
    state = torch.npu.get_rng_state()
    second = torch.randn(8, device='npu')
    cpu = torch.rand(2)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.randn(8, device='npu'), second) and not torch.equal(first, second)
    torch.npu.manual_seed_all(3)
    assert torch.equal(torch.rand(8, device='npu'), first)
    torch.manual_seed(3)
    torch.rand(100, device='npu')
    assert torch.equal(torch.rand(2), cpu), 'the CPU generator was touched'


def test_counters():
    x = torch.ones(4, device='npu')
    before = ascend_emulator.counters()
    y = x + 1
    y += 1
    after = ascend_emulator.counters()
    assert after['operators'] - before['operators'] == 2 and after['host_waits'] == before['host_waits']
    y.sum().item()
    torch.npu.synchronize()
    y.nonzero()
    torch.npu.empty_cache()
    large = [torch.empty(64 << 20, device='npu') for _ in range(2)]  # too large for torch_npu to take from one block
    now = ascend_emulator.counters()
    assert now['allocations'] - after['allocations'] == len(large)
    assert now['host_waits'] - after['host_waits'] >= 3
    assert now['copies_to_host'] > after['copies_to_host']


def test_what_is_not_emulated_fails_by_its_name():
    import torch_npu
    with pytest.raises(RuntimeError, match='FastGelu'):
        torch_npu.fast_gelu(torch.ones(2, device='npu'))


CHIP = """
import torch, torch_npu, ascend_emulator
big = torch.full((4,), 60000., device='npu').half()
total = big + big
print(torch.npu.get_device_name(), torch.npu.device_count(), total[0].item(), (total - total)[0].item(),
      int(torch_npu.npu_get_float_status(torch.zeros(8, device='npu'))[0].item()),
      int(torch_npu.npu.utils.is_support_inf_nan()), int(torch.npu.is_bf16_supported()))
try:
    print('bf16', (big.bfloat16() + 1).dtype)
except RuntimeError as e:
    print(e)
"""


@pytest.mark.parametrize('soc, expected, bf16', [
    ('Ascend910A', 'Ascend910A 2 65504.0 0.0 1 0 0', 'bfloat16 is not supported by this chip'),
    ('Ascend910B1', 'Ascend910B1 2 inf nan 0 1 1', 'bf16 torch.bfloat16')])
def test_chips_differ(soc, expected, bf16, tmp_path):
    """The 910A saturates, tells so by a flag, and has no bfloat16; the A2 computes with Inf and NaN."""
    (tmp_path / 'chip.py').write_text(CHIP)
    result = subprocess.run(
        [preloaded.python(), '-m', 'chip'], env={**os.environ, **ascend_emulator.environment(soc=soc, devices=2)},
        cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[0] == expected, result.stderr
    assert bf16 in result.stdout


COLLECTIVES = """
import time
n = dist.get_world_size()
before = counters()
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.int8):
    values = {}
    for name, op in (('sum', dist.ReduceOp.SUM), ('max', dist.ReduceOp.MAX), ('min', dist.ReduceOp.MIN),
                     ('prod', dist.ReduceOp.PRODUCT)):
        t = torch.tensor([rank + 1, 2, -rank], device='npu').to(dtype)
        dist.all_reduce(t, op)
        values[name] = t.tolist()
    result[str(dtype)] = values
large = torch.arange(3_000_000., device='npu') * (rank + 1)  # three slots of the shared memory
dist.all_reduce(large)
result['large'] = bool((large == torch.arange(3_000_000., device='npu') * (n * (n + 1) / 2)).all())
t = torch.full((5,), float(rank), device='npu')
dist.broadcast(t, 1)
result['broadcast'] = t.tolist()
gathered = [torch.empty(2, device='npu') for _ in range(n)]
dist.all_gather(gathered, torch.tensor([rank, 10. * rank], device='npu'))
result['all_gather'] = [g.tolist() for g in gathered]
piece = torch.empty(2, device='npu')
dist.reduce_scatter_tensor(piece, torch.arange(2. * n, device='npu') + rank)
result['reduce_scatter'] = piece.tolist()
objects = [None] * n
dist.all_gather_object(objects, {'rank': rank})
result['objects'] = objects
arrived = f'{os.path.dirname(__file__)}/last'
if rank == n - 1:
    time.sleep(0.5)
    open(arrived, 'w').close()
dist.barrier()
result['barrier'] = os.path.exists(arrived)
try:
    dist.all_reduce(torch.ones(1, dtype=torch.float64, device='npu'))
except RuntimeError as e:
    result['float64'] = str(e)
result['counts'] = {k: v - before[k] for k, v in counters().items()}
"""


def test_collectives(tmp_path):
    n = 3
    for rank, result in run_ranks(COLLECTIVES, n, tmp_path).items():
        for dtype in ('float32', 'float16', 'bfloat16', 'int32', 'int64', 'int8'):
            assert result[f'torch.{dtype}'] == {
                'sum': [6, 6, -3], 'max': [3, 2, 0], 'min': [1, 2, -2], 'prod': [6, 8, 0]}, dtype
        assert result['large'] and result['broadcast'] == [1.] * 5
        assert result['all_gather'] == [[0, 0], [1, 10], [2, 20]]
        assert result['reduce_scatter'] == [n * (2 * rank) + 3, n * (2 * rank + 1) + 3]
        assert result['objects'] == [{'rank': r} for r in range(n)] and result['barrier']
        assert 'Unsupported data type' in result['float64']
        assert result['counts']['all_reduces'] >= 25 and result['counts']['broadcasts'] == 1
        assert result['counts']['reduce_scatters'] == 1
