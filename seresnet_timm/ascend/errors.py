"""What errors of torch_npu, CANN, HCCL and the driver mean: the first fault, what it did to others, and what to do"""
import os
import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional, Tuple

from seresnet_timm.ascend.error_codes import REPORTERS, describe_unknown, find
from seresnet_timm.ascend.error_events import Event, EventReader, Finding, merge
from seresnet_timm.ascend.fault import ADVICE, CAUSE, MESSENGER, WAIT
from seresnet_timm.ascend.faults import FAULTS

# faults that an error of this package, of Python or of an unknown code names and does not explain
_NOT_EXPLAINED = ('unknown', 'reported', 'inner', 'python', 'plog')
# what others explain: Python, the launcher, the Hub
_OF_OTHERS = ('python', 'own', 'python_module', 'peer_lost', 'peer_timeout', 'barrier', 'library_missing',
              'host_unknown', 'disk_error', 'not_launched', 'nccl', 'wrong_wheel', 'npu_smi_missing', 'network',
              'certificate', 'externally_managed', 'build_tools', 'numpy_alias', 'file_permission', 'arguments')
# an operator may fail on numbers that are not finite any more
_AFTER_NAN = ('ai_core', 'ai_core_timeout', 'ai_cpu', 'task_failed', 'asynchronous', 'overflow', 'inner', 'python',
              'argument', 'corruption')
_EXEC_TIMEOUT = '1836'  # seconds, HCCL's default


@dataclass(frozen=True)
class Explanation:
    """An error, explained.

    Attributes:
        fault: Key of `FAULTS`.
        role: Its role, see `FAULTS`.
        what: What happened, with the values that the text names.
        causes: Likely causes, the likeliest first.
        remedy: What to do.
        log: Which log tells more.
        codes: The codes in the text with their meaning.
        unknown: Sentences on codes that the table does not have.
        known: The text tells a fault that the table explains.
        rank, device, pid, time, source, line: Where, as far as the text says.
        sentence: torch_npu's own sentence.
        weight: How much the text tells.
    """
    fault: str
    role: str
    what: str
    causes: Tuple[str, ...]
    remedy: str
    log: str
    codes: Tuple[Tuple[str, str], ...] = ()
    unknown: Tuple[str, ...] = ()
    known: bool = True
    rank: Optional[int] = None
    device: Optional[int] = None
    pid: Optional[int] = None
    time: Optional[float] = None
    source: str = ''
    line: int = 0
    sentence: str = ''
    weight: int = 0

    def evidence(self) -> str:
        """The codes, and torch_npu's sentence, as text."""
        parts = [f'{name}: {meaning}' for name, meaning in self.codes]
        return '; '.join(parts + ([f'"{self.sentence}"'] if self.sentence else []))


@dataclass(frozen=True)
class Diagnosis:
    """What texts or logs tell.

    Attributes:
        first: The first fault; None if none was found.
        others: Further errors, in the order of time: what the fault did to others, and what else was found.
        harmless: Messages that look like errors and are none, and how often.
    """
    first: Optional[Explanation]
    others: List[Explanation] = field(default_factory=list)
    harmless: Dict[str, int] = field(default_factory=dict)


def explain(text: str, device: str) -> Optional[str]:
    """Explain an error that torch_npu raised, in one sentence.

    Args:
        text: Text of the exception.
        device: The device of the run, with the index of this rank.

    Returns:
        What happened and what to do; None if the error has another cause.
    """
    first = diagnose_text(text, device).first
    if first is None or first.fault in _OF_OTHERS or (
            not first.codes and first.fault in ('killed', 'aborted', 'diverged', 'port_torch')):
        return None
    subject = '' if first.what.startswith(device) else f'{device}: '
    evidence = first.evidence()
    unknown = ''.join(f' {sentence}.' for sentence in first.unknown)
    return (f'{subject}{first.what}{f" ({evidence})" if evidence else ""}.{unknown} What to do: {first.remedy}. '
            f'More in: {first.log}.')


def is_out_of_memory(text: str) -> bool:
    """The memory of the device is used up by this process, as far as the text says."""
    first = diagnose_text(text).first
    return first is not None and first.fault in ('memory', 'memory_fragmented', 'memory_device')


