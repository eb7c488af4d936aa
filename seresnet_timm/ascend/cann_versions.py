"""Which CANN belongs to a release of torch_npu, and for which Python it is built.

CANN: the table in COMPATIBILITY.en.md of the repository Ascend/pytorch (August 2026); 2.10.0 stands in the README
of its release 26.0.0, 2.9.1 in its own description. Python: the wheels on PyPI. `as_table` prints the page of the docs.
"""
import re
from typing import Dict, List, NamedTuple, Optional, Tuple

from seresnet_timm.ascend import wheels


class Release(NamedTuple):
    """A release of torch_npu.

    Attributes:
        cann: The CANN that belongs to it; None if Ascend has not named one yet.
        pythons: Oldest and newest Python 3 that it is built for.
    """
    cann: Optional[str]
    pythons: Tuple[int, int]


RELEASES: Dict[str, Release] = {
    '2.6.0': Release('8.2.RC1', (9, 11)),
    '2.6.0.post3': Release('8.3.RC1', (9, 11)),
    '2.6.0.post5': Release('8.5.0', (9, 12)),
    '2.7.1': Release('8.3.RC1', (9, 11)),
    '2.7.1.post2': Release('8.5.0', (9, 12)),
    '2.7.1.post4': Release('9.0.0', (9, 13)),
    '2.7.1.post8': Release('9.1.0', (9, 13)),
    '2.8.0': Release('8.3.RC1', (9, 11)),
    '2.8.0.post2': Release('8.5.0', (9, 12)),
    '2.8.0.post4': Release('9.0.0', (9, 13)),
    '2.9.0': Release('8.5.0', (10, 12)),
    '2.9.0.post2': Release('9.0.0', (10, 13)),
    '2.9.0.post6': Release('9.1.0', (10, 13)),
    '2.9.1': Release('9.0.0', (10, 13)),
    '2.10.0': Release('9.0.0', (10, 13)),
    '2.10.0.post4': Release('9.1.0', (10, 13)),
    '2.11.0': Release('9.1.0', (10, 13)),
    '2.12.0': Release('9.1.0', (10, 13)),
    '2.13.0': Release(None, (10, 14)),
    '2.14.0': Release(None, (10, 14)),
}
# by Ascend's release notes a torch_npu that belongs to one of these runs with the others too
INTERCHANGEABLE = ('8.5.0', '9.0.0', '9.1.0')


def describe(torch_npu: str) -> str:
    """What is known of the CANN of an installed torch_npu, as a clause."""
    name = torch_npu.partition('+')[0]
    release = RELEASES.get(name)
    if release is not None and release.cann is not None:
        others = [v for v in INTERCHANGEABLE if v != release.cann]
        also = f', and runs with {" and ".join(others)} too' if release.cann in INTERCHANGEABLE else ''
        return f'torch_npu {name} belongs to CANN {release.cann}{also}'
    before = _before(name)
    if before is None:
        return f"Ascend's table does not name torch_npu {name or 'of this version'}"
    return (f"Ascend's table does not name torch_npu {name}; {before}, the nearest before it, belongs to CANN "
            f'{RELEASES[before].cann}')


def mismatch(torch_npu: str, cann: str) -> Optional[Tuple[str, str]]:
    """Why an installed CANN is not the one of torch_npu, and what to do; None if it is, or if nothing is known."""
    release = RELEASES.get(torch_npu.partition('+')[0])
    is_known = re.match(r'([89]|\d\d)\.\d+\.(RC)?\d', cann)  # not the version of a part of CANN, such as 7.6.0.1.220
    if release is None or release.cann is None or not is_known or _is(cann, release.cann):
        return None
    if release.cann in INTERCHANGEABLE and any(_is(cann, v) for v in INTERCHANGEABLE):
        return None
    fitting = [name for name, other in RELEASES.items() if other.cann is not None and _is(cann, other.cann)]
    other_way = f', or a torch_npu of CANN {cann}: {", ".join(fitting)}' if fitting else ''
    return f'{describe(torch_npu)}; installed is CANN {cann}', f'install CANN {release.cann}{other_way}'


def as_table(header: Tuple[str, ...] = ('CANN', 'torch_npu', 'torch', 'Python')) -> str:
    """Markdown: a row for each release of torch_npu, the newest CANN first."""
    def rank(name: str) -> Tuple[int, ...]:
        return (*wheels.release(name), _post(name))
    rows: List[str] = []
    canns = sorted({r.cann for r in RELEASES.values() if r.cann}, reverse=True)
    for cann in (None, *canns):
        for name in sorted((n for n, r in RELEASES.items() if r.cann == cann), key=rank, reverse=True):
            low, high = RELEASES[name].pythons
            rows.append(f'| {cann or "?"} | {name} | {wheels.dotted(wheels.release(name))} | 3.{low} - 3.{high} |')
    return '\n'.join([f'| {" | ".join(header)} |', '|' + '---|' * len(header), *rows])


def _is(installed: str, cann: str) -> bool:
    """Whether an installed CANN, e.g. of version 9.1.RC1, is of a release."""
    return installed == cann or installed.startswith(f'{cann}.')


def _post(name: str) -> int:
    _, _, number = name.partition('.post')
    return int(number) if number.isdigit() else 0


def _before(name: str) -> Optional[str]:
    """The newest release in the table with a CANN that is older than a release."""
    wanted = (*wheels.release(name), _post(name))
    known = [(*wheels.release(n), _post(n)) for n, r in RELEASES.items() if r.cann]
    if len(wanted) < 4:
        return None
    older = [v for v in known if v < wanted and v[:3] == wanted[:3]] or [v for v in known if v < wanted]
    best = max(older, default=None)
    return best and next(n for n in RELEASES if (*wheels.release(n), _post(n)) == best)
