"""When a training saves its state beside the ends of its epochs: after minutes, at a signal, at a recovery interval"""
import logging
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Callable, Dict, Iterator, Optional

from seresnet_timm.engine.agreement import Agreement
from seresnet_timm.engine.epoch import Training
from seresnet_timm.engine.faults import note_own
from seresnet_timm.engine.kept import Kept
from seresnet_timm.engine.run_state import Place, Resumed, run_state, same_on_all_ranks, state_of_rank
from seresnet_timm.engine.signals import Stopped, StopSignals
from seresnet_timm.runs.folder import resume_hint
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.runs.status import set_stopped

_logger = logging.getLogger('train')


class Saving:
    """Saves a training. All ranks call the same methods; rank 0 writes.

    Args:
        agreement: What the ranks agree on.
        minutes: Minutes between two checkpoints in the middle of an epoch; 0 for none.
        recovery_interval: Updates between two recovery files; 0 for none.
    """

    def __init__(self, agreement: Agreement, minutes: float = 0., recovery_interval: int = 0):
        self.agreement = agreement
        self._seconds, self._recovery_interval = 60 * minutes, recovery_interval
        self._saved = time.monotonic()
        self._trained: Dict[str, Any] = {}
        self._kept: Optional[Kept] = None  # after the last update, where the next one may not be finished

    def batches(self, run: Training, epoch: int, first: int, losses: Any, throughput: Any) -> Iterator[Any]:
        """Batches of an epoch. A signal stops the run after its last update also if its data do not come.

        Args:
            run: The training.
            epoch: Number of the epoch.
            first: Batches of it that are done before.
            losses: Its LossMeter.
            throughput: Its Throughput.

        Raises:
            Stopped: A signal stops the run; it is saved.
        """
        batches, done = iter(run.train_loader), first
        self._stand(run, Place(epoch, first))  # the state is that of the last save
        while True:
            try:
                with self.agreement.waiting_for_data() if done < len(run.train_loader) else nullcontext():
                    batch = next(batches, None)
            except Stopped:
                if self._kept is not None:
                    self._save(run, self._kept.place, losses, kept=self._kept, throughput=throughput.state_dict())
                elif done > first and run.args.grad_accum_steps == 1:  # else the state is that of the last save
                    self._save(run, Place(epoch, done), losses, throughput=throughput.state_dict())
                raise
            if batch is None:
                return
            yield batch
            done += 1

    def after_update(self, run: Training, epoch: int, batches: int, losses: Any, throughput: Any) -> None:
        """Save after an update that is not the last of its epoch, if it is time to.

        Args:
            run: The training.
            epoch: Number of the epoch.
            batches: Batches of it that are done.
            losses: Its LossMeter.
            throughput: Its Throughput.

        Raises:
            Stopped: A signal stops the run; it is saved.
        """
        if run.outputs is not None:
            run.outputs.saver.tell()
        place = Place(epoch, batches)
        update = batches // run.args.grad_accum_steps
        is_due = run.outputs is not None and self._seconds > 0 and time.monotonic() - self._saved >= self._seconds
        try:
            if self.agreement.after_update(is_due):
                self._save(run, place, losses, throughput=throughput.state_dict())
        except Stopped:
            self._save(run, place, losses, throughput=throughput.state_dict())
            raise
        if self._recovery_interval and update % self._recovery_interval == 0:
            self._save(run, place, losses, update - 1, throughput=throughput.state_dict())
        if run.args.world_size > 1 or run.args.grad_accum_steps > 1:
            with_buffers = run.args.rank == 0 or run.args.no_ddp_bb
            kept = Kept(run, place, losses, with_buffers)
            self._stand(run, place, lambda: state_of_rank(run, place, kept=kept), kept,
                        lambda: dict(throughput=throughput.state_dict()))

    def _stand(self, run: Training, place: Place, give: Optional[Callable[[], Any]] = None,
               kept: Optional[Kept] = None, more: Callable[[], Dict[str, Any]] = dict) -> None:
        """This rank has come to a place where `Halt` may end the run.

        Args:
            run: The training.
            place: The place.
            give: State of this rank there; None if there is nothing to save.
            kept: What the next update may change before it is saved.
            more: What is saved too.
        """
        self._kept = kept
        if self.agreement.halt is None:
            return

        def end(signum: int, ranks: Any) -> None:
            if ranks and give is not None:
                self._write(run, place, ranks, None, kept, **more())
            _end_halted(run, signum, ranks)
        self.agreement.halt.stand(str(place), give or (lambda: None), end)

    def after_training(self, run: Training, epoch: int, metrics: Dict[str, float], figures: Dict[str, Any]) -> None:
        """All batches of an epoch are done; its evaluation is next.

        Raises:
            Stopped: A signal stops the run; it is saved.
        """
        place = Place(epoch, len(run.train_loader), is_trained=True)
        unreadable = figures['unreadable_train']
        trained = dict(metrics=dict(metrics), figures=dict(
            figures, unreadable_train=None if unreadable is None else asdict(unreadable)))
        # an evaluation of several ranks changes the buffers of the moving average
        own = state_of_rank(run, Place(epoch + 1), with_buffers=True)
        self._trained = dict(place=place, own=own, trained=trained)
        self._stand(run, place, lambda: own, more=lambda: dict(trained=trained))
        try:
            self.agreement.vote()
        except Stopped:
            self.save_trained(run)
            raise
        if self._recovery_interval and run.updates_per_epoch % self._recovery_interval == 0:
            self.save_trained(run, run.updates_per_epoch - 1)

    def save_trained(self, run: Training, recovery: Optional[int] = None) -> None:
        """Save the state from before an evaluation that does not come to its end."""
        ranks = self.agreement.gather(self._trained['own'])
        if ranks is not None:
            self._write(run, self._trained['place'], ranks, recovery, trained=self._trained['trained'])

    def after_epoch(self) -> None:
        """The end of an epoch is saved."""
        self._saved = time.monotonic()

    def _save(self, run: Training, place: Place, losses: Any, recovery: Optional[int] = None,
              kept: Optional[Kept] = None, **more: Any) -> None:
        ranks = self.agreement.gather(state_of_rank(run, place, losses, kept=kept))
        if ranks is not None:
            self._write(run, place, ranks, recovery, kept, **more)

    def _write(self, run: Training, place: Place, ranks: Any, recovery: Optional[int], kept: Optional[Kept] = None,
               **more: Any) -> None:
        outputs: Any = run.outputs  # on rank 0
        saver = outputs.saver
        saver.run_state = run_state(run, place, ranks, **more)
        saver.buffers = {} if kept is None else kept.buffers()
        if recovery is None:
            saver.save_last(place.epoch - 1)
            self._saved = time.monotonic()
        else:
            saver.save_recovery(place.epoch, batch_idx=recovery)


