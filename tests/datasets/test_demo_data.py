"""The demo dataset: real scans, all of them, the same for everybody."""
import hashlib
from collections import Counter

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image

from seresnet_timm.datasets.demo import write_demo_data
from seresnet_timm.errors import UsageError

pytestmark = pytest.mark.preloaded


def digest(root) -> str:
    h = hashlib.sha256()
    for file in sorted(root.rglob('*.jpg')):
        h.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return h.hexdigest()


def test_every_scan_once_in_its_class(digits):
    from sklearn.datasets import load_digits
    data = load_digits()
    files = list(digits.rglob('*.jpg'))
    assert sorted(int(f.stem) for f in files) == list(range(1797))
    for file in files:
        index = int(file.stem)
        assert file.parent.name == str(data.target[index])
        image = Image.open(file)
        assert image.format == 'JPEG' and image.size == (32, 32) and image.mode == 'RGB'
        if index % 50 == 0:  # shrunk back, the picture is the scan
            shrunk = np.asarray(image.convert('L').resize((8, 8), Image.Resampling.BOX), dtype=float)
            assert np.corrcoef(shrunk.flatten(), data.images[index].flatten())[0, 1] > 0.98


def test_split_is_stratified(digits):
    train = Counter(f.parent.name for f in (digits / 'train').rglob('*.jpg'))
    val = Counter(f.parent.name for f in (digits / 'val').rglob('*.jpg'))
    assert sum(train.values()) == 1438 and sum(val.values()) == 359
    assert all(abs(val[c] / (val[c] + train[c]) - 0.2) < 0.003 for c in map(str, range(10)))


def test_seed(digits, tmp_path):
    write_demo_data(str(tmp_path / 'same'))
    write_demo_data(str(tmp_path / 'other'), seed=1)
    assert digest(tmp_path / 'same') == digest(digits) != digest(tmp_path / 'other')


def test_existing_folder_is_left_alone(digits, tmp_path):
    before = digest(digits)
    result = run_cli('demo-data', digits)
    assert result.returncode == 2 and f'{digits} exists and is not an empty folder' in result.stderr
    assert digest(digits) == before and not list(digits.parent.glob('.*'))
    (tmp_path / 'file').write_text('')
    with pytest.raises(UsageError, match='Cannot write to'):
        write_demo_data(str(tmp_path / 'file' / 'x'))


def test_verb(tmp_path):
    result = run_cli('demo-data', tmp_path / 'new' / 'digits')
    assert result.stdout.strip().endswith('10 classes, 1438 training and 359 validation images')
    assert oct((tmp_path / 'new' / 'digits').stat().st_mode & 0o777) == '0o755'