def is_consequence(text: str) -> bool:
    """The text tells of a wait for another process, or of one that has ended: the fault is elsewhere."""
    first = diagnose_text(text).first
    return first is not None and first.role in (WAIT, 'elsewhere')


def explain_import(text: str) -> str:
    """Why torch_npu does not load, and what to do, in a sentence."""
    first = diagnose_text(text).first
    backend = FAULTS['backend_not_loaded']
    if first is None or first.fault in ('backend_not_loaded', 'python'):
        return f'torch_npu does not load, and torch with it: {backend.remedy}.'
    return (f'torch_npu does not load, and torch with it: {first.what}. What to do: {first.remedy}; '
            'TORCH_DEVICE_BACKEND_AUTOLOAD=0 lets torch work without the NPU.')


def diagnose_text(text: str, subject: str = '') -> Diagnosis:
    """Explain one text.

    Args:
        text: Error text or log, of any length.
        subject: Name of the device or rank for the sentence.
    """
    return diagnose([EventReader().read_text(text.split('\n'))], subject)


def diagnose(readers: Iterable[EventReader], subject: str = '') -> Diagnosis:
    """Explain what was read of one or several sources.

    Args:
        readers: Readers of the sources, in the order of their ranks.
        subject: Name of the device or rank for the sentences; else the rank or device that a text names.
    """
    events, harmless = merge(readers)
    order = sorted(range(len(events)), key=lambda i: (events[i].time is None, events[i].time or 0., i))
    events = [events[i] for i in order]
    nan = [e for e in events if any(f.fault == 'diverged' for f in e.findings)]
    explained = []
    heard = set()
    for event in events:
        top = event.top()
        # an exception that follows another error of the same process reports it
        key = (event.source, event.stream)
        is_report = top.fault == 'python' and key in heard
        heard.add(key)
        if not is_report:
            explained.append(_explain(event, top, subject))
    ranked = sorted(explained, key=_blame)
    first = ranked[0] if ranked else None
    if first and first.fault in _AFTER_NAN and nan:
        before = [e for e in nan if _is_before(e, first)]
        if before:
            finding = next(f for f in before[0].findings if f.fault == 'diverged')
            first = _explain(before[0], finding, subject)
    if first and first.role == ADVICE and 'only a warning' in harmless and first.fault == 'driver_old':
        harmless.pop('only a warning')
    others = [e for e in explained if e is not first and (e.line, e.source, e.what) != (
        first.line, first.source, first.what)] if first else []
    return Diagnosis(first, others, harmless)


def _is_before(event: Event, first: Explanation) -> bool:
    if event.time is not None and first.time is not None and event.time != first.time:
        return event.time < first.time
    return event.source != first.source or event.line <= first.line


def _blame(e: Explanation) -> int:
    """What is to blame comes first; of equals the earliest, which the order of a stable sort keeps."""
    known = FAULTS[e.fault]
    order = {CAUSE: 0, 'link': 1, 'elsewhere': 2, WAIT: 3, MESSENGER: 4, ADVICE: 5}[known.role]
    if e.fault in ('reported', 'plog'):  # a line that says that there is an error, without the error
        return 4
    if order == 0 and e.weight < 30:  # such as 'a task failed', or an exception: may well follow a broken link
        order = 1
    return order


# --- sentences --------------------------------------------------------------------------------------------------------

def _explain(event: Event, top: Finding, subject: str) -> Explanation:
    codes = _codes_of(event)
    unknown = tuple(describe_unknown(name) + (f': "{reason}"' if reason else '') for name, reason in _unknown_of(event))
    key = top.fault
    facts = dict(event.facts)
    for finding in reversed(event.findings):  # other lines on the same fault may name more
        if finding.fault == key:
            facts.update(finding.facts)
    facts.update(top.facts)
    if key is None:
        key = 'inner' if top.code.endswith('9999') else 'reported'
        facts['reason'] = facts.get('reason') or (codes[0][1] if key == 'reported' and codes else '')
        if key == 'inner':
            facts['reporter'] = REPORTERS[top.code[1]]
        elif top.code:
            facts['reason'] = f'torch_npu reports a fault ({find(top.code).meaning})'
    if key == 'unknown':
        facts['reason'] = 'an error that is not known here'
    fault = FAULTS[key]
    facts = _complete(key, facts, event, subject)
    known = key not in _NOT_EXPLAINED and not (unknown and top.weight < 25)
    return Explanation(
        key, fault.role, fill(fault.what, facts), tuple(fill(c, facts) for c in fault.causes),
        fill(fault.remedy, facts), fill(fault.log, facts), codes, unknown, known, event.rank, event.device, event.pid,
        event.time, event.source, event.line, event.sentence, top.weight)


