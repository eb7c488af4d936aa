"""The alpha-beta model of benchmarks/scaling.py against numbers computed by hand."""
import pytest
from conftest import ROOT, load_file

scaling = load_file(ROOT / 'benchmarks' / 'scaling.py')

HCCS, ROCE = scaling.Link(10e-6, 10e9), scaling.Link(50e-6, 5e9)


def model(**kwargs):
    return scaling.Model(**dict(
        dict(step=0.150, gradient=100e6, hccs=HCCS, roce=ROCE, per_node=4, bucket=20e6), **kwargs))


def test_ring():
    # 2 x 3 messages of 10 us, and 2 x 3/4 x 100 MB at 10 GB/s
    assert scaling.ring(100e6, 4, HCCS) == pytest.approx(60e-6 + 15e-3)
    assert scaling.ring(100e6, 1, HCCS) == 0
    assert scaling.all_reduce(100e6, 2, model()) == pytest.approx(20e-6 + 10e-3)


def test_two_levels():
    # within nodes of 4 as above; between 3 nodes 2 x 2 messages of 50 us, and 2 x 2/3 x 25 MB at 5 GB/s
    assert scaling.all_reduce(100e6, 12, model()) == pytest.approx(15.06e-3 + 200e-6 + 100e-3 / 15)
    with pytest.raises(ValueError, match='6 devices do not fill nodes of 4'):
        scaling.all_reduce(100e6, 6, model())


def test_what_the_backward_pass_hides():
    # 100 ms of backward pass hide all of 15.06 ms but the last bucket: 60 us + 2 x 3/4 x 20 MB at 10 GB/s
    assert scaling.exposed(4, model()) == pytest.approx(60e-6 + 3e-3)
    assert scaling.exposed(4, model(overlap=0.)) == pytest.approx(15.06e-3)
    assert scaling.exposed(4, model(overlap=0.1)) == pytest.approx(5.06e-3)
    assert scaling.exposed(1, model()) == 0


def test_efficiency_and_calibration():
    assert scaling.efficiency(1, model(), overhead=0.02) == 1
    assert scaling.efficiency(4, model(overlap=0.), overhead=0.00994) == pytest.approx(150 / 175)
    overhead = scaling.calibrate(4, 0.8, model(overlap=0.))
    assert overhead == pytest.approx(37.5e-3 - 15.06e-3)
    assert scaling.efficiency(4, model(overlap=0.), overhead) == pytest.approx(0.8)


def test_report(capsys):
    scaling.main([])
    out = capsys.readouterr().out
    for words in ('Published:', 'Measured:', 'Assumed:', '1,024'):
        assert words in out
    eight = next(line for line in out.splitlines() if line.strip().startswith('8 '))
    assert '88.8%' in eight and f'{0.888 * 8 * 747.41:,.0f}' in eight
    sixteen = next(line for line in out.splitlines() if line.strip().startswith('16 '))
    assert '96.0%' in sixteen
