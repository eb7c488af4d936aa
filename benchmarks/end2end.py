"""Whole trainings from image files, against timm's train.py in the same run (`seresnet-timm bench end2end`)

Each training is a process, with the same flags: timm's script of `--timm-scripts` with timm's `seresnet50`, and this
package's launcher with `seresnet50_ascend`, each with its defaults. The measure is the CPU time of the process and its
loader workers from start to exit, with imports and evaluation; on devices it is wall time. The contenders take turns in
each round, a ratio is the median of the rounds' ratios.
"""
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import measure

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import UsageError
from seresnet_timm.files import write_json
from seresnet_timm.runs.settings import RunSettings

EXAMPLES = (
    'seresnet-timm bench end2end',
    'seresnet-timm bench end2end --data-dir ImageNet --device npu -b 128 -- --amp')
NEXT = ('seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet -b 128 --nproc auto',)
GOALS = {'cpu': 1.1, 'cuda': 1.25}


def main(argv: List[str]) -> None:
    """Measure, and print a table.

    Raises:
        UsageError: timm's script is not found, or the report cannot be written.
        RunError: A training failed.
    """
    parser = ArgumentParser(
        prog='seresnet-timm bench end2end',
        description="Measure whole trainings against timm's train.py in the same run. Further flags of train.py come "
                    'after --, and go to both.')
    parser.rules = rules_of('bench')
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    parser.add_argument('--timm-scripts', metavar='DIR', default=os.environ.get('TIMM_SCRIPTS') or None,
                        help="folder of timm's train.py (TIMM_SCRIPTS)")
    parser.add_argument('--data-dir', metavar='DIR', help='ImageNet-style tree (default: generated JPEGs)')
    parser.add_argument('--images', type=int, default=64, metavar='N', help='number of JPEGs to generate')
    parser.add_argument('--device', default='cpu', metavar='D', help='auto, cpu, cuda or npu')
    parser.add_argument('--model', default='seresnet50_ascend', metavar='M', help='model of this package')
    parser.add_argument('--timm-model', '--rival', default='seresnet50', metavar='M', help='timm model to compare with')
    parser.add_argument('-b', '--batch-size', type=int, default=16, metavar='N', help='images per step')
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='side of the images in pixels')
    parser.add_argument('-j', '--workers', type=int, default=1, metavar='N', help='loader workers')
    parser.add_argument('--epochs', type=int, default=1, metavar='N', help='number of epochs')
    parser.add_argument('--rounds', type=int, default=3, metavar='N', help='number of rounds, whose median is printed')
    parser.add_argument('--json', metavar='FILE', help='write the figures to FILE')
    argv, more = (argv[:argv.index('--')], argv[argv.index('--') + 1:]) if '--' in argv else (argv, [])
    args = parser.parse_args(argv)
    measure.check_json(args.json)
    if not args.timm_scripts or not (Path(args.timm_scripts) / 'train.py').is_file():
        raise UsageError("--timm-scripts names the folder of timm's train.py: `seresnet-timm scripts fetch` gets it "
                         'and says where it is.')
    if args.rounds < 1 or args.images < args.batch_size:
        raise UsageError('--rounds is at least 1, and --images at least the batch size.')
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as folder:
        data = args.data_dir or draw_images(Path(folder) / 'data', args.images)
        args.device = plan(args, more, str(data)).device
        report = run(args, more, str(data), folder)
    print_report(report)
    if args.json:
        write_json(args.json, report)


