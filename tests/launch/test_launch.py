"""Launching: the plan, several processes, failures, signals, several machines."""
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import preloaded
import psutil
import pytest
import torch
from conftest import ROOT, run_cli, run_here, subset, train_flags
from ports import free_ports
from training import load

pytestmark = pytest.mark.preloaded


def plan_of(result) -> dict:
    return {line[2:16].strip(): line[17:] for line in result.stderr.splitlines() if line.startswith('  ')}


def ranks_of(marker: str) -> list:
    """Processes that were started with a text in their command line or environment: ranks, loader workers, agents."""
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            started_with = (path / 'cmdline').read_bytes() + (path / 'environ').read_bytes()
        except OSError:
            continue  # ended in between
        if marker.encode() in started_with and path.name != str(os.getpid()):
            found.append(int(path.name))
    return found


def is_alive(process: psutil.Process) -> bool:
    """Nobody may have taken the exit code of a process without a parent."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def assert_none_left(marker: str, seconds: float = 60) -> None:
    """No process is left that has the marker, or that the preloaded Python forked, of which there are no others now."""
    deadline = time.time() + seconds
    while (ranks_of(marker) or preloaded.running()) and time.time() < deadline:
        time.sleep(0.2)
    assert not ranks_of(marker) and not preloaded.running()


def start_cli(*argv, env=None, fresh=True) -> subprocess.Popen:
    """As run_cli, and goes on. The arguments are in the environment too, by which `ranks_of` knows the ranks."""
    environ = dict(os.environ) if fresh else preloaded.environment()
    return subprocess.Popen(
        [sys.executable if fresh else preloaded.python(), '-m', 'seresnet_timm', *map(str, argv)],
        env={**environ, 'TIMM_SCRIPTS': '', 'TEST_ARGV': ' '.join(map(str, argv)), **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # a shell's background job, as a test run may be one, ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 90) -> None:
    deadline = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.time() < deadline
        time.sleep(0.05)


# --- the plan ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('device', ('cpu', 'npu'))
def test_dry_run_of_eight_ranks(digits, tmp_path, device):
    """Validates a plan for a machine that is not here; starts and writes nothing."""
    result = run_here(
        'recipe', 'train_8p', f'--data_path={digits}', '--device', device, '--nproc', 8,
        '--output', tmp_path / 'out', '--loss-scale', 1024, '--dry-run')
    assert result.returncode == 0, result.stderr
    plan = plan_of(result)
    assert plan['processes'] == '8 (--nproc)'
    assert plan['script'].startswith('bundled train.py')
    assert plan['output'].startswith(f'{tmp_path}/out/')
    if device == 'npu':
        assert plan['device'].startswith('npu (asked for with --device; not on this machine: ')
        assert plan['batch'] == 'global batch size 1024 = 128 x 8 processes' and plan['precision'] == 'amp float16'
        assert plan['learning rate'] == '0.6, momentum, cosine over 100 epochs, 5 of warm-up'
        assert plan['loss scaler'] == "static 1024, torch_npu's: ranks agree on overflow"
        assert plan['workers'].startswith('8 loader workers for each of 8')
    else:
        assert plan['batch'] == 'global batch size 256 = 32 x 8 processes' and (
            'shrinks' in result.stderr and plan['note'] == '--loss-scale has no effect without --amp in float16.')
    assert result.stdout == 'Dry run: nothing was started.\n' and not (tmp_path / 'out').exists()


def test_plan_names_script_hash_and_patches(few_digits, tmp_path):
    result = run_here(*train_flags(few_digits, tmp_path, '--scripts', ROOT / 'tests' / 'small_scripts', '--dry-run'))
    plan = plan_of(result)
    assert re.search(r'sha256 [0-9a-f]{12} \(--scripts ', plan['script'])
    assert 'scale_loss_on_npu' in plan['changes'] and 'create_loader' in plan['changes']


@pytest.mark.parametrize('flags, precision, rate', (
    ((), 'amp float16', '0.05, sgd, cosine over 7 epochs, 3 of warm-up'),
    (('--amp-level', 'O0'), 'float32', '0.05, sgd, cosine over 7 epochs, 3 of warm-up'),
    (('--learning-rate', 0.1), 'amp float16', '0.1, sgd, cosine over 7 epochs, 3 of warm-up'),
    (('--train_epochs', 20), 'amp float16', '0.05, sgd, cosine over 20 epochs, 3 of warm-up'),
    (('--lr', 0.2, '--epochs', 9), 'amp float16', '0.2, sgd, cosine over 9 epochs, 3 of warm-up'),
))
def test_config_is_the_base_of_everything(few_digits, tmp_path, flags, precision, rate):
    (tmp_path / 'c.yaml').write_text('amp: true\nepochs: 7\nwarmup_epochs: 3\nlr: 0.05\nbatch_size: 8\ndevice: cpu\n'
                                     'model: resnet18\nopt_kwargs: {}\nwandb_tags: []\nnum_classes: 10\n')
    result = run_here('train', '-c', tmp_path / 'c.yaml', '--data-dir', few_digits, '--dry-run', *flags)
    plan = plan_of(result)
    assert (plan['precision'], plan['learning rate']) == (precision, rate), result.stderr
    assert plan['batch'] == 'global batch size 8 = 8 x 1 process' and plan['device'].startswith('cpu (asked for')
    assert result.stderr.startswith('Plan: train resnet18')


def test_recipe_with_a_config(few_digits, tmp_path):
    (tmp_path / 'c.yaml').write_text(
        'epochs: 3\nwarmup_epochs: 1\nlr: 0.01\nbatch_size: 8\nimg_size: 64\namp: true\n')
    result = run_here('recipe', 'train_1p', f'--data_path={few_digits}', '--config', tmp_path / 'c.yaml',
                     '--device', 'cpu', '--dry-run')
    plan = plan_of(result)
    assert plan['batch'] == 'global batch size 8 = 8 x 1 process', result.stderr
    assert plan['precision'] == 'amp float16'
    assert plan['learning rate'] == '0.01, momentum, cosine over 4 epochs, 1 of warm-up'  # 1 before the 3
    assert 'img_size' not in plan['note'] and 'amp' not in plan['note'].split(':')[0]


def test_restarts_of_a_recipe_on_several_nodes_need_a_name(few_digits):
    """A recipe's own number is left out, as a job of ModelArts names no run; one that is asked for is refused."""
    def planned(*more):
        return run_here(
            'recipe', 'train_8p', f'--data_path={few_digits}', '--device', 'cpu', '--nproc', 1, '--nnodes', 2, '-b', 8,
            '--node-rank', 1, '--master-addr', '127.0.0.1', '--img-size', 64, '--dry-run', *more)
    result = planned()
    assert result.returncode == 0 and 'No restart after a failure' in result.stderr, result.stderr
    assert 'No restart' not in planned('--experiment', 'x').stderr
    assert 'needs --experiment NAME' in planned('--max-restarts', 1).stderr


