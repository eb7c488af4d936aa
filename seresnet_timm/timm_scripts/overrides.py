"""What the patched scripts call, as `_seresnet_timm`. See `patches` for why."""
import functools
import logging
import os
import time
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.distributed as dist
from timm import utils
from timm.utils.summary import trim_summary
from torch.utils.data import Dataset, IterableDataset

from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.data import loading
from seresnet_timm.data.fast_jpeg import choose_decoder, with_fast_decoding
from seresnet_timm.data.loaders import seed_sampler, start_workers
from seresnet_timm.data.seeding import SampleSeeds
from seresnet_timm.engine import train as engine
from seresnet_timm.engine.meters import LossMeter, Throughput, describe_wait
from seresnet_timm.engine.validate import apply_fuse_bn
from seresnet_timm.errors import UsageError
from seresnet_timm.files import write_json
from seresnet_timm.runs import record as run_record
from seresnet_timm.step import loss_scaler as devices_loss_scaler
from seresnet_timm.step.fast import create_optimizer, ddp_arguments
from seresnet_timm.step.half_weights import exchange_in_half, use_half_weights

__all__ = ['AtomicCheckpointSaver', 'create_optimizer', 'ddp_arguments', 'seed_sampler']

_logger = logging.getLogger(__name__)

# set by the worker before the script runs
loss_scale: Optional[float] = None
half_weights = False
fast_jpeg = 'off'
fuse_bn = 'auto'
plan: Dict[str, Any] = {}


# --- train.py ---------------------------------------------------------------------------------------------------------

def scales_loss(device: torch.device) -> bool:
    return device.type != 'cpu' or loss_scale is not None


def create_loss_scaler(device: torch.device):
    return devices_loss_scaler.create_loss_scaler(device, amp=True, amp_dtype='float16', loss_scale=loss_scale)[0]


def prepare_model(model: torch.nn.Module) -> torch.nn.Module:
    return use_half_weights(model) if half_weights else model


def prepare_ddp(task) -> None:
    if half_weights:
        exchange_in_half(task.get_trainable_module())


def fast_dataset(dataset: Any, args, is_training: bool) -> Any:
    decoder, _ = choose_decoder(args, fast_jpeg)
    seeds = None
    if is_training:
        seeds = SampleSeeds(args.seed, stream=args.rank if getattr(args, 'aug_repeats', 0) else 0)
    return with_fast_decoding(dataset, decoder, seeds)


def finish_loader(loader, args):
    return loading.seed_and_speed_up(loader, getattr(args, 'seed', 0))


def start_train_workers(loader, args):
    # a run that resumes learns its first epoch, which the shuffle depends on, only later
    knows_epoch = not args.resume and not args.start_epoch
    return start_workers(loader) if args.distributed and knows_epoch else loader


def start_eval_workers(loader, args):
    return start_workers(loader, keep_rng=True) if args.distributed else loader


class DeviceMeter:
    """timm's AverageMeter for tensors: they stay on the device until `val` or `avg` is read."""

    def __init__(self, device: torch.device):
        self.created = time.perf_counter()
        self._meter = LossMeter(device)
        self._fresh = True
        self._val = self._avg = 0.

    def update(self, value: torch.Tensor, n: int = 1) -> None:
        self._meter.update(value, n)
        self._fresh = False

    def _read(self) -> None:
        if not self._fresh:
            self._val, self._avg = self._meter.read()
            self._fresh = True

    @property
    def val(self) -> float:
        self._read()
        return self._val

    @property
    def avg(self) -> float:
        self._read()
        return self._avg

    @property
    def count(self) -> int:
        self._read()
        return self._meter.count


def validate(model, loader, args, device, amp_autocast, model_dtype, log_suffix, logger) -> Dict[str, float]:
    args.no_prefetcher = not args.prefetcher
    return engine.validate(model, loader, args, device, amp_autocast, model_dtype, log_suffix, logger=logger)


def continue_run(saver: AtomicCheckpointSaver, args, output_dir: str) -> AtomicCheckpointSaver:
    """Restore the saver's history and cut the summary, where the run resumes into its own folder."""
    if args.resume and engine.is_own_folder(args.resume, output_dir):
        saver.load_state_dict_from_checkpoint(args.resume)
        start_epoch = args.start_epoch
        if start_epoch is None:
            start_epoch = read_checkpoint(args.resume).epoch + 1
        trim_summary(os.path.join(output_dir, 'summary.csv'), start_epoch)
    return saver


