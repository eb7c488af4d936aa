"""Saves checkpoints atomically, with all that a resumed run and a later reader need"""
import math
import os
from typing import Any, Dict, Optional

from timm.utils import CheckpointSaver

from seresnet_timm.checkpoints.checkpoint import INFO_KEY, SHA256_KEY, weights_sha256
from seresnet_timm.files import fsync


class AtomicCheckpointSaver(CheckpointSaver):
    """timm's CheckpointSaver that writes atomically, and whose checkpoints hold run state, model info and a SHA-256.

    timm's unlinks the old file before it renames the new one and does not flush to disk: a crash in between loses
    both.

    Attributes:
        run_state: What an exact resume needs beside weights and optimizer; set it before every save.
        model_info: `ModelInfo.to_dict()` of the run's model; set it once.
    """

    def __init__(self, *args, task, **kwargs):
        super().__init__(*args, task=task, **kwargs)
        self.run_state: Dict[str, Any] = {}
        self.model_info: Dict[str, Any] = {}
        self.task = _WithRunState(task, self)

    def save_checkpoint(self, epoch: int, metric: Optional[float] = None):
        """As timm's; a metric that is not finite ranks last and is never the best, which nothing could replace."""
        if metric is None or math.isfinite(metric):
            return super().save_checkpoint(epoch, metric)
        worst = math.inf if self.decreasing else -math.inf
        has_best = self.best_metric is not None
        if not has_best:
            self.best_metric = worst
        super().save_checkpoint(epoch, worst)
        if not has_best:
            self.best_metric = None
        return (self.best_metric, self.best_epoch) if has_best else (None, None)

    def _save(self, save_path: str, epoch: int, metric: Optional[float] = None) -> None:
        super()._save(save_path, epoch, metric)
        fsync(save_path)

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)
        fsync(os.path.dirname(dst) or '.')

    def _duplicate(self, src: str, dst: str) -> None:
        tmp = dst + '.tmp'
        if os.path.exists(tmp):
            os.unlink(tmp)
        super()._duplicate(src, tmp)
        fsync(tmp)
        self._replace(tmp, dst)


class _WithRunState:
    """The task as the saver sees it: its entries, with contiguous weights, and the entries that this package adds."""

    def __init__(self, task, saver: AtomicCheckpointSaver):
        self._task, self._saver = task, saver
        self._sha256: Dict[str, str] = {}

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn=None) -> Dict[str, Any]:
        state = self._task.get_checkpoint_state(ema=ema, unwrap_fn=unwrap_fn)
        if not ema:
            state['run_state'] = self._saver.run_state
            if self._saver.model_info:
                state[INFO_KEY] = self._saver.model_info
            self._sha256 = {}
        key = 'state_dict_ema' if ema else 'state_dict'
        if key in state:
            state[key] = {k: v.contiguous() for k, v in state[key].items()}  # whatever memory format the run has
            self._sha256 = dict(self._sha256, **{key: weights_sha256(state[key])})
            state[SHA256_KEY] = self._sha256
        return state
