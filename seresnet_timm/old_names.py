"""Modules under the names that they had in version 0.1: `seresnet_timm.preflight` is `seresnet_timm.launch.checks`.

Scripts of users that import them go on working, with a DeprecationWarning. Nothing in this package uses these names.
"""
import importlib
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any, Optional

OLD_NAMES = {
    'cluster': 'launch.cluster',
    'convert': 'checkpoints.convert',
    'export': 'inference.export',
    'fast_step': 'step.fast',
    'fuse_bn': 'step.fuse_bn',
    'half_weights': 'step.half_weights',
    'hub_errors': 'hub.errors',
    'inspection': 'checkpoints.inspect',
    'lean_se': 'models.lean_se',
    'model_card': 'hub.card',
    'model_source': 'inference.load',
    'options': 'launch.flags',
    'plan': 'launch.plan',
    'predict': 'inference.predict',
    'preflight': 'launch.checks',
    'processes': 'launch.processes',
    'profile': 'step.profile',
    'recipe': 'launch.recipes',
    'results': 'runs.report',
    'run_record': 'runs.record',
    'safe_pickle': 'checkpoints.safe_pickle',
    'saver': 'checkpoints.save',
    'worker': 'launch.rank',
}
_PACKAGE = __name__.rpartition('.')[0]


class _OldNames:
    """Imports the new module for an old name; asked by Python only for names that no file of the package has."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        package, _, name = fullname.rpartition('.')
        if package == _PACKAGE and name in OLD_NAMES:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None  # Python makes it

    def exec_module(self, module: ModuleType) -> None:
        new = f'{_PACKAGE}.{OLD_NAMES[module.__name__.rpartition(".")[2]]}'
        warnings.warn(f'{module.__name__} is now {new}: import that', DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def register() -> None:
    """Let Python find the old names, after everything else."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
