"""Looking for code in a script's syntax tree, and checking how the script uses a name that is replaced."""
import ast
import inspect
from typing import Callable, Iterator, List, Optional, Set


class ScriptMismatch(Exception):
    """The script is not as a change expects it: what was looked for, and what was found."""


def expression(source: str) -> ast.expr:
    return ast.parse(source, mode='eval').body


def is_same(a: ast.AST, b: ast.AST) -> bool:
    return type(a) is type(b) and ast.dump(a) == ast.dump(b)  # to dump every node takes a second


def find_all(scope: ast.AST, source: str) -> List[ast.AST]:
    """Every occurrence of the expression `source` in `scope`."""
    wanted = expression(source)
    return [node for node in ast.walk(scope) if is_same(node, wanted)]


def find_function(tree: ast.Module, name: str) -> ast.FunctionDef:
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    if len(found) != 1:
        raise ScriptMismatch(f'{len(found)} functions named {name}, expected 1')
    return found[0]


def find_assignment(scope: ast.AST, target: str, function: str) -> ast.Assign:
    """The one assignment `target = function(...)`."""
    found = [
        n for n in ast.walk(scope)
        if isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name)
        and n.targets[0].id == target and isinstance(n.value, ast.Call) and dotted_name(n.value.func) == function
    ]
    if len(found) != 1:
        raise ScriptMismatch(f'{len(found)} x `{target} = {function}(...)`, expected 1')
    return found[0]


class _Replace(ast.NodeTransformer):
    def __init__(self, old: str, new: str):
        self._old, self._new = expression(old), new

    def visit(self, node: ast.AST) -> ast.AST:
        if is_same(node, self._old):
            return ast.copy_location(expression(self._new), node)
        return super().generic_visit(node)


def replace_once(scope: ast.AST, old: str, new: str) -> None:
    count = len(find_all(scope, old))
    if count != 1:
        raise ScriptMismatch(f'{count} x `{old}`, expected 1')
    _Replace(old, new).visit(scope)


# --- names ------------------------------------------------------------------------------------------------------------

def dotted_name(node: ast.AST) -> Optional[str]:
    """'a.b.c' of a name or of attributes of a name; None for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        root = dotted_name(node.value)
        return root and f'{root}.{node.attr}'
    return None


def calls_of(scope: ast.AST, name: str) -> List[ast.Call]:
    return [n for n in ast.walk(scope) if isinstance(n, ast.Call) and dotted_name(n.func) == name]


def module_names(tree: ast.Module) -> Set[str]:
    """Names that are defined at module level: imported, assigned, functions and classes."""
    return set(_defined(tree.body))


def _defined(body: List[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
            continue  # what is defined inside is not visible outside
        for child in ast.walk(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield from (alias.asname or alias.name.split('.')[0] for alias in child.names)
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                yield child.id


def check_replaced_name(tree: ast.Module, name: str, function: str, replacement: Callable) -> None:
    """Check that a replacement of a module-level name is called by the script, with arguments that it takes.

    Args:
        tree: The script.
        name: The name, or an attribute of one: 'create_model', 'utils.CheckpointSaver'.
        function: The script's function that must call it.
        replacement: What will be called instead.

    Raises:
        ScriptMismatch: The name is not defined at module level, is hidden by a local one, is not called there, or is
            called with other arguments.
    """
    root = name.split('.')[0]
    if root not in module_names(tree):
        raise ScriptMismatch(f'`{root}` is not defined at module level')
    scope = find_function(tree, function)
    parameters = [a.arg for a in ast.walk(scope.args) if isinstance(a, ast.arg)]
    if root in {*parameters, *_defined(scope.body)}:
        raise ScriptMismatch(f'{function}() has a local `{root}`, which hides that of the module')
    if not calls_of(scope, name):
        raise ScriptMismatch(f'{function}() does not call `{name}`')
    for call in calls_of(tree, name):
        check_call(call, name, replacement)


def check_call(call: ast.Call, name: str, replacement: Callable) -> None:
    """Check that a call binds to the signature of its replacement.

    Arguments in `*args` and `**kwargs` are known only when the script runs: then only the others are checked.
    """
    has_unknown = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    signature = inspect.signature(replacement)
    bind = signature.bind_partial if has_unknown else signature.bind
    positional = [a for a in call.args if not isinstance(a, ast.Starred)]
    try:
        bind(*positional, **{k.arg: k.value for k in call.keywords if k.arg is not None})
    except TypeError as e:
        raise ScriptMismatch(f'line {call.lineno} calls `{name}` in another way: {e}')
