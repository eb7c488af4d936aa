"""Evaluate an image classifier: the package's own validate.py, for where timm's is not at hand

Same flags, log lines and results as timm's validate.py. What it does differently:
  * any number of processes: every image counts once, and the result is that of one process
  * the host waits for the device at log lines only
  * ModelZoo and torchvision-style checkpoints load into the SE-ResNets

Usage:
    seresnet-timm validate --data-dir ImageNet --model seresnet50_ascend --checkpoint model_best.pth.tar
    torchrun --nproc-per-node 8 -m seresnet_timm validate --data-dir ImageNet --model seresnet50_ascend ...
"""
import csv
import glob
import importlib.util
import json
import logging
import os
import time
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from timm import utils
from timm.data import RealLabelsImagenet, resolve_data_config
from timm.layers import apply_test_time_pool, set_fast_norm

import seresnet_timm
from seresnet_timm import device as devices
from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.data import loaders
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.engine.evaluate import evaluate
from seresnet_timm.engine.flags import validate_parser
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.files import atomic_path, write_json
from seresnet_timm.hub.pull import folder_of
from seresnet_timm.launch.config_file import parse_args
from seresnet_timm.models.create import create_from_args
from seresnet_timm.step.fuse_bn import decide_fuse_bn, fuse_batch_norms

_logger = logging.getLogger('validate')


def main(
        argv: Optional[Sequence[str]] = None,
        print_decisions: bool = True,
        record: Optional[str] = None,
        fast_jpeg: str = 'auto',
        fuse_bn: str = 'auto',
) -> None:
    """Run an evaluation, print its results as JSON, and write them to `--results-file`.

    Args:
        argv: Flags, `sys.argv[1:]` if None.
        print_decisions: Print device and precision; False where a launcher has.
        record: File for images, seconds, top1 and loss of the evaluation, for the launcher's final lines.
        fast_jpeg: Decode JPEGs fast: auto, on, or off (timm's loading, bit for bit).
        fuse_bn: Fold BatchNorm into the convolutions: 'auto', 'on' or 'off'.

    Raises:
        UsageError: The flags ask for something that cannot be done.
        RunError: Evaluation failed.
    """
    args, _ = parse_args(validate_parser(), argv)
    args.record, args.fuse_bn = record, fuse_bn
    for module in args.device_modules or []:
        importlib.import_module(module)
    resolve_args(args)
    args.decoder, decoder_reason = choose_decoder(args, fast_jpeg)

    args.device, device_reason = devices.select_device(args.device)
    device = utils.init_distributed_device(args)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    for flag in ('real_labels', 'metrics_avg'):
        if getattr(args, flag) and args.distributed:
            raise UsageError(f'--{flag.replace("_", "-")} needs all predictions in one place: run it on one process.')
    if utils.is_primary(args) and print_decisions:
        precision = f'amp {args.amp_dtype}' if args.amp else args.model_dtype or 'float32'
        _logger.info(f'Script: bundled validate.py of seresnet_timm {seresnet_timm.__version__}')
        _logger.info(f'Device: {device} ({device_reason}), {args.world_size} process(es)')
        _logger.info(f'Precision: {precision}; loader workers a process: {args.workers}')
        _logger.info(f'Images: {decoder_reason}')

    if os.path.isdir(args.checkpoint):
        checkpoints = [f for pattern in ('*.pth.tar', '*.pth', '*.safetensors')
                       for f in glob.glob(os.path.join(glob.escape(args.checkpoint), pattern))
                       if os.path.basename(f) not in ('tmp.pth.tar', 'recovery_tmp.pth.tar')]  # a killed run's
        if not checkpoints:
            raise UsageError(f'{args.checkpoint} holds no checkpoint (.pth.tar, .pth or .safetensors).')
        results = []
        for args.checkpoint in sorted(checkpoints, key=utils.natural_key):
            try:
                results.append(dict(validate_with_retry(args, device), checkpoint=args.checkpoint))
            except UsageError as e:
                _logger.error(f'Left out: {e}')
        if not results:
            raise RunError(f'None of the {len(checkpoints)} checkpoints could be evaluated.')
        results.sort(key=lambda r: r['top1'], reverse=True)
    else:
        results = validate_with_retry(args, device)

    if args.distributed:
        torch.distributed.destroy_process_group()
    if utils.is_primary(args):
        if args.results_file:
            write_results(args.results_file, results, args.results_format)
        print(f'--result\n{json.dumps(results, indent=4)}')


