"""Train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm.

`import seresnet_timm` registers `seresnet{18,34,50,101,152}_ascend` with timm.
"""
import os
import sys

__version__ = '0.1.0'


def _is_command_line() -> bool:
    """True while Python starts `seresnet-timm` or `python -m seresnet_timm`: `--help` must not wait for torch."""
    # `-m` is what sys.argv[0] holds until Python has found the module to run
    return sys.argv[:1] == ['-m'] or os.path.basename(sys.argv[0] if sys.argv else '') == 'seresnet-timm'


if not _is_command_line():
    from seresnet_timm import models  # noqa: F401  (registers the models)
