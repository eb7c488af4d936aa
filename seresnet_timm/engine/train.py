"""Train an image classifier: the package's own train.py, for where timm's is not at hand

Same flags, log lines and outputs as timm's train.py (`args.yaml`, `summary.csv`, `checkpoint-N.pth.tar`,
`last.pth.tar`, `model_best.pth.tar`), plus `run.json`. What it does differently:
  * losses stay on the device until a log line needs them: the host does not wait for the device every step
  * evaluation counts every image once on any number of processes
  * DDP works on the CPU; the shuffle of several processes follows --seed
  * of a JPEG only what its crop needs is decoded; augmentation depends on seed, epoch and index alone, see `data/`
  * a run resumed into its own folder keeps its best metric, its history and one CSV header, and goes on with the
    random state it had
  * a loss that is no longer finite ends the run before anything is saved

Usage:
    seresnet-timm train --data-dir ImageNet --model seresnet50_ascend -b 128 --amp
    torchrun --nproc-per-node 8 -m seresnet_timm train --data-dir ImageNet --model seresnet50_ascend -b 128 --amp
"""
import copy
import importlib.util
import json
import logging
import math
import os
import time
from collections import OrderedDict
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Dict, Optional, Sequence

import torch
import torch.nn as nn
import torchvision
from timm import utils
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import safe_model_name
from timm.optim import optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils.summary import trim_summary

import seresnet_timm
from seresnet_timm import device as devices
from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.random_state import capture_rng, restore_rng
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.data import loaders
from seresnet_timm.data.classes import names_of_dataset
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.data.loading import set_epoch
from seresnet_timm.engine.evaluate import evaluate
from seresnet_timm.engine.flags import train_parser
from seresnet_timm.engine.meters import LossMeter, Throughput, describe_wait
from seresnet_timm.engine.progress import progress_bar
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.hub.pull import folder_of
from seresnet_timm.launch.config_file import parse_args
from seresnet_timm.models.create import create_from_args
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs import record as run_record
from seresnet_timm.step import fast as fast_step
from seresnet_timm.step import loss_scaler as devices_loss_scaler
from seresnet_timm.step.half_weights import exchange_in_half, use_half_weights
from seresnet_timm.step.learning_rate import scaled_lr

_logger = logging.getLogger('train')


