"""How long the saving of a checkpoint holds up a training

    python benchmarks/save_stall.py --dir DIR [--device cuda]

seresnet50_ascend with 1000 classes, its momentum and its moving average, saved into DIR in turn by torch.save; by the
saver of this package while the training waits; and in its thread, of a copy. "stall" is how long the call takes; goal:
at most 5 % of the synchronous save. The thread needs cores too: the steps of a training of `--batch-size` images
go on meanwhile, and how much slower they are is measured as well.
"""
import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Dict, List

import measure
import timm
import torch
from timm.task import ClassificationTask

import seresnet_timm  # noqa: F401  (registers its models)
from seresnet_timm import device as devices
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.checkpoints.save_errors import SaveErrors
from seresnet_timm.files import write_json


class Training:
    """Steps of a training, and its saver."""

    def __init__(self, folder: str, device: torch.device, batch_size: int):
        self.device = device
        model = timm.create_model('seresnet50_ascend').to(device)
        self.task = ClassificationTask(model, device=device, verbose=False)
        self.task.setup_ema(decay=0.999)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.images = torch.randn(batch_size, 3, 64, 64, device=device)
        self.labels = torch.arange(batch_size, device=device)
        self.saver = AtomicCheckpointSaver(model, self.optimizer, checkpoint_dir=folder, task=self.task)
        self.saver.errors = SaveErrors()
        self.plain = os.path.join(folder, 'plain.pth')

    def step(self) -> float:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.task(self.images, self.labels)['loss'].backward()
        self.optimizer.step()
        self.task.update_ema(1)
        devices.synchronize(self.device)
        return time.perf_counter() - start

    def save_plainly(self) -> float:
        start = time.perf_counter()
        states = {**self.task.get_checkpoint_state(), **self.task.get_checkpoint_state(ema=True)}
        torch.save({**states, 'optimizer': self.optimizer.state_dict()}, self.plain)
        return time.perf_counter() - start

    def save(self, in_background: bool) -> float:
        self.saver.in_background = in_background
        start = time.perf_counter()
        self.saver.save_last(0)
        return time.perf_counter() - start

    def step_while_saving(self) -> List[float]:
        """Seconds of the steps while the thread saves."""
        steps, thread = [], self.saver._background._thread
        while thread.is_alive():
            steps.append(self.step())
        self.saver.wait()
        return steps


def measure_round(training: Training) -> Dict[str, float]:
    usual = statistics.median(training.step() for _ in range(10))
    found = dict(plain=training.save_plainly(), synchronous=training.save(False), stall=training.save(True))
    steps = training.step_while_saving()
    return dict(found, thread=sum(steps), slower=sum(steps) - usual * len(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dir', help='on the disk to measure; default: that of temporary files')
    parser.add_argument('--device', default='cpu', help='cpu')
    parser.add_argument('--batch-size', type=int, default=8, metavar='N', help='8')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='5')
    parser.add_argument('--json', metavar='FILE', help='write the figures there')
    args = parser.parse_args()
    measure.check_json(args.json)
    report = measure.report_head('save_stall')
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-', dir=args.dir) as folder:
        training = Training(folder, torch.device(args.device), args.batch_size)
        measure_round(training)  # the buffers of the copy stay from here on
        report['rounds'] = [measure_round(training) for _ in range(args.rounds)]
        report['bytes'] = Path(training.plain).stat().st_size
    measure.print_head(report)
    medians = {key: statistics.median(r[key] for r in report['rounds']) for key in report['rounds'][0]}
    share = statistics.median(r['stall'] / r['synchronous'] for r in report['rounds'])
    print(f'{report["bytes"] / 1e6:.0f} MB; seconds, medians, n = {args.rounds}\n'
          f'torch.save {medians["plain"]:.3f}; synchronous save {medians["synchronous"]:.3f}; '
          f'stall in the background {medians["stall"]:.3f}, {100 * share:.1f} % of the synchronous save; '
          f'written after {medians["thread"]:.3f}, '
          f'steps slower by {medians["slower"]:.3f}')
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
