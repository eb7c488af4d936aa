"""Start-up: `import seresnet_timm` over `import timm`, and time to the first step against timm's train.py

    python benchmarks/startup.py --timm-scripts DIR

By CPU time; goals: at most 50 ms over `import timm`, and at most timm's time to the first step (processes in turn, to
the first log line of a training of 32-pixel images, so that the step itself takes almost no time).
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from end2end import commands, draw_images

from seresnet_timm.files import write_json

# compiled modules are kept, as after an installation; in some containers the variable is set, and each start compiles
AS_INSTALLED = {'PYTHONDONTWRITEBYTECODE': ''}
OVER_TIMM = '''
import time
import timm
start = time.process_time()
import seresnet_timm
print(time.process_time() - start)
'''


def seconds_over_timm() -> float:
    """Seconds that `import seresnet_timm` adds to `import timm`; the noise of whole processes is ten times as large."""
    return float(subprocess.run(
        [sys.executable, '-c', OVER_TIMM], env={**os.environ, **AS_INSTALLED}, capture_output=True, text=True,
        check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--timm-scripts', metavar='DIR', help="folder of timm's train.py; without it imports only")
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='5')
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    args = parser.parse_args()
    measure.check_json(args.json)
    report = measure.report_head('startup')
    report['rounds'] = args.rounds
    report['imports'] = measure.interleave({'import seresnet_timm': seconds_over_timm}, args.rounds)
    if args.timm_scripts:
        with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as folder:
            data = draw_images(Path(folder) / 'data', 4)
            args.device, args.model, args.timm_model, args.workers, args.epochs = (
                'cpu', 'seresnet50_ascend', 'seresnet50', 1, 1)
            args.batch_size, args.img_size = 2, 32
            report['first_step'] = measure.interleave({
                name: lambda command=command: measure.run_until(command, 'Train: 0 [', AS_INSTALLED)['cpu']
                for name, command in commands(args, [], str(data), folder).items()}, args.rounds)

    measure.print_head(report)
    print(f'CPU time, medians, n = {args.rounds}\n')
    milliseconds = 1000 * statistics.median(report['imports']['import seresnet_timm'])
    print(f'import seresnet_timm, over import timm: {milliseconds:.1f} ms (goal <= 50 ms)')
    for name, seconds in report.get('first_step', {}).items():
        over = statistics.median(s - r for s, r in zip(seconds, report['first_step']['timm']))
        print(f'first step, {name:<32}{statistics.median(seconds):>8.3f} s{1000 * over:>+8.0f} ms'
              + (' (goal <= 0 ms)' if name != 'timm' else ''))
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
