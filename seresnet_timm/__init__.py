"""Train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm.

`import seresnet_timm` registers `seresnet{18,34,50,101,152}_ascend` with timm.
"""
import os
import sys


def _starts_our_command_line(orig_argv: list) -> bool:
    """Whether Python was started as `python -m seresnet_timm` or with the script `seresnet-timm`.

    Its options are read as Python reads them: in a group of letters -c and -m end the options, and -W, -X take a value.
    """
    words = iter(orig_argv[1:])
    for word in words:
        if word.startswith('--') and word != '--':
            if word == '--check-hash-based-pycs':
                next(words, None)
        elif word.startswith('-') and word != '-':
            for i, letter in enumerate(word[1:], start=2):
                if letter in 'cmWX':
                    value = word[i:] or next(words, '')  # -mNAME or -m NAME
                    if letter == 'm':
                        return value.partition('.')[0] == 'seresnet_timm'
                    if letter == 'c':
                        return False
                    break
        else:
            return os.path.basename(word) == 'seresnet-timm'
    return False


if _starts_our_command_line(sys.orig_argv) and not (sys.flags.isolated or getattr(sys.flags, 'safe_path', False)):
    # `python -m` looks in the current folder first: its `profile.py` or `inspect.py` is not the standard library's
    sys.path.append(sys.path.pop(0))

from seresnet_timm import old_names  # noqa: E402
from seresnet_timm.version import __version__, refuse_old_timm  # noqa: E402, F401

old_names.register()
if not _starts_our_command_line(sys.orig_argv):  # `--help` does not wait for torch; a verb imports the models itself
    refuse_old_timm()
    from seresnet_timm import models  # noqa: F401  (registers the models)
