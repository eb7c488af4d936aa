"""Which CANN belongs to which torch_npu: the table, what doctor says of it, and the pages that show it."""
import pytest
from conftest import ROOT

from seresnet_timm.ascend import cann_versions, wheels


def test_the_pages_show_the_table():
    for page in ('docs/install.md', 'docs/zh-CN/install.md'):
        assert cann_versions.as_table() in (ROOT / page).read_text(encoding='utf-8'), page


def test_every_supported_torch_has_a_row():
    torches = {wheels.dotted(wheels.release(name)) for name in cann_versions.RELEASES}
    assert torches == set(wheels.TORCHVISION)


@pytest.mark.parametrize('torch_npu, text', (
    ('2.10.0.post4', 'torch_npu 2.10.0.post4 belongs to CANN 9.1.0, and runs with 8.5.0 and 9.0.0 too'),
    ('2.6.0+git1', 'torch_npu 2.6.0 belongs to CANN 8.2.RC1'),
    ('2.10.0.post2', 'does not name torch_npu 2.10.0.post2; 2.10.0, the nearest before it, belongs to CANN 9.0.0'),
    ('2.10.0.post7', '2.10.0.post4, the nearest before it, belongs to CANN 9.1.0'),
    ('2.14.0', '2.12.0, the nearest before it, belongs to CANN 9.1.0'),
    ('2.5.1', "Ascend's table does not name torch_npu 2.5.1"),
    ('', "Ascend's table does not name torch_npu of this version"),
))
def test_cann_of_a_torch_npu(torch_npu, text):
    assert text in cann_versions.describe(torch_npu)


@pytest.mark.parametrize('torch_npu, cann, remedy', (
    ('2.8.0', '8.3.RC1', None),
    ('2.8.0', '8.5.0', 'install CANN 8.3.RC1, or a torch_npu of CANN 8.5.0: 2.6.0.post5, 2.7.1.post2, 2.8.0.post2, '
                       '2.9.0'),
    ('2.10.0', '9.1.0.3', None),  # runs with 9.1.0 too
    ('2.10.0', '8.3.RC1', 'install CANN 9.0.0, or a torch_npu of CANN 8.3.RC1: 2.6.0.post3, 2.7.1, 2.8.0'),
    ('2.10.0', '8.0.0', 'install CANN 9.0.0'),
    ('2.8.0', '7.6.0.1.220', None),  # a part of CANN
    ('2.8.0', 'of unknown version', None),
    ('2.14.0', '8.0.0', None),  # Ascend has not said
))
def test_another_cann_is_named(torch_npu, cann, remedy):
    found = cann_versions.mismatch(torch_npu, cann)
    assert (found and found[1]) == remedy
    assert found is None or found[0].endswith(f'; installed is CANN {cann}')
