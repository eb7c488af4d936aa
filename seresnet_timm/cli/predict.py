"""`seresnet-timm predict`: the most likely classes of images."""
import argparse
import os
import sys

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.cli.model_argument import add_model_argument, load_model


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = 'Print the most likely classes of images, preprocessed as in validation.'
    add_model_argument(parser)
    arg = parser.add_argument
    arg('image', nargs='+', metavar='IMAGE|DIR', help='image files, and folders of images at any depth')
    arg('--topk', type=int, default=5, metavar='K', help='number of classes to print (%(default)s)')
    arg('-b', '--batch-size', type=int, default=32, metavar='N', help='images a batch (%(default)s)')
    arg('-j', '--workers', type=int, metavar='N', help='loader processes (by number of images and cores)')
    arg('--device', default='auto', metavar='D', help='auto (npu, else cuda, else cpu), npu, cuda or cpu')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--json', dest='format', action='store_const', const='json', help='a JSON list, one entry a file')
    kind.add_argument('--csv', dest='format', action='store_const', const='csv', help='CSV, one row a class')
    arg('--output', metavar='FILE', help='write to FILE, not to stdout')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.ascend import setup as npu_setup
    npu_setup.set_environment(os.environ)
    from seresnet_timm import device as devices
    from seresnet_timm.inference import predict
    files = predict.find_images(args.image)
    device, reason = devices.select_device(args.device)
    if device.startswith('npu'):
        npu_setup.set_up(device)
    loaded = load_model(args)
    print(f'Device: {device} ({reason})', file=sys.stderr)
    predict.run(loaded, files, args.format or 'table', args.output, device=device, topk=args.topk,
                batch_size=args.batch_size, workers=args.workers)