def resolve_args(args) -> None:
    """Settle flags that depend on each other; refuse those that contradict each other."""
    args.data_dir = args.data or args.data_dir
    args.pretrained = args.pretrained or not args.checkpoint
    if args.num_gpu > 1:
        raise UsageError(f'--num-gpu {args.num_gpu}: run torchrun --nproc-per-node {args.num_gpu} -m seresnet_timm '
                         'validate instead, which counts every image once.')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise UsageError(f'--amp needs float32 weights, but --model-dtype is {args.model_dtype}: drop one of the two.')
    if args.metrics_avg and importlib.util.find_spec('sklearn') is None:
        raise UsageError('--metrics-avg needs scikit-learn: pip install scikit-learn.')


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or 'out of memory' in text or "can't allocate memory" in text


def validate_with_retry(args, device: torch.device) -> Dict[str, Any]:
    """Evaluate; with `--retry`, halve the batch size as long as the device runs out of memory."""
    batch_size = args.batch_size
    while True:
        try:
            return validate(args, device, batch_size)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            smaller = utils.decay_batch_step(batch_size)
            if not args.retry or not smaller:
                raise RunError(
                    f'Out of memory on {device} at batch size {batch_size}: try -b {batch_size // 2 or 1} or --retry.')
            devices.empty_cache(device)
            _logger.warning(f'Out of memory at batch size {batch_size}: trying {smaller}.')
            batch_size = smaller


