"""The average of several checkpoints of a network, as one checkpoint (stochastic weight averaging)

Floating point values are averaged in float64, as `torch.optim.swa_utils.AveragedModel` and timm's avg_checkpoints.py
average them; counters (`num_batches_tracked`) are those of the newest file. Class names and preprocessing carry over.
"""
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from seresnet_timm.checkpoints.checkpoint import Checkpoint, weights_sha256
from seresnet_timm.checkpoints.convert import as_timm, network_and_weights
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.checkpoints.save_errors import torch_errors_as_oserror
from seresnet_timm.errors import UsageError, counted, first_names, printable
from seresnet_timm.files import atomic_path
from seresnet_timm.models.create import not_finite, why_not_plain
from seresnet_timm.models.info import ModelInfo

AVERAGED = 'averaged'  # key of a checkpoint: the files and epochs that it is the average of
NUMBERED = re.compile(r'checkpoint-(\d+)\.pth\.tar')
MAX_NAMED = 3
# what of a network and its preprocessing must be the same in all files, and how it is called
SAME = {'name': 'network', 'kwargs': 'arguments of the network', 'num_classes': 'number of classes',
        'in_chans': 'number of input channels', 'mean': 'mean', 'std': 'standard deviation'}


@dataclass
class Average:
    """The average of checkpoints.

    Attributes:
        weights: Averaged weights, under timm's names.
        info: The network, classes and preprocessing of the newest file.
        newest: The newest file.
        files: The files, oldest first.
        epochs: Number of the last epoch of each.
        use_ema: Their moving averages were averaged.
        statistics: 'averaged' or 'recomputed', the running statistics of BatchNorm; None for a network without.
    """
    weights: Dict[str, torch.Tensor]
    info: ModelInfo
    newest: Checkpoint
    files: List[str]
    epochs: List[Optional[int]]
    use_ema: bool
    statistics: Optional[str]

    def describe(self) -> str:
        kind = 'moving averages' if self.use_ema else 'weights'
        epochs = ', '.join('?' if e is None else str(e) for e in self.epochs)
        return f'Average of the {kind} of {len(self.files)} checkpoints, of the epochs {epochs}.'

    def save(self, target: str) -> None:
        """Write it as a checkpoint that timm loads too; the file is complete or does not exist."""
        content = as_timm(self.weights, self.info.name, self.newest.epochs, None, self.info)
        content[AVERAGED] = dict(files=self.files, epochs=self.epochs, use_ema=self.use_ema, statistics=self.statistics)
        with atomic_path(target) as tmp, torch_errors_as_oserror(tmp), open(tmp, 'wb') as f:
            torch.save(content, f)


def find_files(sources: Sequence[str], last: Optional[int]) -> List[str]:
    """The checkpoints to average: those of the last epochs in the folder of a run, or files by name.

    Raises:
        UsageError: There are none, or fewer than asked for.
    """
    folders = [s for s in sources if Path(s).is_dir()]
    if not folders:
        if last is not None:
            raise UsageError('--last counts the checkpoints of a run: name the folder of the run, or leave it out.')
        return list(sources)
    if len(sources) > 1:
        raise UsageError(f'Name one folder of a run, or files: {printable(folders[0])} is a folder.')
    folder = Path(folders[0])
    numbered = sorted((int(m[1]), p) for p in folder.iterdir() if (m := NUMBERED.fullmatch(p.name)))
    if len(numbered) < max(2, last or 2):
        raise UsageError(
            f'{printable(folder)} has {counted(len(numbered), "checkpoint")} with a number (checkpoint-N.pth.tar), '
            f'{max(2, last or 2)} are needed: a training keeps the best --checkpoint-hist ones, 10 by default.')
    return [str(path) for _, path in numbered[-(last or len(numbered)):]]


def default_target(sources: Sequence[str]) -> str:
    """Where the average goes: beside the checkpoints."""
    first = Path(sources[0])
    return str((first if first.is_dir() else first.parent) / 'averaged.pth.tar')


