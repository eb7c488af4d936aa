"""What can be refused without torch: a wrong value is named at once

torch and timm take seconds to import. Where values or names are wrong, and nothing else needs timm to be judged, the
command line is refused here. Names of models and optimizers are looked up in the text of timm's files. Where a name
that is not there may still be right, timm itself is asked.
"""
from typing import Any, Dict, Iterator, List, Optional, Tuple

from seresnet_timm.engine import timm_names
from seresnet_timm.engine.rules import Model
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import UsageError, printable, refuse
from seresnet_timm.launch import modelzoo
from seresnet_timm.launch.combinations import find_contradictions
from seresnet_timm.launch.dataset import missing_root
from seresnet_timm.launch.parse import CommandLine

INITIAL_WEIGHTS = ('initial_checkpoint', 'pretrained_path')  # flags that name a file of them


def refuse_wrong_values(line: CommandLine, sources: Any, has_data: Optional[bool] = True) -> None:
    """Refuse a command line with wrong values or unknown names, with all else that is said without timm.

    Files that are missing are no reason by themselves: more may be wrong that only timm or the device can tell.

    Args:
        line: The command line, whose `problems` are the wrong values.
        sources: Where the settings come from, as in `plan`.
        has_data: There is a data folder, as in `make_plan`.

    Raises:
        UsageError: A value or name is wrong, and there is no name that only timm can judge.
    """
    args = {**line.defaults, **sources.base(), **sources.flags}
    unknown = _unknown_names(args)
    if None in unknown.values():
        return
    wrong = line.problems + [sentence for sentence in unknown.values() if sentence]
    if not wrong:
        return
    has_data = bool(args.get('data_dir') or args.get('dataset')) if has_data is None else has_data
    args, problems = _translated(line, sources, args)
    problems += [sentence for _, sentence in missing_files(line.verb, args)]
    if has_data and sources.knows_data(args):
        problems += missing_root(line.verb, args)
    if sources.is_config_read:
        problems += find_contradictions(line.verb, args, sources.asked_or_typed)
    refuse(wrong + problems)


def _unknown_names(args: Dict[str, Any]) -> Dict[str, Optional[str]]:
    """The sentence on a name that is unknown, by its flag; '' for a known one, None for one that timm must judge."""
    model, optimizer = args['model'], args.get('opt', 'sgd')
    # a model elsewhere is on the Hub, which is not asked for a run that is refused
    found = {'model': '' if ':' in model or timm_names.is_model(model) else timm_names.unknown_model(model),
             'opt': '' if timm_names.is_optimizer(optimizer) else timm_names.unknown_optimizer(optimizer)}
    if args.get('device_modules'):  # may register them
        return {flag: None if sentence else sentence for flag, sentence in found.items()}
    return found


def _translated(line: CommandLine, sources: Any, args: Dict[str, Any]) -> Tuple[Dict[str, Any], List[str]]:
    """Settings with those of the ModelZoo's names, and what is wrong with them."""
    try:
        return {**args, **modelzoo.translate(sources.modelzoo, sources.base(), line.verb, 1)}, []
    except UsageError as e:
        return args, [str(e)]


def missing_files(verb: str, args: Dict[str, Any]) -> Iterator[Tuple[str, str]]:
    """The names of flags whose files are not there, each with its sentence; but for the dataset.

    A run that resumes needs no initial weights. `--resume auto` may find nothing to resume from: it needs them here.
    """
    rules, resumes = rules_of(verb), args.get('resume') not in (None, '', 'auto')
    for name, value in args.items():
        if resumes and name in INITIAL_WEIGHTS:
            continue
        if args.get('device_modules') and isinstance(rules.get(name), Model):
            continue  # a module may register it
        reason = rules[name].missing(value) if name in rules else None
        if reason:
            yield name, f'--{name.replace("_", "-")} {printable(value)} {reason}.'.replace('?.', '?')
