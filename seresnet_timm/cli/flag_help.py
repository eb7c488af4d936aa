"""What there is to say about one flag: meaning, default, unit, values, the ModelZoo's name for it, its origin"""
import argparse
import re
from dataclasses import fields
from typing import Dict, List, Optional, Tuple

from seresnet_timm.argument_parser import ArgumentParser, KeyValues, in_words, unknown_flag_message
from seresnet_timm.engine import flags as script_flags
from seresnet_timm.engine.values import UNITS, Output, rules_of
from seresnet_timm.errors import UsageError
from seresnet_timm.launch.flags import MODELZOO, PREFIX
from seresnet_timm.runs.settings import RunSettings

DECIDED = ('workers', 'pin_mem', 'channels_last', 'num_classes')  # by device, cores and data, in launch/plan.py
NO_EFFECT = 'no effect'  # how the help of such a flag of the ModelZoo begins
SCRIPT_PARSERS = {'train': script_flags.train_parser, 'validate': script_flags.validate_parser}


def parser_of(verb: str) -> ArgumentParser:
    """The parser of a verb with all its flags, those of train and validate too."""
    from seresnet_timm.cli.main import make_parser, module_of
    module = module_of(verb)
    if hasattr(module, 'help_parser'):  # its flags are parsed elsewhere
        return module.help_parser()
    return next(p for p in make_parser(verb, module).parsers() if p.prog == f'seresnet-timm {verb}')


def sub_parsers(parser: ArgumentParser) -> Dict[str, ArgumentParser]:
    """The parsers of the words that may follow a verb, such as `fetch`."""
    return {name: sub for action in parser._actions if isinstance(action, argparse._SubParsersAction)
            for name, sub in action.choices.items()}


def describe(verb: str, parser: ArgumentParser, word: str) -> str:
    """What there is to say about a flag or an argument.

    Args:
        verb: The verb.
        parser: Its parser.
        word: The flag with or without hyphens, or the name of an argument.

    Raises:
        UsageError: The verb does not have it.
    """
    action = find(parser, word)
    return '\n'.join([written(action), *(f'  {k:<9} {text}' for k, text in facts(verb, parser, action).items())])


def written(action: argparse.Action) -> str:
    """An argument as it is written: its flags and what its value is called."""
    first = ', '.join(action.option_strings) or action.metavar or action.dest
    return f'{first}{"" if action.nargs == 0 or not action.option_strings else f" {value_name(action)}"}'


def facts(verb: str, parser: ArgumentParser, action: argparse.Action) -> Dict[str, str]:
    """What there is to say about an argument: meaning, default, unit ..., without those that it does not have."""
    unit = UNITS.get(action.dest) or UNITS.get(action.dest.removeprefix(PREFIX))
    if unit and verb not in SCRIPT_PARSERS:  # one process
        unit = unit.removesuffix(' of one process and step').removesuffix(' of each process')
    found = {
        'meaning': meaning(verb, action), 'default': default(verb, parser, action), 'unit': unit,
        'values': values(verb, action), 'ModelZoo': modelzoo_names(action) if verb in SCRIPT_PARSERS else None,
        'from': origin(verb, action)}
    return {k: text for k, text in found.items() if text}


def find(parser: ArgumentParser, word: str) -> argparse.Action:
    """The argument that a word names: exactly, else without regard to hyphens and case."""
    def plain(text: str) -> str:
        return text.strip('-').replace('-', '_').lower()

    known = parser._option_string_actions
    if word in known:
        return known[word]
    for action in parser._actions:
        names = action.option_strings or [action.dest, str(action.metavar)]
        if plain(word) in map(plain, names):
            return action
    word = word if word.startswith('-') else f'--{word}'
    # flags that only timm's scripts have are not suggested
    flags = [f for f, action in known.items() if action.help is not argparse.SUPPRESS]
    raise UsageError(unknown_flag_message(flags, word))


