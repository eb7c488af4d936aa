"""Accuracy of the demo with `--fast-step` and `--fast-jpeg` on and off, over several seeds

    python benchmarks/demo_accuracy.py                                        # the demo as it is, 5 seeds: 15 minutes
    python benchmarks/demo_accuracy.py --model seresnet18_ascend --epochs 3   # a quick look

The same seeds and initial weights in both settings; the images are augmented in another random order, as timm's loading
has one of its own. Top-1 is the last epoch's. The two agree within noise if the mean difference is below two standard
errors of the seeds' differences.
"""
import argparse
import contextlib
import csv
import math
import os
import statistics
import tempfile
from pathlib import Path

import measure

from seresnet_timm.cli import main as cli
from seresnet_timm.files import write_json


def top1_of_run(data: Path, folder: Path, mode: str, seed: int, more: list) -> float:
    """Train, and return the last epoch's top-1 in percent."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        cli.main([
            'train', '--preset', 'digits_demo', '--data-dir', str(data), '--output', str(folder), '--experiment',
            f'{mode}-{seed}', '--seed', str(seed), '--device', 'cpu', '--scripts', 'bundled', '--fast-step', mode,
            '--fast-jpeg', mode, *more])
    with open(folder / f'{mode}-{seed}' / 'summary.csv', newline='') as f:
        return float(list(csv.DictReader(f))[-1]['eval_top1'])


def compare(auto: list, off: list) -> dict:
    """Means, and the mean difference with its standard error, of paired runs."""
    differences = [a - b for a, b in zip(auto, off)]
    return {
        'auto': statistics.mean(auto), 'off': statistics.mean(off), 'difference': statistics.mean(differences),
        'standard_error': statistics.stdev(differences) / math.sqrt(len(differences)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5, metavar='N', help='5')
    parser.add_argument('--model', metavar='M', help="the demo's: seresnet50_ascend")
    parser.add_argument('--epochs', metavar='N', help="the demo's: 8")
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    args = parser.parse_args()
    measure.check_json(args.json)
    if args.seeds < 2:
        parser.error('--seeds is at least 2: one says nothing about noise')
    from seresnet_timm.datasets.demo import write_demo_data
    more = [*(('--model', args.model) if args.model else ()), *(('--epochs', args.epochs) if args.epochs else ())]
    results = {'auto': [], 'off': []}
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as tmp:
        data = Path(tmp) / 'digits'
        write_demo_data(str(data))
        for seed in range(args.seeds):
            for mode, values in results.items():
                values.append(top1_of_run(data, Path(tmp), mode, seed, more))
            print(f'seed {seed}: auto {results["auto"][-1]:.3f}, off {results["off"][-1]:.3f}', flush=True)
    report = dict(measure.report_head('demo_accuracy'), settings=more, top1=results, **compare(**results))
    measure.print_head(report)
    verdict = 'within' if abs(report['difference']) <= 2 * report['standard_error'] else 'OUTSIDE'
    print(f'top-1, n = {args.seeds} seeds, {" ".join(more) or "the demo as it is"}: auto {report["auto"]:.3f}, off '
          f'{report["off"]:.3f}; difference {report["difference"]:+.3f} +- {report["standard_error"]:.3f} (standard '
          f'error): {verdict} noise')
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
