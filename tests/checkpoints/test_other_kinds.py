"""Checkpoints whose values a network cannot take as they are: named, and never cast silently."""
import pytest
import timm
import torch
from conftest import run_here

import seresnet_timm  # noqa: F401
from seresnet_timm.checkpoints.convert import convert
from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.inspect import inspect
from seresnet_timm.errors import UsageError

KINDS = {
    'quantised': lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    'sparse': lambda t: t.to_sparse(),
    'complex': lambda t: t.to(torch.complex64),
    'without values': lambda t: t.to('meta'),
    'int8': lambda t: t.to(torch.int8),
    'bool': lambda t: t > 0,
}


@pytest.fixture(scope='module')
def network():
    return timm.create_model('seresnet18_ascend', num_classes=3, channels=(4, 8, 8, 8), stem_width=8)


@pytest.mark.parametrize('kind', KINDS)
def test_values_that_would_be_changed_are_refused(network, tmp_path, kind):
    weights = network.state_dict()
    torch.save({**weights, 'fc.weight': KINDS[kind](weights['fc.weight'])}, tmp_path / 'c.pth')
    with pytest.raises(UsageError, match=rf'1 of another kind: fc.weight \({kind}\)'):
        load_weights(network, str(tmp_path / 'c.pth'), 'seresnet18_ascend')
    assert inspect(str(tmp_path / 'c.pth'))['not_finite'] == 0
    assert run_here('inspect', tmp_path / 'c.pth').returncode == 0
    if kind in ('quantised', 'sparse', 'without values'):
        with pytest.raises(UsageError, match=rf'no plain numbers: fc.weight \({kind}\)'):
            convert(str(tmp_path / 'c.pth'), str(tmp_path / 'c.safetensors'))
        assert not (tmp_path / 'c.safetensors').exists()


def test_eight_bit_floats_are_taken_exactly(network, tmp_path):
    weights = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    torch.save(weights, tmp_path / 'c.pth')
    other = timm.create_model('seresnet18_ascend', num_classes=3, channels=(4, 8, 8, 8), stem_width=8)
    load_weights(other, str(tmp_path / 'c.pth'), 'seresnet18_ascend')
    assert all(torch.equal(v.float(), weights[k].float()) for k, v in other.state_dict().items())
    weights['fc.weight'] = torch.full_like(weights['fc.weight'].float(), float('nan')).to(torch.float8_e4m3fn)
    torch.save(weights, tmp_path / 'nan.pth')
    with pytest.raises(UsageError, match='not finite'):
        load_weights(other, str(tmp_path / 'nan.pth'), 'seresnet18_ascend')


def test_names_of_folders_and_keys_given_twice(tmp_path):
    (tmp_path / 'c.yaml').write_text('epochs: 1\nlr: 0.1\nepochs: 3\n')
    for flags, words in ((('--experiment', 'n' * 256), 'is longer than 255 bytes'),
                         (('--experiment', 'a\0b'), 'holds a null character'),
                         (('--config', tmp_path / 'c.yaml'), 'epochs is given twice, the second time in line 3')):
        result = run_here('train', '--data-dir', tmp_path, *flags)
        assert result.returncode == 2 and words in result.stderr, result.stderr
