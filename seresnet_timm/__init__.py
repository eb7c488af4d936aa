"""Train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm.

`import seresnet_timm` registers `seresnet{18,34,50,101,152}_ascend` with timm.
"""
import os
import sys

from seresnet_timm.version import __version__  # noqa: F401


def _is_command_line() -> bool:
    """True while Python starts `seresnet-timm` or `python -m seresnet_timm`: `--help` must not wait for torch."""
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word in ('-W', '-X', '--check-hash-based-pycs'):
            next(words, None)  # the option's value
        elif word.startswith('--'):
            continue
        elif word.startswith('-') and 'c' in word.partition('m')[0]:
            return False
        elif word.startswith('-') and 'm' in word:  # -m NAME, -mNAME, -um NAME
            name = word.partition('m')[2] or next(words, '')
            return name == 'seresnet_timm' or name.startswith('seresnet_timm.')
        elif not word.startswith('-'):
            return os.path.basename(word) == 'seresnet-timm'
    return False


if not _is_command_line():
    from seresnet_timm import models  # noqa: F401  (registers the models)
