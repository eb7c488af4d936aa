"""The only reader of a command line of train and validate: what was typed, and nothing else

One parser holds the flags of the script, the launcher's and the ModelZoo's. All its defaults are suppressed, so that
the result holds only what was typed, under full names: argparse resolves abbreviations and glued forms, and refuses
what could mean several flags.
"""
import argparse
import os
import re
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence, Tuple

from seresnet_timm.argument_parser import (
    WRONG,
    ArgumentParser,
    abbreviations,
    collected_problems,
    unknown_flag_messages,
    unknown_flags_with_spaces,
    with_known_spelling,
    with_typed_names,
    wrong_lists,
)
from seresnet_timm.engine.flags import OneOrMore, bundled_only_message, flags_of, train_parser, validate_parser
from seresnet_timm.engine.values import FilePath, rules_of
from seresnet_timm.errors import UsageError, refuse
from seresnet_timm.launch.flags import PREFIX, add_launcher_flags, add_modelzoo_flags
from seresnet_timm.runs.settings import Script
from seresnet_timm.timm_scripts.find import find


@dataclass(frozen=True)
class CommandLine:
    """What was typed.

    Attributes:
        verb: 'train' or 'validate'.
        script: The script that will run.
        parser: Parser of its flags and of all others, without defaults.
        defaults: The script's default of every flag.
        flags: The script's flags that were typed, by timm's names.
        options: The launcher's options that were typed.
        modelzoo: What was typed under the ModelZoo's names, without the prefix of their `dest`.
        problems: Sentences on wrong values and on unknown and ambiguous flags, which are not in the dictionaries.
        refused: Names of the flags with wrong values.
        abbreviated: Flags that were abbreviated, and how.
    """
    verb: str
    script: Script
    parser: argparse.ArgumentParser
    defaults: Dict[str, Any]
    flags: Dict[str, Any]
    options: Dict[str, Any]
    modelzoo: Dict[str, Any]
    problems: List[str] = field(default_factory=list)
    refused: Collection[str] = ()
    abbreviated: Dict[str, str] = field(default_factory=dict)


def parse(verb: str, argv: Sequence[str]) -> CommandLine:
    """Parse a command line.

    Args:
        verb: 'train' or 'validate'. The ModelZoo's `--evaluate` makes it 'validate'.
        argv: Command line after the verb.

    Raises:
        UsageError: The command line cannot be read, or there is no such script.
    """
    choice, evaluate, dry_run = _look_ahead(argv)
    if evaluate:
        verb = 'validate'
    missing: List[str] = []
    try:
        script = find(f'{verb}.py', choice)
    except UsageError as e:  # what else is wrong is judged by the flags of the bundled script
        script, missing = find(f'{verb}.py', 'bundled'), [str(e)]
    parser = _script_parser(verb, script, dry_run)
    defaults = vars(parser.parse_args([]))
    names = set(defaults) | {a.dest for a in parser._actions}
    _complete(parser, verb)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    typed, problems, refused = _typed(parser, verb, argv)
    is_as_seen = (typed.get('scripts', choice), typed.get(PREFIX + 'evaluate', False)) == (choice, evaluate)
    if not is_as_seen and 'scripts' not in refused:
        raise UsageError('--scripts and --evaluate decide which flags there are: write them in full.')
    modelzoo = {k[len(PREFIX):]: typed.pop(k) for k in list(typed) if k.startswith(PREFIX)}
    flags = {k: typed.pop(k) for k in list(typed) if k in names}
    abbreviated = abbreviations(argv, list(parser._option_string_actions))
    problems = with_typed_names(missing + problems, abbreviated)
    return CommandLine(verb, script, parser, defaults, flags, typed, modelzoo, problems, refused, abbreviated)


