"""`seresnet-timm diagnose`: the first fault of a run or text, what it did to the others, and what to do"""
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from seresnet_timm.ascend.error_events import Event, EventReader, Finding
from seresnet_timm.ascend.errors import Diagnosis, Explanation, diagnose, where_plog_lies
from seresnet_timm.ascend.fault import ADVICE, CAUSE, WAIT
from seresnet_timm.doctor.run_logs import Logs, find_logs, plog_of
from seresnet_timm.errors import counted, first_names, printable

MAX_OTHERS = 12  # lines on further errors


@dataclass
class Report:
    """What was read and found.

    Attributes:
        logs: What was read.
        diagnosis: What was found.
        notes: Sentences on files that were not read whole, and on the run.
    """
    logs: Logs
    diagnosis: Diagnosis
    notes: List[str]

    @property
    def is_fine(self) -> bool:
        """Whether no fault was found, and the run came to its end."""
        return self.diagnosis.first is None and bool((self.logs.record or {}).get('finished'))

    @property
    def is_explained(self) -> bool:
        first = self.diagnosis.first
        return first is not None and first.known


def make_report(target: str) -> Report:
    """Read a text, a file, or all logs of a run.

    Args:
        target: '-', a file, or a folder.

    Raises:
        UsageError: There is nothing to read.
    """
    logs = find_logs(target)
    readers = [source.events() for source in logs.sources]
    plog = plog_of(logs, {e.pid for reader in readers for e in reader.events if e.pid is not None})
    ranks = {e.pid: e.rank for reader in readers for e in reader.events if e.pid is not None and e.rank is not None}
    for source in plog:
        source.rank = source.rank if source.rank is not None else ranks.get(source.pid)
    logs.sources += plog
    readers += [source.events() for source in plog]
    readers += _of_record(logs)
    diagnosis = diagnose(readers)
    return Report(logs, diagnosis, _notes(logs) + _silent(logs, diagnosis))


def _of_record(logs: Logs) -> List[EventReader]:
    """What run.json says of the end of a run."""
    diverged = (logs.record or {}).get('diverged')
    if not isinstance(diverged, str):
        return []
    reader = EventReader('run.json', 0)
    reader.events.append(Event('run.json', 0, rank=0, findings=[Finding('diverged', 60, facts={'reason': diverged})]))
    return [reader]


def _notes(logs: Logs) -> List[str]:
    notes = list(logs.notes)
    for source in logs.sources:
        if source.left_out:
            notes.append(f'Of {source.name} the beginning and the end were read, and of {source.left_out >> 20} MiB '
                         'between them only the lines that name an error.')
        if source.problem:
            notes.append(f'{source.name} was not read to its end ({source.problem}).')
    if logs.folder is None:
        return notes
    record = logs.record
    if record is None:
        notes.append('There is no run.json that can be read.')
    elif record.get('finished'):
        notes.append(f'The run finished at {record["finished"]}.')
    else:
        notes.append('The run has not come to its end, or goes on.')
    if logs.plog is not None and not any(s.name.startswith('plog/') for s in logs.sources):
        notes.append(f'No plog of this run is in {logs.plog} (ASCEND_PROCESS_LOG_PATH names another folder).')
    if not any(s.rank == 0 for s in logs.sources):
        notes.append('Rank 0 prints on the terminal: its output is read from a file only, for example `seresnet-timm '
                     'diagnose FILE`.')
    return notes


def _silent(logs: Logs, diagnosis: Diagnosis) -> List[str]:
    """Where all that was read are waits: the ranks that wrote no error are the ones that are waited for."""
    first = diagnosis.first
    if first is None or first.role != WAIT or logs.folder is None:
        return []
    heard = {e.rank for e in [first, *diagnosis.others]}
    silent = sorted({s.rank for s in logs.sources if s.rank is not None} - heard)
    if not silent:
        return []
    names = first_names(map(str, silent), 8)
    return [f'No error was found of rank{"s" if len(silent) > 1 else ""} {names}: such a rank may hang, or was killed.']


# --- text -------------------------------------------------------------------------------------------------------------

def describe(report: Report) -> List[str]:
    """The report, line by line."""
    first = report.diagnosis.first
    lines = _first_lines(first) if first else [_row('Fault', _nothing(report))]
    lines += [_row('Then' if i == 0 else '', text) for i, text in enumerate(_other_lines(report.diagnosis))]
    for i, (note, count) in enumerate(report.diagnosis.harmless.items()):
        lines.append(_row('Harmless' if i == 0 else '', f'{note} ({counted(count, "time")})'))
    read = [s.name for s in report.logs.sources]
    names = f': {first_names(read, 6)}' if read else ''
    lines.append(_row('Read', f'{counted(len(read), "source")}{names}'))
    return [printable(line) for line in lines + [_row('Note', note) for note in report.notes]]


