"""From a text to its errors: the faults that their lines tell, by code and by words, and the values they name"""
import re
from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple

from seresnet_timm.ascend import cann_log
from seresnet_timm.ascend.error_codes import GENERAL, NAMES, REPORTERS, find
from seresnet_timm.ascend.error_lines import Line, read_lines
from seresnet_timm.ascend.error_pattern import Pattern
from seresnet_timm.ascend.error_texts import HARMLESS, NPU_WARNING, PATTERNS, SENTENCES
from seresnet_timm.ascend.error_words import Kinds
from seresnet_timm.ascend.runtime_texts import reason as number_of_reason

MAX_EVENTS = 500  # of one source
_LAST = 20  # events that may not be whole yet
_OFTEN = 20  # lines of a kind that told the same
_GAP_LINES, _GAP_SECONDS = 80, 30  # between lines of one error, at most

_CALL = re.compile(r'\b(NPU|OPS|HCCL|ACL) function error: ?(.*?), error code is (-?\d+)')
_NUMBER = re.compile(r'error code(?: is)? ?:? ?(\d+)|(?:runtime |rt )?result = (\d{6})\b|\b(?:errno|failed|ret(?:urn|'
                     r'code|Code|_int)?)(?: is )?[:= \[]*(\d{6})\b|'
                     r'^\s*(\d{6})\s*$|\bACL (\d{6})\b|\b(?:errorCode ?(?:[=:]|is)|CANN failure|error:) ?(\d{6})\b|'
                     r'hcclRet -> (\d+)')
_HCCL_NUMBER = re.compile(r'errNo\[0x0*50000([0-9a-fA-F]{2})\](?:.*?(H(?:ccl|com)\w+))?')
_ACLNN = re.compile(r'call (aclnn\w+) failed')
_CANN = re.compile(r'(?<![\w/.-])(E[A-Z]\d{4}|E[1-9]\d{4})(?![\w.-]\w|\w)')
_CANN_LINE = re.compile(r'E[A-Z1-9]\d{4}(?:\[PID|: |\)|:?$|  )')
_ERR = re.compile(r'\bERR(\d{2})(\d{3})\b')
_KEY = re.compile(r'0x[0-9a-fA-F]+|[0-9a-f]{8,}|\b(?!\d{6}\b)\d+')  # numbers that are no codes
_ANY_NUMBER = re.compile(r'0x[0-9a-fA-F]+|[0-9a-f]{8,}|\d+')
_NAMES = tuple(name for name, *_ in NAMES)
_DRIVER = re.compile(r'\bret(?: code)?(?: is|:) ?(-8\d{3}|87)\b|drvRetCode ?= ?(-?\d+)|\bdrv ret(?:code)? ?=? ?(-?\d+)|'
                     r'dcmi.{0,60}?(-8\d{3})\b|dsmi.*?\berr: ?(\d+)|'
                     r'(?:DRV\(|\bdrv[A-Z]|\bhal[A-Z]|dsmi|devmng).*?\bret(?:urn)?[:= (]+(-?\d+)')
_EXCEPTION = re.compile(r'\s*(?:[A-Za-z_]\w*\.)*(?P<type>[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Killed)|'
                        r'Exception)(?:: (?P<text>.*))?$')
_HEADER = re.compile(r'function error:|^\s*(?:\w+\.)*[A-Z]\w*(?:Error|Exception): |stream synchronize failed|'
                     r'^\s*rank\s*: \d+ \(local_rank')
_TAIL = re.compile(rf'ERR\d{{5}}\b|{_CANN_LINE.pattern}|^\s*exitcode\s*:')
_MESSENGERS = ('ChildFailedError', 'SignalException', 'KeyboardInterrupt', 'SystemExit', 'ProcessRaisedException',
               'ProcessExitedException', 'BrokenPipeError', 'EOFError', 'RayTaskError', 'CalledProcessError')
