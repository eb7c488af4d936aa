"""Files of labels and results of an evaluation: --real-labels, --class-map, --results-file."""
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import MODEL, run_here, subset
from PIL import Image
from timm.data import create_transform

pytestmark = pytest.mark.preloaded


@pytest.fixture(scope='module')
def imagenet(few_digits, tmp_path_factory):
    """Twenty images under the names of ImageNet's, in an order that is not that of their classes; and a checkpoint."""
    root = tmp_path_factory.mktemp('real') / 'data'
    subset(few_digits, root, 1, 2)
    files = sorted((root / 'val').glob('*/*'))
    for number, i in enumerate(np.random.RandomState(0).permutation(len(files)), 1):
        files[i].rename(files[i].parent / f'ILSVRC2012_val_{number:08d}.JPEG')
    model = load_new_model()
    torch.save({'state_dict': model.state_dict(), 'arch': 'seresnet18_ascend'}, root.parent / 'weights.pth.tar')
    return root


def load_new_model():
    import timm

    import seresnet_timm  # noqa: F401
    torch.manual_seed(3)
    return timm.create_model('seresnet18_ascend', num_classes=10, channels=(8, 16, 24, 32))


def validate(imagenet, *flags, data=None):
    return run_here('validate', *MODEL, '--checkpoint', imagenet.parent / 'weights.pth.tar', '--device', 'cpu',
                    '--data-dir', data or imagenet, '--workers', 0, '--fast-jpeg', 'off', *flags)


def ranked_classes(imagenet):
    """Class indices of every image of the validation split by the output, in the order of their numbers."""
    network = load_new_model().eval()
    transform = create_transform((3, 32, 32), interpolation='bilinear', crop_pct=0.875)
    files = sorted((imagenet / 'val').glob('*/*'), key=lambda p: p.name)
    batch = torch.stack([transform(Image.open(f).convert('RGB')) for f in files])
    with torch.inference_mode():
        return network(batch).argsort(dim=1, descending=True).tolist()


def test_top1_by_real_labels(imagenet, tmp_path):
    """Images without labels do not count; any label of an image is right."""
    ranked = ranked_classes(imagenet)
    labels = [[r[0]] for r in ranked[:6]] + [[r[9], r[1]] for r in ranked[6:12]] + [[r[9]] for r in ranked[12:16]]
    labels += [[]] * 4
    (tmp_path / 'real.json').write_text(json.dumps(labels))
    result = validate(imagenet, '--real-labels', tmp_path / 'real.json', '--results-file', tmp_path / 'r.json',
                      '--results-format', 'json')
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'r.json').read_text())
    assert (found['top1'], found['top5']) == (100 * 6 / 16, 100 * 12 / 16)


@pytest.mark.parametrize('content, words', (
    ('{"a": 1}', 'is not a JSON list of the labels of every image'),
    ('[1, 2]', 'is not a JSON list of the labels of every image'),
    ('not json', 'is not JSON'),
    ('', 'is not JSON'),
    ('\ufeff[[1]]', 'byte order mark'),
    (json.dumps([['1']] * 20), 'a label of image 1 is "1", labels are class indices below 10'),
    (json.dumps([[1]] * 7 + [[10]] * 13), 'a label of image 8 is 10, labels are class indices below 10'),
    (json.dumps([[1.5]] * 20), 'a label of image 1 is 1.5'),
    (json.dumps([[True]] * 20), 'a label of image 1 is true'),
    (json.dumps([[-1]] * 20), 'a label of image 1 is -1'),
    (json.dumps([[[1]]] * 20), 'a label of image 1 is [1]'),
    (json.dumps([[]] * 20), 'has no label of any image'),
    (json.dumps([[1]] * 19), 'has labels of 19 images, the data has 20'),
))
def test_real_labels_of_another_shape(imagenet, tmp_path, content, words):
    (tmp_path / 'real.json').write_text(content, encoding='utf-8')
    result = validate(imagenet, '--real-labels', tmp_path / 'real.json', '--dry-run')
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_real_labels_go_by_the_names_of_files(imagenet, few_digits, tmp_path):
    data = shutil.copytree(imagenet, tmp_path / 'data')
    image = next((data / 'val' / '3').iterdir())
    image.rename(image.parent / 'mine.jpg')
    (tmp_path / 'real.json').write_text(json.dumps([[1]] * 20))
    (tmp_path / 'valid.txt').write_text('1\n2\n')
    result = validate(imagenet, '--real-labels', tmp_path / 'real.json', '--dry-run', data=data)
    assert result.returncode == 2 and 'mine.jpg is not one of the images ILSVRC2012_val_00000001.JPEG' in result.stderr
    result = validate(imagenet, '--real-labels', tmp_path / 'real.json', '--valid-labels', tmp_path / 'valid.txt')
    assert result.returncode == 2 and '--valid-labels gives some of them other numbers' in result.stderr


@pytest.mark.parametrize('place, words', (
    ('folder', 'is a folder'), ('file/x.csv', 'is not a folder'), ('/proc/x.csv', 'cannot be written')))
def test_results_file_that_cannot_be_written(imagenet, tmp_path, place, words):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('')
    result = validate(imagenet, '--results-file', tmp_path / place)
    assert result.returncode == 2 and words in result.stderr and 'Traceback' not in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('in_map, folder, words', (
    ('e\u0301x', '\u00e9x', 'Unicode normalization: NFD and NFC: U+0065 U+0301 and U+00E9'),
    ('Dog', 'dog', 'case'), ('c\u0430t', 'cat', 'letters of another alphabet: U+0430 and U+0061')))
def test_class_map_with_a_name_that_only_looks_like_a_folder(imagenet, tmp_path, in_map, folder, words):
    data = shutil.copytree(imagenet, tmp_path / 'data')
    (data / 'val' / '3').rename(data / 'val' / folder)
    names = [in_map if i == 3 else str(i) for i in range(10)]
    (tmp_path / 'map.txt').write_text('\n'.join(names), encoding='utf-8')
    result = validate(imagenet, '--class-map', tmp_path / 'map.txt', '--dry-run', data=data)
    assert result.returncode == 2 and words in result.stderr and 'look alike' in result.stderr, result.stderr


@pytest.mark.parametrize('name, content, words', (
    ('map.txt', b'', 'names no classes'),
    ('map.txt', b'0\n0\n', "names '0' more than once"),
    ('map.txt', b'nothing\nhere\n', 'names none of the folders'),
    ('map.txt', b'\xff\x00\x01', 'save it as UTF-8'),
    ('map.csv', b'0\n1\n', 'it takes .txt'),
    ('map.pkl', b'0\n1\n', 'cannot be read'),
    ('map.txt', b'0\t0\n1\t99999\n', 'indices begin at 0'),
))
def test_class_map_of_another_shape(imagenet, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    result = validate(imagenet, '--class-map', tmp_path / name, '--dry-run')
    assert result.returncode == 2 and words in result.stderr and 'Traceback' not in result.stderr, result.stderr


def test_fewer_valid_labels_than_classes_are_refused(imagenet, tmp_path):
    """The network's outputs would have no number for some images: an IndexError within the evaluation."""
    (tmp_path / 'valid.txt').write_text('3\n1\n')
    result = validate(imagenet, '--valid-labels', tmp_path / 'valid.txt', '--dry-run')
    assert result.returncode == 2 and 'has 2 indices, the data 10 classes' in result.stderr
