"""The outcome of a check of a dataset as text, JSON and CSV"""
import csv
import json
import statistics
from typing import Any, Dict, List, TextIO

from seresnet_timm.data.check import KINDS, Result
from seresnet_timm.errors import printable

MAX_LISTED = 10  # findings of a kind in the text; JSON and CSV have all
COLUMNS = ('kind', 'wrong', 'split', 'class', 'path', 'detail')


def balance(counts: Dict[str, int]) -> Dict[str, Any]:
    """Class balance of a split: numbers of images, and the classes with the fewest and the most."""
    if not counts:
        return dict(classes=0, images=0, fewest=None, most=None, median=None, ratio=None)
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    return dict(
        classes=len(counts),
        images=sum(counts.values()),
        fewest=dict(name=fewest, images=counts[fewest]),
        most=dict(name=most, images=counts[most]),
        median=statistics.median(counts.values()),
        ratio=round(counts[most] / counts[fewest], 2) if counts[fewest] else None,
    )


def describe(result: Result) -> List[str]:
    """Lines of text."""
    lines = []
    for split, counts in result.classes.items():
        b = balance(counts)
        line = f'{split}: {b["images"]:,} images in {b["classes"]:,} classes'
        if b['classes'] and b['fewest']['images'] == b['most']['images']:
            line += f'; {b["median"]:,g} in each'
        elif b['classes']:
            line += (f'; {b["fewest"]["images"]:,} ({printable(b["fewest"]["name"])}) to {b["most"]["images"]:,} '
                     f'({printable(b["most"]["name"])}) images per class, median {b["median"]:,g}')
        lines.append(line)
    for kind, (is_wrong, heading) in KINDS.items():
        found = [f for f in result.findings if f.kind == kind]
        if not found:
            continue
        lines.append(f'{len(found):,} x {heading}' + ('' if is_wrong else ' (a note)'))
        for finding in found[:MAX_LISTED]:
            name = f'{finding.path} [{finding.class_name}]' if finding.class_name else finding.path
            lines.append(f'  {printable(name)}' + (f': {printable(finding.detail)}' if finding.detail else ''))
        if len(found) > MAX_LISTED:
            lines.append(f'  and {len(found) - MAX_LISTED:,} more (--json and --csv list all)')
    if result.continued:
        lines.append(f'{result.continued:,} files were read by a check that was interrupted.')
    if not result.faults:
        lines.append(f'{printable(result.folder)}: nothing wrong with {result.num_images:,} images.')
    return lines


def write_json(result: Result, file: TextIO) -> None:
    value = dict(
        schema=1,
        folder=str(result.folder),
        images=result.num_images,
        wrong=len(result.faults),
        counts={kind: sum(f.kind == kind for f in result.findings) for kind in KINDS},
        splits={split: dict(balance(counts), counts=counts) for split, counts in result.classes.items()},
        findings=[dict(zip(COLUMNS, row)) for row in _rows(result)],
    )
    json.dump(value, file, indent=2)
    file.write('\n')


def write_csv(result: Result, file: TextIO) -> None:
    """A row for each finding."""
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows([printable('' if v is None else v) for v in row] for row in _rows(result))


def _rows(result: Result) -> List[tuple]:
    return [(f.kind, KINDS[f.kind][0], f.split, f.class_name, f.path, f.detail) for f in result.findings]
