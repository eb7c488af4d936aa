"""`--devices`: which devices, which contradictions, and what is set."""
import pytest
import torch

from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import devices


@pytest.mark.parametrize('text, numbers', (
    ('0', [0]), ('0,2-5', [0, 2, 3, 4, 5]), ('7,0', [0, 7]), ('3-3', [3]), (' 1 , 4 - 5', [1, 4, 5])))
def test_lists(text, numbers):
    assert devices.parse_devices(text) == numbers


@pytest.mark.parametrize('text, words', (
    ('', 'is not a list of device numbers'), ('a', 'is not a list'), ('0,', 'is not a list'), ('0;1', 'is not a list'),
    ('-1', 'is not a list'), ('0-', 'is not a list'), ('0..3', 'is not a list'),
    ('npu:0', 'is not a list'), ('٣', 'is not a list'),
    ('1,1', 'names device 1 twice'), ('0-3,2', 'names device 2 twice'), ('5-2', 'ends before it begins'),
    ('0-9999', 'or is too long')))
def test_what_is_no_list(text, words):
    with pytest.raises(UsageError) as error:
        devices.parse_devices(text)
    assert words in str(error.value) and str(error.value).endswith('.')


@pytest.mark.parametrize('options, modelzoo, words', (
    (dict(nproc='2'), {}, 'names 3 devices, and --nproc asks for 2'),
    (dict(nproc='4'), {}, 'names 3 devices, and --nproc asks for 4'),
    (dict(device='cpu'), {}, '--device cpu contradict each other'),
    (dict(device='npu:1'), {}, 'as npu:1 is one device'),
    ({}, dict(device_list='0,1'), '--devices and --device_list mean the same')))
def test_contradictions(options, modelzoo, words):
    with pytest.raises(UsageError) as error:
        devices.check_options({'devices': '0-2', **options}, modelzoo)
    assert words in str(error.value)
    devices.check_options({'devices': '0-2', 'nproc': '3', 'device': 'npu'}, {})
    devices.check_options({'nproc': '2', 'device': 'npu:1'}, modelzoo)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_there_is_no_device_to_pick(tmp_path, capsys, monkeypatch):
    for name in devices.VISIBLE.values():
        monkeypatch.setenv(name, '0,1')  # and is restored
    with pytest.raises(SystemExit):
        main(['train', '--data-dir', str(tmp_path), '--devices', '0-1', '--device', 'auto'])
    assert '--devices 0-1 picks NPUs or GPUs, and there are none here (no npu: ' in capsys.readouterr().err


def machine(tmp_path, *numbers):
    (tmp_path / 'dev').mkdir()
    for number in numbers:
        (tmp_path / 'dev' / f'davinci{number}').touch()
    return tmp_path


def test_only_the_named_devices_are_visible(tmp_path):
    root = machine(tmp_path, *range(8))
    for before in ({}, {'ASCEND_RT_VISIBLE_DEVICES': '0,2,3,4', 'CUDA_VISIBLE_DEVICES': '2,3,0'}):
        environ = dict(before)
        devices.hide_other_devices('2-3,0', environ, root)
        assert environ == dict.fromkeys(('ASCEND_RT_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES'), '0,2,3')


@pytest.mark.parametrize('text, environ, words', (
    ('0,8', {}, 'names 8, but this machine has 8 NPUs, which have the numbers 0 to 7'),
    ('6-9', {}, 'names 8, 9, but'),
    ('0,5', {'ASCEND_RT_VISIBLE_DEVICES': '4,5'}, 'names 0, which ASCEND_RT_VISIBLE_DEVICES=4,5 does not allow'),
    ('0', {'CUDA_VISIBLE_DEVICES': ''}, 'which CUDA_VISIBLE_DEVICES= does not allow'),
    ('0', {'CUDA_VISIBLE_DEVICES': 'GPU-3f2a'}, 'which CUDA_VISIBLE_DEVICES=GPU-3f2a does not allow')))
def test_devices_that_are_not_there(tmp_path, text, environ, words):
    before = dict(environ)
    with pytest.raises(UsageError) as error:
        devices.hide_other_devices(text, environ, machine(tmp_path, *range(8)))
    assert words in str(error.value) and str(error.value).endswith('.') and environ == before


@pytest.mark.parametrize('value, words', (
    ('0,1,8', 'names 8, but this machine has 4 NPUs'),
    ('4,5', 'the numbers 0 to 3 (davinci4, davinci5, davinci6, davinci7, in this order)'),
    ('', "='' is not a list of NPUs"), ('0-3', "'0-3' is not a list"),
    ('1,0', 'is not ascending without doubles'), ('0,0', 'is not ascending'), ('all', 'is not a list of NPUs')))
def test_a_variable_with_which_torch_npu_sees_too_few(tmp_path, value, words):
    root = machine(tmp_path, 4, 5, 6, 7)  # a container: its numbers begin at 0
    with pytest.raises(UsageError) as error:
        devices.check_visible({'ASCEND_RT_VISIBLE_DEVICES': value}, root)
    assert words in str(error.value) and str(error.value).endswith('.')
    devices.check_visible({'ASCEND_RT_VISIBLE_DEVICES': '0,1,3'}, root)
    devices.check_visible({'ASCEND_RT_VISIBLE_DEVICES': value}, tmp_path / 'without')


def test_numbers_in_a_process():
    assert devices.real_numbers(3, {}) == {0: 0, 1: 1, 2: 2}
    assert devices.real_numbers(2, {'ASCEND_RT_VISIBLE_DEVICES': '3,6'}) == {3: 0, 6: 1}
