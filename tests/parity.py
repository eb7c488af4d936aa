"""What the bundled and timm's own script are compared on: flags, the numbers of a run, and the recorded runs.

`TIMM_SCRIPTS=DIR python tests/parity.py` records tests/golden/ anew from timm's scripts in DIR.
"""
import csv
import json
import re
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / 'golden'

COMMON = [
    '--model', 'seresnet18_ascend', '--num-classes', '10', '--img-size', '32', '--crop-pct', '1.0',
    '--val-split', 'val', '--device', 'cpu', '--workers', '0', '--log-interval', '1', '--experiment', 'run',
]
CASES = {
    # the reference's recipe, shortened
    'reference': [
        '-b', '25', '--lr', '0.003', '--opt', 'momentum', '--weight-decay', '1e-4',
        '--opt-kwargs', 'filter_bias_and_bn=False', '--sched', 'cosine', '--epochs', '2', '--warmup-epochs', '1',
        '--warmup-prefix', '--warmup-lr', '0.0005', '--smoothing', '0', '--no-aug', '--no-ddp-bb', '--dist-bn', '',
        '--seed', '49', '--img-size', '64',
    ],
    # what modern recipes add; the augmentation draws from the same random generators in both scripts
    'modern': [
        '-b', '10', '--lr', '0.0005', '--opt', 'lamb', '--weight-decay', '0.02', '--sched', 'cosine', '--epochs', '3',
        '--sched-on-updates', '--warmup-epochs', '1', '--grad-accum-steps', '3', '--clip-grad', '1.0', '--model-ema',
        '--model-ema-decay', '0.8', '--smoothing', '0.1', '--bce-loss', '--mixup', '0.2', '--cutmix', '1.0',
        '--mixup-off-epoch', '2', '--aa', 'rand-m5-mstd0.5', '--reprob', '0.25', '--drop-path', '0.05', '--drop', '0.1',
        '--scale', '0.5', '1.0', '--color-jitter', '0.3', '--workers', '2',
        '--train-interpolation', 'random', '-vb', '16',
    ],
    # learning rate from its base, another schedule and optimizer, adaptive clipping, no prefetcher, channels last
    'other': [
        '-b', '24', '--lr-base', '0.00005', '--lr-base-size', '50', '--opt', 'adamw', '--sched', 'step',
        '--decay-epochs', '1', '--decay-rate', '0.5',
        '--epochs', '3', '--warmup-epochs', '0', '--clip-grad', '0.02', '--clip-mode', 'agc',
        '--no-prefetcher', '--channels-last', '--mixup', '0.1', '--scale', '0.7', '1.0', '--val-interval', '2',
        '--head-init-scale', '0.5', '--head-init-bias', '-1.0', '--drop', '0.2',
    ],
}
VALIDATE = [
    '--model', 'seresnet18_ascend', '--num-classes', '10', '--img-size', '32', '--split', 'val', '--device', 'cpu',
    '--workers', '0', '-b', '16',
]


def numbers_of_run(folder: Path, log: str) -> dict:
    """Every number a run logs that does not measure time: the rows of summary.csv, and the log lines' figures."""
    with open(folder / 'summary.csv', newline='') as f:
        summary = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    lines = []
    for line in log.splitlines():
        if re.match(r'(Train|Test|Test \(EMA\)): ', line):
            line = re.sub(r'Time: .*?(?=LR:|Loss:)|Data: .*', '', line)
            lines.append([line.split(':')[0], *[float(n) for n in re.findall(r'-?\d+\.?\d*(?:e[+-]\d+)?', line)]])
    return {'summary': summary, 'lines': lines}


def record() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from conftest import subset
    from timm_scripts import load_script, parser_flags, run_script

    from seresnet_timm.datasets.demo import write_demo_data
    GOLDEN.mkdir(exist_ok=True)
    flags = {name: parser_flags(load_script(name).parser) for name in ('train', 'validate')}
    (GOLDEN / 'timm_v1.0.28_flags.json').write_text(json.dumps(flags, indent=1, sort_keys=True) + '\n')
    with tempfile.TemporaryDirectory() as tmp:
        write_demo_data(f'{tmp}/digits')
        data = subset(Path(tmp) / 'digits', Path(tmp) / 'few', 10, 7)
        runs = {}
        for case, case_flags in CASES.items():
            result = run_script(
                'train', '--data-dir', data, '--output', f'{tmp}/{case}', '--device-modules', 'seresnet_timm', *COMMON,
                *case_flags)
            if result.returncode:
                sys.exit(result.stderr)
            runs[case] = numbers_of_run(Path(tmp) / case / 'run', result.stderr)
        (GOLDEN / 'timm_v1.0.28_runs.json').write_text(json.dumps(runs, indent=1) + '\n')


if __name__ == '__main__':
    record()
