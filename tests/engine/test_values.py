"""The table of ranges, names and paths: complete, the names are timm's, and no value of use is refused."""
import math
import os
import socket

import pytest
from timm.data.auto_augment import auto_augment_transform
from timm.data.transforms import str_to_interp_mode
from timm.scheduler.scheduler_factory import create_scheduler_v2

from seresnet_timm.argument_parser import checked
from seresnet_timm.cli.main import VERBS
from seresnet_timm.engine import values
from seresnet_timm.engine.flags import train_parser, validate_parser
from seresnet_timm.engine.values import VALUES, rules_of
from seresnet_timm.launch.flags import add_launcher_flags, add_modelzoo_flags
from seresnet_timm.launch.recipes import load_recipe, recipes_dir

# numbers of which every finite one has a meaning
ANY_NUMBER = {'head_init_bias', 'local_rank', 'mean'}
# outputs that their verbs check with `files.why_not_writable`
CHECKED_BY_ITS_VERB = {'tune tuned_file'}


def wrong(dest, value, verb='train'):
    return checked(value, rules_of(verb).get(dest))[1]


def test_every_number_of_train_validate_and_the_launcher_has_a_range():
    for parser in (train_parser(), validate_parser()):
        parser.conflict_handler = 'resolve'
        add_launcher_flags(parser)
        add_modelzoo_flags(parser)
        numbers = {a.dest for a in parser._actions if a.type in (int, float)}
        assert numbers - set(VALUES) <= ANY_NUMBER


def test_every_number_of_the_other_verbs_has_a_range():
    import importlib

    from seresnet_timm.cli.main import make_parser
    for verb in VERBS:
        module = importlib.import_module(f'seresnet_timm.cli.{verb.replace("-", "_")}')
        for parser in make_parser(verb, module).parsers():
            for action in parser._actions:
                if action.type in (int, float):
                    assert action.dest in rules_of(verb), (verb, action.dest)


def test_defaults_and_the_settings_of_all_recipes_are_right():
    for parser in (train_parser(), validate_parser()):
        for dest, default in vars(parser.parse_args([])).items():
            for value in default if isinstance(default, list) else [default]:
                if value not in (None, '') and dest in VALUES and not isinstance(value, bool):
                    assert wrong(dest, value) is None, dest
    for path in recipes_dir().glob('*.yaml'):
        for dest, value in load_recipe(path.stem).settings.items():
            if dest in VALUES and not isinstance(value, (bool, list, dict)):
                assert wrong(dest, value) is None, (path, dest)


@pytest.mark.parametrize('dest, right', (
    ('loss_scale', (-1., 1024., 0.5)), ('nproc', ('auto', '1', '8')), ('aug_splits', (0, 2, 3)), ('momentum', (0., 1.)),
    ('warmup_epochs', (0,)), ('val_interval', (1,)), ('recovery_interval', (0,)), ('tta', (0,)),
    ('mixup_off_epoch', (0,)),
    ('clip_grad', (0.01,)), ('weight_decay', (0.,)), ('opt_eps', (0.,)), ('seed', (0, 2 ** 32 - 1)), ('workers', (0,)),
    ('remode', ('const', 'PIXEL', '')),
    ('aa', ('rand-m9-mstd0.5-inc1', 'augmix-m5-w4', 'originalr', 'v0-mstd0.5', 'ta_wide', '')),
    ('device', ('auto', 'npu', 'npu:3', 'cuda:0', 'gpu', 'cpu')), ('scale', (1., 1.3)), ('smoothing', (0., 0.99)),
))
def test_values_with_a_meaning_are_accepted(dest, right):
    assert [wrong(dest, value) for value in right] == [None] * len(right)


