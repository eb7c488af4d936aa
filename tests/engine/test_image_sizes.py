"""Training on several image sizes: which images, resumed runs, both ranks, timm's newest script, what is refused."""
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_cli, run_here, train_flags
from test_resume_within_epoch import RANDOM, run
from timm.data import resolve_data_config
from timm_scripts import NO_SCRIPTS, TIMM_SCRIPTS, run_script
from training import assert_same, bundled_settings, summary

from seresnet_timm.data import loaders, loading
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.data.position import end_workers
from seresnet_timm.data.scheduled import SizedJpegDataset, average_batch_size, loss_scale
from seresnet_timm.launch import recipes

pytestmark = pytest.mark.preloaded

# 16 pixels in epochs 0 and 1, then 24, then 32
STEPS = ('--train-img-sizes', 16, 24, 32, '--train-size-schedule', 'progressive', '--train-size-schedule-spread', 0,
         '--train-size-random-mix', 0, '--epochs', 4)
MIXED = ('--train-img-sizes', 16, 32, '--train-batch-sizes', 24, 8, '--train-size-probs', 0.7, 0.3,
         '--variable-batch-loss-scale', 'linear')


def loader_of(data, *flags, fast_jpeg='auto'):
    args = bundled_settings(*train_flags(data, 'o', '--no-prefetcher', *flags)).namespace()
    args.distributed, args.rank = False, 0
    config = resolve_data_config(vars(args))
    return loaders.train_loader(loaders.LoaderSetup(
        args, config, torch.device('cpu'), None, choose_decoder(args, fast_jpeg)[0]))[0]


@pytest.mark.parametrize('fast_jpeg, workers', (('auto', 2), ('off', 0)))
def test_workers_that_run_see_the_change(few_digits, fast_jpeg, workers):
    loader = loader_of(few_digits, *STEPS, '--workers', workers, fast_jpeg=fast_jpeg)
    sides = []
    for epoch in range(4):
        loading.set_epoch(loader, epoch)
        sides.append({images.shape[-1] for images, _ in loader})
    end_workers(loader)
    assert sides == [{16}, {16}, {24}, {32}] or sides == [{16}, {24}, {24}, {32}]


def test_images_are_those_of_one_size(few_digits):
    """As fast decoding to that size alone gives them, by index and epoch."""
    sized = loader_of(few_digits, *STEPS, '--color-jitter', 0).dataset
    assert isinstance(sized, SizedJpegDataset)
    for number, side in enumerate((16, 24, 32)):
        plain = loader_of(few_digits, '--img-size', side, '--color-jitter', 0).dataset
        for epoch in (0, 3):
            sized.set_epoch(epoch)
            plain.set_epoch(epoch)
            ours, theirs = sized.__getitems__([(5, number), (2, number)]), plain.__getitems__([5, 2])
            assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(ours, theirs))
            assert torch.equal(sized[(7, number)][0], plain[7][0])


def test_size_of_batches_and_factor_of_the_loss(few_digits):
    loader = loader_of(few_digits, *MIXED)
    batches = [(len(images), images.shape[-1]) for images, _ in loader]
    assert set(batches) == {(24, 16), (8, 32)} and sum(n for n, _ in batches) <= 100
    args = bundled_settings(*train_flags('d', 'o', *MIXED)).namespace()
    average = 0.7 * 24 + 0.3 * 8
    assert average_batch_size(args) == pytest.approx(average)
    assert loss_scale(args, 24, average) == pytest.approx(24 / average)
    args.variable_batch_loss_scale = 'sqrt'
    assert loss_scale(args, 8, average) == pytest.approx((8 / average) ** 0.5)
    args.variable_batch_loss_scale = 'none'
    assert loss_scale(args, 8, average) is None


CASES = {  # fast decoder, updates before the signal, flags; an epoch has 5 that are counted
    'before-a-change': ('auto', 10, (*STEPS, *RANDOM)),
    'mixed-workers': ('off', 4, (*MIXED, '--workers', 2, '--reprob', 0.5)),
    'after-a-change': ('auto', 12, (*STEPS, *RANDOM, '--workers', 2)),
    'threads': ('auto', 13, (*STEPS, '--workers', 2, '--color-jitter', 0, '--reprob', 0.5)),
    'timm': ('off', 12, (*STEPS, *RANDOM)),
    'window': ('auto', 9, (*STEPS[:6], *RANDOM, '--epochs', 4)),
}


@pytest.mark.parametrize('case', [
    pytest.param(c, marks=() if c == 'mixed-workers' else pytest.mark.slow) for c in CASES])
def test_stopped_run_equals_one_that_was_never_stopped(few_digits, tmp_path, monkeypatch, case):
    fast_jpeg, updates, flags = CASES[case]
    settings = dict(monkeypatch=monkeypatch, fast_jpeg=fast_jpeg)
    assert run(few_digits, tmp_path / 'whole', *flags, **settings) == 0
    assert run(few_digits, tmp_path / 'b', *flags, stop_after=updates, **settings) == 143
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    assert run(few_digits, tmp_path / 'b', *flags, '--resume', last, **settings) == 0
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')


