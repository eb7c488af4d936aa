"""The state of a training between two updates: what a checkpoint holds so that a run goes on where it was

Weights, optimizer, loss scaler, moving average and best metric are timm's entries of a checkpoint. `run_state` has the
rest: the place in the epoch, and what each rank has for itself, its random generators first of all.
"""
import logging
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from timm import utils
from timm.scheduler import PlateauLRScheduler
from timm.task import resume_task_checkpoint

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import weights_for
from seresnet_timm.data.image_files import Unreadable, image_files_of, images_of
from seresnet_timm.data.loading import is_fast
from seresnet_timm.data.position import resumable
from seresnet_timm.data.random_state import set_own_state
from seresnet_timm.engine.epoch import Training
from seresnet_timm.engine.kept import Kept
from seresnet_timm.engine.meters import mean_losses
from seresnet_timm.errors import UsageError, counted, first_line
from seresnet_timm.step.bad_steps import BadSteps, Figures
from seresnet_timm.step.moving_average import copy_counters_at_once

_logger = logging.getLogger('train')
# flags that each node gets on its own command line, and with which ranks would compute different things
SAME_ON_ALL = (
    'num_classes', 'batch_size', 'grad_accum_steps', 'epochs', 'seed', 'opt', 'lr', 'lr_base', 'sched', 'warmup_epochs',
    'weight_decay', 'clip_grad', 'model_ema', 'sync_bn', 'amp', 'amp_dtype', 'aug_repeats')
PLATEAU = ('best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch')


@dataclass(frozen=True)
class Place:
    """Where a run goes on.

    Attributes:
        epoch: Number of the epoch.
        batches: Batches of it that are done, on every rank.
        is_trained: All of them are; its evaluation is next.
    """
    epoch: int = 0
    batches: int = 0
    is_trained: bool = False

    @property
    def is_within_epoch(self) -> bool:
        return self.is_trained or self.batches > 0

    def __str__(self) -> str:
        if self.is_trained:
            return f'the evaluation of epoch {self.epoch}'
        return f'batch {self.batches} of epoch {self.epoch}' if self.batches else f'epoch {self.epoch}'


# --- saving -----------------------------------------------------------------------------------------------------------

def state_of_rank(
        run: Training,
        place: Place,
        losses: Optional[Any] = None,
        with_buffers: bool = False,
        kept: Optional[Kept] = None,
) -> Dict[str, Any]:
    """What this rank has for itself.

    Args:
        run: The training.
        place: Where a later run goes on.
        losses: LossMeter of an epoch that is not over.
        with_buffers: Also where those in the checkpoint are this rank's.
        kept: What it had for itself at the place, where the next step has begun.
    """
    args = run.args
    files = image_files_of(getattr(run.train_loader, 'dataset', None))
    then = kept or Kept(run, place, losses, with_buffers=False)
    state = dict(
        rng=then.rng,
        loader=then.loader,
        losses=then.losses(),
        optimizer=_generators(run.optimizer),
        buffers=None,
        ema_buffers=None,
        bad_steps=None if run.bad_steps is None else run.bad_steps.state_dict(),
        figures=None if run.figures is None else list(run.figures),
        unreadable=None if files is None else files.unreadable(),
    )
    if args.rank > 0 or with_buffers and args.distributed:  # the checkpoint has those of rank 0
        if args.no_ddp_bb or not place.batches:
            state['buffers'] = kept.buffers() if kept else _buffers(run.task.get_trainable_module())
        if run.task.has_ema():
            state['ema_buffers'] = _buffers(run.task.get_trainable_module(ema=True))
    return state


def run_state(run: Training, place: Place, ranks: List[Dict[str, Any]], **more: Any) -> Dict[str, Any]:
    """`run_state` of a checkpoint.

    Args:
        run: The training.
        place: Where a later run goes on.
        ranks: `state_of_rank` of every rank.
        more: Further entries: `metric`, `throughput`, `trained`.
    """
    args = run.args
    state = dict(
        epoch=place.epoch, batches=place.batches, is_trained=place.is_trained,
        world_size=args.world_size, batch_size=args.batch_size,
        seed=args.seed, images=images_of(run.train_loader.dataset),
        rng=[r['rng'] for r in ranks],
        ranks=[{k: v for k, v in r.items() if k != 'rng'} for r in ranks],
        schedule=_schedule(run),
        has_evaluated=run.has_evaluated,
        metric=None, throughput=None, trained=None,
    )
    return dict(state, **more)