_ADVICE = re.compile(r'\s*(?:Possible Cause|Solution|\d\.\s?\w|Rectify the fault|\[notice\])')
_SCALE = re.compile(r'[Ll]oss scaler(?: \d+)? reducing loss scale to ([\d.eE+-]*\d)')
_NAN = re.compile(r'\b(grad[_ -]?norm|loss)\b[\'"]?\s*[:=]?\s*[\'"(]?(nan|inf)\b', re.IGNORECASE)
# values that any line of an error may name: name, pattern
_FACTS = tuple((name, re.compile(pattern)) for name, pattern in (
    ('operator', r'current working operator name is (\w+)'), ('operator', r'(?:fault )?kernel_name=(\w+)'),
    ('operator', r'call (aclnn\w+) failed'), ('operator', r'OPS function error: (\w+)'),
    ('operator', r'HCCL function error: (\w+)'), ('operator', r'[Oo]p(?:Type|_type)[:= ]+\[?([A-Za-z]\w+)'),
    ('operator', r'[Oo]p(?:_name|Name| name)[:= ]+\[?([A-Za-z]\w+)'), ('operator', r'parameters of operator (\w+)'),
    ('remote', r'[Rr]emote rank:? ?\[?(\d+)'), ('remote', r'Waiting peer rank:? ?\[?(\d+)'),
    ('ip', r'\bip\[([\d.:a-fA-F]+)\]'), ('variable', r'[Ee]nvironment variable \[?([A-Z]\w+)'),
    ('variable', r'\b(HCCL_[A-Z_]+)\]? is (?:invalid|set to)'), ('value', r'[Vv]alue \[?([^\s\]]+)\]? for '),
    ('path', r'ranktable file \[?([^\s\]]+?)[\].]? '), ('path', r'ranktable_?path:? ?\[?([^\s\]]+)'),
    ('argument', r'for parameter \[?(\w+)'), ('argument', r'parameter \[?(\w+)'),
    ('value', r'local(?: end| version is| version)? \[?([^\],\s]+)'),
    ('range', r'remote(?: end| version is| version)? \[?([^\],\s]+)'),
    ('value', r'parameter \w+ is (\S+) on the local rank'), ('range', r'and (\S+) on the remote rank'),
    ('peer', r'Peer information: (server \S+, device ID \d+)'), ('expected', r'Expected value: ?(.+?)\.?$'),
    # before CANN 8.0 no process was named
    ('cann', r'^E\w{5}:? +(\d{4})-\d\d-\d\d-'), ('size', r'with info \[?size: ?([^\],]+)'),
    ('error', r'errorStr: ?([^.\]]+)'), ('error', r'^\s*Error Code\s*: ([0-9A-F]{8}[0-9A-F ]*)'),
    ('size', r'[Aa]lloc\w* (?:memory )?(?:size|failed.*?size)[:= \[]+(\d+(?:\.\d+)? ?[KMG]?i?B?)'),
))


@dataclass(frozen=True)
class Finding:
    """A fault that a line tells.

    Attributes:
        fault: Key of `FAULTS`; None for a code that tells too little.
        weight: How much the line tells.
        code: The code, as `Code.name`; '' if words told it.
        facts: Values for the sentence.
    """
    fault: Optional[str]
    weight: int
    code: str = ''
    facts: Dict[str, str] = field(default_factory=dict)


