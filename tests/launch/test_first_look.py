"""Wrong values are refused before torch is imported, with all else that can be said without it; nothing is created."""
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import subset, train_flags

from seresnet_timm import cli
from seresnet_timm.engine import timm_names
from seresnet_timm.errors import UsageError
from seresnet_timm.launch.config_file import load_config
from seresnet_timm.launch.parse import parse
from seresnet_timm.launch.plan import make_plan
from seresnet_timm.launch.recipes import load_recipe
from seresnet_timm.launch.sources import Sources

pytestmark = pytest.mark.preloaded


def problems(*argv, verb='train', recipe=None) -> list:
    with pytest.raises(UsageError) as e:
        make_plan(verb, [str(a) for a in argv], recipe)
    return list(e.value.problems or [str(e.value)])


def test_all_mistakes_of_a_command_line_at_once(few_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = problems(
        '--data-dir', 'nowhere', '--model', 'resnet18', '-b', '0', '--lr', 'nan', '--epochs', 'two', '--sched', 'cosin',
        '--interpolation', 'bilnear', '--output', '/proc/x', '--input-size', '3', '0', '32', '--jsd-loss',
        '--mean', '1', '2', '--scale', '1', '.5', '--dry-run')
    expected = ('--batch-size 0', '--lr nan', "--epochs 'two'", '--sched cosin is unknown: did you mean cosine?',
                '--interpolation bilnear is unknown: did you mean bilinear?', '--output /proc/x', '--input-size 0',
                '--scale 1.0 0.5', 'Dataset nowhere does not exist', '--mean has 2 values', '--jsd-loss compares')
    assert len(found) == len(expected) and all(any(p.startswith(e) for p in found) for e in expected), found
    assert os.listdir() == []


@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_unknown_and_ambiguous_flags_are_told_with_the_other_mistakes(few_digits, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    found = problems('--nosuchflag', 'x', '--mod', 'y', '-b', '0', '--data-dir', 'nowhere', '--workers', verb=verb)
    expected = ("Unknown flag '--nosuchflag'", 'Ambiguous option: --mod could match', '--batch-size 0',
                'Dataset nowhere does not exist', 'Argument -j/--workers: expected one argument')
    assert len(found) == len(expected) and all(any(p.startswith(e) for p in found) for e in expected), found
    found = problems('--nosuchflag', few_digits, '-b', '0', verb=verb)  # a folder that exists is timm's DIR
    assert len(found) == 2 and not any('Dataset' in p for p in found), found
    assert os.listdir() == []


@pytest.mark.parametrize('typed, said', (
    (('--data_path', 'nowhere'), 'check --data_path.'), (('--data-dir', 'nowhere'), 'check --data-dir.'),
    (('-c', 'c.yaml'), 'check --data-dir. (data_dir is set in c.yaml, line 1.)'),
    (('-c', 'c.yaml', '--data-dir', 'nowhere'), 'check --data-dir.'),
))
@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_a_problem_names_the_flag_as_it_was_typed(tmp_path, monkeypatch, capsys, verb, typed, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.yaml').write_text('data_dir: nowhere\n')
    sentence = f'Dataset nowhere does not exist: {said}'
    assert problems(*typed, '--model', 'resnet18', '-b', '0', verb=verb)[-1] == sentence
    with pytest.raises(SystemExit):  # found by the checks, after the plan
        cli.main([verb, *typed, '--model', 'resnet18', '--dry-run'])
    assert sentence in capsys.readouterr().err and os.listdir() == ['c.yaml']


def test_only_whole_flags_get_the_typed_name():
    sources = Sources(None, {}, {}, {}, {}, {}, ('data_path', 'batch_size', 'world_size'))
    assert sources.as_typed('--data-dir --data-dirs /a/--data-dir/b x--data-dir --data-dir=1') == (
        '--data_path --data-dirs /a/--data-dir/b x--data-dir --data_path=1')
    assert sources.as_typed('--batch-size 8, --nnodes') == '--batch-size 8, --world-size'


def test_names_that_only_timm_knows_are_judged_by_it_in_the_same_message(few_digits, capsys, tmp_path):
    for more, message in ((('--model', 'resnet19'), "Unknown model 'resnet19'"),
                          (('--opt', 'adamww'), "Unknown optimizer --opt 'adamww'")):
        with pytest.raises(SystemExit) as e:
            cli.main([str(a) for a in train_flags(few_digits, tmp_path / 'out', '--hflip', '7', *more)])
        err = capsys.readouterr().err
        assert e.value.code == 2 and '2 problems' in err and '--hflip 7 is too large' in err and message in err
    assert not (tmp_path / 'out').exists()


def test_no_name_of_timm_is_unknown_in_its_text():
    """Every architecture, every name of weights and every name that timm replaced, also those that loops make."""
    import timm
    from timm.models import _registry
    names = {*timm.list_models(), *timm.list_pretrained(), *_registry._model_pretrained_cfgs,
             *_registry._deprecated_models}
    assert len(names) > 3000 and 'tv_resnext50_32x4d' in names
    assert [name for name in names if timm_names.unknown_model(name)] == []
    assert [name for name in names if '.' not in name and not timm_names.is_model(name)] == []
    assert sorted(timm_names.models()) == sorted(timm.list_models())


@pytest.mark.parametrize('name', (
    'seresnet5', 'ResNet50', 'resnet-50', 'resnet50.a1_in1kk', 'seresnet50.foo', 'x y', '.a', 'a.b.c',
    'seresnet18_asend', 'seresnet18_ascend.foo'))
def test_an_unknown_model_is_told_as_timm_tells_it(name):
    from seresnet_timm.models.create import check_model_name
    with pytest.raises(UsageError) as e:
        check_model_name(name)
    assert timm_names.unknown_model(name) == str(e.value)


@pytest.mark.parametrize('name', (
    'hf-hub:a/b', 'local-dir:x', 'a/b', 'resnet*', 'vit_base_patch16_clip_quickgelu_224.metaclip_400m'))
def test_names_that_others_must_judge(name):
    assert timm_names.unknown_model(name) is None and not timm_names.is_model(name)


def test_optimizers_in_the_text_of_timm():
    from timm.optim import list_optimizers

    import seresnet_timm.ascend.optim  # noqa: F401
    names = [n for n in list_optimizers() if not n.startswith('bnb')]  # only where its package is
    assert 'npufusedsgd' in names and all(timm_names.is_optimizer(name) for name in names)
    assert set(names) <= set(timm_names.optimizers())
    assert timm_names.is_optimizer('lookahead_adam') and timm_names.unknown_optimizer('Lookahead_AdamW') is None
    assert timm_names.unknown_optimizer('adamww') == timm_names.unknown_optimizer('adamww', list_optimizers())


def test_a_module_may_register_names(tmp_path, monkeypatch):
    """Of which only it can judge."""
    (tmp_path / 'my_networks.py').write_text(
        'import timm\n@timm.models.register_model\ndef my_net(pretrained=False, **kwargs):\n'
        "    return timm.create_model('resnet18', **kwargs)\n")
    monkeypatch.syspath_prepend(tmp_path)
    argv = ['--model', 'my_net', '--data-dir', str(tmp_path), '--device', 'cpu']
    assert make_plan('train', [*argv, '--device-modules', 'my_networks']).settings.args['model'] == 'my_net'
    assert any("Unknown model 'my_net'" in p for p in problems(*argv))


@pytest.mark.parametrize('argv', (
    ('train', '--epochss', '3'), ('train', '--model', 'resnet18', '--interpolation', 'bilnear'),
    ('train', '--model', 'seresnet5'), ('train', '--model', 'resnet50.a1_in1kk'), ('train', '--opt', 'adamww'),
    ('weights', 'fetch', 'seresnet5'), ('predict', 'seresnet5', 'i.jpg'), ('convert', 'none', 'x.pth'),
    ('train', '--optimizer', 'adam'), ('validate', '-b', '0'), ('recipe', 'train_1p', '--data_path=x', '--lr=-1'),
    ('tune', '--batchsize', '3'), ('tune', '--allow', 'x', '-b', '0'), ('tune', '--model', 'resnet5O'),
    ('predict', 'm', 'i.jpg', '--topk', '0'), ('export', 'm', '/proc/m.onnx'), ('prepare', 'a', '/proc/b'),
))
def test_a_typo_needs_no_torch(argv):
    """Whatever the machine: no module that takes long is imported."""
    code = ('import sys; from seresnet_timm import cli\n'
            f'try: cli.main({list(argv)})\n'
            'except SystemExit as e: assert e.code == 2\n'
            'assert not {"torch", "timm", "torchvision"} & set(sys.modules)')
    env = {**os.environ, 'TIMM_SCRIPTS': ''}
    code = 'import sys; sys.orig_argv = ["python", "seresnet-timm"]\n' + code
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('text, words', (
    ('batch_size: 0', 'batch_size 0 is too small: give at least 1'), ('lr: -1', 'lr -1 is too small'),
    ('lr: .nan', 'lr nan is not a finite number'), ('lr: 1e999', 'lr 1e999 is not a finite number'),
    ('interpolation: bilnear', 'interpolation bilnear is unknown: did you mean bilinear?'),
    ('input_size: [3, 0, 32]', 'input_size 0 is too small'), ('scale: [1.0, 0.5]', 'not in ascending order'),
    ('opt_betas: [2, 0.9]', 'opt_betas 2'), ('sched: cosin', 'did you mean cosine?'),
    ('output: /proc/x', 'output /proc/x cannot be written'), ('head_init_bias: .inf', 'not a finite number'),
))
def test_keys_of_a_config_file_have_the_same_rules(tmp_path, text, words):
    (tmp_path / 'c.yaml').write_text(f'{text}\nepochs: 0\n')
    line = parse('train', [])
    first, second = load_config(str(tmp_path / 'c.yaml'), line.parser, line.defaults).problems
    assert words in first and first.startswith(f'Config {tmp_path}/c.yaml, line 1: ')
    assert second == f'Config {tmp_path}/c.yaml, line 2: epochs 0 is too small: give at least 1.'


@pytest.mark.parametrize('text, words', (
    ('epochs: 010', 'line 1: YAML reads 010 as 8'), ('\nlr: 1:30', 'line 2: YAML reads 1:30 as 90'),
    ('scale: [0.08, 01]', 'YAML reads 01 as 1'), ('aa: &x [*x]', 'holds itself'), ('epochs: 08', 'got .08.'),
))
def test_a_number_of_a_config_file_is_what_is_written(tmp_path, text, words):
    (tmp_path / 'c.yaml').write_text(text + '\n')
    line = parse('train', [])
    problem, = load_config(str(tmp_path / 'c.yaml'), line.parser, line.defaults).problems
    assert re.search(words, problem)
    (tmp_path / 'c.yaml').write_text('experiment: "010"\nlr: 0.1\nepochs: 0x10\nseed: 0\n')
    assert load_config(str(tmp_path / 'c.yaml'), line.parser, line.defaults).values == {
        'experiment': '010', 'lr': 0.1, 'epochs': 16, 'seed': 0}


def test_numbers_in_a_mapping_of_a_config_file(tmp_path):
    """YAML 1.1 reads 1e-8 as text; on the command line it is a number too."""
    (tmp_path / 'c.yaml').write_text('opt_kwargs: {eps: 1e-8, betas: [9e-1, 0.999], name: "x1e-8"}\nlr: 1E-3\n')
    line = parse('train', [])
    assert load_config(str(tmp_path / 'c.yaml'), line.parser, line.defaults).values == {
        'opt_kwargs': {'eps': 1e-8, 'betas': [0.9, 0.999], 'name': 'x1e-8'}, 'lr': 1e-3}
    typed = parse('train', ['--opt-kwargs', 'eps=1e-8']).flags
    assert typed['opt_kwargs'] == {'eps': 1e-8}


@pytest.mark.parametrize('text, got', (('2024-01-01', '2024-01-01'), ('010', None), ('3', '3'), ('yes', 'True')))
def test_a_text_of_a_config_file_that_yaml_takes_for_something_else(tmp_path, text, got):
    (tmp_path / 'c.yaml').write_text(f'experiment: {text}\n')
    line = parse('train', [])
    problem = load_config(str(tmp_path / 'c.yaml'), line.parser, line.defaults).problems[-1]
    assert got is None or problem.endswith(f'experiment must be text, got {got}: write it in quotes.')


def test_a_config_file_that_a_run_wrote_is_right(tmp_path):
    line = parse('train', [])
    args = {k: v for k, v in line.defaults.items() if k != 'config'}
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(args))
    assert load_config(str(tmp_path / 'args.yaml'), line.parser, line.defaults).values['epochs'] == 300


def test_values_of_a_command_line_and_of_its_config_file(tmp_path, few_digits):
    (tmp_path / 'c.yaml').write_text('epochs: 0\n')
    found = problems('--data-dir', few_digits, '-c', tmp_path / 'c.yaml', '--hflip', '7')
    assert found[0].startswith('--hflip 7') and 'epochs 0 is too small' in found[1]


# --- paths ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('argv', (
    ('--data-dir=~/x',), ('--data_dir=~/x',), ('--data-path=~/x',), ('--data_path', '~/x'), ('~/x',)))
