"""`seresnet-timm <verb>`: parses, calls one room of the package, prints, sets the exit code."""
import os
import sys
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from seresnet_timm import __version__
from seresnet_timm.engine.arguments import Parser
from seresnet_timm.errors import RunError, UsageError


def train(argv: List[str]) -> None:
    from seresnet_timm import launch
    launch.run('train', argv)


def validate(argv: List[str]) -> None:
    from seresnet_timm import launch
    launch.run('validate', argv)


def demo_data(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm demo-data',
        description="Write scikit-learn's handwritten digits (1,797 real scans) as an ImageNet-style tree of JPEGs.")
    parser.add_argument('dir', metavar='DIR', help='folder to create')
    args = parser.parse_args(argv)
    from seresnet_timm.data.demo import write_demo_data
    counts = write_demo_data(args.dir)
    print(f'{args.dir}: 10 classes, {counts["train"]} training and {counts["val"]} validation images')


def report(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm report',
        description='Print the results table of runs and draw their curves (loss, top-1, learning rate, images/s).')
    parser.add_argument('run', nargs='+', metavar='RUN', help='output folder of a run')
    args = parser.parse_args(argv)
    from seresnet_timm import results
    results.report(args.run)


VERBS: Dict[str, Tuple[Callable[[List[str]], None], str]] = {
    'train': (train, 'train a model'),
    'validate': (validate, 'evaluate a model or a checkpoint'),
    'demo-data': (demo_data, 'write a small dataset of real images'),
    'report': (report, "print a run's results table and draw its curves"),
}


def usage() -> str:
    lines = [f'  {verb:<12}{help}' for verb, (_, help) in VERBS.items()]
    return '\n'.join([
        f'seresnet-timm {__version__}: train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm', '',
        'usage: seresnet-timm <verb> [options]', '', *lines, '',
        "'seresnet-timm <verb> --help' lists the options of a verb.",
    ])


def dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(usage())
        if not argv:
            raise UsageError('Name a verb: ' + ', '.join(VERBS) + '.')
        return
    if argv[0] in ('-V', '--version'):
        print(__version__)
        return
    if argv[0] not in VERBS:
        import difflib
        close = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f'did you mean {close[0]}?' if close else f'there are {", ".join(VERBS)}.'
        raise UsageError(f"Unknown verb '{argv[0]}': {hint}")
    VERBS[argv[0]][0](list(argv[1:]))


def main(argv: Optional[Sequence[str]] = None) -> None:
    try:
        dispatch(sys.argv[1:] if argv is None else argv)
    except (UsageError, RunError) as e:
        rank = os.environ.get('RANK')
        where = f' (rank {rank})' if rank else ''
        print(f'seresnet-timm: error{where}: {e}', file=sys.stderr)
        sys.exit(e.exit_code)
