"""The results table and the curves."""
import csv
import json

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image


@pytest.fixture
def run(tmp_path):
    """A run's folder as train.py leaves it, with figures that are easy to check."""
    folder = tmp_path / 'run'
    folder.mkdir()
    epochs = [{'epoch': e, 'fps': fps, 'train_seconds': 1.0} for e, fps in enumerate((100.0, 400.0, 300.0))]
    record = {
        'plan': {'model': 'seresnet50_ascend', 'device': 'npu:0', 'world_size': 8, 'precision': 'amp float16',
                 'global_batch_size': 1024},
        'versions': {'torch': '2.9.0+cpu'}, 'epochs': epochs, 'best': None, 'started': 'x', 'finished': None,
    }
    (folder / 'run.json').write_text(json.dumps(record))
    with open(folder / 'summary.csv', 'w', newline='') as f:
        writer = csv.DictWriter(f, ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr'])
        writer.writeheader()
        for e, top1 in enumerate((70.1, 77.5214, 77.3)):
            writer.writerow(dict(
                epoch=e, train_loss=2 - e / 2, eval_loss=1.9 - e / 2, eval_top1=top1, eval_top5=90, lr=0.1))
    return folder


def test_table_and_curves(run):
    result = run_cli('report', run)
    assert result.returncode == 0, result.stderr
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in result.stdout.splitlines()[:3]]
    assert table[0] == ['NAME', 'Acc@1', 'FPS', 'Epochs', 'AMP_Type', 'Torch_Version']
    assert table[2] == ['8p-NPU', '77.521', '300.00', '3', 'O1', '2.9.0']
    assert f'Curves: {run}/curves.png' in result.stdout
    image = np.asarray(Image.open(run / 'curves.png').convert('L'), dtype=float)
    height, width = image.shape
    for panel in (image[:height // 2, :width // 2], image[:height // 2, width // 2:],
                  image[height // 2:, :width // 2], image[height // 2:, width // 2:]):
        assert panel.std() > 10  # something is drawn in each of the four
    assert not list(run.glob('.*'))


def test_several_runs(run):
    result = run_cli('report', run, run)
    assert result.stdout.count('8p-NPU') == 2


@pytest.mark.parametrize('missing, hint', (
    ('run.json', 'holds no run.json'), ('summary.csv', 'holds no summary.csv yet')))
def test_folder_that_is_not_a_run(run, missing, hint):
    (run / missing).unlink()
    result = run_cli('report', run)
    assert result.returncode == 2 and hint in result.stderr and result.stdout == ''


def test_broken_record(run):
    (run / 'run.json').write_text('{"plan": 1')
    assert 'is not the record of a run' in run_cli('report', run).stderr
