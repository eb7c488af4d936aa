"""The recipes of the ModelZoo's README: what each runs, and the lines it ends with."""
import csv
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from seresnet_timm.errors import RunError
from seresnet_timm.files import atomic_path
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import read_record

NETWORK = 'SE_Resnet50'  # the ModelZoo's spelling, part of its log's name


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        verb: 'train' or 'validate'.
        description: What it does, one line.
        source: The ModelZoo script that it replaces.
        batch_size: Images a step, of all devices.
        lr: Learning rate at that batch size.
        epochs: Epochs, warm-up included.
        nproc: Processes on a node, None for one a device.
    """
    verb: str
    description: str
    source: str
    batch_size: int = 1024
    lr: float = 0.6
    epochs: int = 2
    nproc: Optional[int] = None


PRESET = 'seresnet50_ascend'
RECIPES: Dict[str, Recipe] = {
    'train_1p': Recipe(
        'train', '1 device, 1 epoch: performance', 'test/train_performance_1p.sh',
        batch_size=128, lr=0.1, epochs=1, nproc=1),
    'train_8p': Recipe('train', '8 devices, 100 epochs: accuracy', 'test/train_full_8p.sh', epochs=100),
    'train_performance_8p': Recipe('train', '8 devices, 2 epochs: performance', 'test/train_performance_8p.sh'),
    'eval_8p': Recipe('validate', '8 devices: evaluates --resume', 'test/train_eval_8p.sh'),
    'train_multinode': Recipe(
        'train', 'several machines, 2 epochs: performance', 'test/train_performance_multinodes.sh'),
}

# What a recipe shrinks to on a CPU, where 224 pixels and 1,024 images need days and 100 GB; flags of the user's win.
CPU_SIZE = {'img_size': 32, 'workers': 1, 'amp': False}
CPU_IMAGES = 32  # a process and step


def final_lines(result: Dict[str, Any]) -> List[str]:
    """The ModelZoo's closing lines."""
    return [
        '------------------ Final result ------------------',
        f'Final Performance images/sec : {result["fps"]:.3f}',
        f'Final Train Accuracy : {result["top1"]:.3f}',
        f'E2E Training Duration sec : {round(result["seconds"])}',
    ]


def train_result(run_dir: str, seconds: float) -> Dict[str, Any]:
    """Figures of a finished run: images/s, top-1 and loss of its last epoch.

    top1 counts every validation image once, the average over batches that the reference prints leaves some out. NaN
    where the run did not evaluate.
    """
    summary = RunFolder(run_dir).summary
    if not summary.is_file():
        raise RunError(f'No epoch was trained and evaluated in {run_dir}: the run was complete before, or was stopped.')
    record = read_record(run_dir)
    with open(summary, newline='') as f:
        last = list(csv.DictReader(f))[-1]
    return {
        'fps': record['epochs'][-1]['fps'],
        'top1': float(last.get('eval_top1', 'nan')),
        'loss': float(last['train_loss']),
        'seconds': seconds,
    }


def eval_result(folder: str, seconds: float) -> Dict[str, Any]:
    """Figures of a finished evaluation."""
    figures = read_record(folder)['evaluation']
    return {'fps': figures['images'] / figures['seconds'], 'top1': figures['top1'], 'loss': figures['loss'],
            'seconds': seconds}


def write_log(folder: str, world_size: int, batch_size: int, result: Dict[str, Any]) -> Path:
    """Write the ModelZoo's `key = value` log into a folder.

    Args:
        folder: Output folder of the run.
        world_size: Processes of all nodes.
        batch_size: Images a step, of all processes.
        result: As from `train_result`.

    Returns:
        Path of the log.
    """
    case = f'{NETWORK}_bs{batch_size}_{world_size}p_acc'
    fields = {
        'Network': NETWORK,
        'RankSize': world_size,
        'BatchSize': batch_size,
        'DeviceType': platform.machine(),
        'CaseName': case,
        'ActualFPS': f'{result["fps"]:.3f}',
        'TrainingTime': f'{batch_size * 1000 / result["fps"]:.2f}',  # milliseconds a step
        'TrainAccuracy': f'{result["top1"]:.3f}',
        'ActualLoss': f'{result["loss"]:.4e}',
        'E2ETrainingTime': round(result['seconds']),
    }
    path = Path(folder) / f'{case}.log'
    with atomic_path(path) as tmp:
        Path(tmp).write_text(''.join(f'{key} = {value}\n' for key, value in fields.items()))
    return path
