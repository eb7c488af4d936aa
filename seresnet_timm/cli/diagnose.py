"""`seresnet-timm diagnose`: explain an error text, a log, or the logs of a run that failed."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import RunError, note_replaced
from seresnet_timm.files import as_json

EXAMPLES = (
    'seresnet-timm diagnose output/train/RUN',
    'seresnet-timm diagnose train.log',
    'seresnet-timm diagnose train.log --json',
    'npu-smi info 2>&1 | seresnet-timm diagnose -',
    'seresnet-timm diagnose output/train/RUN --bundle report.tar.gz')
NEXT = ('seresnet-timm doctor   # checks the machine, and says what to do',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Explain an error of torch_npu, CANN, HCCL or the driver: an error text, a log file, or all logs of a run that '
        'failed (logs of all ranks, plog, run.json). Prints the first fault, what it did to the other ranks, and what '
        'to do. Exit code 0: the fault is explained, or the run came to its end without one. 1: none was found, or it '
        'is not known. 2: there is nothing to read.')
    parser.add_argument('target', metavar='RUN|FILE|-',
                        help='output folder of a run, folder of logs, log file (plain or .gz), or - for standard input')
    parser.add_argument('--bundle', metavar='FILE.tar.gz',
                        help='also pack diagnosis, logs, plog, run.json and versions for a bug report, without '
                        'passwords, '
                             'tokens, addresses and user names')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.doctor import bundle, diagnose
    if args.bundle:
        bundle.check_name(args.bundle)
        note_replaced(args.bundle, '--bundle')
    report = diagnose.make_report(args.target)
    print(as_json(diagnose.as_dict(report), indent=2) if args.json else '\n'.join(diagnose.describe(report)))
    if args.bundle:
        bundle.write(report, args.bundle, quiet=args.json)
    if report.diagnosis.first is None and not report.is_fine:
        raise RunError(f'No fault was found in {diagnose.name_of(args.target)}: give the output of the rank that '
                       'failed, such as a file with all that the command printed.')
    if report.diagnosis.first is not None and not report.is_explained:
        raise RunError(f'The first fault in {diagnose.name_of(args.target)} is named above; what it means is not known '
                       'here.')
