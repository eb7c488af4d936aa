"""Event files of TensorBoard: losses, metrics, learning rate and images/s of every epoch (`--tensorboard`)"""
import logging
import os
import socket
import time
from contextlib import suppress
from typing import Any, Dict, List, Optional, Tuple

from seresnet_timm.errors import first_line
from seresnet_timm.runs.folder import RunFolder

_logger = logging.getLogger('train')


class EpochEvents:
    """Writes one event of each figure an epoch, whose step is the number of the epoch.

    Args:
        folder: Folder of the run.
        start_epoch: Epoch at which the run goes on; readers drop what an earlier process wrote of it and of later ones.
    """

    def __init__(self, folder: RunFolder, start_epoch: int):
        self._folder = folder.tensorboard
        self._file: Any = None
        self._writer: Any = None
        self._purge: Optional[int] = start_epoch if folder.tensorboard.exists() else None
        self._waiting: List[Tuple[str, float, int]] = []

    def add(
            self,
            epoch: int,
            train_metrics: Dict[str, float],
            eval_metrics: Optional[Dict[str, float]],
            lr: float,
            fps: Optional[float],
    ) -> None:
        """Write the figures of an epoch, after those that an error of the disk kept from being written."""
        values = {'loss/train': train_metrics['loss'], 'learning_rate': lr, 'images_per_second': fps}
        for name, value in (eval_metrics or {}).items():
            values['loss/eval' if name == 'loss' else f'eval/{name}'] = value
        self._waiting += [(tag, value, epoch) for tag, value in values.items() if value is not None]
        try:
            if self._writer is None:
                self._open()
            from torch.utils.tensorboard.summary import scalar
            for tag, figure, step in self._waiting:
                self._write(summary=scalar(tag, figure), step=step)
            self._file.flush()
            self._waiting = []
        except OSError as e:
            self.close()
            self._writer, self._purge = None, self._waiting[0][2]  # a new file, which takes the place of what is there
            _logger.error(f'NOT SAVED: events of TensorBoard ({first_line(e)}). They are written after the next epoch.')

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # all is flushed, or waits
                self._file.close()
            self._file = None

    def _open(self) -> None:
        """A new file. torch's SummaryWriter writes in a thread, which prints a traceback where the disk is full."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        self._folder.mkdir(exist_ok=True)
        name = f'events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}'
        self._file = open(self._folder / name, 'wb')
        self._writer = RecordWriter(self._file)
        self._write(file_version='brain.Event:2')
        if self._purge is not None:
            self._write(session_log=SessionLog(status=SessionLog.START), step=self._purge)

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