@pytest.mark.slow
def test_two_processes_have_batches_of_the_same_sizes(few_digits, tmp_path):
    """SyncBatchNorm gathers statistics, and the number of images, of both."""
    result = run_cli(*train_flags(
        few_digits, tmp_path, *MIXED, '-b', 8, '--train-batch-sizes', 12, 4, '--nproc', 2, '--save-images'))
    assert result.returncode == 0, result.stderr
    assert len(summary(tmp_path / 'run')) == 2


HAS_FLAG = bool(TIMM_SCRIPTS) and '--train-img-sizes' in (Path(TIMM_SCRIPTS) / 'train.py').read_text()


@pytest.mark.skipif(not HAS_FLAG, reason=f'{NO_SCRIPTS} that has --train-img-sizes')
@pytest.mark.parametrize('flags', (STEPS, STEPS[:6] + STEPS[-2:], MIXED), ids=('steps', 'window', 'mixed'))
def test_losses_are_those_of_timms_script(flags, few_digits, tmp_path):
    flags = (*flags, '--workers', 2, '--mixup', 0.2, '--reprob', 0.5)
    command = train_flags(few_digits, tmp_path / 'timm', *flags)[1:]
    assert run_script('train', '--device-modules', 'seresnet_timm', *command).returncode == 0
    own = train_flags(few_digits, tmp_path / 'own', '--fast-step', 'off', '--fast-jpeg', 'off', *flags)
    assert run_cli(*own).returncode == 0
    a, b = ([float(v) for row in summary(tmp_path / name / 'run') for v in row.values()] for name in ('timm', 'own'))
    assert a == pytest.approx(b, rel=1e-5)


WRONG = (
    (('--train-size-schedule', 'progressive'), 'name the sizes of the images too, with --train-img-sizes'),
    (('--train-img-sizes', 0, 32), 'is too small: give at least 1'),
    (('--train-img-sizes', 16, 'big'), '--train-img-sizes'),
    (('--train-img-sizes', 16, 32, '--train-batch-sizes', 8), 'has 1 values, --train-img-sizes 2'),
    (('--train-img-sizes', 16, 32, '--train-size-probs', 0, 0), 'are all 0'),
    (('--train-img-sizes', 32, '--train-size-schedule', 'progressive'), 'give two in --train-img-sizes at least'),
    (('--train-img-sizes', 16, 32, '--train-size-random-mix', 0.2), 'for --train-size-schedule progressive only'),
    (('--train-img-sizes', 16, 32, '--variable-batch-loss-scale', 'sqrt'), 'add --train-batch-sizes'),
    (('--train-img-sizes', 16, 32, '--train-batch-sizes', 9, 8, '--mixup', 0.2), 'has the odd number 9'),
    (('--train-img-sizes', 16, 32, '--use-multi-epochs-loader'), 'does not go with --train-img-sizes'),
    (('--train-img-sizes', 16, 32, '--aug-splits', 2), 'does not go with --train-img-sizes'),
    (('--train-img-sizes', 16, 32, '--train-batch-sizes', 8, 200), 'needs 200 images (-b 200'),
    (('--model', 'vit_tiny_patch16_224', '--model-kwargs', 'img_size=32', 'depth=1', 'embed_dim=12', 'num_heads=3',
      '--train-img-sizes', 16, 32), 'does not take images of 3 x 16 x 16'),
)


@pytest.mark.parametrize('flags, text', WRONG, ids=[' '.join(map(str, w[0]))[:70] for w in WRONG])
def test_refused_before_it_starts(flags, text, few_digits, tmp_path):
    result = run_here(*train_flags(few_digits, tmp_path / 'o', *flags, '--dry-run'))
    assert result.returncode == 2 and text in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr and not (tmp_path / 'o').exists()


def test_plan_tells_sizes_and_cost(few_digits, tmp_path):
    result = run_here(*train_flags(few_digits, tmp_path, *STEPS, '--dry-run'))
    assert '16 from epoch 0, 24 from epoch 1, 32 from epoch 3; evaluated at 32' in result.stderr, result.stderr
    assert '59 % of the pixels of a training at 32' in result.stderr
    result = run_here(*train_flags(few_digits, tmp_path, *MIXED, '--lr-base', 0.1, '--dry-run'))
    assert '16 in 70 %, 32 in 30 % of the batches; batches of 24 at 16, 8 at 32' in result.stderr, result.stderr


def test_a_script_without_the_flag_is_named(few_digits, tmp_path, monkeypatch):
    """On the command line, in a config file and in a preset, which would be left out without a word."""
    monkeypatch.setattr(recipes, 'recipes_dir', lambda: tmp_path)
    (tmp_path / 'sizes.yaml').write_text('model: seresnet18_ascend\ntrain_img_sizes: [16, 32]\n')
    start = train_flags(few_digits, tmp_path / 'o', '--scripts', ROOT / 'tests' / 'small_scripts')
    for flags in (('--train-img-sizes', 16, 32), ('--config', tmp_path / 'sizes.yaml'), ('--preset', 'sizes')):
        result = run_here(*start, *flags)
        assert result.returncode == 2 and 'the bundled one has it: run that with --scripts bundled' in result.stderr
