"""Lines of logs of torch_npu, CANN, torchrun and loggers, without prefixes; rank, process and time of a line"""
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Callable, Iterable, Iterator, Optional

from seresnet_timm.ascend.error_words import MAX_LINE

_ANSI = re.compile(r'\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]')
_NOT_TEXT = re.compile(r'[\x00-\x08\x0b-\x1f\x7f]')
# what launchers and loggers put before each line; the group is the rank, where they name it
_PREFIXES = tuple(re.compile(p) for p in (
    r'\[(?:rank|default|rank: ?)(\d+)\](?:: ?| )',
    r'(?:worker|rank)[-_ ]?(\d+): ?',
    r'\[\d+,(\d+)\]<std(?:err|out)>: ?',  # mpirun
    r'(\d{1,4}): (?=\s*(?:\[|E[A-Z0-9]\d{4}|Traceback|[A-Z]\w*(?:Error|Exception)\b))',  # srun -l
    r'\(\w+ (?:rank=(\d+) )?pid=\d+(?:, ip=[\d.]+)?\) ?',  # Ray
    r'\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d) (?:std(?:err|out) [FP] )?',  # Kubernetes
    r'(?:[A-Z][a-z]{2}|\d{1,2}月) {1,2}\d{1,2} \d\d:\d\d:\d\d \S+ [\w./@-]+(?:\[\d+\])?: ',  # syslog, journalctl
    r'\d{1,3}(?:\.\d{1,3}){3}: ',  # pdsh
    r'[a-z][\w.-]*\d: (?=\[|(?:worker|rank)[-_ ]?\d|E[A-Z0-9]\d{4}|Traceback|[A-Z]\w*(?:Error|Exception)\b)',
    r'\{"log": ?"',  # Docker
    r'\[pod/[\w.-]+/[\w.-]+\] ',  # kubectl logs --prefix
    r'\[Stage-\d+\] ',
    r'(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[\w.]+:\d+\] ?',  # vLLM
    r'\s*[\w./-]+\.(?:log|txt|out)(?:\.\d+)?[:-](?:\d+[:-])?(?=\S)',  # grep
    r'\[ModelArts Service Log\]\s*(?:\[\w+\]\s*)?',
    r'\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,:]\d+)?\]?\s*(?:[-|]\s*)?'
    r'(?:[\w.]+\s*(?:[-|:]\s*)?)?\[?(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\]?\s*[-:|]?\s*',
))
# what other programs write before the prefix of torchrun
_BEFORE_RANK = re.compile(r'[^"\'=]{1,160}?(?=\[(?:rank|default)\d+\]:)')
_RANKS = tuple(re.compile(p) for p in (
    r'\bRankID:(\d+)', r'\[Rank (\d+)\]', r'\[rank(\d+)\]', r'\(rank (\d+)\)', r'\brank\s*: (\d+) \(local_rank',
    r'\|\s*[\d.:a-fA-F]+\(\d+\)\s*\|(?:\s*\d+\s*\|)?\s*[\d.:a-fA-F]+\((\d+)\)\s*\|'))  # HCCL's table of links
_PID = re.compile(r'\bPID: ?(\d+)|\[[A-Z]+\] [A-Z]+\((\d+),')
_DEVICE = re.compile(r'\bDevice:(\d+)')
_TIMES = (
    re.compile(r'(?P<year>\d{4})[-/](?P<month>\d\d)[-/](?P<day>\d\d)[-T _]'
               r'(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)'
               r'(?:[.,:](?P<fraction>\d{3}(?:\.\d{3})?\d*))?(?P<zone>Z|[+-]\d\d:?\d\d)?'),
    re.compile(r'\b(?P<day>\d\d)/(?P<month>\d\d)/(?P<year>\d{4})[ -](?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)'),
    re.compile(r'^\W{0,3}(?:[A-Z][a-z]{2} )?(?P<monthname>[A-Z][a-z]{2}) {1,2}(?P<day>\d{1,2}) '
               r'(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d) (?P<year>\d{4})'),
    # syslog, whose traditional form has no year
    re.compile(r'^\W{0,3}(?P<monthname>[A-Z][a-z]{2}) {1,2}(?P<day>\d{1,2}) (?:(?P<year>\d{4}) )?'
               r'(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\b'),
    # glog, as c10 writes it: month, day, and no year
    re.compile(r'\[[EWIF](?P<month>\d{1,2}?)(?P<day>\d\d) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)'
               r'(?:\.(?P<fraction>\d+))?'),
    re.compile(r'\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<month>\d\d)-(?P<day>\d\d) '  # vLLM
               r'(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\b'),
)
# what glibc and bash say in Chinese
_CHINESE = {
    '：': ': ', '没有那个文件或目录': 'No such file or directory', '权限不够': 'Permission denied',
    '设备上没有空间': 'No space left on device', '超出磁盘限额': 'Disk quota exceeded',
    '地址已在使用': 'Address already in use',
    '拒绝连接': 'Connection refused', '连接被对方重设': 'Connection reset by peer', '连接超时': 'Connection timed out',
    '断开的管道': 'Broken pipe', '没有到主机的路由': 'No route to host',
    '未知的名称或服务': 'Name or service not known',
    '无法指定被请求的地址': 'Cannot assign requested address', '无法分配内存': 'Cannot allocate memory',
    '打开的文件过多': 'Too many open files', '输入/输出错误': 'Input/output error',
    '资源暂时不可用': 'Resource temporarily unavailable', '不允许的操作': 'Operation not permitted',
    '段错误': 'Segmentation fault', '总线错误': 'Bus error', '已杀死': 'Killed', '已放弃': 'Aborted',
    '核心已转储': 'core dumped', '吐核': 'core dumped', '未找到命令': 'command not found',
    '无法执行二进制文件': 'cannot execute binary file', '可执行文件格式错误': 'Exec format error',
    '无法打开共享对象文件': 'cannot open shared object file', '无法打开共享目标文件': 'cannot open shared object file',
}
_MONTHS = ('Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec')


