"""The logs that `seresnet-timm diagnose` reads: a file of any kind, standard input, or all logs of a run"""
import os
import re
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Set

from seresnet_timm.ascend.error_events import EventReader
from seresnet_timm.ascend.errors import where_plog_lies
from seresnet_timm.doctor import long_logs, newest_run
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.files import from_json
from seresnet_timm.runs.error_file import parse_error
from seresnet_timm.runs.folder import RunFolder

_CHUNK = 1 << 20
_LOGS = re.compile(r'\.(?:log|txt|out|err|json|csv|yaml)(?:\.\d+)?(?:\.gz)?$|\.log\b|^(?:stdout|stderr)$')
_MAX_FILES = 2000
_AROUND = 3600  # seconds around a run in which plog may be its


@dataclass
class Source:
    """A text to read.

    Attributes:
        name: Its name for the user, and in a bundle.
        path: The file; None for standard input.
        rank: Rank whose log it is, if its path says so.
        pid: Process whose log it is, if its name says so.
        text: Content that was read already.
        left_out: Bytes in its middle of which only lines that name an error were read.
        problem: Why it could not be read to its end.
    """
    name: str
    path: Optional[Path] = None
    rank: Optional[int] = None
    pid: Optional[int] = None
    text: Optional[str] = None
    left_out: int = 0
    problem: str = ''

    def lines(self) -> Iterator[str]:
        """Its lines; little memory is enough for a file of any size."""
        if self.text is None:
            self.text = self._read()
        text, self.text = self.text, None if self.path else self.text
        if self.path is not None and self.path.name == 'error.json':
            text = _torchrun_error(text)
        yield from text.split('\n')

    def _read(self) -> str:
        try:
            if self.path is None:
                return self._short(iter(lambda: sys.stdin.buffer.read(_CHUNK), b''))
            with open(self.path, 'rb') as f:
                is_gzip = f.read(2) == b'\x1f\x8b'
                f.seek(0)
                return self._short(self._unpacked(f) if is_gzip else iter(lambda: f.read(_CHUNK), b''))
        except OSError as e:
            self.problem = e.strerror or str(e)
            return ''

    def _short(self, chunks: Iterator[bytes]) -> str:
        kept = long_logs.shorten(chunks)
        self.left_out = kept.left_out
        return self._decode(kept.data)

    def _unpacked(self, file: BinaryIO) -> Iterator[bytes]:
        """What gzip packed, up to where it is damaged or cut off."""
        unpack = zlib.decompressobj(wbits=31)
        data, in_member = b'', False
        while True:
            data = data or file.read(_CHUNK)
            if not data:
                break
            in_member = True
            try:
                yield unpack.decompress(data, _CHUNK)
            except zlib.error as e:
                self.problem = f'damaged: {e}'
                return
            data = unpack.unconsumed_tail
            if unpack.eof:  # another member may follow
                data, unpack, in_member = unpack.unused_data, zlib.decompressobj(wbits=31), False
        yield unpack.flush()
        if in_member:
            self.problem = 'cut off'

    @staticmethod
    def _decode(data: bytes) -> str:
        for codec, high in (('utf-16-le', data[3:1000:2]), ('utf-16-be', data[2:1000:2])):
            if high.count(0) > len(high) / 2:  # what PowerShell's > writes; without its first bytes if it was cut
                return data.decode(codec, errors='replace').removeprefix('\ufeff')
        try:
            return data.decode('utf-8-sig')
        except UnicodeDecodeError as e:
            text = data.decode('utf-8-sig', errors='replace')
            # a Chinese locale may write GBK: nearly all of it is then not UTF-8, and is GB 18030
            start = data.rfind(b'\n', 0, e.start) + 1
            line = data[start:data.find(b'\n', e.start) if b'\n' in data[e.start:] else len(data)]
            return data.decode('gb18030', errors='replace') if _is_gbk(line) else text

    def events(self) -> EventReader:
        """Read it; see `EventReader`."""
        when = self.path.stat().st_mtime if self.path is not None and self.path.exists() else time.time()
        return EventReader(self.name, self.rank, self.pid).read_text(self.lines(), time.localtime(when).tm_year)


def _is_gbk(line: bytes) -> bool:
    """The line holds common Chinese characters in GBK (rows B0 to F7), and nothing else that is not ASCII."""
    rest = re.sub(rb'[\xa1-\xa3\xb0-\xf7][\xa1-\xfe]', b'', line)
    return len(rest) < len(line) and rest.isascii()


def _torchrun_error(text: str) -> str:
    """The traceback in the file where torchrun's ranks leave their exception, after its time."""
    error = parse_error(text)
    if error is None:
        return text
    when = '' if error.when is None else time.strftime('%Y-%m-%d-%H:%M:%S\n', time.localtime(error.when))
    return f'{when}{error.traceback}'


@dataclass
class Logs:
    """What is read.

    Attributes:
        sources: The texts, in the order of ranks.
        record: Content of run.json; None without one.
        folder: The folder of a run; None for a single text.
        plog: Folder of plog that is looked into; None for a single text.
        pids: Rank of each process, as the launcher wrote them when the run failed.
        notes: Sentences on what is in the folder and was not read.
    """
    sources: List[Source]
    record: Optional[Dict[str, Any]] = None
    folder: Optional[Path] = None
    plog: Optional[Path] = None
    pids: Dict[int, int] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)


