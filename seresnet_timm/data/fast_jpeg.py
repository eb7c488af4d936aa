"""Fast JPEG input for timm's loaders: the crop is drawn from the size in the header, then only its region is decoded

`FastJpegDataset` replaces timm's ImageDataset. timm's `create_loader` gives it timm's transform, which `Pipeline`
splits: crop, resize and flips become a `Crop` for the decoder; the other steps (auto-augment, colour jitter,
normalisation) are timm's and get the same input as before. Pillow decodes if the transform does not begin with a known
crop, or if the file is not an ordinary JPEG.
"""
import copy
import math
import random
from typing import Any, Callable, List, Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image
from timm.data import AugMixDataset
from timm.data.dataset import ImageDataset
from timm.data.transforms import (
    CenterCropOrPad,
    MaybePILToTensor,
    MaybeToTensor,
    RandomCropOrPad,
    RandomResizedCropAndInterpolation,
    ResizeKeepRatio,
    TrimBorder,
    interp_mode_to_str,
)
from torch.utils.data import get_worker_info
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from seresnet_timm.data import augment, jpeg
from seresnet_timm.data.image_files import ImageFiles, count_unreadable
from seresnet_timm.data.images import read_image
from seresnet_timm.data.jpeg import Crop, Decoder
from seresnet_timm.data.seeding import (
    Batch,
    DatasetWrapper,
    SampleSeeds,
    SeededDataset,
    global_generators,
    global_state,
    repeats,
    seed_global_generators,
    set_global_state,
)
from seresnet_timm.errors import UsageError


def decoder_for(mode: str, dataset: str = '', image_mode: str = 'RGB', multi_epochs: bool = False) -> Tuple[
        Optional[Decoder], str]:
    """Decoder of a run, None for timm's own loading, and the reason.

    Args:
        mode: `--fast-jpeg`: auto, on or off.
        dataset: timm's name of the dataset (`--dataset`).
        image_mode: Pillow's mode that images are converted to.
        multi_epochs: `--use-multi-epochs-loader`.

    Raises:
        UsageError: It was asked for and is not possible.
    """
    if mode == 'off':
        return None, '--fast-jpeg off'
    found = jpeg.decoders()
    kind = dataset.split('/')[0] if '/' in dataset else ''
    if not found:
        why = 'neither the C decoder nor simplejpeg is installed: pip install simplejpeg'
    elif kind in ('torch', 'tfds', 'wds', 'hfids'):
        why = f'--dataset {dataset} decodes images itself'
    elif image_mode != 'RGB':
        why = f'images are read as {image_mode}'
    elif multi_epochs:
        why = '--use-multi-epochs-loader reads images before their epoch begins'
    else:
        return found[0], jpeg.describe(found[0])
    if mode == 'on':
        raise UsageError(f'--fast-jpeg on is not possible: {why}.')
    return None, why


def choose_decoder(args, mode: str) -> Tuple[Optional[Decoder], str]:
    """`decoder_for` for the flags of a script; the reason as a line of the plan."""
    channels = (getattr(args, 'input_size', None) or [getattr(args, 'in_chans', None) or 3])[0]
    decoder, why = decoder_for(
        mode, args.dataset or '', getattr(args, 'input_img_mode', None) or ('RGB' if channels == 3 else 'L'),
        getattr(args, 'use_multi_epochs_loader', False))
    if decoder is None:
        return None, f"timm's own loading ({why})"
    left = augment.left_to_pillow(args)
    return decoder, f'fast JPEG decoding by {why}' + (f'; Pillow does {left}' if left else '')


# --- timm's transform -------------------------------------------------------------------------------------------------

Step = Callable[[Any], Any]
Drawn = Tuple[Crop, List[Step]]
NOT_RANDOM = (MaybePILToTensor, MaybeToTensor, transforms.ToTensor, transforms.Normalize)


