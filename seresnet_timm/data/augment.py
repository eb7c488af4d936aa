"""timm's auto-augment and torchvision's colour jitter on uint8 arrays, without Pillow images in between

timm's steps stay: what they draw, in which order, and what a level means. Only the image that they get is another one:
`Pixels` has those methods of Pillow's Image that timm's functions and Pillow's ImageOps call, and C code (`_augment.c`)
does the work. What is not written there (a blur) goes through Pillow, one step at a time.

Results equal Pillow's; those of rotations, shears and translations differ by one level in some pixels.
"""
import copy
import math
import platform
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from torchvision import transforms
from torchvision.transforms import functional as F

try:
    from seresnet_timm.data import _augment
except ImportError:
    _augment = None

Step = Callable[[Any], Any]
IDENTITY = np.arange(256)
FUSES = platform.machine() in ('aarch64', 'arm64')  # multiplication and addition, in Pillow too: blend in _augment.c


class Pixels:
    """An RGB image as an array (H, W, 3), with those of Pillow's methods that timm's functions need."""
    mode = 'RGB'

    def __init__(self, array: np.ndarray):
        self.array = np.ascontiguousarray(array)

    @property
    def size(self) -> Tuple[int, int]:
        return self.array.shape[1], self.array.shape[0]

    width = property(lambda self: self.array.shape[1])
    height = property(lambda self: self.array.shape[0])

    def copy(self) -> 'Pixels':
        return self

    def transform(self, size, method, data, resample=0, fillcolor=None) -> 'Pixels':
        if size != self.size or method != Image.AFFINE or resample not in (Image.BILINEAR, Image.BICUBIC):
            return Pixels(np.asarray(self.to_image().transform(size, method, data, resample, fillcolor=fillcolor)))
        fill = fillcolor if isinstance(fillcolor, (tuple, list)) else (fillcolor or 0,) * 3
        out = np.empty_like(self.array)
        matrix, colour_outside = tuple(float(v) for v in data), tuple(int(v) for v in fill)
        _augment.affine(self.array, out, size, matrix, colour_outside, resample == Image.BICUBIC)
        return Pixels(out)

    rotate = Image.Image.rotate  # angle to matrix, then `transform`

    def transpose(self, method) -> 'Pixels':
        return Pixels(np.asarray(self.to_image().transpose(method)))

    def histogram(self, mask=None, extrema=None) -> List[int]:
        return self.counts()[:3].ravel().tolist()

    def counts(self) -> np.ndarray:
        """Histograms (4, 256) of red, green, blue, and of Pillow's grey."""
        return np.frombuffer(_augment.histogram(self.array), np.uint32).reshape(4, 256)

    def point(self, table: Sequence[int], mode: Optional[str] = None) -> 'Pixels':
        out = np.empty_like(self.array)
        _augment.look_up(self.array, out, np.clip(table, 0, 255).astype(np.uint8))
        return Pixels(out)

    def to_image(self) -> Image.Image:
        return Image.fromarray(self.array)

    def to_tensor(self, out: Optional[np.ndarray] = None) -> torch.Tensor:
        """As (3, H, W), in `out` if it is given."""
        height, width, _ = self.array.shape
        out = np.empty((3, height, width), np.uint8) if out is None else out
        _augment.planes(self.array, out)
        return torch.from_numpy(out)


def _blend_with(image: Pixels, level: int, factor: float) -> Pixels:
    """Pillow's blend of an image of one grey level with the image."""
    kind = np.float64 if FUSES else np.float32  # in which the product is exact, or is rounded
    values = (kind(level) + kind(np.float32(factor)) * (IDENTITY - level).astype(kind)).astype(np.float32)
    return image.point(np.tile(np.clip(values, 0, 255).astype(np.uint8), 3))


def brightness(image: Pixels, factor: float, **_) -> Pixels:
    return _blend_with(image, 0, factor)


def contrast(image: Pixels, factor: float, **_) -> Pixels:
    grey = image.counts()[3]
    return _blend_with(image, int(float(np.dot(grey, IDENTITY)) / (image.width * image.height) + 0.5), factor)


def colour(image: Pixels, factor: float, **_) -> Pixels:
    out = np.empty_like(image.array)
    _augment.saturate(image.array, out, factor)
    return Pixels(out)


def desaturate(image: Pixels, factor: float, **_) -> Pixels:
    return colour(image, min(1., max(0., 1. - factor)))


def sharpness(image: Pixels, factor: float, **_) -> Pixels:
    out = np.empty_like(image.array)
    _augment.sharpen(image.array, out, image.size, factor)
    return Pixels(out)


