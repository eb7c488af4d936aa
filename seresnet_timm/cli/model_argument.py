"""The MODEL argument of export and predict, and the flags for what a checkpoint file does not tell."""
import argparse
import sys

from seresnet_timm.argument_parser import ArgumentParser


def add_model_argument(parser: ArgumentParser) -> None:
    parser.add_argument('model', metavar='MODEL',
                        help='timm name, hf-hub:org/name, modelscope:org/name, checkpoint file, or output folder '
                             'of a run')
    arg = parser.add_argument_group('for what MODEL does not tell').add_argument
    arg('--model', dest='model_name', metavar='NAME', help="timm's name of the network in the checkpoint")
    arg('--num-classes', type=int, metavar='N', help='number of classes that the checkpoint must have')
    arg('--img-size', type=int, metavar='N', help="side of the square input (default: the model's)")
    arg('--crop-pct', type=float, metavar='P', help="share of the resized image that is kept (default: the model's)")
    arg('--use-ema', action='store_true', help='take the moving average of the weights, not the weights themselves')
    arg('--class-names', metavar='FILE',
        help='text file of the names of the classes, one per line, in the order of their indices')


def load_model(args: argparse.Namespace):
    """Load the model that the arguments name, and print what it is to stderr."""
    from seresnet_timm.inference import load
    loaded = load.load_model(
        args.model, args.model_name, args.num_classes, args.img_size, args.crop_pct, args.use_ema, args.class_names)
    print('\n'.join(loaded.describe()), file=sys.stderr)
    return loaded
