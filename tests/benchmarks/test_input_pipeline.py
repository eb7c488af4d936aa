"""`bench data`: every contender is measured, on made images and on given ones."""
import json
import os

import pytest
from photographs import write_images

from seresnet_timm.cli.main import main
from seresnet_timm.data import jpeg


def test_bench_prints_and_writes(tmp_path, capfd):
    """A small run: every contender has a figure, and the ratios are those of the figures' rounds."""
    main(['bench', 'data', '--images', '10', '--rounds', '1', '--img-size', '64', '--workers', '1', '--target', '1000',
          '--json', str(tmp_path / 'bench.json')])
    out = capfd.readouterr().out
    report = json.loads((tmp_path / 'bench.json').read_text())
    names = {'timm', 'limit', 'pillow', *(d.name for d in jpeg.decoders())}
    for rows in report['modes'].values():
        assert set(rows) == names and rows['timm']['ratio'] == 1
        for row in rows.values():
            figures = row['images_per_core_second'], rows['timm']['images_per_core_second']
            assert row['ratio'] == pytest.approx(figures[0] / figures[1], rel=0.01)
    assert 'cores for 1000/s' in out and report['images']['count'] == 10 and report['psnr']['simplejpeg']['min'] > 30
    assert 'timm, processes' in report['workers'] and report['machine']['cores'] == os.cpu_count()
    with pytest.raises(SystemExit):
        main(['bench', 'data', '--images', '0'])
    assert '--images 0 is too small: give at least 1' in capfd.readouterr().err


def test_bench_of_given_images(tmp_path, capfd):
    write_images(tmp_path / 'train' / 'a', 9)
    main(['bench', 'data', '--data-dir', str(tmp_path), '--images', '6', '--rounds', '1', '--img-size', '32'])
    assert '6 JPEGs' in capfd.readouterr().out
