"""A training by timm's train.py, around its steps: where it goes on, when it saves and stops, which steps are skipped

A step is known to be over when the script asks the loader for the next batch: there the state is saved, and there a
signal ends the run.
"""
import logging
import math
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from timm import utils

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.engine.bad_steps import check_steps
from seresnet_timm.engine.epoch import Training, begin_epoch, figures_of_epoch
from seresnet_timm.engine.patience import EndedEarly
from seresnet_timm.engine.progress import ScriptLines
from seresnet_timm.engine.run_state import (
    Resumed,
    restore_counts,
    restore_loader,
    restore_rank,
    restore_schedule,
    resume_from,
)
from seresnet_timm.timm_scripts.meters import DeviceMeter

_logger = logging.getLogger('train')
Metrics = Dict[str, float]


def go_on(run: Training, checkpoint: Optional[Checkpoint], epoch: int) -> Resumed:
    """Bring a training that the script has set up to the place where it goes on.

    Args:
        run: The training.
        checkpoint: The checkpoint to resume from, whose weights, optimizer and loss scale the script has loaded.
        epoch: Epoch at which the script starts.
    """
    resumed = resume_from(checkpoint, run, epoch)
    if checkpoint is not None:
        restore_loader(run, resumed)
        restore_rank(run, resumed)
        restore_counts(run, resumed)
        restore_schedule(run, resumed)
    return resumed


class ScriptTraining:
    """A training by timm's train.py.

    Args:
        run: What it holds.
        resumed: Where it goes on.

    Attributes:
        epoch: The epoch that the script trains now.
    """

    def __init__(self, run: Training, resumed: Resumed):
        self.run, self._resumed = run, resumed
        self.lines = None if run.progress.status is None else ScriptLines(run.progress)
        self.epoch: Any = None

    def train_epoch(self, epoch: int, train: Callable[..., Metrics]) -> Tuple[Metrics, Dict[str, Any]]:
        """Train an epoch, or what is left of it: its metrics, and figures for run.json.

        Args:
            epoch: Number of the epoch.
            train: The script's `train_one_epoch`, of loader, optimizer and loss scaler.

        Raises:
            RunError: Too many steps had a loss or gradients that are not finite.
            Stopped: A signal stops the run; it is saved.
            EndedEarly: The run ends before this epoch, see `--early-stop`.
        """
        run = self.run
        if run.patience.is_over(run, epoch):
            raise EndedEarly
        metrics, figures = self._resumed.trained_epoch(epoch) or self._train(epoch, train)
        run.saving.after_training(run, epoch, metrics, figures)
        return metrics, figures

    def _train(self, epoch: int, train: Callable[..., Metrics]) -> Tuple[Metrics, Dict[str, Any]]:
        run = self.run
        run.begun = self._resumed.start_of(epoch, run.args.rank, run.args.world_size)
        self.epoch = Epoch(run, epoch, self.lines)
        self.optimizer: Any = run.optimizer if run.loss_scaler is not None else GuardedOptimizer(run)
        with run.progress.training(epoch, len(self.epoch), self.epoch.batches, _logger if self.lines else None), \
                filtered(_logger, self.lines):
            metrics = train(self.epoch, self.optimizer, guarded_scaler(run))
        figures = figures_of_epoch(run, epoch, self.epoch.throughput)
        if run.bad_images:
            run.bad_images.check(0, run.record, epoch)
        return metrics, figures


