"""`seresnet-timm split`: one's own class folders as training and validation"""
import argparse
import os
from pathlib import Path

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import printable, refuse, shell_line

EXAMPLES = (
    'seresnet-timm split photos --val 0.1              # photos/<class>/* -> photos-split/train, photos-split/val',
    'seresnet-timm split photos data --val 0.2 --seed 7 --dry-run')
NEXT = (
    'seresnet-timm check-data photos-split             # damaged images, duplicates',
    'seresnet-timm train --preset finetune --data-dir photos-split')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Divide a folder of classes (DIR/<class>/*, or DIR/train/<class>/*) into training and validation: the same '
        'share of every class, the same images with the same seed. The images are not copied and DIR is not changed: '
        'the new folder holds links. Files with the same content go to the same split.')
    arg = parser.add_argument
    arg('dir', metavar='DIR', help='folder with a folder of images for each class in it; without a validation split')
    arg('out', nargs='?', metavar='OUT', help='folder to make (default: DIR-split)')
    arg('--val', type=float, default=0.1, metavar='P',
        help='share of every class for validation (default: %(default)s)')
    arg('--seed', type=int, default=42, metavar='N',
        help='seed of the choice; another number chooses other images (default: %(default)s)')
    arg('--links', choices=('symbolic', 'hard'), default='symbolic',
        help='symbolic: links with relative paths, which break when only DIR is moved; hard: further names of the same '
             'files, on the same file system (default: %(default)s)')
    arg('--dry-run', action='store_true', help='check everything, print the counts, write nothing')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.data import split
    from seresnet_timm.launch.dataset import faults_of_classes
    folder = args.dir.rstrip('/') or '/'
    tree, files = split.find_images(folder)
    refuse(faults_of_classes(tree, has_class_map=False))
    named = folder if Path(folder).name not in ('', '..') else os.path.abspath(folder)
    out = args.out or f'{named}-split'
    target = split.check_target(folder, out)
    divided = split.divide(tree, files, args.val, args.seed)
    print('\n'.join(split.describe(divided)))
    if args.dry_run:
        print('Dry run: nothing was written.')
        return
    split.write(divided, target, args.links, {'source': str(tree.folder.resolve()), 'val': args.val, 'seed': args.seed})
    print(f'\n{printable(out)}: {args.links} links to {printable(folder)}. Next:\n'
          f'  seresnet-timm check-data {shell_line([out])}\n'
          f'  seresnet-timm train --preset finetune --data-dir {shell_line([out])}')
