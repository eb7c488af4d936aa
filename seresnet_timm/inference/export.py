"""`seresnet-timm export`: a model as ONNX, for Ascend's ATC and others, or as a `torch.export` program.

The written file is read back, run at several batch sizes and compared with the model. It is kept only if it gives the
model's outputs.
"""
import io
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn

from seresnet_timm.ascend import installation
from seresnet_timm.ascend.fault import SET_ENV
from seresnet_timm.errors import RunError, first_line
from seresnet_timm.files import atomic_path
from seresnet_timm.inference.export_target import check_target
from seresnet_timm.inference.load import LoadedModel
from seresnet_timm.runs.record import installed_versions

INPUT, OUTPUT = 'input', 'logits'
# ATC of CANN 8 reads the operators of ONNX opsets 11 to 15 (its documentation of --framework), older ones those from 11
# on; 13 is in the middle, and torch writes it directly, without a converter between versions
OPSET = 13
CHECKED_BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4


class Normalized(nn.Module):
    """A model that takes pixels: uint8, (N, C, H, W), 0 to 255, normalised inside."""

    def __init__(self, model: nn.Module, mean: Tuple[float, ...], std: Tuple[float, ...]):
        super().__init__()
        self.model = model
        self.register_buffer('mean', 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x.float() - self.mean) / self.std)


def export(
        loaded: LoadedModel,
        out: str,
        format: Optional[str] = None,
        opset: int = OPSET,
        uint8: bool = False,
) -> Path:
    """Write a model as ONNX or as a `torch.export` program, with any batch size.

    The file takes `input`, float32 (N, C, H, W), RGB, normalised as its metadata says (uint8 pixels with `uint8`), and
    gives `logits`, float32 (N, classes). The metadata holds model, preprocessing and class names as JSON: in ONNX as
    the model's properties, in a program as the extra file `metadata.json`.

    Args:
        loaded: The model.
        out: File to write; an existing one is replaced, once the new one is checked.
        format: 'onnx' or 'torch'; by default what the suffix of `out` says (.onnx, .pt2).
        opset: ONNX operator set.
        uint8: Take uint8 pixels and normalise inside.

    Returns:
        The file.

    Raises:
        UsageError: `out` cannot be written, or a package is missing.
        RunError: The model cannot be exported, or the file does not give its outputs; no file is left then.
    """
    format, out = check_target(out, format), Path(out)
    model, metadata = loaded.model, metadata_of(loaded, uint8)
    if uint8:
        model = Normalized(model, loaded.data_config['mean'], loaded.data_config['std'])
    model.eval()
    size = loaded.data_config['input_size']
    write, load = (_write_onnx, _load_onnx) if format == 'onnx' else (_write_program, _load_program)
    with torch.inference_mode(), atomic_path(out) as tmp:
        example = _example(2, size, uint8)  # torch would take a batch of one for a constant
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch warns about its own exporters
                write(model, example, tmp, metadata, opset)
        except OSError:
            raise
        except Exception as e:  # an exporter raises errors of any type
            raise RunError(f'{loaded.info.name} cannot be exported to {format} ({first_line(e)}).') from e
        _check(model, load(tmp), size, uint8, out)
    return out


def metadata_of(loaded: LoadedModel, uint8: bool) -> Dict[str, Any]:
    """Model, preprocessing and classes, for the users of the file."""
    cfg = loaded.data_config
    preprocessing = {
        'input_size': list(cfg['input_size']), 'color': 'RGB' if cfg['input_size'][0] == 3 else 'L',
        'resize': int(np.floor(cfg['input_size'][-1] / cfg['crop_pct'])), 'crop_pct': cfg['crop_pct'],
        'crop_mode': cfg['crop_mode'], 'interpolation': cfg['interpolation'],
        'mean': list(cfg['mean']), 'std': list(cfg['std']),
        'input': 'uint8, 0 to 255' if uint8 else 'float32, (pixel / 255 - mean) / std',
    }
    return {
        'model': loaded.info.name, 'origin': loaded.origin, 'num_classes': loaded.info.num_classes,
        'preprocessing': preprocessing, 'label_names': loaded.info.class_names,
        'label_descriptions': loaded.class_descriptions, 'model_info': loaded.info.to_dict(),
        'versions': installed_versions(),
    }


def _example(batch_size: int, size: Tuple[int, int, int], uint8: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch_size)
    if uint8:
        return torch.randint(0, 256, (batch_size, *size), dtype=torch.uint8, generator=generator)
    return torch.randn((batch_size, *size), generator=generator)