def draw_images(folder: Path, count: int) -> Path:
    """Write JPEGs of 500x375 and about 100 KB in two classes; an eighth of that number for evaluation."""
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    for split, n in (('train', count), ('val', max(2, count // 8))):
        for i in range(n):
            path = folder / split / f'class{i % 2}' / f'{i:05d}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((500, 375), Image.BICUBIC), dtype=np.int16)
            pixels = pixels + rng.integers(-12, 13, pixels.shape, dtype=np.int16)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return folder


def flags_of(args, data: str) -> Dict[str, Any]:
    """Flags of train.py that all processes get."""
    return dict(data_dir=data, val_split='val', device=args.device, img_size=args.img_size, batch_size=args.batch_size,
                workers=args.workers, epochs=args.epochs, warmup_epochs=0, opt='momentum', lr=0.01, log_interval=1)


def plan(args, more: List[str], data: str) -> RunSettings:
    """What `seresnet-timm train` runs with.

    Raises:
        UsageError: It would refuse the flags.
    """
    return measure.settings_of('train', dict(flags_of(args, data), model=args.model), more, has_data=True)


def commands(args, more: List[str], data: str, folder: str) -> Dict[str, List[str]]:
    """The processes to compare. timm's script gets the device and the number of classes that our launcher finds."""
    settings = plan(args, more, data)
    flags = measure.argv_of(dict(
        flags_of(args, data), device=settings.device, num_classes=settings.args['num_classes'])) + more

    def command(name: str, *start: str) -> List[str]:
        return [sys.executable, *start, *flags, '--output', os.path.join(folder, name)]
    package = ('-m', 'seresnet_timm', 'train', '--model', args.model)
    return {
        'timm': command('timm', os.path.join(args.timm_scripts, 'train.py'), '--model', args.timm_model),
        'seresnet_timm, bundled script': command('bundled', *package, '--scripts', 'bundled'),
        "seresnet_timm, timm's script": command('seresnet_timm', *package, '--scripts', args.timm_scripts),
    }


def run(args, more: List[str], data: str, folder: str) -> Dict[str, Any]:
    """All rounds.

    Returns:
        The figures, as JSON values.
    """
    report = measure.report_head('end2end')
    report['settings'] = dict({k: v for k, v in vars(args).items() if k != 'json'}, more=more)
    report['images'] = images = args.epochs * sum(1 for _ in Path(data, 'train').glob('*/*'))
    clock = 'cpu' if args.device.startswith('cpu') else 'wall'
    runs: Dict[str, List[Dict[str, float]]] = {}
    contenders = commands(args, more, data, folder)
    for _ in range(args.rounds):
        for name, command in contenders.items():
            runs.setdefault(name, []).append(measure.run_process(command))
    seconds = {name: [r[clock] for r in all_runs] for name, all_runs in runs.items()}
    report['clock'] = clock
    report['processes'] = {name: {
        'images_per_second': round(images / statistics.median(seconds[name]), 3),
        'ratio': measure.ratio(seconds['timm'], seconds[name]),
        'seconds': [round(t, 2) for t in seconds[name]],
        'wall': [round(r['wall'], 2) for r in runs[name]],
    } for name in runs}
    return report


def print_report(report: Dict[str, Any]) -> None:
    s = report['settings']
    kind = s['device'].partition(':')[0]
    unit = 'images/s per core' if report['clock'] == 'cpu' else 'images/s'
    measure.print_head(report)
    print(f'{s["device"]}, {report["images"]} images of {s["img_size"]} pixels, -b {s["batch_size"]}, whole processes '
          f'by {report["clock"]} time, n = {s["rounds"]} rounds in turn; timm: {s["timm_model"]}, seresnet_timm: '
          f'{s["model"]}\n')
    print(f'{"":<32}{unit:>18}{"x timm":>10}{"goal":>9}{"seconds":>12}')
    for name, row in report['processes'].items():
        goal = f'>= {GOALS[kind]}' if name != 'timm' and kind in GOALS else ''
        print(f'{name:<32}{row["images_per_second"]:>18.3f}{row["ratio"]:>10.3f}{goal:>9}'
              f'{statistics.median(row["seconds"]):>12.1f}')


if __name__ == '__main__':
    from seresnet_timm.cli.main import main as seresnet_timm
    seresnet_timm(['bench', 'end2end', *sys.argv[1:]])
