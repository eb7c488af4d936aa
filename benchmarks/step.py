"""Training step: its speed, its memory, and evaluation against timm's `seresnet50` (`seresnet-timm bench step`)

Each round runs all contenders in turn on the same random batch. On a CPU the measure is CPU time (all threads of the
process), so that other programs matter less, and figures are images/s per core; on a device it is wall time with the
device synchronised. The figure of a contender is the median of its rounds, a ratio the median of the rounds' ratios.
  * timm: `seresnet50` as timm's train.py sets it up by default (`--fast-step off`)
  * seresnet_timm: this package's model as `seresnet-timm train` with the same flags sets it up
  * seresnet_timm, lean: the same with `--lean-se on`
  * seresnet_timm, no SE: timm's `resnet50` in that set-up, which shows the cost of SE
The settings come from launch/plan.py, and the step from the stages of the bundled train.py.
The allocator is not changed: `bench end2end` shows the effect of keeping freed memory.
"""
import statistics
import sys
import time
from typing import Any, Callable, Dict, List

import measure

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import UsageError
from seresnet_timm.files import write_json
from seresnet_timm.launch.rank import prepare_device
from seresnet_timm.launch.trial import random_batch, training_step
from seresnet_timm.runs.settings import RunSettings

EXAMPLES = (
    'seresnet-timm bench step',
    'seresnet-timm bench step --device npu --amp -b 128')
NEXT = (
    'seresnet-timm bench end2end --device npu   # with the loader',
    'seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet -b 128 --nproc auto')
GOALS = {
    'training': {'cpu': 1.1, 'cuda': 1.25}, 'memory': 0.9, 'SE overhead': 0.05, 'evaluation': 1.2,
}


def main(argv: List[str]) -> None:
    """Measure, and print a table.

    Raises:
        UsageError: The device does not exist, or the report cannot be written.
    """
    parser = ArgumentParser(
        prog='seresnet-timm bench step',
        description="Measure a training step, its memory and evaluation against timm's seresnet50 in the same run.")
    parser.rules = rules_of('bench')
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    parser.add_argument('--device', default='auto', metavar='D',
        help='auto (npu, else cuda, else cpu), npu, cuda or cpu')
    parser.add_argument('--model', default='seresnet50_ascend', metavar='M', help='model of this package')
    parser.add_argument('--timm-model', '--rival', default='seresnet50', metavar='M', help='timm model to compare with')
    parser.add_argument('--without-se', default='resnet50', metavar='M',
        help='the timm model without SE, to measure what SE costs')
    parser.add_argument('-b', '--batch-size', type=int, metavar='N',
        help='images per step (default: 8 on a CPU, else 128)')
    parser.add_argument('--img-size', type=int, default=224, metavar='N', help='side of the images in pixels')
    parser.add_argument('--rounds', type=int, metavar='N',
        help='number of rounds, whose median is printed (default: 5 on a CPU, else 50)')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='dtype of --amp')
    parser.add_argument('--torchcompile', action='store_true', help='also measure this package compiled by inductor')
    parser.add_argument('--graph', action='store_true', help='also measure this package with its kernels captured')
    parser.add_argument('--profile', action='store_true', help='also print the operators that take most of the time')
    parser.add_argument('--count', action='store_true',
                        help='count launches, bytes, FLOPs and memory of a training step instead; needs no device')
    parser.add_argument('--roofline', action='store_true',
                        help='with --count: images/s that published peaks of Ascend 910, A2 and H100 allow, computed')
    parser.add_argument('--json', metavar='FILE', help='write the figures to FILE')
    args = parser.parse_args(argv)
    measure.check_json(args.json)
    if args.count or args.roofline:
        report = count(args)
        if args.json:
            write_json(args.json, report)
        return
    args.device = measure.settings_of(
        'train', dict(model=args.model, device=args.device, img_size=args.img_size)).device
    kind = args.device.partition(':')[0]
    args.batch_size = args.batch_size or (8 if kind == 'cpu' else 128)
    args.rounds = args.rounds or (5 if kind == 'cpu' else 50)
    if min(args.batch_size, args.img_size, args.rounds) < 1:
        raise UsageError('-b, --img-size and --rounds are at least 1.')
    report = run(args)
    print_report(report)
    if args.json:
        write_json(args.json, report)


