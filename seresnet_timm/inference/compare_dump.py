"""A file of `compare --dump`: the pass of one side, with network and batch, to be compared on another machine"""
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch.nn as nn

from seresnet_timm.checkpoints.fit import misfits
from seresnet_timm.errors import UsageError, first_names, printable
from seresnet_timm.inference.compare import (
    PASSES,
    ROUNDING,
    Comparison,
    Reference,
    Side,
    check,
    compare_sides,
    notes_on,
    record,
)
from seresnet_timm.inference.compare_batch import Batch
from seresnet_timm.inference.trace import Settings
from seresnet_timm.inference.trace_file import TraceReader, TraceWriter
from seresnet_timm.models.create import create_from_info
from seresnet_timm.models.info import ModelInfo


def dump(side: Side, batch: Batch, settings: Settings, path: Path) -> Reference:
    """Store the pass of a side, with network and batch, for `compare_with_dump` on another machine."""
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as folder, TraceWriter() as writer:
        reference = record(side, batch, settings, writer, Path(folder) / 'trace', list(ROUNDING))
        for name, x in side.model.state_dict().items():
            writer.add(f'state {name}', x)
        writer.add('images', batch.images)
        writer.add('targets', batch.targets)
        writer.write(
            path, side=side.describe(), origin=side.origin, batch=batch.origin, training=settings.training,
            backward=settings.backward, lean_se=settings.lean_se, idle=reference.idle, noise=reference.noise,
            model_info=ModelInfo.of_model(side.model).to_dict())
    return reference


@dataclass(frozen=True)
class Dump:
    """What a file of `dump` holds."""
    reference: Reference
    model: nn.Module
    batch: Batch
    side: str
    origin: str


def read_dump(path: str) -> Dump:
    """Read a file of `dump`, and make its network.

    Raises:
        UsageError: It is no such file, or damaged.
    """
    reader = TraceReader(path)
    values = reader.metadata
    try:
        flags = {k: values[k] for k in ('training', 'backward', 'lean_se')}
        texts = {k: values[k] for k in ('side', 'origin', 'batch')}
        noise = {kind: {name: {place: (float('inf' if top is None else top), float('inf' if mean is None else mean))
                               for place, (top, mean) in values['noise'][kind][name].items()}
                        for name in PASSES} for kind in ROUNDING}
        idle = [str(name) for name in values['idle']]
        images, targets = reader.get('images'), reader.get('targets')
        if not all(isinstance(v, bool) for v in flags.values()) or not all(isinstance(v, str) for v in texts.values()):
            raise TypeError('values of another kind')
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UsageError(f'{printable(path)} is damaged ({type(e).__name__}: {printable(e)}): dump it again.')
    info = ModelInfo.from_dict(values.get('model_info'), path)
    model = create_from_info(info, path, exportable=True)
    weights = {name[6:]: reader.get(name) for name in reader.names('state ')}
    misfit = misfits(weights, model)
    if any(misfit.values()):
        names = [name for found in misfit.values() for name in found]
        raise UsageError(f'{printable(path)} holds weights that do not fit {info.name} as this version of timm makes '
                         f'it: {printable(first_names(names, 4))}.')
    model.load_state_dict(weights)
    reference = Reference(reader, Settings(**flags), idle, noise)
    return Dump(
        reference, model.float(), Batch(images, targets, texts['batch']), texts['side'], texts['origin'])


def compare_with_dump(dumped: Dump, tested: Side, rtol: Optional[float] = None) -> Comparison:
    """Compare a side with what `dump` stored."""
    result = compare_sides(dumped.side, dumped.model, tested, rtol)
    if not result.has_equal_layers:
        return result
    result.passes = check(tested, dumped.batch, dumped.reference, rtol)
    result.notes += notes_on(dumped.reference)
    return result
