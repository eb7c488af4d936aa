"""`seresnet-timm export`: a model as ONNX or torch.export program, and the ATC command for Ascend."""
import argparse
import os
import sys
from typing import Iterator

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.cli.model_argument import add_model_argument, load_model
from seresnet_timm.errors import UsageError
from seresnet_timm.inference.export_target import check_target

EXAMPLES = (
    'seresnet-timm export output/run model.onnx --soc Ascend310P3',
    'seresnet-timm export output/run model.pt2')
NEXT = (
    'Run the printed atc command where CANN is: it makes the .om file for the chip.',
    'seresnet-timm push output/run org/name --license apache-2.0')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = ('Write a model as ONNX or torch.export program, check its outputs, and print the ATC command '
                          'for Ascend.')
    add_model_argument(parser)
    parser.add_argument('out', metavar='OUT', help='file to write, e.g. model.onnx or model.pt2')
    parser.add_argument('--format', choices=('onnx', 'torch'),
                        help='format of OUT: onnx, or torch for a torch.export program (default: by the suffix of OUT)')
    parser.add_argument('--opset', type=int, metavar='N', default=13,
                        help='ONNX operator set, 11 to 15, which ATC reads (default: %(default)s)')
    parser.add_argument('--uint8', action='store_true', help='the model takes uint8 pixels and normalises them itself')
    parser.add_argument('--soc', metavar='CHIP',
                        help='chip for the ATC command, e.g. Ascend910A, Ascend310P3 (default: SOC, to be replaced)')
    parser.add_argument('--atc-batch-size', type=int, nargs='+', default=[1], metavar='N',
                        help='batch size of the .om file, or several to choose from at run time (default: 1)')


def problems(args: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the arguments together, a sentence each."""
    try:
        is_onnx = not args.out or check_target(args.out, args.format) == 'onnx'
    except UsageError as e:
        yield str(e)
        return
    if not is_onnx and (args.soc or args.atc_batch_size != [1]):
        yield ('--soc and --atc-batch-size are for the ATC command, which reads ONNX and no torch.export program: '
               'leave them out, or export to a file with the ending .onnx.')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.errors import note_replaced, printable
    from seresnet_timm.inference import export
    soc = export.chip_of(args.soc) if args.soc else None
    is_onnx = check_target(args.out, args.format) == 'onnx'
    loaded = load_model(args)
    note_replaced(args.out)
    out = export.export(loaded, args.out, args.format, args.opset, args.uint8)
    kind = f'ONNX opset {args.opset}' if is_onnx else 'torch.export program'
    print(f'{printable(out)}: {kind}, any batch size; outputs compared with the model at batch sizes '
          f'{", ".join(map(str, export.CHECKED_BATCH_SIZES))}')
    if is_onnx:
        print('\n' + export.atc_command(out, loaded.data_config['input_size'], soc, args.atc_batch_size))
        print(export.where_is_atc(os.environ), file=sys.stderr)
        if soc is None:
            print('Replace SOC by the chip, which `npu-smi info` shows, or name it with --soc.', file=sys.stderr)
