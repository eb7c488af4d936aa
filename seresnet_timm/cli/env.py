"""`seresnet-timm env`: what a bug report needs"""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.files import as_json

EXAMPLES = ('seresnet-timm env', 'seresnet-timm env --json > env.json')
NEXT = (
    'Copy the output into your report: it holds no secrets, no addresses and no name of the user or the machine.',
    'seresnet-timm doctor   # also computes on every device, and says what to do')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Print what a bug report needs: versions, machine, CANN, devices, image decoders, scripts, and the environment '
        'variables that change a run. Values of secrets, and addresses, are hidden.')
    parser.add_argument('--json', action='store_true', help='print one JSON object instead of text')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.doctor import environment_report
    facts = environment_report.collect()
    print(as_json(facts) if args.json else environment_report.as_text(facts))
