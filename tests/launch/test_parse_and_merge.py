"""The ModelZoo's names, presets and schedules, translated to timm's flags."""
import math
from argparse import Namespace

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from seresnet_timm.errors import UsageError
from seresnet_timm.launch import modelzoo
from seresnet_timm.launch.flags import MODELZOO
from seresnet_timm.launch.parse import parse
from seresnet_timm.launch.recipes import load_recipe, recipes_dir
from seresnet_timm.launch.sources import collect, merge


def translate(*argv, verb='train', world_size=8):
    """The script's arguments and the launcher's options."""
    line = parse(verb, argv)
    sources = collect(line, recipe_name=None)
    return Namespace(**merge(line, sources, 'npu', world_size)), Namespace(**sources.options)


def test_the_plan_says_that_batch_size_was_translated():
    for argv, said in ((('--batch_size=1024',), '--batch_size 1024, which counts the images of all processes'),
                       (('-b', '128'), None), (('--batch-size=128',), None)):
        line = parse('train', ('--data-dir', 'x', *argv))
        sources = collect(line, recipe_name=None)
        assert merge(line, sources, 'npu', 8)['batch_size'] == 128
        assert sources.reasons.get('batch_size') == said


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
    line = parse('train', ['--evaluate', '--resume=a', '-b', '1'])
    assert line.verb == 'validate' and line.flags == {'checkpoint': 'a', 'batch_size': 1}
    assert parse('train', ['-e', '--resume', 'a']).flags == {'checkpoint': 'a'}
    assert parse('validate', ['--resume', 'a']).flags == {'checkpoint': 'a'}


def test_recipe_of_an_evaluation_takes_resume():
    assert parse('validate', ['--resume=a']).flags == {'checkpoint': 'a'}
    assert parse('train', ['--resume=a']).flags == {'resume': 'a'}


@pytest.mark.parametrize('typed, full', (
    (('--batch-siz', '8'), ('-b', '8')), (('-b8',), ('-b', '8')), (('--batch-size=8',), ('-b', '8')),
    (('--conf', 'c.yaml'), ('-c', 'c.yaml')), (('-cc.yaml',), ('-c', 'c.yaml')),
    (('--confi=c.yaml',), ('-c', 'c.yaml')),
    (('--see', '3'), ('--seed', '3')), (('--dry',), ('--dry-run',)), (('--loss', '2'), ('--loss-scale', '2')),
))
def test_every_spelling_that_argparse_takes_means_the_full_flag(typed, full):
    found, expected = parse('train', typed), parse('train', full)
    assert (found.flags, found.options, found.modelzoo) == (expected.flags, expected.options, expected.modelzoo)
    assert found.flags or found.options


@pytest.mark.parametrize('typed', ('--batch', '--lr-', '--nod', '--warm'))
def test_ambiguous_abbreviation_is_refused_with_the_full_flags(typed):
    line = parse('train', [typed, '8'])
    assert len(line.problems) == 1 and line.problems[0].startswith(f'Ambiguous option: {typed} could match --')
    assert not (line.flags or line.options or line.modelzoo)


def test_config_is_read_whatever_its_flag_is_called(tmp_path):
    (tmp_path / 'c.yaml').write_text('batch_size: 8\nlr: 0.5\n')
    for flags in (('-c', tmp_path / 'c.yaml'), (f'-c{tmp_path}/c.yaml',), ('--conf', tmp_path / 'c.yaml')):
        args, _ = translate(*map(str, flags))
        assert (args.batch_size, args.lr) == (8, 0.5)


def test_values_of_a_config_and_of_flags(tmp_path):
    """YAML reads 1e-3 as text; a list of numbers; a mapping; a flag of timm that is off."""
    (tmp_path / 'c.yaml').write_text('lr: 1e-3\nscale: [5e-1, 1]\nepochs: 7\nopt_kwargs: {nesterov: true}\n'
                                     'naflex_loader: false\nmomentum: 1\n')
    args, _ = translate('--config', str(tmp_path / 'c.yaml'), '--epochs', '9')
    assert (args.lr, args.scale, args.epochs, args.momentum) == (1e-3, [0.5, 1.0], 9, 1)
    assert args.opt_kwargs == {'nesterov': True}
    args, _ = translate('--opt-kwargs', 'a=1', 'b=text', 'c=[1, 2]')
    assert args.opt_kwargs == {'a': 1, 'b': 'text', 'c': [1, 2]}