# --- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('flags, hint', (
    (('--npproc', 2), "Unknown flag '--npproc': did you mean --nproc?"),
    (('--smoothin', 2, '--model-emma'), "Unknown flag '--model-emma': did you mean --model-ema?"),
    (('--node_rank', 2), '--node-rank 2 is out of range: the only node has the number 0'),
    (('--nnodes', 2, '--node_rank', 2, '--master_addr', 'x'), '--node-rank 2 is out of range'),
    (('--nnodes', 0), '--nnodes 0 is too small: give at least 1'),
    (('--nnodes', 2), '2 nodes need --master-addr'),
    (('--nproc', 2, '--device', 'cpu:0', '--device', 'cuda:0'), '--device'),
    (('--resume', 'nowhere.pth.tar'), '--resume nowhere.pth.tar does not exist'),
    (('--scripts', 'nowhere'), 'there is no train.py'),
    (('--scripts', 'x' * 300), 'there is no train.py'),
))
def test_refused(few_digits, tmp_path, flags, hint):
    result = run_here(*train_flags(few_digits, tmp_path / 'out', *flags))
    assert result.returncode == 2 and hint in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr and not (tmp_path / 'out').exists()


def test_refused_by_the_parser_of_timms_script(few_digits, tmp_path):
    flags = train_flags(few_digits, tmp_path / 'out', '--scripts', ROOT / 'tests' / 'small_scripts')
    result = run_here(*flags, '--smoothng', 0.1)
    assert result.returncode == 2 and "Unknown flag '--smoothng': did you mean --smoothing?" in result.stderr
    result = run_here(*flags, '--epochs', 'x')
    assert result.returncode == 2 and "--epochs 'x' is not a whole number" in result.stderr
    assert 'usage:' not in result.stderr
    (tmp_path / 'c.yaml').write_text('epocs: 1\n')
    result = run_here(*flags, '-c', tmp_path / 'c.yaml')
    assert result.returncode == 2 and "unknown key 'epocs', did you mean epochs?" in result.stderr


