"""`seresnet-timm bench NAME ...`: comparisons with timm, measured in the same run. The benchmark parses its flags."""
import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Dict

from seresnet_timm.argument_parser import ArgumentParser, guide
from seresnet_timm.errors import UsageError, did_you_mean

BENCHES: Dict[str, str] = {
    'data': 'images/s per core of this loader and of the timm loader, and the cores that a rate needs',
    'step': 'images/s and memory of a training step, compared with timm seresnet50',
    'end2end': 'a whole training from image files, compared with train.py of timm',
}
FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'

EXAMPLES = ('seresnet-timm bench data',)
NEXT = ('seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet -b 128 --nproc auto',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed()


def run(args: argparse.Namespace) -> None:
    name = args.argv[0] if args.argv else '--help'
    if name in ('-h', '--help'):
        lines = [f'  {name:<10}{what}' for name, what in BENCHES.items()]
        print(guide('\n'.join(['usage: seresnet-timm bench <name> [options]', '', *lines, '',
                               "'seresnet-timm bench <name> --help' lists the options of a benchmark.", '']),
                    EXAMPLES, NEXT), end='')
        return
    if name not in BENCHES:
        raise UsageError(f"Unknown benchmark '{name}': {did_you_mean(name, BENCHES)}")
    if not (FOLDER / f'{name}.py').is_file():
        raise UsageError(f'The benchmarks are not part of the installed package ({FOLDER} does not exist): run '
                         '`seresnet-timm bench` from a checkout of the source code, installed with `pip install -e .`.')
    from seresnet_timm.launch.cluster import forget
    forget(os.environ)  # it starts its processes itself, whatever a scheduler's variables say
    sys.path.insert(0, str(FOLDER))
    importlib.import_module(name).main(args.argv[1:])