def find_logs(target: str) -> Logs:
    """Find what to read.

    Args:
        target: '-' for standard input, a file, or the folder of a run or of logs.

    Raises:
        UsageError: There is nothing to read.
    """
    if target == '-':
        return Logs([Source('standard input')])
    path = Path(target)
    if not path.exists():
        raise UsageError(f'{printable(target)} does not exist: name the folder of a run, a log file, or - for standard '
                         'input.')
    if not path.is_dir():
        if not os.access(path, os.R_OK):
            raise UsageError(f'{printable(target)} cannot be read (permission denied).')
        return Logs([Source(path.name, path)])
    named, (path, other_runs) = path, newest_run.newest_run(path)
    notes = newest_run.describe_others(path, other_runs)
    record = _read_json(RunFolder(path).record)
    nproc = _nproc(record)
    files, notes_on_starts = newest_run.of_newest_start(path, _files(path))
    sources = [_source(path, file, nproc) for file in files]
    if path != named:  # what was printed, in a file beside the runs, or logs of other machines
        since = _seconds((record or {}).get('started')) or newest_run.last_written(path)
        runs = {path, *other_runs}
        sources += [_source(named, file, nproc) for file in _files(named) if not runs.intersection(file.parents)
                    and file.stat().st_mtime >= since]
    plog = Path(where_plog_lies())
    is_run = (record is not None or RunFolder(path).logs.is_dir()) and not _is_below(plog, path)
    if not sources and record is None:
        name = RunFolder(path).record.name
        damage = 'is damaged' if os.access(path / name, os.R_OK) else 'cannot be read (permission denied)'
        has = f'no logs, and its {name} {damage}' if os.path.exists(path / name) else f'no logs and no {name}'
        raise UsageError(f'{printable(target)} has {has}: name the folder of a run, or a log file.')
    order = sorted(range(len(sources)), key=lambda i: (sources[i].rank is None, sources[i].rank or 0, sources[i].name))
    return Logs([sources[i] for i in order], record, path, plog if is_run else None, _pids(path),
                notes + notes_on_starts)


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in [Path(os.path.realpath(path)), *Path(os.path.realpath(path)).parents]


def _read_json(path: Path) -> Optional[Dict[str, Any]]:
    try:
        value = from_json(path.read_text(encoding='utf-8', errors='replace'))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _nproc(record: Optional[Dict[str, Any]]) -> int:
    settings = (record or {}).get('settings')
    nproc = settings.get('nproc') if isinstance(settings, dict) else None
    return nproc if isinstance(nproc, int) and nproc > 0 else 8


def _files(folder: Path) -> List[Path]:
    """Logs below a folder, no links, no files of the run that hold no errors."""
    own = {'run.json', 'args.yaml', 'summary.csv', 'pids.json'}
    found: List[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f != 'stacks' and not f.startswith('.'))
        for name in sorted(names):
            file = Path(parent, name)
            if _LOGS.search(name) and name not in own and not name.endswith(('.yaml', '.csv')) and not (
                    file.is_symlink()) and file.is_file():
                found.append(file)
        if len(found) > _MAX_FILES:
            break
    return found[:_MAX_FILES]


def _source(folder: Path, file: Path, nproc: int) -> Source:
    name = str(file.relative_to(folder))
    node = re.search(r'node(\d+)/', name)
    local = re.search(r'attempt_\d+/(\d+)/', name)
    rank = None
    if local:
        rank = int(local[1]) + (int(node[1]) * nproc if node else 0)
    else:
        named = re.search(r'(?:rank|worker)[-_]?(\d+)\b', name)
        rank = int(named[1]) if named else None
    pid = re.search(r'plog-(\d+)_', name)
    return Source(name, file, rank, int(pid[1]) if pid else None)


def _pids(folder: Path) -> Dict[int, int]:
    """Rank of each process of a run, as the launcher wrote them when it failed."""
    ranks: Dict[int, int] = {}
    for file in sorted(RunFolder(folder).logs.glob('node*/pids.json')):
        for rank, pid in (_read_json(file) or {}).items():
            if isinstance(pid, int) and rank.isdigit():
                ranks[pid] = int(rank)
    return ranks


def plog_of(logs: Logs, named: Set[int]) -> List[Source]:
    """Files of plog of the run's processes; if these are not known, those written while it ran.

    Args:
        logs: The logs of a run.
        named: Processes that these logs name.
    """
    folder, plog = logs.folder, logs.plog
    if folder is None or plog is None or not plog.is_dir():
        return []
    pids = named | set(logs.pids)
    started = _seconds((logs.record or {}).get('started'))
    ended = max((p.stat().st_mtime for p in folder.rglob('*') if p.is_file() and not p.is_symlink()), default=0.)
    seen: Set[str] = set()
    sources = []
    for file in sorted(plog.glob('*/plog/plog-*')):
        match = re.match(r'plog-(\d+)_', file.name)
        if not match or file.is_symlink() or not file.is_file() or str(file) in seen:
            continue
        pid, when = int(match[1]), file.stat().st_mtime
        in_time = started is not None and started - 60 <= when <= ended + _AROUND
        if pid in pids or not pids and in_time:
            seen.add(str(file))
            sources.append(Source(f'plog/{file.relative_to(plog)}', file, logs.pids.get(pid), pid))
    return sources[:_MAX_FILES]


def _seconds(text: Any) -> Optional[float]:
    try:
        return time.mktime(time.strptime(str(text)[:19], '%Y-%m-%dT%H:%M:%S'))
    except ValueError:
        return None
