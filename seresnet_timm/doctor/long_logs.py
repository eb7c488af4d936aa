"""A log of any size in little memory: its beginning and end, and the lines between them that name an error"""
import re
from collections import deque
from typing import Deque, Iterator, List, NamedTuple

HEAD, MIDDLE, TAIL = 8 << 20, 4 << 20, 24 << 20  # bytes that are kept
_TELLS = re.compile(rb'rror|ERR|[Ff]ail|xception|raceback|illed|memory|exitcode|Signal|imeout|imed out')
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
            kept = _telling(block + newline, MIDDLE - room)
            room += sum(map(len, kept)) - sum(part.count(b'\n') for part in kept)
            middle += b''.join(kept)
    return Kept(b''.join([head, middle, rest, *tail]), left_out)


def _telling(block: bytes, room: int) -> List[bytes]:
    """Lines that name an error, up to some bytes; of all others the ends."""
    parts: List[bytes] = []
    done = 0
    for match in _TELLS.finditer(block):
        if match.start() < done or room <= 0:
            continue
        start = block.rfind(b'\n', done, match.start()) + 1 or done
        end = block.find(b'\n', match.end())
        end = len(block) if end < 0 else end
        parts += [b'\n' * block.count(b'\n', done, start), block[start:end]]
        room -= end - start
        done = end
    return [*parts, b'\n' * block.count(b'\n', done)]
