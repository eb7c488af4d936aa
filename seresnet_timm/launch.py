"""`seresnet-timm train | validate`: options, then the checks that cost nothing, then the script."""
import os
from typing import Sequence

from seresnet_timm import options
from seresnet_timm.engine import arguments


def run(verb: str, argv: Sequence[str]) -> None:
    """Run a script in this process.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.

    Raises:
        UsageError: The command line, the data or a checkpoint is wrong; all that was found is named.
        RunError: The script failed.
    """
    make_parser = arguments.train_parser if verb == 'train' else arguments.validate_parser
    parser = make_parser(prog=f'seresnet-timm {verb}')
    if any(a in ('-h', '--help') for a in argv):
        options.add_launcher_help(parser)
        parser.print_help()
        return
    script_argv = options.script_args(argv)
    args, _ = arguments.parse_args(parser, script_argv)

    # from here on torch and timm are needed; what could be refused without them has been
    from timm.utils import setup_default_logging

    from seresnet_timm import models, preflight  # noqa: F401  (models registers itself with timm)
    from seresnet_timm.engine import train, validate

    setup_default_logging()
    if os.environ.get('LOCAL_RANK', '0') == '0':  # once a machine; torchrun stops the other ranks if this one ends
        preflight.check(verb, args)
    (train if verb == 'train' else validate).main(script_argv)
