"""`seresnet-timm compare`: from its flags to the two sides and the batch."""
import argparse
import ctypes
import sys
from pathlib import Path
from typing import Tuple

import torch

from seresnet_timm import device as devices
from seresnet_timm.errors import UsageError, note_replaced, printable, shell_line
from seresnet_timm.inference.compare import Arithmetic, Comparison, Side, compare
from seresnet_timm.inference.compare_batch import Batch, image_batch, synthetic_batch
from seresnet_timm.inference.compare_dump import compare_with_dump, dump, read_dump
from seresnet_timm.inference.compare_report import as_object, as_text
from seresnet_timm.inference.load import LoadedModel, load_model, untrained_model
from seresnet_timm.inference.predict import ImageFiles, find_images
from seresnet_timm.inference.trace import Settings

M_MMAP_THRESHOLD = -3  # of malloc.h
SMALL_IMAGE = 128  # below it the last layers see so few pixels that a BatchNorm needs more images


def run(args: argparse.Namespace) -> bool:
    """Compare, and print the outcome.

    Returns:
        Whether the two sides are equal within tolerance.

    Raises:
        UsageError: Flags contradict each other, or a file cannot be read.
        RunError: A module fails, or memory or disk is full.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)  # glibc would keep most of what is freed, up to twice what is in use
    arithmetic = Arithmetic(args.precision, args.amp_dtype, args.hf32, args.loss_scale)
    device, reason = _set_up(args.device, args)
    dumped = read_dump(args.against) if args.against else None
    sources = args.checkpoints + ([args.checkpoint] if args.checkpoint else [])
    models = [_load(source, args) for source in sources]
    if not models and args.model_name:
        models = [untrained_model(args.model_name, args.num_classes, args.img_size, args.seed, args.model_kwargs)]
    print(f'Device: {device} ({reason})', file=sys.stderr)
    if dumped is not None:
        tested = Side(models[0].model if models else dumped.model, device, arithmetic)
        result, batch = compare_with_dump(dumped, tested, args.rtol), dumped.batch
        result.network = [f'Network: {dumped.origin}', *([f'against: {_describe(models[0])}'] if models else [])]
        settings = dumped.reference.settings
    else:
        batch = _batch(args, models[0])
        settings = Settings(not args.eval, not args.forward_only, args.lean_se)
        network = [f'{"Against" if i else "Network"}: {_describe(m)}' for i, m in enumerate(models)]
        if args.dump:
            note_replaced(args.dump, '--dump')
            dump(Side(models[0].model, device, arithmetic, _describe(models[0])), batch, settings, Path(args.dump))
            print(f'{printable(args.dump)}: {_describe(models[0])}\n{_describe_batch(batch, settings)}\n'
                  f'Compare with it: seresnet-timm compare --against {shell_line([args.dump])} --device DEVICE')
            return True
        reference = Side(models[0].model, _set_up(args.reference_device, args)[0])
        result = compare(reference, Side(models[-1].model, device, arithmetic), batch, settings, args.rtol)
        result.network = network
    _print(args, result, batch, settings)
    return result.equal


def _set_up(requested: str, args: argparse.Namespace) -> Tuple[torch.device, str]:
    """A device, set up for the comparison, and why this one."""
    device, reason = devices.select_device(requested.replace('gpu', 'cuda'))
    if device.startswith('npu'):
        from seresnet_timm.ascend.setup import set_hf32, set_up
        set_up(device, (args.precision, args.amp_dtype if args.precision == 'amp' else None))
        set_hf32(args.hf32)
    elif device.startswith('cuda'):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.hf32
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    elif args.hf32 and requested == args.device:
        raise UsageError(f'--hf32 is for npu and cuda, the device here is {device} ({reason}).')
    return torch.device(device), reason


def _load(source: str, args: argparse.Namespace) -> LoadedModel:
    return load_model(source, args.model_name, args.num_classes, args.img_size, use_ema=args.use_ema)


def _batch(args: argparse.Namespace, loaded: LoadedModel) -> Batch:
    size = tuple(loaded.info.input_size)
    count = args.batch_size or (2 if min(size[1:]) >= SMALL_IMAGE else 8)
    classes = loaded.info.num_classes or 1
    if args.data_dir is None:
        return synthetic_batch(size, count, args.seed, classes)
    images = ImageFiles(find_images([args.data_dir]), loaded.data_config, loaded.image_mode)
    return image_batch(images, count, args.seed, classes)


def _describe(loaded: LoadedModel) -> str:
    millions = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    return printable(f'{loaded.info.name} ({millions:.2f} M parameters), {loaded.origin}')


def _describe_batch(batch: Batch, settings: Settings) -> str:
    return (f'Batch: {" x ".join(map(str, batch.images.shape))}, {batch.origin}; '
            f'{"training" if settings.training else "evaluation"} mode'
            + ('' if settings.backward else ', forward only') + (', lean SE' if settings.lean_se else ''))


def _print(args: argparse.Namespace, result: Comparison, batch: Batch, settings: Settings) -> None:
    result.network.append(_describe_batch(batch, settings))
    bad = result.first('accumulated', backward=True)
    if bad is not None and bad.figures is not None and bad.figures.not_finite and 'loss scale' in result.tested:
        result.notes.append('Gradients in float16 are not finite: try a smaller --loss-scale.')
    elif 'loss scale' in result.tested and result.first('local', True) and not result.first('local', False):
        result.notes.append('Only gradients differ: small ones may be zero in float16, try a larger --loss-scale.')
    is_one_model = len(args.checkpoints) + bool(args.checkpoint) < 2
    if result.reference == result.tested and is_one_model and not args.against and not args.lean_se:
        result.notes.append('Both sides are the same network, device and precision, so that they can only be equal: '
                            'name another --device, --precision or a second MODEL.')
    print(as_object(result) if args.json else as_text(result, args.top))