@pytest.mark.parametrize('dest, refused', (
    ('batch_size', (0, -4)), ('validation_batch_size', (0,)), ('epochs', (0, -3)),
    ('lr', (-1., 0., math.nan, math.inf)), ('workers', (-1,)),
    ('smoothing', (2., -0.5, 1.)), ('img_size', (0, -32)), ('input_size', (0,)),
    ('drop', (1.5, 1.)),
    ('drop_path', (-0.2,)), ('momentum', (3., -0.1)), ('num_classes', (0, -5)), ('weight_decay', (-1., math.nan)),
    ('crop_pct', (0., 1.5)), ('reprob', (2.,)), ('hflip', (7.,)), ('mixup', (-1.,)), ('model_ema_decay', (1.5, 1.)),
    ('grad_accum_steps', (0,)), ('warmup_epochs', (-1,)), ('log_interval', (0,)), ('in_chans', (0,)),
    ('opt_betas', (2., 1.)), ('rdzv_timeout', (-5, 0)), ('master_port', (0, 70000)), ('nproc', ('0', '-1', '1.5', 'x')),
    ('loss_scale', (0., -2., math.nan)), ('clip_grad', (0., -1.)), ('aug_splits', (1, -2)), ('std', (0.,)),
    ('seed', (-1, 2 ** 32)), ('checkpoint_hist', (0,)), ('decay_rate', (0.,)), ('head_init_bias', (math.nan,)),
    ('mean', (math.inf,)), ('topk', (0,)), ('quality', (0, 101)), ('opset', (10, 16)), ('seconds', (0.,)),
    ('device', ('gpuu', 'npu:x', 'tpu')), ('aa', ('foo', 'random-m9')), ('dist_bn', ('foo',)), ('remode', ('pixl',)),
    ('interpolation', ('random', 'bilnear')), ('train_crop_mode', ('rcc',)), ('worker_seeding', ('none',)),
))
def test_values_without_a_meaning_are_refused(dest, refused):
    assert all(wrong(dest, value) for value in refused), [wrong(dest, value) for value in refused]


def test_lists_have_the_right_number_and_order_of_values():
    assert VALUES['scale'].wrong_list([0.5]) == 'has 1 value: give 2'
    assert 'ascending' in VALUES['ratio'].wrong_list([1.3, 0.75])
    assert 'ascending' in VALUES['decay_milestones'].wrong_list([90, 30])
    assert VALUES['lr_noise'].wrong_list([0.4, 0.9]) is VALUES['lr_noise'].wrong_list([0.4]) is None
    assert VALUES['opt_betas'].wrong_list([0.9]) == 'has 1 value: give 2 or 3'
    assert VALUES['opt_betas'].wrong_list([0.9, 0.99]) is None
    assert VALUES['cutmix_minmax'].wrong_list([0.2, 0.8, 1]) is not None


def test_names_are_timms():
    for name in values.FILTERS:
        assert str_to_interp_mode(name)
    with pytest.raises(KeyError):
        str_to_interp_mode('bilnear')
    for policy in set(values.POLICIES) - {'rand', 'augmix', 'ta_wide'}:  # the last is torchvision's
        assert auto_augment_transform(policy, {'translate_const': 10, 'img_mean': (1, 1, 1)})
    with pytest.raises(AssertionError):
        auto_augment_transform('foo', {})
    import inspect
    source = inspect.getsource(create_scheduler_v2)
    assert all(f"'{name}'" in source for name in values.SCHEDULES if name != 'none')


@pytest.mark.parametrize('dest', (
    'data_dir', 'resume', 'class_map', 'config', 'output', 'prof', 'model', 'image', 'out', 'src',
    'modelzoo_data_path'))
