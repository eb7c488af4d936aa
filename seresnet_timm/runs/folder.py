"""RunFolder: the names and places of a run's files"""
import os
import shutil
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Union

from seresnet_timm.errors import RunError, UsageError, printable, shell_line
from seresnet_timm.files import at_end, exclusive, is_locked, marker_hint, remove_left_behind
from seresnet_timm.runs.settings import RunSettings

# checkpoints that a training writes
CHECKPOINTS = ('model_best.pth.tar', 'last.pth.tar', 'checkpoint-*.pth.tar', 'recovery-*.pth.tar')


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

    def is_last(self, path: Union[str, Path]) -> bool:
        """Whether a path of one of this folder's checkpoints is that of `last`."""
        return Path(path).name == self.last.name

    @property
    def previous(self) -> Path:
        """What `last` was before it became a state in the middle of an epoch; gone when the epoch is over."""
        return self.path / 'previous.pth.tar'

    @property
    def summary(self) -> Path:
        """Losses and metrics, one row per epoch."""
        return self.path / 'summary.csv'

    @property
    def record(self) -> Path:
        """What the run was started with and how it went, see `record`."""
        return self.path / 'run.json'

    @property
    def status(self) -> Path:
        """How far a training is, see `status`."""
        return self.path / 'status.json'

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files of `--tensorboard`."""
        return self.path / 'tensorboard'

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

    @property
    def confusion(self) -> Path:
        """Picture of the confusion matrix, see `prediction_pictures`."""
        return self.path / 'confusion.png'

    @property
    def worst_images(self) -> Path:
        """Contact sheet of the worst images."""
        return self.path / 'worst_images.png'

    @property
    def comparison(self) -> Path:
        """Picture of several runs, in the folder of the first."""
        return self.path / 'comparison.png'

    @property
    def written_in_place(self) -> List[Path]:
        """Files and folders that a run which goes on does not replace, but writes into."""
        return [self.summary, self.logs, self.tensorboard, self.lock]

    def blocked(self) -> Optional[Path]:
        """A folder, pipe or socket that has the name of a file of the run, or a file that has that of a folder."""
        files = [self.summary, self.record, self.status, self.args, self.previous]
        files += [path for pattern in CHECKPOINTS for path in self.path.glob(pattern)]
        folders = [self.logs, self.tensorboard]
        wrong = [path for path in files if path.exists() and not path.is_file()]
        wrong += [path for path in folders if path.exists() and not path.is_dir()]
        return min(wrong, default=None)

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
                    held.enter_context(at_end(self._remove_if_empty))  # after the lock is gone
                is_locked_now = held.enter_context(exclusive(self.lock, UsageError(self.busy())))
            except OSError as e:
                raise RunError(f'Cannot write to {self.path} ({e.strerror}): name another folder with --output.')
            if not is_locked_now:
                with suppress(OSError):
                    self.lock.unlink()
                print(f'Note: the file system of {printable(self.path)} has no file locks: a second training into this '
                      'folder would not be refused, and would damage this one.', file=sys.stderr, flush=True)
            else:
                for path in (self.record, self.status, self.args, self.summary):
                    remove_left_behind(path)
            yield

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self.path.rmdir()  # of a run that was refused before it wrote anything

    def why_busy(self) -> Optional[str]:
        """A sentence if another training writes into the folder. Nothing is written."""
        return f'{self.busy()}{marker_hint(self.lock)}' if is_locked(self.lock) else None

    def busy(self) -> str:
        return (f'Another training is writing into {self.path}: wait until it has ended, or name another folder with '
                '--experiment or --output.')

    def checkpoint(self) -> Optional[Path]:
        """The checkpoint to use: the best, else the last; None if the run has saved none."""
        return next((path for path in (self.best, self.last) if path.is_file()), None)

    def holds_a_run(self) -> bool:
        """True if results are in it: a summary, or a checkpoint of a run. A run that saved nothing leaves none."""
        return self.summary.is_file() or any(next(self.path.glob(pattern), None) for pattern in CHECKPOINTS)

    def holds_another_run(self, settings: RunSettings) -> bool:
        """True if results are in it that a training would write over, as it does not go on from them."""
        resume = settings.args.get('resume')
        if resume and self.owns(resume):
            return False
        # `--resume auto` in a folder whose run has ended before it saved anything, perhaps in the middle of a save
        names = (*CHECKPOINTS, self.previous.name)
        starts_anew = settings.reasons.get('resume') == 'auto' and not any(
            next(self.path.glob(name), None) for name in names)
        return self.holds_a_run() and not starts_anew

    def owns(self, checkpoint: Union[str, Path]) -> bool:
        """True if a checkpoint is in this folder: to resume from it continues this run."""
        return os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(self.path)


def refuse_to_replace(target: str, sources: Sequence[str] = ()) -> None:
    """Refuse to write over what is read, and under the name of a checkpoint of a run, from which the run resumes.

    Raises:
        UsageError: The file is one of these.
    """
    path = Path(target)
    if any(os.path.exists(s) and os.path.realpath(s) == os.path.realpath(target) for s in sources):
        raise UsageError(f'{printable(target)} is the file that is read: name another file to write.')
    folder = RunFolder(path.parent)
    if any(path.match(name) for name in (*CHECKPOINTS, folder.previous.name)) and (
            folder.record.is_file() or folder.summary.is_file()):
        if path.is_file():
            raise UsageError(f'{printable(target)} is a checkpoint of a run, which resumes from it: name another file '
                             'to write.')
        raise UsageError(f'{printable(target)} would be taken for a checkpoint of the run: name another file to write.')


def resume_hint(settings: RunSettings) -> str:
    """The end of a sentence on a run that did not finish: the command that goes on with it; '' if nothing was saved.

    The command works from any folder, and goes on in the folder of the run.
    """
    if settings.verb != 'train' or not settings.output or not RunFolder(settings.output).last.exists():
        return ''
    folder = RunFolder(os.path.abspath(settings.output))
    command = _without(settings.command, 'train', ('--output', '--experiment', '--resume'))
    words = [*_runnable(command), '--output', str(folder.path.parent), '--experiment', folder.path.name,
             '--resume', str(folder.last)]
    names_files_here = any(_is_relative_path(word.partition('=')[2] or word) for word in command[2:])
    place = f'{shell_line(["cd", os.getcwd()])} && ' if names_files_here else ''
    return f' Resume with: {place}{shell_line(words)}'


def _without(command: List[str], verb: str, flags: Sequence[str]) -> List[str]:
    """A command line without flags that take one value each, and their values; what is before the verb stays."""
    first = command.index(verb) + 1 if verb in command else 2  # after the name of a recipe
    kept = [word for before, word in zip(command[first - 1:], command[first:])
            if before not in flags and word.partition('=')[0] not in flags]
    return [*command[:first], *kept]


def _runnable(command: List[str]) -> List[str]:
    """The command of a run as any folder's shell takes it."""
    if command[:1] == ['bash']:  # a recipe, by its name in the checkout
        recipe = Path(command[1]).stem
        return [sys.executable, '-m', 'seresnet_timm', 'recipe', recipe, *command[2:]]
    own = Path(sys.executable).with_name('seresnet-timm')
    if command[:1] == ['seresnet-timm'] and shutil.which('seresnet-timm') != str(own):
        return [sys.executable, '-m', 'seresnet_timm', *command[1:]]
    return list(command)


def _is_relative_path(text: str) -> bool:
    return not os.path.isabs(text) and not text.startswith('-') and os.path.exists(text)
