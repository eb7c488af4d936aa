"""YAML config files, checked key by key against a script's flags."""
import argparse
import datetime
import re
import reprlib
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from seresnet_timm.argument_parser import KeyValues, checked, nearest_flag
from seresnet_timm.engine.flags import (
    TIMM_ONLY_TRAIN,
    TIMM_ONLY_VALIDATE,
    OneOrMore,
    TimmOnly,
    bundled_only_message,
    defaults_of,
    timm_only_message,
)
from seresnet_timm.engine.values import VALUES
from seresnet_timm.errors import UsageError, first_line, printable
from seresnet_timm.files import MOST_BYTES_OF_CONFIG, why_not_text
from seresnet_timm.launch.tuned import KEY, take_tuned

MOST_VALUES = 10 ** 5


@dataclass
class Config:
    """What a config file says.

    Attributes:
        values: Settings of the script that are right, by flag.
        tuned: What `seresnet-timm tune` wrote beside them; None if it did not.
        lines: Numbers of the lines of the keys.
        problems: What is wrong, a sentence for each mistake.
    """
    values: Dict[str, Any] = field(default_factory=dict)
    tuned: Optional[Dict[str, Any]] = None
    lines: Dict[Any, int] = field(default_factory=dict)
    problems: List[str] = field(default_factory=list)


def load_config(path: str, parser: argparse.ArgumentParser, defaults: Dict[str, Any]) -> Config:
    """Read a YAML config and check every key and value against a script's flags.

    Args:
        path: The file.
        parser: Parser of the script; `timm_script` names it.
        defaults: The script's default of every flag.
    """
    try:
        content, lines, problems = read_yaml(path)
    except UsageError as e:
        return Config(problems=[str(e)])
    config = Config(lines=lines, problems=problems)
    if KEY in content:
        config.tuned, wrong = take_tuned(content.pop(KEY))
        config.problems += [f'{_place(path, lines, KEY)}, block {KEY}: {w}.' for w in wrong]
    actions = {a.dest: a for a in parser._actions if a.dest in defaults or isinstance(a, TimmOnly)}
    for key, value in content.items():
        reason = _wrong_key(key, value, actions, parser.timm_script, defaults)
        if reason is None and key in actions and not isinstance(actions[key], TimmOnly):
            read, reason = _checked(actions[key], value)
            config.values.update({} if reason else {key: read})
        if reason:
            end = '' if reason.endswith('?') else '.'
            config.problems.append(f'{_place(path, lines, key)}: {printable(reason).rstrip(".")}{end}')
    if 'data' in config.values:  # timm's positional argument, in an args.yaml
        data = config.values.pop('data')
        config.values['data_dir'] = config.values.get('data_dir') or data
    config.values.pop('local_rank', None)
    return config


def _place(path: str, lines: Dict[Any, int], key: Any) -> str:
    return f'Config {printable(path)}, line {lines[key]}' if key in lines else f'Config {printable(path)}'


def _wrong_key(
        key: Any, value: Any, actions: Dict[str, argparse.Action], script: str,
        defaults: Dict[str, Any]) -> Optional[str]:
    """Why a script does not have a key, or takes no value of this type for it; None if it does."""
    action, bundled = actions.get(key), bundled_defaults(defaults)
    if isinstance(action, TimmOnly):
        timm_only = TIMM_ONLY_TRAIN if script == 'train.py' else TIMM_ONLY_VALIDATE
        return timm_only_message(f'{key}: {value}', script) if value != timm_only[key] else None
    if action is None and key in bundled:
        return bundled_only_message(f'{key}: {value}', script) if value != bundled[key] else None
    if action is None:
        flags = {f'--{name.replace("_", "-")}': name for name in actions}
        nearest = nearest_flag(f'--{key}', list(flags))
        hint = f'did you mean {flags[nearest]}?' if nearest else 'see --help for the flags (with _ for -)'
        return f"unknown key '{key}', {hint}"
    expected = _type_mismatch(action, value, defaults[key])
    if expected is None:
        return None
    is_unquoted = expected == 'text' and isinstance(value, (bool, int, float, datetime.date))
    got = f'{value}: write it in quotes' if is_unquoted else reprlib.repr(value)
    return f'{key} must be {expected}, got {got}'


def bundled_defaults(defaults: Dict[str, Any]) -> Dict[str, Any]:
    """Defaults of flags that the bundled script has, and the script with these defaults has not."""
    own = defaults_of('train' if 'epochs' in defaults else 'validate')
    return {k: v for k, v in own.items() if k not in defaults}


