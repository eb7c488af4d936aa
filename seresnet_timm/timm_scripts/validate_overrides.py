"""Names of timm's validate.py that are replaced, and why: see `overrides`"""
import glob
import json
import logging
import os
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist
from timm import utils
from timm.data import create_loader, resolve_data_config
from torch.utils.data import Dataset, IterableDataset

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import load_weights
from seresnet_timm.checkpoints.read import read_once
from seresnet_timm.data import loading
from seresnet_timm.data.image_files import IGNORED_TARGET
from seresnet_timm.data.position import make_restartable
from seresnet_timm.engine import faults
from seresnet_timm.engine.divergence import describe_evaluation
from seresnet_timm.engine.evaluate import report_unreadable
from seresnet_timm.engine.model_info import check_planned_classes, model_info_of, refuse_other_classes
from seresnet_timm.engine.outputs import record_evaluation
from seresnet_timm.engine.validate import refuse_left_out, refuse_unreadable, tell_choice
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.files import as_json
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step.fuse_bn import apply_fuse_bn
from seresnet_timm.timm_scripts.meters import DeviceMeter
from seresnet_timm.timm_scripts.overrides import Override, Overrides

_logger = logging.getLogger('validate')


class ValidateOverrides(Overrides):
    """Replacements in validate.py."""

    def __init__(self, settings: RunSettings):
        super().__init__(settings)
        self._model: Optional[torch.nn.Module] = None
        self._dataset: Optional[Dataset] = None
        self._loader: Any = None
        self._checkpoint: Optional[Checkpoint] = None  # until its classes have been compared with those of the data
        self._is_folder = os.path.isdir(settings.args.get('checkpoint') or '')  # each checkpoint in it is evaluated
        self._left_out_paths: List[str] = []

    def names(self) -> Dict[str, Override]:
        return {
            'parser.parse_args': Override('main', self.parse_args),
            'create_model': Override('validate', self.create_model),
            'load_checkpoint': Override('validate', self.load_checkpoint),
            'create_dataset': Override('validate', self.create_dataset),
            'create_loader': Override('validate', self.create_loader),
            'glob.glob': Override('main', self.checkpoints_in_folder),
            'write_results': Override('main', self.write_results),
            'json.dumps': Override('main', self.as_json),
        }

    def parse_args(self) -> Any:
        """Take the flags from the settings (line 487).

        Without: every rank would read the command line again.
        Checked by: test_runs.py, an evaluation under flags that `sys.argv` does not have.
        """
        return self.args

    def load_checkpoint(self, model: torch.nn.Module, checkpoint_path: str, use_ema: bool = True) -> None:
        """Load ModelZoo and torchvision-style checkpoints into the SE-ResNets (line 236).

        Without: the weights that ModelZoo users have cannot be evaluated, as timm knows its own names only.
        Checked by: test_runs.py evaluates one.
        """
        with self._left_out():
            self._checkpoint = read_once(checkpoint_path, self.checkpoints)
            if self._is_folder:
                tell_choice(self._checkpoint, self.args)
            load_weights(model, self._checkpoint, self.args.model, use_ema=use_ema)

    def checkpoints_in_folder(self, pattern: str) -> List[str]:
        """Find the checkpoints of a folder whose name may hold brackets and stars (lines 498 and 499).

        Without: they are read as a pattern, and no checkpoint is found in the folder.
        Checked by: test_divergence.py evaluates such a folder.
        """
        folder, name = os.path.split(pattern)
        return glob.glob(os.path.join(glob.escape(folder), name))

    def create_loader(self, dataset: Dataset, *args, **kwargs) -> Any:
        """Create a loader of this rank's share of the images, which decodes fast (line 329).

        Without: every rank would evaluate all images, and an image takes three times the time.
        Checked by: test_runs.py and test_fast_jpeg.py, equal results with the bundled script.
        """
        check_planned_classes(self.settings, dataset)
        with self._left_out():
            refuse_other_classes(self._checkpoint, dataset, self.args)
        self._dataset, self._checkpoint = dataset, None
        dataset = self._share_of_rank(self._decode_fast(dataset, is_training=False))
        self._loader = create_loader(dataset, *args, **self.normalization(kwargs))
        loader = loading.seed_and_speed_up(self._loader, getattr(self.args, 'seed', 0))
        return make_restartable(loader, kwargs['device'])

    def _share_of_rank(self, dataset: Dataset) -> Dataset:
        if not self.args.distributed:
            return dataset
        if isinstance(dataset, IterableDataset):
            raise UsageError('An iterable dataset cannot be shared among processes exactly: run it on one process.')
        return _Share(dataset, self.args.rank, self.args.world_size)

    def write_results(self, results_file: str, results: Any, format: str = 'csv') -> None:
        """Write the results on rank 0 only (line 553).

        Without: all ranks write the same file at once.
        Checked by: test_runs.py, the file of an evaluation of three processes.
        """
        if not dist.is_initialized() or dist.get_rank() == 0:
            finite = json.loads(as_json(results)) if format == 'json' else results
            self._originals['write_results'](results_file, finite, format=format)

    def run(self, main: Callable[[], None]) -> None:
        super().run(main)
        refuse_left_out(self._left_out_paths)

    @contextmanager
    def _left_out(self) -> Iterator[None]:
        """Let the script go on with the next checkpoint of a folder after one that cannot be evaluated."""
        try:
            yield
        except UsageError as e:
            if not self._is_folder:
                raise
            self._left_out_paths.append(self.args.checkpoint)
            # the script catches it; after an error without this word it tries smaller batches
            raise RuntimeError(f'Left out as illegal: {e}') from e

    # called by patched code

    def init_distributed(self, args) -> torch.device:
        if dist.is_initialized():
            return torch.device(args.device)  # the script evaluates several checkpoints
        device = utils.init_distributed_device(args)
        if args.distributed:
            for flag in ('real_labels', 'metrics_avg'):
                if getattr(args, flag):
                    raise UsageError(
                        f'--{flag.replace("_", "-")} needs all predictions in one place: run it on one process.')
        return device

    def fold_batch_norm(self, model: torch.nn.Module) -> torch.nn.Module:
        self._model = model
        settings, logger = self.settings, _logger if utils.is_primary(self.args) else None
        return apply_fuse_bn(model, settings.fuse_bn, settings.device, settings.args, logger)

    def add_loss(self, meter: DeviceMeter, loss: torch.Tensor, target: torch.Tensor) -> None:
        """Add the mean loss of the images of a batch that could be read."""
        readable = (target != IGNORED_TARGET).sum()
        meter.update(torch.where(readable > 0, loss.detach(), 0.), readable)

    def means_over_ranks(self, top1: DeviceMeter, top5: DeviceMeter, losses: DeviceMeter) -> Tuple[float, float]:
        """top1 and top5 over the images of all ranks; the run's folder, if there is one, gets a record of them."""
        unreadable = report_unreadable(self._loader, _logger if utils.is_primary(self.args) else None)
        refuse_unreadable(self.args, unreadable)
        sums = [top1.avg * top1.count, top5.avg * top1.count, losses.avg * losses.count, top1.count, losses.count]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, sums)
            sums = [sum(column) for column in zip(*gathered)]
        count = max(1, sums[3])
        with self._left_out():
            problem = describe_evaluation(self.args.checkpoint or self.args.model, sums[2] / max(1, sums[4]))
            if problem:
                raise UsageError(problem) if self._is_folder else RunError(problem)
        if self.settings.output and (not dist.is_initialized() or dist.get_rank() == 0):
            data_config = resolve_data_config(
                vars(self.args), model=self._model, use_test_size=not getattr(self.args, 'use_train_size', False))
            info = model_info_of(self._model, data_config, self._dataset).to_dict()
            figures = dict(
                images=sums[3], seconds=round(time.perf_counter() - losses.created, 3), top1=sums[0] / count,
                top5=sums[1] / count, loss=sums[2] / max(1, sums[4]), unreadable=unreadable)
            record_evaluation(self.settings, info, figures, faults.take([self._loader]))
        return sums[0] / count, sums[1] / count


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
