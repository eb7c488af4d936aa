"""`seresnet-timm bench data | step | end2end`: ratios against a named rival, measured in the same run

A bench is a module `seresnet_timm.bench.<name>` with `main(argv)`, imported only when it is asked for.
"""
import importlib
from typing import Dict, List

from seresnet_timm.errors import UsageError, suggest

BENCHES: Dict[str, str] = {
    'data': "images/s a core of the loader against timm's, and the cores that a target needs",
    'step': "images/s and memory of a training step against timm's seresnet50",
    'end2end': "a training from the files on against timm's train.py",
}


def main(argv: List[str]) -> None:
    """Run one bench.

    Raises:
        UsageError: There is no such bench.
    """
    if not argv or argv[0] in ('-h', '--help'):
        print('usage: seresnet-timm bench <name> [options]\n')
        for name, what in BENCHES.items():
            print(f'  {name:<10}{what}')
        print("\n'seresnet-timm bench <name> --help' lists the options of a bench.")
        return
    if argv[0] not in BENCHES:
        raise UsageError(f"Unknown bench '{argv[0]}': {suggest(argv[0], BENCHES)}")
    name = f'{__name__}.{argv[0]}'
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name != name:
            raise
        raise UsageError(f"This version has no bench '{argv[0]}' yet.")
    module.main(argv[1:])
