"""Confusion matrix, top-1 of each class and worst images, compared with scikit-learn."""
import numpy as np
import pytest
from PIL import Image

from seresnet_timm.runs import prediction_pictures as pictures
from seresnet_timm.runs.predictions import UNREADABLE, Predictions


def make(size, images=5, names=None, files=None, unreadable=0):
    random = np.random.default_rng(size)
    targets = np.repeat(np.arange(size), images)
    predicted = np.where(random.random(len(targets)) < .7, targets, random.integers(0, size, len(targets)))
    predicted[:unreadable] = UNREADABLE
    own = random.random(len(targets))
    return Predictions(
        'from last.pth.tar', 'val', names or [f'class {i}' for i in range(size)],
        files or [f'{i}.jpg' for i in range(len(targets))], targets.tolist(), predicted.tolist(), own.tolist(),
        own.tolist(), (predicted == targets).tolist(), lambda file: Image.new('RGB', (9, 9)) if files else None)


@pytest.mark.parametrize('size', (2, 10, 1000))
def test_against_scikit_learn(size):
    metrics = pytest.importorskip('sklearn.metrics')
    found = make(size)
    expected = metrics.confusion_matrix(found.targets, found.predicted, labels=range(size))
    assert (found.matrix() == expected).all()
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(found.targets, found.predicted))
    recall = metrics.recall_score(found.targets, found.predicted, average=None, labels=range(size))
    classes = found.per_class()
    assert [c['top1'] for c in classes] == pytest.approx(100 * recall)
    pairs = found.confused()
    assert sum(p['images'] for p in pairs) == expected.sum() - np.trace(expected)
    assert [p['images'] for p in pairs] == sorted((p['images'] for p in pairs), reverse=True)
    np.fill_diagonal(expected, 0)
    assert pairs[0]['images'] == expected.max()
    for c in classes[:20]:
        assert c['confused_images'] == expected[c['index']].max()
        assert c['confused_with'] is None or expected[c['index'], found.class_names.index(c['confused_with'])] > 0


def test_an_image_that_cannot_be_read_is_wrong_and_in_no_cell():
    found = make(3, unreadable=2)
    assert found.matrix().sum() == 13 and found.unreadable == ['0.jpg', '1.jpg']
    assert found.per_class()[0]['images'] == 5 and found.top1 == 100 * np.trace(found.matrix()) / 15
    assert not {0, 1} & set(found.worst(100))


def test_the_worst_are_wrong_and_in_order():
    found = make(10)
    worst = found.worst(100)
    assert all(found.targets[i] != found.predicted[i] for i in worst) and len(worst) == 50 - found.correct
    assert [found.of_target[i] for i in worst] == sorted(found.of_target[i] for i in worst)
    assert found.worst(3) == worst[:3] and found.worst(0) == []


def test_a_class_without_images():
    found = Predictions('', 'val', ['a', 'b'], ['1'], [0], [1], [.9], [.1], [True])
    assert [(c['images'], c['top1']) for c in found.per_class()] == [(1, 0), (0, None)]
    assert found.to_dict(5)['worst'][0] == {
        'file': '1', 'class': 'a', 'predicted': 'b', 'probability': .9, 'probability_of_class': .1}


@pytest.mark.parametrize('size', (2, 1000))
def test_picture_of_the_matrix(tmp_path, size):
    """Names of any letters; an odd name is no formula. A single error among 1,000 classes can be seen."""
    names = ['$x_{$', '_a\n\x1b[1m'] if size == 2 else None
    pictures.draw_matrix(make(size, names=names), tmp_path / 'm.png')
    pixels = np.asarray(Image.open(tmp_path / 'm.png').convert('L'), dtype=float)
    assert pixels.std() > 10 and max(pixels.shape) < 1200
    shares = np.eye(1000)
    shares[3, 900] = 0.5
    small = pictures.shrink(shares)
    assert small.shape == (200, 200) and small[0, 180] == 0.5 and (np.diag(small) == 1).all()
    assert pictures.shrink(np.eye(457)).shape == (153, 153)


def test_contact_sheet_without_files(tmp_path):
    found = make(2, names=['a$', '_b'], unreadable=1)
    pictures.draw_worst(found, found.worst(4), tmp_path / 'w.png')
    assert Image.open(tmp_path / 'w.png').size[0] > 200


@pytest.mark.parametrize('size', ((5, 300), (8, 8), (3000, 20), (1, 2000), (2000, 1), (1, 1)))
def test_thumbnails_are_square(size):
    assert pictures.thumbnail(Image.new('RGB', size, 'red')).size == (160, 160) and pictures.thumbnail(None) is None


def test_names_that_differ_in_the_middle_get_their_index():
    assert pictures.short_names(['cat', 'dog']) == ['cat', 'dog']
    names = pictures.short_names([20 * 'a' + letter + 20 * 'b' for letter in 'xyz'])
    assert [name[:3] for name in names] == ['0: ', '1: ', '2: ']
