"""Faults of the data that did not end the run, for run.json: waits for the data folder, loader workers that ended"""
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional

import torch.distributed as dist

from seresnet_timm.data.image_files import image_files_of
from seresnet_timm.data.position import resumable
from seresnet_timm.runs.record import RunRecord

Fault = Dict[str, Any]  # kind, time, text


def note_own(record: Optional[RunRecord], epoch: Optional[int], *loaders: Any) -> None:
    """Add what happened to the loaders of this rank since the last call; nothing on ranks without a record."""
    if record is not None:
        add(record, epoch, take(loaders))


def note_all(record: Optional[RunRecord], epoch: Optional[int], *loaders: Any) -> None:
    """Add what happened to the loaders of all ranks since the last call. All ranks must call it together."""
    own = take(loaders)
    gathered: List[Any] = [own]
    if dist.is_available() and dist.is_initialized():
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, own)
    if record is not None:
        add(record, epoch, sorted((f for faults in gathered for f in faults), key=lambda fault: fault['when']))


@contextmanager
def noted(run: Any) -> Iterator[None]:
    """Add what happened to the loaders of this rank before an epoch did not come to its end; wait for the last save."""
    try:
        yield
    finally:
        note_own(run.record, run.epoch, run.train_loader, run.eval_loader)
        if run.outputs:
            run.outputs.saver.wait()


def take(loaders: Iterable[Any]) -> List[Fault]:
    """What happened to loaders of this rank since the last call."""
    faults: List[Fault] = []
    for loader in loaders:
        files, holder = image_files_of(getattr(loader, 'dataset', None)), resumable(loader)
        waits = [] if files is None else files.folder.take_waits()
        faults += [dict(kind='data_wait', when=wait.began, text=wait.describe()) for wait in waits]
        faults += [dict(kind='worker', when=when, text=text) for when, text in holder.take_ends()] if holder else []
    return faults


def add(record: RunRecord, epoch: Optional[int], faults: Iterable[Fault]) -> None:
    for fault in faults:
        record.add_fault(fault['kind'], epoch, fault['text'], fault['when'])