def _buffers(module: Any) -> Dict[str, torch.Tensor]:
    return {k: v.detach().cpu().clone() for k, v in utils.unwrap_model(module).named_buffers()}


def _generators(optimizer: Any) -> Dict[str, torch.Tensor]:
    """Random generators of an optimizer, which its state dict leaves out (Adahessian)."""
    optimizer = getattr(optimizer, '_base_optimizer', optimizer)
    return {k: v.get_state() for k, v in vars(optimizer).items() if isinstance(v, torch.Generator)}


def _schedule(run: Training) -> Optional[Dict[str, Any]]:
    """State of a schedule that depends on the metrics so far; others depend on the number of the epoch or update."""
    scheduler = run.lr_scheduler
    if not isinstance(scheduler, PlateauLRScheduler):
        return None
    return dict(
        {k: getattr(scheduler.lr_scheduler, k) for k in PLATEAU},
        restore_lr=scheduler.restore_lr,
        lrs=[group['lr'] for group in run.optimizer.param_groups],
    )


# --- continuing -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Resumed:
    """The state of a run that goes on.

    Attributes:
        place: Where.
        state: `run_state` of the checkpoint; {} where it has none.
        is_exact: The run has as many ranks as the one that saved.
    """
    place: Place
    state: Dict[str, Any]
    is_exact: bool

    def of_rank(self, rank: int) -> Dict[str, Any]:
        """`state_of_rank` of a rank, without `rng`; {} if the ranks are others, or the file is from before."""
        ranks = self.state.get('ranks')
        return ranks[rank] if ranks and self.is_exact else {}

    def start_of(self, epoch: int, rank: int, world_size: int) -> Optional[Dict[str, Any]]:
        """What an epoch that was begun before goes on with, for `train_one_epoch`; None for another epoch."""
        if epoch != self.place.epoch or not self.place.is_within_epoch:
            return None
        ranks = self.state['ranks']
        losses = ranks[rank]['losses'] if self.is_exact else mean_losses([r['losses'] for r in ranks], world_size)
        return dict(self.state, batches=self.place.batches, losses=losses)

    def trained_epoch(self, epoch: int) -> Optional[Tuple[Dict[str, float], Dict[str, Any]]]:
        """Metrics and figures of an epoch whose batches were all done before; None for another epoch."""
        if epoch != self.place.epoch or not self.place.is_trained:
            return None
        trained = self.state['trained']
        unreadable = trained['figures']['unreadable_train']
        return trained['metrics'], dict(
            trained['figures'], unreadable_train=Unreadable(**unreadable) if unreadable else None)


def resume_from(checkpoint: Optional[Checkpoint], run: Training, resume_epoch: Optional[int]) -> Resumed:
    """Where a run goes on, by its checkpoint and its flags, said in a log line where it is in the middle of an epoch.

    Args:
        checkpoint: The checkpoint to resume from, if any.
        run: The training.
        resume_epoch: Epoch that timm reads from the checkpoint.
    """
    args = run.args
    epoch = args.start_epoch if args.start_epoch is not None else resume_epoch or 0
    state = {} if checkpoint is None or args.no_resume_opt else checkpoint.run_state
    run.has_evaluated = state.get('has_evaluated', False)
    if not state:
        return Resumed(Place(epoch), {}, False)
    is_exact = state['world_size'] == args.world_size
    place = Place(state['epoch'], state.get('batches', 0), state.get('is_trained', False))
    notes = []
    if not is_exact:
        notes.append(f'Random state not restored: saved by '
                     f'{counted(state["world_size"], "process", "processes")}, this run has '
                     f'{args.world_size}. ' + (
                         'Order and augmentation of the images are the same; dropout, drop-path, mixup and cutmix '
                         'draw other numbers.' if is_fast(run.train_loader.dataset) and not args.aug_repeats else
                         "Images are augmented with other random numbers, as timm's own loading draws them in every "
                         'process.'))
    if epoch != place.epoch:
        place = Place(epoch)  # --start-epoch
    elif place.batches and not place.is_trained and resumable(run.train_loader) is None:
        place = Place(epoch)
        notes.append(f'This dataset has no positions: epoch {epoch} starts at its first images again.')
    elif place.is_within_epoch:
        others = _other_images(state, run)
        place, note = _same_images(place, state, args)
        if others and not place.is_trained:
            place, note = Place(epoch), f'Epoch {epoch} starts again, as its order of the images is another.'
        notes += [*others, note, f'Going on with {place}.']
    else:
        notes += _other_images(state, run)
    if utils.is_primary(args):
        for note in filter(None, notes):
            _logger.info(note)
    return Resumed(place, state, is_exact)


