"""Errors of a command line: all at once, and the flag that was meant."""
import pytest

from seresnet_timm.argument_parser import ArgumentParser, nearest_flag, unknown_flags_with_spaces, with_known_spelling
from seresnet_timm.engine.flags import train_parser, validate_parser
from seresnet_timm.engine.values import Number
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
