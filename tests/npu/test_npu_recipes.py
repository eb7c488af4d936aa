"""Every recipe on NPUs: the losses of the CPU, over HCCL, on 1, 2 and 8 of them."""
import json
import subprocess
from pathlib import Path

import ascend_emulator
import preloaded
import pytest
from conftest import ROOT, run_cli
from ports import free_ports
from recipe_runs import (
    NEW_PRESETS,
    SCRIPTS,
    check_preset_run,
    final_lines,
    preset_run,
    recipe,
    rows,
    write_teacher,
)

from seresnet_timm.ascend import hccl_network

pytestmark = pytest.mark.preloaded

# small images and batches; float32, so that losses can be compared
SMALL = ('--model', 'seresnet18_ascend', '--img-size', 32, '-j', 1, '--output', 'out', '--experiment', 'run')
NARROW = ('--model-kwargs', 'channels=(8,16,24,32)')
FLOAT32 = ('--amp-level', 'O0')
TWO_EPOCHS = ('--nproc', 2, '--batch_size=64', '--train_epochs', 2, '--learning-rate', 0.06)


@pytest.fixture(autouse=True)
def counted(tmp_path, monkeypatch):
    """The ranks of each test leave their counters in `tmp_path/counters`."""
    (tmp_path / 'counters').mkdir()
    monkeypatch.setenv('ASCEND_EMULATOR_COUNTERS', str(tmp_path / 'counters'))


def ran_on_npus(tmp_path: Path, num_ranks: int) -> None:
    """Each rank has computed on its NPU, and has talked to the others through HCCL."""
    counters = ascend_emulator.read_counters(tmp_path / 'counters')
    assert set(counters) == set(range(num_ranks))
    for values in counters.values():
        assert values['operators'] > 200
        assert (values['collective_bytes'] > 0) == (num_ranks > 1)


