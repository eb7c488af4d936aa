"""`seresnet-timm validate`. Its flags depend on the script that runs, so the launcher parses them."""
import argparse

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser

EXAMPLES = (
    'seresnet-timm validate --data-dir digits --checkpoint output/run/model_best.pth.tar',
    'seresnet-timm validate --data-dir ImageNet --model seresnet50.ra2_in1k --pretrained')
NEXT = (
    'seresnet-timm predict output/run digits/val --csv --output classes.csv   # the class of every image',
    'seresnet-timm export output/run model.onnx')


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed()


def help_parser(prog: str = 'seresnet-timm validate') -> ArgumentParser:
    """The parser of all flags, for --help."""
    from seresnet_timm.launch import parse
    parser = parse.help_parser('validate', prog)
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    return parser


def run(args: argparse.Namespace) -> None:
    if HELP_FLAGS.intersection(args.argv):
        help_parser().print_help()
        return
    from seresnet_timm.launch import run as launch
    launch.run('validate', args.argv)