def _typed(
        parser: argparse.ArgumentParser, verb: str,
        argv: Sequence[str]) -> Tuple[Dict[str, Any], List[str], Collection[str]]:
    """What was typed, by `dest`, without wrong values; the sentences on these, and their names."""
    rules = rules_of(verb)
    argv = with_known_spelling(argv, parser._option_string_actions)
    if isinstance(parser._option_string_actions['--img-size'], OneOrMore):
        argv = with_data_first(argv)
    found, unknown, problems = parse_on(parser, argv, rules)
    flags = list(parser._option_string_actions)
    unknown += unknown_flags_with_spaces(argv, flags)
    numbers = [u for u in unknown if u.isdigit()]
    if numbers and len(numbers) == len(unknown) and hasattr(found, 'img_size'):
        sizes = _several_sizes(verb, {'img_size': found.img_size, 'data': numbers[0]}, argv)
        if sizes:
            refuse([*problems, *sizes])
    if unknown:  # and what follows it may have been taken for another argument
        names = {u.split('=')[0] for u in unknown if u.startswith('-')}
        argv = without_flags(argv, names, parser._option_string_actions)
        said = _of_the_bundled_script(verb, flags, unknown) + unknown_flag_messages(flags, unknown)
        found, _, problems = parse_on(parser, argv, rules)
        problems += said
    problems += wrong_lists(parser._actions, rules, vars(found))
    typed = {k: v for k, v in vars(found).items()
             if v is not WRONG and not (isinstance(v, list) and WRONG in v)}
    refused = {k.removeprefix(PREFIX) for k in vars(found) if k not in typed}
    return typed, problems + _several_sizes(verb, typed, argv), refused


def parse_on(
        parser: argparse.ArgumentParser, argv: Sequence[str],
        rules: Mapping[str, Any]) -> Tuple[argparse.Namespace, List[str], List[str]]:
    """What argparse finds, what it does not know, and the sentences on all mistakes.

    Where argparse ends at a mistake, it reads the command line again without that flag.
    """
    said: List[str] = []
    while True:
        with collected_problems(parser._actions, rules) as problems:
            try:
                found, unknown = parser.parse_known_args(argv)
                return found, unknown, problems + said
            except UsageError as e:
                said.append(str(e))
        named = re.match(r'(?:Ambiguous option: |Argument )?(-[^\s:=]*)', said[-1])
        names = set(named[1].split('/')) if named else set()
        typed = abbreviations(argv, list(parser._option_string_actions))
        names |= {typed[name] for name in names if name in typed}
        rest = without_flags(argv, names, parser._option_string_actions)
        if len(rest) == len(argv):
            refuse([*problems, *said])
        argv = rest


def without_flags(argv: Sequence[str], names: Collection[str], known: Mapping[str, argparse.Action]) -> List[str]:
    """Arguments without some flags and their values; a folder that exists is taken for timm's positional DIR."""
    result, takes_values = [], False
    for i, arg in enumerate(argv):
        if arg == '--':
            return result + list(argv[i:])
        name, equals, _ = arg.partition('=')
        if name in names:
            takes_values = not equals and getattr(known.get(name), 'nargs', None) != 0
        elif arg.startswith('-') or not takes_values or os.path.isdir(arg):
            takes_values = False
            result.append(arg)
    return result


def _behind_size(argv: Sequence[str], number: str) -> bool:
    """Whether an argument is the second one of `--img-size`."""
    ends = [i + (1 if '=' in a else 2) for i, a in enumerate(argv) if a.split('=')[0] == '--img-size']
    return any(argv[end:end + 1] == [number] for end in ends)


def with_data_first(argv: Sequence[str]) -> List[str]:
    """Arguments with timm's positional DIR before a `--img-size N ...` that it follows, which takes all numbers."""
    argv = list(argv)
    has_data = any(a.split('=')[0] == '--data-dir' for a in argv)
    for i in [i for i, a in enumerate(argv) if a == '--img-size']:
        end = i + 1
        while end < len(argv) and argv[end].isdigit():
            end += 1
        if end > i + 2 and not has_data and os.path.isdir(argv[end - 1]):  # a folder whose name is a number
            end -= 1
        if i + 1 < end < len(argv) and not argv[end].startswith('-'):
            return [argv[end], *argv[:end], *argv[end + 1:]]
    return argv


