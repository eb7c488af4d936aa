"""Start-up: `import seresnet_timm` over `import timm`, and time to the first step against timm's train.py

    python benchmarks/startup.py --timm-scripts DIR

Processes in turn, by CPU time; goals: at most 50 ms over `import timm`, and at most timm's time to the first step (the
first log line of a training of 32-pixel images, so that the step itself is nothing).
"""
import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from seresnet_timm.bench import measure
from seresnet_timm.bench.end2end import commands, draw_images
from seresnet_timm.files import write_json

IMPORTS = {'import timm': 'import timm', 'import seresnet_timm': 'import timm, seresnet_timm'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--timm-scripts', metavar='DIR', help="folder of timm's train.py; without it imports only")
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='5')
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    args = parser.parse_args()
    measure.check_json(args.json)
    report = measure.report_head('startup')
    report['rounds'] = args.rounds
    report['imports'] = measure.interleave({
        name: lambda code=code: measure.run_process([sys.executable, '-c', code])['cpu']
        for name, code in IMPORTS.items()}, args.rounds)
    if args.timm_scripts:
        with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as folder:
            data = draw_images(Path(folder) / 'data', 4)
            args.device, args.model, args.rival, args.workers, args.epochs = (
                'cpu', 'seresnet50_ascend', 'seresnet50', 1, 1)
            args.batch_size, args.img_size = 2, 32
            report['first_step'] = measure.interleave({
                name: lambda command=command: measure.run_until(command, 'Train: 0 [')['cpu']
                for name, command in commands(args, [], str(data), folder).items()}, args.rounds)

    measure.print_head(report)
    print(f'CPU seconds of whole processes, n = {args.rounds} in turn\n')
    for section, goal in (('imports', '<= 50 ms over'), ('first_step', '<= 0 over')):
        times = report.get(section, {})
        rival = next(iter(times.values()), None)
        for name, seconds in times.items():
            over = statistics.median(s - r for s, r in zip(seconds, rival))
            print(f'{section:<12}{name:<24}{statistics.median(seconds):>8.3f} s{1000 * over:>+10.0f} ms  '
                  f'{goal if seconds is not rival else ""}')
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
