"""Evaluate an image classifier: the package's own validate.py, for where timm's is not at hand

Same flags, log lines and results as timm's validate.py. What it does differently:
  * any number of processes: every image counts once, and the result is that of one process
  * the host waits for the device at log lines only
  * ModelZoo and torchvision-style checkpoints load into the SE-ResNets
  * data with other classes than the checkpoint's is refused
  * `--img-size` may name several sizes: a row for each
"""
import csv
import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from timm import utils
from timm.data import RealLabelsImagenet, resolve_data_config
from timm.layers import apply_test_time_pool, set_fast_norm

from seresnet_timm import device as devices
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import MAX_NAMED, load_weights
from seresnet_timm.checkpoints.read import checkpoints_in, read_once
from seresnet_timm.data import loaders
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.data.image_files import Unreadable
from seresnet_timm.data.label_files import read_valid_labels, wrong_real_name
from seresnet_timm.engine import faults
from seresnet_timm.engine.divergence import describe_evaluation, refuse_evaluation
from seresnet_timm.engine.evaluate import EvaluationLog, evaluate
from seresnet_timm.engine.forward import Forward, set_up_device
from seresnet_timm.engine.model_info import check_planned_classes, model_info_of, refuse_other_classes
from seresnet_timm.engine.outputs import record_evaluation
from seresnet_timm.errors import RunError, UsageError, counted, first_names, printable
from seresnet_timm.files import as_json, atomic_path, write_json
from seresnet_timm.models.create import create_from_args
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step.fast import to_channels_last
from seresnet_timm.step.fuse_bn import apply_fuse_bn

_logger = logging.getLogger('validate')


@dataclass(frozen=True)
class Evaluation:
    """What all evaluations of a run have in common.

    Attributes:
        settings: Settings of the run.
        args: Flags of validate.py, with what was decided for this rank.
        forward: Device, precision and memory format.
        checkpoints: Checkpoints that this process has read, by their path.
    """
    settings: RunSettings
    args: Any
    forward: Forward
    checkpoints: Mapping[str, Checkpoint]


@dataclass(frozen=True)
class Result:
    """Result of one evaluation.

    Attributes:
        row: timm's result row: model, top1, top1_err, top5, top5_err (percent), loss, param_count (millions), img_size,
            crop_pct, interpolation.
        figures: Figures for run.json.
        model_info: The model, for run.json.
        faults: Of its data, which did not end it.
    """
    row: Dict[str, Any]
    figures: Dict[str, Any]
    model_info: Dict[str, Any]
    faults: List[faults.Fault]


def main(settings: RunSettings, checkpoints: Optional[Mapping[str, Checkpoint]] = None) -> None:
    """Run an evaluation: one rank of it. Rank 0 prints its results as JSON, and writes `--results-file` and run.json.

    Args:
        settings: Settings of the run; nothing is decided here. With `output`, run.json is written there.
        checkpoints: Checkpoints that this process has read, by their path.

    Raises:
        UsageError: A checkpoint cannot be evaluated on the data.
        RunError: Evaluation failed.
    """
    args = settings.namespace()
    args.pretrained = args.pretrained or not args.checkpoint
    device = set_up_device(args)
    run = Evaluation(settings, args, Forward.from_args(args, device), checkpoints or {})

    results, left_out = [], []  # type: List[Result], List[str]
    for size in settings.img_sizes or [args.img_size]:
        args.img_size = size
        if os.path.isdir(args.checkpoint):
            found, without_result = evaluate_folder(run, args.checkpoint)
            results += found
            left_out += without_result
        else:
            results.append(evaluate_with_retry(
                run, read_once(args.checkpoint, run.checkpoints) if args.checkpoint else None))
            refuse_evaluation(args.checkpoint or args.model, results[-1].row['loss'])
    rows: Union[Dict, List[Dict]] = [r.row for r in results]
    if not settings.img_sizes and not os.path.isdir(args.checkpoint):
        rows = results[0].row

    if args.distributed:
        torch.distributed.destroy_process_group()
    if utils.is_primary(args):
        if settings.output:
            found = [fault for result in results for fault in result.faults]
            record_evaluation(settings, results[0].model_info, results[0].figures, found)
        if args.results_file:
            write_results(args.results_file, rows, args.results_format)
        print(f'--result\n{as_json(rows, indent=4)}')
    refuse_left_out(left_out)


