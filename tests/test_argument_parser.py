"""Errors of a command line: all at once, and the flag that was meant."""
import pytest

from seresnet_timm.argument_parser import ArgumentParser, nearest_flag, unknown_flags_with_spaces, with_known_spelling
from seresnet_timm.engine.flags import train_parser, validate_parser
from seresnet_timm.engine.values import Existing, Number
from seresnet_timm.errors import UsageError, refuse
from seresnet_timm.launch.flags import add_launcher_flags, add_modelzoo_flags


def flags_of(verb):
    parser = train_parser() if verb == 'train' else validate_parser()
    parser.conflict_handler = 'resolve'
    add_launcher_flags(parser)
    add_modelzoo_flags(parser)
    return parser.flags()


@pytest.mark.parametrize('typed, meant', (
    ('--optimizer', '--opt'), ('--batchsize', '--batch-size'), ('--batch-sise', '--batch-size'),
    ('--bs', '--batch-size'),
    ('--learningrate', '--learning-rate'), ('--base-lr', '--lr'), ('--gpus', '--nproc'), ('--num_gpus', '--nproc'),
    ('--num-workers', '--workers'), ('--data', '--data-dir'), ('--dataset-dir', '--data-dir'),
    ('--save-dir', '--output'),
    ('--output_dir', '--output'), ('--arch', '--model'), ('-a', '--model'), ('--image-size', '--img-size'),
    ('--num-epochs', '--epochs'),
    ('--label-smoothing', '--smoothing'), ('--lr-scheduler', '--sched'), ('--dropout', '--drop'), ('--fp16', '--amp'),
    ('--weight-dacay', '--weight-decay'), ('--npproc', '--nproc'), ('--seeed', '--seed'), ('--GPUs', '--nproc'),
    ('--max-grad-norm', '--clip-grad'), ('--xyzzy', None),
))
def test_the_flag_that_was_meant(typed, meant):
    assert nearest_flag(typed, flags_of('train')) == meant


def test_a_meaning_is_a_flag_that_the_verb_has():
    assert nearest_flag('--weights', flags_of('validate')) == '--checkpoint'
    assert nearest_flag('--weights', flags_of('train')) == '--initial-checkpoint'
    assert nearest_flag('--optimizer', flags_of('validate')) is None


def test_hyphens_and_underscores_are_one_in_names_of_flags_only():
    known = dict.fromkeys(('--data-dir', '--data_path', '--batch-size', '--batch_size'))
    assert with_known_spelling(
        ['--data_dir=a_b', '--data-path', 'c-d', '--batch_size=4', '--x_y', '--', '--data_dir'], known) == [
        '--data-dir=a_b', '--data_path', 'c-d', '--batch_size=4', '--x_y', '--', '--data_dir']


def test_an_unknown_flag_with_a_space_in_its_value_is_no_argument():
    assert unknown_flags_with_spaces(['--daata=my data', '--data=x y', 'a b', '-- c'], ['--data']) == ['--daata']


def parser():
    parser = ArgumentParser()
    parser.rules = {'n': Number(1), 'p': Number(0, 1)}
    parser.add_argument('--n', type=int)
    parser.add_argument('--p', type=float)
    parser.add_argument('--kind', choices=('mean', 'median'))
    parser.add_argument('file', nargs='?')
    return parser


def test_all_mistakes_are_said_at_once():
    with pytest.raises(UsageError) as e:
        parser().parse_args(['--n', '0', '--p', '2', '--kind', 'men', '--m', '3'])
    assert list(e.value.problems) == [
        '--n 0 is too small: give at least 1.', '--p 2 is too large: give 0 to 1.',
        '--kind men is unknown: did you mean mean?', "Unknown flag '--m': --help lists the flags."]
    with pytest.raises(UsageError) as e:  # which ends the parsing
        parser().parse_args(['--n', 'x', '--p'])
    assert list(e.value.problems) == [
        "--n 'x' is not a whole number: give at least 1.", 'Argument --p: expected one argument.']


def described(*args, looks_for_files=False):
    made = ArgumentParser()
    made.rules = {'model': Existing(), 'image': Existing(), 'topk': Number(1)}
    made.looks_for_files = looks_for_files
    made.find_contradictions = lambda args: ['contradiction'] if args.image != ['photo'] else []
    made.add_argument('model')
    made.add_argument('image', nargs='+')
    made.add_argument('--device')
    made.add_argument('--topk', type=int)
    made.add_argument('--sizes', type=int, nargs='+')
    made.add_argument('--json', action='store_true')
    with pytest.raises(UsageError) as e:
        made.parse_args(args)
    return list(e.value.problems or [str(e.value)])


@pytest.mark.parametrize('args, rest', (
    ('--devise cpu {0} photo', []), ('{0} --devise cpu photo', []), ('{0} photo --devise cpu', []),
    ('--devise=cpu {0} photo', []), ('--devise cpu photo', []), ('--devise cpu', []), ('--devise', None),
    ('--devise cpu {0} gone', ['image gone does not exist: check the path.', 'contradiction']),
    ('--devise=cpu photo', ['The following arguments are required: image.']),
    ('--devise cpu --topk 0 {0} photo', ['--topk 0 is too small: give at least 1.']),
))
def test_the_value_of_an_unknown_flag_is_no_other_argument(args, rest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photo').touch()
    found = described(*args.format('photo').split(), looks_for_files=True)
    expected = ['The following arguments are required: model, image.'] if rest is None else rest
    assert sorted(found) == sorted(["Unknown flag '--devise': did you mean --device?", *expected])


def test_values_of_unknown_flags_by_the_flag_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photo').touch()
    for args, flag, meant in (
            ('--jsn photo photo', '--jsn', 'did you mean --json?'),
            ('photo photo --sises 1 2', '--sises', 'did you mean --sizes?'),
            ('--xyzzy 3 photo photo', '--xyzzy', '--help lists the flags.'),  # perhaps a switch
            ('--xyzzy photo', '--xyzzy', '--help lists the flags.'),
            ('-x 3 photo photo', '-x', '--help lists the flags.'),
            ('--device cpu --xyzzy=3 photo photo', '--xyzzy', '--help lists the flags.')):
        assert described(*args.split(), looks_for_files=True) == [f"Unknown flag '{flag}': {meant}"], args
    assert described('photo', 'photo', '--xyzzy', '3', '--topk', '0') == [
        '--topk 0 is too small: give at least 1.', "Unknown flag '--xyzzy': --help lists the flags."]


def test_a_parser_can_be_used_twice():
    made = parser()
    for _ in range(2):
        assert made.parse_args(['--n', '3', '--kind', 'mean']).n == 3
        with pytest.raises(UsageError):
            made.parse_args(['--kind', 'x'])


def test_problems_of_problems_are_one_list():
    with pytest.raises(UsageError) as e:
        refuse(['a', 'b'])
    with pytest.raises(UsageError, match='3 problems:\n  - c\n  - a\n  - b'):
        refuse(['c', e.value, 'a'])
    refuse([])
