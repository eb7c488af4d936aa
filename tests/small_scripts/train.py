"""A training script in the manner of timm's, as small as the launcher's changes allow

Written for the tests: it calls every name that the launcher replaces and has the lines that it patches, with the
behaviour that they correct, and what a run on the demo digits needs. It stands in where timm's own script is not there.
"""
import argparse
import json
import logging
import os
from collections import OrderedDict
from contextlib import suppress
from functools import partial

import torch
import torch.nn as nn
import yaml
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import NativeScaler

_logger = logging.getLogger('train')
config_parser = argparse.ArgumentParser(add_help=False)
config_parser.add_argument('-c', '--config', default='')
parser = argparse.ArgumentParser()
for flag, default in {
        'data-dir': None, 'dataset': '', 'class-map': '', 'train-split': 'train', 'val-split': 'validation',
        'model': 'resnet50', 'resume': '', 'initial-checkpoint': '', 'pretrained-path': None, 'gp': None,
        'device': 'cuda', 'amp-dtype': 'float16', 'model-dtype': None, 'opt': 'sgd', 'sched': 'cosine',
        'lr-base-scale': '', 'dist-bn': 'reduce', 'output': '', 'experiment': '', 'eval-metric': 'top1',
        'interpolation': '', 'train-interpolation': 'random', 'clip-mode': 'norm'}.items():
    parser.add_argument('--' + flag, default=default)
for flag, default in {
        'num-classes': None, 'img-size': None, 'in-chans': None, 'validation-batch-size': None, 'grad-accum-steps': 1,
        'epochs': 300, 'warmup-epochs': 5, 'cooldown-epochs': 0, 'start-epoch': None, 'seed': 42, 'log-interval': 50,
        'checkpoint-hist': 10, 'tta': 0, 'lr-base-size': 256, 'aug-repeats': 0, 'recovery-interval': 0}.items():
    parser.add_argument('--' + flag, type=int, default=default)
for flag, default in {
        'lr': None, 'lr-base': 0.1, 'momentum': 0.9, 'weight-decay': 2e-5, 'warmup-lr': 1e-5, 'min-lr': 0.,
        'smoothing': 0.1, 'color-jitter': 0.4, 'hflip': 0.5, 'crop-pct': None, 'clip-grad': None, 'reprob': 0.,
        'drop': 0.}.items():
    parser.add_argument('--' + flag, type=float, default=default)
for flag in ('amp', 'no-ddp-bb', 'warmup-prefix', 'no-prefetcher', 'channels-last', 'pretrained', 'no-aug',
             'pin-mem', 'no-resume-opt', 'sched-on-updates', 'model-ema', 'model-ema-force-cpu'):
    parser.add_argument('--' + flag, action='store_true')
