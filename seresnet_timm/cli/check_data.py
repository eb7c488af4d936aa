"""`seresnet-timm check-data`: what is wrong with the images and classes of a dataset."""
import argparse
import sys

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import RunError, UsageError, counted, printable

EXAMPLES = (
    'seresnet-timm check-data digits',
    'seresnet-timm check-data ImageNet --json check.json')
NEXT = ('seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet -b 128 --nproc auto',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Read and decode every image of a dataset, and list what would harm a training: damaged, empty, unreadable and '
        'very large images, files of another type than their suffix says, images that are in training and validation '
        'both, classes that differ, are empty or have few images. The dataset is only read. After an interruption, run '
        'it again: it continues.')
    parser.epilog = 'Exit code: 0 nothing wrong, 1 something is wrong, 2 the dataset cannot be checked.'
    arg = parser.add_argument
    arg('dir', metavar='DIR', help='root of the dataset, with train/<class>/* and val/<class>/* in it; or one split')
    arg('--json', nargs='?', const='-', metavar='FILE', help='write all findings as JSON, to stdout without FILE')
    arg('--csv', nargs='?', const='-', metavar='FILE', help='write all findings as CSV, to stdout without FILE')
    arg('--ignore', nargs='+', default=[], metavar='KIND',
        help='kinds of findings to leave out: their names are in column 1 of --csv')
    arg('--min-images', type=int, default=10, metavar='N',
        help='report classes with fewer training images than this (default: %(default)s)')
    arg('--train-split', default='train', metavar='NAME', help='name of the training split (default: %(default)s)')
    arg('--val-split', default='validation', metavar='NAME',
        help="name of the validation split (default: %(default)s, which finds 'val' too)")
    arg('--class-map', metavar='FILE', help='file with the folders that are classes, as for train')
    arg('-j', '--workers', type=int, metavar='N', help='threads (default: one per core)')
    arg('--restart', action='store_true', help='read all images again, not only those that an interrupted check left')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.data import check, check_report
    from seresnet_timm.files import atomic_path
    if args.json == args.csv == '-':
        raise UsageError('--json and --csv cannot both go to stdout: name a file for one of them.')
    result = check.check_data(args.dir, (args.train_split, args.val_split), args.class_map, args.min_images,
                              args.workers, args.restart)
    result.findings = [f for f in result.findings if f.kind not in args.ignore]
    for path, write in ((args.json, check_report.write_json), (args.csv, check_report.write_csv)):
        if path == '-':
            write(result, sys.stdout)
        elif path:
            try:
                with atomic_path(path) as tmp, open(tmp, 'w', encoding='utf-8', newline='') as file:
                    write(result, file)
            except OSError as e:
                raise RunError(f'Cannot write {path} ({e.strerror}): name another file.')
    text = sys.stderr if '-' in (args.json, args.csv) else sys.stdout
    for line in check_report.describe(result):
        print(line, file=text)
    text.flush()
    if result.faults:
        raise RunError(f'{counted(len(result.faults), "finding")} in {printable(args.dir)}, see above: replace or '
                       'remove these files, or leave a kind out with --ignore KIND.')