def read_yaml(path: str) -> Tuple[Dict[Any, Any], Dict[Any, int], List[str]]:
    """Content of a YAML file that must be a mapping, the line of each of its keys, and what reads otherwise than meant.

    Raises:
        UsageError: It cannot be read, or is no mapping.
    """
    import yaml  # here, so that --help and a Python without it get their answer

    if not path:
        raise UsageError('--config names no file: give the path of a YAML file, or leave it out.')
    reason = why_not_text(path, MOST_BYTES_OF_CONFIG)
    name = f'Config {printable(path)}'
    if reason:
        raise UsageError(f'{name} cannot be read: {reason}.')
    try:
        with open(path, 'rb') as f:  # bytes: yaml takes UTF-16 and a byte order mark
            text = f.read()
        node, found = yaml.compose(text, yaml.SafeLoader), {}
        if _walk(node, found) > MOST_VALUES:
            raise UsageError(f'{name} has more than {MOST_VALUES:,} values, as its aliases (*name) repeat them: write '
                             'out what is meant.')
        content = yaml.safe_load(text)
    except OSError as e:
        raise UsageError(f'Cannot read config {printable(path)}: {e.strerror}.')
    except yaml.reader.ReaderError as e:
        raise UsageError(f'{name} is not a text of YAML: what it has at byte {e.position} is no character of a text; '
                         'write it in UTF-8.')
    except (yaml.YAMLError, ValueError) as e:  # ValueError: of a date that cannot be
        mark = getattr(e, 'problem_mark', None)
        where = f', line {mark.line + 1}' if mark else ''
        raise UsageError(f'{name}{where} is not valid YAML: {getattr(e, "problem", None) or first_line(e)}.')
    except RecursionError:
        raise UsageError(f'{name} is nested too deeply, or holds itself: no setting needs that.')
    if content is None:
        return {}, {}, []
    if not isinstance(content, dict):
        raise UsageError(f'{name} must be a mapping of flags to values, got {type(content).__name__}.')
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value if isinstance(key.value, str)}
    nodes = [node for node, _ in found.values()]
    problems = [
        f'{name}: {printable(key.value)} is given twice, the second time in line {key.start_mark.line + 1}: remove one.'
        for key in _keys_given_twice(nodes)]
    problems += [
        f'{name}, line {number.start_mark.line + 1}: YAML reads {printable(number.value)} as '
        f'{yaml.safe_load(number.value)} (numbers in base 8 or 60): write it in decimal, or a text in quotes.'
        for number in nodes if _is_other_number(number)]
    return content, lines, problems


def _walk(node: Any, found: Dict[int, Tuple[Any, int]]) -> int:
    """Number of the values in a node, where an alias counts as what it stands for; every node goes to `found`, by id.

    Raises:
        RecursionError: The node holds itself.
    """
    if id(node) in found:
        size = found[id(node)][1]
        if not size:
            raise RecursionError
        return size
    found[id(node)] = node, 0
    inner = node.value if isinstance(getattr(node, 'value', None), list) else ()
    size = 1 + sum(_walk(n, found) for item in inner for n in (item if isinstance(item, tuple) else (item,)))
    found[id(node)] = node, size
    return size


def _keys_given_twice(nodes: Sequence[Any]) -> Iterator[Any]:
    """The keys of mappings that are there before; YAML would take the last one silently."""
    for node in nodes:
        seen = set()
        for key, _ in node.value if getattr(node, 'id', '') == 'mapping' else ():
            if isinstance(key.value, str) and key.value in seen:
                yield key
            seen.add(key.value if isinstance(key.value, str) else None)


def _is_other_number(node: Any) -> bool:
    """Whether a number is in base 8 (010) or 60 (1:30), which YAML 1.1 has and nobody means."""
    return getattr(node, 'tag', '').endswith((':int', ':float')) and bool(re.match(r'[-+]?0[0-7_]+$|.*:', node.value))


def _type_mismatch(action: argparse.Action, value: Any, default: Any) -> Optional[str]:
    """What the flag expects, in words, if a YAML value does not fit it; None if it does."""
    if value is None:
        return None if default is None else 'set or left out'
    if isinstance(action, argparse._StoreTrueAction):
        return None if isinstance(value, bool) else 'true or false'
    if isinstance(action, KeyValues) or type(action).__name__ == 'ParseKwargs':  # ours, or timm's
        return None if isinstance(value, dict) else 'a mapping'

    kind = action.type or str
    name = {int: 'a whole number', float: 'a number', str: 'text'}[kind]  # all that timm's flags have
    if isinstance(action, OneOrMore) and _fits(kind, value):
        return None
    is_list = action.nargs in ('+', '*') or isinstance(action.nargs, int)
    if is_list:
        fits = isinstance(value, list) and all(_fits(kind, v) for v in value)
        if isinstance(action.nargs, int):
            return None if fits and len(value) == action.nargs else f'a list of {action.nargs} items, each {name}'
        return None if fits and value or value == default else f'a list, each item {name}'
    if not _fits(kind, value):
        return name
    if action.choices is not None and value not in action.choices:
        return 'one of ' + ', '.join(repr(c) for c in action.choices)
    return None


def _fits(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float) if kind is float else kind)


def _with_numbers(value: Any) -> Any:
    """What a mapping such as `opt_kwargs` means: YAML 1.1 reads 1e-8 in it, without a dot, as text."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+', value)
    return float(value) if is_number else value


def _checked(action: argparse.Action, value: Any) -> Tuple[Any, Optional[str]]:
    """A value as its rule reads it; and why it is wrong, as the end of a sentence."""
    rule = VALUES.get(action.dest)
    if value is None or isinstance(value, (bool, dict)):
        return _with_numbers(value), None
    is_list = isinstance(value, list)
    items = value if is_list else [value]
    results = [checked(float(item) if action.type is float else item, rule) for item in items]
    wrong = [f'{action.dest} {item} {reason}' for item, (_, reason) in zip(items, results) if reason]
    read = [item for item, _ in results]
    together = rule.wrong_list(read) if is_list and rule is not None and not wrong else None
    if together:
        wrong = [f'{action.dest} {value} {together}']
    return read if is_list else read[0], '; '.join(wrong) or None