def test_every_name_of_the_data_folder(few_digits, tmp_path, monkeypatch, argv):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'x').symlink_to(few_digits)
    plan = make_plan('train', [*argv, '--model', 'resnet18', '--device', 'cpu', '--output', '~/runs'])
    assert plan.settings.args['data_dir'] == f'{tmp_path}/x' and plan.problems == []
    assert plan.settings.output.startswith(f'{tmp_path}/runs/') and not (tmp_path / 'runs').exists()


def test_a_tilde_in_a_config_file(few_digits, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'x').symlink_to(few_digits)
    (tmp_path / 'c.yaml').write_text('data_dir: ~/x\nclass_map: ""\n')
    plan = make_plan('train', ['-c', '~/c.yaml', '--model', 'resnet18', '--device', 'cpu'])
    assert plan.settings.args['data_dir'] == f'{tmp_path}/x'


def test_a_missing_file_is_named_in_the_home_folder(few_digits, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert parse('train', ['--resume=~/none.pth', '--prof=~/p']).flags['resume'] == f'{tmp_path}/none.pth'
    assert parse('validate', ['--real-labels=~/r', '--checkpoint', '~/c']).flags == {
        'real_labels': f'{tmp_path}/r', 'checkpoint': f'{tmp_path}/c'}


def test_other_characters_are_plain(few_digits, tmp_path):
    data = tmp_path / "d [1] 50%*x ?'"
    data.symlink_to(few_digits)
    for argv in ((f'--data_path={data}/',), (f'{data}//',), ('--data-dir', data)):
        plan = make_plan('train', [*map(str, argv), '--model', 'resnet18', '--device', 'cpu'])
        assert plan.problems == [] and plan.settings.num_images == {'train': 100, 'val': 70}


# --- the batch size that nobody asked for -----------------------------------------------------------------------------

def test_a_default_batch_is_lowered_to_the_data(few_digits):
    argv = ['--data-dir', str(few_digits), '--model', 'resnet18', '--device', 'cpu']
    plan = make_plan('train', argv)
    assert plan.settings.args['batch_size'] == 100 and any('-b 100, not 128' in n for n in plan.settings.notes)
    assert make_plan('train', [*argv, '--nproc', '3']).settings.args['batch_size'] == 33
    assert make_plan('train', [*argv, '--nproc', '3', '--mixup', '.1']).settings.args['batch_size'] == 32
    assert make_plan('train', [*argv, '-b', '128']).settings.args['batch_size'] == 128  # which the checks refuse


def test_a_recipes_learning_rate_follows_its_batch(digits, tmp_path):
    few = subset(digits, tmp_path / 'few', 1, 1)
    recipe = load_recipe('train_1p')
    args = make_plan('train', [f'--data_path={few}', '--device', 'cpu'], 'train_1p').settings.args
    assert args['batch_size'] == 10
    assert args['lr'] == pytest.approx(recipe.lr * 10 / recipe.global_batch_size)
    args = make_plan('train', [f'--data_path={few}', '--device', 'cpu', '--lr', '0.25'], 'train_1p').settings.args
    assert (args['batch_size'], args['lr']) == (10, 0.25)