def begin_saving(run: Training, settings: RunSettings, resumed: Resumed, signals: StopSignals) -> None:
    """Let a training save its state from now on, in the middle of an epoch too. All ranks must call it together.

    Args:
        run: The training.
        settings: Settings of the run.
        resumed: Where it starts.
        signals: Signals that stop it.

    Raises:
        RunError: The ranks do not train the same.
    """
    agreement = Agreement(signals, run.device, run.args.rank, run.args.world_size)
    agreement.refuse_differences(same_on_all_ranks(run, resumed))
    run.saving = Saving(agreement, settings.checkpoint_minutes, getattr(run.args, 'recovery_interval', 0))


def end_stopped(run: Training, settings: RunSettings, error: Stopped) -> None:
    """End this process after a signal stopped the training, and say how it goes on.

    Raises:
        SystemExit: Always; the exit code is 128 and the number of the signal.
    """
    if run.outputs is not None:
        run.outputs.saver.wait()
        _say_stopped(run, settings, error)
    run.saving.agreement.wait_until_saved()
    raise SystemExit(error.exit_code)


def _say_stopped(run: Training, settings: RunSettings, error: Stopped, lost: str = '') -> None:
    outputs: Any = run.outputs
    saved = lost or outputs.saver.errors.last or 'everything is saved.'
    _logger.info(f'Stopped by {error.name}; {saved}{resume_hint(settings)}')


def _end_halted(run: Training, signum: int, ranks: Any) -> None:
    """What rank 0 does, in a thread, before all ranks end though a step is not finished; None of known `ranks`."""
    outputs, error = run.outputs, Stopped(signum)
    outputs.saver.wait()
    note_own(outputs.record, run.epoch, run.train_loader, run.eval_loader)
    lost = '' if ranks else ('some ranks have no data, and others wait for them on their devices: what was trained '
                             'since the last checkpoint is lost.')
    _say_stopped(run, outputs.record.settings, error, lost)
    set_stopped(outputs.record.settings, error.name)
