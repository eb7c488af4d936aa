"""What can be refused without torch: a wrong value is named at once

torch and timm take seconds to import. Where values are wrong, and nothing else needs timm to be judged, the command
line is refused here. Names of models and optimizers are looked up in the text of timm's files; a name that is not there
may still be right, so that timm itself is asked then.
"""
from typing import Any, Dict, Iterator, Optional, Tuple

from seresnet_timm.engine import timm_names
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import UsageError, printable, refuse
from seresnet_timm.launch import modelzoo
from seresnet_timm.launch.combinations import find_contradictions
from seresnet_timm.launch.dataset import missing_root
from seresnet_timm.launch.parse import CommandLine


def refuse_wrong_values(line: CommandLine, sources: Any, has_data: Optional[bool] = True) -> None:
    """Refuse a command line with wrong values, with all else that can be said without timm.

    Args:
        line: The command line, whose `problems` are the wrong values.
        sources: Where the settings come from, as in `plan`.
        has_data: There is a data folder, as in `make_plan`.

    Raises:
        UsageError: There are wrong values, and no name that only timm can judge.
    """
    if not line.problems:
        return
    args = {**line.defaults, **sources.base(), **sources.flags}
    is_elsewhere = ':' in args['model']  # on the Hub, which is not asked for a run that is refused
    if (is_elsewhere or timm_names.is_model(args['model'])) and timm_names.is_optimizer(args.get('opt', 'sgd')):
        has_data = bool(args.get('data_dir') or args.get('dataset')) if has_data is None else has_data
        refuse(line.problems + list(_others(line, sources, args, has_data)))


def _others(line: CommandLine, sources: Any, args: Dict[str, Any], has_data: bool) -> Iterator[str]:
    try:
        args = {**args, **modelzoo.translate(sources.modelzoo, sources.base(), line.verb, 1)}
    except UsageError as e:
        yield str(e)
    yield from (sentence for _, sentence in missing_files(line.verb, args))
    if has_data and sources.knows_data(args):
        yield from missing_root(line.verb, args)
    if sources.is_config_read:
        yield from find_contradictions(line.verb, args, sources.asked_or_typed)


def missing_files(verb: str, args: Dict[str, Any]) -> Iterator[Tuple[str, str]]:
    """The names of flags whose files are not there, each with its sentence; but for the dataset."""
    rules = rules_of(verb)
    for name, value in args.items():
        reason = rules[name].missing(value) if name in rules else None
        if reason:
            yield name, f'--{name.replace("_", "-")} {printable(value)} {reason}.'
