"""A sample of each split through the real transforms, collate function, network and loss, before a run starts

It finds flags that each work and do not work together. Two images of a split are loaded as the run will load them.
Where there is no folder of images, or an image cannot be decoded, a generated picture takes its place: faults of the
data are found elsewhere. The network has shapes only (torch's meta device), which takes a hundredth of the time; what
it refuses is tried with real numbers before it is believed. Random generators are left as they were.
"""
import copy
import io
import os
import random
import warnings
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import psutil
import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model
from timm.optim import create_optimizer_v2, get_optimizer_class, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from seresnet_timm import process
from seresnet_timm.data import loaders
from seresnet_timm.data.classes import split_folder
from seresnet_timm.data.images import is_image, read_file, read_image
from seresnet_timm.data.worker_errors import explain_shared_memory
from seresnet_timm.engine.flags import defaults_of
from seresnet_timm.engine.loss import training_loss
from seresnet_timm.errors import RunError, UsageError, first_line, printable
from seresnet_timm.launch.limits import mib
from seresnet_timm.launch.teacher_checks import check_teacher_takes
from seresnet_timm.models.create import create_from_args
from seresnet_timm.models.keyword_values import wrong_kinds

COUNT = 2  # images of a sample: mixup pairs them
MAX_FOLDERS = 100  # that are searched for images
MAX_PIXELS = 1 << 24  # of an image that is worth decoding for a sample
MAX_VALUES = 1 << 28  # of a network that is tried with real numbers: 1 GiB
# flags that may be the cause, by stage
_INPUT = ('in_chans', 'input_size', 'img_size', 'train_img_sizes', 'input_img_mode', 'mean', 'std', 'no_prefetcher')
FLAGS: Dict[str, Tuple[str, ...]] = {
    'training': ('aa', 'color_jitter', 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'train_crop_mode',
                 'scale', 'ratio', 'reprob', 'remode', 'recount', 'resplit', 'aug_splits', 'mixup', 'cutmix',
                 'cutmix_minmax', 'mixup_mode', 'train_interpolation', 'no_aug', *_INPUT),
    'size': ('img_size', 'train_img_sizes', 'input_size'),
    'validation': ('crop_pct', 'crop_mode', 'crop_border_pixels', 'interpolation', *_INPUT),
    'network': ('img_size', 'train_img_sizes', 'input_size', 'in_chans', 'input_img_mode', 'batch_size', 'gp',
                'model_kwargs', 'aug_splits', 'split_bn'),
    'loss': ('jsd_loss', 'bce_loss', 'mixup', 'cutmix', 'cutmix_minmax', 'smoothing', 'aug_splits', 'num_classes',
             'bce_target_thresh', 'bce_pos_weight'),
    'optimizer': ('opt', 'opt_betas', 'opt_eps', 'opt_kwargs', 'momentum', 'weight_decay', 'layer_decay'),
    'schedule': ('sched', 'epochs', 'decay_epochs', 'decay_milestones', 'warmup_epochs', 'sched_on_updates'),
}


class Sample(torch.utils.data.Dataset):
    """A few images in the place of a split."""

    def __init__(self, images: List[Image.Image]):
        self.images = images
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        image = self.images[index].copy()
        return (image if self.transform is None else self.transform(image)), 0


def check_sample(run: Any) -> Iterator[str]:
    """Put a sample of each split through everything that a run does with images; a sentence on what does not work.

    Args:
        run: The run, as in `checks`.
    """
    args = _flags_for_loaders(run)
    if run.model is None or getattr(args, 'naflex_loader', False) or getattr(args, 'tf_preprocessing', False):
        return
    with _random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        training = (_check_training, _check_optimizer, _check_schedule)
        for check in training if run.settings.verb == 'train' else (_check_evaluation,):
            try:
                check(run, args)
            except UsageError as e:
                yield str(e)


