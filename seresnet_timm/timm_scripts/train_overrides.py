"""Names of timm's train.py that are replaced, and why: see `overrides`"""
import logging
import math
import time
from collections import OrderedDict
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
import yaml
from timm import utils
from timm.data import resolve_data_config
from timm.task import TrainingTask
from torch.utils.data import Dataset

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_once
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.data import loading
from seresnet_timm.data.loaders import seed_sampler, start_workers
from seresnet_timm.data.position import end_workers, make_restartable, make_resumable
from seresnet_timm.data.trivial_augment import create_loader
from seresnet_timm.engine import evaluate
from seresnet_timm.engine.bad_steps import check_epoch
from seresnet_timm.engine.divergence import diverged, refuse_infinite_loss, refuse_infinite_weights
from seresnet_timm.engine.epoch import Training
from seresnet_timm.engine.epoch_end import end_epoch
from seresnet_timm.engine.faults import note_all, noted
from seresnet_timm.engine.forward import Forward
from seresnet_timm.engine.model import distribute, freeze_and_halve, load_initial_weights, pretrained_arguments
from seresnet_timm.engine.model_info import check_planned_classes, model_info_of, refuse_other_classes
from seresnet_timm.engine.outputs import Outputs, open_outputs
from seresnet_timm.engine.patience import EndedEarly
from seresnet_timm.engine.progress import create_progress
from seresnet_timm.engine.run_state import Place, run_state, state_of_rank
from seresnet_timm.engine.saving import begin_saving, end_stopped
from seresnet_timm.engine.signals import Stopped, StopSignals
from seresnet_timm.engine.teacher import load_teacher, set_normalization
from seresnet_timm.errors import print_closing
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step import fast as fast_step
from seresnet_timm.step import heartbeat
from seresnet_timm.step import loss_scaler as loss_scalers
from seresnet_timm.step.bad_steps import BadSteps
from seresnet_timm.timm_scripts.overrides import Override, Overrides, replace_names
from seresnet_timm.timm_scripts.training import ModelState, NoScheduler, ScriptTraining, StepMeter, go_on

_logger = logging.getLogger('train')


