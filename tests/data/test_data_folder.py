"""A data folder that is moved away while its images are loaded, and back: every way to load."""
import errno
import logging
import mmap
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from seresnet_timm.data import data_folder, fast_jpeg, jpeg, loading
from seresnet_timm.data.data_folder import DataFolder, DataFolderGone
from seresnet_timm.data.image_files import count_unreadable, image_files_of, take_unreadable
from seresnet_timm.data.images import UnreadableImage
from seresnet_timm.data.position import end_workers
from seresnet_timm.data.seeding import SampleSeeds
from seresnet_timm.launch import watch
from seresnet_timm.launch.watch import Watch
from seresnet_timm.step import heartbeat

C = jpeg.decoders()[0]


@pytest.fixture
def root(tmp_path):
    """Twelve images of two classes."""
    for i in range(12):
        folder = tmp_path / 'data' / 'train' / 'ab'[i // 6]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 20 * i + 20, np.uint8)).save(folder / f'{i:02d}.jpg')
    return tmp_path / 'data'


def make_loader(root, decoder, workers=0, timeout=30., is_training=True, **more):
    missing = root / 'train' / 'a' / '03.jpg'
    shutil.copy(missing.with_name('02.jpg'), missing)
    dataset = count_unreadable(create_dataset('', root=str(root), split='train'), is_training, timeout)
    missing.unlink()
    dataset = fast_jpeg.with_fast_decoding(dataset, decoder, SampleSeeds(0) if is_training else None)
    loader = create_loader(dataset, (3, 32, 32), 1, is_training=is_training, num_workers=workers,
                           device=torch.device('cpu'), **more)
    return loading.seed_and_speed_up(loader, 0)


def move_away(root, folder, seconds):
    """Until so many seconds after it was missed, however late that is."""
    os.rename(root, root.with_name('away'))

    def bring_back():
        while not folder._gone[0]:
            time.sleep(0.01)
        time.sleep(seconds)
        os.rename(root.with_name('away'), root)
    thread = threading.Thread(target=bring_back, daemon=True)
    thread.start()
    return thread


WAYS = {
    'fast': (C, 0, {'color_jitter': 0}), 'threads': (C, 2, {'color_jitter': 0}), 'processes': (C, 2, {}),
    "timm's": (None, 0, {}), "timm's, processes": (None, 2, {}), 'evaluation': (C, 2, {'is_training': False}),
}


@pytest.mark.parametrize('way', WAYS)
def test_waits_and_takes_no_image_for_bad(root, way, capfd):
    """Batches are those of an undisturbed pass; one file that is missing in its folder is bad, as ever."""
    decoder, workers, more = WAYS[way]

    def load(away):
        torch.manual_seed(0)
        loader = make_loader(root, decoder, workers, **more)
        thread = move_away(root, image_files_of(loader.dataset).folder, 1.) if away else None
        batches = [(images.clone(), targets) for images, targets in loader]
        if thread:
            thread.join()
        assert take_unreadable(loader.dataset).count == 1
        end_workers(loader)
        return batches, image_files_of(loader.dataset).folder.take_waits()
    plain, waits = load(away=False)
    assert not waits
    handler = logging.StreamHandler()  # for the worker processes
    data_folder._logger.addHandler(handler)
    late, waits = load(away=True)
    data_folder._logger.removeHandler(handler)
    if way != "timm's, processes":  # whose workers draw from states that no seed of the test sets
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, late, strict=True))
    assert len(waits) == 1 and waits[0].came_back and 0.5 < waits[0].seconds < 4 and (
        abs(waits[0].began - time.time()) < 9)
    said = capfd.readouterr().err
    assert said.count(f'The data folder is gone: {root} (No such file or directory). Waiting for it, for 30 s') == 1
    assert said.count('The data folder is back after') == 1


@pytest.mark.parametrize('decoder, workers', ((C, 0), (None, 1)), ids=('fast', "timm's, processes"))
@pytest.mark.parametrize('timeout', (0., 0.3))
def test_gives_up(root, decoder, workers, timeout):
    loader = make_loader(root, decoder, workers, timeout, color_jitter=0)
    os.rename(root, root.with_name('away'))
    began = time.monotonic()
    with pytest.raises(DataFolderGone) as e:
        list(loader)
    end_workers(loader)
    assert time.monotonic() - began < 60  # not the default of 600 s
    assert str(e.value).startswith('The data folder is gone') and '\n' not in str(e.value)
    assert f'{root} (No such file or directory). Check its disk' in str(e.value) and '--data-timeout' in str(e.value)
    waits = image_files_of(loader.dataset).folder.take_waits()
    assert len(waits) == 1 and not waits[0].came_back
    assert take_unreadable(loader.dataset) is None or not image_files_of(loader.dataset).unreadable()


@pytest.mark.parametrize('number, is_gone', (
    (errno.ESTALE, True), (errno.ENOTCONN, True), (errno.EHOSTDOWN, True), (errno.ETIMEDOUT, True), (errno.EIO, False),
    (errno.EACCES, False), (errno.ENOENT, False), (errno.ELOOP, False)))
def test_errors_of_a_file_in_a_folder_that_is_there(tmp_path, number, is_gone, monkeypatch):
    """Those of a connection pass; others are errors of the file, after a second try."""
    tries = []

    def read():
        tries.append(1)
        if len(tries) <= 3:
            raise UnreadableImage('text') from OSError(number, 'text')
        return b'data'
    folder = DataFolder(10.)
    if is_gone:
        assert folder.read(read, str(tmp_path)) == b'data' and len(tries) == 4
    else:
        with pytest.raises(UnreadableImage):
            folder.read(read, str(tmp_path))
        assert len(tries) == 2


def test_too_many_open_files_are_no_bad_image(tmp_path):
    def read():
        raise UnreadableImage('text') from OSError(errno.EMFILE, 'Too many open files')
    with pytest.raises(OSError, match='Too many open files'):
        DataFolder(10.).read(read, str(tmp_path))


def test_waiting_is_a_sign_of_life(tmp_path, monkeypatch):
    """Of the whole node: the other ranks wait for the one that waits for its data."""
    monkeypatch.setattr(data_folder, 'LONGEST_PAUSE', 0.1)
    file = tmp_path / 'beats'
    heartbeat.create(file, 2)
    ended = []
    with open(file, 'r+b') as f, mmap.mmap(f.fileno(), 0) as memory:
        monkeypatch.setattr(heartbeat._Writer, 'memory', memory)
        monkeypatch.setattr(heartbeat._Writer, 'offset', heartbeat.RECORD.size)
        for rank in range(2):
            heartbeat.STEPS.pack_into(memory, heartbeat.RECORD.size * rank, os.getpid(), 7)
        with Watch(file, 1., lambda *found: ended.append(found)):
            with pytest.raises(DataFolderGone):
                DataFolder(2.2).read(fail, str(tmp_path / 'gone'))
            assert not ended
            monkeypatch.setattr(watch, 'WAITING', 0.1)
            deadline = time.monotonic() + 60
            while not ended and time.monotonic() < deadline:
                time.sleep(0.05)
        assert ended


def fail():
    raise UnreadableImage('text') from FileNotFoundError(errno.ENOENT, 'No such file or directory')