def evaluate_folder(run: Evaluation, folder: str) -> Tuple[List[Result], List[str]]:
    """Evaluate every checkpoint in a folder. One that cannot be evaluated is left out, and named.

    Returns:
        The results, the best first; and the checkpoints that were left out.
    """
    paths, results, left_out = checkpoints_in(folder), [], []
    for path in paths:
        try:
            checkpoint = read_once(path, run.checkpoints)
            tell_choice(checkpoint, run.args)
            result = evaluate_with_retry(run, checkpoint)
            problem = describe_evaluation(path, result.row['loss'])
            if problem:
                raise UsageError(problem)
        except UsageError as e:
            _logger.error(f'Left out: {e}')
            left_out.append(path)
            continue
        result.row['checkpoint'] = path
        results.append(result)
    if not results:
        raise RunError(f'None of the {len(paths)} checkpoints could be evaluated.')
    return sorted(results, key=lambda r: r.row['top1'], reverse=True), left_out


def tell_choice(checkpoint: Checkpoint, args) -> None:
    """Say which weights of a checkpoint in a folder are evaluated; the plan says it of a file that is named."""
    if utils.is_primary(args):
        for note in checkpoint.notes_of_choice(args.use_ema):
            _logger.info(note)


def refuse_left_out(paths: Sequence[str]) -> None:
    """End an evaluation with an error that has left out checkpoints: they were asked for.

    Raises:
        RunError: It has.
    """
    names = list(dict.fromkeys(paths))
    if names:
        raise RunError(f'{counted(len(names), "checkpoint")} left out of the results, see above: '
                       f'{printable(first_names(names, MAX_NAMED))}. Remove or replace them.')


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or 'out of memory' in text or "can't allocate memory" in text


def evaluate_with_retry(run: Evaluation, checkpoint: Optional[Checkpoint]) -> Result:
    """Evaluate; with `--retry`, halve the batch size as long as the device runs out of memory."""
    device, batch_size = run.forward.device, run.args.batch_size
    while True:
        try:
            return evaluate_checkpoint(run, checkpoint, batch_size)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            smaller = utils.decay_batch_step(batch_size)
            if not run.args.retry or not smaller:
                raise RunError(
                    f'Out of memory on {device} at batch size {batch_size}: try -b {batch_size // 2 or 1} or --retry.')
            devices.empty_cache(device)
            _logger.warning(f'Out of memory at batch size {batch_size}: trying {smaller}.')
            batch_size = smaller


