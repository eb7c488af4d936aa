"""ModelArts and MindCluster: environments as they set them, mapped to nodes and processes."""
import subprocess
import sys

import pytest
from conftest import ROOT

from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import cluster, plan

# ModelArts' variables of every training job; names of machines and of the job replaced
MODELARTS = {
    'MA_HOME': '/home/ma-user', 'MA_JOB_DIR': '/home/ma-user/modelarts/user-job-dir', 'MA_LOG_DIR': '/home/ma-user/log',
    'MA_MOUNT_PATH': '/home/ma-user/modelarts', 'MA_CURRENT_IP': '192.0.2.11', 'MA_NUM_GPUS': '8',
    'VC_TASK_INDEX': '0'}
ONE = {**MODELARTS, 'MA_NUM_HOSTS': '1', 'VC_WORKER_NUM': '1', 'VC_WORKER_HOSTS': 'job-worker-0.job'}
TWO = {**MODELARTS, 'MA_NUM_HOSTS': '2', 'VC_WORKER_NUM': '2', 'VC_TASK_INDEX': '1',
       'VC_WORKER_HOSTS': 'job-worker-0.job,job-worker-1.job'}
# the image for Ascend runs the boot file once a device
DEVICE = {'RANK_TABLE_FILE': '/home/ma-user/rank_table/jobstart_hccl.json', 'RANK_SIZE': '16'}
# MindCluster's for a container of 8 NPUs
MINDCLUSTER = {'RANK': '0', 'LOCAL_RANK': '0,1,2,3,4,5,6,7', 'LOCAL_WORLD_SIZE': '8', 'WORLD_SIZE': '16',
               'MASTER_ADDR': '10.0.0.1', 'MASTER_PORT': '2222'}

# Kubeflow Trainer's: those of torchrun
KUBEFLOW = {'PET_NNODES': '2', 'PET_NODE_RANK': '1', 'PET_NPROC_PER_NODE': '8', 'PET_MASTER_ADDR': 'job-node-0-0.job',
            'PET_MASTER_PORT': '29400'}
# those of Volcano's plugins pytorch and svc
VOLCANO = {'RANK': '1', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'job-master-0.job', 'MASTER_PORT': '23456',
           'VC_MASTER_NUM': '1', 'VC_MASTER_HOSTS': 'job-master-0.job', 'VC_WORKER_NUM': '1',
           'VC_WORKER_HOSTS': 'job-worker-0.job'}


def nodes(env):
    """The launcher's decision: kind, nodes, this one, its processes, and where node 0 is."""
    job = cluster.detect(env)
    node, nnodes = plan.resolve_nodes({}, job)
    return job.kind, nnodes, node.rank, job.nproc, node.master_addr, node.master_port


@pytest.mark.parametrize('env, expected', (
    (ONE, ('ModelArts', 1, 0, 8, None, None)),
    ({**ONE, 'VC_TASK_INDEX': '3'}, ('ModelArts', 1, 0, 8, None, None)),  # without meaning on one machine
    ({k: v for k, v in ONE.items() if k not in ('VC_TASK_INDEX', 'VC_WORKER_HOSTS')},
     ('ModelArts', 1, 0, 8, None, None)),
    ({k: v for k, v in ONE.items() if k != 'MA_NUM_HOSTS'}, ('ModelArts', 1, 0, 8, None, None)),
    ({**ONE, 'MA_NUM_GPUS': '0'}, ('ModelArts', 1, 0, None, None, None)),
    ({**ONE, **DEVICE, 'ASCEND_DEVICE_ID': '0', 'RANK_ID': '0'}, ('ModelArts', 1, 0, 8, None, None)),
    (TWO, ('ModelArts', 2, 1, 8, 'job-worker-0.job', 29500)),
    ({**TWO, 'VC_TASK_INDEX': '0', 'MASTER_PORT': '6000'}, ('ModelArts', 2, 0, 8, 'job-worker-0.job', 6000)),
    ({k: v for k, v in TWO.items() if k != 'VC_WORKER_NUM'}, ('ModelArts', 2, 1, 8, 'job-worker-0.job', 29500)),
    (MINDCLUSTER, ('MindCluster', 2, 0, 8, '10.0.0.1', 2222)),
    ({**MINDCLUSTER, 'RANK': '1'}, ('MindCluster', 2, 1, 8, '10.0.0.1', 2222)),
    ({**MINDCLUSTER, 'WORLD_SIZE': '8'}, ('MindCluster', 1, 0, 8, '10.0.0.1', 2222)),
    ({'LOCAL_RANK': '4, 5'}, ('MindCluster', 1, 0, 2, None, 29500)),
    (KUBEFLOW, ('Kubeflow', 2, 1, 8, 'job-node-0-0.job', 29400)),
    ({**KUBEFLOW, 'PET_NNODES': '1', 'PET_NODE_RANK': '0'}, ('Kubeflow', 1, 0, 8, None, None)),
    ({**KUBEFLOW, 'PET_NPROC_PER_NODE': 'auto'}, ('Kubeflow', 2, 1, None, 'job-node-0-0.job', 29400)),
    # the PyTorchJob of the older operator sets the other names too
    ({**KUBEFLOW, 'RANK': '1', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'x', 'MASTER_PORT': '23456'},
     ('Kubeflow', 2, 1, 8, 'job-node-0-0.job', 29400)),
    (VOLCANO, ('Volcano', 2, 1, None, 'job-master-0.job', 23456)),
    ({**VOLCANO, 'RANK': '0'}, ('Volcano', 2, 0, None, 'job-master-0.job', 23456)),
    ({**VOLCANO, 'RANK': '0', 'WORLD_SIZE': '1', 'VC_WORKER_NUM': '0'}, ('Volcano', 1, 0, None, None, None))))
