"""YAML config files, checked key by key against a script's flags."""
import argparse
import re
from typing import Any, Dict, Optional, Tuple

from seresnet_timm.argument_parser import KeyValues, checked, nearest_flag
from seresnet_timm.engine.flags import (
    TIMM_ONLY_TRAIN,
    TIMM_ONLY_VALIDATE,
    OneOrMore,
    TimmOnly,
    bundled_only_message,
    timm_only_message,
    train_parser,
    validate_parser,
)
from seresnet_timm.engine.values import VALUES
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.files import MOST_BYTES_OF_CONFIG, why_not_text
from seresnet_timm.launch.tuned import KEY, take_tuned


def load_config(path: str, parser: argparse.ArgumentParser, defaults: Dict[str, Any]) -> Dict[str, Any]:
    """Read a YAML config and check every key and type against a script's flags.

    Args:
        path: The file.
        parser: Parser of the script; `timm_script` names it.
        defaults: The script's default of every flag.

    Raises:
        UsageError: The file cannot be read, is not a mapping, or has unknown keys or values of a wrong type; all
            of them are named.

    Returns:
        Values by flag; under 'tuned' what `seresnet-timm tune` wrote beside them, if it did.
    """
    config = read_yaml(path)
    tuned = take_tuned(config, path)
    actions = {a.dest: a for a in parser._actions if a.dest in defaults or isinstance(a, TimmOnly)}
    bundled = bundled_defaults(defaults)
    problems, result = [], {}
    for key, value in config.items():
        action = actions.get(key)
        if isinstance(action, TimmOnly):
            timm_only = TIMM_ONLY_TRAIN if parser.timm_script == 'train.py' else TIMM_ONLY_VALIDATE
            if value != timm_only[key]:
                problems.append(timm_only_message(f'{key}: {value}', parser.timm_script))
        elif action is None and key in bundled:
            if value != bundled[key]:
                problems.append(bundled_only_message(f'{key}: {value}', parser.timm_script))
        elif action is None:
            flags = {f'--{name.replace("_", "-")}': name for name in actions}
            nearest = nearest_flag(f'--{key}', list(flags))
            hint = f'did you mean {flags[nearest]}?' if nearest else 'see --help for the flags (with _ for -)'
            problems.append(f"unknown key '{key}', {hint}")
        else:
            expected = _type_mismatch(action, value, defaults[key])
            if expected:
                problems.append(f'{key} must be {expected}, got {value!r}')
                continue
            result[key], wrong = _checked(action, _converted(action, value))
            problems += [f'{key} {wrong}'] if wrong else []
    if problems:
        text = '; '.join(p.rstrip('.') for p in problems)
        raise UsageError(f'Config {path}: {text}' + ('' if text.endswith('?') else '.'))
    if 'data' in result:  # timm's positional argument, in an args.yaml
        result['data_dir'] = result.get('data_dir') or result['data']
        del result['data']
    result.pop('local_rank', None)
    return result if tuned is None else {**result, KEY: tuned}


def bundled_defaults(defaults: Dict[str, Any]) -> Dict[str, Any]:
    """Defaults of flags that the bundled script has, and the script with these defaults has not."""
    is_train = 'epochs' in defaults
    own = vars((train_parser() if is_train else validate_parser()).parse_args([]))
    return {k: v for k, v in own.items() if k not in defaults}


def read_yaml(path: str) -> Dict[Any, Any]:
    """Content of a YAML file that must be a mapping."""
    import yaml  # here, so that --help and a Python without it get their answer

    reason = why_not_text(path, MOST_BYTES_OF_CONFIG)
    if reason:
        raise UsageError(f'Config {path} cannot be read: {reason}.')
    try:
        with open(path, 'rb') as f:  # bytes: yaml takes UTF-16 and a byte order mark
            text = f.read()
        nodes = yaml.compose(text, yaml.SafeLoader)
        config, twice = yaml.safe_load(text), _key_twice(nodes)
    except OSError as e:
        raise UsageError(f'Cannot read config {path}: {e.strerror}.')
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        mark = getattr(e, 'problem_mark', None)
        where = f', line {mark.line + 1}' if mark else ''
        raise UsageError(f'Config {path}{where} is not valid YAML: {getattr(e, "problem", None) or e}.')
    if twice:
        raise UsageError(f'Config {path}: {printable(twice[0])} is given twice, the second time in line {twice[1]}: '
                         'remove one.')
    other = _other_number(nodes)
    if other:
        raise UsageError(f'Config {path}, line {other.start_mark.line + 1}: YAML reads {printable(other.value)} as '
                         f'{yaml.safe_load(other.value)} (numbers in base 8 or 60): write it in decimal, or a text in '
                         'quotes.')
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UsageError(f'Config {path} must be a mapping of flags to values, got {type(config).__name__}.')
    return config


def _key_twice(node: Any) -> Optional[Tuple[str, int]]:
    """The first key of a mapping that is there twice, and its line; YAML would take the last one silently."""
    keys = [key for key, _ in node.value if isinstance(key.value, str)] if getattr(node, 'id', '') == 'mapping' else []
    names = [key.value for key in keys]
    return next(((key.value, key.start_mark.line + 1) for i, key in enumerate(keys) if key.value in names[:i]), None)


def _other_number(node: Any) -> Any:
    """The first number in base 8 (010) or 60 (1:30), which YAML 1.1 has and nobody means."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop(0)
        value = getattr(node, 'value', None)
        if id(node) in seen:  # an alias; it may be of what it lies in
            continue
        seen.add(id(node))
        if isinstance(value, list):
            pending[:0] = [n for item in value for n in (item if isinstance(item, tuple) else (item,))]
        elif getattr(node, 'tag', '').endswith((':int', ':float')) and re.match(r'[-+]?0[0-7_]+$|.*:', value):
            return node
    return None


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


def _converted(action: argparse.Action, value: Any) -> Any:
    if action.type is not float or value is None:
        return value
    return [float(v) for v in value] if isinstance(value, list) else float(value)


def _checked(action: argparse.Action, value: Any) -> Tuple[Any, Optional[str]]:
    """A value as its rule reads it; and why it is wrong, as the end of a sentence that begins with the key."""
    rule = VALUES.get(action.dest)
    items = value if isinstance(value, list) else [value]
    if value is None or isinstance(value, (bool, dict)):
        return value, None
    results = [checked(item, rule) for item in items]
    wrong = [f'{printable(item)} {reason}' for item, (_, reason) in zip(items, results) if reason]
    if isinstance(value, list):
        together = rule.wrong_list(value) if rule is not None and not wrong else None
        return [item for item, _ in results], '; '.join(wrong) or together and f'{value} {together}'
    return results[0][0], wrong[0] if wrong else None
