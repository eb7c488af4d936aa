"""Saves checkpoints atomically, with all that a resumed run and a later reader need"""
import functools
import math
import os
from contextlib import suppress
from glob import escape, glob
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from timm.utils import CheckpointSaver

from seresnet_timm.checkpoints.background import BackgroundSave, HostCopy
from seresnet_timm.checkpoints.checkpoint import INFO_KEY, SHA256_KEY, weights_sha256
from seresnet_timm.checkpoints.save_errors import SaveErrors, remove_temporary_files, torch_errors_as_oserror
from seresnet_timm.files import copy_file, fsync


class AtomicCheckpointSaver(CheckpointSaver):
    """timm's CheckpointSaver that writes atomically, and whose checkpoints hold run state, model info and a SHA-256.

    timm's unlinks the old file before it renames the new one and does not flush to disk: a crash in between loses
    both.

    Attributes:
        run_state: What an exact resume needs beside weights and optimizer; set it before every save.
        buffers: What is saved instead of buffers of the model, by their names.
        model_info: `ModelInfo.to_dict()` of the run's model; set it once.
        errors: Whether the last save failed, and why; None to raise the error.
        in_background: Copy what is saved, and write it in a thread; call `wait` before its files are used. For a saver
            with `errors`. The copy stays in memory.
        history: Gives what a checkpoint holds of the files of the run, which may be damaged later; None for nothing.
        on_failure: Called with epoch, reason and time of a save that failed, from a method of this object.
    """

    def __init__(self, *args, task, **kwargs):
        super().__init__(*args, task=task, **kwargs)
        self.run_state: Dict[str, Any] = {}
        self.buffers: Dict[str, torch.Tensor] = {}
        self.model_info: Dict[str, Any] = {}
        self.errors: Optional[SaveErrors] = None
        self.in_background = False
        self.history: Callable[[], Optional[Dict[str, Any]]] = lambda: None
        self.on_failure: Callable[[int, str, float], None] = lambda *_: None
        self._background, self._copy = BackgroundSave(), HostCopy()
        self.task = _WithRunState(task, self)
        self.optimizer = _State(self.optimizer)
        self.amp_scaler = None if self.amp_scaler is None else _State(self.amp_scaler)
        if self.checkpoint_dir:
            remove_temporary_files(self.checkpoint_dir)
        # those of the run before: else each start would leave two for ever
        recovery = os.path.join(escape(self.recovery_dir), f'{self.recovery_prefix}-*{self.extension}')
        files = sorted(glob(recovery), key=os.path.getmtime) if self.recovery_dir else []
        self.prev_recovery_file, self.curr_recovery_file = ['', '', *files][-2:]

    def save_checkpoint(self, epoch: int, metric: Optional[float] = None) -> Tuple[Optional[float], Optional[int]]:
        """Save as timm's does, but an error of the file system need not end the run: see `errors`.

        A metric that is not a finite number ranks nowhere: timm's saver would keep the first one as the best for ever.
        What `save_last` kept of the state before is removed.
        """
        self.wait()
        if metric is not None and not math.isfinite(metric):
            metric = None
        best = self.best_metric, self.best_epoch
        is_best = metric is not None and (self.best_metric is None or self.cmp(metric, self.best_metric))
        save = functools.partial(self._save_epoch, epoch, metric)
        self._save_with(save, f'Epoch {epoch}', epoch, self.checkpoint_dir)
        if self.in_background:  # once it is saved
            return (metric, epoch) if is_best else best
        return (None, None) if self.best_metric is None else (self.best_metric, self.best_epoch)

    def _save_epoch(self, epoch: int, metric: Optional[float]) -> None:
        before = self.checkpoint_files, self.best_epoch, self.best_metric
        self.checkpoint_files = list(self.checkpoint_files)
        try:
            super().save_checkpoint(epoch, metric)
        except OSError:
            files, self.best_epoch, self.best_metric = before
            self.checkpoint_files = [(path, m) for path, m in files if os.path.exists(path)]
            copied = self._checkpoint_path(epoch)
            if copied not in dict(files):  # `last` holds the same, and nobody would remove this one later
                with suppress(OSError):
                    os.unlink(copied)
            raise
        if os.path.exists(self._previous):
            os.unlink(self._previous)

    def save_recovery(self, epoch: int, batch_idx: int = 0) -> None:
        save = functools.partial(self._save_recovery, epoch, batch_idx)
        self._save_with(save, f'Update {batch_idx} of epoch {epoch}', epoch, self.recovery_dir)

    def _save_recovery(self, epoch: int, batch_idx: int) -> None:
        path = os.path.join(self.recovery_dir, f'{self.recovery_prefix}-{epoch}-{batch_idx}{self.extension}')
        if path == self.prev_recovery_file:  # written again: it must not be removed as an old one
            self.prev_recovery_file = ''
        super().save_recovery(epoch, batch_idx)

    def save_last(self, epoch: int) -> None:
        """Save the current state as `last`, without ranking it: in the middle of the epoch after `epoch`."""
        save = functools.partial(self._save_last, epoch)
        self._save_with(save, f'The middle of epoch {epoch + 1}', epoch + 1, self.checkpoint_dir)

    def load_state_dict(self, state_dict: Dict[str, Any], from_last: bool = False) -> None:
        """Continue the ranking of a run's checkpoints.

        Args:
            state_dict: The entry 'saver' of a checkpoint.
            from_last: It is that of `last`. If the run was killed in the middle of that save, it is completed now.
        """
        epoch, metric = state_dict.get('pending', (None, None))
        if not from_last or metric is None:  # without a metric: saved in the middle of an epoch, and not ranked
            return super().load_state_dict(state_dict)
        super().load_state_dict({**state_dict, 'pending': (None, None)})
        with suppress(OSError):  # the run was killed before it had removed it
            os.unlink(self._previous)
        path = self._checkpoint_path(epoch)
        if not os.path.exists(path):
            is_full = len(self.checkpoint_files) >= self.max_history
            worst = self.checkpoint_files[-1][1] if is_full else None
            if worst is not None and not self.cmp(metric, worst):
                return
            if is_full:
                self._cleanup_checkpoints(1)
            self._duplicate(os.path.join(self.checkpoint_dir, f'last{self.extension}'), path)
        self._track_checkpoint(path, epoch, metric)

    def save_milestone(self, completed_epochs: int) -> str:
        self.wait()
        return super().save_milestone(completed_epochs)

    def wait(self) -> None:
        """Wait until everything is saved, and tell of what is not."""
        self._background.wait()
        if self.errors is not None:
            for failure in self.errors.take():
                self.on_failure(*failure)

    def tell(self) -> None:
        """Tell of a save that has failed, as soon as it has; for the thread that trains, between two steps."""
        if self._background.has_ended():
            self.wait()

    def _save_with(self, save: Callable[[], None], what: str, epoch: int, folder: str) -> None:
        self.wait()
        self._hold(self._copy if self.in_background else lambda value: value)
        if self.errors is None:
            return save()
        attempt = functools.partial(self.errors.attempt, what, folder, save, epoch)
        if self.in_background:
            return self._background.start(attempt)
        attempt()
        self.wait()

    def _hold(self, copy: Callable[[Any], Any]) -> None:
        """Hold what is saved as it is now."""
        parts = [self.task, self.optimizer, *([] if self.amp_scaler is None else [self.amp_scaler])]
        for part, state in zip(parts, copy([part.now() for part in parts])):
            part.held = state

    def _save_last(self, epoch: int) -> None:
        tmp = os.path.join(self.checkpoint_dir, f'tmp{self.extension}')
        last = os.path.join(self.checkpoint_dir, f'last{self.extension}')
        self._save(tmp, epoch)
        if os.path.exists(last):
            self._duplicate(last, self._previous)
        self._replace(tmp, last)

    @property
    def _previous(self) -> str:
        return os.path.join(self.checkpoint_dir, f'previous{self.extension}')

    def _save(self, save_path: str, epoch: int, metric: Optional[float] = None) -> None:
        # readers go on with the epoch after it, which is the same one for a recovery file
        epoch = self.task.held['run_state'].get('epoch', epoch + 1) - 1
        with torch_errors_as_oserror(save_path):
            super()._save(save_path, epoch, metric)
        fsync(save_path)

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)
        fsync(os.path.dirname(dst) or '.')

    def _duplicate(self, src: str, dst: str) -> None:
        tmp = dst + '.tmp'
        if os.path.exists(tmp):
            os.unlink(tmp)
        copy_file(src, tmp)  # not a link: what damages one file must not damage all of them
        fsync(tmp)
        self._replace(tmp, dst)


