"""The command line: a file for each verb. `seresnet_timm.cli.main(['train', ...])` runs it from Python."""
from seresnet_timm.cli.main import main

__all__ = ['main']
