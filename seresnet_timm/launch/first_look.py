"""What can be refused without torch: a wrong value is named at once

torch and timm take seconds to import. Where values are wrong, and nothing else needs timm to be judged, the command
line is refused here. Names of models and optimizers are looked up in the text of timm's files; a name that is not there
may still be right, so that timm itself is asked then.
"""
import importlib.util
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List

from seresnet_timm.errors import UsageError, refuse
from seresnet_timm.launch import modelzoo
from seresnet_timm.launch.combinations import find_contradictions
from seresnet_timm.launch.dataset import missing_root
from seresnet_timm.launch.parse import CommandLine


def refuse_wrong_values(line: CommandLine, sources: Any) -> None:
    """Refuse a command line with wrong values, with all else that can be said without timm.

    Args:
        line: The command line, whose `problems` are the wrong values.
        sources: Where the settings come from, as in `plan`.

    Raises:
        UsageError: There are wrong values, and no name that only timm can judge.
    """
    if not line.problems:
        return
    args = {**line.defaults, **sources.base(), **sources.flags}
    if not (_is_model(args['model']) and _is_optimizer(args.get('opt', 'sgd'))):
        return
    refuse(line.problems + list(_others(line, sources, args)))


def _others(line: CommandLine, sources: Any, args: Dict[str, Any]) -> Iterator[str]:
    try:
        args = {**args, **modelzoo.translate(sources.modelzoo, sources.base(), line.verb, 1)}
    except UsageError as e:
        yield str(e)
    yield from missing_root(line.verb, args)
    yield from find_contradictions(line.verb, args, sources.asked_or_typed)


def _is_model(name: str) -> bool:
    """True if the text of timm or of this package defines a model of that name, and its tag."""
    name, dot, tag = name.partition('.')
    if dot and not _is_in(fr"['\"]{re.escape(name + dot + tag)}['\"]", 'models/*.py'):
        return False
    return name.isidentifier() and _is_in(fr'^def {name}\(', 'models/*.py')


def _is_optimizer(name: str) -> bool:
    name = name.lower().removeprefix('lookahead_')
    return name.isidentifier() and _is_in(fr"['\"]{name}['\"]", 'optim/*.py')


def _is_in(pattern: str, files: str) -> bool:
    folders: List[Path] = [Path(__file__).resolve().parent.parent]
    timm = importlib.util.find_spec('timm')
    if timm is not None and timm.origin is not None:
        folders.append(Path(timm.origin).parent)
    return any(re.search(pattern, file.read_text(encoding='utf-8', errors='replace'), re.M)
               for folder in folders for file in folder.glob(files))