def count(args) -> Dict[str, Any]:
    """Count the operators of a training step, and print them.

    Raises:
        UsageError: A flag is for a step that runs.
    """
    names = ('amp', 'torchcompile', 'graph', 'profile', 'rounds')
    given = [f'--{name}' for name in names if getattr(args, name)]
    if given:
        raise UsageError(f'--count computes nothing: leave out {" and ".join(given)}.')
    batch_size = 128 if args.batch_size is None else args.batch_size
    if min(batch_size, args.img_size) < 1:
        raise UsageError('-b and --img-size are at least 1.')
    import step_count

    from seresnet_timm import models  # noqa: F401  (registers them)
    rivals = (args.timm_model, args.without_se)
    report = dict(measure.report_head('step'), batch_size=batch_size, img_size=args.img_size,
                  counts=step_count.run(args.model, rivals, batch_size, args.img_size))
    measure.print_head(report)
    print(f'{batch_size} images of {args.img_size} pixels, float32; counted, nothing ran\n')
    step_count.print_report(report['counts'], args.roofline)
    return report


def run(args) -> Dict[str, Any]:
    """All measurements.

    Returns:
        The figures, as JSON values.
    """
    import torch
    device = torch.device(args.device)
    report = measure.report_head('step')
    report['settings'] = {k: v for k, v in vars(args).items() if k != 'json'}
    report['threads'] = torch.get_num_threads()
    timms = train_settings(args, args.timm_model, fast_step='off')
    prepare_device(timms)
    ours, lean = train_settings(args, args.model), train_settings(args, args.model, lean_se='on')

    report['memory'] = {name: peak_memory(training_step(settings), device)
                        for name, settings in (('timm', timms), ('seresnet_timm', ours), ('seresnet_timm, lean', lean))}
    report['memory']['ratio'] = round(report['memory']['seresnet_timm'] / report['memory']['timm'], 3)
    report['memory']['ratio_lean'] = round(report['memory']['seresnet_timm, lean'] / report['memory']['timm'], 3)

    steps = {
        'timm': training_step(timms),
        'seresnet_timm': training_step(ours),
        'seresnet_timm, lean': training_step(lean),
        'seresnet_timm, no SE': training_step(train_settings(args, args.without_se)),
    }
    if args.torchcompile:
        steps['seresnet_timm, compiled'] = training_step(train_settings(args, args.model, torchcompile='inductor'))
        report['seconds_to_compile'] = round(_timed(steps['seresnet_timm, compiled'], device)(), 1)
    if args.graph:
        graphed = train_settings(args, args.model, graph=True)
        if not graphed.graph:
            raise UsageError(f'--graph cannot be measured: {graphed.reasons["graph"]}.')
        steps['seresnet_timm, graph'] = training_step(graphed)
    times = measure.interleave({k: _timed(step, device) for k, step in steps.items()}, args.rounds)
    report['training'] = _figures(times, args.batch_size)
    overhead = statistics.median(a / b for a, b in zip(times['seresnet_timm'], times['seresnet_timm, no SE'])) - 1
    report['se_overhead'] = round(overhead, 3)
    if args.profile:
        report['profile'] = _profile(steps['seresnet_timm'], device)
    del steps

    evaluations = {'timm': _evaluation(validate_settings(args, args.timm_model, fast_step='off', fuse_bn='off')),
                   'seresnet_timm': _evaluation(validate_settings(args, args.model))}
    times = measure.interleave({k: _timed(step, device) for k, step in evaluations.items()}, args.rounds)
    report['evaluation'] = _figures(times, args.batch_size)
    return report


# --- what is measured -------------------------------------------------------------------------------------------------

def train_settings(args, model: str, **more) -> RunSettings:
    """What `seresnet-timm train` runs with, for a model; `fast_step='off'` is timm's own set-up."""
    return measure.settings_of('train', dict(
        _flags(args), model=model, opt='momentum', momentum=0.9, lr=0.01, weight_decay=1e-4, **more))


def validate_settings(args, model: str, **more) -> RunSettings:
    return measure.settings_of('validate', dict(_flags(args), model=model, **more))


def _flags(args) -> Dict[str, Any]:
    names = ('device', 'batch_size', 'img_size', 'amp', 'amp_dtype')
    return {name: getattr(args, name) for name in names}