def _several_sizes(verb: str, typed: Dict[str, Any], argv: Sequence[str]) -> List[str]:
    """That a second number behind --img-size is taken for timm's positional DIR, where the script takes one size."""
    data = typed.get('data')
    is_number = data and 'img_size' in typed and data.isdigit() and not os.path.exists(data)
    if not is_number or not _behind_size(argv, data):
        return []
    del typed['data']
    other = ("this validate.py of timm's; the bundled one takes several: add --scripts bundled"
             if verb == 'validate' else 'train; --train-img-sizes takes several')
    return [f'--img-size {typed["img_size"]} {data}: it takes one size in {other}.']


def _of_the_bundled_script(verb: str, flags: List[str], unknown: List[str]) -> List[str]:
    """Sentences on flags of the bundled script that the script which runs does not have; they leave `unknown`."""
    own = set(flags_of(train_parser() if verb == 'train' else validate_parser())) - set(flags)
    found = [u for u in unknown if u.split('=')[0] in own]
    if found:  # their values are unknown arguments too
        unknown[:] = [u for u in unknown if u.startswith('-') and u not in found]
    return [bundled_only_message(flag, f'{verb}.py') for flag in dict.fromkeys(u.split('=')[0] for u in found)]


def help_parser(verb: str, prog: Optional[str] = None) -> ArgumentParser:
    """Parser of the bundled script's flags and all others, with their defaults.

    Args:
        verb: 'train' or 'validate'.
        prog: The command in its usage line; default: the verb.
    """
    prog = prog or f'seresnet-timm {verb}'
    parser = train_parser(prog) if verb == 'train' else validate_parser(prog)
    _complete(parser, verb)
    for action in parser._actions:  # flags of both verbs say of which they are
        if action.help:
            action.help = action.help.removeprefix(f'{verb}: ')
    return parser


def _look_ahead(argv: Sequence[str]) -> Tuple[str, bool, bool]:
    """What decides on the parser: --scripts, --evaluate, --dry-run."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument('--scripts', nargs='?', default='auto', const='auto')  # that it is missing is said later
    parser.add_argument('-e', '--evaluate', action='store_true')
    parser.add_argument('--dry-run', action='store_true')
    try:
        found = parser.parse_known_args(argv)[0]
    except UsageError:  # likewise
        found = parser.parse_args([])
    found.scripts = FilePath().read(found.scripts)
    return found.scripts, found.evaluate, found.dry_run


def typed_before_the_plan(argv: Sequence[str]) -> Dict[str, Optional[int]]:
    """Numbers of --nproc, --nnodes and --rdzv-timeout, for a process that does not parse the rest.

    What is not typed, or not rightly, is None; the process that parses the rest says so.
    """
    parser = ArgumentParser(add_help=False)
    for flag in ('--nproc', '--nnodes', '--rdzv-timeout'):
        parser.add_argument(flag, nargs='?')
    try:
        found = vars(parser.parse_known_args(argv)[0])
    except UsageError:
        found = vars(parser.parse_args([]))
    return {name: int(value) if value is not None and value.isdecimal() else None for name, value in found.items()}


def _complete(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add to a script's parser what is not the script's."""
    parser.conflict_handler = 'resolve'  # our --device replaces the script's
    add_launcher_flags(parser)
    add_modelzoo_flags(parser)
    if '--config' not in parser._option_string_actions:
        parser.add_argument('-c', '--config', metavar='FILE', help='YAML file of defaults for the flags')
    if verb == 'validate':
        parser.add_argument(
            '--resume', dest='checkpoint', metavar='PATH', help="the same as --checkpoint, the ModelZoo's name for it")


def _script_parser(verb: str, script: Script, dry_run: bool) -> argparse.ArgumentParser:
    """Parser of the script that runs."""
    if not script.is_bundled:
        from seresnet_timm.timm_scripts.load import can_read_parser, is_known, parser_of
        # a dry run does not execute a file that nobody has verified
        if not dry_run or is_known(script) or can_read_parser(script):
            return parser_of(script)
    return train_parser() if verb == 'train' else validate_parser()
