"""`seresnet-timm explain`: what a network looks at."""
import argparse
import os
import sys

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.cli.model_argument import add_model_argument, load_model

EXAMPLES = (
    'seresnet-timm explain output/run digits/val --output explained',
    'seresnet-timm explain seresnet50.ra2_in1k photo.jpg --target tabby --output cat')
NEXT = ('seresnet-timm report output/run --data-dir digits --html report.html   # which classes it confuses',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Draw what a network sees in images: the gates of its Squeeze-and-Excitation blocks by depth, channel and '
        'class (gates.png), and for every image a class activation map (Grad-CAM) over the picture (map_*.png). '
        'explain.json has the gates of all channels as numbers.')
    add_model_argument(parser)
    arg = parser.add_argument
    arg('image', nargs='+', metavar='IMAGE|DIR', help='image files, and folders of images at any depth')
    arg('--output', default='explained', metavar='DIR', help='new folder for the pictures (default: %(default)s)')
    arg('--target', metavar='CLASS',
        help='class of the maps: its name or index (default: the most likely class of each image)')
    arg('--maps', type=int, default=50, metavar='N',
        help='number of maps; their images are spread over the list (default: %(default)s)')
    arg('--layer', metavar='NAME',
        help='layer that makes the maps, e.g. layer3 (default: that of the last feature map of at least 4 x 4)')
    arg('-b', '--batch-size', type=int, default=32, metavar='N', help='images per batch (default: %(default)s)')
    arg('-j', '--workers', type=int, metavar='N', help='loader workers (default: by number of images and cores)')
    arg('--device', default='auto', metavar='D', help='auto (npu, else cuda, else cpu), npu, cuda or cpu')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.ascend import setup as npu_setup
    npu_setup.set_environment(os.environ)
    from seresnet_timm.errors import RunError, printable
    from seresnet_timm.inference import explain, explain_files, predict
    from seresnet_timm.launch.plan import plan_prediction
    from seresnet_timm.launch.rank import prepare_device
    from seresnet_timm.runs.curves import pyplot
    pyplot()  # refused here, not after minutes
    target = explain_files.check_folder(args.output)
    files = predict.find_images(args.image)
    settings = plan_prediction(vars(args), len(files))
    prepare_device(settings)
    loaded = load_model(settings.namespace())
    print(f'Device: {settings.device} ({settings.reasons["device"]})', file=sys.stderr)
    explainer = explain.Explainer(
        settings, loaded, None if args.target is None else explain.find_class(loaded, args.target), args.layer)
    groups = explain.groups_of(loaded, files)
    written = explain_files.write(explainer, files, groups, target, args.maps)
    print(f'{printable(target)}: {len(written)} files')
    for line in explainer.describe(groups is not None):
        print(line)
    for file, error in explainer.errors.items():
        print(printable(f'{file}: cannot be read: {error.rstrip(".")}'), file=sys.stderr)
    if explainer.errors:
        raise RunError(f'{len(explainer.errors)} of {len(files)} files could not be read, see above; the result has '
                       'the others.')
