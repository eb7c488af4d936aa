"""Processes on the emulated server: the command line, and programs of several ranks."""
import json
import os
import subprocess
from pathlib import Path
from typing import Dict

import ascend_emulator
import preloaded
from conftest import run_cli


def npu_cli(*argv, env=None, timeout=280, **settings):
    """Run `python -m seresnet_timm ...` on an emulated server with these settings."""
    return run_cli(*argv, env={**ascend_emulator.environment(**settings), **(env or {})}, timeout=timeout)


def run_ranks(program: str, num_ranks: int, tmp_path: Path, timeout: int = 240, **settings) -> Dict[int, dict]:
    """Run a program on several ranks, with torchrun.

    Args:
        program: Python source. It finds `rank` and an initialised process group, and leaves its results in `result`.
        settings: Settings of the emulator.

    Returns:
        `result` of each rank.
    """
    (tmp_path / 'program.py').write_text(f"""
import json, os
import torch
import torch.distributed as dist
from ascend_emulator import counters
rank = int(os.environ['RANK'])
torch.npu.set_device(rank)
dist.init_process_group('hccl')
result = {{}}
{program}
with open(f'{tmp_path}/result-{{rank}}.json', 'w') as f:
    json.dump(result, f)
dist.destroy_process_group()
""")
    done = subprocess.run(
        [preloaded.python(), '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={num_ranks}',
         '-m', 'program'],
        env=preloaded.environment({**os.environ, **ascend_emulator.environment(**settings)}), cwd=tmp_path,
        capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return {r: json.loads((tmp_path / f'result-{r}.json').read_text()) for r in range(num_ranks)}