def evaluate_checkpoint(run: Evaluation, checkpoint: Optional[Checkpoint], batch_size: int) -> Result:
    """Evaluate one model.

    Args:
        run: What all evaluations of the run have in common.
        checkpoint: Its weights; None for pretrained ones.
        batch_size: Images of a batch.

    Raises:
        UsageError: The weights do not fit the model, or the data have other classes.
    """
    args, is_primary = run.args, utils.is_primary(run.args)
    utils.random_seed(args.seed)
    network, data_config = create_model(run, checkpoint)
    param_count = sum(p.numel() for p in network.parameters())
    model, crop_pct = prepare_model(network, data_config, run)
    loader = create_loader(run, data_config, crop_pct, batch_size)
    check_planned_classes(run.settings, loader.dataset)
    refuse_other_classes(checkpoint, loader.dataset, args)

    collected: List[torch.Tensor] = []
    real_labels = None
    if args.real_labels:
        names = loader.dataset.filenames(basename=True)
        wrong = wrong_real_name(names, len(names))
        if wrong:
            raise UsageError(wrong)
        real_labels = RealLabelsImagenet(names, real_json=args.real_labels)

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
    metrics, unreadable = evaluate(
        model, loader, run.forward, EvaluationLog(
            _logger if is_primary else None, args.log_freq, log_line, verbosity=run.settings.verbosity),
        valid_labels=read_valid_labels(args.valid_labels) if args.valid_labels else None, on_output=on_output)
    seconds = time.perf_counter() - start
    refuse_unreadable(args, unreadable)
    if real_labels is not None:
        metrics.update(top1=real_labels.get_accuracy(k=1), top5=real_labels.get_accuracy(k=5))

    row = OrderedDict(
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
        _logger.info(' * Acc@1 {top1:.3f} ({top1_err:.3f}) Acc@5 {top5:.3f} ({top5_err:.3f})'.format(**row))
    return Result(
        faults=faults.take([loader]),
        row=row,
        figures=dict(images=len(loader.dataset), seconds=round(seconds, 3), unreadable=unreadable, **metrics),
        model_info=model_info_of(network, dict(data_config, crop_pct=crop_pct), loader.dataset).to_dict(),
    )


def refuse_unreadable(args, unreadable: Optional[Unreadable]) -> None:
    """End where a metric cannot count an image as wrong that could not be read."""
    for flag in ('real_labels', 'metrics_avg'):
        if unreadable is not None and unreadable.count and getattr(args, flag):
            raise RunError(f'--{flag.replace("_", "-")} cannot count images that cannot be read, and there are '
                           f'{unreadable.count}, see above: repair or remove them.')


def create_model(run: Evaluation, checkpoint: Optional[Checkpoint]) -> Tuple[torch.nn.Module, Dict[str, Any]]:
    """The model with its weights, and its preprocessing."""
    args, is_primary = run.args, utils.is_primary(run.args)
    if args.fast_norm:
        set_fast_norm()
    model = create_from_args(args, folder=run.settings.model_folder, pretrained=args.pretrained)
    if checkpoint is not None:
        load_weights(model, checkpoint, args.model, use_ema=args.use_ema)
    if args.reparam:
        model = utils.reparameterize_model(model)
    if is_primary:
        param_count = sum(p.numel() for p in model.parameters())
        _logger.info(f'Model {args.model} created, param count: {param_count}')
    data_config = resolve_data_config(
        vars(args), model=model, use_test_size=not args.use_train_size, verbose=is_primary)
    return model, data_config


def prepare_model(
        model: torch.nn.Module,
        data_config: Dict[str, Any],
        run: Evaluation,
) -> Tuple[torch.nn.Module, float]:
    """The model as it is evaluated, on its device; and the share of the image that the crop keeps."""
    args, test_time_pool = run.args, False
    if args.test_pool:
        model, test_time_pool = apply_test_time_pool(model, data_config)
    settings, logger = run.settings, _logger if utils.is_primary(args) else None
    model = apply_fuse_bn(model, settings.fuse_bn, settings.device, settings.args, logger)
    model = model.to(device=run.forward.device, dtype=run.forward.dtype)
    if args.channels_last:
        model = to_channels_last(model)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    return model, 1.0 if test_time_pool else data_config['crop_pct']


def create_loader(run: Evaluation, data_config: Dict[str, Any], crop_pct: float, batch_size: int) -> Any:
    args = run.args
    decoder, _ = choose_decoder(args, run.settings.fast_jpeg)
    return loaders.eval_loader(
        loaders.LoaderSetup(
            args, data_config, run.forward.device, run.forward.dtype, decoder, run.settings.class_names,
            run.settings.data_timeout),
        args.split,
        batch_size,
        num_samples=args.num_samples,
        crop_pct=crop_pct,
        crop_mode=data_config['crop_mode'],
        crop_border_pixels=args.crop_border_pixels,
    )


def averaged_metrics(collected: List[torch.Tensor], args) -> Dict[str, float]:
    """Precision, recall and F1 (percent) by scikit-learn, averaged as `--metrics-avg` says."""
    from sklearn.metrics import precision_recall_fscore_support
    predictions, targets = torch.cat(collected, dim=1).cpu().numpy()
    scores = precision_recall_fscore_support(targets, predictions, average=args.metrics_avg, zero_division=0)[:3]
    names = ('precision', 'recall', 'f1_score')
    return {f'{args.metrics_avg}_{name}': round(100 * float(score), 4) for name, score in zip(names, scores)}


def write_results(path: str, results: Union[Dict, List[Dict]], results_format: str) -> None:
    """Write result rows as CSV or JSON, atomically."""
    if results_format == 'json':
        write_json(path, results)
        return
    rows = results if isinstance(results, list) else [results]
    with atomic_path(path) as tmp:
        with open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, fieldnames=rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