def _evaluation(settings: RunSettings) -> Callable[[], None]:
    """A forward pass of the bundled validate.py, with a model that it has prepared, of random weights."""
    import torch
    from timm.data import resolve_data_config

    from seresnet_timm.engine import validate
    from seresnet_timm.engine.forward import Forward, set_up_device
    from seresnet_timm.models import lean_se
    from seresnet_timm.models.create import create_from_args
    args = settings.namespace()
    forward = Forward.from_args(args, set_up_device(args))
    network = create_from_args(args)
    data_config = resolve_data_config(vars(args), model=network)
    model, _ = validate.prepare_model(network, data_config, validate.Evaluation(settings, args, forward, {}))
    model.eval()
    images, _ = random_batch(args, network, forward)

    def step() -> None:
        lean_se.set_block_end(settings.block_end)
        with torch.inference_mode(), forward.autocast():
            model(images)
    return step


def _timed(step: Callable[[], None], device) -> Callable[[], float]:
    """Seconds of a step: CPU time on a CPU, else wall time with the device's work done."""
    from seresnet_timm import device as devices
    clock = time.process_time if device.type == 'cpu' else time.perf_counter

    def timed() -> float:
        devices.synchronize(device)
        start = clock()
        step()
        devices.synchronize(device)
        return clock() - start
    return timed


def peak_memory(step: Callable[[], None], device) -> float:
    """Most MiB that tensors take in a training step, with the weights and the optimizer's state.

    On a CPU from the allocations that torch's profiler records, on a device from its allocator.
    """
    import torch

    from seresnet_timm import device as devices
    step()  # creates the optimizer's state
    module = devices.device_module(device.type)
    if module is not None:
        module.reset_peak_memory_stats()
        step()
        return round(module.max_memory_allocated() / 2**20, 1)
    states = [t for state in step.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    kept = sum(t.numel() * t.element_size()
               for t in (*step.model.parameters(), *step.model.buffers(), *states))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p:
        step()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == '[memory]']
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return round((kept + peak) / 2**20, 1)


def _profile(step: Callable[[], None], device) -> str:
    import torch
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as p:
        step()
        step()
    key = 'self_cuda_time_total' if device.type == 'cuda' else 'self_cpu_time_total'
    return p.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=50)


def _figures(times: Dict[str, List[float]], batch_size: int) -> Dict[str, Any]:
    return {name: {
        'images_per_second': round(batch_size / statistics.median(seconds), 3),
        'ratio': measure.ratio(times['timm'], seconds),
        'seconds': [round(t, 4) for t in seconds],
    } for name, seconds in times.items()}


def print_report(report: Dict[str, Any]) -> None:
    """The figures as a table, with the goals beside them."""
    s = report['settings']
    kind = s['device'].partition(':')[0]
    unit = 'images/s per core' if kind == 'cpu' else 'images/s'
    precision = f'amp {s["amp_dtype"]}' if s['amp'] else 'float32'
    measure.print_head(report)
    print(f'{s["device"]}, {s["batch_size"]} images of {s["img_size"]} pixels, {precision}, {report["threads"]} '
          f'thread(s), n = {s["rounds"]} interleaved rounds; timm: {s["timm_model"]}, seresnet_timm: {s["model"]}\n')
    print(f'{"":<34}{unit:>18}{"x timm":>10}{"goal":>9}')
    for section in ('training', 'evaluation'):
        for name, row in report[section].items():
            goal = GOALS[section] if section == 'evaluation' else GOALS[section].get(kind)
            text = f'>= {goal}' if name == 'seresnet_timm' and goal else ''
            print(f'{section + ", " + name:<34}{row["images_per_second"]:>18.3f}{row["ratio"]:>10.3f}{text:>9}')
    memory = report['memory']
    print(f'\nPeak memory of a step: {memory["seresnet_timm"]:.0f} MiB, timm {memory["timm"]:.0f} MiB: ratio '
          f'{memory["ratio"]:.3f} (goal <= {GOALS["memory"]}), lean {memory["ratio_lean"]:.3f}')
    print(f'SE costs {100 * report["se_overhead"]:.1f} % of {s["without_se"]} in the same set-up '
          f'(goal <= {100 * GOALS["SE overhead"]:.0f} %)')
    if 'seconds_to_compile' in report:
        print(f'torch.compile took {report["seconds_to_compile"]} s')
    if 'profile' in report:
        print(report['profile'])


if __name__ == '__main__':
    from seresnet_timm.cli.main import main as seresnet_timm
    seresnet_timm(['bench', 'step', *sys.argv[1:]])
