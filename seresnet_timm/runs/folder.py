"""RunFolder: the names and places of a run's files"""
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Union

from filelock import Timeout

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.files import exclusive, is_locked


@dataclass(frozen=True)
class RunFolder:
    """Folder of a run, as both train scripts write it; nothing in it needs to exist.

    Attributes:
        path: The folder.
    """
    path: Path

    def __init__(self, path: Union[str, Path]):
        object.__setattr__(self, 'path', Path(path))

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.path / 'model_best.pth.tar'

    @property
    def last(self) -> Path:
        """Checkpoint of the last epoch, from which a run resumes."""
        return self.path / 'last.pth.tar'

    @property
    def summary(self) -> Path:
        """Losses and metrics, one row an epoch."""
        return self.path / 'summary.csv'

    @property
    def record(self) -> Path:
        """What the run was started with and how it went, see `record`."""
        return self.path / 'run.json'

    @property
    def lock(self) -> Path:
        """Locked while a training writes into the folder."""
        return self.path / '.run.lock'

    @property
    def args(self) -> Path:
        """Flags of the script, as a file for `--config`."""
        return self.path / 'args.yaml'

    @property
    def logs(self) -> Path:
        """Output of the ranks that do not print."""
        return self.path / 'logs'

    @property
    def curves(self) -> Path:
        """Picture of the run, see `curves`."""
        return self.path / 'curves.png'

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other trainings out of the folder while the block runs.

        Raises:
            UsageError: Another training writes into it.
            RunError: It cannot be written to.
        """
        with ExitStack() as held:
            try:
                if not self.path.is_dir():
                    self.path.mkdir(parents=True, exist_ok=True)
                    held.callback(self._remove_if_empty)  # after the lock is gone
                held.enter_context(exclusive(self.lock))
            except Timeout:
                raise UsageError(self.busy())
            except OSError as e:
                raise RunError(f'Cannot write to {self.path} ({e.strerror}): name another folder with --output.')
            yield

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self.path.rmdir()  # of a run that was refused before it wrote anything

    def why_busy(self) -> Optional[str]:
        """A sentence if another training writes into the folder. Nothing is written."""
        return self.busy() if is_locked(self.lock) else None

    def busy(self) -> str:
        return (f'Another training is writing into {self.path}: wait until it has ended, or name another folder with '
                '--experiment or --output.')

    def checkpoint(self) -> Optional[Path]:
        """The checkpoint to use: the best, else the last; None if the run has saved none."""
        return next((path for path in (self.best, self.last) if path.is_file()), None)

    def resume_hint(self) -> str:
        """The end of a sentence on a run that did not finish: how to resume it; '' if nothing was saved."""
        return f' Resume with --resume {self.last}' if self.last.exists() else ''

    def owns(self, checkpoint: Union[str, Path]) -> bool:
        """True if a checkpoint is in this folder: to resume from it continues this run."""
        return os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(self.path)