class Epoch:
    """An epoch, as its loader that the script iterates over: measures, and saves when it is time to.

    Args:
        run: The training.
        number: Number of the epoch.

    Attributes:
        batches: Batches of it that are done.
        losses: Its LossMeter, of this rank.
        throughput: Its wall times, and the images of all ranks.
        lines: The script's log lines, to which the end of the run is added; None on ranks that do not log.
    """

    def __init__(self, run: Training, number: int, lines: Optional[ScriptLines] = None):
        self.lines = lines
        self._run, self._number = run, number
        self.losses, self.throughput, self.batches = begin_epoch(run, number)
        self.losses.distributed = False  # the script takes the mean over the ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run.train_loader, name)

    def __len__(self) -> int:
        return len(self._run.train_loader)

    @property
    def mixup_enabled(self) -> bool:
        return self._run.train_loader.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._run.train_loader.mixup_enabled = enabled

    def __iter__(self) -> Iterator:
        run, start = self._run, time.perf_counter()
        for batch in run.saving.batches(run, self._number, self.batches, self.losses, self.throughput):
            if run.bad_images and self.batches % run.args.log_interval == 0:
                run.bad_images.check_alone(run.record, self._number)
            self.throughput.add_wait(time.perf_counter() - start)
            yield batch
            self.throughput.step(len(batch[1]) * run.args.world_size)
            self.batches += 1
            run.progress.step()
            run.progress.update(math.ceil(self.batches / run.args.grad_accum_steps))
            if self.batches < len(self) and self.batches % run.args.grad_accum_steps == 0:
                run.saving.after_update(run, self._number, self.batches, self.losses, self.throughput)
            start = time.perf_counter()

    def read(self) -> Tuple[float, float]:
        """Loss of the last batch, and mean of the epoch, of this rank; the host waits for the device here.

        Raises:
            RunError: Too many steps had a loss or gradients that are not finite.
        """
        run: Any = self._run
        batch = min(self.batches, len(self) - 1)  # the one that the script trains on
        now, mean, figures = self.losses.read_with(run.bad_steps.figures())
        place = self._number, batch // run.args.grad_accum_steps
        is_last = batch == len(self) - 1
        check_steps(run, place, now, figures, is_last)
        if self.lines is not None:
            self.lines.is_last = is_last
            self.lines.end = run.progress.at_log(place[1] + 1, mean, run.lr, int(run.figures.total))
        return now, mean


@contextmanager
def filtered(logger: logging.Logger, lines: Optional[logging.Filter]) -> Iterator[None]:
    """Filter what a logger prints while the block runs; None for no filter."""
    if lines is not None:
        logger.addFilter(lines)
    try:
        yield
    finally:
        if lines is not None:
            logger.removeFilter(lines)


class StepMeter(DeviceMeter):
    """timm's AverageMeter of the losses of an epoch; where it is read, skipped steps are looked at."""

    def __init__(self, device: torch.device, epoch: Epoch):
        super().__init__(device)
        self._meter, self._epoch = epoch.losses, epoch

    def _read(self) -> None:
        if not self._fresh:
            self._val, self._avg = self._epoch.read()
            self._fresh = True


class GuardedOptimizer:
    """An optimizer that skips a step whose gradients are not finite, and counts it."""

    def __init__(self, run: Training):
        self._optimizer, self._bad_steps = run.optimizer, run.bad_steps
        self._has_looked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def look(self) -> None:
        """Note whether the gradients are finite, before they are clipped."""
        if not self._has_looked:
            self._bad_steps.look()
            self._has_looked = True

    def step(self) -> None:
        self.look()
        self._bad_steps.step()
        self._bad_steps.count()
        self._has_looked = False


def guarded_scaler(run: Training) -> Optional[Callable[..., None]]:
    """The loss scaler, which skips steps by itself: they are counted."""
    if run.loss_scaler is None:
        return None

    def scale(loss: torch.Tensor, optimizer: Any, *args, need_update: bool = True, **kwargs) -> None:
        run.loss_scaler(loss, optimizer, *args, need_update=need_update, **kwargs)
        if need_update:
            run.bad_steps.count()
    return scale


class NoScheduler:
    """A scheduler that leaves the learning rate as it is."""
    t_in_epochs = True

    def step(self, *args, **kwargs) -> None:
        pass

    step_update = step


class ModelState:
    """Weights and their moving average as timm's tasks give them to a saver."""

    def __init__(self, model: torch.nn.Module, model_ema: Optional[torch.nn.Module]):
        self._model, self._model_ema = model, model_ema

    def has_ema(self) -> bool:
        return self._model_ema is not None

    def get_trainable_module(self, ema: bool = False) -> Optional[torch.nn.Module]:
        return self._model_ema if ema else self._model

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn=utils.unwrap_model) -> Dict[str, Any]:
        model = self._model_ema if ema else self._model
        key = 'state_dict_ema' if ema else 'state_dict'
        return {} if model is None else {key: utils.get_state_dict(model, unwrap_fn)}
