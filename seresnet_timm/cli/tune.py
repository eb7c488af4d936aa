"""`seresnet-timm tune`: the fastest settings on this machine, as a config file. The flags of `train` say of what."""
import argparse
import os

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import UsageError, refuse

DESCRIPTION = '''\
Measure on this machine what is faster for a training, and write it as a file that `train --config FILE` takes. Further
flags are those of `seresnet-timm train`, and say which training is meant. Nothing that is written changes the numbers
of the training beyond rounding, unless --allow names it.'''

EXAMPLES = (
    'seresnet-timm tune --preset seresnet50_ascend --data-dir ImageNet -b 128 --tuned-file tuned.yaml',)
NEXT = (
    'seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet -b 128 --config tuned.yaml',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed()


def help_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog='seresnet-timm tune', description=DESCRIPTION, usage='seresnet-timm tune [options] [flags of train]',
        allow_abbrev=False)
    parser.add_argument('--tuned-file', default='tuned.yaml', metavar='FILE',
        help='the file to write (default: tuned.yaml)')
    parser.add_argument('--seconds', type=float, default=120, metavar='S',
        help='how long to measure, in seconds, about (default: 120)')
    parser.add_argument('--allow', default='', metavar='NAMES',
                        help='also take these, which change the numbers, if they are faster: batch-size, precision, '
                             'internal-format; several with commas')
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    return parser


def run(args: argparse.Namespace) -> None:
    parser = help_parser()
    if HELP_FLAGS.intersection(args.argv):
        parser.print_help()
        return
    from seresnet_timm.launch.cluster import forget
    from seresnet_timm.launch.parse import parse_on
    forget(os.environ)  # it measures in one process, whatever a scheduler's variables say
    own, of_train, problems = parse_on(parser, args.argv, rules_of('tune'))
    from seresnet_timm.launch import trial, tuned
    allowed, unknown = tuned.read_allowed(own.allow)
    problems += unknown
    try:
        settings, has_data = trial.plan_tuning(of_train)
    except UsageError as e:
        refuse([*problems, e])
    refuse(problems)
    from seresnet_timm.launch import tune
    tuning = tune.tune(settings, own.seconds, allowed, has_data, own.tuned_file)
    tune.print_outcome(tuning, own.tuned_file)
