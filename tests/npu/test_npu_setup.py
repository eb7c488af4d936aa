"""What is set on an NPU before a training: in torch_npu, in the environment, and the cores of each rank."""
import json
import os
import re
import socket
import subprocess
from contextlib import suppress

import pytest
from conftest import train_flags

from npu.ranks import npu_cli
from seresnet_timm.ascend.environment import VARIABLES
from seresnet_timm.ascend.setup import set_environment

pytestmark = pytest.mark.preloaded

# loaded by every rank with --device-modules; says at the end what the training had
FACTS = """
import atexit, json, os
def write():
    import torch, torch_npu
    facts = dict(
        device=torch.npu.current_device(), compiles=not torch_npu.npu.is_jit_compile_false(),
        hf32=[torch.npu.conv.allow_hf32, torch.npu.matmul.allow_hf32], cores=sorted(os.sched_getaffinity(0)),
        connect_timeout=os.environ['HCCL_CONNECT_TIMEOUT'], ports=int(os.environ['HCCL_IF_BASE_PORT']),
        rank_table=os.environ.get('RANK_TABLE_FILE'))
    with open(f'{os.path.dirname(__file__)}/facts-{os.environ["RANK"]}', 'w') as f:
        json.dump(facts, f)
if 'RANK' in os.environ:
    atexit.register(write)
"""


def test_every_rank_is_set_up(few_digits, tmp_path):
    """On a 910A, whose own default is to compile every operator; another program listens at HCCL's default port."""
    (tmp_path / 'facts.py').write_text(FACTS)
    with socket.socket() as s:
        with suppress(OSError):  # somebody does already
            s.bind(('', 60000))
            s.listen()
        result = npu_cli(
            *train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 2, '-b', 25, '--epochs', 1,
                         '--device-modules', 'facts'),
            soc='Ascend910A', env={
                'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ['PYTHONPATH']]),
                'RANK_TABLE_FILE': 'hccl.json'})
    assert result.returncode == 0, result.stderr
    chosen = re.search(r'note +HCCL_IF_BASE_PORT=(\d+): .* are free; of the default 60000-60031, ', result.stderr)
    assert chosen and 'note           RANK_TABLE_FILE=hccl.json is unset: ' in result.stderr, result.stderr
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // 2 or len(cores)
    for rank in (0, 1):
        assert json.loads((tmp_path / f'facts-{rank}').read_text()) == dict(
            device=rank, compiles=False, hf32=[True, True], cores=cores[rank * share:][:share] or cores,
            connect_timeout='1800', ports=int(chosen[1]), rank_table=None)


@pytest.mark.parametrize('picked, code, words', (
    ('2-3', 2, 'HCCL fails there (EJ0001): end them, wait 10 s if they have just ended, or pick others with --devices '
               '0,1,3,4,5,6,7.'),
    pytest.param('4,6-7', 0, 'processes      3 (--devices 4,6-7)', marks=pytest.mark.slow),
    pytest.param('2', 0, 'They take memory and time of this run', marks=pytest.mark.slow)))
def test_picked_devices_and_those_in_use(few_digits, tmp_path, picked, code, words):
    """NPU 2 is used by a process that npu-smi shows: HCCL of this chip cannot share it."""
    with subprocess.Popen(['sleep', '200'], start_new_session=True) as other:
        (tmp_path / 'npu-smi').write_text(f'''#!/bin/sh
for i in 0 1 2 3 4 5 6 7; do
  echo "| $i  910A | OK           | 72.5 41 0 / 0 |"
  echo "| 0        | 0000:C1:00.0 | 0  0 / 15038 0 / 32768 |"
done
echo "| NPU  Chip | Process id | Process name | Process memory(MB) |"
echo "| 2  0 | {other.pid} | python3.9 | 62 |"
''')
        (tmp_path / 'npu-smi').chmod(0o755)
        result = npu_cli(
            *train_flags(few_digits, tmp_path, '--device', 'npu', '-b', 25, '--dry-run', '--devices', picked),
            env={'PATH': f'{tmp_path}:{os.environ["PATH"]}'}, soc='Ascend910A')
        other.kill()
    assert result.returncode == code and words in result.stderr, result.stderr
    told = f'by `npu-smi info`: NPU 2: python3.9 (pid {other.pid}, 62 MB). '
    assert (told in result.stderr) == ('2' in picked), result.stderr


def test_recommended_variables_are_set_with_their_reason():
    """Those that the user has not set, and no other."""
    environ = {'HCCL_CONNECT_TIMEOUT': '600', 'PTCOPY_ENABLE': '1'}
    notes = set_environment(environ)
    assert environ == {'TASK_QUEUE_ENABLE': '2', 'HCCL_CONNECT_TIMEOUT': '600', 'PTCOPY_ENABLE': '1'}
    assert f'TASK_QUEUE_ENABLE=2: {VARIABLES["TASK_QUEUE_ENABLE"].reason}.' in notes and len(notes) == 3


def test_channels_last_is_refused(few_digits, tmp_path):
    result = npu_cli(*train_flags(few_digits, tmp_path, '--device', 'npu', '--nproc', 1, '--channels-last'))
    assert result.returncode == 2 and '--channels-last is not for an NPU' in result.stderr, result.stderr
    assert not (tmp_path / 'run').exists()
