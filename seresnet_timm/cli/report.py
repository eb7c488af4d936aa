"""`seresnet-timm report`: results table and curves of runs."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = (
    'seresnet-timm report output/run',
    'seresnet-timm report output/first output/second --curves both.png --csv runs.csv')
NEXT = (
    'seresnet-timm predict output/run digits/val   # classes of images',
    'seresnet-timm push output/run org/name --license apache-2.0')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Print the results tables of runs and draw their curves (loss, top-1, learning rate, images/s, waiting for '
        'data, loss scale, faults). The picture of a run is RUN/curves.png; that of several is comparison.png in the '
        'first folder.')
    parser.add_argument('run', nargs='+', metavar='RUN', help='output folder of a run')
    arg = parser.add_argument
    arg('--curves', metavar='FILE', help='draw the curves of all runs into FILE (PNG), and none into their folders')
    for kind in ('markdown', 'csv', 'json'):
        name = {'markdown': 'the table of runs as Markdown', 'csv': 'one row a run as CSV',
                'json': 'runs and epochs as JSON'}[kind]
        arg(f'--{kind}', nargs='?', const='-', metavar='FILE', help=f'write {name}, to stdout without FILE')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.errors import UsageError
    from seresnet_timm.runs import report
    on_stdout = [f'--{kind}' for kind in report.KINDS if getattr(args, kind) == '-']
    for kind in (*report.KINDS, 'curves'):
        if getattr(args, kind) == '':
            raise UsageError(f'--{kind} needs the name of a file.')
    if len(on_stdout) > 1:
        raise UsageError(f'{" and ".join(on_stdout)} cannot all go to stdout: name files.')
    files = {kind: getattr(args, kind) for kind in (*report.KINDS, 'curves')}
    report.report(args.run, files)
