"""`seresnet-timm tune`: measure on this machine which settings are fastest, and write them as a config file

Options are tried one after another, each from the best settings so far, by a process of their own (trial.py). One is
taken if it is faster beyond the spread of both measurements, and faster than the best before it measured again: this
second ratio counts. Options that change the numbers of a training beyond rounding are taken only if the user allows
them: the others are measured last, as nothing depends on them.
"""
import datetime
import os
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import psutil

from seresnet_timm import device as devices
from seresnet_timm import process
from seresnet_timm.errors import RunError, printable, shell_line
from seresnet_timm.files import atomic_path
from seresnet_timm.launch import plan as launch_plan
from seresnet_timm.launch.trial import TrialProcess
from seresnet_timm.launch.tuned import OPTIONS
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step.fast import kind_of

CLEAR_GAIN = 1.02  # a smaller one is not worth a setting
ENOUGH_DATA = 1.2  # images/s of workers, as a multiple of the step's, at which more workers bring nothing
TOO_SLOW = 1.2  # a training that is slower by more needs more workers than it has
SHORTEST, LONGEST = 1., 20.  # seconds of a measurement


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried.

    Attributes:
        settings: Settings of the run.
        environ: Variables of the process, beside this one's; None removes one.
    """
    settings: RunSettings
    environ: Dict[str, Optional[str]] = field(default_factory=dict)

    def with_args(self, **args: Any) -> 'Candidate':
        return replace(self, settings=replace(self.settings, args={**self.settings.args, **args}))

    def with_settings(self, **fields: Any) -> 'Candidate':
        return replace(self, settings=replace(self.settings, **fields))

    def with_variable(self, name: str, value: Optional[str]) -> 'Candidate':
        return replace(self, environ={**self.environ, name: value})


@dataclass(frozen=True)
class Result:
    """What was measured of a candidate.

    Attributes:
        option: What was tried, e.g. 'workers'.
        value: Its value.
        rates: Images per second, of single steps or of parts of the time.
        peak_gib: Most memory of the device; None on the CPU.
        error: Why there is no measurement, a sentence.
    """
    option: str
    value: str
    rates: Tuple[float, ...] = ()
    peak_gib: Optional[float] = None
    error: Optional[str] = None

    @property
    def rate(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.

    def quartiles(self) -> Tuple[float, float]:
        if len(self.rates) < 2:
            return self.rate, self.rate
        low, _, high = statistics.quantiles(self.rates, n=4, method='inclusive')
        return low, high

    def is_faster_than(self, other: 'Result') -> bool:
        """Beyond the spread of both."""
        return self.rate > CLEAR_GAIN * other.rate and self.quartiles()[0] > other.quartiles()[1]


class Clock:
    """How long a measurement may take, so that all of them end in time.

    Args:
        seconds: For all of them.
        count: Number of measurements, about.
    """

    def __init__(self, seconds: float, count: int):
        self.end = time.monotonic() + seconds
        self.left = count
        self._start_up: Dict[Any, float] = {}  # seconds until it measures, by kind

    def next_seconds(self, kind: Any = None) -> Optional[float]:
        """Seconds for the next one; None if the time is up.

        Args:
            kind: Measurements of a kind take about the same time before they measure.
        """
        start_up = self._start_up.get(kind, 0.)
        seconds = (self.end - time.monotonic()) / max(1, self.left) - start_up
        self.left -= 1
        if self.end - time.monotonic() < start_up + SHORTEST:
            return None
        return min(LONGEST, max(SHORTEST, seconds))

    def note_start_up(self, kind: Any, seconds: float) -> None:
        self._start_up[kind] = max(self._start_up.get(kind, 0.), seconds)


@dataclass
class Tuning:
    """What is known so far.

    Attributes:
        best: The settings to use.
        base: Speed of its training step.
        planned: That of the settings as planned, when it was measured last.
        clock: The time.
        allowed: Names of `tuned.ALLOWED` that may be changed.
        results: All measurements.
        changes: What was taken: name of the option, and value.
        gains: How many times faster it is, of what was measured twice.
        skipped: Options for which there was no time.
        process: The process that measures.
    """
    best: Candidate
    clock: Clock
    allowed: Sequence[str]
    base: Optional[Result] = None
    planned: Optional[Result] = None
    results: List[Result] = field(default_factory=list)
    changes: Dict[str, Any] = field(default_factory=dict)
    gains: Dict[str, float] = field(default_factory=dict)
    skipped: List[str] = field(default_factory=list)
    process: TrialProcess = field(default_factory=TrialProcess)

    def measure(
            self,
            option: str,
            value: str,
            candidate: Candidate,
            what: str = 'step',
            is_needed: bool = False,
    ) -> Optional[Result]:
        """Measure a candidate; None if there is no time, unless it `is_needed`."""
        kind = what, self.process.starts_for(candidate.settings, candidate.environ), candidate.settings.graph
        seconds = self.clock.next_seconds(kind)
        if seconds is None and is_needed:
            seconds = SHORTEST
        if seconds is None:
            self.skipped.append(f'{option} {value}')
            return None
        print(f'  {option:<22} {value:<10} ', end='', flush=True)
        start = time.monotonic()
        result = run_trial(option, value, candidate, what, seconds, self.process)
        self.clock.note_start_up(kind, time.monotonic() - start - seconds)
        print(describe(result, self.planned if what == 'step' else None), flush=True)
        self.results.append(result)
        return result

    def try_step(self, option: str, value: str, candidate: Candidate, key: str, setting: Any) -> None:
        """Measure a candidate, and go on with it if it is faster; also than the best so far measured once more."""
        result = self.measure(option, value, candidate)
        if result is None or not result.is_faster_than(self.base):
            return
        self.clock.left += 1
        # the machine may have become faster since; without this one the measurement before would be for nothing
        again = self.measure('  without it, again', '', self.best, is_needed=True)
        if again is None or again.error:
            return
        if not self.changes:
            self.planned = again
        self.base = again
        if result.is_faster_than(again):
            self.best, self.base = candidate, result
            self.changes[key], self.gains[key] = setting, result.rate / again.rate


def tune(settings: RunSettings, seconds: float, allowed: Sequence[str], has_data: bool, file: str) -> Tuning:
    """Measure, print a table, and write the config file.

    Args:
        settings: Settings of a training, as planned.
        seconds: How long to measure, about.
        allowed: Names of `tuned.ALLOWED`: changes that are taken although the numbers of a training change with them.
        has_data: There is a data folder: workers are measured on its images.
        file: The config file.

    Raises:
        RunError: The training step fails with the settings as they are.
    """
    processes = settings.nproc
    one = replace(settings, nnodes=1, nproc=1, world_size=1, output=None)
    steps, sizes, workers = step_options(one), batch_sizes(one), worker_counts(processes) if has_data else []
    formats = 2 if kind_of(one.device) == 'npu' else 0
    count = 1 + len(steps) + formats + len(precisions(one)) + len(sizes) + len(workers)
    tuning = Tuning(Candidate(one), Clock(seconds, count), allowed)
    print(f'Measured: {describe_machine(settings)}, {describe_settings(settings)}', flush=True)
    with closing(tuning.process):
        tuning.base = tuning.planned = tuning.measure('as planned', '', tuning.best)
        if tuning.base is None:
            raise RunError(f'--seconds {seconds:g} is over before the first measurement: give more.')
        if tuning.base.error:
            raise RunError(f'The training step fails as it is planned: {tuning.base.error}')
        for option, value, change, key, setting in steps:
            tuning.try_step(option, value, change(tuning.best), key, setting)
        others: Dict[str, Callable[[], None]] = {
            'precision': lambda: try_precisions(tuning), 'batch-size': lambda: try_batch_sizes(tuning, sizes),
            'internal-format': lambda: try_internal_formats(tuning)}  # which need processes of their own
        for name in others:
            if name in allowed:  # a faster step needs more workers
                others[name]()
        try_workers(tuning, workers)
        for name in others:
            if name not in allowed:
                others[name]()
    with atomic_path(file) as path, open(path, 'w', encoding='utf-8') as f:
        f.write(config_text(tuning, settings))
    return tuning


# --- what is tried ----------------------------------------------------------------------------------------------------

def step_options(settings: RunSettings) -> List[Tuple[str, str, Callable[[Candidate], Candidate], str, Any]]:
    """Options that change the numbers of a training by rounding only: name, value, change, key in the file, setting."""
    from seresnet_timm.models.create import architecture_of
    kind = kind_of(settings.device)
    options: List[Tuple[str, str, Callable[[Candidate], Candidate], str, Any]] = []
    if architecture_of(settings.args['model'], settings.model_folder).endswith('_ascend'):
        value = 'off' if settings.lean_se == 'on' else 'on'
        options.append(('--lean-se', value, lambda c: c.with_settings(lean_se=value), 'lean_se', value))
    if kind != 'npu':  # whose operators take contiguous tensors only
        layout = not settings.args['channels_last']
        options.append(('channels_last', str(layout).lower(), lambda c: c.with_args(channels_last=layout),
                        'channels_last', layout))
    if not settings.graph and why_no_graph(settings) is None:
        options.append(('--graph', '', lambda c: c.with_settings(graph=True), 'graph', True))
    if kind == 'npu':  # each needs a process of its own
        from seresnet_timm.ascend.environment import TUNED
        from seresnet_timm.ascend.fault_tolerance import knows
        for name, values in TUNED.items():
            for text in values if knows(name) else ():
                if os.environ.get(name) != text:
                    options.append((name, text, _variable(name, text), f'environment.{name}', text))
    return options


def why_no_graph(settings: RunSettings) -> Optional[str]:
    """Why a step of these settings is not captured as a graph, as a clause; None if it can be tried."""
    if settings.args.get('torchcompile'):
        return '--torchcompile replaces the steps of the network'
    if not settings.fast_step:
        return '--fast-step off'
    return launch_plan.why_no_graph(
        settings.args, settings.device, settings.world_size, settings.script.is_bundled, settings.half_weights)


def _variable(name: str, text: str) -> Callable[[Candidate], Candidate]:
    return lambda candidate: candidate.with_variable(name, text)


def precisions(settings: RunSettings) -> List[str]:
    """Dtypes of mixed precision beside that of the run; on a CPU only bfloat16 can be faster."""
    own = settings.args['amp_dtype'] if settings.args.get('amp') else 'float32'
    if settings.args.get('model_dtype') or settings.amp_level == 'O2':
        return []
    kind = kind_of(settings.device)
    return [d for d in (('bfloat16',) if kind == 'cpu' else ('float16', 'bfloat16')) if d != own]


def try_internal_formats(tuning: Tuning) -> None:
    """Layouts of the NPU for convolutions: their default depends on chip and release, and they change results."""
    if kind_of(tuning.best.settings.device) != 'npu':
        return
    for value in (True, False):
        candidate = tuning.best.with_settings(internal_format=value)
        if 'internal-format' in tuning.allowed:
            tuning.try_step('allow_internal_format', str(value), candidate, 'internal_format', value)
        else:
            tuning.measure('allow_internal_format', str(value), candidate)


def batch_sizes(settings: RunSettings) -> List[int]:
    own = settings.args['batch_size']
    return [size for size in (own // 2, own * 2, own * 4) if size >= 1]


def worker_counts(processes: int) -> List[int]:
    """0, 1, 2, 4, ... up to the cores of a process."""
    cores = max(1, process.cores() // processes)
    counts = [0, 1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == cores else [*counts, cores]


def try_precisions(tuning: Tuning) -> None:
    for dtype in precisions(tuning.best.settings):
        candidate = tuning.best.with_args(amp=True, amp_dtype=dtype)
        if 'precision' in tuning.allowed:
            tuning.try_step('--amp --amp-dtype', dtype, candidate, 'amp_dtype', dtype)
        else:
            tuning.measure('--amp --amp-dtype', dtype, candidate)


def try_batch_sizes(tuning: Tuning, sizes: Sequence[int]) -> None:
    """Images a second by batch size, until the memory is full."""
    for size in sizes:
        candidate = tuning.best.with_args(batch_size=size)
        own = tuning.best.settings.args['batch_size']
        if tuning.best.settings.device == 'cpu' and not fits_memory(tuning.best.settings, size):
            tuning.skipped.append(f'-b {size} (memory)')
            continue
        if 'batch-size' in tuning.allowed:
            tuning.try_step('-b', str(size), candidate, 'batch_size', size)
        else:
            tuning.measure('-b', str(size), candidate)
        if size > own and tuning.results[-1].error:
            break


def fits_memory(settings: RunSettings, size: int) -> bool:
    """Whether a batch can be tried on a CPU, where too large a one would end other processes: a rough upper bound."""
    bytes_of_pixel = 1500  # of activations and gradients, of a ResNet-50
    return size * (settings.args.get('img_size') or 224)**2 * bytes_of_pixel < psutil.virtual_memory().available / 2


def try_workers(tuning: Tuning, counts: Sequence[int]) -> None:
    """Take the fewest workers with which a training is as fast as with any number of them.

    From the most to the fewest, until they are too few: those that load slowest take longest to measure.
    """
    rates: Dict[int, float] = {}
    for i, count in enumerate(reversed(counts)):
        result = tuning.measure('--workers', str(count), tuning.best.with_args(workers=count), 'loader')
        if result is not None and not result.error:
            rates[count] = training_rate(count, result.rate, tuning.base.rate)
            if TOO_SLOW * rates[count] < max(rates.values()):
                tuning.clock.left -= len(counts) - 1 - i
                break
    planned = tuning.best.settings.args['workers']
    fastest = max(rates.values(), default=0.)
    if not rates or planned not in rates and fastest < tuning.base.rate:
        return  # the planned number may be faster than what there was time for
    chosen = min(n for n in rates if CLEAR_GAIN * rates[n] >= fastest)
    if chosen != planned:
        tuning.best = tuning.best.with_args(workers=chosen)
        tuning.changes['workers'] = chosen


def training_rate(workers: int, loader: float, step: float) -> float:
    """Images per second of a training, from those of its loader and of its step: only workers load beside the step."""
    return min(loader / ENOUGH_DATA, step) if workers else 1 / (1 / loader + 1 / step)


# --- a measurement ----------------------------------------------------------------------------------------------------

def run_trial(
        option: str, value: str, candidate: Candidate, what: str, seconds: float, process: TrialProcess,
) -> Result:
    found = process.measure(candidate.settings, candidate.environ, what, seconds)
    if 'rates' in found:
        return Result(option, value, tuple(found['rates']), found['peak_gib'])
    return Result(option, value, error='does not fit into the memory' if found.get('out_of_memory') else found['error'])


# --- what is said -----------------------------------------------------------------------------------------------------

def describe(result: Result, planned: Optional[Result] = None) -> str:
    """A measurement as the end of a line of the table, with its ratio to that of the settings as planned."""
    if result.error:
        return result.error
    low, high = result.quartiles()
    text = f'{result.rate:9.1f} images/s ({low:.1f} to {high:.1f}, n = {len(result.rates)})'
    if planned is not None:
        text += f'  {result.rate / planned.rate:.2f} x'
    return text + (f', {result.peak_gib:.1f} GiB' if result.peak_gib is not None else '')


def describe_machine(settings: RunSettings) -> str:
    kind = kind_of(settings.device)
    return f'{kind} ({devices.device_name(kind)})' if kind != 'cpu' else f'cpu ({os.cpu_count()} cores)'


def describe_settings(settings: RunSettings) -> str:
    return f'{settings.args["model"]}, -b {settings.args["batch_size"]}, {settings.precision}'


def config_text(tuning: Tuning, settings: RunSettings) -> str:
    """The config file: what was taken, as keys; all that was measured, as comments."""
    import yaml
    of_script = {k: v for k, v in tuning.changes.items() if k in settings.args}
    if 'amp_dtype' in of_script:
        of_script['amp'] = True
    environ = {k.partition('.')[2]: v for k, v in tuning.changes.items() if k.startswith('environment.')}
    tuned: Dict[str, Any] = {
        'device': kind_of(settings.device), 'machine': describe_machine(settings),
        'model': settings.args['model'], 'date': datetime.date.today().isoformat()}
    tuned.update((name, tuning.changes[name]) for name in OPTIONS if name in tuning.changes)
    if environ:
        tuned['environment'] = environ
    table = [f'# {r.option} {r.value}: {describe(r).strip()}' for r in tuning.results]
    head = [f'# seresnet-timm tune: {describe_machine(settings)}, {describe_settings(settings)}', *table]
    return '\n'.join(head) + '\n' + yaml.safe_dump({**of_script, 'tuned': tuned}, sort_keys=False)


def print_outcome(tuning: Tuning, file: str) -> None:
    if tuning.skipped:
        print(f'Not measured, the time was up: {", ".join(tuning.skipped)} (--seconds).')
    changes = ', '.join(
        f'{k.partition(".")[2] or k} {v}' + (f' ({tuning.gains[k]:.2f} x)' if k in tuning.gains else '')
        for k, v in tuning.changes.items())
    print(f'Faster here: {changes}.' if changes else 'Nothing was faster than the settings as planned.')
    print(f'Written to {printable(file)}. Next: seresnet-timm train --config {shell_line([file])} ...')