def test_mapped(env, expected):
    assert nodes(env) == expected


@pytest.mark.parametrize('env, words', (
    ({**TWO, 'VC_TASK_INDEX': '2'}, 'ModelArts says VC_TASK_INDEX=2, but 2 nodes have the numbers 0 to 1'),
    ({k: v for k, v in TWO.items() if k != 'VC_TASK_INDEX'}, 'VC_TASK_INDEX is missing'),
    ({**TWO, 'VC_TASK_INDEX': 'worker-1'}, "VC_TASK_INDEX is 'worker-1', which is not a number"),
    ({**TWO, 'MA_NUM_HOSTS': '4'}, 'ModelArts says MA_NUM_HOSTS=4 and VC_WORKER_NUM=2'),
    ({**TWO, 'MA_NUM_HOSTS': '0', 'VC_WORKER_NUM': '0'}, 'not a number of machines'),
    ({**TWO, 'MA_NUM_HOSTS': ''}, "MA_NUM_HOSTS is ''"),
    ({**TWO, 'MA_NUM_GPUS': 'eight'}, "MA_NUM_GPUS is 'eight'"),
    ({**TWO, 'MA_NUM_GPUS': '-2'}, 'MA_NUM_GPUS=-2, which is not a number of devices'),
    ({**TWO, 'VC_WORKER_HOSTS': 'http://a:1,b'}, "VC_WORKER_HOSTS is 'http://a:1', which is not a name or address"),
    ({k: v for k, v in TWO.items() if k not in ('MA_NUM_HOSTS', 'VC_WORKER_NUM', 'VC_TASK_INDEX')},
     'VC_TASK_INDEX is missing'),
    ({**TWO, 'VC_WORKER_HOSTS': 'job-worker-0.job'}, 'names 1 machine'),
    ({k: v for k, v in TWO.items() if k != 'VC_WORKER_HOSTS'}, 'ModelArts does not say it: VC_WORKER_HOSTS is not set'),
    ({**TWO, 'MASTER_PORT': '70000'}, 'MASTER_PORT is 70000, which is not a port'),
    ({**ONE, **DEVICE, 'ASCEND_DEVICE_ID': 'x'}, "ASCEND_DEVICE_ID is 'x'"),
    ({**MINDCLUSTER, 'RANK': '2'}, 'MindCluster says RANK=2, but 2 nodes have the numbers 0 to 1'),
    ({k: v for k, v in MINDCLUSTER.items() if k != 'RANK'}, 'RANK is missing'),
    ({**MINDCLUSTER, 'WORLD_SIZE': '12'}, 'different numbers of NPUs'),
    ({**MINDCLUSTER, 'WORLD_SIZE': '0'}, 'different numbers of NPUs'),
    ({**MINDCLUSTER, 'LOCAL_WORLD_SIZE': '4'}, 'LOCAL_WORLD_SIZE=4: the nodes have different numbers'),
    ({**MINDCLUSTER, 'LOCAL_RANK': '0,1,'}, "not a list of this node's NPUs"),
    ({**MINDCLUSTER, 'LOCAL_RANK': '0,0'}, "not a list of this node's NPUs"),
    ({**MINDCLUSTER, 'LOCAL_RANK': '[0,1]'}, "not a list of this node's NPUs"),
    ({**MINDCLUSTER, 'MASTER_PORT': '0'}, 'MASTER_PORT is 0'),
    ({k: v for k, v in MINDCLUSTER.items() if k != 'MASTER_ADDR'}, 'MindCluster does not say it: MASTER_ADDR is not'),
    ({**KUBEFLOW, 'PET_NNODES': '1:4'}, "PET_NNODES is '1:4', which is not a number"),
    ({**KUBEFLOW, 'PET_NNODES': '0'}, 'PET_NNODES=0, which is not a number of pods'),
    ({**KUBEFLOW, 'PET_NODE_RANK': '2'}, 'Kubeflow says PET_NODE_RANK=2, but 2 nodes have the numbers 0 to 1'),
    ({**KUBEFLOW, 'PET_MASTER_PORT': '0'}, 'PET_MASTER_PORT is 0'),
    ({k: v for k, v in KUBEFLOW.items() if k != 'PET_MASTER_ADDR'}, 'PET_MASTER_ADDR is not set'),
    ({**VOLCANO, 'RANK': '2'}, 'Volcano says RANK=2'),
    ({**VOLCANO, 'VC_WORKER_NUM': '3'}, 'count 4 pods')))