def _flags_for_loaders(run: Any) -> Namespace:
    """The flags of the run, with those of a small loader in this process. A script of another release may lack some."""
    args = Namespace(**{**defaults_of(run.settings.verb), **vars(run.settings.namespace())})
    args.batch_size, args.workers, args.pin_mem, args.dataset = COUNT, 0, False, ''
    args.device, args.distributed, args.rank, args.aug_repeats, args.use_multi_epochs_loader = 'cpu', False, 0, 0, False
    if args.num_classes is None and run.model is not None:
        args.num_classes = run.model.num_classes
    return args


def _check_training(run: Any, args: Namespace) -> None:
    setup = _setup(run, args, 'training')
    sizes = args.train_img_sizes or [None]
    counts = args.train_batch_sizes or [run.args.batch_size] * len(sizes)
    args.train_img_sizes = None  # of which each is tried by itself
    for size, count in zip(sizes, counts):
        config = setup.data_config
        if size is not None:
            config = {**config, 'input_size': (config['input_size'][0], size, size)}
        _check_training_at(run, args, replace(setup, data_config=config), count)
    if args.val_split:
        _load_evaluation(run, args, setup, args.val_split)


def _check_training_at(run: Any, args: Namespace, setup: loaders.LoaderSetup, count: int) -> None:
    """Train on a sample at one size of the images; `count` is the number of images of a batch."""
    _refuse_too_large(run, setup)
    sample, path = _sample(args, setup, args.train_split)
    with _explained(run, 'training', 'The training images cannot be prepared', path):
        loader, mixup_fn = loaders.train_loader(setup, sample)
        images, targets = next(iter(loader))
        if mixup_fn is not None:
            images, targets = mixup_fn(images, targets)
        size = images.shape[1:]
    batch_size = count * (run.settings.world_size if args.sync_bn else 1)  # whose statistics are one
    outputs = _outputs(run, args, (batch_size * max(1, args.aug_splits), *size))
    check_teacher_takes(run, args, (COUNT, *size))
    if outputs is not None:
        with _explained(run, 'loss', 'The loss cannot be computed'):
            training_loss(args)(torch.zeros(images.shape[0], *outputs[1:]), targets)


def _check_evaluation(run: Any, args: Namespace) -> None:
    for size in run.settings.img_sizes or [args.img_size]:
        args.img_size = size
        images = _load_evaluation(run, args, _setup(run, args, 'validation'), args.split)
        _outputs(run, args, (run.args.batch_size, *images.shape[1:]))


def _load_evaluation(run: Any, args: Namespace, setup: loaders.LoaderSetup, split: str) -> torch.Tensor:
    _refuse_too_large(run, setup)
    sample, path = _sample(args, setup, split)
    more = {} if run.settings.verb == 'train' else dict(
        crop_mode=setup.data_config['crop_mode'], crop_border_pixels=args.crop_border_pixels)
    with _explained(run, 'validation', 'The validation images cannot be prepared', path):
        loader = loaders.eval_loader(
            setup, split, COUNT, dataset=sample, crop_pct=setup.data_config['crop_pct'], **more)
        return next(iter(loader))[0]


def _setup(run: Any, args: Namespace, stage: str) -> loaders.LoaderSetup:
    use_test_size = run.settings.verb == 'validate' and not args.use_train_size
    with _explained(run, stage, 'The images cannot be prepared'):
        config = resolve_data_config(vars(args), model=run.model, use_test_size=use_test_size)
    return loaders.LoaderSetup(args, config, torch.device('cpu'))


def _refuse_too_large(run: Any, setup: loaders.LoaderSetup) -> None:
    """Refuse images of which not even a sample fits into memory: the kernel would end this process without a word.

    Raises:
        UsageError: They do not.
    """
    channels, height, width = setup.data_config['input_size']
    # as a picture of Pillow, which has 4 bytes a pixel, and as an array
    least = COUNT * height * width * (4 + channels)
    free = min(psutil.virtual_memory().available, *process.memory_limits())
    if least > free:
        flags = _flags(run, 'size')
        raise UsageError(f'{COUNT} images of {width} x {height} pixels take at least {mib(least)} of memory, of which '
                         f'{mib(free)} are free: check {flags}.')


