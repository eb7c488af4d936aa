"""The parser of timm's script, read from its text: nothing is executed, and neither torch nor timm is imported"""
import argparse
import ast
import operator
from typing import Any, Dict, Iterator, Optional

from seresnet_timm.argument_parser import ArgumentParser, KeyValues

_TYPES = {'int': int, 'float': float, 'str': str}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_METHODS = ('add_argument', 'add_argument_group', 'add_mutually_exclusive_group')


def read_parser(tree: ast.Module) -> Optional[ArgumentParser]:
    """The parser that a script makes in its top level, as `parser`; None if it makes it in another way than timm's do.

    Args:
        tree: Syntax tree of the script.
    """
    objects: Dict[str, Any] = {}
    try:
        for statement in tree.body:
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                continue
            value = statement.value if isinstance(statement, (ast.Assign, ast.Expr)) else None
            calls = value.elts if isinstance(value, ast.Tuple) else [value]
            if all(isinstance(call, ast.Call) and _is_of_parser(call, objects) for call in calls):
                for call in calls:
                    made = _call(call, objects)
                    objects.update((name, made) for name in _targets(statement))
            elif any(isinstance(node, ast.Name) and node.id in objects for node in ast.walk(statement)):
                return None
    except (ValueError, TypeError, argparse.ArgumentError):
        return None
    return objects.get('parser')


def _is_of_parser(call: ast.Call, objects: Dict[str, Any]) -> bool:
    """True for `argparse.ArgumentParser(...)`, and for a method that adds to a parser or group that is known."""
    function = call.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    if function.value.id == 'argparse':
        return function.attr == 'ArgumentParser'
    return function.value.id in objects and function.attr in _METHODS


def _call(call: ast.Call, objects: Dict[str, Any]) -> Any:
    args = [_value(arg) for arg in call.args]
    kwargs = {k.arg: _value(k.value) for k in call.keywords if k.arg is not None}
    if call.func.attr == 'ArgumentParser':
        return ArgumentParser(*args, **kwargs)
    return getattr(objects[call.func.value.id], call.func.attr)(*args, **kwargs)


def _targets(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def _value(node: ast.expr) -> Any:
    """A plain value, a type, or the action that timm's scripts have for pairs of key and value."""
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    if isinstance(node, ast.Attribute) and node.attr == 'ParseKwargs' or (
            isinstance(node, ast.Name) and node.id == 'ParseKwargs'):
        return KeyValues
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(item) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    return ast.literal_eval(node)