class ThroughPillow:
    """A function of images, for Pixels."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, image: Pixels, *args, **kwargs) -> Pixels:
        return Pixels(np.asarray(self.function(image.to_image(), *args, **kwargs)))


OWN = {
    auto_augment.brightness: brightness, auto_augment.contrast: contrast, auto_augment.color: colour,
    auto_augment.desaturate: desaturate, auto_augment.sharpness: sharpness,
}
TIMMS = (  # take Pixels as they are
    auto_augment.shear_x, auto_augment.shear_y, auto_augment.translate_x_rel, auto_augment.translate_y_rel,
    auto_augment.translate_x_abs, auto_augment.translate_y_abs, auto_augment.rotate, auto_augment.auto_contrast,
    auto_augment.invert, auto_augment.equalize, auto_augment.solarize, auto_augment.solarize_add,
    auto_augment.posterize)


def _own_operation(op: auto_augment.AugmentOp) -> auto_augment.AugmentOp:
    op = copy.copy(op)
    op.aug_fn = OWN.get(op.aug_fn) or (op.aug_fn if op.aug_fn in TIMMS else ThroughPillow(op.aug_fn))
    return op


class Jitter:
    """torchvision's ColorJitter without hue; it draws what that one would draw."""

    def __init__(self, jitter: transforms.ColorJitter):
        self.jitter = jitter

    def __call__(self, image: Pixels) -> Pixels:
        j = self.jitter
        order, *factors = j.get_params(j.brightness, j.contrast, j.saturation, j.hue)
        for i in order:
            if i < 3 and factors[i] is not None:
                image = (brightness, contrast, colour)[i](image, factors[i])
        return image


class TrivialAugment:
    """torchvision's TrivialAugmentWide; it draws what that one would draw."""

    def __init__(self, step: transforms.TrivialAugmentWide):
        self.step = step
        self.operations = list(step._augmentation_space(step.num_magnitude_bins).items())

    def __call__(self, image: Pixels) -> Pixels:
        name, (magnitudes, is_signed) = self.operations[int(torch.randint(len(self.operations), (1,)))]
        magnitude = float(magnitudes[torch.randint(len(magnitudes), (1,))]) if magnitudes.ndim else 0.
        if is_signed and torch.randint(2, (1,)):
            magnitude = -magnitude
        if name in ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate'):
            return self._move(image, name, magnitude)
        if name in COLOURS:
            return COLOURS[name](image, 1. + magnitude)
        if name == 'Identity':
            return image
        function = getattr(ImageOps, name.lower())
        arguments = {'Posterize': (int(magnitude),), 'Solarize': (magnitude,)}.get(name, ())
        return function(image, *arguments)

    def _move(self, image: Pixels, name: str, magnitude: float) -> Pixels:
        fill, resample = self.step.fill, F.pil_modes_mapping[self.step.interpolation]
        if name == 'Rotate':
            return image.rotate(magnitude, resample, fillcolor=fill)
        center, shift, shear = [0., 0.], [0, 0], [0., 0.]
        if name.startswith('Shear'):
            shear[name == 'ShearY'] = math.degrees(math.atan(magnitude))
        else:
            center = [image.width * 0.5, image.height * 0.5]
            shift[name == 'TranslateY'] = int(magnitude)
        matrix = F._get_inverse_affine_matrix(center, 0., shift, 1., shear)
        return image.transform(image.size, Image.AFFINE, matrix, resample, fillcolor=fill)


COLOURS = {'Brightness': brightness, 'Color': colour, 'Contrast': contrast, 'Sharpness': sharpness}


def for_pixels(step: Step) -> Optional[Step]:
    """timm's step of augmentation for Pixels; None if it is something else, or if the C code is not built."""
    if _augment is None:
        return None
    if type(step) is transforms.ColorJitter and step.hue is None:
        return Jitter(step)
    if type(step) is transforms.TrivialAugmentWide:
        return TrivialAugment(step)
    if type(step) is transforms.RandomApply:
        inner = [for_pixels(s) for s in step.transforms]
        return None if None in inner else transforms.RandomApply(inner, step.p)
    if type(step) is auto_augment.RandAugment:
        step = copy.copy(step)
        step.ops = [_own_operation(op) for op in step.ops]
        return step
    if type(step) is auto_augment.AutoAugment:
        step = copy.copy(step)
        step.policy = [[_own_operation(op) for op in ops] for ops in step.policy]
        return step
    is_known = isinstance(step, (auto_augment.AugMixAugment, transforms.RandomGrayscale, transforms.GaussianBlur))
    return ThroughPillow(step) if is_known else None


def left_to_pillow(args) -> str:
    """Flags of a run whose steps Pillow does, as words; empty if there are none."""
    if getattr(args, 'no_aug', False):
        return ''
    aa = getattr(args, 'aa', None) or ''
    if _augment is None:
        return f'--aa {aa} (the C code is not built)' if aa else ''
    found = [f'--aa {aa}'] if aa.startswith(('augmix', '3a')) else []
    found += [f'--{name.replace("_", "-")}' for name in ('grayscale_prob', 'gaussian_blur_prob')
              if getattr(args, name, None)]
    return ', '.join(found)
