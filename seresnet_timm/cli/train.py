"""`seresnet-timm train`. Its flags depend on the script that runs, so the launcher parses them."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed('argv')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.launch.parse import print_help_if_asked
    if not print_help_if_asked('train', args.argv):
        from seresnet_timm.launch import run as launch
        launch.run('train', args.argv)
