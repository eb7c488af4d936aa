"""Load timm's script as a module, patched in memory."""
import ast
import functools
import sys
from types import ModuleType
from typing import List, Tuple

from seresnet_timm.errors import UsageError
from seresnet_timm.timm_scripts.find import Script
from seresnet_timm.timm_scripts.patches import apply_patches


@functools.lru_cache(maxsize=2)
def patched_tree(script: Script) -> Tuple[ast.Module, List[Tuple[str, str]]]:
    """The script's syntax tree with the patches in it, and what became of each. Made once a process: it takes a while.

    Raises:
        UsageError: The script is not Python, or a patch does not match it.
    """
    try:
        tree = ast.parse(script.path.read_bytes(), filename=str(script.path))
    except SyntaxError as e:
        raise UsageError(f'{script.path}, line {e.lineno}, is not Python ({e.msg}): it should be '
                         f"timm's {script.name}.")
    outcomes, mismatch = apply_patches(script.name, tree)
    if mismatch:
        version = f' {script.tag}' if script.tag else ''
        raise UsageError(
            f'{script.path}: {mismatch}; this {script.name}{version} is not one the launcher knows. Use --scripts '
            'bundled, get a known one with `seresnet-timm scripts fetch`, or run it yourself with --device-modules '
            'seresnet_timm.')
    return tree, outcomes


def load(script: Script) -> ModuleType:
    """Patch the script and execute it as a module, without running its `main`."""
    return execute(script, patched_tree(script)[0])


def execute(script: Script, tree: ast.Module) -> ModuleType:
    """Execute a patched tree as module `timm_train` or `timm_validate`."""
    from seresnet_timm.timm_scripts import overrides as script_helpers

    module = ModuleType('timm_' + script.name[:-len('.py')])
    module.__file__ = str(script.path)
    module._seresnet_timm = script_helpers
    sys.modules[module.__name__] = module  # loader workers import what they unpickle from it
    exec(compile(tree, str(script.path), 'exec'), module.__dict__)
    return module