def same_on_all_ranks(run: Training, resumed: Resumed) -> Dict[str, Any]:
    """What must be equal on all ranks, by names for a sentence."""
    images = images_of(getattr(run.train_loader, 'dataset', None)) or {}
    flags = {f'--{name.replace("_", "-")}': getattr(run.args, name, None) for name in SAME_ON_ALL}
    flags['--model'] = str(run.args.model).rpartition('/')[2]  # of a folder that may be another one on each node
    return {'its start at': str(resumed.place), 'training images': images.get('count'),
            'their names (hash)': str(images.get('names'))[:8], **flags}


def _other_images(state: Dict[str, Any], run: Training) -> List[str]:
    """Why the images of this run come in another order than those of the run that saved, each a sentence."""
    notes, seed = [], run.args.seed
    if state.get('seed', seed) != seed:
        notes.append(f'The run before had --seed {state["seed"]}, this one has --seed {seed}.')
    before, now = state.get('images'), images_of(run.train_loader.dataset)
    if before and now and before != now:
        count = f'{now["count"]} instead of {before["count"]}' if before['count'] != now['count'] else 'other names'
        notes.append(f'The training images are not those of the run before ({count}).')
    return notes


def _same_images(place: Place, state: Dict[str, Any], args) -> Tuple[Place, str]:
    """The place for another batch size, number of ranks or of accumulated batches: images that are done stay done."""
    old, new = state['batch_size'] * state['world_size'], args.batch_size * args.world_size
    batches = place.batches * old // new
    batches -= batches % args.grad_accum_steps
    if place.is_trained or batches == place.batches and old == new:
        return place, ''
    if args.train_img_sizes and args.train_batch_sizes:
        return Place(place.epoch), ('Batches have other sizes than in the run before, so that the place in the epoch '
                                    'is not known: it starts again.')
    again = place.batches * old - batches * new
    note = f'{again} images are trained on again' if again else 'every image is trained on once'
    return Place(place.epoch, batches), f'Batches have {new} images instead of {old}: {note}.'


def restore_loader(run: Training, resumed: Resumed) -> None:
    """Let the loader start at the place. Before its workers start, and last of all that draws random numbers."""
    args, place, state = run.args, resumed.place, resumed.state

    def restore_rng() -> None:
        set_own_state(state['rng'][args.rank], run.device)
    own, loader = resumed.of_rank(args.rank), resumable(run.train_loader)
    knows_epoch = state.get('epoch') == place.epoch
    if resumed.is_exact and (not place.batches or place.is_trained or loader is None):
        restore_rng()
    if loader is None:
        return
    batches = 0 if place.is_trained else place.batches
    if own and own['loader'] is not None and knows_epoch:
        note = loader.resume(own['loader'], batches, restore_rng)
        if note and utils.is_primary(args):
            _logger.warning(note)
    elif batches:
        ranks = state.get('ranks')
        order = (ranks[0]['loader'] or {}).get('order') if ranks and knows_epoch else None
        loader.skip(batches, order)


