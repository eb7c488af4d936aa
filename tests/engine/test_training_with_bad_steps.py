"""Losses that are not finite, in the bundled train.py: skipped, counted, and ended if there are too many."""
import math

import pytest
import torch
from conftest import run_cli, train_flags
from training import bundled_settings, load, summary, valid_record

from seresnet_timm.engine import teacher
from seresnet_timm.engine import train as engine
from seresnet_timm.engine.bad_steps import is_bad_epoch
from seresnet_timm.errors import RunError

pytestmark = pytest.mark.preloaded


@pytest.fixture
def run(few_digits, tmp_path, monkeypatch):
    """Function that trains 6 updates an epoch, some of which have a loss of NaN."""

    def run(bad, *flags, value=float('nan'), **settings):
        calls = []

        class Loss(torch.nn.CrossEntropyLoss):
            def forward(self, output, target):
                calls.append(len(calls))
                loss = super().forward(output, target)
                return loss * value if calls[-1] in bad else loss
        monkeypatch.setattr(teacher, 'training_loss', lambda args: Loss())
        flags = train_flags(few_digits, tmp_path, '--seed', 3, *flags)[1:]
        engine.main(bundled_settings('train', *flags, fast_jpeg='auto', **settings))
        return tmp_path / 'run'
    return run


def test_skipped_steps_are_counted(run, caplog):
    folder = run((1, 3, 4, 8))
    record = valid_record(folder)
    assert [e['bad_steps'] for e in record['epochs']] == [3, 1]
    times = [e['finished'] for e in record['epochs']]
    assert sorted(times) == times and record['started'] <= times[0] and times[-1] <= record['finished']
    rows = summary(folder)
    assert all(math.isfinite(float(row['train_loss'])) and math.isfinite(float(row['eval_loss'])) for row in rows)
    checkpoint = load(folder / 'last.pth.tar')
    tensors = [*checkpoint['state_dict'].values(),
               *(s['momentum_buffer'] for s in checkpoint['optimizer']['state'].values())]
    assert all(torch.isfinite(t).all() for t in tensors)
    assert 'Skipped 1 step whose loss or gradients are not finite (0 in a row until now, 1 in' in caplog.text
    assert 'Skipped 2 steps' in caplog.text and valid_record(folder)['faults'] == []


def test_too_many_in_a_row(run, few_digits):
    with pytest.raises(RunError) as e:
        run(range(8, 11), max_bad_steps=3)
    text = str(e.value)
    assert 'The loss became nan at epoch 1, update 4 (3 steps in a row were skipped): lower the learning rate' in text
    assert 'The first of them was update 2, with the images ' in text and str(few_digits / 'train') in text
    assert 'and 13 more' in text and 'The last good checkpoint is ' in text and 'last.pth.tar' in text


def test_images_of_the_bad_batch(run, few_digits):
    """The named images are those that the loader gave."""
    seen = []
    from seresnet_timm.data.loaders import train_loader

    def spy(setup):
        loader, mixup = train_loader(setup)
        inner = getattr(loader, 'loader', loader)
        batch_sampler = inner.batch_sampler
        original = type(batch_sampler).__iter__

        def record(self):
            for indices in original(self):
                seen.append([inner.dataset.filename(i, absolute=True) for i in indices])
                yield indices
        type(batch_sampler).__iter__ = record
        spy.undo = lambda: setattr(type(batch_sampler), '__iter__', original)
        return loader, mixup
    engine.loaders.train_loader, old = spy, engine.loaders.train_loader
    try:
        with pytest.raises(RunError) as e:
            run(range(2, 12), max_bad_steps=4)
    finally:
        engine.loaders.train_loader = old
        spy.undo()
    assert 'with the images ' + ', '.join(seen[2][:3]) in str(e.value)


@pytest.mark.parametrize('bad, where', ((range(6), 'epoch 0, update 5'), (range(4, 12), 'epoch 1, update 5')))
def test_an_epoch_without_a_good_step(run, tmp_path, bad, where):
    with pytest.raises(RunError, match=f'The loss became nan at {where}'):
        run(bad)
    assert (tmp_path / 'run' / 'last.pth.tar').exists() == (where != 'epoch 0, update 5')
    fault, = valid_record(tmp_path / 'run')['faults']
    assert fault['kind'] == 'bad_steps' and where in fault['text']


def test_gradient_accumulation_and_average(run):
    """A bad batch spoils the group of batches that make one update, and no more."""
    folder = run((1, 2), '--grad-accum-steps', 2, '--model-ema', '--epochs', 1)
    assert [e['bad_steps'] for e in valid_record(folder)['epochs']] == [2]
    assert all(torch.isfinite(t).all() for t in load(folder / 'last.pth.tar')['state_dict_ema'].values())


def test_bad_epochs():
    nan = float('nan')
    assert is_bad_epoch({'loss': nan}, None) and is_bad_epoch({'loss': 1.}, {'loss': nan, 'top1': 99.})
    assert not is_bad_epoch({'loss': 1.}, {'loss': 2.}) and not is_bad_epoch({'loss': 1.}, None)


def test_files_of_another_rank(few_digits):
    from timm.data import create_dataset
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    from seresnet_timm.data.batch_files import files_of_batch
    dataset = create_dataset('', few_digits, split='train')
    order = torch.randperm(100, generator=torch.Generator().manual_seed(7 + 3)).tolist()
    loader = DataLoader(dataset, 8, sampler=DistributedSampler(dataset, 2, 0, seed=7))
    assert files_of_batch(loader, 3, 1, rank=1) == [
        dataset.filename(i, absolute=True) for i in order[1::2][8:16]]


@pytest.mark.slow
@pytest.mark.parametrize('steps', ('== 2', '> 1'))
def test_one_rank_has_bad_batches(few_digits, tmp_path, steps):
    """Both ranks skip the same step: the weights stay equal and finite. The terminal of rank 0 names the rank."""
    (tmp_path / 'bad_rank.py').write_text(f'''
import os
import torch
from seresnet_timm.engine import teacher
calls = []

class Loss(torch.nn.CrossEntropyLoss):
    def forward(self, output, target):
        calls.append(1)
        loss = super().forward(output, target)
        return loss + float("inf") if len(calls) {steps} and os.environ.get("RANK") == "1" else loss
teacher.training_loss = lambda args: Loss()
''')
    result = run_cli(*train_flags(few_digits, tmp_path, '--nproc', 2, '-b', 8, '--device-modules', 'bad_rank',
                                  '--max-bad-steps', 4), env={'PYTHONPATH': str(tmp_path)})
    record = valid_record(tmp_path / 'run')
    told = 'In epoch 0 the loss is not finite on rank 1 only'
    assert result.stderr.count(told) == 1 and record['faults'][0]['text'].startswith(told)
    if steps == '== 2':
        assert result.returncode == 0, result.stderr
        assert [e['bad_steps'] for e in record['epochs']] == [1, 0] and len(record['faults']) == 1
        assert math.isfinite(float(summary(tmp_path / 'run')[1]['train_loss']))
    else:
        assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
        assert 'was update 1 of rank 1, whose loss alone was not finite, with the images' in result.stderr
