"""Shared by the benchmarks: settings of a run, rounds in turn, medians, processes, machine and versions."""
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.launch.trial import settings_to_measure
from seresnet_timm.runs.settings import RunSettings


def check_json(path: Optional[str]) -> None:
    """Refuse a report that could not be written, before anything is measured."""
    if path and not Path(path).absolute().parent.is_dir():
        raise UsageError(f'Cannot write {path}: its folder does not exist.')


# --- what is measured -------------------------------------------------------------------------------------------------

def settings_of(verb: str, flags: Dict[str, Any], more: Sequence[str] = (), has_data: bool = False) -> RunSettings:
    """The settings that `seresnet-timm train` or `validate` would run with: all decisions are those of launch/plan.py.

    Args:
        verb: 'train' or 'validate'.
        flags: Flags of the verb by name; True for one without a value, None and False for one that is not given.
        more: Further flags, as typed.
        has_data: The data folder that the flags name is looked at; else there is none.

    Raises:
        UsageError: A training with these flags would be refused.
    """
    return settings_to_measure(verb, [*argv_of({'scripts': 'bundled', 'nproc': 1, **flags}), *more], has_data)


def argv_of(flags: Dict[str, Any]) -> List[str]:
    """Flags as a command line has them."""
    argv = []
    for name, value in flags.items():
        if value is not None and value is not False:
            argv += [f'--{name.replace("_", "-")}', *([] if value is True else [str(value)])]
    return argv


# --- rounds -----------------------------------------------------------------------------------------------------------

def interleave(contenders: Dict[str, Callable[[], float]], rounds: int) -> Dict[str, List[float]]:
    """Call every contender in turn, after one call of each that does not count.

    Args:
        contenders: Functions that return what they measured, in seconds.
        rounds: Number of calls of each.
    """
    times: Dict[str, List[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, measure in contenders.items():
            seconds = measure()
            if i:
                times[name].append(seconds)
    return times


def ratio(reference: Sequence[float], measured: Sequence[float]) -> float:
    """How many times faster: the median of the rounds' ratios."""
    return round(statistics.median(r / m for r, m in zip(reference, measured)), 3)


def machine() -> Dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if sys.platform == 'linux':
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next((line.partition(': ')[2] for line in lines if line.startswith('model name')), cpu)
    return {
        'cpu': cpu, 'architecture': platform.machine(), 'cores': os.cpu_count(), 'system': platform.platform()}


def versions() -> Dict[str, str]:
    import timm
    import torch

    from seresnet_timm.version import __version__
    return {'seresnet_timm': __version__, 'timm': timm.__version__, 'torch': torch.__version__,
            'python': platform.python_version()}


def report_head(benchmark: str) -> Dict[str, Any]:
    return {'benchmark': benchmark, 'date': time.strftime('%Y-%m-%d'), 'machine': machine(), 'versions': versions()}


def print_head(report: Dict[str, Any]) -> None:
    print(f'{report["benchmark"]}, {report["date"]}: {report["machine"]["cpu"]}, {report["machine"]["cores"]} cores; '
          + ', '.join(f'{k} {v}' for k, v in report['versions'].items()))


# --- whole processes --------------------------------------------------------------------------------------------------

def run_process(command: Sequence[str], env: Optional[Dict[str, str]] = None) -> Dict[str, float]:
    """Run a command until it ends.

    Returns:
        `wall` and `cpu` seconds (all threads and child processes).

    Raises:
        RunError: It failed.
    """
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(list(command), env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if result.returncode:
        raise RunError(f'{" ".join(command[:4])} ... failed:\n{result.stderr[-2000:]}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {'wall': time.perf_counter() - start, 'cpu': cpu}


def run_until(command: Sequence[str], text: str, env: Optional[Dict[str, str]] = None) -> Dict[str, float]:
    """Run a command until it prints a line with `text`, then end it.

    Returns:
        `wall` and `cpu` seconds of the process up to there (Linux).

    Raises:
        RunError: It ended without printing it.
    """
    start = time.perf_counter()
    with subprocess.Popen(list(command), env={**os.environ, **(env or {})}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        output = []
        for line in process.stdout:
            output.append(line)
            if text in line:
                fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
                cpu = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
                result = {'wall': time.perf_counter() - start, 'cpu': cpu}
                process.kill()
                return result
    raise RunError(f'{" ".join(command[:4])} ... ended without "{text}":\n{"".join(output)[-2000:]}')
