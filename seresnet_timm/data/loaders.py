"""Datasets and loaders of the bundled scripts, from their flags, by timm's factories."""
import inspect
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import timm.data
import torch
from PIL import Image
from timm.data import AugMixDataset, FastCollateMixup, Mixup
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from seresnet_timm.data import fast_jpeg, loading
from seresnet_timm.data.classes import name_classes, renumber_torchvision, split_folder
from seresnet_timm.data.image_files import count_unreadable
from seresnet_timm.data.images import UnreadableImage, extend_timm, read_image
from seresnet_timm.data.jpeg import Decoder
from seresnet_timm.data.label_files import read_class_map
from seresnet_timm.data.position import make_restartable, make_resumable, resumable
from seresnet_timm.data.scheduled import loader_arguments, sampler_of
from seresnet_timm.data.seeding import SampleSeeds
from seresnet_timm.data.trivial_augment import TA_WIDE, create_loader
from seresnet_timm.errors import RunError, printable
from seresnet_timm.step.fast import give_back_freed_memory

RENUMBERED = ('hfds', 'tfds')  # timm's readers that know the names of classes, and take other numbers


@dataclass(frozen=True)
class LoaderSetup:
    """What the loaders of a run have in common.

    Attributes:
        args: Flags of the script.
        data_config: Preprocessing, as timm's `resolve_data_config` gives it.
        device: Device that the batches go to.
        dtype: Dtype of the images there; None for float32.
        decoder: Fast decoder, as from `fast_jpeg.choose_decoder`; None loads as timm does.
        class_names: Name of every class, by index, as planned; None for timm's order.
        data_timeout: Seconds to wait for a data folder that is gone, at most.
    """
    args: Any
    data_config: Dict[str, Any]
    device: torch.device
    dtype: Optional[torch.dtype] = None
    decoder: Optional[Decoder] = None
    class_names: Optional[List[str]] = None
    data_timeout: float = 0.

    @property
    def image_mode(self) -> str:
        return self.args.input_img_mode or ('RGB' if self.data_config['input_size'][0] == 3 else 'L')

    def dataset_kwargs(self) -> Dict[str, Any]:
        """Arguments of `create_dataset` for both datasets."""
        args = self.args
        return dict(
            class_names=self.class_names,
            name=args.dataset,
            root=args.data_dir,
            class_map=args.class_map,
            download=args.dataset_download,
            input_img_mode=self.image_mode,
            input_key=args.input_key,
            target_key=args.target_key,
            trust_remote_code=args.dataset_trust_remote_code,
        )

    def common_kwargs(self) -> Dict[str, Any]:
        """Arguments of timm's `create_loader` for both loaders."""
        size = self.data_config['input_size']
        return dict(
            input_size=size,
            mean=loading.for_channels(self.data_config['mean'], size[0]),
            std=loading.for_channels(self.data_config['std'], size[0]),
            pin_memory=self.args.pin_mem,
            img_dtype=self.dtype or torch.float32,
            device=self.device,
            distributed=self.args.distributed,
            use_prefetcher=not self.args.no_prefetcher,
        )


def is_folder_dataset(name: Optional[str]) -> bool:
    """True for a dataset of folders of images, or of a tar: any name without timm's word for another reader."""
    return '/' not in (name or '')


def create_dataset(name: str, root: str, split: str, class_map: str, class_names: Optional[List[str]], **kwargs) -> Any:
    """timm's dataset, with its classes numbered as planned, and without what other programs left in its folder.

    Args:
        name: As `--dataset` names it.
        root: Folder of the dataset.
        split: Name of the split.
        class_map: File that numbers the classes; it is read here, so that a byte order mark is not a part of a name.
        class_names: Name of every class, by index; not used with a class map. Readers of other packages that have no
            names ignore it.
        kwargs: Further arguments of timm's `create_dataset`.
    """
    extend_timm()
    is_folder = is_folder_dataset(name)
    indices = None
    if class_map:
        folder = (split_folder(root, split) or root) if is_folder else root
        found = os.listdir(folder) if is_folder and os.path.isdir(folder) else ()
        indices = read_class_map(class_map, str(folder or ''), found)
    elif class_names and name.partition('/')[0].lower() in RENUMBERED:
        indices = {name: i for i, name in enumerate(class_names)}
    dataset = timm.data.create_dataset(name, root=root, split=split, class_map=indices, **kwargs)
    if is_folder:
        name_classes(dataset, class_names, indices)
    elif name.lower().startswith('torch/'):
        if class_names:
            renumber_torchvision(dataset, class_names)
        if hasattr(dataset, 'loader'):  # of torchvision's folders, which clips 16 bits and names no file
            dataset.loader = _load_for_torchvision
    return dataset


def _load_for_torchvision(path: str) -> Image.Image:
    try:
        return read_image(path)
    except UnreadableImage as e:
        raise RunError(f'{printable(path)} cannot be read ({e}): repair or remove it. Without --dataset torch/... '
                       'folders are read with such images counted.') from e


def train_loader(setup: LoaderSetup, dataset: Optional[Any] = None) -> Tuple[Any, Optional[Callable]]:
    """Training loader, and the mixup function to apply to its batches where the loader does not do it itself.

    Args:
        setup: What the loaders of the run have in common.
        dataset: Dataset to load, for that of the flags.
    """
    args = setup.args
    dataset = dataset or create_dataset(
        split=args.train_split,
        is_training=True,
        batch_size=args.batch_size,
        seed=args.seed,
        repeats=args.epoch_repeats,
        num_samples=args.train_num_samples,
        **setup.dataset_kwargs(),
    )
    if args.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
    dataset = fast_jpeg.with_fast_decoding(
        count_unreadable(dataset, True, setup.data_timeout), setup.decoder, sample_seeds(args))

    mixup = mixup_of(args)
    mixup_fn, collate_fn = (mixup, None) if args.no_prefetcher else (None, mixup)
    loader = create_loader(
        dataset,
        batch_size=args.batch_size,
        is_training=True,
        num_workers=args.workers,
        collate_fn=collate_fn,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        worker_seeding=args.worker_seeding,
        **augmentation_kwargs(setup),
        **setup.common_kwargs(),
    )
    loader = loading.seed_and_speed_up(seed_sampler(loader, args.seed), args.seed)
    return make_resumable(loader, setup.device), mixup_fn


