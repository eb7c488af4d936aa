"""Training images of several sizes (`--train-img-sizes`): timm's schedule, and the fast input path for it

timm's ScheduledBatchSampler chooses the size of every batch, by seed and epoch alone, the same on all ranks; with each
index of an image comes the number of the size. So worker processes that run already see every change, and a run that
goes on in the middle of an epoch gets the same sizes.
"""
import copy
from typing import Any, Dict, List, Optional, Sequence, Tuple

from timm.data import ScheduledBatchSampler, ScheduledTransformDataset

from seresnet_timm.data.fast_jpeg import FastJpegDataset
from seresnet_timm.data.seeding import Batch

Pair = Tuple[int, int]  # index of an image, number of its size


class SizedJpegDataset(FastJpegDataset):
    """Fast decoding to the size that comes with the index of an image.

    Args:
        dataset: Fast decoding to one size.
        transforms: timm's transform for each size.
    """

    def __init__(self, dataset: FastJpegDataset, transforms: Sequence[Any]):
        self.sized: List[FastJpegDataset] = []
        vars(self).update(vars(dataset), sized=self.sized)
        for transform in transforms:
            sized = copy.copy(dataset)
            sized.transform = transform
            self.sized.append(sized)

    @property
    def releases_gil(self) -> bool:
        return all(dataset.releases_gil for dataset in self.sized)

    def __getitem__(self, pair: Pair) -> Any:
        index, size = pair
        return self.sized[size][index]

    def __getitems__(self, pairs: List[Pair]) -> Batch:
        """The images of a batch, which have one size."""
        sized = self.sized[pairs[0][1]]
        sized.one_tensor = self.one_tensor
        return sized.__getitems__([index for index, _ in pairs])


def with_fast_sizes(loader: Any) -> None:
    """Let a DataLoader of timm's for several sizes decode fast, if its dataset can."""
    dataset = loader.dataset
    if isinstance(dataset, ScheduledTransformDataset) and isinstance(dataset.dataset, FastJpegDataset):
        loader._DataLoader__initialized = False  # torch lets nobody replace it later
        loader.dataset = SizedJpegDataset(dataset.dataset, dataset.transforms)
        loader._DataLoader__initialized = True


def is_scheduled(batch_sampler: Any) -> bool:
    """True for timm's sampler of batches of several sizes, also inside another object."""
    return hasattr(batch_sampler, 'choice_weights_for_epoch')


def sampler_of(loader: Any) -> Any:
    """What draws the images of a loader; a DataLoader whose batches have several sizes has it in its batch sampler."""
    batch_sampler = getattr(loader, 'batch_sampler', None)
    return batch_sampler.sampler if is_scheduled(batch_sampler) else loader.sampler


def loader_arguments(args: Any) -> Dict[str, Any]:
    """Arguments of timm's `create_loader` for `--train-img-sizes`, as timm's train.py gives them."""
    if not args.train_img_sizes:
        return {}
    return dict(
        input_size_choices=args.train_img_sizes,
        batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs,
        batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=args.train_size_schedule_spread,
        batch_schedule_random_mix=args.train_size_random_mix,
        num_batches=args.train_batches_per_epoch,
    )


# --- what the flags mean ----------------------------------------------------------------------------------------------

def batch_sizes(args: Any) -> List[int]:
    """Images of a batch and process, for each size."""
    return list(args.train_batch_sizes or [args.batch_size] * len(args.train_img_sizes))


def most_pixels(args: Any) -> int:
    """Pixels of a batch of a process; of the largest, if images are of several sizes."""
    if getattr(args, 'train_img_sizes', None):
        return max(images * size ** 2 for images, size in zip(batch_sizes(args), args.train_img_sizes))
    _, height, width = args.input_size or (3,) + 2 * (args.img_size or 224,)
    return args.batch_size * height * width


def _schedule(args: Any) -> ScheduledBatchSampler:
    """timm's schedule without images: what it says of an epoch."""
    return ScheduledBatchSampler(
        range(1), batch_sizes(args), args.train_size_probs, num_batches=1, choice_schedule=args.train_size_schedule,
        schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        schedule_spread=args.train_size_schedule_spread, schedule_random_mix=args.train_size_random_mix)


def average_batch_size(args: Any) -> float:
    """Images of a batch and process, on average over the run."""
    return _schedule(args).average_batch_size if getattr(args, 'train_img_sizes', None) else float(args.batch_size)


def images_of_a_step(args: Any, global_batch_size: int) -> float:
    """Images of an optimizer step, of all processes, on average over the run; as many as planned with one size."""
    return global_batch_size * average_batch_size(args) / args.batch_size


def loss_scale(args: Any, images: int, average: float) -> Optional[float]:
    """Factor for the loss of a batch of another number of images than the average; None for none."""
    kind = getattr(args, 'variable_batch_loss_scale', 'none')
    if kind == 'none' or not args.train_img_sizes:
        return None
    return images / average if kind == 'linear' else (images / average) ** 0.5


def describe(args: Any, side: int) -> List[str]:
    """The sizes of a run in words: of which epochs, or with which probabilities; and what they cost.

    Args:
        args: Flags of train.py.
        side: Side of the evaluated images, for a comparison.
    """
    schedule, sizes = _schedule(args), args.train_img_sizes
    last = args.epochs - 1 if args.train_size_schedule == 'progressive' else 0
    weights = [schedule.choice_weights_for_epoch(epoch).tolist() for epoch in range(last + 1)]
    if all(max(w) == 1 for w in weights):
        chosen = [sizes[w.index(1)] for w in weights]
        starts = [i for i in range(len(chosen)) if i == 0 or chosen[i] != chosen[i - 1]]
        text = ', '.join(f'{chosen[i]} from epoch {i}' for i in starts)
    elif last == 0:
        text = _shares(sizes, weights[0]) + ' of the batches'
    else:
        text = f'{_shares(sizes, weights[0])} in epoch 0, to {_shares(sizes, weights[-1])} in epoch {last}'
    images = batch_sizes(args)
    if len(set(images)) > 1:
        text += f'; batches of {", ".join(f"{n} at {size}" for n, size in zip(images, sizes))}'
    counts = [sum(w[i] * images[i] for w in weights) for i in range(len(sizes))]
    share = sum(n * size ** 2 for n, size in zip(counts, sizes)) / (sum(counts) * side ** 2)
    return [f'{text}; evaluated at {side}', f'{100 * share:.0f} % of the pixels of a training at {side}']


def _shares(sizes: Sequence[int], weights: Sequence[float]) -> str:
    return ', '.join(f'{size} in {100 * w:.0f} %' for size, w in zip(sizes, weights) if w > 0)
