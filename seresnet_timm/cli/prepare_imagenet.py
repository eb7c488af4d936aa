"""`seresnet-timm prepare-imagenet`: ImageNet's tar files as folders."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = ('seresnet-timm prepare-imagenet --from DOWNLOADS ImageNet',)
NEXT = (
    'seresnet-timm prepare ImageNet ImageNet-448 --max-side 448   # optional: smaller images',
    'seresnet-timm check-data ImageNet')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Unpack the official tar files of ImageNet to DST/train/<class>/* and DST/val/<class>/*. After an '
        'interruption, run it again: it continues.')
    arg = parser.add_argument
    arg('--from', dest='source', required=True, metavar='DIR', help='folder of the tar files; it is only read')
    arg('dst', metavar='DST', help='folder to unpack to')
    arg('--split', choices=('train', 'val', 'both'), default='both', help='splits to unpack (default: %(default)s)')
    arg('--check-md5', action='store_true', help='compare the tar files with the official MD5 sums first')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.datasets import prepare_imagenet
    prepare_imagenet.prepare_imagenet(args.source, args.dst, args.split, args.check_md5)
