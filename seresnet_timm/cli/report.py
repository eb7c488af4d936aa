"""`seresnet-timm report`: results tables, curves and errors of runs."""
import argparse
import os
import sys
from typing import List, Optional

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = (
    'seresnet-timm report output/run',
    'seresnet-timm report output/run --data-dir digits --html report.html',
    'seresnet-timm report output/first output/second --csv runs.csv --output pictures')
NEXT = (
    'seresnet-timm explain output/run digits/val/3 --output explained   # what the network looks at',
    'seresnet-timm push output/run org/name --license apache-2.0')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Print the results tables of runs and draw their curves (loss, top-1, learning rate, images/s, waiting for '
        'data, loss scale, faults): RUN/curves.png, and for several runs comparison.png in the first folder. With '
        '--data-dir the validation images are predicted: confusion matrix, top-1 of each class, worst images.')
    parser.add_argument('run', nargs='+', metavar='RUN', help='output folder of a run')
    arg = parser.add_argument
    arg('--output', metavar='DIR', help='folder for all pictures (default: the folder of each run)')
    arg('--html', metavar='FILE', help='write everything as one page that opens without network')
    for kind, what in (('markdown', 'the tables of runs and classes as Markdown'), ('csv', 'one row per run as CSV'),
                       ('json', 'runs, epochs and classes as JSON')):
        arg(f'--{kind}', nargs='?', const='-', metavar='FILE', help=f'write {what}, to stdout without FILE')
    arg = parser.add_argument_group('validation images').add_argument
    arg('--data-dir', metavar='DIR', help='dataset whose validation split the best model of each run predicts')
    arg('--val-split', metavar='NAME', help="name of the split (default: that of the run, else 'validation' or 'val')")
    arg('--worst', type=int, default=24, metavar='N', help='number of worst images to show (default: %(default)s)')
    arg('-b', '--batch-size', type=int, default=32, metavar='N', help='images per batch (default: %(default)s)')
    arg('-j', '--workers', type=int, metavar='N', help='loader workers (default: by number of images and cores)')
    arg('--device', default='auto', metavar='D', help='auto (npu, else cuda, else cpu), npu, cuda or cpu')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.errors import UsageError
    from seresnet_timm.runs import read, report
    files = {kind: getattr(args, kind) for kind in report.KINDS}
    on_stdout = [f'--{kind}' for kind in report.KINDS if files[kind] == '-']
    if len(on_stdout) > 1:
        raise UsageError(f'{" and ".join(on_stdout)} cannot all go to stdout: name files.')
    named = [os.path.abspath(path) for path in files.values() if path not in (None, '-')]
    twice = next((path for path in named if named.count(path) > 1), None)
    if twice:
        raise UsageError(f'Two outputs are {twice}: name a file for each.')
    runs = read.read_runs(args.run)
    predictions: List[Optional[report.Predictions]] = [None] * len(runs)
    if args.data_dir or args.html:
        report.pyplot()  # refused here, not after minutes
    if args.data_dir:
        predictions = predict(args, runs)
    elif args.val_split or args.workers is not None or (args.worst, args.batch_size, args.device) != (24, 32, 'auto'):
        print('Note: --val-split, --worst, -b, -j and --device have no effect without --data-dir.', file=sys.stderr)
    if args.output:
        report.make_folder(args.output)
    report.report_runs(runs, predictions, report.Outputs(files, args.output, args.worst))


def predict(args: argparse.Namespace, runs: list) -> list:
    """Predictions of the runs that have a checkpoint, for the images of the split."""
    from seresnet_timm.ascend import setup as npu_setup
    npu_setup.set_environment(os.environ)
    from seresnet_timm.errors import UsageError, printable, refuse
    from seresnet_timm.inference import validation_split as split
    from seresnet_timm.launch.plan import plan_prediction
    from seresnet_timm.launch.rank import prepare_device
    from seresnet_timm.runs import report
    without = [one for one in runs if one.folder.checkpoint() is None]
    refuse(f'{one.folder.path} holds no checkpoint: --data-dir needs {one.folder.best.name} or {one.folder.last.name}.'
           for one in without if len(without) == len(runs))
    prepare_device(plan_prediction(vars(args), 1))  # before a model is made; a device that is not there is refused
    loaded, problems = {}, []
    for number, one in enumerate(runs):
        if one in without:
            print(printable(f'{one.folder.path} holds no checkpoint: its predictions are left out.'), file=sys.stderr)
            continue
        try:
            loaded[number] = split.load_with_images(one, args.data_dir, args.val_split)
        except UsageError as e:
            problems.append(e)
    refuse(problems)
    found: List[Optional[report.Predictions]] = [None] * len(runs)
    for number in list(loaded):
        model, images = loaded.pop(number)
        print('\n'.join(model.describe()), file=sys.stderr)
        settings = plan_prediction(vars(args), images.count, split.decoder_of(runs[number]))
        found[number] = split.predict_split(settings, model, images)
    return found
