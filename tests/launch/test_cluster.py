"""Who started this process: torchrun, SLURM, MindCluster or nobody."""
import os
import re
import socket
import threading
import time

import pytest
from conftest import run_cli, run_here, train_flags
from ports import free_ports

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.launch import cluster, handover, waiting
from seresnet_timm.launch.parse import typed_before_the_plan


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
STEP = {**SLURM, 'SLURM_STEP_NUM_TASKS': '2'}


def test_slurm_one_task_a_node():
    job = cluster.detect({**SLURM, 'SLURM_STEP_NUM_TASKS': '2'})
    assert (job.kind, job.is_rank, job.nnodes, job.node_rank, job.nproc) == ('SLURM', False, 2, 1, None)
    assert (job.master_addr, job.master_port) == ('npu03', 29500 + 456)


def test_slurm_one_task_a_rank():
    job = cluster.detect({**SLURM, 'SLURM_STEP_NUM_TASKS': '16', 'SLURM_PROCID': '9', 'SLURM_LOCALID': '1'})
    assert job.is_rank and job.rank_env == {
        'RANK': '9', 'LOCAL_RANK': '1', 'WORLD_SIZE': '16', 'MASTER_ADDR': 'npu03', 'MASTER_PORT': '29956'}


@pytest.mark.parametrize('nodelist, first', (
    ('node1', 'node1'), ('a,b', 'a'), ('node[03-05,9],gpu1', 'node03'), ('n[7]', 'n7'), ('n[1-2]-ib,x', 'n1-ib'),
    ('r[1-2]n[3-4],a', 'r1n3'), ('n[01-03,7],m1', 'n01')))
def test_slurm_node_list(nodelist, first):
    assert cluster.first_host(nodelist) == first


@pytest.mark.parametrize('env, words', (
    ({**STEP, 'MASTER_PORT': '99999'}, 'MASTER_PORT is 99999'),
    ({**STEP, 'SLURM_PROCID': '1_0'}, "SLURM_PROCID is '1_0'"),
    ({**STEP, 'SLURM_STEP_NODELIST': 'n['}, "node list 'n[' names no host"),
    ({**STEP, 'SLURM_STEP_NODELIST': 'n]'}, "node list 'n]' names no host"),
    (dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='0', MASTER_ADDR='a'), 'WORLD_SIZE=0 do not go together'),
    (dict(RANK='9', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='a'), 'RANK=9 and WORLD_SIZE=2 do not go')))