def test_preset_then_config_then_command_line(tmp_path):
    (tmp_path / 'c.yaml').write_text('batch_size: 8\nlr: 0.5\n')
    args, _ = translate('--preset', 'seresnet50_ascend', '-c', str(tmp_path / 'c.yaml'), '--lr', '0.25')
    assert (args.model, args.batch_size, args.lr) == ('seresnet50_ascend', 8, 0.25)


def test_evaluation_takes_the_config_of_a_training(tmp_path):
    (tmp_path / 'args.yaml').write_text('epochs: 3\nmodel: resnet18\nval_split: val\nlr: 0.1\nimg_size: 64\n')
    args, _ = translate('-c', str(tmp_path / 'args.yaml'), verb='validate')
    assert (args.model, args.split, args.img_size) == ('resnet18', 'val', 64) and not hasattr(args, 'epochs')


def test_devices():
    _, opts = translate('--device_list', '0,1,5,7')
    assert opts.nproc == '4'
    assert modelzoo.visible_devices(parse('train', ['--device_list=0,1,5,7']).modelzoo) == {
        'ASCEND_RT_VISIBLE_DEVICES': '0,1,5,7', 'CUDA_VISIBLE_DEVICES': '0,1,5,7'}
    assert translate('--device=gpu', '--gpu=3')[1].device == 'cuda:3'
    assert translate('--loss-scale', '-1')[1].loss_scale is None


@pytest.mark.parametrize('argv, hint', (
    (('--batch_size=10', '-b', '3'), '--batch_size counts the images of all processes, -b those of one'),
    (('--batch_size=10', '-b3'), 'give one of them'),
    (('--batch_size=10', '--batch-siz', '3'), 'give one of them'),
    (('--mom=0.8', '--momentum', '0.9'), '--mom and --momentum mean the same'),
    (('--data_path=a', '--data-dir', 'b'), '--data_path and --data-dir mean the same'),
    (('--batch_size=1000', '--batch-size=3'), 'give one of them'),
    (('--batch_size=1001',), '--batch_size 1001 does not divide by 8 processes: try 1000 or 1008'),
    (('--train_epochs=2', '--epochs=3'), 'give one of them'),
    (('--learning-rate=2', '--lr', '3'), 'give one of them'),
    (('--addr=a', '--master_addr=b'), '--addr and --master-addr mean the same'),
    (('--amp-level=O0', '--amp'), 'give one of them'),
    (('--device_list=a,b',), '--device_list is a list of device numbers'),
    (('--device_list=0,1', '--nproc=4'), 'contradict each other'),
    (('--gpu=1',), '--gpu is the index of --device'),
))
def test_contradictions(argv, hint):
    with pytest.raises(UsageError, match=hint.replace('(', r'\(')):
        translate(*argv)


@pytest.mark.parametrize('argv, problem', (
    (('--amp-level=O3',), '--amp-level O3 is unknown: there are O0, O1, O2.'),
    (('--nproc', 'many'), '--nproc many is not a whole number: give at least 1, or auto.'),
    (('--nproc', '0'), '--nproc 0 is too small: give at least 1, or auto.'),
))
def test_wrong_options_of_the_launcher(argv, problem):
    assert parse('train', argv).problems == [problem]


def test_table_is_what_the_parser_takes():
    assert set(MODELZOO) <= set(parse('train', []).parser._option_string_actions)


def test_flags_of_every_preset_parse():
    for path in recipes_dir().glob('*.yaml'):
        args, _ = translate('--preset', path.stem)
        assert timm.is_model(args.model) and load_recipe(path.stem).settings['model'] == args.model


@pytest.mark.parametrize('encoding', ('utf-8', 'utf-8-sig', 'utf-16'))
def test_yaml_files_of_any_editor(tmp_path, encoding):
    from seresnet_timm.launch.config_file import read_yaml
    (tmp_path / 'a.yaml').write_bytes('epochs: 3\r\n\r\ndata_dir: café  \r\n'.encode(encoding))
    assert read_yaml(str(tmp_path / 'a.yaml')) == (
        {'epochs': 3, 'data_dir': 'café'}, {'epochs': 1, 'data_dir': 3}, [])
