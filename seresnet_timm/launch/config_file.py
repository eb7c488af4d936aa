"""YAML config files, checked key by key against a script's flags."""
import argparse
from typing import Any, Dict, Optional, Sequence, Tuple

from seresnet_timm.argument_parser import ArgumentParser, KeyValues, unknown_flag_message
from seresnet_timm.engine.flags import TIMM_ONLY_TRAIN, TIMM_ONLY_VALIDATE, TimmOnly, _add_config, timm_only_message
from seresnet_timm.errors import UsageError, did_you_mean


def parse_args(
        parser: argparse.ArgumentParser,
        argv: Optional[Sequence[str]] = None,
        suggestions: Sequence[str] = (),
) -> Tuple[argparse.Namespace, str]:
    """Parse flags over the YAML config that `-c` names.

    Args:
        parser: `train_parser()`, `validate_parser()`, or that of timm's script.
        argv: Arguments, `sys.argv[1:]` if None.
        suggestions: Further flags that an unknown one may have been meant for.

    Returns:
        The arguments, and the same as YAML text for `args.yaml`.

    Raises:
        UsageError: Unknown or unsupported flag, wrong value; unknown key or wrong type in the config.
    """
    import yaml  # here, so that --help and a Python without it get their answer

    if parser.timm_script == 'train.py':
        config_parser = ArgumentParser(add_help=False, allow_abbrev=False)
        _add_config(config_parser)
        config, argv = config_parser.parse_known_args(argv)
        if config.config:
            parser.set_defaults(**load_config(config.config, parser))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(unknown_flag_message([*parser._option_string_actions, *suggestions], unknown))
    args.__dict__.pop('config', None)  # its values are in the arguments, as in timm's args.yaml
    return args, yaml.safe_dump(args.__dict__, default_flow_style=False)


def load_config(path: str, parser: argparse.ArgumentParser) -> Dict[str, Any]:
    """Read a YAML config and check every key and type against the parser's flags.

    Raises:
        UsageError: The file cannot be read, is not a mapping, or has unknown keys or values of a wrong type; all
            of them are named.
    """
    import yaml

    try:
        with open(path) as f:
            config = yaml.safe_load(f)
    except OSError as e:
        raise UsageError(f'Cannot read config {path}: {e.strerror}.')
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        mark = getattr(e, 'problem_mark', None)
        where = f', line {mark.line + 1}' if mark else ''
        raise UsageError(f'Config {path}{where} is not valid YAML: {getattr(e, "problem", None) or e}.')
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UsageError(f'Config {path} must be a mapping of flags to values, got {type(config).__name__}.')

    actions = {a.dest: a for a in parser._actions if a.dest not in ('help', 'config')}
    problems, result = [], {}
    for key, value in config.items():
        action = actions.get(key)
        if isinstance(action, TimmOnly):
            timm_only = TIMM_ONLY_TRAIN if parser.timm_script == 'train.py' else TIMM_ONLY_VALIDATE
            if value != timm_only[key]:
                problems.append(timm_only_message(f'{key}: {value}', parser.timm_script))
        elif action is None:
            hint = did_you_mean(str(key).replace('-', '_'), actions, 'see --help for the flags (with _ for -)')
            problems.append(f"unknown key '{key}', {hint}")
        else:
            expected = _type_mismatch(action, value)
            if expected:
                problems.append(f'{key} must be {expected}, got {value!r}')
            elif action.type is float and isinstance(value, list):
                value = [float(v) for v in value]  # argparse converts a default that is text, but not a list of them
            result[key] = value
    if problems:
        raise UsageError(f'Config {path}: ' + '; '.join(p.rstrip('.') for p in problems) + '.')
    return result


def _type_mismatch(action: argparse.Action, value: Any) -> Optional[str]:
    """What the flag expects, in words, if a YAML value does not fit it; None if it does."""
    if value is None:
        return None if action.default is None else 'set or left out'
    if isinstance(action, argparse._StoreTrueAction):
        return None if isinstance(value, bool) else 'true or false'
    if isinstance(action, KeyValues) or type(action).__name__ == 'ParseKwargs':  # ours, or timm's
        return None if isinstance(value, dict) else 'a mapping'

    kind = action.type or str
    name = {int: 'a whole number', float: 'a number', str: 'text'}[kind]  # all that timm's flags have
    is_list = action.nargs in ('+', '*') or isinstance(action.nargs, int)
    if is_list:
        fits = isinstance(value, list) and all(_fits(kind, v) for v in value)
        if isinstance(action.nargs, int):
            return None if fits and len(value) == action.nargs else f'a list of {action.nargs} items, each {name}'
        return None if fits and value or value == action.default else f'a list, each item {name}'
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