@dataclass
class Event:
    """An error: the lines that belong together.

    Attributes:
        source: Name of the file.
        line: Number of its first line.
        stream: Rank that the prefix of its lines names.
        rank, device, pid: What its lines name.
        time: The earliest time in its lines; else the last one before it in the source.
        findings: What its lines tell.
        facts: Values that its lines name.
        sentence: torch_npu's sentence for the number.
        is_warning: It began as a warning.
    """
    source: str
    line: int
    stream: Optional[int] = None
    rank: Optional[int] = None
    device: Optional[int] = None
    pid: Optional[int] = None
    time: Optional[float] = None
    findings: List[Finding] = field(default_factory=list)
    facts: Dict[str, str] = field(default_factory=dict)
    sentence: str = ''
    is_warning: bool = False
    last_line: int = 0
    last_time: Optional[float] = None
    last_logged: Optional[float] = None
    own_time: bool = False
    has_header: bool = False
    has_tail: bool = False

    def top(self) -> Finding:
        """The finding that tells most; the first of several."""
        return max(self.findings, key=lambda f: f.weight)


class EventReader:
    """Reads the lines of one source.

    Args:
        source: Name of the source.
        rank: Rank whose log it is, if known.
        pid: Its process, if known.

    Attributes:
        events: The errors found, in the order of the source.
        harmless: Harmless messages, and how often each was found.
        left_out: Number of events that were not kept.
    """

    def __init__(self, source: str = '', rank: Optional[int] = None, pid: Optional[int] = None):
        self.source, self.rank, self.pid = source, rank, pid
        self.events: List[Event] = []
        self.harmless: Dict[str, int] = {}
        self.left_out = 0
        self._open: Dict[Optional[int], Event] = {}
        self._last: Optional[Event] = None
        self._kinds = Kinds()
        self._without: Set[str] = set()
        self._telling: Dict[str, Tuple[int, Sequence[Pattern]]] = {}
        self._dull: Set[str] = set()
        self._scale: Optional[float] = None

    def read_text(self, chunks: Iterable[str], year: Optional[int] = None) -> 'EventReader':
        """Read a text.

        Args:
            chunks: Its lines.
            year: Year of time stamps that have none.
        """
        return self.read(read_lines(chunks, self._kinds.wants, year))

    def read(self, lines: Iterable[Line]) -> 'EventReader':
        cut: Optional[Line] = None  # a call of C++ that goes on in the next line
        for line in lines:
            if cut is not None:
                if 'error code is' in line.text and line.stream in (cut.stream, None) and line.number - cut.number < 6:
                    line = replace(cut, text=f'{cut.text} {line.text.strip()}', number=line.number)
                else:
                    self._read_line(cut)
                cut = None
            if 'function error:' in line.text and 'error code is' not in line.text:
                cut = line
            else:
                self._read_line(line)
        if cut is not None:
            self._read_line(cut)
        if len(self.events) > MAX_EVENTS:
            self._thin()
        return self

    def _read_line(self, line: Line) -> None:
        line = replace(line, text=re.split(r'(?<=\S)\s+(?:Possible Cause|Solution): ', line.text)[0])
        line = self._with_stream(line)
        event = self._open.get(line.stream)
        if event is not None and self._is_other(event, line):
            event = self._open[line.stream] = None
        if self._is_advice(line.text):
            return
        log_line = cann_log.parse(line.text)
        if log_line is not None and not log_line.is_error and 'status[LOST]' not in line.text:
            return  # of plog: what is no error
        key = _KEY.sub('#', line.text) if log_line is not None else ''
        if key in self._dull:  # the same again, with other numbers
            if event is not None:
                event.last_line, event.last_time = line.number, line.time if line.time is not None else event.last_time
            return
        harmless = self._note_harmless(line.text)
        findings = [] if harmless and 'NPU warning' not in line.text else self._findings(line, event)
        if key and [f.fault for f in findings] == ['plog']:
            self._dull.add(key)
        is_header = bool(_HEADER.search(line.text))
        if event is None:
            if not findings and not (is_header or line.pid is not None or 'NPU warning' in line.text):
                if not harmless and line.device is None and not any(p.search(line.text) for _, p in _FACTS):
                    self._kinds.tell_nothing(line.raw)
                return
            event = self._begin(line)
        elif is_header and event.has_header and event.has_tail:
            event = self._begin(line)
        event.has_header |= is_header
        event.has_tail |= event.has_header and bool(_TAIL.search(line.text))
        self._add(event, line, findings)

    def _with_stream(self, line: Line) -> Line:
        """Only the first line of a message has a prefix where a logger wrote it: the lines under it belong to it."""
        last = self._last
        if line.stream is None and last is not None and last.stream is not None and (
                0 < line.number - last.last_line <= 3) and not _HEADER.search(line.text) and (
                line.pid is None or last.pid in (None, line.pid)):
            return replace(line, stream=last.stream)
        return line

    def _is_other(self, event: Event, line: Line) -> bool:
        if line.number - event.last_line > _GAP_LINES or line.text.startswith('Traceback (most recent'):
            return True
        if line.pid is not None and event.pid is not None and line.pid != event.pid:
            return True
        now, before = line.time, event.last_time
        if line.logged is not None and event.last_logged is not None:  # of the same clock
            now, before = line.logged, event.last_logged
        return now is not None and before is not None and abs(now - before) > _GAP_SECONDS

    def _begin(self, line: Line) -> Event:
        event = Event(self.source, line.number, line.stream, line.stream if line.stream is not None else self.rank,
                      pid=self.pid, time=line.clock)
        event.is_warning = 'NPU warning' in line.text
        self._open[line.stream] = event
        self.events.append(event)
        if len(self.events) >= 2 * MAX_EVENTS:
            self._thin()
        return event

    def _thin(self) -> None:
        """Keep the events that tell most, and of those that tell the same the first and the last."""
        groups: Dict[Tuple[Optional[str], str], List[Event]] = {}
        for event in self.events[:-_LAST]:
            top = event.top() if event.findings else Finding(None, -1)
            groups.setdefault((top.fault, top.code), []).append(event)
        ranked = sorted(groups.values(), key=lambda group: -max((f.weight for f in group[0].findings), default=-1))
        room = MAX_EVENTS - _LAST
        kept = set()
        for number, group in enumerate(ranked):
            most = room // (len(ranked) - number)
            chosen = group if len(group) <= most else group[:most - most // 2] + group[len(group) - most // 2:]
            room -= len(chosen)
            kept.update(map(id, chosen))
        before = len(self.events)
        self.events = [e for e in self.events[:-_LAST] if id(e) in kept] + self.events[-_LAST:]
        self.left_out += before - len(self.events)

    def _add(self, event: Event, line: Line, findings: List[Finding]) -> None:
        event.last_line = line.number
        event.last_logged = line.logged
        self._last = event
        if line.time is not None:
            event.last_time = line.time
            event.time = min(event.time, line.time) if event.own_time else line.time
            event.own_time = True
        event.pid = event.pid if event.pid is not None else line.pid
        event.rank = event.rank if event.rank is not None else line.rank
        event.device = event.device if event.device is not None else line.device
        for finding in findings:
            same = next((f for f in event.findings if (f.fault, f.code, f.weight) == (
                finding.fault, finding.code, finding.weight)), None)
            if same is None:
                event.findings.append(finding)
            else:
                for key, value in finding.facts.items():
                    same.facts.setdefault(key, value)
        for name, pattern in _FACTS:
            match = pattern.search(line.text)
            if match and name not in event.facts:
                event.facts[name] = match[1].rstrip('.,')
        sentence = re.match(r'\s*\[Error\]: *(\S.*?)\.?\s*$', line.text)
        event.sentence = event.sentence or (sentence[1] if sentence else '')

    @staticmethod
    def _is_advice(text: str) -> bool:
        """A line of 'Possible Cause' and 'Solution': it says what may be, not what is."""
        return bool(_ADVICE.match(text)) and not _CANN_LINE.search(text)

    def _note_harmless(self, text: str) -> bool:
        scale, bad = _SCALE.search(text), _NAN.search(text)
        if scale:
            self._scale = min(float(scale[1]), self._scale if self._scale is not None else float(scale[1]))
            if self._scale <= 1:
                return False  # `_findings` reads it
        if bad:
            return False
        for pattern, why in HARMLESS:
            match = pattern.search(text)
            if match:
                note = why.replace('{name}', match.groupdict().get('name') or '')
                self.harmless[note] = self.harmless.get(note, 0) + 1
                return True
        return False

    def _findings(self, line: Line, event: Optional[Event]) -> List[Finding]:
        text = line.text
        found = self._words(text)
        found += self._numbers(text, event) + _cann_codes(text) + _torch_npu_codes(text)
        number = number_of_reason(text)
        if number is not None:
            found.append(_finding(f'ACL {number}', less=1))
        for name in _NAMES:
            if name in text:
                found.append(_finding(name))
        for match in () if '[dmp]' in text else _DRIVER.finditer(text):  # there they are numbers of the host's system
            code = 'driver ' + next(g for g in match.groups() if g)
            if find(code):
                found.append(_finding(code))
        log_line = cann_log.parse(text)
        if log_line is not None and not any(f.fault for f in found) and log_line.text.strip('|_- ')[:8] not in (
                '', 'dest_ip('):
            found.append(Finding('plog', 1, facts={'reporter': log_line.reporter, 'reason': _short(log_line.text)}))
        if _SCALE.search(text) and self._scale is not None and self._scale <= 1:
            found.append(Finding('diverged', 40, facts={'reason': 'the loss scale fell to 1 or below'}))
        bad = _NAN.search(text)
        if bad:
            found.append(Finding('diverged', 8, facts={'reason': f'{bad[1]} became {bad[2].lower()}'}))
        exception = _EXCEPTION.match(text)
        if exception and exception['type'].endswith(('Error', 'Exception')) and exception['type'] not in _MESSENGERS:
            found.append(Finding('python', 2, facts={'reason': text.strip()[:300]}))
        return found

    def _words(self, text: str) -> List[Finding]:
        """What words tell.

        A log may hold millions of lines that differ in numbers only. If they tell nothing, one of them is read; if they
        told the same several times, only the patterns that told it are tried.
        """
        key = _ANY_NUMBER.sub('#', text)
        if key in self._without:
            return []
        found, telling = [], []
        times, before = self._telling.get(key, (0, ()))
        for pattern in PATTERNS if times < _OFTEN else before:
            told = pattern.read(text)
            if told:
                telling.append(pattern)
                found.append(Finding(told[0], pattern.weight, facts=told[1]))
        if len(self._without) + len(self._telling) > 20000 or re.search('exitcode|Signal', text):
            return found
        if found and times < _OFTEN:
            self._telling[key] = (times + 1 if before == telling else 1, telling)
        elif not found and not before:
            self._without.add(key)
        return found

    def _numbers(self, text: str, event: Optional[Event]) -> List[Finding]:
        """Numbers of ACL and HCCL. Which of the two depends on what was called."""
        if 'NPU warning' in text:
            return []
        found = []
        call = _CALL.search(text)
        aclnn = _ACLNN.search(text)
        if call:
            found.append(_number(call[1], call[2], int(call[3])))
        for match in [] if call else _NUMBER.finditer(text):
            number, *others, hccl = match.groups()
            what = 'Hccl' if hccl else aclnn[1] if aclnn else ''
            value = int(number or hccl or next(g for g in others if g))
            if not number and not hccl and find(f'ACL {value}') is None:
                continue  # other numbers have six digits too
            if value and not (number and value < 1000 and not aclnn and 'stream synchronize' not in text):
                found.append(_number('HCCL' if hccl else 'NPU', what, value))
        for match in _HCCL_NUMBER.finditer(text):
            found.append(_number('HCCL', match[2] or '', int(match[1], 16)))
        is_of_warning = event is not None and event.is_warning
        if not found and '[Error]:' in text and not is_of_warning:
            found += [_finding(code, less=1) for pattern, code in SENTENCES if pattern.search(text)][:1]
        if not found and 'HCCL error in' in text:
            found.append(Finding('hccl_general', GENERAL))
        if not found and 'stream synchronize failed' in text:
            found.append(Finding('task_failed', GENERAL))
        return found


def _number(kind: str, what: str, value: int) -> Finding:
    is_hccl = kind == 'HCCL' or bool(re.search(r'Hccl|hccl|Hcom', what))
    name = f'HCCL {value}' if is_hccl and abs(value) < 1000 else f'ACL {value}'
    facts = {}
    function = re.match(r'(?:call )?(?:\w+::)*(\w+)', what)
    if function:
        facts['called'] = function[1]
    if is_hccl and re.search(r'CommInit|GetRootInfo', what) and name.startswith('HCCL'):
        fault = {1: 'communicator_driver', 5: 'not_supported'}.get(value, 'communicator')
        return Finding(fault, 25, name, {**facts, 'operator': facts.get('called', '')})
    return _finding(name, facts=facts)


def _finding(name: str, facts: Optional[Dict[str, str]] = None, less: int = 0) -> Finding:
    code = find(name)
    if code is None:
        return Finding('unknown', 8, name, facts or {})
    return Finding(code.fault, code.weight - less, name, facts or {})


def _cann_codes(text: str) -> List[Finding]:
    found = []
    for match in _CANN.finditer(text):
        name = match[1]
        is_line = _CANN_LINE.match(text, match.start()) and (name[1] in REPORTERS or 'PID' in text)
        if find(name) is None and not is_line:
            continue
        sentence = re.sub(r'^Inner Error[!,].*', '', _sentence_of(text, match))
        reason = re.search(r'Reason: ?(.+)', sentence)
        sentence = reason[1] if reason else sentence
        facts = {'reason': _short(sentence if len(sentence) < 120 else sentence.split('. ')[0])} if sentence else {}
        # the message of the error could not be read
        found.append(_finding(name, facts, less=20 if name == 'EE1001' and 'rtGetDevMsg' in sentence else 0))
    if not found and 'CANN error:' in text:
        sentence = _short(text.partition('CANN error:')[2])
        found += [_finding(code, {'reason': sentence}) for pattern, code in SENTENCES if pattern.search(text)][:1]
        found = found or [Finding(None, 4, facts={'reason': f'CANN reports "{sentence}"'})]
    return found


def _sentence_of(text: str, match: 're.Match[str]') -> str:
    """What CANN says after a code, or between the time and the end where the code comes after a name."""
    after = text[match.end():]
    after = re.sub(r'^\)?:?\s*(?:\[PID: ?\d+\])?\s*(?:\d{4}-\d\d-\d\d-[\d:.]+)?\s*(?:\(E\w{5}\):)?', '', after)
    return re.sub(r'\[FUNC:.*', '', after).strip(' :)')


def _short(text: str) -> str:
    text = ' '.join(text.split()).rstrip('.')
    return text if len(text) <= 200 else text[:200].rsplit(' ', 1)[0] + ' ...'


def _torch_npu_codes(text: str) -> List[Finding]:
    found: List[Finding] = []
    for match in _ERR.finditer(text):
        if match[0] != 'ERR99999':
            found.append(_finding(match[0]))
    return found


def merge(readers: Iterable[EventReader]) -> Tuple[List[Event], Dict[str, int]]:
    """Events of all sources that tell something, and their harmless messages."""
    events: List[Event] = []
    harmless: Dict[str, int] = {}
    for reader in readers:
        telling = [e for e in reader.events if e.findings]
        events += telling
        is_told = any(e.is_warning for e in telling)  # the text of CANN under a warning tells more than the warning
        for note, count in reader.harmless.items():
            if not (is_told and note.startswith(NPU_WARNING)):
                harmless[note] = harmless.get(note, 0) + count
    return events, harmless
