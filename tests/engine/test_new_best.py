"""The line of a new best, where the best before it could not be saved: with the saver that writes in the background"""
import logging
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import file_size_limit
from timm.task import ClassificationTask

from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.checkpoints.save_errors import SaveErrors
from seresnet_timm.engine.epoch_end import _tell_of_best
from seresnet_timm.engine.outputs import note_failed_saves
from seresnet_timm.engine.patience import Patience
from seresnet_timm.runs.status import Status

pytestmark = pytest.mark.preloaded


class Record:
    """What of run.json the best needs."""

    def __init__(self):
        self.content = {'best': None, 'epochs': [{'epoch': 0}]}

    def set_best(self, metric, value, epoch):
        self.content['best'] = None if value is None else dict(metric=metric, value=value, epoch=epoch)

    def add_fault(self, *_):
        pass


@pytest.mark.parametrize('in_background', (False, True))
@pytest.mark.parametrize('metric, tops', (('top1', (60., 70., 65., 55., 72.)), ('loss', (3., 1., 2., 4., .5))))
def test_a_best_that_was_not_saved(tmp_path, caplog, in_background, metric, tops):
    caplog.set_level(logging.INFO)
    model = timm.create_model('resnet10t', num_classes=2)
    saver = AtomicCheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
        max_history=3, task=ClassificationTask(model, verbose=False), decreasing=metric == 'loss')
    saver.errors, saver.in_background, record = SaveErrors(), in_background, Record()
    note_failed_saves(saver, record)
    run = SimpleNamespace(
        eval_metric=metric, patience=Patience(1), outputs=SimpleNamespace(record=record, saver=saver),
        progress=SimpleNamespace(status=Status(state='training')))
    lines = []
    for epoch, value in enumerate(tops):
        caplog.clear()
        if epoch == 1:
            with file_size_limit(1_000_000):
                best = saver.save_checkpoint(epoch, value)
                if in_background:
                    saver._background.wait()  # the limit is on until it has failed
        else:
            best = saver.save_checkpoint(epoch, value)
        if best[0] is not None:
            record.set_best(metric, *best)
        _tell_of_best(run, epoch)
        lines.append(' '.join(m for m in caplog.messages if 'ew best' in m))
    assert 'New best' in lines[0] and 'in epoch 0' in lines[0] and 'before' not in lines[0]
    assert ('New best' in lines[1]) is in_background  # it is not known yet
    assert 'New best' in lines[2] and 'in epoch 2 (' in lines[2]
    said = f'(that of epoch 1, {"70.00" if metric == "top1" else "1.0000"}, could not be saved)'
    assert (said in lines[2]) is in_background and ('(before:' in lines[2]) is not in_background
    assert 'No new best' in lines[3] and 'in epoch 2' in lines[3]
    assert 'New best' in lines[4] and '(before:' in lines[4] and 'in epoch 2)' in lines[4]
    assert run.progress.status.best_epoch == 4
    saver.wait()