def mixup_of(args) -> Optional[Mixup]:
    """timm's mixup and cutmix, in the collate function if there is a prefetcher; None if they are off."""
    if not mixup_active(args):
        return None
    return (Mixup if args.no_prefetcher else FastCollateMixup)(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
    )


def augmentation_kwargs(setup: LoaderSetup) -> Dict[str, Any]:
    """Arguments of timm's `create_loader` that say how training images are augmented."""
    args = setup.args
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = setup.data_config['interpolation']
    return dict(
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_split=args.resplit,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        num_aug_splits=args.aug_splits,
        interpolation=interpolation,
        **loader_arguments(args),
    )


def eval_loader(
        setup: LoaderSetup,
        split: str,
        batch_size: int,
        num_samples: Optional[int] = None,
        dataset: Optional[Any] = None,
        **loader_kwargs,
) -> Any:
    """Evaluation loader: every image of the split once, padded by the sampler where ranks would be uneven.

    Args:
        setup: What the loaders of the run have in common.
        split: Name of the split.
        batch_size: Images of a batch.
        num_samples: Number of images of a dataset that does not tell it.
        dataset: Dataset to load, for that of the flags.
        loader_kwargs: Further arguments of timm's `create_loader`.
    """
    args = setup.args
    dataset = dataset or create_dataset(
        split=split, is_training=False, batch_size=batch_size, num_samples=num_samples, **setup.dataset_kwargs())
    workers = args.workers
    if args.distributed and ('tfds' in args.dataset or 'wds' in args.dataset):
        workers = min(2, workers)  # each worker of each rank pads its own shard: fewer workers, less padding
    loader = create_loader(
        fast_jpeg.with_fast_decoding(count_unreadable(dataset, False, setup.data_timeout), setup.decoder),
        batch_size=batch_size,
        is_training=False,
        interpolation=setup.data_config['interpolation'],
        num_workers=workers,
        **setup.common_kwargs(),
        **loader_kwargs,
    )
    return make_restartable(loading.seed_and_speed_up(loader, args.seed), setup.device)


def sample_seeds(args) -> SampleSeeds:
    """Seeds of the training samples. Repeated augmentation shows an image to several ranks, each in its own way."""
    return SampleSeeds(args.seed, stream=args.rank if args.aug_repeats else 0)


def seed_sampler(loader, seed: int):
    """Let the shuffle of several processes depend on the seed; timm leaves it at 0, whatever --seed says."""
    sampler = sampler_of(loader)
    if isinstance(sampler, DistributedSampler):
        sampler.seed = seed
    return loader


class _Started:
    """A DataLoader whose worker processes run already; its first pass is the one that they are working on."""

    def __init__(self, loader: DataLoader, keep_rng: bool, draws: bool):
        self._loader = loader
        self._draw_later = keep_rng and draws and loader.generator is None
        state = torch.get_rng_state()
        self._first = iter(loader)
        if keep_rng:
            torch.set_rng_state(state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self):
        first, self._first = self._first, None
        if first is None:
            return iter(self._loader)
        if self._draw_later:
            torch.empty((), dtype=torch.int64).random_()  # the workers' seed, which a DataLoader draws when it starts
        return first


def start_workers(loader, keep_rng: bool = False, draws: bool = True):
    """Start a loader's worker processes now, not at its first pass.

    Workers are forked, and a fork while a thread of torch.distributed's takes or drops Python's lock can deadlock the
    new process for good (seen with CPython 3.11 and gloo, once in a hundred runs): start them before the first
    collective.

    Args:
        loader: As from `train_loader` or `eval_loader`; its sampler must know its epoch.
        keep_rng: Leave the random state as if the workers started at the first pass.
        draws: False if they started in the run that this one continues: with `keep_rng` nothing is drawn for them.

    Returns:
        The loader to use from now on.
    """
    holder = resumable(loader) or (loader if isinstance(loader, PrefetchLoader) else None)
    inner = loader if holder is None else holder.loader
    if type(inner) is not DataLoader or not inner.persistent_workers:
        return loader
    give_back_freed_memory()
    started = _Started(inner, keep_rng, draws)
    if holder is None:
        return started
    holder.loader = started
    return loader


def loads_in_threads(setup: LoaderSetup, is_training: bool) -> bool:
    """Whether the workers of a loader are threads, not processes, as `loading.seed_and_speed_up` will decide."""
    args, decoder = setup.args, setup.decoder
    if decoder is None or not decoder.releases_gil or args.no_prefetcher:
        return False
    if is_training and (mixup_active(args) or args.aug_splits > 1 or args.aa == TA_WIDE):
        return False
    given = {**setup.common_kwargs(), 'interpolation': setup.data_config['interpolation'],
             **(augmentation_kwargs(setup) if is_training else {})}
    known = inspect.signature(timm.data.create_transform).parameters
    transform = timm.data.create_transform(is_training=is_training, **{k: v for k, v in given.items() if k in known})
    return fast_jpeg.Pipeline(transform).runs_in_threads


def mixup_active(args) -> bool:
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
