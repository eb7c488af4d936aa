"""`seresnet-timm VERB ...`: the table of verbs, the dispatch to cli/VERB.py, and the exit codes.

A verb's file has `add_arguments(parser)` and `run(args)`. It is imported when its verb is chosen, and imports torch
inside `run` only, so that `--help` is quick.
"""
import argparse
import functools
import importlib
import os
import sys
from types import ModuleType
from typing import Dict, List, Optional, Sequence

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import RunError, UsageError, did_you_mean, print_any_text, printable
from seresnet_timm.version import __version__

# verb -> its line in `seresnet-timm --help`
VERBS: Dict[str, str] = {
    'train': 'train a model',
    'validate': 'evaluate a model or a checkpoint',
    'recipe': 'run a recipe of the ModelZoo',
    'scripts': "show which train.py is used; `scripts fetch` downloads timm's",
    'demo-data': 'write a small dataset of real images',
    'inspect': 'show what a checkpoint contains, and whether it is complete',
    'convert': 'convert a checkpoint between timm, the ModelZoo and safetensors',
    'doctor': 'check versions, CANN, devices and network, and compute on every device',
    'export': 'write a model as ONNX or torch.export program, for example for Ascend inference',
    'predict': 'print the most likely classes of images',
    'compare': 'compare a network on two devices, precisions or checkpoints, module by module',
    'check-data': 'list the damaged images, duplicates and odd classes of a dataset',
    'prepare': 'copy a dataset and reduce its large images, for faster training',
    'prepare-imagenet': 'unpack the official tar files of ImageNet',
    'push': 'push a run or a checkpoint to the Hugging Face Hub',
    'pull': 'download a model from the Hugging Face Hub and verify it',
    'weights': '`weights fetch` puts pretrained weights into the cache, from the Hub, a mirror or a file',
    'bench': 'compare the loader, a training step or a whole training with timm',
    'report': "print a run's results table and draw its curves",
}
# packages whose absence means that another Python was started than the one that has this package
REQUIRED_PACKAGES = (
    'torch', 'timm', 'torchvision', 'yaml', 'numpy', 'PIL', 'safetensors', 'tqdm', 'huggingface_hub', 'psutil',
    'filelock',
)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a command line; errors that a user can act on are one sentence on stderr and an exit code."""
    print_any_text()
    try:
        dispatch(sys.argv[1:] if argv is None else list(argv))
    except (UsageError, RunError) as e:
        rank = os.environ.get('RANK', '')
        fail(str(e), e.exit_code, f' (rank {rank})' if rank.isdigit() else '')
    except BrokenPipeError:  # the reader, e.g. `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RuntimeError as e:
        if 'backend extension: torch_npu' not in str(e):
            raise
        fail('torch_npu does not load, and torch with it: source the set_env.sh of CANN first, or set '
             'TORCH_DEVICE_BACKEND_AUTOLOAD=0 to work without the NPU.')
    except ModuleNotFoundError as e:
        if e.name not in REQUIRED_PACKAGES:
            raise
        fail(f'{e.name} is not installed for {sys.executable}: activate the environment that has this package '
             f'(`. .venv/bin/activate` after `make demo`), name its Python with PYTHON=..., or install {e.name} '
             'there.')


def fail(message: str, exit_code: int = 1, where: str = '') -> None:
    lines = '\n'.join(printable(line) for line in message.split('\n'))
    print(f'seresnet-timm: error{where}: {lines}', file=sys.stderr)
    sys.exit(exit_code)


def dispatch(argv: List[str]) -> None:
    """Parse a command line and run its verb.

    Raises:
        UsageError: There is no such verb or flag, or an argument is wrong.
    """
    verb = argv[0] if argv else ''
    if verb not in VERBS:
        parser = make_parser()
        if not argv or verb == 'help':
            parser.print_help()
        if not argv:
            raise UsageError('Name a verb: ' + ', '.join(VERBS) + '.')
        if verb == 'help':
            return
        if verb.startswith('-'):
            parser.parse_args(argv[:1])  # --help and --version end here, other flags are refused
        raise UsageError(f"Unknown verb '{verb}': {did_you_mean(verb, VERBS)}")
    module = importlib.import_module(f'seresnet_timm.cli.{verb.replace("-", "_")}')
    args = make_parser(verb, module).parse_args(argv)
    if not HELP_FLAGS.intersection(argv):
        from seresnet_timm.ascend.runtime import disable_incompatible_torch_npu  # 25 ms
        disable_incompatible_torch_npu()
    module.run(args)


def make_parser(verb: str = '', module: Optional[ModuleType] = None) -> ArgumentParser:
    """The parser of all verbs; the arguments are those of one verb, whose file is given."""
    parser = ArgumentParser(
        prog='seresnet-timm', usage='seresnet-timm <verb> [options]',
        description=f'seresnet-timm {__version__}: train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm',
        epilog="'seresnet-timm <verb> --help' lists the options of a verb.",
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=24))
    parser.add_argument('-V', '--version', action='version', version=__version__)
    verbs = parser.add_subparsers(title='verbs', metavar='<verb>', parser_class=ArgumentParser)
    for name, text in VERBS.items():
        verb_parser = verbs.add_parser(name, help=text, prog=f'seresnet-timm {name}')
        if name == verb:
            module.add_arguments(verb_parser)
            parser.rules = rules_of(verb)
    return parser