class Pipeline:
    """timm's transform, split into the part that a decoder does and the remaining steps.

    Attributes:
        is_known: It begins with a crop that a decoder can do.
        draws_globally: Something in it draws from the global generators.
        pixel_steps: Steps after crop and flips that take Pixels in place of an image.
        accepts_tensor: The first step after those takes a uint8 tensor (3, H, W) or an image.
        size: (H, W) of all results, if they are uint8 tensors.
        runs_in_threads: Threads of one process can do it in parallel, with a decoder that lets them.
    """

    def __init__(self, transform: Optional[Step]):
        self.transform = transform
        steps = list(transform.transforms) if isinstance(transform, transforms.Compose) else []
        steps = [s for s in steps if not _does_nothing(s)]
        self._border = steps.pop(0).border_size if steps and isinstance(steps[0], TrimBorder) else 0
        self._crop: Optional[Step] = None
        self._resize: Optional[Step] = None
        self._flips: List[Tuple[bool, float]] = []
        if steps and isinstance(steps[0], RandomResizedCropAndInterpolation):
            self._crop = steps.pop(0)
        elif len(steps) > 1 and isinstance(steps[0], (transforms.Resize, ResizeKeepRatio)) and isinstance(
                steps[1], (transforms.CenterCrop, CenterCropOrPad, RandomCropOrPad)):
            self._resize, self._crop = steps[0], steps[1]
            steps = steps[2:]
        self.is_known = self._crop is not None and self._is_interpolated() and (
            getattr(self._resize, 'max_size', None) is None)
        self._after_crop = list(steps)
        while steps and isinstance(steps[0], (transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip)):
            flip = steps.pop(0)
            self._flips.append((isinstance(flip, transforms.RandomHorizontalFlip), flip.p))
        self._rest = steps
        self.pixel_steps, steps = _on_pixels(steps)
        self.accepts_tensor = bool(steps) and isinstance(steps[0], MaybePILToTensor)
        is_random = bool(self.pixel_steps) or not all(isinstance(step, NOT_RANDOM) for step in steps)
        self.size = tuple(self._crop.size) if self.is_known and self.accepts_tensor and len(steps) == 1 else None
        self.draws_globally = transform is not None and not (
            self.is_known and not is_random and not isinstance(self._resize, ResizeKeepRatio))

        self.runs_in_threads = self.size is not None and not self.draws_globally

    def _is_interpolated(self) -> bool:
        modes = (self._resize or self._crop).interpolation
        modes = modes if isinstance(modes, (tuple, list)) else (modes,)
        return all(m in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC) for m in modes)

    def draw(self, width: int, height: int, generator: Optional[random.Random]) -> Optional[Drawn]:
        """Draw the crop of an image of this size.

        Args:
            width: In pixels.
            height: In pixels.
            generator: Draws crop and flips; None for Python's global one.

        Returns:
            The crop, and the steps that follow it; None if Pillow's image is to take the whole transform.
        """
        generator = generator or random
        left = top = 0
        if self._border:
            left, top = min(self._border, width), min(self._border, height)
            width, height = max(0, width - 2 * self._border), max(0, height - 2 * self._border)
            if not width or not height:
                return None
        if self._resize is None:
            y, x, h, w = random_resized_crop(width, height, self._crop.scale, self._crop.ratio, generator)
            out_h, out_w = self._crop.size
            box, size, window = (left + x, top + y, w, h), (out_w, out_h), (0, 0, out_w, out_h)
            interpolation = _interpolation(self._crop, generator)
        else:
            box = (left, top, width, height)
            size = self._resized(width, height)
            interpolation = _interpolation(self._resize, generator)
            if min(size) < 1:
                return None
            window = self._window(*size)
            if window is None:  # smaller than the crop, which pads then
                return Crop(box, size, (0, 0, *size), interpolation), [self._crop, *self._after_crop]
        hflip = vflip = False
        for is_horizontal, p in self._flips:
            if generator.random() < p:
                hflip, vflip = hflip ^ is_horizontal, vflip ^ (not is_horizontal)
        return Crop(box, size, window, interpolation, hflip, vflip), self._rest

    def _resized(self, width: int, height: int) -> Tuple[int, int]:
        step = self._resize
        if isinstance(step, ResizeKeepRatio):
            h, w = step.get_params(
                image_of_size(width, height), step.size, step.longest, step.random_scale_prob, step.random_scale_range,
                step.random_scale_area, step.random_aspect_prob, step.random_aspect_range)
            return w, h
        if not isinstance(step.size, int) and len(step.size) == 2:
            return step.size[1], step.size[0]
        short = step.size if isinstance(step.size, int) else step.size[0]
        long = int(short * max(width, height) / min(width, height))  # torchvision's rounding
        return (short, long) if width <= height else (long, short)

    def _window(self, width: int, height: int) -> Optional[Tuple[int, int, int, int]]:
        h, w = self._crop.size
        if w > width or h > height:
            return None
        if isinstance(self._crop, RandomCropOrPad):
            y, x = self._crop.get_params(image_of_size(width, height), self._crop.size)
        else:
            y, x = int(round((height - h) / 2.)), int(round((width - w) / 2.))  # torchvision's and timm's rounding
        return x, y, w, h


