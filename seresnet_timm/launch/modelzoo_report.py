"""The closing lines that the ModelZoo's scripts print, and its `key = value` log."""
import csv
import platform
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Union

from seresnet_timm.errors import RunError, print_closing, printable
from seresnet_timm.files import atomic_path
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import read_record
from seresnet_timm.runs.settings import RunSettings

NETWORK = 'SE_Resnet50'  # the ModelZoo's spelling, part of its log's name


def finish(settings: RunSettings, seconds: float) -> None:
    """Print the closing lines of a run that has ended, and write its log into its folder.

    Args:
        settings: Settings of the run.
        seconds: How long it took, from the command's start.

    Raises:
        RunError: No epoch was trained.
    """
    result = dict(train_result(settings.output) if settings.verb == 'train' else eval_result(settings.output),
                  seconds=seconds)
    lines = ('------------------ Final result ------------------',
             f'Final Performance images/sec : {result["fps"]:.3f}',
             f'Final Train Accuracy : {_percent(result["top1"])}',
             f'E2E Training Duration sec : {round(seconds)}')
    (print_closing if settings.verb == 'train' else print)('\n'.join(lines))
    try:
        log = write_log(settings.output, settings.world_size, settings.global_batch_size, result)
    except OSError as e:
        raise RunError(f'The run is complete, but its log could not be written into {printable(settings.output)} '
                       f'({e.strerror}).')
    print(f'Log: {printable(log)}', file=sys.stderr)


def train_result(folder: Union[str, Path]) -> Dict[str, Any]:
    """Figures of a finished training: images/s, top-1 and loss of its last epoch.

    top1 counts every validation image once, the average over batches that the reference prints leaves some out. None
    where the run did not evaluate.
    """
    summary = RunFolder(folder).summary
    if not summary.is_file():
        raise RunError(f'No epoch was trained and evaluated in {folder}: the run was complete before, or was stopped.')
    record = read_record(folder)
    with open(summary, newline='') as f:
        last = list(csv.DictReader(f))[-1]
    return {
        'fps': record['epochs'][-1]['fps'],
        'top1': float(last['eval_top1']) if 'eval_top1' in last else None,
        'loss': float(last['train_loss']),
    }


def _percent(top1: Optional[float]) -> str:
    return '-' if top1 is None else f'{top1:.3f}'


def eval_result(folder: Union[str, Path]) -> Dict[str, Any]:
    """Figures of a finished evaluation; the loss is None where it is not finite."""
    figures = read_record(folder)['evaluation']
    return {'fps': figures['images'] / figures['seconds'], 'top1': figures['top1'], 'loss': figures['loss']}


def write_log(folder: Union[str, Path], world_size: int, batch_size: int, result: Dict[str, Any]) -> Path:
    """Write the ModelZoo's `key = value` log into a folder.

    Args:
        folder: Output folder of the run.
        world_size: Processes of all nodes.
        batch_size: Images a step, of all processes.
        result: Images/s, top-1 (percent), loss and seconds.

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
        'TrainAccuracy': _percent(result['top1']),
        'ActualLoss': '-' if result['loss'] is None else f'{result["loss"]:.4e}',
        'E2ETrainingTime': round(result['seconds']),
    }
    path = Path(folder) / f'{case}.log'
    with atomic_path(path) as tmp:
        Path(tmp).write_text(''.join(f'{key} = {value}\n' for key, value in fields.items()))
    return path
