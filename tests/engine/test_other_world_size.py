"""A run goes on with another number of ranks: the same order of images, augmented alike, to the same weights."""
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import run_cli, train_flags
from test_resume_within_epoch import run
from timm_scripts import SCRIPTS
from torch.testing._internal.distributed.fake_pg import FakeStore
from training import bundled_settings, load, summary

from seresnet_timm.data.loading import set_epoch
from seresnet_timm.data.position import end_workers, resumable
from seresnet_timm.engine.forward import Forward
from seresnet_timm.engine.meters import LossMeter, mean_losses
from seresnet_timm.engine.run_state import Place, Resumed, restore_loader
from seresnet_timm.engine.train import create_loaders

pytestmark = pytest.mark.preloaded

RANDOM = ('--reprob', 0.7, '--recount', 2, '--aa', 'rand-m5-mstd0.5')
LOADERS = {
    'processes': ('auto', (*RANDOM, '--workers', 2)),
    'threads': ('auto', ('--reprob', 0.7, '--remode', 'pixel', '--color-jitter', 0, '--workers', 2)),
    'here': ('auto', RANDOM),
    'no-prefetcher': ('auto', (*RANDOM, '--no-prefetcher')),
    'timm': ('off', ('--no-aug',)),  # whose augmentation depends on what every process drew before
    'timm-workers': ('off', ('--no-aug', '--workers', 2)),
}


def loader_of(data, ranks, rank, flags, fast_jpeg):
    settings = bundled_settings(*train_flags(data, '/nowhere', '-b', 8 // ranks, *flags), fast_jpeg=fast_jpeg)
    args = settings.namespace()
    args.rank, args.world_size, args.distributed = rank, ranks, ranks > 1
    args.prefetcher = not args.no_prefetcher
    config = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bilinear', crop_pct=0.9)
    loader, _, _ = create_loaders(settings, args, config, Forward.from_args(args, torch.device('cpu')))
    return loader, args


def batches_of(data, ranks, flags, fast_jpeg, epoch, first, state=None):
    """Batches of all ranks together, from one on; and the loader's state of rank 0 where they begin."""
    batches, states = [], []
    for rank in range(ranks):
        if ranks > 1:
            dist.init_process_group('fake', rank=rank, world_size=ranks, store=FakeStore())
        loader, args = loader_of(data, ranks, rank, flags, fast_jpeg)
        torch.manual_seed(rank)
        set_epoch(loader, epoch)
        if state is not None:
            saved = dict(epoch=epoch, ranks=[dict(loader=state)])
            restore_loader(SimpleNamespace(args=args, train_loader=loader), Resumed(Place(epoch, first), saved, False))
        own = []
        for batch in loader:
            own.append([x.clone() for x in batch])
            if state is None and len(own) == first and rank == 0:
                states.append(resumable(loader).state(first))
        batches.append(own[first:] if state is None else own)
        end_workers(loader)
        if ranks > 1:
            dist.destroy_process_group()
    together = [[torch.stack(parts, 1).flatten(0, 1) for parts in zip(*of_ranks)] for of_ranks in zip(*batches)]
    return together, states


@pytest.mark.parametrize('ranks', ((1, 2), (2, 1)))
@pytest.mark.parametrize('case', [
    pytest.param(c, marks=() if c in ('here', 'timm') else pytest.mark.slow) for c in LOADERS])
def test_same_images(few_digits, case, ranks):
    """Pixels and labels of the rest of an epoch; without timm's own loading, of whole epochs too."""
    fast_jpeg, flags = LOADERS[case]
    (whole, (state,)), after = batches_of(few_digits, ranks[0], flags, fast_jpeg, 1, 5), ranks[1]
    rest, _ = batches_of(few_digits, after, flags, fast_jpeg, 1, 5, state)
    assert len(whole) == len(rest) == 100 // 8 - 5
    for a, b in zip(whole, rest):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    if fast_jpeg == 'auto':
        assert all(torch.equal(x, y) for a, b in zip(
            batches_of(few_digits, 1, flags, fast_jpeg, 2, 1)[0], batches_of(few_digits, 2, flags, fast_jpeg, 2, 1)[0])
            for x, y in zip(a, b))


def test_mean_loss():
    """The mean of an epoch that several ranks began is that of its images."""
    losses = torch.rand(6, generator=torch.Generator().manual_seed(0))
    meters = [LossMeter(torch.device('cpu'), only_finite=True) for _ in range(2)]
    for i in range(4):
        meters[i % 2].update(losses[i], 4)
    after = LossMeter(torch.device('cpu'), only_finite=True)
    after.load_state_dict(mean_losses([m.state_dict() for m in meters], 1))
    for i in (4, 5):
        after.update(losses[i], 4)
    assert math.isclose(after.read()[1], losses.mean(), rel_tol=1e-6) and after.count == 24


AUGMENTED = ('--workers', 2, *RANDOM, '--model-ema')


@pytest.mark.slow
@pytest.mark.parametrize('scripts', (*SCRIPTS[1:2], pytest.param(None, id='bundled')))
@pytest.mark.parametrize('ranks, flags', (
    ((1, 2, 1), AUGMENTED), ((1, 2, 1), ('--grad-accum-steps', 2, '--reprob', 0.5, '--clip-grad', 1)),
    ((2, 1, 2), AUGMENTED)))
def test_same_weights(few_digits, tmp_path, scripts, ranks, flags, monkeypatch):
    """The number of ranks changes in the middle of an epoch and at the end of one: as if never stopped.

    The network has no BatchNorm, whose statistics are those of a rank's images.
    """
    base = ('--model', 'test_convnext', '--model-kwargs', 'ls_init_value=1e-6', '--epochs', 3, '--checkpoint-hist', 1,
            '--sched', 'step', '--decay-epochs', 1, *flags)
    engine = () if scripts is None else ('--scripts', scripts)
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'

    def train(folder, number, *more):
        result = run_cli(*train_flags(few_digits, tmp_path / folder, *base, *engine, '--resume', 'auto',
                                      '-b', 8 // number, '--nproc', number, *more))
        assert result.returncode == 0, result.stderr
        return result.stderr
    train('whole', ranks[0])
    begun = ()
    if ranks[0] == 2:
        train('b', 2, '--epochs', 1)
        begun = ('--resume', last)
    assert run(few_digits, tmp_path / 'b', *base, '-b', 8, *begun, stop_after=4, monkeypatch=monkeypatch,
               fast_jpeg='auto') == 143
    assert load(last)['run_state']['batches'] == 4 * (2 if '--grad-accum-steps' in flags else 1)
    if ranks[1] == 2:
        assert 'Order and augmentation of the images are the same' in train('b', 2, '--epochs', 2)
    train('b', ranks[2])
    a, b = load(tmp_path / 'whole' / 'run' / 'last.pth.tar'), load(last)
    for key in {'state_dict', 'state_dict_ema'} & set(a):
        for name in a[key]:
            torch.testing.assert_close(b[key][name], a[key][name], rtol=1e-3, atol=1e-5)
    for x, y in zip(summary(tmp_path / 'whole' / 'run'), summary(tmp_path / 'b' / 'run'), strict=True):
        assert all(math.isclose(float(x[k]), float(y[k]), rel_tol=1e-3, abs_tol=1e-3) for k in x)
    shutil.rmtree(tmp_path / 'b')