def restore_rank(run: Training, resumed: Resumed) -> None:
    """Restore what a rank has for itself, in the model as it is prepared for several processes, and the optimizer."""
    own = resumed.of_rank(run.args.rank)
    for key, module in (('buffers', run.task.get_trainable_module()),
                        ('ema_buffers', run.task.get_trainable_module(ema=True))):
        if own.get(key) and module is not None:
            buffers = dict(utils.unwrap_model(module).named_buffers())
            for name, value in own[key].items():
                buffers[name].copy_(value)
    optimizer = getattr(run.optimizer, '_base_optimizer', run.optimizer)
    for name, state in (own.get('optimizer') or {}).items():
        getattr(optimizer, name).set_state(state)


def restore_counts(run: Training, resumed: Resumed) -> None:
    """Go on to count steps that were skipped, the same ones on every rank, and images that could not be read."""
    ranks, place = resumed.state.get('ranks'), resumed.place
    if not ranks or resumed.state['epoch'] != place.epoch:
        return
    state = ranks[0].get('bad_steps')
    if state is not None:
        module: Any = run.task.get_trainable_module()
        run.bad_steps = BadSteps(module, run.optimizer, run.device, run.loss_scaler)
        run.bad_steps.load_state_dict(state)
        run.figures = Figures(*ranks[0]['figures']) if ranks[0].get('figures') else None
    files = image_files_of(getattr(run.train_loader, 'dataset', None))
    found = [resumed.of_rank(run.args.rank)] if resumed.is_exact else ranks
    indices = sorted({i for rank in found for i in rank.get('unreadable') or ()})
    if files is not None and indices and place.batches and not place.is_trained:
        files.add_unreadable(indices)


def restore_schedule(run: Training, resumed: Resumed) -> None:
    """Bring the schedule to the place."""
    scheduler, place, args = run.lr_scheduler, resumed.place, run.args
    if scheduler is None:
        return
    saved = resumed.state.get('schedule')
    if isinstance(scheduler, PlateauLRScheduler) and saved and resumed.state['epoch'] == place.epoch:
        for key in PLATEAU:
            setattr(scheduler.lr_scheduler, key, saved[key])
        scheduler.restore_lr = saved['restore_lr']
        for group, lr in zip(run.optimizer.param_groups, saved['lrs']):
            group['lr'] = lr
        if not place.is_within_epoch:
            scheduler.step(place.epoch, resumed.state['metric'])  # saved before this step
        return
    updates = place.epoch * run.updates_per_epoch + place.batches // args.grad_accum_steps
    if place.is_trained:
        updates = (place.epoch + 1) * run.updates_per_epoch
    if args.sched_on_updates:
        if updates:
            scheduler.step_update(updates)
    elif place.epoch > 0:
        scheduler.step(place.epoch)


def resume(checkpoint: Checkpoint, task, optimizer, loss_scaler, args) -> Optional[int]:
    """Load weights, optimizer and loss scaler of a run; the epoch to continue with."""
    try:
        return resume_task_checkpoint(
            task,
            checkpoint.path,
            optimizer=None if args.no_resume_opt else optimizer,
            loss_scaler=None if args.no_resume_opt else loss_scaler,
            log_info=utils.is_primary(args),
        )
    except (ValueError, KeyError) as e:
        what = ('has other parameter groups than this run' if 'group' in str(e) else f'is not one of --opt {args.opt}')
        raise UsageError(f'The optimizer state in {checkpoint.path} {what} ({first_line(e)}): give the flags of that '
                         'run, or leave its state out with --no-resume-opt.')


def set_up_ema(checkpoint: Optional[Checkpoint], task, args) -> None:
    """Start the moving average of the weights: at those of the checkpoint to resume from, if there is one."""
    task.setup_ema(
        decay=args.model_ema_decay,
        use_warmup=args.model_ema_warmup,
        device='cpu' if args.model_ema_force_cpu else None,
    )
    copy_counters_at_once(task.get_trainable_module(ema=True))
    if checkpoint:
        state = 'task_state_ema' if checkpoint.has_ema else 'task_state'
        task.load_checkpoint_state(
            weights_for(checkpoint, task.get_eval_model(ema=True), use_ema=True), checkpoint.content.get(state),
            ema=True)
