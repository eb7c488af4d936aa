"""Progress of a training or evaluation: bars on a terminal, plain log lines everywhere else

Figures come from log points, where the host waits for the device anyway; a step only counts. On a CPU, where every step
is done when it returns, the time left is computed every few seconds too.
"""
import logging
import time
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator, Optional

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from seresnet_timm.data.image_files import Unreadable
from seresnet_timm.engine.forecast import Extent, Forecast
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.runs.show import RunBar, clock, duration, early_end, has_color, is_terminal
from seresnet_timm.runs.status import Status, StatusFile

QUIET, VERBOSE = -1, 1  # RunSettings.verbosity
LOOK = 5.  # seconds


class _Lines:
    """Without a terminal: every log line is printed."""

    def __init__(self, logger: Any):
        self._logger = logger

    def update(self) -> None:
        pass

    def tell(self, short: Callable[[], str]) -> None:
        """Show figures, where they are shown beside the lines."""

    def shows(self, line: str, short: str, is_last: bool) -> bool:
        """Whether a line is printed."""
        return self._logger is not None

    def log(self, line: str, short: str, is_last: bool) -> None:
        if self.shows(line, short, is_last):
            self._logger.info(line)


class _Bar(_Lines):
    """On a terminal: the bar shows the latest figures; the last line of a pass is printed, if verbose all of them."""

    def __init__(self, bar: tqdm, logger: Any, verbosity: int):
        super().__init__(logger)
        self._bar, self._verbosity = bar, verbosity

    def update(self) -> None:
        self._bar.update()

    def tell(self, short: Callable[[], str]) -> None:
        self._bar.set_postfix_str(short(), refresh=False)

    def shows(self, line: str, short: str, is_last: bool) -> bool:
        self._bar.set_postfix_str(short, refresh=False)
        return is_last or self._verbosity >= VERBOSE


@contextmanager
def progress_bar(total: int, name: str, logger: Any, verbosity: int = 0, initial: int = 0) -> Iterator[Any]:
    """Progress of one pass over a loader.

    Args:
        total: Number of batches.
        name: Label of the bar.
        logger: Where lines go; None on ranks that do not log.
        verbosity: As in RunSettings.
        initial: Batches that are done before.
    """
    if logger is None or verbosity <= QUIET or not is_terminal():
        yield _Lines(logger)
        return
    color = 'green' if has_color() else None
    with logging_redirect_tqdm(), tqdm(
            total=total, desc=name, initial=initial, leave=False, dynamic_ncols=True, colour=color) as bar:
        yield _Bar(bar, logger, verbosity)