def _row(title: str, text: str) -> str:
    return f'{title:<10} {text}'


def _nothing(report: Report) -> str:
    if report.is_fine:
        return 'none was found, and the run came to its end'
    what = 'none was found'
    return what + (': what was read holds messages that are harmless' if report.diagnosis.harmless else '')


def _first_lines(first: Explanation) -> List[str]:
    title = {ADVICE: 'Advice'}.get(first.role, 'Fault')
    what = first.what[0].upper() + first.what[1:]
    lines = [_row(title, what + ('' if what.endswith('.') else '.'))]
    where = _where(first)
    if where:
        lines.append(_row('Where', where))
    if first.sentence:
        lines.append(_row('Text', f'"{first.sentence}"'))
    lines += [_row('Codes' if i == 0 else '', f'{name}: {meaning}') for i, (name, meaning) in enumerate(first.codes)]
    lines += [_row('Unknown', f'{sentence}.') for sentence in first.unknown]
    lines += [_row('Causes' if i == 0 else '', f'{i + 1}. {cause}') for i, cause in enumerate(first.causes)]
    if first.remedy:
        lines.append(_row('Do', f'{first.remedy}.'))
    log = first.log.replace('~/ascend/log', where_plog_lies())
    return lines + [_row('Log', log)]


def _where(e: Explanation) -> str:
    parts = [f'rank {e.rank}' if e.rank is not None else '', f'device {e.device}' if e.device is not None else '',
             f'process {e.pid}' if e.pid is not None else '',
             time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(e.time)) if e.time is not None else '',
             f'{e.source}, line {e.line}' if e.source and e.line else f'line {e.line}' if e.line else e.source]
    return '; '.join(p for p in parts if p)


def _other_lines(diagnosis: Diagnosis) -> List[str]:
    """What the other ranks said, one line for each kind, in the order of time."""
    groups: Dict[Tuple[str, str], List[Explanation]] = {}
    for e in diagnosis.others:
        first = diagnosis.first
        is_same = first and (e.fault, e.rank) == (first.fault, first.rank)  # in plog too, or printed twice
        if e.role != ADVICE and e.fault != 'watchdog_messenger' and not is_same:
            groups.setdefault((e.fault, ', '.join(name for name, _ in e.codes)), []).append(e)
    lines = []
    for (_, codes), group in list(groups.items())[:MAX_OTHERS]:
        ranks = sorted({e.rank for e in group if e.rank is not None})
        who = (f'rank{"s" if len(ranks) > 1 else ""} {first_names(map(str, ranks), 8)}' if ranks
               else counted(len(group), 'time'))
        times = [e.time for e in group if e.time is not None]
        first = diagnosis.first
        after = ''
        if times and first and first.time is not None:
            after = f', {min(times) - first.time:+.0f} s'
        what = group[0].what
        if group[0].role == WAIT and len(ranks) > 1:
            what = what.replace(f'rank {group[0].rank} lost', 'lost')
        kind = '' if group[0].role != CAUSE else 'another error: '
        lines.append(f'{who}{after}: {kind}{what}{f" ({codes})" if codes else ""}')
    if len(groups) > MAX_OTHERS:
        lines.append(f'and {len(groups) - MAX_OTHERS} further kinds')
    return lines


def as_dict(report: Report) -> Dict[str, Any]:
    """The report for `--json`."""
    first: Optional[Explanation] = report.diagnosis.first
    return {
        'explained': report.is_explained,
        'first': None if first is None else _explanation(first),
        'others': [_explanation(e) for e in report.diagnosis.others],
        'harmless': report.diagnosis.harmless,
        'sources': [s.name for s in report.logs.sources],
        'notes': report.notes,
    }


def _explanation(e: Explanation) -> Dict[str, Any]:
    return {**asdict(e), 'codes': [{'code': name, 'meaning': meaning} for name, meaning in e.codes],
            'time': None if e.time is None else time.strftime('%Y-%m-%dT%H:%M:%S%z', time.localtime(e.time))}


def name_of(target: str) -> str:
    """The target for a sentence."""
    return 'standard input' if target == '-' else printable(Path(target))
