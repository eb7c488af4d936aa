"""Images in: the loader against timm's own, in the same run. `python benchmarks/data.py --help`"""
import sys

from seresnet_timm.cli import main

if __name__ == '__main__':
    main(['bench', 'data', *sys.argv[1:]])