def main(
        argv: Optional[Sequence[str]] = None,
        plan: Optional[Dict[str, Any]] = None,
        loss_scale: Optional[float] = None,
        half_weights: bool = False,
        fast_jpeg: str = 'auto',
) -> None:
    """Run a training.

    Args:
        argv: Flags, `sys.argv[1:]` if None.
        plan: The launcher's decisions, for `run.json`; None if there was no launcher: they are made and printed here.
        loss_scale: Fixed loss scale of fp16 mixed precision, None for a dynamic one.
        half_weights: fp16 weights with float32 masters (O2), with `--amp`.
        fast_jpeg: Decode JPEGs fast: auto, on, or off (timm's loading, bit for bit).

    Raises:
        UsageError: The flags ask for something that cannot be done; nothing has been written.
        RunError: Training failed.
    """
    args, args_text = parse_args(train_parser(), argv)
    for module in args.device_modules or []:
        importlib.import_module(module)
    resolve_args(args)

    # device, precision, seed
    args.device, device_reason = devices.select_device(args.device)
    device = utils.init_distributed_device(args)
    is_primary = utils.is_primary(args)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    model_dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    autocast = devices.autocast(device, args.amp, args.amp_dtype)
    loss_scaler, scaler_reason = devices_loss_scaler.create_loss_scaler(device, args.amp, args.amp_dtype, loss_scale)
    decoder, decoder_reason = choose_decoder(args, fast_jpeg)
    if plan is None:
        plan = make_plan(args, device_reason, scaler_reason, decoder_reason)
        if is_primary:
            log_plan(plan)
    utils.random_seed(args.seed, args.rank)

    # model
    if args.fast_norm:
        set_fast_norm()
    model = build_model(args)
    if half_weights:
        use_half_weights(model)
    args.num_classes = model.num_classes if args.num_classes is None else args.num_classes
    if is_primary:
        num_params = sum(p.numel() for p in model.parameters())
        _logger.info(f'Model {safe_model_name(args.model)} created, param count:{num_params}')
    data_config = resolve_data_config(vars(args), model=model, verbose=is_primary)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=device, dtype=model_dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        args.dist_bn = ''  # running statistics agree already
        model = convert_sync_batchnorm(model)
    task = ClassificationTask(
        model, criterion=training_loss(args).to(device), device=device, dtype=model_dtype, verbose=is_primary)

    # data
    train_loader, mixup_fn = loaders.train_loader(args, data_config, device, model_dtype, decoder)
    if len(train_loader) == 0:
        raise UsageError(
            f'One training batch needs {args.batch_size * args.world_size} images (-b {args.batch_size} on '
            f'{args.world_size} process(es)), the training split has {len(train_loader.dataset)}: lower -b.')
    eval_loader = None
    if args.val_split:
        eval_loader = loaders.eval_loader(
            args, args.val_split, args.validation_batch_size or args.batch_size, data_config, device, model_dtype,
            num_samples=args.val_num_samples, decoder=decoder, crop_pct=data_config['crop_pct'])

    # optimizer, and the state of a run to continue
    if not args.lr:
        args.lr, lr_reason = scaled_lr(args, args.batch_size * args.world_size * args.grad_accum_steps)
        if is_primary:
            _logger.info(f'Learning rate: {args.lr} ({lr_reason})')
    optimizer = fast_step.create_optimizer(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    if is_primary:
        defaults = dict(copy.deepcopy(optimizer.defaults), weight_decay=args.weight_decay)
        _logger.info(f'Created {type(optimizer).__name__} ({args.opt}) optimizer: '
                     + ', '.join(f'{k}: {v}' for k, v in defaults.items()))
    resume_epoch = None
    if args.resume:
        try:
            resume_epoch = resume_task_checkpoint(
                task,
                args.resume,
                optimizer=None if args.no_resume_opt else optimizer,
                loss_scaler=None if args.no_resume_opt else loss_scaler,
                log_info=is_primary,
            )
        except (ValueError, KeyError) as e:
            raise UsageError(f'The optimizer state in {args.resume} is not one of --opt {args.opt} ({e}): name the '
                             'optimizer of that run, or leave its state out with --no-resume-opt.')
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device='cpu' if args.model_ema_force_cpu else None,
        )
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)

    start_epoch = args.start_epoch if args.start_epoch is not None else resume_epoch or 0
    if args.resume and not args.no_resume_opt:
        restore_random_state(read_checkpoint(args.resume), args, device)
    set_epoch(train_loader, start_epoch)
    switch_mixup_off(train_loader, mixup_fn, start_epoch, args)  # workers that start now keep what they see now
    train_loader = loaders.start_workers(train_loader)
    if eval_loader is not None:
        eval_loader = loaders.start_workers(eval_loader, keep_rng=True)

    # compile before DDP wraps, so that evaluation can use the compiled model
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        device_ids = None if device.type == 'cpu' else [device]  # DDP takes no device ids on the CPU
        task.prepare_distributed(
            device_ids=device_ids,
            **(dict(broadcast_buffers=False) if args.no_ddp_bb else {}),
            **fast_step.ddp_arguments(device),
        )
        if half_weights:
            exchange_in_half(task.get_trainable_module())

    # schedule
    updates_per_epoch = math.ceil(len(train_loader) / args.grad_accum_steps)
    eval_metric = args.eval_metric if eval_loader is not None else 'loss'
    decreasing_metric = eval_metric == 'loss'
    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(args, decreasing_metric=decreasing_metric),
        updates_per_epoch=updates_per_epoch,
    )
    if lr_scheduler is not None and start_epoch > 0:
        if args.sched_on_updates:
            lr_scheduler.step_update(start_epoch * updates_per_epoch)
        else:
            lr_scheduler.step(start_epoch)
    if is_primary:
        warmup = 'warm-up, epochs and cool-down' if args.warmup_prefix else 'epochs with warm-up in them, and cool-down'
        stepped = 'epoch' if lr_scheduler is None or lr_scheduler.t_in_epochs else 'update'
        _logger.info(f'Scheduled epochs: {num_epochs} ({warmup}). LR stepped per {stepped}.')

    # outputs, on the primary process
    output_dir = saver = record = None
    best_metric = best_epoch = None
    if is_primary:
        exp_name = args.experiment or '-'.join([
            datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(args.model), str(data_config['input_size'][-1])])
        output_dir = utils.get_outdir(args.output or './output/train', exp_name)
        saver = AtomicCheckpointSaver(
            model=model,
            optimizer=optimizer,
            args=args,
            amp_scaler=loss_scaler,
            checkpoint_dir=output_dir,
            recovery_dir=output_dir,
            decreasing=decreasing_metric,
            max_history=args.checkpoint_hist,
            task=task,
        )
        saver.model_info = ModelInfo.of_model(
            model, data_config, names_of_dataset(train_loader.dataset)).to_dict()
        continues = bool(args.resume) and is_own_folder(args.resume, output_dir)
        if continues:
            saver.load_state_dict_from_checkpoint(args.resume)
            best_metric, best_epoch = saver.best_metric, saver.best_epoch
        trim_summary(os.path.join(output_dir, 'summary.csv'), start_epoch if continues else 0)
        with open(os.path.join(output_dir, 'args.yaml'), 'w') as f:
            f.write(args_text)
        record = run_record.new_record(dict(plan, lr=args.lr, output=output_dir, epochs=num_epochs))
        if continues:
            record = run_record.resume_record(output_dir, record, start_epoch)
        _logger.info(f'Output: {output_dir}')
        if args.log_wandb:
            start_wandb(args, exp_name)

    if start_epoch >= num_epochs and is_primary:
        _logger.info(f'Nothing left to train: {start_epoch} of {num_epochs} epochs are done.')
    results = []
    try:
        for epoch in range(start_epoch, num_epochs):
            set_epoch(train_loader, epoch)
            train_metrics, figures = train_one_epoch(
                epoch, task, train_loader, optimizer, args, device, autocast,
                loss_scaler=loss_scaler, model_dtype=model_dtype, mixup_fn=mixup_fn, lr_scheduler=lr_scheduler,
                saver=saver, output_dir=output_dir, updates_per_epoch=updates_per_epoch,
            )
            if is_primary:
                _logger.info(describe_wait(epoch, figures, args.workers))
                report_memory(figures, device)
            if args.distributed and args.dist_bn:
                if is_primary:
                    _logger.info('Distributing BatchNorm running means and vars')
                utils.distribute_bn(task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')

            if (epoch + 1) % args.val_interval != 0 and epoch + 1 != num_epochs:
                if lr_scheduler is not None:
                    lr_scheduler.step(epoch + 1, metric=None)
                if is_primary:
                    _logger.info('Skipping eval and checkpointing')
                    run_record.add_epoch(record, output_dir, dict(epoch=epoch, **figures), record['best'])
                continue

            eval_start = time.perf_counter()
            eval_metrics = None
            if eval_loader is not None:
                eval_metrics = validate(task.get_eval_model(), eval_loader, args, device, autocast, model_dtype)
                if task.has_ema() and not args.model_ema_force_cpu:
                    if args.distributed and args.dist_bn:
                        ema_module = task.get_trainable_module(ema=True)
                        utils.distribute_bn(ema_module, args.world_size, args.dist_bn == 'reduce')
                    eval_metrics = validate(
                        task.get_eval_model(ema=True), eval_loader, args, device, autocast, model_dtype, ' (EMA)')
            latest_metric = (eval_metrics or train_metrics)[eval_metric]
            rng = capture_rng(device)

            if is_primary:
                lrs = [group['lr'] for group in optimizer.param_groups]
                utils.update_summary(
                    epoch,
                    train_metrics,
                    eval_metrics,
                    filename=os.path.join(output_dir, 'summary.csv'),
                    lr=sum(lrs) / len(lrs),
                    log_wandb=args.log_wandb,
                )
                saver.run_state = dict(epoch=epoch + 1, rng=rng, world_size=args.world_size)
                best_metric, best_epoch = saver.save_checkpoint(epoch, metric=latest_metric)
                figures.update(eval_seconds=round(time.perf_counter() - eval_start, 3))
                run_record.add_epoch(
                    record, output_dir, dict(epoch=epoch, **figures),
                    best=dict(metric=eval_metric, value=best_metric, epoch=best_epoch))

            if lr_scheduler is not None:
                lr_scheduler.step(epoch + 1, latest_metric)
            results.append(dict(epoch=epoch, train=train_metrics))
            if eval_metrics is not None:
                results[-1]['validation'] = eval_metrics
    except KeyboardInterrupt:
        if is_primary:
            last = os.path.join(output_dir, 'last.pth.tar')
            way_on = f'go on with --resume {last}' if os.path.exists(last) else 'no epoch was finished'
            _logger.info(f'Interrupted: {way_on}.')
        raise SystemExit(130)

    if args.distributed:
        torch.distributed.destroy_process_group()
    if is_primary:
        run_record.finish(record, output_dir)
        if best_metric is not None:
            _logger.info(f'*** Best metric: {best_metric} (epoch {best_epoch})')
        results.sort(key=lambda r: r.get('validation', r['train']).get(eval_metric, 0), reverse=decreasing_metric)
        print(f'--result\n{json.dumps(results[-10:], indent=4)}')


def resolve_args(args) -> None:
    """Settle flags that depend on each other; refuse those that contradict each other."""
    args.data_dir = args.data_dir or args.data
    args.prefetcher = not args.no_prefetcher  # timm's name, kept for readers of the checkpoint's arguments
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise UsageError(f'--amp needs float32 weights, but --model-dtype is {args.model_dtype}: drop one of the two.')
    if args.aug_splits == 1:
        raise UsageError('--aug-splits is 0 or at least 2, got 1.')
    if args.jsd_loss and not args.aug_splits:
        raise UsageError('--jsd-loss compares augmentation splits: add --aug-splits 3.')
    if args.split_bn and not (args.aug_splits or args.resplit):
        raise UsageError('--split-bn needs --aug-splits or --resplit.')
    if loaders.mixup_active(args) and args.aug_splits and args.prefetcher:
        raise UsageError('Mixup and --aug-splits exclude each other: drop one, or add --no-prefetcher.')
    if args.bce_loss and not (loaders.mixup_active(args) or args.smoothing or args.jsd_loss):
        _logger.warning('--bce-loss has no effect without mixup, cutmix or smoothing (as in timm): cross entropy.')
    if loaders.mixup_active(args) and args.batch_size % 2:
        raise UsageError(f'Mixup pairs images, but -b {args.batch_size} is odd: use an even batch size.')
    if args.log_wandb and importlib.util.find_spec('wandb') is None:
        raise UsageError('--log-wandb needs wandb: pip install wandb.')


def is_own_folder(checkpoint: str, output_dir: str) -> bool:
    """True if a checkpoint lies in the output folder: the run that saved it goes on."""
    return os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(output_dir)


def make_plan(args, device_reason: str, scaler_reason: str, decoder_reason: str) -> Dict[str, Any]:
    """The decisions of a run without a launcher."""
    return {
        'script': f'bundled train.py of seresnet_timm {seresnet_timm.__version__}',
        'model': args.model,
        'device': str(args.device), 'device_reason': device_reason, 'world_size': args.world_size,
        'precision': f'amp {args.amp_dtype}' if args.amp else args.model_dtype or 'float32',
        'loss_scaler': scaler_reason,
        'global_batch_size': args.batch_size * args.world_size * args.grad_accum_steps,
        'workers': args.workers,
        'images': decoder_reason,
    }


def log_plan(plan: Dict[str, Any]) -> None:
    """Print the decisions of a run, once, with their reasons."""
    _logger.info(f'Script: {plan["script"]}')
    _logger.info(f'Device: {plan["device"]} ({plan["device_reason"]}), {plan["world_size"]} process(es)')
    _logger.info(f'Precision: {plan["precision"]}; loss scaler: {plan["loss_scaler"]}')
    _logger.info(f'Global batch size: {plan["global_batch_size"]}; loader workers a process: {plan["workers"]}')
    _logger.info(f'Images: {plan["images"]}')


def report_memory(figures: Dict[str, Any], device: torch.device) -> None:
    """Log the most memory that was used so far and add it to an epoch's figures, in GiB; nothing on the CPU."""
    memory = devices.peak_memory(device)
    if memory:
        figures.update(memory)
        _logger.info(f'Memory: {memory["peak_gib"]:.2f} GiB at the peak, of {memory["total_gib"]:.2f}')


def build_model(args) -> nn.Module:
    """Create the model of `args.model`, with the initial weights that the flags ask for."""
    overlay = {}
    if args.pretrained_path:
        overlay['pretrained_cfg_overlay'] = dict(file=args.pretrained_path, num_classes=-1)  # -1: adapt the head
    model = create_from_args(
        args,
        folder=folder_of(args.model, with_weights=args.pretrained),
        pretrained=args.pretrained or bool(args.pretrained_path),
        drop_rate=args.drop,
        drop_path_rate=args.drop_connect if args.drop_path is None else args.drop_path,
        drop_block_rate=args.drop_block,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        **overlay,
    )
    if args.initial_checkpoint:
        load_weights(model, read_checkpoint(args.initial_checkpoint), args.model, use_ema=True)
    with torch.no_grad():
        classifier = model.get_classifier()
        if args.head_init_scale is not None:
            classifier.weight.mul_(args.head_init_scale)
            classifier.bias.mul_(args.head_init_scale)
        if args.head_init_bias is not None:
            classifier.bias.fill_(args.head_init_bias)
    return model


def training_loss(args) -> nn.Module:
    """Loss of the flags: JSD, binary or plain cross entropy, with soft targets or smoothed labels."""
    soft_targets = loaders.mixup_active(args)  # mixup smooths the labels itself
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss and (soft_targets or args.smoothing):
        smoothing = {} if soft_targets else dict(smoothing=args.smoothing)
        return BinaryCrossEntropy(
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
            pos_weight=args.bce_pos_weight,
            **smoothing,
        )
    if soft_targets:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def start_wandb(args, name: str) -> None:
    import wandb
    wandb.init(
        project=args.wandb_project,
        name=name,
        config=vars(args),
        tags=args.wandb_tags,
        resume='must' if args.wandb_resume_id else None,
        id=args.wandb_resume_id or None,
    )


def restore_random_state(checkpoint, args, device: torch.device) -> None:
    """Go on with the random generators of the run that saved the checkpoint, where the ranks are the same."""
    run_state = checkpoint.run_state
    if not run_state:
        return  # a checkpoint of timm's own script
    if run_state['world_size'] == args.world_size:
        restore_rng(run_state['rng'], args.rank, device)
    elif utils.is_primary(args):
        _logger.info(f'Random state not restored: saved by {run_state["world_size"]} process(es), '
                     f'this run has {args.world_size}.')


def switch_mixup_off(loader: Any, mixup_fn, epoch: int, args) -> None:
    """End mixup when `--mixup-off-epoch` says so."""
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if args.prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False


def train_one_epoch(
        epoch: int,
        task: ClassificationTask,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        args,
        device: torch.device,
        autocast,
        loss_scaler=None,
        model_dtype: Optional[torch.dtype] = None,
        mixup_fn=None,
        lr_scheduler=None,
        saver=None,
        output_dir: Optional[str] = None,
        updates_per_epoch: int = 0,
):
    """Train one epoch.

    Returns:
        Metrics (`loss`), and figures of the epoch for `run.json`.

    Raises:
        RunError: The loss is no longer finite.
    """
    is_primary = utils.is_primary(args)
    switch_mixup_off(loader, mixup_fn, epoch, args)
    model = task.get_trainable_module()
    model.train()
    second_order = getattr(optimizer, 'is_second_order', False)
    num_batches = len(loader)
    full_groups_end = num_batches - num_batches % args.grad_accum_steps  # later batches make a smaller group
    num_updates = epoch * updates_per_epoch
    losses = LossMeter(device, args.distributed)
    throughput = Throughput()
    update_images = 0
    loss_avg = float('nan')

    optimizer.zero_grad()
    wait_start = time.perf_counter()
    with progress_bar(num_batches, f'Train {epoch}', _logger if is_primary else None) as bar:
        for batch_idx, (input, target) in enumerate(loader):
            is_last = batch_idx == num_batches - 1
            need_update = is_last or (batch_idx + 1) % args.grad_accum_steps == 0
            update_idx = batch_idx // args.grad_accum_steps
            accum_steps = args.grad_accum_steps if batch_idx < full_groups_end else num_batches - full_groups_end
            if not args.prefetcher:
                input, target = input.to(device=device, dtype=model_dtype), target.to(device=device)
                if mixup_fn is not None:
                    input, target = mixup_fn(input, target)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            throughput.add_wait(time.perf_counter() - wait_start)

            with nullcontext() if need_update else task.no_sync():
                with autocast():
                    loss = task(input, target)['loss']
                losses.update(loss, input.shape[0])
                backward(loss / accum_steps if accum_steps > 1 else loss, task, optimizer, args, loss_scaler,
                         create_graph=second_order, need_update=need_update)
            update_images += input.shape[0] * args.world_size
            bar.update()
            if not need_update:
                wait_start = time.perf_counter()
                continue

            num_updates += 1
            optimizer.zero_grad()
            task.update_ema(step=num_updates)
            if args.synchronize_step:
                devices.synchronize(device)
            throughput.step(update_images)

            if update_idx % args.log_interval == 0 or is_last:
                loss_now, loss_avg = losses.read()  # the host waits for the device here
                if not math.isfinite(loss_avg):
                    raise RunError(
                        f'The loss became {loss_now} at epoch {epoch}, update {update_idx}: lower the learning rate, '
                        'warm up longer, or clip gradients (--clip-grad 1); no checkpoint was written after that.')
                (seconds, seconds_avg), (data_seconds, data_seconds_avg) = throughput.read()
                lrs = [group['lr'] for group in optimizer.param_groups]
                lr = sum(lrs) / len(lrs)
                bar.log(
                    f'Train: {epoch} [{update_idx:>4d}/{updates_per_epoch} '
                    f'({100. * (update_idx + 1) / updates_per_epoch:>3.0f}%)]  '
                    f'Loss: {loss_now:#.3g} ({loss_avg:#.3g})  '
                    f'Time: {seconds:.3f}s, {update_images / seconds:>7.2f}/s  '
                    f'({seconds_avg:.3f}s, {update_images / seconds_avg:>7.2f}/s)  '
                    f'LR: {lr:.3e}  '
                    f'Data: {data_seconds:.3f} ({data_seconds_avg:.3f})',
                    short=f'loss {loss_avg:.3f}, lr {lr:.2e}, {update_images / seconds_avg:.1f} images/s',
                    is_last=is_last,
                )
                if args.save_images and output_dir:
                    torchvision.utils.save_image(
                        input, os.path.join(output_dir, f'train-batch-{batch_idx}.jpg'), padding=0, normalize=True)

            if saver is not None and args.recovery_interval and (update_idx + 1) % args.recovery_interval == 0:
                saver.run_state = {}  # the middle of an epoch: resumed from its next one, as in timm
                saver.save_recovery(epoch, batch_idx=update_idx)
            if lr_scheduler is not None:
                lr_scheduler.step_update(num_updates=num_updates)
            update_images = 0
            wait_start = time.perf_counter()

    if hasattr(optimizer, 'sync_lookahead'):
        optimizer.sync_lookahead()
    return OrderedDict(loss=loss_avg), throughput.summary()


def backward(loss, task, optimizer, args, loss_scaler, create_graph: bool, need_update: bool) -> None:
    """Backward pass, then clipping and the optimizer step if the gradients are complete."""
    clip_parameters = None
    if args.clip_grad is not None:
        clip_parameters = task.get_clip_parameters(exclude_head='agc' in args.clip_mode)
    if loss_scaler is not None:
        loss_scaler(
            loss,
            optimizer,
            clip_grad=args.clip_grad,
            clip_mode=args.clip_mode,
            parameters=clip_parameters,
            create_graph=create_graph,
            need_update=need_update,
        )
        return
    loss.backward(create_graph=create_graph)
    if need_update:
        if args.clip_grad is not None:
            utils.dispatch_clip_grad(clip_parameters, value=args.clip_grad, mode=args.clip_mode)
        optimizer.step()


def validate(
        model, loader, args, device, autocast, model_dtype, log_suffix: str = '', logger=_logger) -> Dict[str, float]:
    """Evaluate the model in training, with timm's log lines."""
    def log_line(batch_idx, last_idx, seconds, seconds_avg, _rate, now, avg):
        return (
            f'Test{log_suffix}: [{batch_idx:>4d}/{last_idx}]  '
            f'Time: {seconds:.3f} ({seconds_avg:.3f})  '
            f'Loss: {now["loss"]:>7.3f} ({avg["loss"]:>6.3f})  '
            f'Acc@1: {now["top1"]:>7.3f} ({avg["top1"]:>7.3f})  '
            f'Acc@5: {now["top5"]:>7.3f} ({avg["top5"]:>7.3f})'
        )
    return evaluate(
        model, loader, args, device, autocast, model_dtype, args.log_interval, log_line,
        logger=logger if utils.is_primary(args) else None, tta=args.tta)
