"""Who started this process: torchrun, SLURM, MindCluster or nobody."""
import pytest

from seresnet_timm.errors import UsageError
from seresnet_timm.launch import cluster


def test_plain_shell():
    assert cluster.detect({'HOME': '/root', 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}) is None


def test_slurm_batch_script_is_not_a_task():
    env = {'SLURM_NTASKS': '16', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_NNODES': '2'}
    assert cluster.detect(env) is None
    cluster.forget(env)  # timm would take this process for rank 0 of 16 and wait for the others
    assert env == {'SLURM_NNODES': '2'}


def test_torchrun():
    env = {'RANK': '3', 'LOCAL_RANK': '1', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'a', 'TORCHELASTIC_RUN_ID': 'x'}
    assert cluster.detect(env).is_rank
    env.pop('TORCHELASTIC_RUN_ID')  # started by hand
    assert cluster.detect(env).is_rank


def test_mindcluster():
    """RANK is the node's, WORLD_SIZE counts all NPUs, LOCAL_RANK lists this node's."""
    job = cluster.detect({
        'RANK': '1', 'LOCAL_RANK': '0,1,2,3,4,5,6,7', 'WORLD_SIZE': '16', 'LOCAL_WORLD_SIZE': '8',
        'MASTER_ADDR': '10.0.0.1', 'MASTER_PORT': '2222'})
    assert (job.kind, job.is_rank, job.nnodes, job.node_rank, job.nproc) == ('MindCluster', False, 2, 1, 8)
    assert (job.master_addr, job.master_port) == ('10.0.0.1', 2222)
    with pytest.raises(UsageError, match='different numbers of NPUs'):
        cluster.detect({'RANK': '1', 'LOCAL_RANK': '0,1,2', 'WORLD_SIZE': '16'})


SLURM = {'SLURM_JOB_ID': '123456', 'SLURM_NNODES': '2', 'SLURM_NODEID': '1', 'SLURM_PROCID': '1', 'SLURM_LOCALID': '0',
         'SLURM_JOB_NODELIST': 'npu[03-04]'}


def test_slurm_one_task_a_node():
    job = cluster.detect({**SLURM, 'SLURM_STEP_NUM_TASKS': '2'})
    assert (job.kind, job.is_rank, job.nnodes, job.node_rank, job.nproc) == ('SLURM', False, 2, 1, None)
    assert (job.master_addr, job.master_port) == ('npu03', 29500 + 456)


def test_slurm_one_task_a_rank():
    job = cluster.detect({**SLURM, 'SLURM_STEP_NUM_TASKS': '16', 'SLURM_PROCID': '9', 'SLURM_LOCALID': '1'})
    assert job.is_rank and job.rank_env == {
        'RANK': '9', 'LOCAL_RANK': '1', 'WORLD_SIZE': '16', 'MASTER_ADDR': 'npu03', 'MASTER_PORT': '29956'}


@pytest.mark.parametrize('nodelist, first', (
    ('node1', 'node1'), ('a,b', 'a'), ('node[03-05,9],gpu1', 'node03'), ('n[7]', 'n7'), ('n[1-2]-ib,x', 'n1-ib')))
def test_slurm_node_list(nodelist, first):
    assert cluster.first_host(nodelist) == first
