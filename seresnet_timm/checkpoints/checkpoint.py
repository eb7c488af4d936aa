"""What a checkpoint file holds, and what it says of itself."""
import hashlib
from typing import Any, Dict, Optional, Union

import torch

SHA256_KEY = 'weights_sha256'  # in our checkpoints: SHA-256 of the weights, by the name under which they lie
WEIGHTS_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')


def weights_sha256(weights: Dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def has_ema(checkpoint: Dict[str, Any]) -> bool:
    """True if a checkpoint holds the moving average of the weights."""
    return any(checkpoint.get(k) is not None for k in EMA_KEYS)


def state_dict_of(checkpoint: Dict[str, Any], use_ema: bool = False) -> Dict[str, Any]:
    """The weights in a checkpoint under the names that they have there; the moving average if asked for and there."""
    for key in (EMA_KEYS if use_ema else ()) + WEIGHTS_KEYS:
        if isinstance(checkpoint.get(key), dict):
            return checkpoint[key]
    return checkpoint


def holds_checksum(checkpoint: Dict[str, Any], kind: str) -> bool:
    """True if `read_checkpoint` could check every value of a file, of the format that `file_format` tells."""
    return kind == 'zip' or isinstance(checkpoint.get(SHA256_KEY), dict)


def source(checkpoint: Dict[str, Any], kind: str) -> str:
    """Who wrote a checkpoint, as far as it tells."""
    if 'best_acc1' in checkpoint:
        return 'ModelZoo checkpoint'
    if 'run_state' in checkpoint:
        return 'checkpoint of seresnet-timm'
    if 'version' in checkpoint or 'saver' in checkpoint:
        return 'timm checkpoint'
    return 'weights' if kind == 'safetensors' or state_dict_of(checkpoint) is checkpoint else 'checkpoint'


def epochs(checkpoint: Dict[str, Any]) -> Optional[int]:
    """Epochs that a checkpoint has been trained for. timm counts the last one from 0, others how many there were."""
    if isinstance(checkpoint.get('epochs'), int):
        return checkpoint['epochs']
    epoch, version = checkpoint.get('epoch'), checkpoint.get('version', 1)
    return epoch + (version == 2) if isinstance(epoch, int) else None


def metric(checkpoint: Dict[str, Any]) -> Optional[float]:
    """Metric that a checkpoint was saved with, top1 (percent) as a rule."""
    return _number(checkpoint.get('metric', checkpoint.get('best_acc1')))


def loss_scale(checkpoint: Dict[str, Any]) -> Optional[float]:
    """Loss scale of fp16 training that a checkpoint was saved with, by timm's names and by apex's."""
    scaler = checkpoint.get('amp_scaler', checkpoint.get('amp'))
    if not isinstance(scaler, dict):
        return None
    scaler = scaler.get('loss_scaler0', scaler)
    return _number(scaler.get('scale', scaler.get('loss_scale'))) if isinstance(scaler, dict) else None


def _number(value: Any) -> Union[int, float, None]:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, (int, float)) else None