# --- images -----------------------------------------------------------------------------------------------------------

def _sample(args: Namespace, setup: loaders.LoaderSetup, split: str) -> Tuple[Sample, Optional[str]]:
    """Images of a split, and the path of the first; generated ones where there are none."""
    paths = []
    if args.data_dir and os.path.isdir(args.data_dir):
        paths = _first_images(split_folder(args.data_dir, split) or Path(args.data_dir))
    images = [image for image in (_decoded(path, setup.image_mode) for path in paths) if image is not None]
    path = paths[0] if images else None
    if not images:
        width, height = setup.data_config['input_size'][2] + 32, setup.data_config['input_size'][1] + 16
        images = [Image.effect_noise((width, height), 64).convert(setup.image_mode)]
    return Sample((images * COUNT)[:COUNT]), path


def _first_images(folder: Path) -> List[str]:
    found: List[str] = []
    for i, (parent, folders, files) in enumerate(os.walk(folder, followlinks=True)):
        folders.sort()
        found += [os.path.join(parent, f) for f in sorted(files) if is_image(f)]
        if len(found) >= COUNT or i == MAX_FOLDERS:
            break
    return found[:COUNT]


def _decoded(path: str, mode: str) -> Optional[Image.Image]:
    """An image as timm's dataset decodes it; None if that is not possible, or takes long."""
    try:
        data = read_file(path)
        with Image.open(io.BytesIO(data)) as image:
            return read_image(data, mode) if image.width * image.height <= MAX_PIXELS else None
    except Exception:  # decoders have many errors, which are another check's
        return None


# --- network ----------------------------------------------------------------------------------------------------------

@contextmanager
def _quick_batch_norm() -> Iterator[None]:
    """On the meta device, BatchNorm by its shapes: torch decomposes it there in Python, nine tenths of a forward pass.

    What does not fit goes to torch, which says why. `F.batch_norm` looks at the number of values before its call.
    """
    batch_norm = torch.batch_norm

    def by_shapes(images: torch.Tensor, *args: Any) -> torch.Tensor:
        if images.is_meta and images.is_floating_point() and images.dim() > 1 and all(
                v is None or v.is_meta and v.dtype == images.dtype and v.shape == images.shape[1:2] for v in args[:4]):
            return torch.empty_like(images)
        return batch_norm(images, *args)
    torch.batch_norm = by_shapes
    try:
        yield
    finally:
        torch.batch_norm = batch_norm


def _outputs(run: Any, args: Namespace, shape: Tuple[int, ...]) -> Optional[Tuple[int, ...]]:
    """Shape of the network's output for an input of a shape; None if it has no single output, or none can be had.

    Raises:
        UsageError: The network does not take the input.
    """
    if run.settings.half_weights:
        return None  # of two dtypes, which only its own device multiplies
    is_training = run.settings.verb == 'train'

    def forward(model: torch.nn.Module, device: str) -> Any:
        if is_training and getattr(args, 'split_bn', False):
            with torch.device(device):
                model = convert_splitbn_model(copy.deepcopy(model), max(args.aug_splits, 2))
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        with torch.no_grad(), _quick_batch_norm():
            return model.train(is_training)(torch.zeros(shape, device=device, dtype=dtype))
    try:
        output = forward(run.model, 'meta')
    except NotImplementedError:
        return None  # an operator that needs numbers
    except Exception as e:
        error: Exception = e
    else:
        return tuple(output.shape) if isinstance(output, torch.Tensor) else None
    splits = max(1, args.aug_splits) if is_training else 1
    shape = (min(shape[0], COUNT * splits), *shape[1:])
    if sum(p.numel() for p in run.model.parameters()) <= MAX_VALUES:
        try:
            forward(create_from_args(args, folder=run.settings.model_folder), 'cpu')
            return None
        except Exception as e:
            error = e
    what = f'{run.args.model} does not take images of {" x ".join(map(str, shape[1:]))}'
    if 'match model' in str(error) and shape[2] == shape[3] and 'img_size' not in (args.model_kwargs or {}):
        what += f' without --model-kwargs img_size={shape[2]}'
    with _explained(run, 'network', what):
        raise error


