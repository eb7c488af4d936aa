"""`seresnet-timm watch`: follow a run from another terminal, or another machine that shares its folder."""
import argparse
from pathlib import Path

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = (
    'seresnet-timm watch output/train   # the newest run of a folder of runs',
    'seresnet-timm watch output/run --once')
NEXT = (
    'seresnet-timm report output/run     # table and curves',
    'seresnet-timm diagnose output/run   # if it failed')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Show how far a run is, when it will end, its metrics and faults, and whether it still runs, until it is over.'
        ' Exit code: 0 finished, 1 failed, stopped or crashed; with --once also 0 for a run in progress.')
    parser.add_argument('run', metavar='RUN', help='folder of a run, or a folder of runs: the newest of them')
    parser.add_argument('--once', action='store_true', help='print the state once, and exit')
    parser.add_argument('--interval', metavar='SEC', type=float, default=2.,
        help='seconds between two updates (default: 2)')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.runs import follow
    try:
        code = follow.watch(Path(args.run), args.once, args.interval)
    except KeyboardInterrupt:
        code = 130
    if code:
        raise SystemExit(code)
