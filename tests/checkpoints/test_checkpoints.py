"""Checkpoints are written atomically, and only read as data."""
import os
import random
import signal
import subprocess
import time
from argparse import Namespace

import preloaded
import pytest
import timm
import torch
from conftest import ROOT
from safetensors.torch import save_file
from timm.task import ClassificationTask

from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.errors import UsageError
from seresnet_timm.files import atomic_path


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('seresnet18_ascend', num_classes=10)


def test_formats_and_moving_average(model, tmp_path):
    ema = {k: v + 1 for k, v in model.state_dict().items()}
    checkpoint = {'state_dict': model.state_dict(), 'state_dict_ema': ema, 'args': Namespace(a=1)}
    torch.save(checkpoint, tmp_path / 'c.pth.tar')
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / 'c.safetensors')
    torch.save(model.state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    for name, use_ema, shift in (('c.pth.tar', False, 0), ('c.pth.tar', True, 1), ('c.safetensors', True, 0),
                                 ('old.pth', False, 0)):
        other = timm.create_model('seresnet18_ascend', num_classes=10)
        load_weights(other, read_checkpoint(tmp_path / name), 'seresnet18_ascend', use_ema)
        assert torch.equal(other.conv1.weight, model.conv1.weight + shift), name


def test_other_models_keep_their_names(tmp_path):
    model = timm.create_model('resnet18', num_classes=10)
    torch.save({'state_dict': {'module.' + k: v for k, v in model.state_dict().items()}}, tmp_path / 'c.pth')
    other = timm.create_model('resnet18', num_classes=10)
    load_weights(other, read_checkpoint(tmp_path / 'c.pth'), 'resnet18')
    assert torch.equal(other.conv1.weight, model.conv1.weight)


def test_misfit_changes_nothing(model, tmp_path):
    wide = timm.create_model('seresnet18_ascend', num_classes=11)
    torch.save(wide.state_dict(), tmp_path / 'c.pth')
    before = model.conv1.weight.clone()
    with pytest.raises(UsageError, match='11 classes'):
        load_weights(model, read_checkpoint(tmp_path / 'c.pth'), 'seresnet18_ascend')
    assert torch.equal(model.conv1.weight, before)


SAVE_FOREVER = '''
import os, sys, timm, torch
from timm.task import ClassificationTask
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
model = timm.create_model('seresnet18_ascend', num_classes=10, channels=(16, 32, 64, 128))
task = ClassificationTask(model, verbose=False)
saver = AtomicCheckpointSaver(
    model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint_dir=sys.argv[1], recovery_dir=sys.argv[1],
    max_history=2, task=task)
epoch = 0
while True:
    saver.run_state = {'epoch': epoch + 1}  # where a resumed run goes on
    saver.save_checkpoint(epoch, metric=epoch)
    print(os.getpid(), flush=True)
    epoch += 1
'''


def test_killed_while_saving(tmp_path):
    """Killed at many instants of a save, `last` and `model_best` always exist and are always complete."""
    rng = random.Random(0)
    (tmp_path / 'save_forever.py').write_text(SAVE_FOREVER)
    for _ in range(6):
        process = subprocess.Popen(
            [preloaded.python(), '-m', 'save_forever', str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(ROOT)})
        pid = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        for name in ('last.pth.tar', 'model_best.pth.tar'):
            checkpoint = read_checkpoint(tmp_path / name).content
            assert len(checkpoint['state_dict']) == 144 and checkpoint['run_state']['epoch'] == checkpoint['epoch'] + 1
            assert torch.isfinite(checkpoint['state_dict']['fc.weight']).all()


def test_full_disk_keeps_the_old_checkpoint(model, tmp_path):
    """A write that fails (here: beyond the process's file size limit) leaves the checkpoint of before."""
    code = SAVE_FOREVER.replace('epoch = 0\n', '''epoch = 0
saver.save_checkpoint(0, metric=0)
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
epoch = 1
''')
    (tmp_path / 'save.py').write_text(code)
    result = subprocess.run([preloaded.python(), '-m', 'save', str(tmp_path)], capture_output=True, text=True,
                            cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 1 and result.stdout == ''
    assert read_checkpoint(tmp_path / 'last.pth.tar').content['epoch'] == 0
    assert read_checkpoint(tmp_path / 'model_best.pth.tar').content['epoch'] == 0


def test_atomic_path(tmp_path):
    path = tmp_path / 'f.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_path(path) as tmp:
        with open(tmp, 'w') as f:
            f.write('half')
        raise RuntimeError
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['f.txt']
    with atomic_path(path) as tmp:
        with open(tmp, 'w') as f:
            f.write('new')
    assert path.read_text() == 'new' and [p.name for p in tmp_path.iterdir()] == ['f.txt']
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_saver_is_timms(model, tmp_path):
    """timm reads what ours saved: history, best metric and files."""
    task = ClassificationTask(model, verbose=False)
    kwargs = dict(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), checkpoint_dir=str(tmp_path), max_history=2)
    ours = AtomicCheckpointSaver(model, task=task, **kwargs)
    for epoch, metric in enumerate((50., 70., 60.)):
        ours.save_checkpoint(epoch, metric)
    theirs = timm.utils.CheckpointSaver(model, **kwargs)
    theirs.load_state_dict_from_checkpoint(str(tmp_path / 'last.pth.tar'))
    assert (theirs.best_metric, theirs.best_epoch) == (70., 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'checkpoint-1.pth.tar', 'checkpoint-2.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
