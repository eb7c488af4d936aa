"""A log of any size in little memory: its beginning and end, and the lines between them that name an error"""
import re
from collections import deque
from typing import Deque, Dict, Iterator, List, NamedTuple

HEAD, MIDDLE, TAIL = 8 << 20, 4 << 20, 24 << 20  # bytes that are kept
_TELLS = re.compile(rb'rror|ERR|[Ff]ail|xception|raceback|illed|memory|exitcode|Signal|imeout|imed out')
MAX_ALIKE, MAX_KINDS = 50, 100_000
_NUMBERS = re.compile(rb'(?<!\d)(?!\d{6}(?!\d))\d+')  # those of six digits may be codes
_WIDE = (b'\xff\xfe', b'\xfe\xff')  # UTF-16: no words are looked for


class Kept(NamedTuple):
    """What is kept of a log; a line that is not is empty, so that the numbers of lines stay.

    Attributes:
        data: Its bytes.
        left_out: Size of the part of which only lines that name an error are kept.
    """
    data: bytes
    left_out: int


def shorten(chunks: Iterator[bytes]) -> Kept:
    """Keep the beginning, the end, and of the middle the lines that name an error.

    Args:
        chunks: The log.
    """
    head, middle = b'', bytearray()
    tail: Deque[bytes] = deque()
    size = left_out = room = 0
    seen: Dict[bytes, int] = {}  # how often a line came, numbers apart
    rest = b''  # of the last line of the part before
    for chunk in chunks:
        if len(head) < HEAD and not tail:
            head += chunk
            continue
        tail.append(chunk)
        size += len(chunk)
        while size - len(tail[0]) >= TAIL:
            dropped = tail.popleft()
            size -= len(dropped)
            if not left_out and not head.startswith(_WIDE):
                head, newline, rest = head.rpartition(b'\n')
                head += newline
            left_out += len(dropped)
            block, newline, new = (rest + dropped).rpartition(b'\n')
            if head.startswith(_WIDE):
                continue
            rest = new
            kept = _telling(block + newline, MIDDLE - room, seen)
            room += sum(map(len, kept)) - sum(part.count(b'\n') for part in kept)
            middle += b''.join(kept)
    return Kept(b''.join([head, middle, rest, *tail]), left_out)


def _telling(block: bytes, room: int, seen: Dict[bytes, int]) -> List[bytes]:
    """Lines that name an error, up to some bytes, and of all others the ends.

    When half of the bytes is used, of lines that differ in numbers only the first are kept.
    """
    parts: List[bytes] = []
    done = looked = 0
    for match in _TELLS.finditer(block):
        if match.start() < looked or room <= 0:
            continue
        start = block.rfind(b'\n', looked, match.start()) + 1 or looked
        looked = block.find(b'\n', match.end())
        looked = len(block) if looked < 0 else looked
        line = block[start:looked]
        kind = _NUMBERS.sub(b'', line[:400])
        if kind in seen or len(seen) < MAX_KINDS:
            seen[kind] = seen.get(kind, 0) + 1
        if seen.get(kind, 0) > MAX_ALIKE and room < MIDDLE // 2:
            continue
        parts += [b'\n' * block.count(b'\n', done, start), line]
        room -= len(line)
        done = looked
    return [*parts, b'\n' * block.count(b'\n', done)]