class TrainOverrides(Overrides):
    """Replacements in train.py."""

    def __init__(self, settings: RunSettings):
        super().__init__(settings)
        self._model: Optional[torch.nn.Module] = None
        self._dataset: Optional[Dataset] = None
        self._evaluates = False  # the script evaluates after epochs: its last random state is that after evaluation
        self._figures: Optional[Dict[str, Any]] = None  # of the last epoch, until they are in the record
        self._trained = 0.  # time at which its training ended
        self._interrupted = False
        self._eval_loss = 0.  # of the last evaluation
        self._checkpoint: Optional[Checkpoint] = None  # to resume from, until training starts
        self._epoch = 0
        self._training: Any = None  # ScriptTraining, from the first epoch on
        self._outputs: Optional[Outputs] = None  # on rank 0
        self._open = ExitStack()  # from the first epoch on: signals, bars, faults of the data
        self._loaders: List[Any] = []
        self._ranks: Any = None  # states of all ranks, at the end of the epoch
        self._num_epochs = 0
        self._train_metrics: Dict[str, float] = {}
        self._eval_metrics: Optional[Dict[str, float]] = None
        self._lr = 0.

    @property
    def _record(self) -> Optional[RunRecord]:
        return self._outputs.record if self._outputs else None

    def names(self) -> Dict[str, Override]:
        return {name: Override('main', replacement) for name, replacement in (
            ('_parse_args', self.parse_args),
            ('create_model', self.create_model),
            ('create_dataset', self.create_dataset),
            ('create_loader', self.create_loader),
            ('create_optimizer_v2', self.create_optimizer),
            ('create_scheduler_v2', self.create_scheduler),
            ('utils.CheckpointSaver', self.create_saver),
            ('utils.update_summary', self.update_summary),
            ('train_one_epoch', self.train_one_epoch),
            ('validate', self.validate),
            ('json.dumps', self.as_json),
        )} | {'utils.dispatch_clip_grad': Override('train_one_epoch', self.dispatch_clip_grad)}

    def install(self, module: ModuleType) -> None:
        super().install(module)
        tasks = {name: value for name, value in vars(module).items()
                 if isinstance(value, type) and issubclass(value, TrainingTask)}
        replace_names(module, {name: self.task_class(cls) for name, cls in tasks.items()})
        module.print = print_closing  # it prints its results only (line 1173)

    def parse_args(self) -> Tuple[Any, str]:
        """Take the flags from the settings (`_parse_args`, line 443).

        Without: every rank would read the command line and the config file again.
        Checked by: test_runs.py, a run under flags that `sys.argv` does not have.
        """
        return self.args, yaml.safe_dump(vars(self.args), default_flow_style=False)

    def create_model(self, model_name: str, *args, **kwargs) -> torch.nn.Module:
        """As for both scripts, from checkpoints of other tools too, and with fp16 weights for O2 (line 519).

        `--initial-checkpoint` and `--pretrained-path` take what they take in the bundled script; `--amp-level O2` has
        float32 masters.
        Without: O1 (autocast) only; timm leaves out weights whose names have a prefix, and `--pretrained-path` without
        `--pretrained`.
        Checked by: test_half_weights.py runs both scripts with it; test_runs.py starts from a file with a prefix.
        """
        kwargs.update(pretrained_arguments(self.settings, self.args, self.checkpoints))
        initial = kwargs.pop('checkpoint_path', None)
        self._model = super().create_model(model_name, *args, **kwargs)
        load_initial_weights(self._model, initial, self.args, self.checkpoints)
        freeze_and_halve(self._model, self.settings)
        return self._model

    def create_loader(self, dataset: Dataset, *args, is_training: bool = False, **kwargs) -> Any:
        """Create a loader that decodes fast, shuffles by `--seed`, and starts its workers early (lines 788 and 823).

        Without: two to three times the time for an image, and a resumed run augments differently; runs of different
        seeds on several processes see the images in the same order, as timm leaves the seed of its DistributedSampler
        at 0; about once in a hundred runs on gloo a worker deadlocks, see `loaders.start_workers`.
        Checked by: test_runs.py and test_fast_jpeg.py, equal losses with the bundled script.
        """
        if is_training:
            check_planned_classes(self.settings, dataset)
            if self.args.resume:
                refuse_other_classes(self._resumed(), dataset, self.args)
            self._dataset = dataset
        loader = create_loader(
            self._decode_fast(dataset, is_training), *args, is_training=is_training, **self.normalization(kwargs))
        if is_training:
            loader = seed_sampler(loader, self.args.seed)
        loader = loading.seed_and_speed_up(loader, self.args.seed)
        loader = (make_resumable if is_training else make_restartable)(loader, kwargs['device'])
        self._loaders.append(loader)
        # the shuffle depends on the epoch, and a run that resumes learns its first one only later
        knows_epoch = not self.args.resume and not self.args.start_epoch
        has_evaluated = not is_training and self._resumed_state().get('has_evaluated', False)
        if not self.args.distributed and not has_evaluated or is_training and not knows_epoch:
            return loader
        return start_workers(loader, keep_rng=not is_training, draws=not has_evaluated)

    def create_optimizer(self, model: torch.nn.Module, **kwargs) -> torch.optim.Optimizer:
        """Use torch's fused optimizers, where `step.fast` says so (line 916).

        Without: the step is slower; nothing is wrong.
        Checked by: test_fast_step.py, the optimizer of timm's script.
        """
        return fast_step.create_optimizer(model, fast=self.settings.fast_step, **kwargs)

    def create_scheduler(self, *args, **kwargs) -> Tuple[Any, int]:
        """Keep the learning rate with `--sched none` (line 1024).

        Without: an AttributeError, as the script asks a scheduler that does not exist in which units it steps.
        Checked by: test_runs.py, a run with `--sched none`.
        """
        scheduler, num_epochs = self._originals['create_scheduler_v2'](*args, **kwargs)
        self._num_epochs = num_epochs
        return scheduler or NoScheduler(), num_epochs

    def task_class(self, cls: type) -> type:
        """Prepare a task for several processes on any device (line 972), and make a loss of no finite number show.

        DDP takes no device ids on the CPU; it gets gradients as views of its buckets, and exchanges fp16 gradients of
        fp16 weights.
        Without: `--device cpu` on several processes ends with a ValueError of DDP; an infinite loss can have finite
        gradients, and ranks skip different steps.
        Checked by: test_runs.py, a run of two processes; test_training.py, bad steps.
        """
        overrides = self

        def __init__(self, *args, **kwargs):
            overrides.load_teacher(kwargs)
            super(replaced, self).__init__(*args, **kwargs)
            if 'teacher_model' in kwargs:
                set_normalization(self, overrides.data_config(), int(overrides._model.in_chans))

        def prepare_distributed(self, device_ids=None, **ddp_kwargs):
            distribute(overrides.settings, self, self.device, super(replaced, self).prepare_distributed, **ddp_kwargs)
            return self

        def forward(self, *args, **kwargs):
            result = super(replaced, self).forward(*args, **kwargs)
            heartbeat.mark()
            return {**result, 'loss': BadSteps.poison(result['loss'])}
        replaced = type(cls.__name__, (cls,), {
            '__init__': __init__, 'prepare_distributed': prepare_distributed, 'forward': forward,
            '__module__': __name__})
        return replaced

    def load_teacher(self, kwargs: Dict[str, Any]) -> None:
        """Make the teacher of a task as the bundled script does: from a file, a run or the Hub too (line 871).

        Without: names of timm with pretrained weights only, which every rank downloads for itself; the teacher gets
        images in another normalization than its own where --mean or --std differ from the student's default.
        Checked by: test_teacher.py, equal losses of both scripts.
        """
        if isinstance(kwargs.get('teacher_model'), str):
            teacher = load_teacher(
                kwargs['teacher_model'], self.settings.teacher_folder, self.checkpoints, kwargs['student_model'])
            kwargs['teacher_model'] = teacher.for_task(
                int(self._model.in_chans), kwargs['device'], kwargs.get('dtype'))

    def data_config(self) -> Dict[str, Any]:
        return resolve_data_config(vars(self.args), model=self._model)

    def create_saver(
            self, *, model, optimizer, args, checkpoint_dir, task=None, model_ema=None, **kwargs) -> '_Saver':
        """Save atomically, continue the history of the run's own folder, and keep its run.json (line 994).

        Without: a crash or a full disk while saving can lose `last` and `model_best`, as timm unlinks them before it
        renames; a resumed run replaces `model_best` by a worse one; no run.json.
        Checked by: test_checkpoints.py kills a saving process; test_runs.py resumes a run.
        """
        saver = _Saver(
            self, model=model, optimizer=optimizer, args=args, checkpoint_dir=checkpoint_dir,
            task=task or ModelState(model, model_ema),  # up to v1.0.26 the script hands over no task
            **kwargs,
        )
        info = model_info_of(self._model, self.data_config(), self._dataset)
        checkpoint = self._resumed() if args.resume else None
        start_epoch = args.start_epoch
        if start_epoch is None:
            start_epoch = checkpoint.epochs or 0 if checkpoint else 0
        self._outputs = open_outputs(self.settings, saver, info, checkpoint, start_epoch)
        return saver

    def update_summary(self, epoch, train_metrics, eval_metrics, filename, write_header=None, **kwargs) -> None:
        """Write one header into summary.csv, and a row later if it cannot be written now (line 1131).

        Without: a resumed run writes a second one, as the script asks for one where it has no best metric yet; a full
        disk ends the run.
        Checked by: test_runs.py resumes a run; test_resources.py.
        """
        self._outputs.summary.add(
            filename=filename, epoch=epoch, train_metrics=train_metrics, eval_metrics=eval_metrics, **kwargs)

    def train_one_epoch(self, epoch, model, loader, optimizer, args, *, device, output_dir, **kwargs):
        """Train from where the run goes on, save and stop between steps, skip bad ones, measure images/s (line 1183).

        Without: a resumed epoch starts again, and draws other numbers, e.g. for dropout; a signal saves nothing; a loss
        of NaN makes the weights NaN; no FPS for the results table and the final lines.
        Checked by: test_training.py resumes runs and has bad steps; test_recipes.py reads the figures.
        """
        self._add_epoch()
        if self._training is None:
            self._training = self._start(epoch, model, loader, optimizer, device, kwargs)
        if loading.is_fast(loader.dataset):
            loading.set_epoch(loader, epoch)
        if 'saver' in kwargs:
            kwargs['saver'] = None  # recovery files need the states of all ranks: `Saving` writes them

        def train(epoch_loader: Any, guarded_optimizer: Any, loss_scaler: Any) -> Dict[str, float]:
            return self._originals['train_one_epoch'](
                epoch, model, epoch_loader, guarded_optimizer, args, device=device, output_dir=output_dir,
                **{**kwargs, 'loss_scaler': loss_scaler})
        with self._interruptible():
            metrics, figures = self._training.train_epoch(epoch, train)
        if not math.isfinite(metrics['loss']):  # of all ranks
            raise diverged(self._record, f"The loss is {metrics['loss']} in epoch {epoch}")
        if not self.args.val_split:
            check_epoch(self._training.run, epoch, None)
            refuse_infinite_weights(self._record, model, epoch, None)
        self._figures = figures if output_dir is not None else None  # the primary process
        self._train_metrics, self._eval_metrics, self._lr = metrics, None, self._training.run.lr
        self._trained = time.perf_counter()
        if not self._evaluates:
            self._gather(epoch)
        self._epoch = epoch
        return OrderedDict(metrics)

    def dispatch_clip_grad(self, *args, **kwargs) -> None:
        """Look at the gradients before they are clipped (line 1263).

        Without: clipped gradients are finite, and a step that should be skipped is taken.
        Checked by: test_training.py, bad steps with --clip-grad.
        """
        self._training.optimizer.look()
        utils.dispatch_clip_grad(*args, **kwargs)

    def validate(self, model, loader, loss_fn, args, device, log_suffix='', **_precision):
        """Evaluate with the package's loop: every image once on any number of ranks (lines 1382-1469).

        Without: top-1 depends on the number of processes, as the script averages the ranks' averages and counts the
        images that pad uneven ranks twice; the host waits for the device every batch.
        Checked by: test_runs.py, equal results with the bundled script on one and two processes.
        """
        run = self._training.run
        run.eval_loader = loader
        with self._interruptible():
            metrics, unreadable = evaluate.validate(model, loader, run.forward, args, log_suffix, run=run)
        note_all(self._record, self._epoch, loader)
        self._eval_loss, self._eval_metrics = metrics['loss'], metrics
        check_epoch(run, self._epoch, metrics)
        refuse_infinite_weights(self._record, model, self._epoch, metrics)
        if self._figures is not None:
            self._figures['unreadable_val'] = unreadable
        if log_suffix or not run.task.has_ema() or args.model_ema_force_cpu:  # the last evaluation of the epoch
            self._evaluates = run.has_evaluated = True
            self._gather(self._epoch)
        return metrics

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except EndedEarly:
            raise
        except KeyboardInterrupt:  # in a thread that is not the main one
            self._interrupted = True
            raise

    def _start(self, epoch, model, loader, optimizer, device, kwargs: Dict[str, Any]) -> ScriptTraining:
        """Begin to train, at the place where the run goes on; `kwargs` are those of the script's train_one_epoch."""
        args, task = self.args, kwargs.get('task')
        if task is None or 'model_ema' in kwargs:  # up to v1.0.26 the task has no moving average
            task = ModelState(model if task is None else task.get_trainable_module(), kwargs.get('model_ema'))
        run = Training.of(
            self.settings, args, forward=Forward.from_args(args, device), task=task, optimizer=optimizer,
            train_loader=loader, loss_scaler=kwargs.get('loss_scaler'), lr_scheduler=kwargs.get('lr_scheduler'),
            outputs=self._outputs)
        resumed = go_on(run, self._resumed() if args.resume else None, epoch)
        self._checkpoint = None
        begin_saving(run, self.settings, resumed, self._open.enter_context(StopSignals()))
        run.progress = create_progress(run, self.settings, self._num_epochs)
        self._open.enter_context(run.progress.shown(len(loader), resumed.place))
        self._open.enter_context(noted(run))
        return ScriptTraining(run, resumed)

    def _resumed(self) -> Checkpoint:
        if self._checkpoint is None:
            self._checkpoint = read_once(self.args.resume, self.checkpoints)
        return self._checkpoint

    def _resumed_state(self) -> Dict[str, Any]:
        return self._resumed().run_state if self.args.resume and not self.args.no_resume_opt else {}

    def _gather(self, epoch: int) -> None:
        """Keep what all ranks have for themselves at the end of an epoch."""
        run = self._training.run
        self._ranks = run.saving.agreement.gather(state_of_rank(run, Place(epoch + 1)))

    def run_state(self, epoch: int, metric: Optional[float]) -> Dict[str, Any]:
        """What a checkpoint needs for an exact resume beside weights and optimizer."""
        return run_state(self._training.run, Place(epoch + 1), self._ranks, metric=metric)

    def before_saving(self) -> None:
        """Note the epoch, as its checkpoint holds the record too."""
        if self._figures is not None:
            self._figures['eval_seconds'] = round(time.perf_counter() - self._trained, 3)
            self._record.add_epoch(self._figures)

    def saved(self, epoch: int, best_metric: Optional[float], best_epoch: Optional[int]) -> None:
        """Complete the record of an epoch whose checkpoint has been saved."""
        self._figures['eval_seconds'] = round(time.perf_counter() - self._trained, 3)
        if best_metric is not None:
            self._record.set_best(self._training.run.eval_metric, best_metric, best_epoch)
        self._add_epoch()
        self._training.run.saving.after_epoch()

    def _add_epoch(self) -> None:
        if self._figures is not None:
            figures, self._figures = self._figures, None
            end_epoch(
                self._training.run, self._epoch, self._train_metrics, self._eval_metrics, figures, self._lr)

    def is_finite(self) -> bool:
        """Whether the last evaluation has a finite loss; otherwise its epoch is never the best."""
        return math.isfinite(self._eval_loss)

    def run(self, main: Callable[[], None]) -> None:
        with self._open:
            try:
                with suppress(EndedEarly):  # which the script may not take for its end
                    main()
                self._finish()
            except Stopped as e:
                end_stopped(self._training.run, self.settings, e)
            finally:
                end_workers(*self._loaders)

    def _finish(self) -> None:
        if self._outputs is not None:
            self._outputs.saver.wait()  # the record and the exit code tell of the last save too
        self._add_epoch()
        if self._interrupted:  # the script's `main` returns after Ctrl-C too
            raise KeyboardInterrupt
        if self._outputs is not None:
            self._outputs.finish()
            self._outputs.refuse_unsaved()
        refuse_infinite_loss(self._record, self._eval_loss)

    # called by patched code

    @property
    def batches_done(self) -> int:
        """Batches of the epoch that a run before this one has done."""
        return self._training.epoch.batches

    def device_meter(self, device: torch.device) -> StepMeter:
        return StepMeter(device, self._training.epoch)

    def scales_loss(self, device: torch.device) -> bool:
        return device.type != 'cpu' or self.settings.loss_scale is not None

    def create_loss_scaler(self, device: torch.device):
        return loss_scalers.create_loss_scaler(
            device, amp=True, amp_dtype='float16', loss_scale=self.settings.loss_scale)[0]


class _Saver(AtomicCheckpointSaver):
    """The package's saver, which reports to the overrides of the run."""

    def __init__(self, overrides: TrainOverrides, **kwargs):
        super().__init__(**kwargs)
        self._overrides = overrides

    def save_checkpoint(self, epoch: int, metric: Optional[float] = None):
        self.run_state = self._overrides.run_state(epoch, metric)
        self._overrides.before_saving()
        best = super().save_checkpoint(epoch, metric if self._overrides.is_finite() else math.nan)
        self._overrides.saved(epoch, *best)
        return best
