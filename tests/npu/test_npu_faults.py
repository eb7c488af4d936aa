"""What goes wrong on an NPU: one sentence that says what to do, and a run that goes on."""
import re

import pytest
from conftest import WIDE, train_flags
from recipe_runs import rows

from npu.ranks import npu_cli

pytestmark = pytest.mark.preloaded


def train(data, output, *flags, nproc=1, env=None, **settings):
    return npu_cli(*train_flags(data, output, '--device', 'npu', '--nproc', nproc, '--epochs', 3, *flags),
                   env=env, **settings)


def error_of(result) -> str:
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('seresnet-timm: error')]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_lost_device(few_digits, tmp_path):
    """Lost in the second epoch: named, with the checkpoint; resumed, the run ends as one that was never broken."""
    whole = train(few_digits, tmp_path / 'whole')
    assert whole.returncode == 0, whole.stderr
    per_epoch = 2000  # operators, about; the fault strikes in the second of three epochs
    broken = train(few_digits, tmp_path / 'broken', fault=f'device_lost:after={per_epoch * 2}')
    message = error_of(broken)
    last = tmp_path / 'broken' / 'run' / 'last.pth.tar'
    assert 'npu:0 stopped working' in message and 'loses the heartbeat' in message and '507010' in message
    assert 'Resume with: ' in message and f'--resume {last}' in message
    done = len(rows(tmp_path / 'broken' / 'run'))
    assert 0 < done < 3

    resumed = train(few_digits, tmp_path / 'broken', '--resume', last)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / 'broken' / 'run') == rows(tmp_path / 'whole' / 'run')


def test_device_lost_by_another_rank(few_digits, tmp_path):
    """After the first epoch, which has fewer operators than that."""
    message = error_of(train(few_digits, tmp_path, nproc=2, fault='device_lost:rank=1:after=3500',
                             env={'HCCL_EXEC_TIMEOUT': '60'}))
    assert 'npu:1 stopped working' in message and '--resume' in message


def test_rank_that_hangs(few_digits, tmp_path):
    message = error_of(train(few_digits, tmp_path, nproc=2, fault='hang:rank=1:after=20',
                             env={'HCCL_EXEC_TIMEOUT': '2'}))
    assert 'npu:0 lost contact with the other ranks' in message and 'HCCL waits 2 s' in message
    assert 'Hccl' in message and 'time-out' in message


def test_out_of_memory_names_a_batch_size_that_fits(few_digits, tmp_path):
    """The advice, followed, works."""
    flags = ('--img-size', 128, '--epochs', 1, '-b', 32, *WIDE)
    message = error_of(train(few_digits, tmp_path, *flags, memory_mb=340))
    assert 'npu:0 is out of memory with -b 32 (NPU out of memory. Tried to allocate' in message
    advice = re.search(r'or (-b 16 --grad-accum-steps 2) for the same number of images per step', message)
    assert advice and 'try -b 16' in message
    again = train(few_digits, tmp_path / 'again', *flags, *advice[1].split(), memory_mb=340)
    assert again.returncode == 0, again.stderr
    assert 'GiB at the peak, of 0.33' in again.stderr


def test_fused_sgd_needs_an_npu(few_digits, tmp_path):
    result = npu_cli(*train_flags(few_digits, tmp_path, '--opt', 'npufusedsgd'))
    assert result.returncode == 2 and '--opt npufusedsgd needs an NPU, the device is cpu: use --opt momentum' in (
        result.stderr)


@pytest.mark.parametrize('environment, expected', [
    ({'HCCL_CONNECT_TIMEOUT': '600'}, 'HCCL_CONNECT_TIMEOUT=600 is kept as you set it; 1800 is recommended'),
    ({'PTCOPY_ENABLE': '1'}, 'PTCOPY_ENABLE is set, but has no effect')])
def test_environment_of_the_user_wins(few_digits, tmp_path, environment, expected):
    result = train(few_digits, tmp_path, '--dry-run', env=environment)
    assert expected in result.stderr, result.stderr
    assert 'jit_compile off' in result.stderr and 'TASK_QUEUE_ENABLE=0 is kept' in result.stderr
    assert 'pinned memory, so that the host need not wait for copies' in result.stderr