@dataclass(frozen=True)
class Line:
    """A line of a log.

    Attributes:
        text: The line without terminal commands and prefixes; its indentation is kept.
        number: Number of the line in its file, from 1.
        stream: Rank that a prefix names: the lines of a rank belong together.
        rank: Rank that the line names, or its prefix.
        pid: Process that the line names.
        device: Device that the line names, its local number.
        time: Time that the line names, seconds since 1970.
        clock: That time, or the last one before it in the text.
        logged: Time that a logger wrote before it.
        raw: The line as it was read.
    """
    text: str
    number: int
    stream: Optional[int] = None
    rank: Optional[int] = None
    pid: Optional[int] = None
    device: Optional[int] = None
    time: Optional[float] = None
    clock: Optional[float] = None
    logged: Optional[float] = None
    raw: str = ''


def read_lines(chunks: Iterable[str], wants: Callable[[str], bool], year: Optional[int] = None) -> Iterator[Line]:
    r"""Lines of a text that are wanted.

    Args:
        chunks: The text, line by line. A chunk may hold carriage returns, or line ends that were written as `\n`.
        wants: Whether a line is looked at.
        year: Year of time stamps that have none, until a line names one.

    Yields:
        The lines; one without a time has that of the line before it, wanted or not.
    """
    before: str = ''
    clock: Optional[float] = None
    for number, chunk in enumerate(chunks, 1):
        if '\\n' in chunk:
            chunk = chunk.replace('\\r', '').replace('\\n', '\n').replace('\\t', '\t').replace('\\"', '"')
        chunk = chunk.rstrip('\r\n')
        for part in re.split(r'[\r\n]', chunk) if '\r' in chunk or '\n' in chunk else (chunk,):
            if not wants(part):
                before = part
                continue
            line = _parse(part[:MAX_LINE], number, year)
            if line.time is None and before:
                found = _time(before, year)
                clock = clock if found is None else found
            clock = line.time if line.time is not None else clock
            if clock is not None:
                year = datetime.fromtimestamp(clock).year
            before = ''
            yield replace(line, clock=clock, raw=part)


def _parse(text: str, number: int, year: Optional[int]) -> Line:
    text = _NOT_TEXT.sub('', _ANSI.sub('', text))
    if not text.isascii():
        for chinese, english in _CHINESE.items():
            text = text.replace(chinese, english)
    time = _time(text, year)
    named = [int(m[1]) for m in (p.search(text) for p in _RANKS) if m]
    rank, stream = (named[0] if named else None), None
    before = _BEFORE_RANK.match(text) if ']:' in text else None
    logged = None
    if before:
        text, logged = text[before.end():], _time(before[0], year)
    match = next(filter(None, (p.match(text) for p in _PREFIXES)), None)
    while match:
        text = text[match.end():]
        if match.lastindex:
            rank = stream = int(match[1])
        elif logged is None and match.end() > 12:
            logged = _time(match[0], year)
        match = next(filter(None, (p.match(text) for p in _PREFIXES)), None)
    pid, device = _PID.search(text), _DEVICE.search(text)
    return Line(text, number, stream, rank, int(pid[1] or pid[2]) if pid else None, int(device[1]) if device else None,
                time, logged=logged)


def _time(text: str, year: Optional[int]) -> Optional[float]:
    """The first time in a line; None if it has none."""
    for form in _TIMES:
        match = form.search(text, 0, 400)
        if not match:
            continue
        parts = match.groupdict()
        if not parts.get('year') and year is None:
            continue
        try:
            month = _MONTHS.index(parts['monthname']) + 1 if parts.get('monthname') else int(parts['month'])
            digits = (parts.get('fraction') or '').replace('.', '')[:6]
            when = datetime(int(parts.get('year') or year), month, int(parts['day']), int(parts['hour']),
                            int(parts['minute']), int(parts['second']), int(digits.ljust(6, '0')))
            zone = parts.get('zone')
            if zone:
                sign = -1 if zone[0] == '-' else 1
                offset = timedelta() if zone == 'Z' else sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
                when = when.replace(tzinfo=timezone(offset))
            return when.timestamp()
        except (ValueError, OverflowError):
            continue
    return None
