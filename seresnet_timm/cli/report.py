"""`seresnet-timm report`: results table and curves of runs."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = ('seresnet-timm report output/run',)
NEXT = (
    'seresnet-timm predict output/run digits/val   # classes of images',
    'seresnet-timm push output/run org/name --license apache-2.0')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = 'Print the results table of runs and draw their curves (loss, top-1, learning rate, images/s).'
    parser.add_argument('run', nargs='+', metavar='RUN', help='output folder of a run')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.runs import report
    report.report(args.run)