class Progress:
    """How far a training is, on rank 0. Without a status, as on the other ranks, it shows the lines of its log only.

    Args:
        folder: Folder of the run.
        status: What is shown, and written into the folder; None for nothing.
        forecast: When the run ends.
        verbosity: As in RunSettings.
        passes: Evaluations after an epoch, of the model and of its moving average.
        is_cpu: An update that has been queued is done.
    """

    def __init__(
            self,
            folder: Optional[RunFolder] = None,
            status: Optional[Status] = None,
            forecast: Optional[Forecast] = None,
            verbosity: int = 0,
            passes: int = 1,
            is_cpu: bool = False,
    ):
        self.status, self.forecast, self.verbosity = status, forecast, verbosity
        self._folder, self._passes, self._pass = folder, passes, 0
        self._run_bar: Optional[RunBar] = None
        self._bar: Any = _Lines(None)
        self._is_cpu, self._looked = is_cpu, time.time()

    @contextmanager
    def shown(self, batches: int, place: Any) -> Iterator[None]:
        """While the block runs: the bar of the run on a terminal, and its status file.

        Args:
            batches: Batches of an epoch.
            place: The `Place` where the run goes on.
        """
        if self.status is None or self._folder is None:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(StatusFile(self._folder, self.status))
            if self.verbosity > QUIET and is_terminal():
                stack.enter_context(logging_redirect_tqdm())
                self._run_bar = stack.enter_context(RunBar(
                    self.status, desc='Run', total=(self.status.epochs or 0) * batches, leave=False,
                    initial=place.epoch * batches + (batches if place.is_trained else place.batches)))
            yield

    @contextmanager
    def training(self, epoch: int, batches: int, batches_done: int, logger: Any) -> Iterator['Progress']:
        """One epoch of training.

        Args:
            epoch: Its number.
            batches: Its batches.
            batches_done: Those that are done.
            logger: Where lines go; None on ranks that do not log.
        """
        status = self.status
        if status is not None and self.forecast is not None:
            update = (status.updates or 0) * batches_done // batches
            status.state, status.epoch, status.update, status.loss = 'training', epoch, update, None
            status.batch = status.batches = None
            self._pass = 0
            self.forecast.start_epoch(epoch, update, time.time())
        with progress_bar(batches, f'Train {epoch}', logger, self.verbosity, batches_done) as self._bar:
            yield self
        self._bar = _Lines(None)

    def step(self) -> None:
        """A batch has been trained on."""
        self._bar.update()
        if self._run_bar is not None:
            self._run_bar.update()

    def update(self, update: int) -> None:
        """`update` updates of the epoch have been queued."""
        if self.status is None or self.forecast is None:
            return
        now = time.time()
        self.status.update, self.status.moved = update, now
        if self._is_cpu and now - self._looked >= LOOK:
            self._looked = now
            self.forecast.at_update(update, now, is_log=False)
            self.foresee(now)

    def at_log(self, update: int, loss: float, lr: float, bad_steps: Optional[int]) -> str:
        """`update` updates of the epoch are done: what a log line says of the end of the run; '' if nothing."""
        status, forecast = self.status, self.forecast
        if status is None or forecast is None:
            return ''
        now = time.time()
        forecast.at_update(update, now)
        status.update, status.moved, status.loss, status.lr, status.bad_steps = update, now, loss, lr, bad_steps
        status.images_per_second = forecast.images_per_second
        self.foresee(now)
        if status.ends is None:
            return ''
        return f'  Left: {duration(status.ends - now)} (ends {clock(status.ends, now)}{early_end(status, now)})'

    def foresee(self, now: float, best_epoch: Optional[int] = None) -> None:
        """Note when the run will end. `best_epoch`: if the status does not have it yet."""
        status, forecast = self.status, self.forecast
        if status is not None and forecast is not None:
            best_epoch = status.best_epoch if best_epoch is None else best_epoch
            status.ends, status.ends_early = forecast.end(now), forecast.early_end(now, best_epoch)

    def shows(self, line: str, is_last: bool) -> bool:
        """Whether a log line of the epoch is printed; if not, the bar shows its figures."""
        return self._bar.shows(line, self._short(), is_last)

    def log(self, line: str, is_last: bool) -> None:
        self._bar.log(line, self._short(), is_last)

    def _short(self) -> str:
        status = self.status
        if status is None or status.loss is None:
            return ''
        speed = '' if status.images_per_second is None else f'{status.images_per_second:.1f} images/s, '
        return f'{speed}loss {status.loss:.3f}, lr {status.lr:.2e}'

    def at_evaluation(self, batch: int, batches: int) -> None:
        """`batch` batches of an evaluation are done."""
        status, forecast = self.status, self.forecast
        if status is None or forecast is None:
            return
        now = time.time()
        status.state, status.batch, status.batches, status.moved = 'evaluating', batch, batches, now
        forecast.at_evaluation((self._pass + batch / batches) / self._passes, now)
        if forecast.end(now) is not None:
            self.foresee(now)
        if batch == batches:
            self._pass += 1
        if self._run_bar is not None:
            self._run_bar.refresh()

    def end_epoch(self, metric: str, value: Optional[float], unreadable: Optional[Unreadable]) -> None:
        """An epoch is over. `value` is its metric, None without an evaluation."""
        if self.status is None:
            return
        self.status.metric = metric
        self.status.value = self.status.value if value is None else value
        self.status.bad_images = None if unreadable is None else unreadable.count


def create_progress(run: Any, settings: RunSettings, num_epochs: int) -> Progress:
    """Progress of a training that is set up, on any rank.

    Args:
        run: The `Training`.
        settings: Settings of the run.
        num_epochs: Number of epochs.
    """
    args, outputs = run.args, run.outputs
    if outputs is None:
        return Progress(verbosity=settings.verbosity)
    passes = 1 + bool(getattr(args, 'model_ema', False) and not args.model_ema_force_cpu)
    extent = Extent(
        epochs=num_epochs, updates=run.updates_per_epoch, batch_images=settings.global_batch_size,
        val_interval=getattr(args, 'val_interval', 1),
        val_images=passes * settings.num_images.get('val', 0) if args.val_split else 0,
        patience=settings.patience if settings.early_stop else None)
    status = Status.of_this_process(settings)
    status.epochs, status.updates = num_epochs, run.updates_per_epoch
    best = outputs.saver.best_metric, outputs.saver.best_epoch
    status.metric, (status.best, status.best_epoch) = run.eval_metric, best
    forecast = Forecast(extent, outputs.record.content['epochs'])
    return Progress(outputs.folder, status, forecast, settings.verbosity, passes, is_cpu=run.device.type == 'cpu')


class ScriptLines(logging.Filter):
    """Adds the end of the run to the log lines of timm's train.py, and hides those whose figures a bar shows.

    Args:
        progress: Progress of the training.

    Attributes:
        end: What the next line says of the end of the run.
        is_last: It is the last one of its epoch.
    """

    def __init__(self, progress: Progress):
        super().__init__()
        self._progress = progress
        self.end, self.is_last = '', False

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if not line.startswith('Train: '):
            return True
        record.msg, record.args = line + self.end, None
        return self._progress.shows(line, self.is_last)
