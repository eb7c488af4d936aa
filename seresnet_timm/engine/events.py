"""Event files of TensorBoard: losses, metrics, learning rate and images/s of every epoch (`--tensorboard`)"""
import logging
from contextlib import suppress
from typing import Dict, List, Optional, Tuple

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
        self._folder, self._writer = str(folder.tensorboard), None  # type: str, Any
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
                from torch.utils.tensorboard import SummaryWriter
                self._writer = SummaryWriter(self._folder, purge_step=self._purge)
            for figure in self._waiting:
                self._writer.add_scalar(*figure)
            self._writer.flush()
            self._waiting = []
        except OSError as e:
            self._writer, self._purge = None, self._waiting[0][2]  # a new file, which takes the place of what is there
            _logger.error(f'NOT SAVED: events of TensorBoard ({first_line(e)}). They are written after the next epoch.')

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):  # all is flushed
                self._writer.close()
