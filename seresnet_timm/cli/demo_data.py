"""`seresnet-timm demo-data`: a small dataset of real images."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import printable

EXAMPLES = ('seresnet-timm demo-data digits',)
NEXT = ('seresnet-timm train --preset digits_demo --data-dir digits --output output --experiment run',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Write the handwritten digits of scikit-learn (1,797 real scans) as an ImageNet-style tree of JPEGs.')
    parser.add_argument('dir', metavar='DIR', help='folder to create')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.datasets.demo import write_demo_data
    counts = write_demo_data(args.dir)
    print(f'{printable(args.dir)}: 10 classes, {counts["train"]} training and {counts["val"]} validation images')
