"""`seresnet-timm average`: the average of several checkpoints."""
import argparse
import sys

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = (
    'seresnet-timm average output/run --last 5',
    'seresnet-timm average output/run --last 5 --data-dir digits   # and BatchNorm from the training images')
NEXT = ('seresnet-timm validate --data-dir digits --checkpoint output/run/averaged.pth.tar',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Average the weights of the last checkpoints of a run, or of files (stochastic weight averaging). The result '
        'is a checkpoint that validate, predict, export, push and train take.')
    arg = parser.add_argument
    arg('source', nargs='+', metavar='RUN_OR_FILE', help='folder of a run, or two checkpoints or more')
    arg('--last', type=int, metavar='K',
        help='checkpoints of the last epochs that the run has kept (default: all that have a number)')
    arg('--out', metavar='FILE', help='file to write (default: averaged.pth.tar beside the checkpoints)')
    arg('--use-ema', '--ema', action=argparse.BooleanOptionalAction,
        help='average the moving averages of the weights, or the raw weights (default: raw)')
    arg('--data-dir', metavar='DIR',
        help="data of the run, to compute BatchNorm's statistics from its training images (default: the mean of the "
             'checkpoints)')
    arg('-b', '--batch-size', type=int, metavar='N', help="images per batch, with --data-dir (default: the run's)")
    arg('-j', '--workers', type=int, metavar='N', help="loader workers, with --data-dir (default: the run's)")
    arg('--device', default='auto', help='device, with --data-dir: auto, npu, cuda or cpu')


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from seresnet_timm.checkpoints import average
    from seresnet_timm.checkpoints import inspect as inspection
    from seresnet_timm.errors import UsageError, note_replaced, printable, refuse
    from seresnet_timm.files import why_not_writable
    from seresnet_timm.runs.folder import refuse_to_replace
    target = args.out or average.default_target(args.source)
    if target.endswith('.safetensors'):
        raise UsageError(f'--out {target}: the average is a checkpoint (.pth.tar); `seresnet-timm convert` makes '
                         'safetensors of it.')
    reason = why_not_writable(target, is_folder=False)
    if reason:
        raise UsageError(f'{target} cannot be written: {reason}; name another with --out.')
    files = average.find_files(args.source, args.last)
    refuse_to_replace(target, files)
    folder = Path(files[-1]).parent
    settings = None
    if args.data_dir:
        from seresnet_timm.data.classes import describe_difference
        from seresnet_timm.engine.update_bn import recompute, settings_of
        from seresnet_timm.launch.dataset import examine
        settings = settings_of(folder, args.data_dir, args.batch_size, args.workers)
        data = examine('train', {**settings.args, 'val_split': ''})
        refuse(data.problems)
    elif args.batch_size or args.workers is not None or args.device != 'auto':
        print('Note: -b, -j and --device have no effect without --data-dir.', file=sys.stderr)
    found = average.average(files, bool(args.use_ema))
    if settings is not None:
        difference = describe_difference(found.info.class_names, data.class_names)
        if difference:
            raise UsageError(f'{printable(args.data_dir)} has other classes than the checkpoints ({difference}): name '
                             'the data of the run with --data-dir.')
    print(found.describe())
    if settings is not None and found.statistics:
        images = recompute(settings, found.info, found.weights, args.device)
        found.statistics = 'recomputed'
        print(f"BatchNorm's running statistics: recomputed from {images:,} training images.")
    elif found.statistics:
        print("BatchNorm's running statistics are averaged too; --data-dir DIR recomputes them from the training "
              'images.')
    note_replaced(target)
    found.save(target)
    print('\n'.join(inspection.describe(inspection.inspect(target))))
