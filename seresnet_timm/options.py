"""Options of the launcher itself, taken off the command line before the rest goes to the training script."""
import argparse
import difflib
from pathlib import Path
from typing import List, Sequence

from seresnet_timm.engine.arguments import Parser
from seresnet_timm.errors import UsageError


def launcher_parser() -> Parser:
    parser = Parser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group('Launcher')
    group.add_argument('--preset', metavar='NAME', help='a recipe of this package as the config, see `recipes/`')
    return parser


def recipes_dir() -> Path:
    """Folder of the shell recipes and YAML presets: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / 'recipes'
    return installed if installed.is_dir() else package.parent / 'recipes'


def preset_path(name: str) -> Path:
    """Path of a preset.

    Args:
        name: File name in `recipes/`, with or without `.yaml`.

    Raises:
        UsageError: There is no such preset.
    """
    presets = {path.stem: path for path in sorted(recipes_dir().glob('*.yaml'))}
    path = presets.get(name[:-len('.yaml')] if name.endswith('.yaml') else name)
    if path is None:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f'did you mean {close[0]}?' if close else f'there are {", ".join(presets)}.'
        raise UsageError(f"No preset '{name}': {hint}")
    return path


def script_args(argv: Sequence[str]) -> List[str]:
    """Arguments of the training script: the command line without the launcher's options, presets resolved.

    Args:
        argv: Command line after the verb.
    """
    options, rest = launcher_parser().parse_known_args(argv)
    if options.preset is None:
        return rest
    if any(a in ('-c', '--config') or a.startswith('--config=') for a in rest):
        raise UsageError('--preset and --config both name a config: give one of them.')
    return ['--config', str(preset_path(options.preset)), *rest]


def add_launcher_help(parser: argparse.ArgumentParser) -> None:
    """List the launcher's options in a script's `--help`."""
    group = parser.add_argument_group('Launcher')
    for action in launcher_parser()._actions:
        group._add_action(action)