parser.add_argument('-b', '--batch-size', type=int, default=128)
parser.add_argument('-j', '--workers', type=int, default=4)
parser.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0])
parser.add_argument('--input-size', type=int, nargs=3, default=None)
parser.add_argument('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs)
parser.add_argument('--opt-kwargs', nargs='*', default={}, action=utils.ParseKwargs)
parser.add_argument('--device-modules', nargs='+', default=None)


def _parse_args():
    config, remaining = config_parser.parse_known_args()
    if config.config:
        with open(config.config) as f:
            parser.set_defaults(**yaml.safe_load(f))
    args = parser.parse_args(remaining)
    return args, yaml.safe_dump(vars(args))


def main():
    utils.setup_default_logging()
    args, args_text = _parse_args()
    args.prefetcher = not args.no_prefetcher
    device = utils.init_distributed_device(args)
    amp_dtype = getattr(torch, args.amp_dtype)
    utils.random_seed(args.seed, args.rank)
    model = create_model(args.model, num_classes=args.num_classes, drop_rate=args.drop, **args.model_kwargs)
    data_config = resolve_data_config(vars(args), model=model)
    model.to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)

    amp_autocast = suppress
    loss_scaler = None
    if args.amp:
        amp_autocast = partial(torch.autocast, device_type=device.type, dtype=amp_dtype)
        if device.type in ('cuda',) and amp_dtype == torch.float16:
            loss_scaler = NativeScaler(device=device.type)

    common = dict(device=device, distributed=args.distributed, num_workers=args.workers, mean=data_config['mean'],
                  std=data_config['std'], pin_memory=args.pin_mem)
    loader_train = create_loader(
        create_dataset('', root=args.data_dir, split=args.train_split), input_size=data_config['input_size'],
        batch_size=args.batch_size, is_training=True, no_aug=args.no_aug, scale=args.scale, hflip=args.hflip,
        color_jitter=args.color_jitter, interpolation=args.train_interpolation, re_prob=args.reprob, **common)
    loader_eval = create_loader(
        create_dataset('', root=args.data_dir, split=args.val_split), input_size=data_config['input_size'],
        batch_size=args.batch_size, is_training=False, crop_pct=data_config['crop_pct'],
        interpolation=data_config['interpolation'], **common)

    task = ClassificationTask(model, nn.CrossEntropyLoss(label_smoothing=args.smoothing), device=device, verbose=False)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    resume_epoch = None
    if args.resume:
        resume_epoch = resume_task_checkpoint(task, args.resume, optimizer=optimizer, loss_scaler=loss_scaler)
    set_up_ema(task, args)
    if args.distributed:
        task.prepare_distributed(device_ids=[device], broadcast_buffers=not args.no_ddp_bb)
    best_metric = None
    saver = None
    output_dir = None
    if utils.is_primary(args):
        output_dir = utils.get_outdir(args.output, args.experiment)
        saver = utils.CheckpointSaver(
            model=model, optimizer=optimizer, args=args, amp_scaler=loss_scaler, checkpoint_dir=output_dir,
            recovery_dir=output_dir, max_history=args.checkpoint_hist, task=task)
        with open(os.path.join(output_dir, 'args.yaml'), 'w') as f:
            f.write(args_text)

    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args), updates_per_epoch=len(loader_train) // args.grad_accum_steps)
    start_epoch = resume_epoch or 0
    if start_epoch:
        lr_scheduler.step(start_epoch)
    results = []
    for epoch in range(start_epoch, num_epochs):
        if args.distributed:
            loader_train.sampler.set_epoch(epoch)
        train_metrics = train_one_epoch(
            epoch, model, loader_train, optimizer, args, task=task, device=device, lr_scheduler=lr_scheduler,
            output_dir=output_dir, amp_autocast=amp_autocast, loss_scaler=loss_scaler)
        if args.distributed and args.dist_bn:
            utils.distribute_bn(task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
        eval_metrics = validate(task.get_eval_model(), loader_eval, nn.CrossEntropyLoss(), args, device=device,
                                amp_autocast=amp_autocast)
        if args.model_ema:
            eval_metrics = validate(task.get_eval_model(ema=True), loader_eval, nn.CrossEntropyLoss(), args,
                                    device=device, amp_autocast=amp_autocast, log_suffix=' (EMA)')
        if output_dir is not None:
            utils.update_summary(
                epoch, train_metrics, eval_metrics, filename=os.path.join(output_dir, 'summary.csv'),
                lr=optimizer.param_groups[0]['lr'], write_header=best_metric is None)
            best_metric, _ = saver.save_checkpoint(epoch, metric=eval_metrics[args.eval_metric])
        lr_scheduler.step(epoch + 1, eval_metrics[args.eval_metric])
        results.append({'epoch': epoch, 'train': train_metrics, 'validation': eval_metrics})
    if args.distributed:
        torch.distributed.destroy_process_group()
    if utils.is_primary(args):
        print(f'--result\n{json.dumps(results)}')


def set_up_ema(task, args):
    if args.model_ema:
        task.setup_ema(decay=0.9)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)


def train_one_epoch(
        epoch, model, loader, optimizer, args, task=None, device=None, lr_scheduler=None, output_dir=None,
        amp_autocast=suppress, loss_scaler=None):
    losses_m = utils.AverageMeter()
    task.get_trainable_module().train()
    accum_steps = args.grad_accum_steps
    updates_per_epoch = len(loader) // accum_steps
    num_updates = epoch * updates_per_epoch
    optimizer.zero_grad()
    for batch_idx, (input, target) in enumerate(loader):
        need_update = (batch_idx + 1) % accum_steps == 0
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        batch_size = input.shape[0]
        with amp_autocast():
            loss = task(input, target)['loss']
        if accum_steps > 1:
            loss /= accum_steps
        if loss_scaler is not None:
            loss_scaler(loss, optimizer, need_update=need_update)
        else:
            loss.backward()
            if need_update:
                if args.clip_grad is not None:
                    utils.dispatch_clip_grad(task.get_clip_parameters(), value=args.clip_grad, mode=args.clip_mode)
                optimizer.step()
        losses_m.update(loss.item() * accum_steps, batch_size)
        if not need_update:
            continue
        optimizer.zero_grad()
        num_updates += 1
        task.update_ema(step=num_updates)
        lr_scheduler.step_update(num_updates=num_updates, metric=losses_m.avg)
    loss_avg = losses_m.avg
    if args.distributed:
        loss_avg = utils.reduce_tensor(torch.tensor([loss_avg], device=device), args.world_size).item()
    return OrderedDict([('loss', loss_avg)])


def validate(
        model, loader, loss_fn, args, device=None, amp_autocast=suppress, model_dtype=None, log_suffix=''):
    losses_m, top1_m, top5_m = utils.AverageMeter(), utils.AverageMeter(), utils.AverageMeter()
    model.eval()
    with torch.inference_mode():
        for input, target in loader:
            output = model(input)
            loss = loss_fn(output, target)
            acc1, acc5 = utils.accuracy(output, target, topk=(1, 5))
            losses_m.update(loss.item(), len(target))
            top1_m.update(acc1.item(), len(target))
            top5_m.update(acc5.item(), len(target))
    return OrderedDict([('loss', losses_m.avg), ('top1', top1_m.avg), ('top5', top5_m.avg)])


if __name__ == '__main__':
    main()
