"""The ModelZoo's names, presets and schedules, translated to timm's flags."""
import math

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from seresnet_timm.engine.flags import train_parser, validate_parser
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import cluster
from seresnet_timm.launch import flags as options
from seresnet_timm.launch.config_file import parse_args


def translate(*argv, verb='train', world_size=8):
    opts, rest = options.split(list(argv))
    flags = options.as_flags(options.settings_for(verb, opts, world_size)) + rest
    return parse_args(train_parser() if verb == 'train' else validate_parser(), flags)[0], opts


def test_modelzoo_command_line():
    """The options of test/train_full_8p.sh."""
    args, opts = translate(
        '--data_path=/data', '--addr=10.0.0.1', '--seed=49', '--workers=64', '--learning-rate=0.6', '--mom=0.8',
        '--weight-decay=1.0e-04', '--print-freq=1', '--dist-url=tcp://127.0.0.1:50009', '--dist-backend', 'hccl',
        '--multiprocessing-distributed', '--world-size=2', '--rank=1', '--device=npu', '--train_epochs=100', '--amp',
        '--batch_size=1024', '--loss-scale=1024', '--opt-level', 'O1', '--warm_up_epochs', '5')
    assert (args.data_dir, args.batch_size, args.seed, args.workers) == ('/data', 128, 49, 64)
    assert (args.lr, args.momentum, args.weight_decay, args.log_interval, args.amp) == (0.6, 0.8, 1e-4, 1, True)
    assert (args.epochs, args.warmup_epochs, args.warmup_prefix) == (95, 5, True)
    assert args.warmup_lr == pytest.approx(0.1)
    assert (opts.master_addr, opts.nnodes, opts.node_rank, opts.device) == ('10.0.0.1', 2, 1, 'npu')
    assert (opts.loss_scale, opts.amp_level) == (1024, 'O1')


@pytest.mark.parametrize('epochs, warm_up, lr', ((100, 5, 0.6), (1, 5, 0.1), (2, 5, 0.6), (5, 5, 0.6), (6, 5, 0.6),
                                                 (30, 3, 0.2), (4, 0, 0.3)))
def test_schedule_is_the_modelzoos(epochs, warm_up, lr):
    """Learning rate of every epoch against the formula of its main.py, also where training ends in the warm-up."""
    args, _ = translate('--train_epochs', str(epochs), '--warm_up_epochs', str(warm_up), '--learning-rate', str(lr))
    optimizer = create_optimizer_v2(torch.nn.Linear(2, 2), 'momentum', lr=args.lr)
    scheduler, total = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=10)
    assert total == epochs
    for e in range(epochs):
        expected = lr * (e + 1) / (warm_up + 1) if e < warm_up else \
            lr * 0.5 * (1 + math.cos(math.pi * (e - warm_up) / (epochs - warm_up)))
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, abs=1e-12), e
        scheduler.step(e + 1)


def test_preset_and_flags_after_it():
    args, _ = translate('--preset', 'seresnet50_ascend', '--data-dir', 'x', '--model', 'resnet18', '-b', '7')
    assert (args.model, args.batch_size, args.lr, args.amp) == ('resnet18', 7, 0.6, True)
    assert args.opt_kwargs == {'filter_bias_and_bn': False}
    args, _ = translate('--preset', 'seresnet50_ascend', '--amp-level', 'O0')
    assert not args.amp
    args, _ = translate('--preset', 'seresnet50_ascend', '--train_epochs', '20')
    assert (args.epochs, args.warmup_epochs, args.lr) == (15, 5, 0.6)
    args, _ = translate('--preset', 'seresnet50_ascend', '--learning-rate', '1.2')
    assert (args.epochs, args.lr, args.warmup_lr) == (95, 1.2, pytest.approx(0.2))


def test_preset_for_evaluation():
    args, _ = translate('--preset', 'seresnet50_ascend', '--data_path=x', '--batch_size=1024', verb='validate')
    assert (args.model, args.split, args.crop_pct, args.batch_size) == ('seresnet50_ascend', 'val', 0.875, 128)


def test_evaluate_is_validate():
    assert options.evaluate_flags(['--resume', 'a', '--resume=b', '-b', '1']) == [
        '--checkpoint', 'a', '--checkpoint=b', '-b', '1']


def test_devices():
    _, opts = translate('--device_list', '0,1,5,7')
    assert opts.nproc == '4'
    assert options.visible_devices(opts) == {
        'ASCEND_RT_VISIBLE_DEVICES': '0,1,5,7', 'CUDA_VISIBLE_DEVICES': '0,1,5,7'}
    assert translate('--device=gpu', '--gpu=3')[1].device == 'cuda:3'
    assert translate('--loss-scale', '-1')[1].loss_scale is None


@pytest.mark.parametrize('argv, hint', (
    (('--batch_size=10', '-b', '3'), '--batch_size counts the images of all processes, -b those of one'),
    (('--batch_size=10', '-b3'), 'give one of them'),
    (('--batch_size=1000', '--batch-size=3'), 'give one of them'),
    (('--batch_size=1001',), '--batch_size 1001 does not divide by 8 processes: try 1000 or 1008'),
    (('--train_epochs=2', '--epochs=3'), 'give one of them'),
    (('--learning-rate=2', '--lr', '3'), 'give one of them'),
    (('--addr=a', '--master_addr=b'), '--addr and --master-addr mean the same'),
    (('--amp-level=O0', '--amp'), 'give one of them'),
    (('--amp-level=O3',), 'invalid choice'),
    (('--nproc', 'many'), '--nproc is a number of processes or auto'),
    (('--nproc', '0'), '--nproc is a number of processes or auto'),
    (('--device_list=a,b',), '--device_list is a list of device numbers'),
    (('--device_list=0,1', '--nproc=4'), 'contradict each other'),
    (('--gpu=1',), '--gpu is the index of --device'),
))
def test_contradictions(argv, hint):
    with pytest.raises(UsageError, match=hint.replace('(', r'\(')):
        translate(*argv)


def test_table_is_what_the_parser_takes():
    flags = options.launcher_flags()
    assert all(name in flags for name in options.MODELZOO)


# --- who started this process -----------------------------------------------------------------------------------------

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


def test_flags_of_every_preset_parse():
    for path in options.recipes_dir().glob('*.yaml'):
        args, _ = translate('--preset', path.stem)
        assert timm.is_model(args.model)