def average(files: Sequence[str], use_ema: bool = False) -> Average:
    """Average the weights of checkpoints.

    Args:
        files: The checkpoints, in any order.
        use_ema: Average their moving averages.

    Raises:
        UsageError: A file cannot be read, or they are not of one network and its classes, or a weight is not finite.
    """
    if len(files) < 2:
        raise UsageError(f'{printable(files[0])} is one checkpoint: name two or more, or the folder of a run.')
    total: Dict[str, torch.Tensor] = {}
    first: Any = None
    newest: Any = None
    seen: Dict[str, str] = {}
    found: List[Tuple[int, str, Optional[int]]] = []
    for path in files:
        checkpoint = read_checkpoint(path)
        if use_ema and not checkpoint.has_ema:
            raise UsageError(f'{printable(path)} holds no moving average of the weights: leave out --use-ema.')
        info, weights = network_and_weights(checkpoint, use_ema, None)
        _check(path, weights, seen)
        if first is None:
            first = (path, info, {k: (v.shape, v.dtype) for k, v in weights.items()})
        _compare(first, (path, info, {k: (v.shape, v.dtype) for k, v in weights.items()}))
        for key, value in weights.items():
            if value.is_floating_point():
                total[key] = total[key].add_(value) if key in total else value.to(torch.float64, copy=True)
        epoch = -1 if checkpoint.epoch is None else checkpoint.epoch
        found.append((epoch, str(path), checkpoint.epoch))
        if newest is None or epoch >= newest[0]:
            newest = (epoch, checkpoint, info, weights)
    _, checkpoint, info, last = newest
    weights = {k: (total[k] / len(files)).to(v.dtype) if k in total else v for k, v in last.items()}
    found.sort(key=lambda f: f[0])
    has_statistics = any(k.endswith('running_mean') for k in weights)
    return Average(weights, info, checkpoint, [path for _, path, _ in found], [e for *_, e in found], use_ema,
                   'averaged' if has_statistics else None)


def _check(path: str, weights: Dict[str, torch.Tensor], seen: Dict[str, str]) -> None:
    """Refuse weights that have no plain numbers, that are not finite, or that were there already."""
    kinds = [f'{k} ({why_not_plain(v)})' for k, v in weights.items() if why_not_plain(v)]
    if kinds:
        raise UsageError(f'{printable(path)} has weights that cannot be averaged: '
                         f'{printable(first_names(kinds, MAX_NAMED))}. Leave it out.')
    bad = not_finite(weights)
    if bad:
        raise UsageError(f'{printable(path)} has weights that are not finite (NaN or infinity): '
                         f'{printable(first_names(bad, MAX_NAMED))}. Leave it out.')
    digest = weights_sha256(weights)
    if digest in seen:
        raise UsageError(f'{printable(path)} and {printable(seen[digest])} hold the same weights, which would count '
                         'twice: leave out one.')
    seen[digest] = str(path)


def _compare(first: Tuple[str, ModelInfo, Dict[str, Any]], other: Tuple[str, ModelInfo, Dict[str, Any]]) -> None:
    """Refuse checkpoints that are not of one network and its classes."""
    (path_a, info_a, shapes_a), (path_b, info_b, shapes_b) = first, other
    where = f'{printable(path_a)} and {printable(path_b)} cannot be averaged'
    for key, name in SAME.items():
        a, b = getattr(info_a, key), getattr(info_b, key)
        if a != b and None not in (a, b):
            raise UsageError(f'{where}: they differ in the {name} ({printable(a)}, {printable(b)}).')
    names_a, names_b = info_a.class_names, info_b.class_names
    if names_a and names_b and names_a != names_b:
        index, a, b = next((i, a, b) for i, (a, b) in enumerate(zip_longest(names_a, names_b)) if a != b)
        raise UsageError(f'{where}: their classes differ (class {index} is {printable(a)}, {printable(b)}).')
    differ = [k for k in {**shapes_a, **shapes_b} if shapes_a.get(k) != shapes_b.get(k)]
    if differ:
        raise UsageError(f'{where}: they do not hold the same weights ({printable(first_names(differ, MAX_NAMED))}).')