def test_a_tilde_is_the_home_folder(dest, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert checked('~/x', VALUES[dest])[0] == f'{tmp_path}/x'
    assert checked('a~/x', VALUES[dest])[0] == 'a~/x'


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('x')
    monkeypatch.chdir(tmp_path)
    for path in ('/proc/x', '/sys/x/y', 'file', 'file/below', '/dev/null/x', 'a' * 300, 'b/' + 'a' * 300):
        assert 'cannot be written' in wrong('output', path), path
    for path in ('new', 'new/below/it', 'a [1] 100% *', str(tmp_path)):
        assert wrong('output', path) is None, path
    for path in ('/proc/x', str(tmp_path), 'no/such/folder', 'file/below'):
        assert 'cannot be written' in wrong('output', path, 'predict'), path
    for path in ('new', 'file', '/dev/stdout'):
        assert wrong('output', path, 'predict') is None, path
    assert os.listdir() == ['file']


def paths_that_are_read():
    from seresnet_timm.cli import flag_help
    found = {}
    for verb in VERBS:
        for parser in flag_help.parser_of(verb).parsers():
            for action in parser._actions:
                rule = rules_of(verb).get(action.dest)
                if str(action.metavar).rstrip('|-').endswith(('FILE', 'DIR', 'PATH', 'RUN', 'MODEL')) or (
                        isinstance(rule, values.FilePath)):
                    found[f'{verb} {action.dest}'] = rule
    return {k: rule for k, rule in found.items() if not isinstance(rule, values.Output)}


def test_no_path_of_any_verb_is_a_pipe_a_socket_or_a_device(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('pipe')
    (tmp_path / 'folder').mkdir()
    reads = paths_that_are_read()
    assert {'train config', 'train class_map', 'validate real_labels', 'inspect file', 'diagnose target',
            'push class_names', 'weights source', 'compare against'} <= set(reads)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 'socket'))
        for name in ('pipe', 'link', 'socket', '/dev/zero', '/dev/null', '/proc/cpuinfo'):
            for argument, rule in reads.items():
                assert argument in CHECKED_BY_ITS_VERB or 'it is a' in (rule.wrong(str(tmp_path / name)) or ''), (
                    argument, name)
    for argument, rule in reads.items():
        if argument not in CHECKED_BY_ITS_VERB:
            assert isinstance(rule, values.TextFile) == bool(rule.wrong(str(tmp_path / 'folder'))), argument
            assert rule.wrong('no such file') is None


@pytest.mark.parametrize('path, words', (
    ('x' * 300, 'file name too long'), ('/a' * 2500, 'file name too long'), ('loop', 'too many levels of'),
    ('loop/x', 'too many levels of symbolic links')))
def test_no_path_of_any_verb_is_too_long_or_a_loop(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'loop').symlink_to('loop')
    for argument, rule in paths_that_are_read().items():
        assert argument in CHECKED_BY_ITS_VERB or words in rule.wrong(path), argument


def test_no_path_of_any_verb_is_without_rights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('file', 'folder/file'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0)
    os.chmod('folder', 0)
    try:
        if os.access('file', os.R_OK):
            pytest.skip('root may read everything')
        for argument, rule in paths_that_are_read().items():
            is_text, is_image = isinstance(rule, values.TextFile), argument.endswith(' image')
            for path, where in (('file', 'file'), ('folder', 'folder'), ('folder/file', 'folders above it')):
                reason = rule.wrong(path) if argument not in CHECKED_BY_ITS_VERB else where
                if is_image and path == 'file':  # counts as an image that cannot be read
                    assert reason is None
                else:
                    assert ('it is a folder' if path == 'folder' and is_text else where) in reason, argument
        assert 'cannot be written' in wrong('output', 'folder/x') and 'cannot be written' in wrong('output', 'folder')
    finally:
        os.chmod('folder', 0o700)


def test_texts_have_a_largest_size(tmp_path):
    for dest in ('config', 'class_map', 'class_names', 'real_labels', 'valid_labels'):
        file = tmp_path / dest
        file.touch()
        assert wrong(dest, str(file)) is None
        os.truncate(file, 20 << 30)  # takes no space
        assert 'MB, and such a file has at most' in wrong(dest, str(file)), dest
    assert wrong('checkpoint', str(file)) is None, 'weights may be large'


def test_pipes_and_disks_are_no_output(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    assert 'is a pipe, not a file' in wrong('output', str(tmp_path / 'pipe'), 'predict')
    for path in ('/dev/null', '/dev/stdout'):
        assert wrong('output', path, 'predict') is None, path


@pytest.mark.skipif(os.getuid() == 0, reason='root may write everywhere')
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert 'is not writable' in wrong('output', str(tmp_path / 'x'))
