"""Whether values of `--model-kwargs` and `--opt-kwargs` are of a kind that a function takes, by its annotations

Python takes any value, and a text is true: `amsgrad=false`, a text, would switch amsgrad on.
"""
import inspect
import types
import typing
from typing import Any, Callable, Dict, List, Literal, Optional, Set, Tuple, Union

import torch

TEXT, NUMBER, TRUTH, LIST, MAPPING = 'a text', 'a number', 'True or False', 'a list', 'a mapping'
_KINDS = {str: TEXT, int: NUMBER, float: NUMBER, bool: TRUTH, tuple: LIST, list: LIST, dict: MAPPING}


def wrong_kinds(flag: str, given: Dict[str, Any], functions: Tuple[Callable, ...]) -> List[str]:
    """A sentence for each value of another kind than the functions take, without its full stop.

    Args:
        flag: The flag that gave the values.
        given: The values, by name.
        functions: The first one with an argument of a name decides. One without annotation takes anything.
    """
    signatures = [(function, inspect.signature(function).parameters) for function in functions]
    result = []
    for name, value in given.items():
        function = next((f for f, parameters in signatures if name in parameters), None)
        kinds = None if function is None or value is None else _kinds(_annotation(function, name))
        if kinds and _kind(value) not in kinds and not (TRUTH in kinds and value in (0, 1)):
            result.append(f'{flag} {name}={value} is {_kind(value)}: give {" or ".join(sorted(kinds))}')
    return result


def _annotation(function: Callable, name: str) -> Any:
    try:
        return typing.get_type_hints(function).get(name, Any)
    except Exception:  # annotations are texts of others, which need not name what is there
        return Any


def _kinds(annotation: Any) -> Optional[Set[str]]:
    """The kinds of an annotation; None where it does not tell them all."""
    origin = typing.get_origin(annotation) or annotation
    if origin is Literal:
        return {_kind(value) for value in typing.get_args(annotation)}
    if origin not in (Union, types.UnionType):
        return {_KINDS[origin]} if origin in _KINDS else None
    found: Set[str] = set()
    for part in typing.get_args(annotation):
        if part in (type(None), torch.Tensor):  # which no flag can give
            continue
        kinds = _kinds(part)
        if kinds is None:
            return None
        found |= kinds
    return found


def _kind(value: Any) -> str:
    return next((text for kind, text in ((bool, TRUTH), *_KINDS.items()) if isinstance(value, kind)), 'of another kind')
