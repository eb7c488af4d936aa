"""Loader workers that are killed in the middle of an epoch: new ones go on, and the batches are the same."""
import os
import random
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from seresnet_timm.data import fast_jpeg, jpeg, loading
from seresnet_timm.data.image_files import count_unreadable
from seresnet_timm.data.position import make_restartable, make_resumable, resumable
from seresnet_timm.data.seeding import SampleSeeds
from seresnet_timm.data.worker_errors import NO_FILES, NO_SHM, as_torch_tells, explain, explain_shared_memory

pytestmark = pytest.mark.usefixtures('dead_workers_are_told')

C = jpeg.decoders()[0]
AUGMENT = {'auto_augment': 'rand-m5-mstd0.5', 're_prob': 0.5}
WAYS = {
    'fast': (C, AUGMENT),
    "timm's": (None, AUGMENT),
    'no prefetcher': (None, {'auto_augment': 'rand-m5-mstd0.5', 'use_prefetcher': False}),
    'endless': (None, {**AUGMENT, 'use_multi_epochs_loader': True}),
    'evaluation': (jpeg.PILLOW, {'is_training': False}),  # the C decoder has threads instead
    "timm's evaluation": (None, {'is_training': False}),
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for i in range(20):
        folder = root / 'train' / 'ab'[i // 10]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f'{i:02d}.jpg')
    return root


def make_loader(root, way):
    decoder, more = WAYS[way]
    is_training = more.get('is_training', True)
    dataset = count_unreadable(create_dataset('', root=str(root), split='train'), is_training)
    dataset = fast_jpeg.with_fast_decoding(dataset, decoder, SampleSeeds(0) if is_training else None)
    cpu = torch.device('cpu')
    loader = create_loader(dataset, (3, 32, 32), 2, device=cpu, num_workers=2, **{'is_training': True, **more})
    loader = loading.seed_and_speed_up(loader, 0)
    return make_resumable(loader, cpu) if is_training else make_restartable(loader, cpu)


def workers_of(loader) -> list:
    return resumable(loader)._data_loader._iterator._workers


def passes(loader, kills=()) -> list:
    """All batches of two passes, and random numbers of this process; a worker is killed before some of the batches."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    found = []
    for epoch in range(2):
        loading.set_epoch(loader, epoch)
        for i, (images, targets) in enumerate(loader):
            found += [images.clone(), targets.clone(), torch.rand(1)]
            for at, which in kills:
                if at == 10 * epoch + i:
                    worker = workers_of(loader)[which]
                    os.kill(worker.pid, signal.SIGKILL)
                    worker.join()
    return found


@pytest.mark.parametrize('way', [
    pytest.param(way, marks=() if way in ('fast', "timm's") else pytest.mark.slow) for way in WAYS])
def test_batches_are_those_of_a_pass_without_deaths(root, way):
    """In the middle of both passes, and between them; told once for each."""
    plain = passes(make_loader(root, way))
    loader = make_loader(root, way)
    kills = ((2, 0), (9, 1), (13, 1))
    found = passes(loader, kills)
    assert len(found) == 60
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    ends = resumable(loader).take_ends()
    assert 2 <= len(ends) <= 3 and all('was ended by SIGKILL, most likely' in text for _, text in ends)
    assert resumable(loader).take_ends() == []


def test_gives_up_after_three_deaths_without_a_batch(root):
    """An image that kills whoever reads it."""
    loader = make_loader(root, "timm's")
    inner = resumable(loader)
    read = inner.dataset._read
    inner.dataset._read = lambda index: os.kill(os.getpid(), signal.SIGSEGV) if index == 7 else read(index)
    batches = []
    with pytest.raises(RuntimeError) as e:
        batches.extend(loader)
    # a batch of the other worker may come after a death, with which the count starts again
    assert 2 <= len(inner.take_ends()) <= 2 * (1 + len(batches))
    assert 'was ended by a signal (Segmentation fault)' in explain(e.value)


@pytest.mark.parametrize('code', (NO_SHM, NO_FILES))
def test_short_of_shared_memory_or_files_ends_the_run(root, code):
    """As before: new workers would be short of it too."""
    loader = make_loader(root, 'fast')
    inner = resumable(loader)
    inner.dataset.dataset._read = lambda index: os._exit(code)
    with pytest.raises(RuntimeError) as e:
        list(loader)
    assert not inner.take_ends() and ('shared memory' if code == NO_SHM else 'ulimit -n') in explain(e.value, 2)


@pytest.mark.parametrize('code, words', (
    (NO_SHM, 'shared memory'), (NO_FILES, 'ulimit -n'), (-signal.SIGBUS, 'shared memory'),
    (3, 'ended with exit code 3'), (-signal.SIGSEGV, 'Segmentation fault')))
def test_of_several_ends_the_one_for_want_of_something_is_told(code, words):
    """Torch names all of them, without signal or exit code, where the main process finds them by itself."""
    ends = [SimpleNamespace(pid=71, exitcode=-signal.SIGKILL), SimpleNamespace(pid=72, exitcode=code)]
    if code in (3, -signal.SIGSEGV):
        ends.reverse()
    error = RuntimeError(as_torch_tells(ends))
    error.__cause__ = RuntimeError('DataLoader worker (pid(s) 71, 72) exited unexpectedly')
    assert words in explain(error, 2) and '(process 72)' in explain(error, 2)


@pytest.mark.parametrize('text, words', (
    ('unable to open shared memory object </torch_29328_1> in read-write mode: Read-only file system (30)',
     '(/dev/shm: Read-only file system)'),
    ('unable to open shared memory object </torch_2_1_0> in read-write mode: No such file or directory (2)',
     '(/dev/shm: No such file or directory)'),
    ('unable to allocate shared memory(shm) for file </torch_7_1>: Resource temporarily unavailable (11)',
     'Resource temporarily unavailable')))
def test_shared_memory_that_cannot_be_used(text, words):
    sentence = explain_shared_memory(RuntimeError(text))
    assert words in sentence and '--shm-size' in sentence
    assert explain_shared_memory(RuntimeError('The size of tensor a (3) must match')) is None