def test_wrong_or_missing(env, words):
    with pytest.raises(UsageError) as error:
        nodes(env)
    assert words in str(error.value) and str(error.value).endswith('.')


def test_torchrun_on_modelarts_wins():
    """MA_RUN_METHOD=torchrun, or a boot file that calls torchrun."""
    ranks = dict(RANK='3', LOCAL_RANK='3', WORLD_SIZE='8', MASTER_ADDR='127.0.0.1', TORCHELASTIC_RUN_ID='none')
    assert cluster.detect({**ONE, **ranks, 'ASCEND_DEVICE_ID': '3'}).kind == 'torchrun'


def test_a_volcano_job_elsewhere_is_not_modelarts():
    assert cluster.detect({'VC_WORKER_NUM': '2', 'VC_TASK_INDEX': '1', 'VC_WORKER_HOSTS': 'a,b'}) is None


def test_only_device_0_goes_on(monkeypatch, capsys):
    """Whatever else is wrong: another process says it."""
    for name, value in {**TWO, **DEVICE, 'ASCEND_DEVICE_ID': '5', 'RANK_ID': '13'}.items():
        monkeypatch.setenv(name, value)
    assert not main(['train', '--data-dir', 'nowhere', '--device', 'cpu'])
    assert capsys.readouterr().err == (
        'ModelArts starts this program once for each device: the one of device 0 starts all ranks of this machine, the '
        'one of device 5 ends here.\n')


def test_torchrun_in_a_pod_wins():
    ranks = dict(RANK='9', LOCAL_RANK='1', WORLD_SIZE='16', MASTER_ADDR='127.0.0.1', TORCHELASTIC_RUN_ID='none')
    for pod in (KUBEFLOW, VOLCANO):
        assert cluster.detect({**pod, **ranks}).kind == 'torchrun'


def test_ranks_do_not_see_the_variables_of_a_pod():
    env = {**KUBEFLOW, **VOLCANO, 'PATH': '/bin'}
    cluster.forget(env)
    assert not [name for name in env if name.startswith('PET_') or name in ('RANK', 'WORLD_SIZE')]


def fake_python(tmp_path):
    """A python that prints its arguments."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize('script, arguments, expected', (
    ('modelarts/start.py', ('--recipe=train_1p', '--data_url=/in put', '--train_url=/out', '-b', '64'),
     ['train_1p', '--data_path=/in put', '--output=/out', '-b', '64']),
    ('modelarts/start.py', ('--data_url', '/in', '--recipe', 'eval_8p'), ['eval_8p', '--data_path', '/in']),
    ('modelarts/start.py', (), ['train_8p']),
    ('mindcluster/start.sh', ('train_8p', '--data_path=/in put'), ['train_8p', '--data_path=/in put'])))
def test_start_scripts(script, arguments, expected, tmp_path):
    command = [sys.executable] if script.endswith('.py') else ['bash']
    result = subprocess.run(
        [*command, str(ROOT / 'recipes' / script), *arguments], cwd=tmp_path, capture_output=True, text=True,
        timeout=30, env={'PATH': '/usr/bin:/bin', 'PYTHON': fake_python(tmp_path)})
    assert result.stdout.splitlines() == ['-m', 'seresnet_timm', 'recipe', *expected], result.stderr
