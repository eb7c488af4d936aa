"""Load timm's script as a module: check it, patch it, replace names in it, run its `main`."""
import argparse
import ast
import functools
import sys
from types import ModuleType
from typing import Any, Callable, List, Mapping, Optional, Set, Tuple

from seresnet_timm.errors import UsageError
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.timm_scripts import known
from seresnet_timm.timm_scripts.parser import read_parser
from seresnet_timm.timm_scripts.patches import PATCHES
from seresnet_timm.timm_scripts.syntax import ScriptMismatch, calls_of, check_call, check_replaced_name, find_function

REPLACED = 'replaced'


def is_known(script: Script) -> bool:
    """Whether the script is the package's own, or one whose SHA-256 is in the table of `known`."""
    return script.is_bundled or known.tag_of(script.name, script.sha256) is not None


def check(script: Script) -> List[Tuple[str, str]]:
    """Check, without running it, that all changes fit timm's script.

    Returns:
        What becomes of each change, as (change, outcome).

    Raises:
        UsageError: The script cannot be read, is not Python, or a change does not fit it.
    """
    return list(_changed_tree(script)[1])


def can_read_parser(script: Script) -> bool:
    """Whether `parser_of` reads the script only; else it executes the script's top level, see `is_known`."""
    return read_parser(_read(script)) is not None


def parser_of(script: Script) -> argparse.ArgumentParser:
    """The parser of timm's script, with one-sentence errors. It is made anew each time.

    Raises:
        UsageError: The script makes its parser in another way than timm's do, and a change does not fit it.
    """
    parser = read_parser(_read(script))
    if parser is None:
        parser = _execute(script).parser
        parser.error = _refuse
    parser.timm_script = script.name
    return parser


def arguments_of(script: Script, function: str) -> Set[str]:
    """Names of the arguments that timm's script writes into its calls of a function, beside `**` of a dictionary."""
    return {k.arg for call in calls_of(_read(script), function) for k in call.keywords if k.arg is not None}


def run(
        settings: RunSettings,
        before_main: Optional[Callable[[], None]] = None,
        checkpoints: Optional[Mapping[str, Any]] = None,
) -> None:
    """Run timm's script in this process, with the flags that the settings hold.

    Args:
        settings: Settings of the run.
        before_main: Called when everything is imported, before the script starts.
        checkpoints: Checkpoints that this process has read, by their path.

    Raises:
        UsageError: A change does not fit the script, or the script refuses its flags.
    """
    module = _execute(settings.script)
    module.parser.error = _refuse
    overrides = make_overrides(settings)
    overrides.checkpoints = dict(checkpoints or {})
    overrides.install(module)
    if before_main is not None:
        before_main()
    overrides.run(module.main)


def make_overrides(settings: RunSettings) -> Any:
    """The replacements for the names of the script that the settings name: TrainOverrides or ValidateOverrides."""
    if settings.script.name == 'train.py':
        from seresnet_timm.timm_scripts.train_overrides import TrainOverrides
        return TrainOverrides(settings)
    from seresnet_timm.timm_scripts.validate_overrides import ValidateOverrides
    return ValidateOverrides(settings)


def _refuse(message: str) -> None:
    raise UsageError(f'{message[:1].upper()}{message[1:].rstrip(".")}.')


def _execute(script: Script) -> ModuleType:
    """Execute the patched script as module `timm_train` or `timm_validate`, without its `main`."""
    tree, _ = _changed_tree(script)
    module = ModuleType('timm_' + script.name[:-len('.py')])
    module.__file__ = script.path
    sys.modules[module.__name__] = module  # loader workers import what they unpickle from it
    exec(compile(tree, script.path, 'exec'), module.__dict__)
    return module


@functools.lru_cache(maxsize=2)
def _changed_tree(script: Script) -> Tuple[ast.Module, Tuple[Tuple[str, str], ...]]:
    """The script's syntax tree with the patches in it, and what became of each change. Made once per process."""
    tree = _read(script)
    outcomes = []
    for change, apply in (*_checks_of_names(script), *((patch.__name__, patch) for patch in PATCHES[script.name])):
        try:
            outcomes.append((change, apply(tree)))
        except ScriptMismatch as e:
            version = f' {script.tag}' if script.tag else ''
            raise UsageError(
                f'{script.path}: the change {change} does not match ({e}); this {script.name}{version} is not one that '
                'the launcher knows. Use --scripts bundled, get a known one with `seresnet-timm scripts fetch`, or run '
                'it yourself with --device-modules seresnet_timm.')
    ast.fix_missing_locations(tree)
    return tree, tuple(outcomes)


def _read(script: Script) -> ast.Module:
    try:
        with open(script.path, 'rb') as f:
            data = f.read()
    except OSError as e:
        raise UsageError(f'Cannot read {script.path}: {e.strerror}.')
    if known.sha256_of(data) != script.sha256:
        raise UsageError(f'{script.path} has another content than when this run was planned: start the run again.')
    try:
        return ast.parse(data, filename=script.path)
    except (SyntaxError, ValueError) as e:
        where = f', line {e.lineno},' if getattr(e, 'lineno', None) else ''
        raise UsageError(f"{script.path}{where} is not Python ({getattr(e, 'msg', e)}): it should be timm's "
                         f'{script.name}.')


def _checks_of_names(script: Script) -> List[Tuple[str, Callable[[ast.Module], str]]]:
    """For every name that is replaced, a check that the script uses it as expected."""
    overrides = make_overrides(RunSettings(verb='', script=script, args={}))

    def check_name(name: str, tree: ast.Module) -> str:
        check_replaced_name(tree, name, overrides.names()[name].function, overrides.names()[name].replacement)
        return REPLACED

    checks = [(name, functools.partial(check_name, name)) for name in overrides.names()]
    return checks + ([('prepare_distributed', _check_tasks)] if script.name == 'train.py' else [])


def _check_tasks(tree: ast.Module) -> str:
    """Check that the script creates timm's tasks by their names, and prepares them for several processes."""
    main = find_function(tree, 'main')
    imported = [alias.asname or alias.name for node in tree.body
                if isinstance(node, ast.ImportFrom) and node.module == 'timm.task' for alias in node.names]
    tasks = [name for name in imported if name.endswith('Task')]
    if not any(calls_of(main, task) for task in tasks):
        raise ScriptMismatch('main() creates no task of timm.task by its name')
    calls = calls_of(main, 'task.prepare_distributed')
    if not calls:
        raise ScriptMismatch('main() does not call `task.prepare_distributed`')

    def prepare_distributed(device_ids=None, **ddp_kwargs):
        """As in `train_overrides`."""
    for call in calls:
        check_call(call, 'task.prepare_distributed', prepare_distributed)
    return REPLACED
