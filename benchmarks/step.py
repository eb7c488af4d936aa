"""Steps out: training step, memory and evaluation against timm's seresnet50. `python benchmarks/step.py --help`

On a GPU, for the goals of bf16 and fp16 (>= 1.25x, SE <= 5 %) and the profile of what is left:
    python benchmarks/step.py --device cuda --amp --amp-dtype bfloat16 --profile --json bf16.json
    python benchmarks/step.py --device cuda --amp --amp-dtype float16 --profile --json fp16.json
"""
import sys

from seresnet_timm.cli import main

if __name__ == '__main__':
    main(['bench', 'step', *sys.argv[1:]])
