"""The block `tuned:` of a config file, which `seresnet-timm tune` writes: settings that are no flags of the script"""
from typing import Any, Dict, List, Mapping, Optional, Tuple

from seresnet_timm.ascend.environment import TUNED

KEY = 'tuned'
FACTS = ('device', 'machine', 'model', 'date')
OPTIONS: Dict[str, Tuple[Any, ...]] = {'lean_se': ('on', 'off'), 'graph': (True,), 'internal_format': (True, False)}
OF_TRAINING = ('graph',)
ALLOWED = ('batch-size', 'precision', 'internal-format')  # by --allow


def read_allowed(allowed: str) -> Tuple[List[str], List[str]]:
    """The names in `--allow`, and a sentence for each that is unknown."""
    names = [name for name in allowed.replace(' ', '').split(',') if name]
    return names, [f'--allow {name} is unknown: give {", ".join(ALLOWED)}, one or several.'
                   for name in names if name not in ALLOWED]


def take_tuned(tuned: Any) -> Tuple[Optional[Dict[str, Any]], List[str]]:
    """The block, None if it is not what `tune` writes; and why, a clause for each mistake."""
    problems = [] if isinstance(tuned, dict) else ['must be a mapping']
    for name, value in (tuned.items() if not problems else ()):
        if name == 'environment':
            wrong = not isinstance(value, dict) or any(
                k not in TUNED or not isinstance(v, str) or v not in TUNED[k] for k, v in value.items())
            if wrong:
                allowed = '; '.join(f'{k} {" or ".join(v)}' for k, v in TUNED.items())
                problems.append(f'environment must be a mapping of these: {allowed}')
        elif name in OPTIONS and not any(value is v or isinstance(v, str) and value == v for v in OPTIONS[name]):
            problems.append(f'{name} must be {" or ".join(map(repr, OPTIONS[name]))}')
        elif name not in OPTIONS and (name not in FACTS or not isinstance(value, str)):
            problems.append(f'{name}: {value!r} is not written by `seresnet-timm tune`')
    return None if problems else tuned, problems


def options_of(tuned: Mapping[str, Any], verb: str) -> Dict[str, Any]:
    """The launcher's options in the block, of those that the verb has."""
    return {name: tuned[name] for name in OPTIONS if name in tuned and (verb == 'train' or name not in OF_TRAINING)}


def describe(tuned: Mapping[str, Any], path: str, environ: Mapping[str, str], device: str) -> List[str]:
    """Sentences for the plan: where the settings were measured, and what is not as it was there."""
    kind = device.partition(':')[0]
    notes = [f'{path} was measured by `seresnet-timm tune` with {tuned.get("model", "a model")} on '
             f'{tuned.get("machine", "a machine")}, {tuned.get("date", "at an unknown date")}.']
    if tuned.get('device', kind) != kind:
        notes.append(f'{path} was measured on {tuned["device"]}, this run is on {kind}: measure again.')
    different = [f'{k}={v}' for k, v in tuned.get('environment', {}).items() if environ.get(k) != v]
    if different and kind == 'npu':
        notes.append(f'It was faster with {" ".join(different)}: `export {" ".join(different)}` before the run.')
    return notes
