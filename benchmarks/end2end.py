"""Whole trainings against timm's train.py. `python benchmarks/end2end.py --timm-scripts DIR`; `--help`"""
import sys

from seresnet_timm.cli import main

if __name__ == '__main__':
    main(['bench', 'end2end', *sys.argv[1:]])
