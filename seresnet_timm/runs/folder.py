"""The names and places of a run's files."""
import os
from pathlib import Path
from typing import Optional, Union

CHECKPOINTS = ('model_best.pth.tar', 'last.pth.tar')  # of a run's folder, the first that is there


class RunFolder:
    """The output folder of a run; its files need not be there.

    Attributes:
        path: The folder.
        best: Checkpoint of the best epoch.
        last: Checkpoint of the last epoch.
        args: The script's flags, YAML.
        summary: Losses and metrics by epoch, CSV.
        record: run.json, see `record`.
        curves: Picture of the curves.
        logs: Logs of all ranks but the first.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path)
        self.best, self.last = (self.path / name for name in CHECKPOINTS)
        self.args = self.path / 'args.yaml'
        self.summary = self.path / 'summary.csv'
        self.record = self.path / 'run.json'
        self.curves = self.path / 'curves.png'
        self.logs = self.path / 'logs'

    def checkpoint(self) -> Optional[Path]:
        """The best checkpoint, else the last, else None."""
        return next((p for p in (self.best, self.last) if p.is_file()), None)

    def owns(self, checkpoint: Union[str, Path]) -> bool:
        """True if a checkpoint is in this folder: the run that saved it continues."""
        return os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(self.path)

    def resume_hint(self) -> str:
        """The end of a sentence on a failed run: how to continue from what it has saved, if anything."""
        return f' Continue with --resume {self.last}' if self.last.exists() else ''
