"""Runs the checks of probe.py, each in a process of its own: an abort or a hang is a finding."""
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from seresnet_timm.process import cores as cores_of_this_process

WAITED_FOR_FAILED_RANK = 'waited for a rank that failed'
PROBE_TIMEOUT = 180  # seconds; a first import of torch from a slow disk takes minutes
NOT_FINISHED = 'not finished after'


@dataclass(frozen=True)
class Probe:
    """What a process reported, and how it failed, as a clause; None if it did not."""
    data: Dict[str, Any]
    failure: Optional[str]


def run_probe(what: str, environ: Mapping[str, str], *arguments: Any, timeout: float = PROBE_TIMEOUT) -> Probe:
    """Run one check of probe.py under these environment variables."""
    try:
        result = subprocess.run(
            _command(what, *arguments), env=_with_package(environ), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors='replace', timeout=timeout)
    except subprocess.TimeoutExpired:
        return Probe({}, f'{NOT_FINISHED} {timeout:g} s')
    data = _parse_reports(result.stdout)
    failure = _how_it_ended(result.returncode, result.stderr)
    return Probe(data, failure or (None if data else 'it ended early'))


def run_smoke_test(
        kind: str, devices: Sequence[int], environ: Mapping[str, str], seconds: float, timeout: float) -> List[Probe]:
    """Matrix products and all-reduces, one process per device, all at once.

    When one fails, the others are ended a few seconds later.

    Args:
        kind: 'cpu', 'cuda' or 'npu'.
        devices: Index of the device of each rank.
        environ: Environment variables of the ranks, without those that torchrun sets.
        seconds: How long they compute.
        timeout: Seconds after which they have failed.

    Returns:
        What each rank reported; `phase` is the last phase that it began.
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    cores = cores_of_this_process()
    with contextlib.ExitStack() as stack:
        processes, outputs = [], []
        for rank, index in enumerate(devices):
            out, err = (stack.enter_context(tempfile.TemporaryFile('w+', errors='replace')) for _ in range(2))
            variables = dict(
                RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=len(devices), LOCAL_WORLD_SIZE=len(devices),
                MASTER_ADDR='127.0.0.1', MASTER_PORT=port, SMOKE_DEVICE=index)
            process = subprocess.Popen(
                _command('smoke', kind, seconds), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env={'OMP_NUM_THREADS': str(max(1, cores // len(devices))),
                     'TORCH_NPU_FALLBACK_CPU_DISABLE': '1',  # it shall compute on the NPU, or say why not
                     **_with_package(environ),
                     **{name: str(value) for name, value in variables.items()}})
            stack.callback(_end, process)
            processes.append(process)
            outputs.append((out, err))
        deadline = time.monotonic() + timeout
        while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
            if any(p.poll() for p in processes):
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.05)
        failed = [p.poll() for p in processes]
        results = []
        for process, (out, err), returncode in zip(processes, outputs, failed):
            _end(process)
            out.seek(0)
            err.seek(0)
            data = _parse_reports(out.read())
            if returncode is None:
                failure = WAITED_FOR_FAILED_RANK if any(failed) else f'{NOT_FINISHED} {timeout:g} s'
            else:
                failure = _how_it_ended(returncode, err.read())
            if failure is None and data.get('phase') != 'done':
                failure = 'it ended early'
            results.append(Probe(data, failure))
        return results


def _command(*arguments: Any) -> List[str]:
    return [sys.executable, '-m', 'seresnet_timm.doctor.probe', *map(str, arguments)]


def _with_package(environ: Mapping[str, str]) -> Dict[str, str]:
    """The environment, with this package on PYTHONPATH: last, so that other packages are found where they are now."""
    here = str(Path(__file__).resolve().parent.parent.parent)
    return {**environ, 'PYTHONPATH': os.pathsep.join(filter(None, (environ.get('PYTHONPATH'), here)))}


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _parse_reports(output: str) -> Dict[str, Any]:
    """What a probe reported, later values over earlier ones; other lines are printed by libraries."""
    found: Dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith('{'):
            with contextlib.suppress(ValueError):
                found.update(json.loads(line))
    return found


def _how_it_ended(returncode: int, stderr: str) -> Optional[str]:
    """How a process failed, as a clause; None if it did not."""
    if returncode == 0:
        return None
    words = error_summary(stderr)
    if returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-returncode).name
            return f'killed by {name}' + (f' ({words})' if words else '')
    return words or f'exit code {returncode}'


def error_summary(text: str) -> str:
    """The line of an error output that says what happened: what() of C++, else the last line of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = next((line for line in lines if line.startswith('what():')), None)
    if what:
        return what.partition(':')[2].strip()[:300]
    # libraries add their own lines below a traceback's
    errors = [line for line in lines if re.match(r'[\w.]*(Error|Exception|Exit)\b', line)]
    # torch raises this for any failure of torch_npu, whose own error stands before it
    causes = [line for line in errors if 'Failed to load the backend extension' not in line]
    return (causes or errors or lines or [''])[-1][:300]
