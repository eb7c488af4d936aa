"""`seresnet-timm prepare`: a copy of a dataset whose large images are reduced."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = ('seresnet-timm prepare ImageNet ImageNet-448 --max-side 448',)
NEXT = (
    'seresnet-timm check-data ImageNet-448',
    'seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet-448 -b 128 --nproc auto')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Copy an ImageNet-style tree of folders and reduce its large images, for faster training. Small images are '
        'copied unchanged. After an interruption, run it again: it continues.')
    arg = parser.add_argument
    arg('src', metavar='SRC', help='folder of images, at any depth; it is only read')
    arg('dst', metavar='DST', help='folder of the copy')
    arg('--max-side', type=int, default=512, metavar='N',
        help='reduce images whose longer side has more pixels than this to this size (default: %(default)s)')
    arg('--quality', type=int, default=95, metavar='Q',
        help='JPEG quality of the reduced images, 1 to 100 (default: %(default)s)')
    arg('-j', '--workers', type=int, metavar='N', help='threads (default: one per core)')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.datasets import prepare
    prepare.prepare(args.src, args.dst, args.max_side, args.quality, args.workers)