def value_name(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return '{' + ','.join(map(str, action.choices)) + '}' if action.choices else action.dest.upper()


def meaning(verb: str, action: argparse.Action) -> str:
    """The text of --help."""
    if isinstance(action, script_flags.TimmOnly):
        return f"a flag of timm's own {verb}.py, which the bundled script does not have: run it with --scripts timm"
    if action.dest.startswith(PREFIX):
        text = str(action.help)
        return f'a flag of the ModelZoo: {text}' if text.startswith(NO_EFFECT) else f"the ModelZoo's name for: {text}"
    text = action.help if action.help not in (None, argparse.SUPPRESS) else 'not used any more'
    text = text.replace('%(default)s', in_words(action.default))
    return re.sub(r' \(default: [^()]*\)$', '', text).replace('%%', '%')  # told beside it


def default(verb: str, parser: ArgumentParser, action: argparse.Action) -> Optional[str]:
    """The default in words; None for an argument that must be given, or where `meaning` says it."""
    if isinstance(action, script_flags.TimmOnly):
        only = script_flags.TIMM_ONLY_TRAIN if verb == 'train' else script_flags.TIMM_ONLY_VALIDATE
        return in_words(only[action.dest])
    if action.required and action.default is None or action.dest == 'help':
        return None
    if isinstance(action, argparse._StoreConstAction) and not isinstance(action.const, bool):
        return 'off'
    value = parser.get_default(action.dest)
    text = (action.help or '').replace('%(default)s', in_words(value)).replace('%%', '%')
    # the text knows it better than the parser
    named = re.search(r'\(default: ([^()]*)\)|(?:^|; )default: ([^();]*)', text)
    if named:
        return named[1] or named[2]
    if action.dest.startswith(PREFIX) or value not in (None, ''):
        return in_words(value)
    if is_launchers(verb, action):
        value = {f.name: f.default for f in fields(RunSettings)}.get(action.dest)
    return in_words(value if isinstance(value, (bool, int, float, str)) else None)


def values(verb: str, action: argparse.Action) -> str:
    """What may be given, by the rule of `engine/values.py`, the choices and the type."""
    if isinstance(action, script_flags.TimmOnly) or action.dest == 'help':
        return ''
    if isinstance(action, argparse.BooleanOptionalAction):
        return 'none: a switch, with --no-' + action.option_strings[0].lstrip('-') + ' for its opposite'
    if action.nargs == 0:
        return 'none: a switch'
    if isinstance(action, KeyValues):
        return 'key=value, several with spaces between them'
    if action.choices:
        return ', '.join(str(c) or "'' (empty)" for c in action.choices)
    rule = rules_of(verb).get(action.dest)
    text = rule.describe() if rule is not None else ''
    if isinstance(rule, Output):
        return text
    if action.type in (int, float):
        number = 'a whole number' if action.type is int else 'a number'
        text = f'{number}: {text}' if text and text != 'a number' else number
    count = {'+': 'one or more of: ', '*': 'any number of: '}.get(str(action.nargs), '')
    count = f'{action.nargs} of: ' if isinstance(action.nargs, int) and action.nargs > 1 else count
    return count + (text or 'a text')


def modelzoo_names(action: argparse.Action) -> Optional[str]:
    """The ModelZoo's names that set this flag, each with what becomes of it."""
    found: List[Tuple[str, str]] = []
    for name, becomes in MODELZOO.items():
        targets = re.findall(r'(?<![\w-])--?[a-z][\w-]*', becomes)
        if set(targets) & set(action.option_strings) and not becomes.startswith((NO_EFFECT, 'the verb')):
            found.append((name, becomes))
    return '; '.join(f'{name} ({becomes})' for name, becomes in found) or None


def is_launchers(verb: str, action: argparse.Action) -> bool:
    """Whether a flag is one of train or validate that the script does not have."""
    if verb not in SCRIPT_PARSERS or not action.option_strings:
        return False
    own = SCRIPT_PARSERS[verb]()._option_string_actions
    return action.dest == 'device' or not set(own).intersection(action.option_strings)


def origin(verb: str, action: argparse.Action) -> str:
    """Whose flag it is, and which scripts have it."""
    if verb not in SCRIPT_PARSERS or action.dest == 'help':
        return f'seresnet-timm {verb}'
    if action.dest.startswith(PREFIX) or '--resume' in action.option_strings and verb == 'validate':
        return "the ModelZoo's scripts; translated by the launcher of seresnet-timm"
    script, is_newer = f"timm's {verb}.py", verb == 'train' and action.dest in script_flags.SINCE_V1_0_28
    if isinstance(action, script_flags.TimmOnly):
        return f'{script}, after v1.0.28' if is_newer else script
    if is_newer:
        return f'{script}, after v1.0.28: the script of that release does not have it, the bundled one does'
    if verb == 'validate' and action.dest in script_flags.OWN_VALIDATE:
        return f'the bundled validate.py; {script} does not have it'
    if action.dest == 'device':
        return "the launcher of seresnet-timm, in the place of timm's flag; the same with all scripts"
    if is_launchers(verb, action):
        is_for_one = 'bundled train.py' in str(action.help)
        scripts = 'only with the bundled script' if is_for_one else 'the same with all scripts'
        return f'the launcher of seresnet-timm; {scripts}'
    if action.dest in DECIDED:
        return f'{script}; the launcher decides where it is not given'
    return f'{script}; the bundled script has the same name and default'
