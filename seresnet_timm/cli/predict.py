"""`seresnet-timm predict`: the most likely classes of images."""
import argparse
import os
import sys

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.cli.model_argument import add_model_argument, load_model

EXAMPLES = (
    'seresnet-timm predict output/run digits/val --csv --output classes.csv',
    'seresnet-timm predict seresnet50.ra2_in1k photo.jpg --topk 3')
NEXT = ('seresnet-timm export output/run model.onnx',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = 'Print the most likely classes of images, preprocessed as in validation.'
    add_model_argument(parser)
    arg = parser.add_argument
    arg('image', nargs='+', metavar='IMAGE|DIR', help='image files, and folders of images at any depth')
    arg('--topk', type=int, default=5, metavar='K',
        help='number of classes to print for each image (default: %(default)s)')
    arg('-b', '--batch-size', type=int, default=32, metavar='N', help='images per batch (default: %(default)s)')
    arg('-j', '--workers', type=int, metavar='N', help='loader workers (default: by number of images and cores)')
    arg('--device', default='auto', metavar='D', help='auto (npu, else cuda, else cpu), npu, cuda or cpu')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--json', dest='format', action='store_const', const='json',
        help='print a JSON list, one entry per file, not a table')
    kind.add_argument('--csv', dest='format', action='store_const', const='csv', help='print CSV, one row per class')
    arg('--output', metavar='FILE', help='write to FILE, not to stdout')
    parser.set_defaults(format='table')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.ascend import setup as npu_setup
    npu_setup.set_environment(os.environ)
    from seresnet_timm.inference import predict
    from seresnet_timm.launch.plan import plan_prediction
    from seresnet_timm.launch.rank import prepare_device
    files = predict.find_images(args.image)
    settings = plan_prediction(vars(args), len(files))
    prepare_device(settings)
    loaded = load_model(settings.namespace())
    print(f'Device: {settings.device} ({settings.reasons["device"]})', file=sys.stderr)
    predict.run(settings, loaded, files)
