"""`seresnet-timm convert`: weights in another file format."""
import argparse
from typing import Iterator

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.checkpoints.target import check_target
from seresnet_timm.errors import UsageError

EXAMPLES = (
    'seresnet-timm convert output/run model.safetensors',
    'seresnet-timm convert output/run for_modelzoo.pth.tar --to modelzoo')
NEXT = ('seresnet-timm inspect model.safetensors',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = "Convert a checkpoint's weights between timm, the ModelZoo and safetensors, bit for bit."
    arg = parser.add_argument
    arg('source', metavar='IN', help='checkpoint, folder of a run, or hf-hub:org/name')
    arg('target', metavar='OUT', help='file to write')
    arg('--to', metavar='FORMAT', help='timm, modelzoo or safetensors; default: by the suffix of OUT')
    arg('--use-ema', '--ema', action=argparse.BooleanOptionalAction,
        help='take the moving average of the weights, or the raw weights (default: raw)')
    arg('--dtype', metavar='D', help='float32, float16 or bfloat16; default: no change')
    arg('--network', metavar='PREFIX', help='key or prefix of the network to take, in a file with several')
    arg('--model', metavar='NAME', help='timm name of the model, if the weights do not tell it')


def problems(args: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the arguments together, a sentence each."""
    try:
        if args.target:
            check_target(args.target, args.to, args.dtype)
    except UsageError as e:
        yield str(e)


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.checkpoints import inspect as inspection
    from seresnet_timm.checkpoints.convert import convert
    from seresnet_timm.inference.load import read_model_file
    from seresnet_timm.runs.folder import refuse_to_replace
    checkpoint = read_model_file(args.source)
    refuse_to_replace(args.target, [checkpoint.path])
    facts = convert(checkpoint, args.target, args.to, bool(args.use_ema), args.dtype, args.model, args.network)
    print('\n'.join(inspection.describe(facts)))