class _State:
    """An object whose state is saved, as the saver sees it: with the state that it holds."""

    def __init__(self, original: Any):
        self._original = original
        self.held: Dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def now(self) -> Dict[str, Any]:
        return self._original.state_dict()

    def state_dict(self) -> Dict[str, Any]:
        return self.held


class _WithRunState:
    """The task as the saver sees it: its entries, with contiguous weights, and the entries that this package adds."""

    def __init__(self, task, saver: AtomicCheckpointSaver):
        self._task, self._saver = task, saver
        self._sha256: Dict[str, str] = {}
        self.held: Dict[str, Any] = {}

    def now(self) -> Dict[str, Any]:
        own, ema = (self._task.get_checkpoint_state(ema=ema, unwrap_fn=self._saver.unwrap_fn) for ema in (False, True))
        own['state_dict'].update(
            (name, value) for name, value in self._saver.buffers.items() if name in own['state_dict'])
        history = self._saver.history()
        run_state = self._saver.run_state if history is None else dict(self._saver.run_state, history=history)
        return dict(run_state=run_state, weights=[own, ema])

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn=None) -> Dict[str, Any]:
        state = dict(self.held['weights'][ema])
        if not ema:
            state['run_state'] = self.held['run_state']
            if self._saver.model_info:
                state[INFO_KEY] = self._saver.model_info
            self._sha256 = {}
        key = 'state_dict_ema' if ema else 'state_dict'
        if key in state:
            state[key] = {k: v.contiguous() for k, v in state[key].items()}  # whatever memory format the run has
            self._sha256 = dict(self._sha256, **{key: weights_sha256(state[key])})
            state[SHA256_KEY] = self._sha256
        return state