def _check_optimizer(run: Any, args: Namespace) -> None:
    """Create the optimizer for the network without numbers. Those that need their device or a package are left out."""
    if args.opt.lower().startswith(('fused', 'bnb', 'npu')):
        return
    _check_optimizer_arguments(args)
    with _explained(run, 'optimizer', f'The optimizer --opt {args.opt} cannot be made'):
        _optimizer(args, run.model, args.opt_kwargs)
    if args.opt_kwargs and run.settings.device == 'cpu' and _makes_step(args, {}):
        with _explained(run, 'optimizer', f'The optimizer --opt {args.opt} cannot make a step'):
            _makes_step(args, args.opt_kwargs, raises=True)


def _optimizer(args: Namespace, weights: Any, kwargs: Dict[str, Any]) -> torch.optim.Optimizer:
    return create_optimizer_v2(weights, **{**optimizer_kwargs(cfg=args), 'lr': args.lr or 0.1}, **kwargs)


def _makes_step(args: Namespace, kwargs: Dict[str, Any], raises: bool = False) -> bool:
    """Whether the optimizer makes a step with gradients alone, which some do not."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        _optimizer(args, [weight], kwargs).step()
    except Exception:
        if raises:
            raise
        return False
    return True


def _check_optimizer_arguments(args: Namespace) -> None:
    """Refuse arguments of `--opt-kwargs` with flags of their own, or of another kind than it takes.

    Raises:
        UsageError: There are some.
    """
    optimizer = get_optimizer_class(args.opt.lower().rpartition('_')[2], bind_defaults=False)
    wrong = wrong_kinds('--opt-kwargs', args.opt_kwargs, (create_optimizer_v2, optimizer.__init__))
    for name in sorted(args.opt_kwargs.keys() & optimizer_kwargs(cfg=args).keys()):
        flag = name if hasattr(args, name) else f'opt_{name}'
        wrong.append(f'--opt-kwargs {name}={args.opt_kwargs[name]} has a flag of its own: give it as '
                     f'--{flag.replace("_", "-")}')
    if wrong:
        raise UsageError(f'{"; ".join(wrong)}.')


def _check_schedule(run: Any, args: Namespace) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.lr or 0.1)
    with _explained(run, 'schedule', f'The learning rate cannot follow --sched {args.sched}'):
        create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=1)


# --- sentences --------------------------------------------------------------------------------------------------------

@contextmanager
def _explained(run: Any, stage: str, what: str, path: Optional[str] = None) -> Iterator[None]:
    """Turn any error into a sentence with the flags that may be its cause."""
    try:
        yield
    except Exception as e:
        of_machine = explain_shared_memory(e)
        if of_machine:
            raise RunError(of_machine) from e
        tried = f'; tried with {path}' if path else ''
        text = f'{what} ({printable(first_line(e) + tried)}): check {_flags(run, stage)}.'
        raise UsageError(text) from e


def _flags(run: Any, stage: str) -> str:
    """Flags of a stage that have not their default, as they are typed; the first of them if all have."""
    defaults, found = defaults_of(run.settings.verb), []
    for name in FLAGS[stage]:
        value, default = run.flag(name), defaults.get(name)
        if value is not None and value != default and value is not False:
            text = ' '.join(map(str, value)) if isinstance(value, list) else '' if value is True else str(value)
            found.append(f'--{name.replace("_", "-")} {text}'.rstrip())
    return ', '.join(found) or f'--{FLAGS[stage][0].replace("_", "-")}'


@contextmanager
def _random_state_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
