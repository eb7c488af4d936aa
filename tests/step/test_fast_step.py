"""The set-up of the step: what is chosen where, that a user's setting wins, and that the numbers stay."""
import copy
import functools
import subprocess
import sys

import pytest
import timm
import torch
import torch.distributed as dist
from conftest import ROOT, train_flags
from timm.optim import create_optimizer_v2
from training import valid_record

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import checks
from seresnet_timm.launch import describe as describing
from seresnet_timm.launch.plan import make_plan
from seresnet_timm.models import lean_se
from seresnet_timm.step import fast as fast_step

pytestmark = pytest.mark.preloaded


@pytest.fixture(autouse=True)
def fast():
    yield
    lean_se.set_block_end()


def step_of(settings) -> str:
    return dict(describing.step(settings))['step']


def plan_of(*flags, verb='train', device='cpu', model='seresnet18_ascend'):
    return make_plan(verb, [
        '--data-dir', 'D', '--model', model, '--device', device, '--dry-run', '--scripts', 'bundled', *flags]).settings


# --- what the plan says -----------------------------------------------------------------------------------------------

def test_plan_on_a_cpu():
    plan = plan_of('--nproc', '2')
    assert plan.args['channels_last']
    text = step_of(plan)
    for words in ('channels_last (', 'fused sgd', 'bucket views', 'SE blocks in few kernels (a step needs about ',
                  'not compiled', 'keeps freed memory'):
        assert words in text
    assert plan_of(verb='validate').args['channels_last']


@pytest.mark.parametrize('device', ('npu', 'npu:0'))
def test_plan_on_an_npu_is_contiguous_and_plain(device):
    plan = plan_of(device=device)
    assert not plan.args['channels_last']
    text = step_of(plan)
    assert 'contiguous (operators of npu take contiguous tensors only)' in text
    assert 'fused' not in text and 'bucket' not in text and 'allocator' not in text
    assert fast_step.ddp_arguments('npu:0') == {}


def test_users_settings_win(tmp_path, monkeypatch):
    assert not plan_of(model='test_vit').args['channels_last']
    assert plan_of('--channels-last', model='test_vit').args['channels_last']
    assert 'channels_last (as asked for)' in step_of(plan_of('--channels-last', model='test_vit'))
    with pytest.raises(UsageError, match='not for an NPU'):
        checks.check(plan_of('--channels-last', device='npu'), dry_run=True)
    config = tmp_path / 'c.yaml'
    config.write_text('channels_last: false\n')
    plan = plan_of('--config', str(config))
    assert not plan.args['channels_last'] and 'contiguous (as asked for)' in step_of(plan)
    assert 'fused' not in step_of(plan_of('--opt-kwargs', 'fused=False'))
    for opt in ('lamb', 'lookahead_sgd'):
        assert 'fused' not in step_of(plan_of('--opt', opt))
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '1000')
    assert 'MALLOC_TRIM_THRESHOLD_ is set' in step_of(plan_of())
    assert not fast_step.keep_freed_memory()
    off = plan_of('--fast-step', 'off')
    assert not off.args['channels_last'] and step_of(off) == "timm's own, contiguous (--fast-step off)"


def test_both_scripts_use_it_and_run_json_holds_it(few_digits, tmp_path, monkeypatch):
    """Optimizer, memory format and plan of a training by each train.py, and with everything off."""
    created = []
    init = torch.optim.SGD.__init__

    @functools.wraps(init)
    def spy(self, *args, **kwargs):
        init(self, *args, **kwargs)
        created.append(self)
    monkeypatch.setattr(torch.optim.SGD, '__init__', spy)
    monkeypatch.setattr(sys, 'argv', sys.argv)
    losses = []
    small = ROOT / 'tests' / 'small_scripts'
    for i, (scripts, mode) in enumerate((('bundled', 'auto'), (small, 'auto'), ('bundled', 'off'))):
        # even batches and a small learning rate: steps of an untrained network make a lot of a little rounding
        flags = train_flags(few_digits, tmp_path / str(i), '--scripts', scripts, '--fast-step', mode, '--epochs', 1,
                            '-b', 20, '--lr', 1e-4)
        main([str(f) for f in flags])
        assert bool(created[-1].param_groups[0]['fused']) == (mode == 'auto'), (scripts, mode)
        settings = valid_record(tmp_path / str(i) / 'run')['settings']
        assert settings['fast_step'] == (mode == 'auto')
        assert ('fused momentum' if mode == 'auto' else "timm's own") in settings['reasons']['fast_step']
        assert settings['reasons']['fast_jpeg'] and settings['reasons']['loss_scale']
        checkpoint = read_checkpoint(str(tmp_path / str(i) / 'run' / 'last.pth.tar')).content
        assert all(v.is_contiguous() for v in checkpoint['state_dict'].values())
        losses.append((tmp_path / str(i) / 'run' / 'summary.csv').read_text().splitlines()[1].split(',')[1])
    # in float64 they agree to 1e-15 (test_lean_se.py); channels without variance make float32 rounding visible here
    assert float(losses[0]) == pytest.approx(float(losses[2]), rel=2e-3)


