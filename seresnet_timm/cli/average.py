"""`seresnet-timm average`: the average of several checkpoints."""
import argparse

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
        help='average the moving averages of the weights, or the raw weights (raw)')
    arg('--data-dir', metavar='DIR',
        help="data of the run: its training images give BatchNorm's statistics anew (default: they are averaged)")
    arg('-b', '--batch-size', type=int, metavar='N', help="images of a batch, with --data-dir (default: the run's)")
    arg('-j', '--workers', type=int, metavar='N', help="loader workers, with --data-dir (default: the run's)")
    arg('--device', default='auto', help='device, with --data-dir: auto, npu, cuda or cpu')


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from seresnet_timm.checkpoints import average
    from seresnet_timm.checkpoints import inspect as inspection
    from seresnet_timm.errors import UsageError, note_replaced
    from seresnet_timm.files import why_not_writable
    target = args.out or average.default_target(args.source)
    if target.endswith('.safetensors'):
        raise UsageError(f'--out {target}: the average is a checkpoint (.pth.tar); `seresnet-timm convert` makes '
                         'safetensors of it.')
    reason = why_not_writable(target, is_folder=False)
    if reason:
        raise UsageError(f'{target} cannot be written: {reason}; name another with --out.')
    files = average.find_files(args.source, args.last)
    if target in files:
        raise UsageError(f'{target} is one of the checkpoints that are averaged: name another file with --out.')
    folder = Path(files[-1]).parent
    settings = None
    if args.data_dir:
        from seresnet_timm.engine.update_bn import recompute, settings_of
        settings = settings_of(folder, args.data_dir, args.batch_size, args.workers)
    found = average.average(files, bool(args.use_ema))
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