def validate(args, device: torch.device, batch_size: int) -> Dict[str, Any]:
    """Evaluate one model.

    Returns:
        timm's result row: model, top1, top1_err, top5, top5_err (percent), loss, param_count (millions), img_size,
        crop_pct, interpolation.
    """
    is_primary = utils.is_primary(args)
    model_dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    autocast = devices.autocast(device, args.amp, args.amp_dtype)
    utils.random_seed(args.seed)
    if args.fast_norm:
        set_fast_norm()

    folder = folder_of(args.model, with_weights=args.pretrained)
    model = create_from_args(args, folder, pretrained=args.pretrained)
    if args.checkpoint:
        load_weights(model, read_checkpoint(args.checkpoint), args.model, use_ema=args.use_ema)
    if args.reparam:
        model = utils.reparameterize_model(model)
    param_count = sum(p.numel() for p in model.parameters())
    if is_primary:
        _logger.info(f'Model {args.model} created, param count: {param_count}')
    data_config = resolve_data_config(
        vars(args), model=model, use_test_size=not args.use_train_size, verbose=is_primary)
    test_time_pool = False
    if args.test_pool:
        model, test_time_pool = apply_test_time_pool(model, data_config)
    crop_pct = 1.0 if test_time_pool else data_config['crop_pct']

    model = apply_fuse_bn(model, args, device)
    model = model.to(device=device, dtype=model_dtype)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)

    loader = loaders.eval_loader(
        args, args.split, batch_size, data_config, device, model_dtype,
        num_samples=args.num_samples,
        decoder=args.decoder,
        crop_pct=crop_pct,
        crop_mode=data_config['crop_mode'],
        crop_border_pixels=args.crop_border_pixels,
    )
    valid_labels = None
    if args.valid_labels:
        with open(args.valid_labels) as f:
            valid_labels = [int(line) for line in f if line.strip()]

    collected: List[torch.Tensor] = []
    real_labels = None
    if args.real_labels:
        real_labels = RealLabelsImagenet(loader.dataset.filenames(basename=True), real_json=args.real_labels)

    def on_output(output: torch.Tensor, target: torch.Tensor) -> None:
        if real_labels is not None:
            real_labels.add_result(output)
        if args.metrics_avg:
            collected.append(torch.stack([output.argmax(dim=1), target]))

    def log_line(batch_idx, _last_idx, seconds, seconds_avg, rate, now, avg):
        return (
            f'Test: [{batch_idx:>4d}/{len(loader)}]  '
            f'Time: {seconds:.3f}s ({seconds_avg:.3f}s, {rate:>7.2f}/s)  '
            f'Loss: {now["loss"]:>7.4f} ({avg["loss"]:>6.4f})  '
            f'Acc@1: {now["top1"]:>7.3f} ({avg["top1"]:>7.3f})  '
            f'Acc@5: {now["top5"]:>7.3f} ({avg["top5"]:>7.3f})'
        )

    start = time.perf_counter()
    metrics = evaluate(
        model, loader, args, device, autocast, model_dtype, args.log_freq, log_line,
        logger=_logger if is_primary else None, valid_labels=valid_labels, on_output=on_output)
    if args.record and is_primary:
        seconds = time.perf_counter() - start
        write_json(args.record, dict(images=len(loader.dataset), seconds=seconds, **metrics))
    if real_labels is not None:
        metrics.update(top1=real_labels.get_accuracy(k=1), top5=real_labels.get_accuracy(k=5))

    results = OrderedDict(
        model=args.model,
        top1=round(metrics['top1'], 4), top1_err=round(100 - metrics['top1'], 4),
        top5=round(metrics['top5'], 4), top5_err=round(100 - metrics['top5'], 4),
        loss=round(metrics['loss'], 6),
        **(averaged_metrics(collected, args) if args.metrics_avg else {}),
        param_count=round(param_count / 1e6, 2),
        img_size=data_config['input_size'][-1],
        crop_pct=crop_pct,
        interpolation=data_config['interpolation'],
    )
    if is_primary:
        _logger.info(' * Acc@1 {top1:.3f} ({top1_err:.3f}) Acc@5 {top5:.3f} ({top5_err:.3f})'.format(**results))
    return results


def apply_fuse_bn(model: torch.nn.Module, args, device: torch.device) -> torch.nn.Module:
    """Fold BatchNorm into the convolutions as `args.fuse_bn` says, and log what was decided."""
    wanted, reason = decide_fuse_bn(args.fuse_bn, model, args, device.type)
    count = fuse_batch_norms(model) if wanted else 0
    if utils.is_primary(args):
        what = f'{count} BatchNorm layers folded into their convolutions' if wanted else 'BatchNorm layers not folded'
        _logger.info(f'{what} ({reason}).')
    return model


def averaged_metrics(collected: List[torch.Tensor], args) -> Dict[str, float]:
    """Precision, recall and F1 (percent) by scikit-learn, averaged as `--metrics-avg` says."""
    from sklearn.metrics import precision_recall_fscore_support
    predictions, targets = torch.cat(collected, dim=1).cpu().numpy()
    scores = precision_recall_fscore_support(targets, predictions, average=args.metrics_avg, zero_division=0)[:3]
    names = ('precision', 'recall', 'f1_score')
    return {f'{args.metrics_avg}_{name}': round(100 * float(score), 4) for name, score in zip(names, scores)}


def write_results(path: str, results: Union[Dict, List[Dict]], results_format: str) -> None:
    """Write result rows as CSV or JSON, whole or not at all."""
    if results_format == 'json':
        write_json(path, results)
        return
    rows = results if isinstance(results, list) else [results]
    with atomic_path(path) as tmp:
        with open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, fieldnames=rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
