"""`seresnet-timm train`. Its flags depend on the script that runs, so the launcher parses them."""
import argparse

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser

EXAMPLES = (
    'seresnet-timm train --preset digits_demo --data-dir digits --output output --experiment run',
    'seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet -b 128 --nproc auto',
    'seresnet-timm train --preset finetune --data-dir photos-split   # your own classes, after `seresnet-timm split`',
    'seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet --dry-run   # checks all, starts nothing')
NEXT = (
    'seresnet-timm report output/run   # table and curves',
    'seresnet-timm validate --data-dir digits --checkpoint output/run/model_best.pth.tar',
    'seresnet-timm help train --lr   # one flag: meaning, default, values')


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed()


def help_parser(prog: str = 'seresnet-timm train') -> ArgumentParser:
    """The parser of all flags, for --help."""
    from seresnet_timm.launch import parse
    parser = parse.help_parser('train', prog)
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    return parser


def run(args: argparse.Namespace) -> None:
    if HELP_FLAGS.intersection(args.argv):
        help_parser().print_help()
        return
    from seresnet_timm.launch import run as launch
    launch.run('train', args.argv)