def test_port_in_use(few_digits, tmp_path):
    with socket.socket() as s:
        s.bind(('', 0))
        s.listen()
        port = s.getsockname()[1]
        result = run_here(*train_flags(few_digits, tmp_path / 'out', '--nproc', 2, '--master-port', port))
    assert result.returncode == 2
    assert f'Port {port} cannot be used (Address already in use)' in result.stderr
    assert 'name a free one with --master-port' in result.stderr
    assert not (tmp_path / 'out').exists()


def test_unreachable_master(few_digits, tmp_path):
    """Names address, port and time-out, and the option that raises it; on the node that waits and on node 0."""
    ports = [free_ports(), free_ports()]
    nodes = [start_cli(*train_flags(
        few_digits, tmp_path, '--nnodes', 2, '--node_rank', rank, '--master_addr', '127.0.0.1',
        '--master_port', ports[rank], '--rdzv-timeout', 3), fresh=False) for rank in range(2)]
    stderr = [node.communicate(timeout=60)[1] for node in nodes]
    assert f'Not all of the 2 nodes came to 127.0.0.1:{ports[0]} within 3 s' in stderr[0]
    assert f'Node 0 cannot be reached at 127.0.0.1:{ports[1]} within 3 s' in stderr[1]
    for node, text in zip(nodes, stderr):
        assert node.returncode == 1 and '--rdzv-timeout' in text and 'Traceback' not in text


def test_local_address_of_another_machine(few_digits, tmp_path):
    result = run_here(*train_flags(few_digits, tmp_path, '--nnodes', 2, '--node_rank', 1, '--master_addr', '127.0.0.1',
                                  '--local_addr', '203.0.113.7'))
    assert result.returncode == 2 and '--local-addr 203.0.113.7 is not an address of this machine' in result.stderr


# --- several processes ------------------------------------------------------------------------------------------------

def test_two_ranks(few_digits, tmp_path):
    """Rank 0 prints, others log to files; each has its share of cores, if asked; no temporary files stay."""
    (tmp_path / 'tmp').mkdir()
    (tmp_path / 'cores.py').write_text(
        'import os\nif "RANK" in os.environ:\n'
        f'    open(f"{tmp_path}/cores-" + os.environ["RANK"], "w").write(str(sorted(os.sched_getaffinity(0))))\n')
    result = run_cli(*train_flags(few_digits, tmp_path, '--nproc', 2, '-b', 8, '--epochs', 1,
                                  '--cpu-affinity', 'cores', '--device-modules', 'cores', '--workers', 1),
                     env={'PYTHONPATH': str(tmp_path), 'TMPDIR': str(tmp_path / 'tmp')})
    assert result.returncode == 0, result.stderr
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        share = len(cores) // 2
        assert json.loads((tmp_path / 'cores-0').read_text()) == cores[:share]
        assert json.loads((tmp_path / 'cores-1').read_text()) == cores[share:2 * share]
    assert result.stderr.count('Train: 0 [   0/') == 1 and result.stdout.count('--result') == 1
    logs = plan_of(result)['logs'].split(' (')[0]
    assert logs == f'{tmp_path}/run/logs/node0'
    assert {p.parent.name for p in Path(logs).rglob('std*.log')} == {'1'}
    assert 'OMP_NUM_THREADS' not in result.stderr  # torchrun's warning
    assert [p for p in (tmp_path / 'tmp').iterdir() if not p.name.startswith('torchinductor')] == []