def test_values_that_cannot_be(env, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        cluster.detect(env)


def test_values_that_cannot_be_with_one_process():
    env = dict(RANK='9', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='a')
    one = cluster.Asked(nproc=1)
    assert cluster.decide(cluster.detect(env, one), env, one) == (
        None, 'RANK=9 and WORLD_SIZE=2 do not count: they describe no job, and one process was asked for.')


def test_an_empty_variable_of_ranks_is_named():
    env = dict(RANK='0', LOCAL_RANK='', WORLD_SIZE='2', MASTER_ADDR='a')
    assert 'LOCAL_RANK would have to be set' in cluster.decide(cluster.detect(env), env, cluster.Asked())[1]


# --- what was typed, and the environment ------------------------------------------------------------------------------

STEP = {'SLURM_STEP_NUM_TASKS': '8', 'SLURM_STEP_NUM_NODES': '1', 'SLURM_NNODES': '1', 'SLURM_PROCID': '0',
        'SLURM_LOCALID': '0', 'SLURM_NODEID': '0', 'SLURM_JOB_NODELIST': 'localhost', 'SLURM_JOB_ID': '7'}
BY_HAND = {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '8', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '1'}
MINDCLUSTER = {'RANK': '1', 'LOCAL_RANK': '0,1', 'WORLD_SIZE': '4', 'MASTER_ADDR': '10.0.0.1'}


def decide(env, **asked):
    return cluster.decide(cluster.detect(env), env, cluster.Asked(**asked))


@pytest.mark.parametrize('env, asked', (
    (STEP, dict(nproc=1)),
    (STEP, dict(nproc=1, nnodes=1)),
    ({**STEP, 'SLURM_PROCID': '5'}, dict(nproc=1, nnodes=1)),
    (BY_HAND, dict(nproc=1)),
    ({**BY_HAND, 'RANK': '3'}, dict(nproc=1, nnodes=1)),
    (MINDCLUSTER, dict(nnodes=1)),
    ({**SLURM, 'SLURM_STEP_NUM_TASKS': '2'}, dict(nnodes=1)),
))
def test_one_process_that_was_typed_wins(env, asked):
    job, note = decide(env, **asked)
    assert job is None and 'are ignored: one process was asked for' in note


@pytest.mark.parametrize('env, words', (
    ({**STEP, 'SLURM_PROCID': '5'}, 'SLURM_STEP_NUM_TASKS=8 and SLURM_PROCID=5 say that this is number 5 of 8'),
    ({**BY_HAND, 'RANK': '3'}, 'RANK=3 and WORLD_SIZE=8 say that this is number 3 of 8')))
def test_each_of_several_tasks_does_not_train_the_same(env, words):
    with pytest.raises(UsageError, match=words):
        decide(env, nproc=1)


def test_tasks_of_srun_are_ranks_unless_something_else_was_typed():
    assert decide(STEP)[0].is_rank and decide(STEP, nproc=8, nnodes=1)[0].is_rank
    assert decide(STEP, nproc=2)[0].is_rank  # the plan refuses the other number
    assert decide({**MINDCLUSTER, 'RANK': '0'}, nproc=1)[0].nnodes == 2  # one process on each of two nodes


@pytest.mark.parametrize('typed', ({}, dict(nproc=2), dict(nproc=1), dict(nnodes=3)))
def test_interactive_shell_of_a_step(monkeypatch, typed):
    """`srun -n 8 --pty bash`: the other seven tasks are shells without a terminal, which have ended."""
    monkeypatch.setattr('sys.stdin', open(os.openpty()[1]))
    assert decide({**STEP, 'SLURM_PTY_PORT': '40000'}, **typed)[0] is None
    assert decide(STEP, **typed)[0] is None
    assert decide({**SLURM, 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_PROCID': '0'}, **typed)[0] is None  # one task a node


def test_shell_of_a_step_without_a_terminal(monkeypatch):
    """As of a program that the shell has started in the background: the sentence names the variables and the flag."""
    monkeypatch.setattr('sys.stdin', open(os.devnull))
    monkeypatch.setattr(cluster, 'is_interactive', lambda env: False)
    env = {**STEP, 'SLURM_PTY_PORT': '40000'}
    with pytest.raises(UsageError, match='SLURM_STEP_NUM_TASKS=8.* make this process wait for 7 others.*--nproc 1'):
        decide(env)
    assert decide(env, nproc=1)[0] is None and decide(env, nproc=8)[0].is_rank
    assert decide({**env, 'SLURM_PROCID': '1'})[0].is_rank


def test_torchrun_that_has_ended():
    """Its variables are still exported, e.g. in a shell or a notebook that a rank has started."""
    port = free_ports()
    env = {**BY_HAND, 'RANK': '1', 'LOCAL_RANK': '1', 'TORCHELASTIC_RUN_ID': 'none',
           'TORCHELASTIC_USE_AGENT_STORE': 'True', 'MASTER_PORT': str(port)}
    with pytest.raises(UsageError, match=f'no torchrun answers at 127.0.0.1:{port}: give --nproc 1 to train alone, or '
                                         'unset TORCHELASTIC_RUN_ID RANK LOCAL_RANK WORLD_SIZE'):
        decide(env)
    assert decide(env, nproc=1)[0] is None
    with socket.socket() as store:
        store.bind(('127.0.0.1', port))
        store.listen()
        assert decide(env, nproc=1)[0].is_rank  # the plan refuses the other number


def test_variables_that_are_not_complete():
    assert decide({'RANK': '0', 'WORLD_SIZE': '8'}) == (
        None, 'RANK=0 and WORLD_SIZE=8 do not count: LOCAL_RANK and MASTER_ADDR would have to be set too.')
    assert decide({'RANK': '0', 'WORLD_SIZE': '1'}) == (None, None)


@pytest.mark.parametrize('change, words', (
    (dict(SLURM_PROCID=None), 'SLURM_PROCID is missing'), (dict(SLURM_LOCALID='x'), "SLURM_LOCALID is 'x'"),
    (dict(SLURM_STEP_NUM_TASKS=''), "SLURM_STEP_NUM_TASKS is ''"), (dict(MASTER_PORT='http'), "MASTER_PORT is 'http'")))
def test_variables_that_are_no_numbers(change, words):
    env = {k: v for k, v in {**STEP, **change}.items() if v is not None}
    with pytest.raises(UsageError, match=words):
        cluster.detect(env)


def test_a_step_on_some_nodes_of_the_job():
    env = {**STEP, 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_NNODES': '2'}
    assert cluster.detect(env).is_rank  # two tasks on the one node of the step


# --- waiting ----------------------------------------------------------------------------------------------------------

@pytest.mark.preloaded
@pytest.mark.parametrize('rank, starter', (
    (0, 'srun'), (2, 'by hand'), *(pytest.param(*v, marks=pytest.mark.slow) for v in ((2, 'srun'), (0, 'by hand')))))
def test_a_rank_says_for_whom_it_waits_and_ends(few_digits, tmp_path, rank, starter):
    port = free_ports()
    sentence = 'Rank 0 cannot be reached at' if rank else 'Ranks 1, 2 of 3 did not come to'
    env = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    env |= {**STEP, 'SLURM_STEP_NUM_TASKS': '3', 'SLURM_PROCID': str(rank), 'SLURM_LOCALID': str(rank)} if (
        starter == 'srun') else {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '3'}
    result = run_cli(*train_flags(few_digits, tmp_path, '--rdzv-timeout', 3), env=env, timeout=60)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    waiting, error = result.stderr.splitlines()[-2:]
    who = 'ranks 1, 2 of 3' if rank == 0 else 'rank 0'
    assert waiting.startswith(f'Waiting for {who} at 127.0.0.1:{port}: ')
    assert f'{sentence} 127.0.0.1:{port} within 3 s' in error and '--nproc 1 --nnodes 1 lets it train alone' in error
    assert not (tmp_path / 'run').exists()


@pytest.mark.preloaded
def test_one_process_in_a_step_of_eight_tasks(few_digits, tmp_path):
    result = run_cli(*train_flags(few_digits, tmp_path, '--nproc', 1, '--epochs', 1), env=STEP, timeout=60)
    assert result.returncode == 0, result.stderr
    assert 'processes      1 (--nproc)' in result.stderr and 'one process was asked for' in result.stderr


@pytest.mark.preloaded
def test_a_node_says_for_whom_it_waits(few_digits, tmp_path):
    flags = ('--nproc', 1, '--nnodes', 3, '--master-addr', '127.0.0.1', '--master-port', free_ports())
    result = run_cli(*train_flags(few_digits, tmp_path, *flags, '--rdzv-timeout', 3), timeout=60)
    assert result.returncode == 1 and 'Not all of the 3 nodes came' in result.stderr
    assert 'Waiting for nodes 1, 2 to come to 127.0.0.1:' in result.stderr


@pytest.fixture
def store_of_torchrun(monkeypatch):
    """The store that torchrun's agent runs for its ranks, and this process as local rank 1."""
    from torch.distributed import PrefixStore, TCPStore
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    env = {'RANK': 1, 'LOCAL_RANK': 1, 'WORLD_SIZE': 2, 'LOCAL_WORLD_SIZE': 2, 'MASTER_ADDR': '127.0.0.1',
           'MASTER_PORT': store.port, 'TORCHELASTIC_USE_AGENT_STORE': True, 'TORCHELASTIC_RUN_ID': 'none'}
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))
    return PrefixStore('seresnet_timm/0/0', store)


def test_a_rank_of_torchrun_waits_for_local_rank_0_no_longer_than_asked(store_of_torchrun, tmp_path):
    result = run_here('train', '--data-dir', tmp_path, '--rdzv-timeout', '1', '--no-such-flag')
    waiting, error = result.stderr.splitlines()
    assert result.returncode == 1 and waiting.startswith('Waiting for local rank 0 to check this run: 0 s of at most 1')
    assert 'error (rank 1): Local rank 0 did not check this run within 1 s' in error and '--rdzv-timeout' in error


def test_a_download_may_take_longer_than_the_check_of_a_run(store_of_torchrun, monkeypatch, capsys):
    monkeypatch.setattr(handover, 'DOWNLOAD_TIMEOUT', 2)
    store_of_torchrun.set(handover.DOWNLOADS, '')
    with pytest.raises(RunError, match='Local rank 0 did not download what this run needs within 2 s'):
        handover.receive(1)
    assert capsys.readouterr().err.startswith('Waiting for local rank 0 to download what this run needs: ')


@pytest.mark.parametrize('argv, seconds', (
    ('--rdzv-timeout 7', 7), ('--rdzv_timeout=7', 7), ('--lr 1 --rdzv-t 7', 7), ('--rdzv-timeout x', None), ('', None)))
def test_seconds_that_a_waiting_rank_reads(argv, seconds):
    assert typed_before_the_plan(argv.split())['rdzv_timeout'] == seconds


@pytest.mark.parametrize('env', (
    {'SLURM_STEP_NUM_TASKS': 'x'}, {'SLURM_STEP_NUM_TASKS': '8'}, {'WORLD_SIZE': 'eight', 'RANK': '0'},
    {'MA_NUM_HOSTS': '2'}, {'PET_NNODES': 'x', 'PET_NODE_RANK': '0'}, {'TORCHELASTIC_RUN_ID': 'x', 'WORLD_SIZE': 'y'}))
def test_variables_that_describe_no_job_do_not_matter_for_one_process(env):
    def asked_by(*argv):
        typed = typed_before_the_plan(argv)
        return cluster.Asked(typed['nproc'], typed['nnodes'])
    asked = asked_by('--lr', '1', '--nproc', '1')
    assert cluster.decide(cluster.detect(env, asked), env, asked) == (None, None)
    assert cluster.detect(env, asked_by('--nproc=1', '--nnodes', '1')) is None
    for argv in ([], ['--nproc', '2'], ['--nproc', '1', '--nnodes', '2'], ['--nproc']):
        if 'TORCHELASTIC_RUN_ID' in env or 'RANK' not in env:
            with pytest.raises(UsageError):
                cluster.detect(env, asked_by(*argv))


@pytest.mark.parametrize('kind', ('silent', 'closes', 'http'))
def test_another_program_at_the_port_of_a_store_ends_the_wait(kind, capfd):
    """torch itself has no time limit for one that is silent."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        kept = []

        def serve():
            while True:
                try:
                    kept.append(server.accept()[0])
                    if kind == 'http':
                        kept[-1].sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
                    if kind != 'silent':
                        kept.pop().close()
                except OSError:
                    return
        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        with pytest.raises((RunError, RuntimeError)) as e:
            waiting.open_store('127.0.0.1', server.getsockname()[1], 1.5, 60, is_master=False)
        assert time.monotonic() - start < 10 and 'did not answer as a store' in str(e.value)
    assert 'Waiting for the store of torch.distributed at 127.0.0.1:' in capfd.readouterr().err


def test_lines_of_a_wait_are_rare(monkeypatch, capsys):
    now = [0.]
    monkeypatch.setattr(waiting.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(waiting.time, 'sleep', lambda seconds: now.__setitem__(0, now[0] + seconds))
    wait = waiting.Wait(300)
    while not wait.is_over:
        wait.go_on('rank 1 of 2 at host:1')
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(': ')[1].split(' s')[0] for line in lines] == ['10', '30', '90', '270']