def _write_onnx(model: nn.Module, example: torch.Tensor, path: str, metadata: Dict[str, Any], opset: int) -> None:
    import onnx
    buffer = io.BytesIO()
    # torch's newer exporter writes opset 18 and later only, which ATC does not read
    torch.onnx.export(
        model, (example,), buffer,
        dynamo=False,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: 'batch'}, OUTPUT: {0: 'batch'}},
    )
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(proto, {
        k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _load_onnx(path: str) -> Callable[[torch.Tensor], np.ndarray]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: session.run([OUTPUT], {INPUT: x.numpy()})[0]


def _write_program(model: nn.Module, example: torch.Tensor, path: str, metadata: Dict[str, Any], opset: int) -> None:
    dynamic_shapes = ({0: torch.export.Dim('batch', min=1)},)
    program = torch.export.export(model, (example,), dynamic_shapes=dynamic_shapes)
    archive = io.BytesIO()  # where torch writes to a full disk itself, it ends the process
    torch.export.save(program, archive, extra_files={'metadata.json': json.dumps(metadata)})
    Path(path).write_bytes(archive.getbuffer())


def _load_program(path: str) -> Callable[[torch.Tensor], np.ndarray]:
    module = torch.export.load(path).module()
    return lambda x: module(x).numpy()


def _check(
        model: nn.Module,
        run: Callable[[torch.Tensor], np.ndarray],
        size: Tuple[int, int, int],
        uint8: bool,
        out: Path,
) -> None:
    """Compare a written model with the one it was made from: at most 1e-4 of the largest output away, or 1e-4."""
    for batch_size in CHECKED_BATCH_SIZES:
        x = _example(batch_size, size, uint8)
        expected = model(x).numpy()
        if not np.isfinite(expected).all():
            raise RunError(f'{out} was not written: the model has outputs that are not finite (NaN or infinity).')
        try:
            actual = run(x)
        except Exception as e:  # a runtime raises errors of any type
            raise RunError(f'{out} was not written: the exported model does not run with a batch of {batch_size} '
                           f'({first_line(e)}).') from e
        if actual.shape != expected.shape:
            raise RunError(f'{out} was not written: with a batch of {batch_size} it gives the shape {actual.shape}, '
                           f'the model {expected.shape}.')
        with np.errstate(invalid='ignore'):
            difference, limit = np.abs(actual - expected).max(), TOLERANCE * max(1., np.abs(expected).max())
        if not difference <= limit:  # NaN is a difference too
            raise RunError(f"{out} was not written: with a batch of {batch_size} its outputs are up to "
                           f"{difference:.2g} off the model's ({limit:.2g} allowed).")


def atc_command(out: Path, size: Tuple[int, int, int], soc: Optional[str], batch_sizes: List[int]) -> str:
    """Command line of ATC that compiles an ONNX file for an Ascend chip.

    Args:
        out: The ONNX file.
        size: Channels, height and width of the input.
        soc: Chip, e.g. 'Ascend310P3'; None writes SOC in its place.
        batch_sizes: One, or several that the `.om` file switches between.
    """
    batch = batch_sizes[0] if len(batch_sizes) == 1 else -1
    command = [
        'atc', f'--model={out}', '--framework=5', f'--output={out.with_suffix("")}',
        f'--soc_version={soc or "SOC"}', '--input_format=NCHW',
        f'--input_shape={INPUT}:{batch},{",".join(map(str, size))}',
    ]
    if batch == -1:
        command.append(f'--dynamic_batch_size={",".join(map(str, sorted(batch_sizes)))}')
    return shlex.join(command)


def chip_of(soc: str) -> str:
    """Name of a chip as ATC expects it; npu-smi leaves out `Ascend`."""
    return re.sub(r'(?i)^(ascend)?', 'Ascend', soc, count=1)


def where_is_atc(environ) -> str:
    """Where ATC is on this machine, or which package has it."""
    found = shutil.which('atc', path=environ.get('PATH'))
    if found:
        return f'ATC: {found}'
    home, _ = installation.cann_home(Path('/'), environ)
    if home is not None:
        script = installation.set_env_script(home)
        return f'ATC is in CANN, {home}: `source {script}` first.' if script else f'ATC is in CANN, {home}/bin.'
    return ('ATC comes with the CANN toolkit, which is not on this machine: copy the file to a machine that has '
            f'it. There {SET_ENV}, and run the command. No NPU is needed.')
