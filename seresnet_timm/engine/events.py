"""Event files of TensorBoard: losses, metrics, learning rate and images/s of every epoch (`--tensorboard`)"""
import logging
from typing import Any, Dict, Optional

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
        from torch.utils.tensorboard import SummaryWriter
        self._writer: Any = SummaryWriter(
            str(folder.tensorboard), purge_step=start_epoch if folder.tensorboard.exists() else None)

    def add(
            self,
            epoch: int,
            train_metrics: Dict[str, float],
            eval_metrics: Optional[Dict[str, float]],
            lr: float,
            fps: Optional[float],
    ) -> None:
        """Write the figures of an epoch. An error of the disk ends the writing, not the training."""
        if self._writer is None:
            return
        values = {'loss/train': train_metrics['loss'], 'learning_rate': lr, 'images_per_second': fps}
        for name, value in (eval_metrics or {}).items():
            values['loss/eval' if name == 'loss' else f'eval/{name}'] = value
        try:
            for tag, value in values.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, epoch)
            self._writer.flush()
        except OSError as e:
            _logger.error(f'NOT SAVED: events of TensorBoard ({first_line(e)}); none are written any more.')
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
