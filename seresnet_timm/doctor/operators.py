"""`seresnet-timm doctor --operators`: whether a training computes on the NPU alone, with the installed torch_npu.

The steps of the recipes and of the flags of a training run on the NPU, small (`operator_steps.py`). What reaches the
dispatcher is looked up (`ascend/operators.py`); and as TORCH_NPU_FALLBACK_CPU_DISABLE=1 is set, an operator inside a
compound one that would run on the CPU is an error. A torch_npu without that variable warns, and the warning is read.

`--json` prints one object: `schema` 1; `ok`; `torch_npu`; `operators`: name -> `kind` ('kernel', 'composite' or
'fallback') and `steps`; `constraints`: what Ascend does not take -> names of operators; `failures`: step -> error.
"""
import json
import sys
import warnings
from typing import Any, Dict, List, Mapping, Sequence, Set

from seresnet_timm.ascend.wheels import installed_pair
from seresnet_timm.doctor.probe_processes import run_probe
from seresnet_timm.errors import RunError, first_line, first_names, printable

SCHEMA = 1
TIMEOUT = 900  # seconds: an NPU may compile operators at their first use
NO_FALLBACK = 'TORCH_NPU_FALLBACK_CPU_DISABLE'


def watch(device: str = 'npu') -> Dict[str, Any]:
    """Run the steps on the NPU of this process, whose environment has NO_FALLBACK; what they reached, and failures."""
    from seresnet_timm.ascend.operators import Watch, kind_of, named_in_warnings
    from seresnet_timm.ascend.setup import set_up
    from seresnet_timm.doctor.operator_steps import steps
    set_up(device)
    reached: Dict[str, List[str]] = {}
    constraints: Dict[str, List[str]] = {}
    failures: Dict[str, str] = {}
    on_cpu: Set[str] = set()
    for name, step in steps(device):
        mode = Watch()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            try:
                with mode:
                    step()
            except Exception as e:
                failures[name] = first_line(e)
        warned = named_in_warnings(str(w.message) for w in said)  # also of those inside a compound operator
        on_cpu.update(warned)
        for operator in {*mode.operators, *warned}:
            reached.setdefault(operator, []).append(name)
        for what, operators in mode.constraints.items():
            constraints[what] = sorted({*constraints.get(what, []), *operators})
    operators = {name: {'kind': 'fallback' if name in on_cpu else kind_of(name), 'steps': reached[name]}
                 for name in sorted(reached)}
    return {'operators': operators, 'constraints': constraints, 'failures': failures}


def run(in_json: bool, environ: Mapping[str, str]) -> None:
    """Run the steps in a process of their own, and print what was found.

    Raises:
        RunError: There is no NPU, or something would run on the CPU or fails.
    """
    pair = installed_pair()
    if pair.torch_npu is None:
        raise RunError('--operators looks up the kernels of torch_npu, which is not installed here.')
    probe = run_probe('operators', {**environ, NO_FALLBACK: '1'}, timeout=TIMEOUT)
    if probe.failure is not None:
        raise RunError(f'--operators needs an NPU that computes: {printable(probe.failure)}. `seresnet-timm doctor` '
                       'says what is wrong.')
    found = probe.data
    falling = [name for name, entry in found['operators'].items() if entry['kind'] == 'fallback']
    bad = bool(falling or found['failures'] or found['constraints'])
    if in_json:
        print(json.dumps({'schema': SCHEMA, 'ok': not bad, 'torch_npu': pair.torch_npu, **found}, indent=1))
    else:
        print('\n'.join(as_text(found, pair.torch_npu)))
    if bad:
        sys.stdout.flush()
        raise RunError(
            f'a training does not compute on the NPU alone with torch_npu {pair.torch_npu}: '
            + '; '.join([*([f'on the CPU: {first_names(falling, 5)}'] if falling else []),
                         *(f'{what}: {first_names(names, 5)}' for what, names in found['constraints'].items()),
                         *(f'{name}: {error}' for name, error in found['failures'].items())]) + '.')


def as_text(found: Mapping[str, Any], torch_npu: str) -> List[str]:
    """The operators as a table."""
    operators, words = found['operators'], {
        'kernel': 'kernel of torch_npu', 'composite': 'made of other operators', 'fallback': 'RUNS ON THE CPU'}
    width = max(map(len, operators), default=0)
    names = list(dict.fromkeys(name for entry in operators.values() for name in entry['steps']))
    lines = [f'Operators that the recipes reach on the NPU, with torch_npu {torch_npu}:']
    for name, entry in operators.items():
        lines.append(f'  {name:<{width}}  {words[entry["kind"]]:<23}  {_where(entry["steps"], names)}')
    counts = ', '.join(f'{sum(e["kind"] == kind for e in operators.values())} {text}' for kind, text in words.items())
    return [printable(line) for line in [*lines, f'{len(operators)} operators: {counts}']]


def _where(steps: Sequence[str], names: Sequence[str]) -> str:
    """The steps that reach an operator, in few words."""
    training = [name for name in names if name.startswith(('training', '--'))]
    if len(steps) == len(names):
        return 'all steps'
    if set(training) <= set(steps):
        steps = ['training', *(name for name in steps if name not in training)]
    return first_names(steps, 4)
