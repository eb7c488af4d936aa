"""Images that cannot be read, in the loaders of both kinds: who takes their place, and what is counted and named."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import AugMixDataset, create_dataset, create_loader

from seresnet_timm.data import fast_jpeg, jpeg, loading
from seresnet_timm.data.image_files import IGNORED_TARGET, Unreadable, count_unreadable, take_unreadable
from seresnet_timm.data.seeding import SampleSeeds
from seresnet_timm.errors import RunError

BAD = {'01.jpg': b'', '02.jpg': b'<html>', '05.png': b'\x00\x05\x16\x07'}
DECODERS = (None, *jpeg.decoders(), jpeg.PILLOW)
by_decoder = pytest.mark.parametrize('decoder', DECODERS, ids=lambda d: d.name if d else "timm's")


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """Nine images of three grey values, of which three cannot be read; a link to nothing, and a name of odd bytes."""
    root = tmp_path_factory.mktemp('data')
    for i in range(9):
        folder = root / 'train' / 'abc'[i // 3]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'{i:02d}.{"png" if i == 5 else "jpg"}'
        if path.name in BAD:
            path.write_bytes(BAD[path.name])
        else:
            Image.fromarray(np.full((40, 40, 3), 20 * i + 20, np.uint8)).save(path)
    (root / 'train' / 'c' / '09.jpg').symlink_to('nothing')
    Path(os.fsdecode(os.fsencode(root / 'train' / 'c') + b'/10\xff\n.jpg')).write_text('text')
    return root


def make_loader(root, decoder, is_training, workers=0):
    dataset = count_unreadable(create_dataset('', root=str(root), split='train'), is_training)
    dataset = fast_jpeg.with_fast_decoding(dataset, decoder, SampleSeeds(0) if is_training else None)
    loader = create_loader(dataset, (3, 32, 32), 1, is_training=is_training, no_aug=True, num_workers=workers,
                           device=torch.device('cpu'), mean=(0., 0., 0.), std=(1 / 255,) * 3)
    return loading.seed_and_speed_up(loader, 0)


def pairs(loader) -> list:
    """Grey value and target of every sample, sorted."""
    return sorted((round(image.mean().item()), target.item()) for images, targets in loader
                  for image, target in zip(images, targets))


@by_decoder
def test_training_takes_the_next_image(tree, decoder):
    """And evaluation none: an empty picture without a class."""
    loader = make_loader(tree, decoder, is_training=False)
    grey = {i: 20 * i + 20 for i in range(9)}
    expected = [(0, IGNORED_TARGET)] * 5 + [(grey[i], i // 3) for i in (0, 3, 4, 6, 7, 8)]
    assert pairs(loader) == expected
    found = take_unreadable(loader.dataset)
    assert (found.count, found.total, found.num_new) == (5, 11, 5)

    dataset = make_loader(tree, decoder, is_training=True).dataset
    taken = [(round(torch.as_tensor(dataset[i][0]).float().mean().item()), dataset[i][1]) for i in range(11)]
    assert taken == [(grey[i], i // 3) for i in (0, 3, 3, 3, 4, 6, 6, 7, 8, 0, 0)]
    assert take_unreadable(dataset).count == 5


@pytest.mark.parametrize('decoder', (None, DECODERS[1]), ids=("timm's", 'fast'))
def test_named_once_by_path(tree, decoder):
    """By workers of two epochs, with the reason; control characters and odd bytes of a name are escaped."""
    loader = make_loader(tree, decoder, True, workers=2)
    for epoch in range(2):
        loading.set_epoch(loader, epoch)
        list(loader)
        found = take_unreadable(loader.dataset)
        text = found.describe(f'of epoch {epoch}', 'others take their place')
        start = f'5 of 11 images of epoch {epoch} cannot be read, others take their place'
        if epoch:
            assert text == f'{start} (named before)' and not found.new
            continue
        reasons = {'a/01.jpg': 'it is empty', 'a/02.jpg': 'it is a web page (HTML), not an image',
                   'b/05.png': 'it is a companion file of macOS (AppleDouble), not an image',
                   'c/09.jpg': 'it is a link to nothing, which does not exist',
                   'c/10\\udcff\\n.jpg': 'it is a text file, not an image'}
        assert text == f'{start}: ' + ', '.join(f'{tree}/train/{name} ({why})' for name, why in reasons.items())
        assert found.files == [entry.split(' (')[0] for entry in found.new]
    assert take_unreadable(loader.dataset).count == 0


def test_many_are_counted():
    names = [f'{i}.jpg (it is empty)' for i in range(20)]
    text = Unreadable(300, 1000, names, 300, []).describe('', 'they count as wrong')
    assert text == '300 of 1000 images cannot be read, they count as wrong: ' + ', '.join(names[:5]) + ' and 295 more'


def test_nothing_readable_ends_the_run(tmp_path):
    """One sentence, from a worker process too."""
    for i in range(6):
        (tmp_path / 'train' / 'a').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'train' / 'a' / f'{i}.jpg').write_text('<html>')
    for workers in (0, 1):
        with pytest.raises(RunError) as e:
            list(make_loader(tmp_path, None, True, workers))
        assert str(e.value).startswith('None of the 6 images can be read, ') and '\n' not in str(e.value)
        assert 'it is a web page (HTML), not an image' in str(e.value)


def test_which_datasets_are_counted(tree):
    dataset = create_dataset('', root=str(tree), split='train')
    augmix = count_unreadable(AugMixDataset(dataset), is_training=True)
    assert take_unreadable(augmix).total == 11
    other = torch.utils.data.TensorDataset(torch.zeros(3))
    assert count_unreadable(other, True) is other and take_unreadable(other) is None


@pytest.mark.parametrize('decoder', jpeg.decoders(), ids=lambda d: d.name)
@pytest.mark.parametrize('more', ({}, {'auto_augment': 'rand-m5-mstd0.5'}), ids=('crop', 'auto-augment'))
def test_what_takes_its_place_does_not_depend_on_what_is_known(tmp_path, decoder, more):
    """Two images in a row whose decoding fails after their crop is drawn: the crop of the third is the same, whether
    the second is known to be bad or not."""
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        path = folder / f'{i}.jpg'
        Image.fromarray(rng.integers(0, 255, (60 + i, 50, 3), dtype=np.uint8)).save(path)
        if i in (1, 2):
            path.write_bytes(without_quantization(path.read_bytes()))
    pictures = []
    for known in (False, True):
        dataset = count_unreadable(create_dataset('', root=str(tmp_path), split='train'), True)
        dataset = fast_jpeg.with_fast_decoding(dataset, decoder, SampleSeeds(0))
        create_loader(dataset, (3, 32, 32), 1, is_training=True, num_workers=0, device=torch.device('cpu'), **more)
        if known:
            dataset[2]
        pictures.append(torch.as_tensor(dataset[1][0]))
        assert take_unreadable(dataset).count == 2
    assert torch.equal(*pictures)


def without_quantization(data: bytes) -> bytes:
    """A JPEG whose header is whole, but for the tables that decoding needs."""
    while (start := data.find(b'\xff\xdb')) >= 0:
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2:start + 4], 'big'):]
    return data
