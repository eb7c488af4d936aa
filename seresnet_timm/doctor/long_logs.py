"""A log of any size in little memory: its beginning and end, and the lines between them that name an error"""
import re
from collections import deque
from typing import Deque, Dict, Iterator, NamedTuple

HEAD, MIDDLE, TAIL = 8 << 20, 4 << 20, 24 << 20  # bytes that are kept
_TELLS = re.compile(
    rb'rror|ERR|[Ff]ail|xception|raceback|[Kk]illed|memory|xitcode|xit code|Signal|imeout|imed? ?out|imes out|'
    rb'\bE[A-Z0-9]\d{4}\b|Notify|LOST|[Ll]ost |core dumped|[Nn]o space|[Dd]enied|[Nn]ot found|undefined symbol|fault|'
    rb'abnormal|[Rr]efused|[Rr]eset by|closed by|in use|OOM|terminate|\b(?:nan|NaN|inf)\b')
_SAME_DIGIT = bytes.maketrans(b'123456789', b'000000000')
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
    seen: Dict[bytes, int] = {}
    tells: Dict[bytes, bool] = {}
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
            kept = _telling(block, MIDDLE - room, seen, tells)
            room += len(kept) - kept.count(b'\n')
            middle += kept + newline
    return Kept(b''.join([head, middle, rest, *tail]), left_out)


def _telling(block: bytes, room: int, seen: Dict[bytes, int], tells: Dict[bytes, bool]) -> bytes:
    """Lines that name an error, up to some bytes, and of all others the ends.

    When half of the bytes is used, of lines that differ in numbers only the first are kept.

    Args:
        block: Whole lines.
        room: Bytes that may still be kept.
        seen: How many lines came that differ in numbers only.
        tells: Whether a line names an error, for lines with a 0 for each digit: a log has millions of lines.
    """
    lines = block.split(b'\n')
    for number, kind in enumerate(block.translate(_SAME_DIGIT).split(b'\n')):
        found = tells.get(kind)
        if found is None:
            found = _TELLS.search(kind) is not None
            if len(tells) < MAX_KINDS and len(kind) < 1000:
                tells[kind] = found
        if found and room > 0:
            kind = _NUMBERS.sub(b'', lines[number][:400])
            if kind in seen or len(seen) < MAX_KINDS:
                seen[kind] = seen.get(kind, 0) + 1
            if seen.get(kind, 0) <= MAX_ALIKE or room >= MIDDLE // 2:
                room -= len(lines[number])
                continue
        lines[number] = b''
    return b'\n'.join(lines)
