"""`seresnet-timm doctor --operators`: whether a training computes on the NPU alone, with the installed torch_npu.

The steps of the recipes run on the NPU, small: training in float32, under autocast and in O2, evaluation, prediction.
An export computes on the CPU on every machine. What reaches the dispatcher is looked up (`ascend/operators.py`); and as
TORCH_NPU_FALLBACK_CPU_DISABLE=1 is set, an operator inside a compound one that would run on the CPU is an error.

`--json` prints one object: `schema` 1; `ok`; `torch_npu`; `operators`: name -> `kind` ('kernel', 'composite' or
'fallback') and `steps`; `constraints`: what Ascend does not take -> names of operators; `failures`: step -> error.
"""
import argparse
import json
import sys
from typing import Any, Callable, Dict, Iterator, List, Mapping, Tuple

from seresnet_timm.ascend.wheels import installed_pair
from seresnet_timm.doctor.probe_processes import run_probe
from seresnet_timm.errors import RunError, first_line, first_names, printable

SCHEMA = 1
NO_FALLBACK = 'TORCH_NPU_FALLBACK_CPU_DISABLE'


def steps(device: str) -> Iterator[Tuple[str, Callable[[], Any]]]:
    """The steps, by name; a function runs one."""
    import torch
    import torch.nn.functional as F
    from timm.utils import ModelEmaV3, accuracy

    import seresnet_timm.models  # noqa: F401  (registers them)
    from seresnet_timm.ascend.runtime import supports_bfloat16
    from seresnet_timm.models.create import create_model
    from seresnet_timm.step.backward import backward
    from seresnet_timm.step.bad_steps import BadSteps
    from seresnet_timm.step.fast import create_optimizer
    from seresnet_timm.step.half_weights import use_half_weights
    from seresnet_timm.step.loss_scaler import create_loss_scaler
    target = torch.device(device)
    flags = argparse.Namespace(clip_grad=None, clip_mode='norm')

    def network() -> torch.nn.Module:
        return create_model('seresnet50_ascend', num_classes=8, channels=(8, 8, 8, 8)).to(target)

    def batch() -> Tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(4, 3, 64, 64).to(target), torch.arange(4).to(target)

    def train(dtype: str = '', half: bool = False) -> None:
        model = use_half_weights(network()) if half else network()
        average = ModelEmaV3(model)
        optimizer = create_optimizer(model, 'momentum', lr=0.1, momentum=0.9, weight_decay=1e-4)
        scaler = create_loss_scaler(target, bool(dtype), dtype or 'float16', 1024. if half else None)[0]
        guard = BadSteps(model, optimizer, target, scaler)
        guard.start_epoch()
        for _ in range(2):
            images, targets = batch()
            with torch.autocast(target.type, getattr(torch, dtype or 'float16'), enabled=bool(dtype) and not half):
                loss = F.cross_entropy(model(images), targets)
            backward(loss, None, optimizer, flags, scaler, True, guard)
            optimizer.zero_grad()
            average.update(model)
        float(loss)

    def evaluate() -> None:
        images, targets = batch()
        with torch.inference_mode():
            output = network().eval()(images)
            accuracy(output, targets, topk=(1, 5))
            F.cross_entropy(output, targets).item()

    def predict() -> None:
        with torch.inference_mode():
            output = network().eval()(batch()[0])
            [x.cpu() for x in output.float().softmax(dim=1).topk(5)]
    yield 'training in float32', train
    yield 'training with amp float16', lambda: train('float16')
    if supports_bfloat16():
        yield 'training with amp bfloat16', lambda: train('bfloat16')
    yield 'training with O2', lambda: train('float16', half=True)
    yield 'evaluation', evaluate
    yield 'prediction', predict


def watch(device: str = 'npu') -> Dict[str, Any]:
    """Run the steps on the NPU of this process, whose environment has NO_FALLBACK; what they reached, and failures."""
    from seresnet_timm.ascend.operators import Watch, kind_of
    from seresnet_timm.ascend.setup import set_up
    set_up(device)
    reached: Dict[str, List[str]] = {}
    constraints: Dict[str, List[str]] = {}
    failures: Dict[str, str] = {}
    for name, step in steps(device):
        mode = Watch()
        try:
            with mode:
                step()
        except Exception as e:
            failures[name] = first_line(e)
        for operator in mode.operators:
            reached.setdefault(operator, []).append(name)
        for what, operators in mode.constraints.items():
            constraints[what] = sorted({*constraints.get(what, []), *operators})
    operators = {name: {'kind': kind_of(name), 'steps': reached[name]} for name in sorted(reached)}
    return {'operators': operators, 'constraints': constraints, 'failures': failures}


def run(in_json: bool, environ: Mapping[str, str]) -> None:
    """Run the steps in a process of their own, and print what was found.

    Raises:
        RunError: There is no NPU, or something would run on the CPU or fails.
    """
    pair = installed_pair()
    if pair.torch_npu is None:
        raise RunError('--operators looks up the kernels of torch_npu, which is not installed here.')
    probe = run_probe('operators', {**environ, NO_FALLBACK: '1'})
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
        where = ', '.join(entry['steps'])
        for group, word in ((names, 'all steps'), ([n for n in names if n.startswith('training')], 'training')):
            where = where.replace(', '.join(group), word)
        lines.append(f'  {name:<{width}}  {words[entry["kind"]]:<23}  {where}')
    counts = ', '.join(f'{sum(e["kind"] == kind for e in operators.values())} {text}' for kind, text in words.items())
    return [printable(line) for line in [*lines, f'{len(operators)} operators: {counts}']]
