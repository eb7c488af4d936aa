"""`run.json`: what a run was started with and how it went, epoch by epoch."""
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import timm
import torch

import seresnet_timm
from seresnet_timm.errors import UsageError
from seresnet_timm.files import write_json

FILE_NAME = 'run.json'


def new_record(plan: Dict[str, Any]) -> Dict[str, Any]:
    """A record of a run that starts now.

    Args:
        plan: Decisions of the run: device, precision, world size, script and so on.
    """
    return {
        'plan': plan,
        'command': sys.argv,
        'versions': {
            'seresnet_timm': seresnet_timm.__version__, 'timm': timm.__version__, 'torch': torch.__version__,
            'python': platform.python_version(),
        },
        'machine': {'system': platform.platform(), 'cpus': os.cpu_count()},
        'started': _now(),
        'finished': None,
        'epochs': [],
        'best': None,
    }


def resume_record(folder: str, record: Dict[str, Any], start_epoch: int) -> Dict[str, Any]:
    """Take over the epochs before `start_epoch` from the record that the folder holds, if any."""
    if start_epoch > 0 and (Path(folder) / FILE_NAME).exists():
        old = read_record(folder)
        record['epochs'] = [e for e in old['epochs'] if e['epoch'] < start_epoch]
        record['started'] = old['started']
        record['best'] = old['best']
    return record


def add_epoch(record: Dict[str, Any], folder: str, figures: Dict[str, Any], best: Optional[List]) -> None:
    """Append an epoch's figures and write the record."""
    record['epochs'].append(figures)
    record['best'] = best
    write_json(Path(folder) / FILE_NAME, record)


def finish(record: Dict[str, Any], folder: str) -> None:
    record['finished'] = _now()
    write_json(Path(folder) / FILE_NAME, record)


def read_record(folder: str) -> Dict[str, Any]:
    """Read a run's record.

    Raises:
        UsageError: There is none, or it is not one.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise UsageError(f'{folder} holds no {FILE_NAME}: name the folder of a run, the one with summary.csv in it.')
    try:
        with open(path) as f:
            record = json.load(f)
        record['plan'], record['epochs'], record['best'], record['started']
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f'{path} is not the record of a run ({e}).')
    return record


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')


class RunRecord:
    """STAND-IN until the branch `engine` is merged: the record of a run, written on rank 0."""

    def __init__(self, settings, folder: str, model_info=None):
        self._folder = folder
        self.values = new_record(dict(settings.args, output=folder))
        self.values['model_info'] = None if model_info is None else model_info.to_dict()

    def continue_from(self, start_epoch: int) -> None:
        resume_record(self._folder, self.values, start_epoch)

    def add_epoch(self, figures: Dict[str, Any]) -> None:
        add_epoch(self.values, self._folder, figures, self.values['best'])

    def set_best(self, metric: str, value: float, epoch: int) -> None:
        self.values['best'] = dict(metric=metric, value=value, epoch=epoch)
        write_json(Path(self._folder) / FILE_NAME, self.values)

    def set_evaluation(self, figures: Dict[str, Any]) -> None:
        self.values['evaluation'] = figures
        write_json(Path(self._folder) / FILE_NAME, self.values)

    def finish(self) -> None:
        finish(self.values, self._folder)