def _codes_of(event: Event) -> Tuple[Tuple[str, str], ...]:
    """The codes of an event with their meaning; those that only say who reports come last, or not at all."""
    found: Dict[str, str] = {}
    for finding in sorted(event.findings, key=lambda f: -f.weight):
        code = find(finding.code) if finding.code else None
        if code and finding.code not in found:
            called = finding.facts.get('called')
            found[finding.code] = f'{code.meaning}{f", in {called}" if called else ""}'
    if any(not name.startswith('ERR') for name in found):
        found = {k: v for k, v in found.items() if not k.startswith('ERR')}
    return tuple(found.items())


def _unknown_of(event: Event) -> List[Tuple[str, str]]:
    found: Dict[str, str] = {}
    for f in event.findings:
        if f.fault == 'unknown' and f.code:
            found.setdefault(f.code, f.facts.get('reason', ''))
    return list(found.items())


def _complete(key: str, facts: Dict[str, str], event: Event, subject: str) -> Dict[str, str]:
    """Values for a sentence that are computed from others."""
    device = str(event.device) if event.device is not None else None
    rank = f'rank {event.rank}' if event.rank is not None else None
    facts = dict(facts)
    facts['subject'] = subject or rank or (f'device {device}' if device else 'this rank')
    if device and 'device' not in facts:
        facts['device'] = device
    remote = facts.get('remote')
    facts['remote_or_another'] = facts.get('remote_name') or (
        f'rank {remote}' if remote and remote.isdigit() else 'another rank')
    facts['limit'] = facts.get('limit') or os.environ.get('HCCL_EXEC_TIMEOUT') or _EXEC_TIMEOUT
    is_old = 'cann' in facts  # before 8.0: it does not read the variables below
    facts['newer_host'] = '' if is_old else (
        '; from CANN 8.1 on, on A2 and newer, HCCL_HOST_SOCKET_PORT_RANGE=auto does it')
    facts['newer_device'] = '' if is_old else (
        '; from CANN 8.1 on, HCCL_NPU_SOCKET_PORT_RANGE=auto on all ranks lets processes share a device')
    facts['closer'] = remote or 'another process'
    if 'variable' in facts:
        facts['setting'] = '='.join(facts[k] for k in ('variable', 'value') if k in facts)
    if facts.get('size', '').isdigit():
        facts['size'] = f'{int(facts["size"]) / 2 ** 20:.1f} MiB'
    if key.startswith('memory'):
        facts.setdefault('device', '0')
    facts['an_operator'] = f'operator {facts["operator"]}' if facts.get('operator') else 'an operator'
    if key in ('compiler_start', 'environment_half_set') and 'variable' not in facts:
        facts['variable'] = 'ASCEND_OPP_PATH'
    return {k: v for k, v in facts.items() if v != '' or k.startswith('newer')}


def fill(template: str, facts: Dict[str, str]) -> str:
    """A template of `FAULTS` with values; a part in square brackets is left out where one of its values is missing."""
    def part(match: 're.Match[str]') -> str:
        names = re.findall(r'{(\w+)}', match[1])
        if not all(name in facts for name in names):
            return ''
        return match[1] if names or 'operator' not in facts else ''
    text = re.sub(r'{(\w+)}', lambda m: facts.get(m[1], '?'), re.sub(r'\[([^\[\]]*)\]', part, template))
    return re.sub(r'\bthe device (?=\d+\b)', 'device ', text)


def where_plog_lies() -> str:
    """The folder of plog, from ASCEND_PROCESS_LOG_PATH or the home folder."""
    return os.environ.get('ASCEND_PROCESS_LOG_PATH') or os.path.join(os.path.expanduser('~'), 'ascend', 'log')
