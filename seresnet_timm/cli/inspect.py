"""`seresnet-timm inspect`: what a checkpoint contains, and whether it is complete."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import RunError, UsageError, counted, refuse
from seresnet_timm.files import as_json

EXAMPLES = (
    'seresnet-timm inspect output/run',
    'seresnet-timm inspect model.pth.tar --model seresnet50   # which weights do not fit')
NEXT = (
    'seresnet-timm convert output/run model.safetensors',
    'seresnet-timm validate --data-dir digits --checkpoint output/run/model_best.pth.tar')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Show what a checkpoint contains (architecture, classes, epoch, metric, precision) and whether it is complete.')
    parser.add_argument('file', nargs='+', metavar='FILE',
                        help='checkpoint (.pth.tar, .pth, .pkl or .safetensors), folder of a run, or hf-hub:org/name')
    parser.add_argument('--model', metavar='NAME', help='list every weight that does not fit this model')
    parser.add_argument('--json', action='store_true', help='print one line of JSON for each file')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.checkpoints import inspect as inspection
    from seresnet_timm.inference.load import read_model_file
    misfits, problems = 0, inspection.wrong_model(args.model) if args.model else []
    for path in args.file:
        try:
            checkpoint = read_model_file(path)
            facts = inspection.facts_of(checkpoint)
            if args.model and not problems:
                facts['misfits'] = inspection.misfits(checkpoint, args.model)
                misfits += len(facts['misfits'])
        except UsageError as e:
            problems.append(e)
            continue
        print(as_json(facts) if args.json else '\n'.join(inspection.describe(facts)))
    refuse(problems)
    if misfits:
        raise RunError(f'{counted(misfits, "weight does", "weights do")} not fit {args.model}.')