@pytest.fixture(scope='module')
def trained_on_cpu(few_digits, tmp_path_factory):
    cwd = tmp_path_factory.mktemp('cpu')
    result = recipe('train_8p', f'--data_path={few_digits}', *SMALL, *NARROW, '--device', 'cpu', *TWO_EPOCHS,
                    '--scripts', 'bundled', '--fast-step', 'off', cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / 'out' / 'run'


@pytest.mark.xdist_group('train_8p')
@pytest.mark.parametrize('scripts', SCRIPTS)
def test_train_8p_then_eval_8p(few_digits, tmp_path, trained_on_cpu, scripts):
    """Losses, top-1 and learning rates of two ranks on npu equal those on CPU; evaluated on 1 rank and on 2."""
    result = recipe('train_8p', f'--data_path={few_digits}', *SMALL, *NARROW, *FLOAT32, '--device', 'npu', *TWO_EPOCHS,
                    '--scripts', scripts, '--fast-step', 'off', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ran_on_npus(tmp_path, 2)
    folder = tmp_path / 'out' / 'run'
    lines, last = final_lines(result), rows(folder)[-1]
    assert lines['Final Train Accuracy'] == pytest.approx(last['eval_top1'], abs=1e-3)
    assert [r['lr'] for r in rows(folder)] == pytest.approx([0.06 * (e + 1) / 6 for e in (0, 1)])
    for on_npu, on_cpu in zip(rows(folder), rows(trained_on_cpu)):
        assert on_npu == pytest.approx(on_cpu, rel=1e-5)
    assert json.loads((folder / 'run.json').read_text())['settings']['device'] == 'npu'

    for nproc in (1, 2) if scripts == 'bundled' else (2,):
        result = recipe('eval_8p', f'--data_path={few_digits}', *SMALL[:6], *NARROW, *FLOAT32, '--device', 'npu',
                        '--nproc', nproc, '--scripts', scripts, f'--resume={folder}/last.pth.tar', cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert final_lines(result)['Final Train Accuracy'] == pytest.approx(last['eval_top1'], abs=1e-3)


@pytest.mark.parametrize('scripts', SCRIPTS)
def test_train_1p_as_it_is(few_digits, tmp_path, scripts):
    """On one NPU with its own settings: fp16 and torch_npu's dynamic loss scale; the device found by itself."""
    result = recipe('train_1p', f'--data_path={few_digits}', *SMALL, '--batch_size=32', '--scripts', scripts,
                    cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ran_on_npus(tmp_path, 1)
    assert 'device         npu (found Ascend910B1)' in result.stderr
    assert 'precision      amp float16' in result.stderr and "dynamic, torch_npu's" in result.stderr
    assert final_lines(result)['Final Performance images/sec'] > 0 and len(rows(tmp_path / 'out' / 'run')) == 1
    epoch, = json.loads((tmp_path / 'out' / 'run' / 'run.json').read_text())['epochs']
    assert epoch['total_gib'] == 64 and f'Memory: {epoch["peak_gib"]:.2f} GiB at the peak, of 64.00' in result.stderr
    assert epoch['peak_gib'] > 2 * 4 * 11e6 / 2**30, 'less than the weights and gradients take'


@pytest.mark.slow
@pytest.mark.parametrize('name, num_ranks', [
    ('train_1p', 2), ('train_8p', 1), ('train_performance_8p', 1), ('train_performance_8p', 2)])
def test_other_numbers_of_npus(few_digits, tmp_path, name, num_ranks):
    """Each training recipe, at its own precision, on as many NPUs as the user says."""
    result = recipe(name, f'--data_path={few_digits}', *SMALL, '--batch_size=32', '--train_epochs', 1, '--nproc',
                    num_ranks, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ran_on_npus(tmp_path, num_ranks)
    epoch, = json.loads((tmp_path / 'out' / 'run' / 'run.json').read_text())['epochs']
    assert epoch['images'] == 96 and final_lines(result)['Final Performance images/sec'] > 0
    log, = (tmp_path / 'out' / 'run').glob('*.log')
    assert f'RankSize = {num_ranks}' in log.read_text() and 'BatchSize = 32' in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize('name', NEW_PRESETS)
def test_presets(few_digits, tmp_path, name):
    """An epoch of every recipe at its own precision, on two NPUs."""
    taught = write_teacher(tmp_path / 'teacher') if name == 'distill' else ()
    # six steps: the first ones may be skipped, until the loss scale fits
    flags = preset_run(name, few_digits, tmp_path, '--device', 'npu', '--nproc', 2, '-b', 8, *taught)
    result = run_cli(*(f for f in flags if f not in FLOAT32), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ran_on_npus(tmp_path, 2)
    check_preset_run(tmp_path, 2)
    assert 'precision      amp float16' in result.stderr


@pytest.mark.slow
def test_train_performance_8p_on_eight_npus(few_digits, tmp_path):
    """All eight NPUs, as the recipe chooses them; the ModelZoo's O2 at its fixed loss scale, and its log."""
    result = recipe('train_performance_8p', f'--data_path={few_digits}', *SMALL[:4], '-j', 0, *SMALL[6:],
                    '--batch_size=32', '--train_epochs', 1, '--opt-level', 'O2', '--loss-scale', 1024, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ran_on_npus(tmp_path, 8)
    assert 'processes      8 (one for each npu)' in result.stderr
    assert 'precision      O2' in result.stderr and 'static 1024' in result.stderr
    final_lines(result)
    log = (tmp_path / 'out' / 'run' / 'SE_Resnet50_bs32_8p_acc.log').read_text()
    assert 'RankSize = 8' in log and 'BatchSize = 32' in log


@pytest.mark.slow
def test_train_multinode_on_two_machines(few_digits, tmp_path):
    """Two launchers of one NPU each meet, and end with the same weights and the same closing lines."""
    address = next((a for here in hccl_network.all_addresses().values() for a in here
                    if ':' not in a and not a.startswith('127.')), None)
    if address is None:
        pytest.skip('this machine has only a loopback interface, which is refused for several nodes')
    port = free_ports()
    command = [
        'bash', str(ROOT / 'recipes' / 'train_multinode.sh'), f'--data_path={few_digits}', *map(str, SMALL), *FLOAT32,
        '--batch_size=32', '--train_epochs', '1', '--nnodes=2', '--nproc', '1', f'--local_addr={address}',
        f'--master_addr={address}', f'--master_port={port}', '--scripts', 'bundled']
    nodes = [
        subprocess.Popen(
            [*command, f'--node_rank={node}'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**preloaded.environment(), 'PYTHON': preloaded.python()})
        for node in (0, 1)]
    outputs = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    ran_on_npus(tmp_path, 2)
    assert 'Final Performance images/sec' in outputs[0][0] and 'Final' not in outputs[1][0]
    assert len(rows(tmp_path / 'out' / 'run')) == 1
