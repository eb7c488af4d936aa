"""The running statistics of BatchNorm for weights that no step has made, from the training images of a run"""
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional

import torch
import torch.nn as nn
from timm.data import resolve_data_config
from torch.optim.swa_utils import update_bn

from seresnet_timm import device as devices
from seresnet_timm.data import loaders
from seresnet_timm.data.fast_jpeg import choose_decoder
from seresnet_timm.data.position import end_workers
from seresnet_timm.engine.flags import defaults_of
from seresnet_timm.engine.model_info import check_planned_classes
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.models.create import create_from_info
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.record import read_record
from seresnet_timm.runs.settings import RunSettings


def settings_of(folder: Path, data_dir: str, batch_size: Optional[int], workers: Optional[int]) -> RunSettings:
    """Settings of a run, for its training images in one process: without mixup, at the size of its evaluation.

    Args:
        folder: Folder of the run.
        data_dir: Its data, which may have moved.
        batch_size: Images of a batch; None for that of the run.
        workers: Loader workers; None for those of the run.
    """
    record = read_record(folder)['settings']
    if record['verb'] != 'train':
        raise UsageError(f'{printable(folder)} is not the folder of a training.')
    settings = RunSettings.from_dict(record)
    given = {k: v for k, v in (('batch_size', batch_size), ('workers', workers)) if v is not None}
    args = {**defaults_of('train'), **settings.args, 'data_dir': data_dir, **given}
    args.update(train_img_sizes=None, mixup=0., cutmix=0., cutmix_minmax=None, aug_repeats=0, aug_splits=0,
                use_multi_epochs_loader=False, no_prefetcher=False, distributed=False, rank=0)
    return replace(settings, args=args, world_size=1)


def recompute(settings: RunSettings, info: ModelInfo, weights: Dict[str, torch.Tensor], device_name: str) -> int:
    """Replace the running statistics in a state dict by those of the training images, with torch's `update_bn`.

    Args:
        settings: As from `settings_of`.
        info: The network.
        weights: Its weights; changed in place.
        device_name: 'auto' or a device.

    Returns:
        Number of images.

    Raises:
        UsageError: The images are fewer than a batch, or a batch has too few values for statistics.
        RunError: The classes of the data are not those of the run.
    """
    device = torch.device(devices.select_device(device_name)[0])
    args = Namespace(**settings.args)
    model: nn.Module = create_from_info(info, 'the checkpoints')
    model.load_state_dict(weights)
    args.num_classes = model.num_classes
    data_config: Dict[str, Any] = resolve_data_config(vars(args), model=model)
    loader, _ = loaders.train_loader(loaders.LoaderSetup(
        args, data_config, device, None, choose_decoder(args, settings.fast_jpeg)[0], settings.class_names,
        settings.data_timeout))
    if not len(loader):
        raise UsageError(f'{printable(args.data_dir)} has {len(loader.dataset)} training images, a batch needs '
                         f'{args.batch_size}: lower -b.')
    check_planned_classes(settings, loader.dataset)
    try:
        update_bn(loader, model.to(device))
    except ValueError as e:
        if 'more than 1 value per channel' not in str(e):
            raise
        raise UsageError(f'A batch of {args.batch_size} has a single value per channel in a BatchNorm layer, of which '
                         'there are no statistics: raise -b.') from e
    finally:
        end_workers(loader)
    state = model.state_dict()
    for key in weights:
        if key.rpartition('.')[2] in ('running_mean', 'running_var', 'num_batches_tracked'):
            weights[key] = state[key].cpu()
    return len(loader) * args.batch_size