@pytest.mark.parametrize('name', ('seresnet50_ascend', 'resnext26ts', 'resnet18'))
def test_channels_last_is_torchs_without_copies_of_1x1_weights(name):
    model = timm.create_model(name, in_chans=1, num_classes=3)
    expected = copy.deepcopy(model).to(memory_format=torch.channels_last)
    before = {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()}
    assert fast_step.to_channels_last(model) is model
    assert any(p.shape[2:] == (1, 1) for p in model.parameters() if p.dim() == 4)
    for (key, own), torchs in zip(model.state_dict().items(), expected.state_dict().values()):
        pointer, values = before[key]
        assert own.stride() == torchs.stride() and torch.equal(own, values), key
        if own.shape[2:] == (1, 1):
            assert own.data_ptr() == pointer, key


# --- optimizer --------------------------------------------------------------------------------------------------------

def networks(memory_format=torch.channels_last):
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=4).to(memory_format=memory_format)
    return model, copy.deepcopy(model)


def train(model, optimizer, steps=3):
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    'opt', ('momentum', 'adamw', *(pytest.param(o, marks=pytest.mark.slow) for o in ('sgd', 'adam'))))
def test_fused_optimizer_takes_timms_steps(opt):
    own, timms = networks()
    kwargs = dict(opt=opt, lr=0.01, weight_decay=1e-4, **(dict(momentum=0.9) if opt in ('sgd', 'momentum') else {}))
    optimizer = fast_step.create_optimizer(own, **kwargs)
    assert optimizer.param_groups[0]['fused']
    gradients = [torch.randn_like(p) for p in own.parameters()]
    plain = create_optimizer_v2(timms, **kwargs)
    for _ in range(3):
        for p, q, g in zip(own.parameters(), timms.parameters(), gradients):
            p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        plain.step()
    for p, q in zip(own.parameters(), timms.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_timms_set_up_is_an_argument():
    """Nothing in the process remembers it: a run may follow one with another set-up."""
    model, _ = networks()
    assert not fast_step.create_optimizer(model, opt='momentum', lr=0.01, fast=False).param_groups[0]['fused']
    assert fast_step.create_optimizer(model, opt='momentum', lr=0.01).param_groups[0]['fused']
    assert fast_step.ddp_arguments('cpu', False) == {}
    assert fast_step.ddp_arguments('cpu') == {'gradient_as_bucket_view': True}


@pytest.mark.parametrize('flag', (True, False))
@pytest.mark.filterwarnings('error')
def test_the_flag_of_buffers_reaches_ddp_without_a_warning(flag, tmp_path):
    """By timm's task, which hands its arguments to DDP; torch 2.13 warns about the name that timm uses."""
    from timm.task import ClassificationTask
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        task = ClassificationTask(networks()[0], criterion=torch.nn.CrossEntropyLoss(), device=torch.device('cpu'))
        task.prepare_distributed(**fast_step.in_terms_of_this_torch({'broadcast_buffers': flag, 'bucket_cap_mb': 20}))
        module = task.get_trainable_module()
        assert module.broadcast_buffers is flag and module.bucket_bytes_cap == 20 * 2 ** 20
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize('opt', ('momentum', pytest.param('adamw', marks=pytest.mark.slow)))
def test_state_of_a_run_in_another_memory_format_goes_on(opt):
    """Fused kernels walk in memory order: contiguous state on channels_last weights would be silently wrong."""
    before, _ = networks(torch.contiguous_format)
    plain = create_optimizer_v2(before, opt=opt, lr=0.01)
    train(before, plain)
    model = copy.deepcopy(before).to(memory_format=torch.channels_last)
    optimizer = fast_step.create_optimizer(model, opt=opt, lr=0.01)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert optimizer.param_groups[0]['fused']  # what this run uses, not what the checkpoint's did
    for g, (p, q) in enumerate(zip(model.parameters(), before.parameters())):
        q.grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(g))
        p.grad = torch.empty_like(p).copy_(q.grad)
    plain.step()
    optimizer.step()
    for p, q in zip(model.parameters(), before.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_checkpoints_do_not_carry_the_implementation():
    """timm's own script, on contiguous weights, must go on with plain kernels from the channels_last state."""
    model, _ = networks()
    optimizer = fast_step.create_optimizer(model, opt='momentum', lr=0.01)
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    assert optimizer.param_groups[0]['fused'] and saved['param_groups'][0]['fused'] is None
    assert all(t.is_contiguous() for s in saved['state'].values() for t in s.values() if torch.is_tensor(t))
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    plain = create_optimizer_v2(contiguous, opt='momentum', lr=0.01)
    plain.load_state_dict(saved)
    for g, (p, q) in enumerate(zip(model.parameters(), contiguous.parameters())):
        q.grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(g))
        p.grad = torch.empty_like(p).copy_(q.grad)
    plain.step()
    optimizer.step()
    for p, q in zip(model.parameters(), contiguous.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# --- memory -----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='glibc')
def test_freed_memory_faults_in_once_and_is_not_shared_with_forks():
    code = """
import psutil, resource, torch
from seresnet_timm.step import fast as fast_step
x = torch.ones(10 * 2**20, requires_grad=True)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.exp().sin().exp().sin().sum().backward()
    x.grad = None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = [faults() for _ in range(4)][-2:]
assert fast_step.keep_freed_memory()
print(sum(before), sum([faults() for _ in range(4)][-2:]))
kept = psutil.Process().memory_info().rss
fast_step.give_back_freed_memory()
print(kept, psutil.Process().memory_info().rss)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    before, after, kept, left = map(int, result.stdout.split())
    assert after < 0.5 * before, (before, after)
    assert left < kept - 100 * 2**20, (kept, left)  # freed: four tensors of 40 MiB


def test_first_step_that_overflows():
    """The loss scaler skips it; the steps after it are those of plain SGD, whatever was in memory before."""
    weights = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(1000, 10)
        optimizer = fast_step.create_optimizer(model, 'momentum', fast=fast, lr=0.1, momentum=0.9)
        assert bool(optimizer.defaults['fused']) == fast
        scaler = torch.amp.GradScaler('cpu', init_scale=2.**16)
        memory = [torch.full((10, 1000), float('nan')) for _ in range(20)]
        del memory
        for step in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 1000)).pow(2).mean() * (float('inf') if step == 0 else 1.)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append(model.weight.detach().clone())
    assert weights[0].isfinite().all()
    torch.testing.assert_close(*weights)


def test_dampening_is_left_to_torchs_plain_sgd():
    """Its first step is not that of a momentum of zero."""
    assert not fast_step.wants_fused('momentum', {'dampening': 0.1}, 'cpu')
    assert fast_step.wants_fused('momentum', {'dampening': 0.}, 'cpu')


@pytest.mark.parametrize('model', ('seresnet18_ascend', 'resnet18'))
def test_gradients_have_the_strides_of_their_weights(model):
    """DDP compares them, and warns; before, those of SE blocks differed in dimensions of size 1."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=4).to(memory_format=torch.channels_last).train()
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    network(images).sum().backward()
    before = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.load_state_dict(state)
    network.zero_grad()
    fast_step.match_gradient_strides(network)
    network(images).sum().backward()
    for name, param in network.named_parameters():
        assert param.grad.stride() == param.stride(), name
        assert torch.equal(param.grad, before[name]), name
