"""What recipes need beside the cases of test_parity: BCE with a threshold, EMA with warm-up, repeated augmentation.

Each by an independent statement of it; and, where `TIMM_SCRIPTS` names timm's scripts, with equal numbers.
"""
import collections

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import run_cli, train_flags
from timm.data import resolve_data_config
from timm.utils import ModelEmaV3
from timm_scripts import NO_SCRIPTS, TIMM_SCRIPTS, run_script
from training import bundled_settings, load, summary

from seresnet_timm.data import loaders, loading
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.engine import train as engine
from seresnet_timm.engine.loss import training_loss

pytestmark = pytest.mark.preloaded

BCE = ('--bce-loss', '--bce-target-thresh', 0.2, '--smoothing', 0.1, '--mixup', 0.3, '--cutmix', 1.)
EMA = ('--model-ema', '--model-ema-warmup', '--model-ema-decay', 0.9)
SMALL = ('--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4')


@pytest.mark.parametrize('flags', (BCE, (*BCE, '--bce-sum', '--bce-pos-weight', 2), BCE[:5]))
def test_binary_cross_entropy_with_threshold(flags):
    """Targets above the threshold are 1, others 0; the loss is the mean, or the sum over classes, of -log(p)."""
    args = bundled_settings(*train_flags('d', 'o', *flags)).namespace()
    torch.manual_seed(0)
    logits = torch.randn(4, 10)
    labels = torch.tensor([1, 5, 5, 9])
    if args.mixup:  # soft targets, as mixup makes them
        targets = 0.7 * F.one_hot(labels, 10) + 0.3 * F.one_hot(labels.flip(0), 10)
        hard = (targets > 0.2).float()
    else:
        targets, hard = labels, F.one_hot(labels, 10).float()
    p = logits.sigmoid()
    values = -((args.bce_pos_weight or 1) * hard * p.log() + (1 - hard) * (1 - p).log())
    expected = values.sum(1).mean() if args.bce_sum else values.mean()
    torch.testing.assert_close(training_loss(args)(logits, targets), expected)


def test_moving_average_with_warm_up(few_digits, tmp_path, monkeypatch):
    """The decay of step n, from 1 on, is 1 - n ** (-2 / 3) until it has reached its value."""
    weights, update = [], ModelEmaV3.update

    def record(self, model, step=None):
        weights.append((step, model.conv1.weight.detach().clone()))
        return update(self, model, step=step)
    monkeypatch.setattr(ModelEmaV3, 'update', record)
    engine.main(bundled_settings(*train_flags(few_digits, tmp_path, *SMALL, *EMA)))
    average = torch.zeros(())  # the first step keeps nothing of it
    assert [step for step, _ in weights] == list(range(1, 13))
    for step, weight in weights:
        decay = min(0.9, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
    found = load(tmp_path / 'run' / 'last.pth.tar')['state_dict_ema']['conv1.weight']
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-7)
    assert 1 - 12 ** (-2 / 3) < 0.9  # the decay was rising in all steps


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_repeated_augmentation(few_digits, process_group):
    """An image comes three times in a row, augmented anew each time; the order is timm's, by the epoch."""
    args = bundled_settings(*train_flags(
        few_digits, 'o', '--aug-repeats', 3, '--no-prefetcher', '-b', 12, '--color-jitter', 0)).namespace()
    args.distributed, args.rank = True, 0
    loader = loaders.train_loader(loaders.LoaderSetup(
        args, resolve_data_config(vars(args)), torch.device('cpu'), None, choose_decoder(args, 'auto')[0]))[0]
    for epoch in range(2):
        loading.set_epoch(loader, epoch)
        indices = [i for batch in loader.batch_sampler for i in batch]
        order = torch.randperm(100, generator=torch.Generator().manual_seed(epoch))
        assert indices[:90] == order.repeat_interleave(3)[:90].tolist()
        assert set(collections.Counter(indices[:90]).values()) == {3}
    samples = loader.dataset.__getitems__([4, 4, 4])
    images = [torch.as_tensor(image) for image, _ in samples]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


needs_timm_scripts = pytest.mark.skipif(not TIMM_SCRIPTS, reason=NO_SCRIPTS)
PLAIN = ('--fast-step', 'off', '--fast-jpeg', 'off')


@needs_timm_scripts
@pytest.mark.parametrize('flags', (BCE, (*EMA, '--drop', 0.2)), ids=('bce', 'ema'))
def test_numbers_are_those_of_timms_script(few_digits, tmp_path, flags):
    command = train_flags(few_digits, tmp_path / 'timm', *SMALL, *flags)[1:]
    assert run_script('train', '--device-modules', 'seresnet_timm', *command).returncode == 0
    assert run_cli(*train_flags(few_digits, tmp_path / 'own', *SMALL, *PLAIN, *flags)).returncode == 0
    assert numbers(tmp_path / 'own') == pytest.approx(numbers(tmp_path / 'timm'), rel=1e-5)


@needs_timm_scripts
@pytest.mark.slow
def test_repeats_on_two_processes_are_those_of_timms_script(few_digits, tmp_path):
    """timm's script does not run alone on two processes without a GPU."""
    flags = (*SMALL, *PLAIN, '--aug-repeats', 3, '-b', 10, '--nproc', 2)
    for name, more in (('own', ()), ('timm', ('--scripts', TIMM_SCRIPTS))):
        result = run_cli(*train_flags(few_digits, tmp_path / name, *flags, *more))
        assert result.returncode == 0, result.stderr
    assert numbers(tmp_path / 'own') == pytest.approx(numbers(tmp_path / 'timm'), rel=1e-5)


def numbers(folder) -> list:
    return [float(v) for row in summary(folder / 'run') for v in row.values()]
