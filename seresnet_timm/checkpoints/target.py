"""The file that a conversion writes, judged before a checkpoint is read for it"""
from typing import Optional

from seresnet_timm.errors import UsageError, did_you_mean

FORMATS = ('timm', 'modelzoo', 'safetensors')
DTYPES = ('float32', 'float16', 'bfloat16')


def check_target(target: str, to: Optional[str], dtype: Optional[str]) -> str:
    """Format of the file to write, by its name if it was not given; it needs no checkpoint."""
    is_named_so = target.lower().endswith('.safetensors')
    if to is None:
        to = 'safetensors' if is_named_so else 'timm'
    if to not in FORMATS:
        raise UsageError(f"Unknown format --to '{to}': {did_you_mean(to, FORMATS)}")
    if (to == 'safetensors') != is_named_so:
        raise UsageError(f'{target} has the wrong ending for --to {to}: names of safetensors end in .safetensors, '
                         'others do not.')
    if dtype not in (None, *DTYPES):
        raise UsageError(f"Unknown --dtype '{dtype}': {did_you_mean(dtype, DTYPES)}")
    return to
