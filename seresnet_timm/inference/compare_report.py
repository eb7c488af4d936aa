"""What `seresnet-timm compare` prints: text, or one JSON object.

schema       1; a higher number when a field below changes its meaning or is removed
equal        nothing differs by more than is allowed
reference    the reference, in words
tested       what was compared with it, in words
network      network and batch, lines of text
notes        what limits the meaning of the comparison, lines of text
first        'local' and 'accumulated' -> 'forward' and 'backward' -> the first place that differs, as below, or null
not_finite   'reference' and 'tested' -> the first place with NaN or infinity, or null
weights      of two checkpoints: list of places
local, accumulated   list of places, in the order of the computation
module      name; '' is the network
type        class of the module
call        number of the call, from 0
what        'input' (what operations between modules made of outputs), 'output', 'output gradient',
'input gradient', 'weight gradient', 'weight' or 'buffer'
item        which of several tensors, or the name of the weight or buffer
max, mean, cosine   max |b - a| / max |a|, mean |b - a| / mean |a|, a . b / (|a| |b|); null: infinite or none
measure     which of them is compared with the limit
limit       up to where it counts as equal; null: whatever it is, as rounding alone changes everything
differs     it is larger, or there is a problem
problem     why there is nothing to compare; null if there is
not_finite, reference_not_finite   numbers of NaN and infinite values
"""
import math
from typing import Any, Dict, List, Optional

from seresnet_timm.errors import printable
from seresnet_timm.files import as_json
from seresnet_timm.inference.compare import PASSES, Comparison, Difference

SCHEMA = 1
TITLES = {
    'local': 'Each module on the inputs of the reference (local: the cause)',
    'accumulated': 'From the input of the network on (accumulated: the effect)',
}


def as_object(result: Comparison) -> str:
    """The JSON object."""
    return as_json({
        'schema': SCHEMA, 'equal': result.equal, 'reference': result.reference, 'tested': result.tested,
        'network': result.network, 'notes': result.notes,
        'first': {name: {direction: _entry(result.first(name, direction == 'backward'))
                         for direction in ('forward', 'backward')} for name in PASSES},
        'not_finite': {side: _entry(_first_not_finite(result, side)) for side in ('reference', 'tested')},
        'weights': [_entry(d) for d in result.weights],
        **{name: [_entry(d) for d in result.passes.get(name, [])] for name in PASSES},
    }, indent=1)


def _entry(found: Optional[Difference]) -> Optional[Dict[str, Any]]:
    if found is None:
        return None
    place, figures = found.place, found.figures
    values = dict.fromkeys(('max', 'mean', 'cosine', 'not_finite', 'reference_not_finite'))
    if figures is not None:
        values = {name: getattr(figures, name) for name in values}
    return {'module': place.module, 'type': found.type, 'call': place.call, 'what': place.what, 'item': place.item,
            **values, 'measure': found.measure, 'limit': found.limit, 'differs': found.differs,
            'problem': found.problem}


def _first_not_finite(result: Comparison, side: str) -> Optional[Difference]:
    name = 'not_finite' if side == 'tested' else 'reference_not_finite'
    found = result.weights + result.passes.get('accumulated', [])
    return next((d for d in found if d.figures is not None and getattr(d.figures, name)), None)


def as_text(result: Comparison, top: int = 10) -> str:
    """The outcome as text.

    Args:
        result: The outcome.
        top: Number of places in each table.
    """
    lines = [*result.network, f'Reference: {result.reference}', f'Tested:    {result.tested}']
    lines += [f'Note: {note}' for note in result.notes]
    for side in ('reference', 'tested'):
        found = _first_not_finite(result, side)
        if found is not None:
            name = 'not_finite' if side == 'tested' else 'reference_not_finite'
            lines += ['', f'NaN or infinity in the {side}: first in {describe_place(found)}, '
                          f'{getattr(found.figures, name)} values']
    if result.weights:
        differing = [d for d in result.weights if d.differs]
        exact = sum(d.problem is None and not d.figures.max for d in result.weights)
        lines += ['', f'Weights: {len(result.weights)} tensors, {exact} equal in every bit, {len(differing)} differ '
                      f'by more than {result.weights[0].limit:.1e}']
        lines += [f'  first      {_sentence(differing[0])}'] if differing else []
        lines += _table([d for d in differing if d.problem is None], top)
        lines += [f'  {_sentence(d)}' for d in differing if d.problem][1:top]
    for name in PASSES if result.passes else ():
        lines += ['', f'{TITLES[name]}:']
        for direction in ('forward', 'backward'):
            places = [d for d in result.passes[name] if d.is_backward == (direction == 'backward')]
            first, count = result.first(name, direction == 'backward'), sum(d.differs for d in places)
            if not places:
                lines.append(f'  {direction:<9}not run')
            elif first is None:
                lines.append(f'  {direction:<9}equal within tolerance at {len(places)} places')
            else:
                lines.append(f'  {direction:<9}{count} of {len(places)} places differ, the first: {_sentence(first)}')
            unknown = sum(d.limit >= 1 for d in places)
            if unknown:
                lines.append(f'  {"":<9}{unknown} of them cannot be judged: rounding alone can change the whole value')
        lines += _table(result.passes[name], top)
    lines += ['', 'Equal within tolerance.' if result.equal else 'They differ.']
    return '\n'.join(printable(line) for line in lines)


def describe_place(found: Difference) -> str:
    """A place in words."""
    place = found.place
    name = (place.module or 'the network') + (f' (call {place.call + 1})' if place.call else '')
    item = f' {place.item}' if not place.item.isdigit() else f' {int(place.item) + 1}' if place.item != '0' else ''
    if place.what == 'weight':
        return f'{place.module + "." if place.module else ""}{place.item}'
    parent = place.module.rpartition('.')[0] or 'the network'
    between = {'input': f' (operations of {parent} before it)',
               'output gradient': f' (operations of {parent} after it, backward)' if place.module else ' (the loss)'}
    what = {'weight gradient': f'gradient of{item}', 'input gradient': f'gradient of input{item}',
            'output gradient': f'gradient of output{item}', 'buffer': f'buffer{item}'}
    return f'{name} ({found.type}), {what.get(place.what, place.what + item)}{between.get(place.what, "")}'


def _sentence(found: Difference) -> str:
    if found.problem is not None:
        return f'{describe_place(found)}: {found.problem}'
    figures = found.figures
    return (f'{describe_place(found)}: max {figures.max:.1e}, mean {figures.mean:.1e}, cosine {figures.cosine:.7f} '
            f'(allowed: {found.measure} {found.limit:.1e})')


def _table(places: List[Difference], top: int) -> List[str]:
    """The places with the largest errors, compared with what is allowed."""
    def size(found: Difference) -> float:
        return found.excess if math.isfinite(found.excess) else math.inf
    worst = [d for d in sorted(places, key=size, reverse=True) if d.error > 0][:top]
    if not worst:
        return []
    names = [describe_place(d).replace(f'({d.type}), ', '') for d in worst]
    width = min(68, max(map(len, names)))
    lines = [f'    {"largest errors":<{width}}  {"max":>8} {"mean":>8} {"cosine":>10} {"allowed":>13}']
    for name, found in zip(names, worst):
        if found.figures is None:
            lines.append(f'    {name:<{width}}  {found.problem}')
            continue
        figures = found.figures
        mark = ' *' if found.differs else ''
        lines.append(f'    {name:<{width}}  {figures.max:>8.1e} {figures.mean:>8.1e} {figures.cosine:>10.7f} '
                     f'{found.measure + " " + format(found.limit, ".1e"):>13}{mark}')
    return lines
