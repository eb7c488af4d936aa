"""`seresnet-timm bench data | step | end2end`: ratios against a named rival, measured in the same run."""
import importlib
import sys
from pathlib import Path
from typing import Dict, List

from seresnet_timm.errors import UsageError, did_you_mean

BENCHES: Dict[str, str] = {
    'data': "images/s a core of the loader against timm's, and the cores that a target needs",
    'step': "images/s and memory of a training step against timm's seresnet50",
    'end2end': "a training from the files on against timm's train.py",
}
FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'


def main(argv: List[str]) -> None:
    """Run one benchmark of the checkout.

    Raises:
        UsageError: There is no such benchmark, or this is not a checkout.
    """
    if not argv or argv[0] in ('-h', '--help'):
        print('usage: seresnet-timm bench <name> [options]\n')
        for name, what in BENCHES.items():
            print(f'  {name:<10}{what}')
        print("\n'seresnet-timm bench <name> --help' lists the options of a benchmark.")
        return
    if argv[0] not in BENCHES:
        raise UsageError(f"Unknown benchmark '{argv[0]}': {did_you_mean(argv[0], BENCHES)}")
    if not (FOLDER / f'{argv[0]}.py').is_file():
        raise UsageError(f'The benchmarks are not part of the installed package ({FOLDER} does not exist): run '
                         '`seresnet-timm bench` from a checkout of the source code, installed with `pip install -e .`.')
    sys.path.insert(0, str(FOLDER))
    importlib.import_module(argv[0]).main(argv[1:])