def image_of_size(width: int, height: int) -> torch.Tensor:
    """An object of an image's size, for timm functions that use nothing else of the image."""
    return torch.empty(()).expand(height, width)


def _on_pixels(steps: List[Step]) -> Tuple[List[Step], List[Step]]:
    """The first steps, as far as they can take Pixels, and the remaining ones."""
    found = []
    for step in steps:
        own = augment.for_pixels(step)
        if own is None:
            break
        found.append(own)
    return found, steps[len(found):]


def _does_nothing(step: Step) -> bool:
    """A step without effect: timm's `--color-jitter 0` creates a jitter without any factor."""
    return isinstance(step, transforms.ColorJitter) and all(
        f is None for f in (step.brightness, step.contrast, step.saturation, step.hue))


def _interpolation(step: Step, generator) -> str:
    modes = step.interpolation
    return interp_mode_to_str(generator.choice(modes) if isinstance(modes, (tuple, list)) else modes)


def random_resized_crop(
        width: int,
        height: int,
        scale: Tuple[float, float],
        ratio: Tuple[float, float],
        generator,
) -> Tuple[int, int, int, int]:
    """timm's RandomResizedCropAndInterpolation.get_params with a given generator.

    Returns:
        top, left, height, width; equal to timm's result from Python's generator in the same state.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = generator.uniform(*scale) * (width * height)
        aspect = math.exp(generator.uniform(*log_ratio))
        w, h = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        if w <= width and h <= height:
            top = generator.randint(0, height - h)
            return top, generator.randint(0, width - w), h, w
    w, h = width, height
    if width / height < min(ratio):
        h = int(round(width / min(ratio)))
    elif width / height > max(ratio):
        w = int(round(height * max(ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


# --- datasets ---------------------------------------------------------------------------------------------------------

class FastJpegDataset(DatasetWrapper):
    """timm's ImageDataset with fast decoding; its `transform` is timm's, set by `create_loader`.

    Args:
        dataset: timm's dataset, as from `count_unreadable`.
        decoder: Result of `decoder_for`.
        seeds: Seeds of the samples; None if nothing is random, or if a wrapper seeds the global generators.

    Attributes:
        one_tensor: The images of a batch may be put into one tensor, `Batch.images`, for `loading.collate`.
    """

    def __init__(self, dataset: ImageFiles, decoder: Decoder, seeds: Optional[SampleSeeds] = None):
        super().__init__(copy.copy(dataset), seeds)
        self.dataset.transform = None
        self.decoder = decoder
        self.pipeline = Pipeline(dataset.transform)
        self.one_tensor = False

    @property
    def transform(self):
        return self.pipeline.transform

    @transform.setter
    def transform(self, transform) -> None:
        self.pipeline = Pipeline(transform)

    @property
    def releases_gil(self) -> bool:
        """Threads of this process can load samples in parallel."""
        return self.decoder.releases_gil and self.pipeline.runs_in_threads

    def __getitem__(self, index: int):
        return self.sample(index)

    def __getitems__(self, indices: List[int]) -> Batch:
        images, places = None, [None] * len(indices)
        if self.one_tensor and self.pipeline.size is not None:
            images = batch_memory(len(indices), *self.pipeline.size)
            places = list(images.numpy())
        samples = [self.sample(i, r, place) for i, r, place in zip(indices, repeats(indices), places)]
        return Batch(samples, self.batch_seed(indices), images)

    def sample(self, index: int, repeat: int = 0, out: Optional[np.ndarray] = None) -> Tuple:
        """Image and target, as timm's dataset gives them.

        Args:
            index: Index of the image.
            repeat: Number of its earlier occurrences in the batch.
            out: Array (3, H, W) to write the image to and to return, if `pipeline.size` is known.
        """
        if self.seeds is None:
            state = global_state() if self.dataset.is_training else None
            return self._load(index, None, out, lambda: state and set_global_state(state))
        seed = self.seeds.of_sample(index, repeat)
        if not self.pipeline.draws_globally:
            generator = random.Random(seed)
            return self._load(index, generator, out, lambda: generator.seed(seed))
        with global_generators(seed):
            return self._load(index, None, out, lambda: seed_global_generators(seed))

    def _load(
            self,
            index: int,
            generator: Optional[random.Random],
            out: Optional[np.ndarray],
            draw_again: Callable[[], Any],
    ) -> Tuple:
        is_first = True

        def make(source: Union[bytes, Image.Image]) -> Any:
            nonlocal is_first
            if not is_first:  # what takes the place of an image draws what that one would have drawn
                draw_again()
            is_first = False
            size = self.decoder.size(source) if self.pipeline.is_known and isinstance(source, bytes) else None
            image = self._open(source) if size is None else None
            drawn = self.pipeline.draw(*(size or image.size), generator) if self.pipeline.is_known else None
            return self._transform(source, image, drawn, out)
        return self.dataset.load(index, make)

    def _transform(
            self,
            source: Union[bytes, Image.Image],
            image: Optional[Image.Image],
            drawn: Optional[Drawn],
            out: Optional[np.ndarray],
    ) -> Any:
        """Apply the pipeline to a file or picture; `image` is the decoded file, if Pillow has decoded it already."""
        if drawn is None:
            result, rest = image or self._open(source), [self.pipeline.transform] if self.pipeline.transform else []
        else:
            crop, rest = drawn
            is_whole = rest is self.pipeline._rest
            if is_whole and self.pipeline.pixel_steps:
                return self._augment(source, image, crop, out)
            as_tensor = self.pipeline.accepts_tensor and is_whole
            array = self.decoder.decode(source, crop, as_tensor, out if as_tensor else None) if image is None else None
            if array is not None and as_tensor and out is not None:
                return out
            if array is None:
                result = jpeg.crop_and_resize(image or self._open(source), crop)
            else:
                result = torch.from_numpy(array) if as_tensor else Image.fromarray(array)
        for step in rest:
            result = step(result)
        if out is None:
            return result
        out[...] = result.numpy()
        return out

    def _augment(
            self,
            source: Union[bytes, Image.Image],
            image: Optional[Image.Image],
            crop: Crop,
            out: Optional[np.ndarray],
    ) -> Any:
        """Crop, apply the steps that take Pixels, then the remaining ones."""
        array = self.decoder.decode(source, crop, False, None) if image is None else None
        if array is None:
            array = np.asarray(jpeg.crop_and_resize(image or self._open(source), crop))
        pixels = augment.Pixels(array)
        for step in self.pipeline.pixel_steps:
            pixels = step(pixels)
        if out is not None:
            pixels.to_tensor(out)
            return out
        result = pixels.to_tensor() if self.pipeline.accepts_tensor else pixels.to_image()
        for step in self.pipeline._rest[len(self.pipeline.pixel_steps):]:
            result = step(result)
        return result

    def _open(self, source: Union[bytes, Image.Image]) -> Image.Image:
        return read_image(source, self.dataset.input_img_mode) if isinstance(source, bytes) else source


def batch_memory(count: int, height: int, width: int) -> torch.Tensor:
    """Memory for a batch of uint8 images (N, 3, H, W); shared memory in a worker process, which saves a copy."""
    if get_worker_info() is None:
        return torch.empty((count, 3, height, width), dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count * 3 * height * width)  # as torch's default_collate does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count, 3, height, width)


def with_fast_decoding(dataset: Any, decoder: Optional[Decoder], seeds: Optional[SampleSeeds] = None) -> Any:
    """Add fast decoding to a timm dataset, before it goes to `create_loader`.

    Args:
        dataset: Result of timm's `create_dataset` or of `count_unreadable`, or an AugMixDataset of it.
        decoder: Result of `decoder_for`; None leaves the dataset as it is.
        seeds: Seeds of the samples, for training.
    """
    images = dataset.dataset if isinstance(dataset, AugMixDataset) else dataset
    if decoder is None or not isinstance(images, ImageDataset) or images.load_bytes or images.input_img_mode != 'RGB':
        return dataset  # fast decoding does not apply
    images = count_unreadable(images, is_training=seeds is not None)
    if not isinstance(dataset, AugMixDataset):
        return FastJpegDataset(images, decoder, seeds)
    dataset.dataset = FastJpegDataset(images, decoder)
    return SeededDataset(dataset, seeds)