class _TimedLoader:
    """A loader that measures: time waiting for batches, and images by step."""

    def __init__(self, loader: Any, throughput: Throughput, world_size: int):
        self._loader, self._throughput, self._world_size = loader, throughput, world_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def mixup_enabled(self) -> bool:
        return self._loader.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._loader.mixup_enabled = enabled

    def __iter__(self):
        start = time.perf_counter()
        for batch in self._loader:
            self._throughput.add_wait(time.perf_counter() - start)
            yield batch
            self._throughput.step(len(batch[1]) * self._world_size)
            start = time.perf_counter()


_record: Optional[Dict[str, Any]] = None


def record_epoch(train_one_epoch: Callable) -> Callable:
    """Decorator that measures an epoch, reports the peak memory, and adds both to `run.json`."""
    @functools.wraps(train_one_epoch)
    def measured(epoch, model, loader, optimizer, args, **kwargs):
        global _record
        if loading.is_fast(loader.dataset):
            loading.set_epoch(loader, epoch)
        throughput = Throughput()
        metrics = train_one_epoch(
            epoch, model, _TimedLoader(loader, throughput, args.world_size), optimizer, args, **kwargs)
        folder = kwargs.get('output_dir')
        if folder is not None:  # the primary process
            if _record is None:
                _record = run_record.new_record(dict(plan, output=folder))
                if args.resume and engine.is_own_folder(args.resume, folder):
                    _record = run_record.resume_record(folder, _record, epoch)
            figures = dict(epoch=epoch, **throughput.summary())
            _logger.info(describe_wait(epoch, figures, args.workers))
            engine.report_memory(figures, kwargs['device'])
            run_record.add_epoch(_record, folder, figures, _record['best'])
        return metrics
    return measured


# --- validate.py ------------------------------------------------------------------------------------------------------

def init_distributed(args) -> torch.device:
    if dist.is_initialized():
        return torch.device(args.device)  # the script evaluates several checkpoints
    device = utils.init_distributed_device(args)
    if args.distributed:
        for flag in ('real_labels', 'metrics_avg'):
            if getattr(args, flag):
                raise UsageError(
                    f'--{flag.replace("_", "-")} needs all predictions in one place: run it on one process.')
    return device


class _Share(Dataset):
    """Every n-th image of a dataset, from this rank's on: together the ranks have each image once."""

    def __init__(self, dataset: Dataset, rank: int, world_size: int):
        self.dataset = dataset
        self._indices = range(rank, len(dataset), world_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self.dataset[self._indices[index]]

    @property
    def transform(self):
        return self.dataset.transform

    @transform.setter
    def transform(self, transform) -> None:
        self.dataset.transform = transform  # timm's create_loader sets it


def share_of_rank(dataset: Dataset, args) -> Dataset:
    if not args.distributed:
        return dataset
    if isinstance(dataset, IterableDataset):
        raise UsageError('An iterable dataset cannot be shared among processes exactly: run it on one process.')
    return _Share(dataset, args.rank, args.world_size)


def means_over_ranks(top1: DeviceMeter, top5: DeviceMeter, losses: DeviceMeter) -> Tuple[float, float]:
    """top1 and top5 over the images of all ranks; leaves a record of the evaluation if the launcher wants one."""
    sums = [top1.avg * top1.count, top5.avg * top1.count, losses.avg * top1.count, top1.count]
    if dist.is_initialized():
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, sums)
        sums = [sum(column) for column in zip(*gathered)]
    count = max(1, sums[3])
    if plan.get('record') and (not dist.is_initialized() or dist.get_rank() == 0):
        write_json(plan['record'], dict(
            images=sums[3], seconds=time.perf_counter() - losses.created, top1=sums[0] / count, loss=sums[2] / count))
    return sums[0] / count, sums[1] / count


def primary_only(function: Callable) -> Callable:
    """Decorator: only rank 0 writes."""
    @functools.wraps(function)
    def on_primary(*args, **kwargs):
        if not dist.is_initialized() or dist.get_rank() == 0:
            return function(*args, **kwargs)
        return None
    return on_primary


def load_checkpoint(model: torch.nn.Module, args) -> None:
    load_weights(model, read_checkpoint(args.checkpoint), args.model, use_ema=args.use_ema)


def prepare_eval_model(model: torch.nn.Module, args, device: torch.device) -> torch.nn.Module:
    args.fuse_bn = fuse_bn
    return apply_fuse_bn(model, args, device)