@pytest.mark.parametrize('rank', (1, pytest.param(0, marks=pytest.mark.slow)))
def test_failure_is_shown_once(few_digits, tmp_path, rank):
    """An exception on one rank: its traceback, once, whoever failed; exit code 1, and no process left."""
    (tmp_path / 'fails.py').write_text(
        'import os\nfrom timm.models import ResNet\n'
        f'def train(self, mode=True):\n    if os.environ.get("RANK") == "{rank}":\n'
        '        raise RuntimeError("something broke in this rank")\n    return original(self, mode)\n'
        'original, ResNet.train = ResNet.train, train\n')
    result = run_cli(
        *train_flags(few_digits, tmp_path / 'out', '--nproc', 2, '-b', 8, '--device-modules', 'fails'),
        env={'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 1
    assert f'seresnet-timm: error: Rank {rank} failed' in result.stderr, result.stderr
    assert result.stderr.count('something broke in this rank') == 2  # its line in the traceback, and the message
    assert result.stderr.count('Traceback') == 1
    assert_none_left(str(tmp_path))


def test_sentence_of_a_rank_is_shown_once(few_digits, tmp_path):
    result = run_cli(*train_flags(few_digits, tmp_path, '--nproc', 2, '-b', 8, '--lr', '1e30'))
    assert result.returncode == 1 and result.stderr.count('The loss became') == 1
    assert 'Traceback' not in result.stderr


def test_killed_rank(few_digits, tmp_path):
    (tmp_path / 'killed.py').write_text(
        'import os, signal\nif os.environ.get("RANK") == "1":\n    os.kill(os.getpid(), signal.SIGKILL)\n')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--nproc', 2, '-b', 8, '--device-modules', 'killed'),
                     env={'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 1 and 'Rank 1 was killed by SIGKILL (out of memory?' in result.stderr
    assert_none_left(str(tmp_path))


@pytest.mark.parametrize('nproc, signum, fresh', (
    (2, signal.SIGTERM, False), *(pytest.param(n, s, True, marks=pytest.mark.slow) for n, s in (
        (1, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGTERM)))))
def test_signals_end_every_process(few_digits, tmp_path, nproc, signum, fresh):
    process = start_cli(*train_flags(
        few_digits, tmp_path, '--nproc', nproc, '-b', 8, '--epochs', 500, '--workers', 1, '--checkpoint-hist', 1),
        fresh=fresh)
    wait_for(tmp_path / 'run' / 'last.pth.tar', process)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert 'Traceback' not in stderr, stderr
    if nproc == 2:
        assert f'Stopped by {signum.name}: all processes of this node have ended' in stderr
        assert f'--resume {tmp_path}/run/last.pth.tar' in stderr
    assert_none_left(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('nproc', (1, 2))
def test_launcher_killed(few_digits, tmp_path, nproc):
    """SIGKILL leaves the launcher no time to stop its ranks, nor a rank its loader workers: the kernel does."""
    process = start_cli(*train_flags(
        few_digits, tmp_path, '--nproc', nproc, '-b', 8, '--epochs', 500, '--checkpoint-hist', 1, '--workers', 2,
        '--fast-jpeg', 'off'))
    wait_for(tmp_path / 'run' / 'last.pth.tar', process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= (4 if nproc == 1 else 2 + 8)  # the workers of two loaders, and two ranks
    process.kill()
    process.communicate()
    time.sleep(2)  # which is promised
    assert not [p for p in family if is_alive(p)]


@pytest.mark.slow
def test_second_signal(few_digits, tmp_path):
    """One rank does not end its step, the other one waits for it: the second signal waits for nobody."""
    process = start_cli(*train_flags(
        few_digits, tmp_path, '--nproc', 2, '-b', 8, '--epochs', 500, '--checkpoint-hist', 1))
    wait_for(tmp_path / 'run' / 'last.pth.tar', process)
    family = psutil.Process(process.pid).children(recursive=True)
    next(p for p in family if p.environ().get('RANK') == '1').suspend()
    process.terminate()
    time.sleep(2)
    assert process.poll() is None
    process.terminate()
    start = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode == 143 and 'Stopped at once by a second signal' in stderr
    assert 'Traceback' not in stderr, stderr
    assert_none_left(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('model', ('resnet18', 'legacy_seresnet50'))
def test_any_timm_model(few_digits, tmp_path, model):
    scripts = ROOT / 'tests' / 'small_scripts' if model == 'resnet18' else 'bundled'
    flags = train_flags(few_digits, tmp_path, '--model', model, '--model-kwargs', '--nproc', 2, '-b', 8, '--epochs', 1)
    result = run_cli(*flags, '--scripts', scripts)
    assert result.returncode == 0, result.stderr
    assert load(tmp_path / 'run' / 'last.pth.tar')['arch'] == model


@pytest.mark.parametrize('device, environ, bound', (
    ('npu', {}, True), ('npu', {'CPU_AFFINITY_CONF': '2'}, False), ('cpu', {}, False)))
def test_cores_are_bound_on_npus_unless_torch_npu_does_it(device, environ, bound):
    """By default; the binding of a real process."""
    code = ('import os, sys; sys.orig_argv = ["python", "seresnet-timm"]\n'
            'from seresnet_timm.launch.rank import set_cpu_affinity\n'
            'from seresnet_timm.runs.settings import RunSettings, Script\n'
            f'set_cpu_affinity(RunSettings("train", Script("train.py"), {{}}, device={device!r}))\n'
            'print(sorted(os.sched_getaffinity(0)))')
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip('one core')
    env = {k: v for k, v in os.environ.items() if k != 'CPU_AFFINITY_CONF'}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT, env={
        **env, **environ, 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2'})
    share = len(cores) // 2
    assert json.loads(result.stdout) == (cores[share:2 * share] if bound else cores)


@pytest.mark.slow
def test_profile(few_digits, tmp_path):
    data = subset(few_digits, tmp_path / 'data', 10, 1)
    result = run_cli(*train_flags(data, tmp_path, '-b', 4, '--epochs', 1, '--prof', tmp_path / 'prof'))
    assert result.returncode == 0, result.stderr
    trace = json.loads((tmp_path / 'prof' / 'trace.json').read_text())
    names = [e.get('name', '') for e in trace['traceEvents']]
    assert sum(n.startswith('Optimizer.step') for n in names) == 5 and any('conv' in n for n in names)


def test_slurm_ranks(few_digits, tmp_path):
    """Two tasks as `srun --ntasks-per-node=2` starts them."""
    port = free_ports()
    tasks = [start_cli(*train_flags(few_digits, tmp_path, '-b', 8, '--epochs', 1), fresh=False, env={
        'SLURM_STEP_NUM_TASKS': '2', 'SLURM_NTASKS': '2', 'SLURM_NNODES': '1', 'SLURM_PROCID': str(i),
        'SLURM_LOCALID': str(i), 'SLURM_NODEID': '0', 'SLURM_JOB_ID': '1', 'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port)}) for i in range(2)]
    outputs = [t.communicate(timeout=120) for t in tasks]
    assert [t.returncode for t in tasks] == [0, 0], outputs
    assert 'processes      2 (started by SLURM)' in outputs[0][1] and 'Plan' not in outputs[1][1]
    assert len(load(tmp_path / 'run' / 'last.pth.tar')['run_state']['rng']) == 2


@pytest.mark.parametrize('env', (
    pytest.param({'LOCAL_RANK': '0,1', 'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2',
                  'MASTER_ADDR': '10.96.0.17'}, id='MindCluster', marks=pytest.mark.slow),
    pytest.param({'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_NTASKS': '2', 'SLURM_NNODES': '1'},
                 id='SLURM batch script'),
))
def test_one_process_under_a_scheduler(few_digits, tmp_path, env):
    """The scheduler's variables of ranks are not taken for those of this process."""
    flags = train_flags(few_digits, tmp_path, '--nproc', 1, '--nnodes', 1, '--epochs', 1)
    result = run_cli(*flags, env=env, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'run' / 'last.pth.tar').exists()


# --- several machines -------------------------------------------------------------------------------------------------

def start_node(rank: int, data, output, port: int, *more, fresh=True) -> subprocess.Popen:
    environ = dict(os.environ) if fresh else preloaded.environment()
    return subprocess.Popen(
        ['bash', ROOT / 'recipes' / 'train_multinode.sh', f'--data_path={data}', '--batch_size=16', '--nnodes=2',
         f'--node_rank={rank}', f'--local_addr=127.0.0.{rank + 1}', '--master_addr=127.0.0.1', f'--master_port={port}',
         '--device', 'cpu', '--model', 'seresnet18_ascend', '--num-classes', '10', '--workers', '0',
         '--output', str(output), '--experiment', f'node{rank}', '--rdzv-timeout', '60', *map(str, more)],
        env={**environ, 'PYTHON': sys.executable if fresh else preloaded.python(), 'TIMM_SCRIPTS': '',
             'TEST_ARGV': str(output)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)


@pytest.fixture
def port() -> int:
    return free_ports()


@pytest.mark.slow
def test_two_machines(few_digits, tmp_path, port):
    """Two launchers on two loopback addresses train one model; node 0 has the outputs and the closing lines."""
    nodes = [start_node(rank, few_digits, tmp_path, port, fresh=False) for rank in range(2)]
    outputs = [n.communicate(timeout=180) for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], outputs
    assert 'processes      2 (1 on each of 2 nodes; one on cpu)' in outputs[0][1]
    assert 'Final Train Accuracy : ' in outputs[0][0] and 'Final' not in outputs[1][0]
    run = tmp_path / 'node0'
    assert len(load(run / 'last.pth.tar')['run_state']['rng']) == 2
    with open(run / 'summary.csv', newline='') as f:
        assert len(list(csv.DictReader(f))) == 2
    assert not (tmp_path / 'node1' / 'summary.csv').exists()


@pytest.mark.slow
@pytest.mark.parametrize('killed', (0, pytest.param(1, marks=pytest.mark.slow)))
def test_one_machine_dies(few_digits, tmp_path, port, killed):
    """The other ends within the time-out, with a clear message, and no process is left on either."""
    nodes = [start_node(rank, few_digits, tmp_path, port, '--train_epochs', 500, '--checkpoint-hist', 1)
             for rank in range(2)]
    wait_for(tmp_path / 'node0' / 'last.pth.tar', nodes[0])
    nodes[killed].kill()  # the launcher; its rank ends with it
    survivor = 1 - killed
    _, stderr = nodes[survivor].communicate(timeout=60)
    nodes[killed].communicate()
    assert nodes[survivor].returncode == 1
    assert f'Node {survivor} lost contact with another node' in stderr, stderr
    if survivor == 0:
        assert f'--resume {tmp_path}/node0/last.pth.tar' in stderr
    assert 'Traceback' not in stderr
    assert_none_left(str(tmp_path))
    assert torch.isfinite(load(tmp_path / 'node0' / 'last.pth.tar')['state_dict']['fc.weight']).all()


def test_gloos_group_outlives_its_last_reference(monkeypatch):
    """Python must not destroy it: the destructor can wait for ever for a thread that waits for Python's lock."""
    import torch.distributed as dist

    from seresnet_timm.launch.rank import never_destroy_gloo_group
    references = []
    for keep in (False, True):
        monkeypatch.setattr(dist, 'destroy_process_group', dist.destroy_process_group)
        if keep:
            never_destroy_gloo_group()
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        group = dist.group.WORLD
        dist.destroy_process_group()
        assert not dist.is_initialized()
        references.append(sys.getrefcount(group))
        monkeypatch.undo()
    assert references[1] == references[0] + 1
