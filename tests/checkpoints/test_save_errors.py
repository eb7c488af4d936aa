"""A disk that is full while a run saves: the old checkpoint stays, the run goes on, nothing half-written is left."""
import errno
import os

import pytest
import timm
import torch
from conftest import file_size_limit
from timm.task import ClassificationTask

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.checkpoints.save_errors import SaveErrors
from seresnet_timm.errors import UsageError
from seresnet_timm.runs.summary import Summary, trim

pytestmark = pytest.mark.preloaded


@pytest.fixture
def saver(tmp_path):
    model = timm.create_model('resnet10t', num_classes=2)
    saver = AtomicCheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
        max_history=2, task=ClassificationTask(model, verbose=False))
    saver.errors = SaveErrors()
    return saver


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_failed_save_is_tried_again(saver, tmp_path, caplog):
    assert saver.save_checkpoint(0, metric=1.) == (1., 0)
    before = names(tmp_path)
    with file_size_limit(10_000_000):
        assert saver.save_checkpoint(1, metric=2.) == (1., 0)
        assert names(tmp_path) == before and read_checkpoint(tmp_path / 'last.pth.tar').content['epoch'] == 0
        saver.save_recovery(2, 5)
        assert names(tmp_path) == before
    assert 'NOT SAVED: Epoch 1 could not be saved' in caplog.text and 'ulimit -f' in caplog.text
    assert 'Update 5 of epoch 2' in saver.errors.last
    assert saver.save_checkpoint(2, metric=1.5) == (1.5, 2)  # better than any that was saved
    assert saver.errors.last is None and 'Saved again: Epoch 2' in caplog.text
    assert read_checkpoint(tmp_path / 'model_best.pth.tar').content['epoch'] == 2


@pytest.mark.parametrize('step', ('_replace', '_duplicate'))
def test_no_space_for_names(saver, tmp_path, monkeypatch, step):
    """The folder itself can be full, or a copy, where there are no hard links."""
    saver.save_checkpoint(0, metric=1.)

    def fail(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    with monkeypatch.context() as m:
        m.setattr(saver, step, fail)
        assert saver.save_checkpoint(1, metric=2.) == (1., 0)
    assert 'Disk quota exceeded' in saver.errors.last
    assert not [n for n in names(tmp_path) if 'tmp' in n]
    assert read_checkpoint(tmp_path / 'model_best.pth.tar').content['epoch'] == 0
    assert saver.save_checkpoint(2, metric=3.) == (3., 2)
    assert read_checkpoint(tmp_path / 'model_best.pth.tar').content['epoch'] == 2


def test_other_errors_are_raised(saver, monkeypatch):
    monkeypatch.setattr(torch, 'save', lambda *_: (_ for _ in ()).throw(RuntimeError('something else')))
    with pytest.raises(RuntimeError, match='something else'):
        saver.save_checkpoint(0)


def test_temporary_files_of_a_killed_run_are_removed(saver, tmp_path):
    for name in ('tmp.pth.tar', 'recovery_tmp.pth.tar', 'last.pth.tar.tmp', 'mine.pth.tar'):
        (tmp_path / name).touch()
    AtomicCheckpointSaver(saver.model, saver.optimizer, checkpoint_dir=str(tmp_path), task=saver.task)
    assert names(tmp_path) == ['mine.pth.tar']


@pytest.mark.parametrize('bad', (float('nan'), float('inf'), float('-inf')))
def test_a_metric_that_is_no_number_is_never_the_best(saver, tmp_path, bad):
    assert saver.save_checkpoint(0, metric=bad) == (None, None)
    assert names(tmp_path) == ['checkpoint-0.pth.tar', 'last.pth.tar']
    assert saver.save_checkpoint(1, metric=1.) == (1., 1)
    assert saver.save_checkpoint(2, metric=bad) == (1., 1)
    assert read_checkpoint(tmp_path / 'model_best.pth.tar').content['epoch'] == 1


def test_summary_has_every_row_once(tmp_path):
    path, summary = tmp_path / 'summary.csv', Summary()

    def add(epoch):
        summary.add(str(path), epoch=epoch, train_metrics={'loss': 0.123456789}, eval_metrics=None, lr=1.)
    add(0)
    first = path.read_text()
    with file_size_limit(len(first) + 4):
        add(1)
        assert path.read_text() == first and '1 row of' in summary.error
        add(2)
        assert path.read_text() == first and '2 rows of' in summary.error
    add(3)
    assert summary.error is None and path.read_text() == first + ''.join(f'{i},0.123456789,1.0\n' for i in (1, 2, 3))


def test_folder_that_is_gone_for_a_while(saver, tmp_path, caplog):
    """Deleted, moved, or on a drive that is not mounted: it is not made anew, where nobody may look for it."""
    saver.save_checkpoint(0, metric=1.)
    folder = tmp_path.rename(tmp_path.with_name('moved'))
    for save in (lambda: saver.save_checkpoint(1, metric=2.), lambda: saver.save_last(2),
                 lambda: saver.save_recovery(2, 3)):
        save()
        assert 'No such file or directory' in saver.errors.last and not tmp_path.exists()
    assert 'move it back' in caplog.text and 'disk space' not in caplog.text and 'intact' not in caplog.text
    folder.rename(tmp_path)
    saver.save_checkpoint(2, metric=3.)
    assert saver.errors.last is None and names(tmp_path) == names_of(0, 2)


def names_of(*epochs):
    return sorted([*(f'checkpoint-{epoch}.pth.tar' for epoch in epochs), 'last.pth.tar', 'model_best.pth.tar'])


@pytest.mark.parametrize('code, remedy', (
    (errno.ENOSPC, 'free disk space'), (errno.EDQUOT, 'free disk space'), (errno.EROFS, 'writable'),
    (errno.EIO, 'drive'), (errno.ESTALE, 'drive'), (errno.EMFILE, 'ulimit -n'),
    (errno.EISDIR, 'move the folder away')))
def test_remedy_for_each_error(saver, tmp_path, monkeypatch, caplog, code, remedy):
    monkeypatch.setattr(saver, '_replace', lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    saver.save_last(0)
    assert os.strerror(code) in saver.errors.last and remedy in caplog.text and not names(tmp_path)


def test_summary_that_is_no_table(tmp_path):
    path = tmp_path / 'summary.csv'
    path.write_bytes(b'\xff\x00\xfe')
    with pytest.raises(UsageError, match='summary.csv is no table of a run .* move it away'):
        trim(path, 1)
    assert path.read_bytes() == b'\xff\x00\xfe'


def test_recovery_files_of_a_run_that_goes_on(saver, tmp_path):
    """Two stay, however often it is started; one that is written again is not removed as an old one."""
    def files():
        return sorted(path.name for path in tmp_path.glob('recovery*'))
    for when, update in enumerate((3, 5)):
        saver.save_recovery(0, update)
        os.utime(tmp_path / f'recovery-0-{update}.pth.tar', (when, when))
    later = AtomicCheckpointSaver(
        saver.model, saver.optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), task=saver.task._task)
    later.save_recovery(0, 3)
    assert files() == ['recovery-0-3.pth.tar', 'recovery-0-5.pth.tar']
    for update in (7, 9, 11):
        later.save_recovery(0, update)
        assert f'recovery-0-{update}.pth.tar' in files() and len(files()) <= 2
    assert files() == ['recovery-0-11.pth.tar', 'recovery-0-9.pth.tar']
