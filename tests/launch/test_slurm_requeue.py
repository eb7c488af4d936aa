"""recipes/slurm/train.sbatch with programs in SLURM's place that send the real signal and queue the job again."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from training import load, summary

PROGRAMS = {
    # runs the job again as long as it was queued again
    'sbatch': '''
export SLURM_JOB_ID=77 SLURM_SUBMIT_DIR="$PWD"
while true; do
  rm -f "$STATE/queued"
  bash "$@"
  code=$?
  [ -e "$STATE/queued" ] || exit $code
done
''',
    # as one task; the first time it gets the signal in the second epoch
    'srun': '''
echo "$@" >> "$STATE/commands"
[ "$1" = --cpu-bind=none ] || exit 3  # the processes of all devices would share one core
shift
export SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_NODEID=0 SLURM_LOCALID=0 SLURM_STEP_NUM_NODES=1
"$@" 2> "$STATE/log" &
task=$!
if [ ! -e "$STATE/signalled" ]; then
  until grep -q 'Train: 1 ' "$STATE/log"; do sleep 0.05; kill -0 $task || break; done
  touch "$STATE/signalled"
  kill -s "$SIGNAL" $task
fi
wait $task
''',
    'scontrol': 'echo "$@" >> "$STATE/requeues"; touch "$STATE/queued"',
}


@pytest.fixture
def sbatch(few_digits, tmp_path):
    """Function that submits the job of a small training and waits for its end; its exit code."""
    programs, state = tmp_path / 'bin', tmp_path / 'state'
    programs.mkdir()
    state.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f'#!/usr/bin/env bash{text if text[0] == chr(10) else chr(10) + text}')
        (programs / name).chmod(0o755)

    def submit(signal: str) -> int:
        env = {k: v for k, v in os.environ.items() if not k.startswith('SLURM_')}
        env.update(PATH=f'{programs}:{env["PATH"]}', STATE=str(state), SIGNAL=signal, PYTHON=sys.executable)
        return subprocess.run(
            ['sbatch', 'recipes/slurm/train.sbatch', 'train_1p', f'--data_path={few_digits}', '--device', 'cpu',
             '--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4', '--img-size', '32',
             '-b', '4', '--train_epochs', '3', '--log-interval', '1', '--workers', '0', '--scripts', 'bundled',
             '--output', str(tmp_path / 'out')], cwd=ROOT, env=env, timeout=400).returncode
    return submit


def lines(path: Path) -> list:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_comes_back_by_itself(sbatch, tmp_path):
    assert sbatch('USR1') == 0
    assert lines(tmp_path / 'state' / 'requeues') == ['requeue 77']
    first, second = lines(tmp_path / 'state' / 'commands')
    assert first == second
    assert 'Going on with batch' in (tmp_path / 'state' / 'log').read_text()
    folder = tmp_path / 'out' / 'slurm-77'
    assert [row['epoch'] for row in summary(folder)] == ['0', '1', '2']
    assert load(folder / 'last.pth.tar')['run_state']['epoch'] == 3


@pytest.mark.slow
def test_stays_ended_after_scancel(sbatch, tmp_path):
    assert sbatch('TERM') == 143
    assert not lines(tmp_path / 'state' / 'requeues')
    assert 0 < load(tmp_path / 'out' / 'slurm-77' / 'last.pth.tar')['run_state']['batches']
