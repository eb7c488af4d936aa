"""`--aa ta_wide`: torchvision's TrivialAugment, which timm does not have, in the place of timm's auto-augment"""
from typing import Any

import timm.data
from torchvision import transforms
from torchvision.transforms import InterpolationMode

TA_WIDE = 'ta_wide'
BEFORE = (  # timm's steps that come before auto-augment
    timm.data.transforms.RandomResizedCropAndInterpolation, timm.data.transforms.ResizeKeepRatio,
    timm.data.transforms.CenterCropOrPad, timm.data.transforms.RandomCropOrPad, transforms.RandomHorizontalFlip,
    transforms.RandomVerticalFlip)


def create_loader(dataset: Any, *args, auto_augment: Any = None, **kwargs) -> Any:
    """timm's `create_loader`; `auto_augment='ta_wide'` is torchvision's TrivialAugmentWide, without colour jitter.

    Args:
        dataset: Its transform is set, as timm does.
        args: Further arguments of timm's function.
        auto_augment: timm's name of a policy, or ta_wide.
        kwargs: Likewise.
    """
    is_wide = auto_augment == TA_WIDE
    if not is_wide:
        return timm.data.create_loader(dataset, *args, auto_augment=auto_augment, **kwargs)
    loader = timm.data.create_loader(dataset, *args, **{**kwargs, 'color_jitter': None})
    if kwargs.get('is_training') and not kwargs.get('no_aug'):
        is_cubic = kwargs.get('interpolation') == 'bicubic'
        step = transforms.TrivialAugmentWide(
            interpolation=InterpolationMode.BICUBIC if is_cubic else InterpolationMode.BILINEAR)
        if isinstance(loader.dataset, timm.data.ScheduledTransformDataset):  # a transform for each image size
            loader.dataset.transforms = tuple(_insert(step, t) for t in loader.dataset.transforms)
        else:
            dataset.transform = _insert(step, dataset.transform)
    return loader


def _insert(step: Any, transform: transforms.Compose) -> transforms.Compose:
    """timm's transform with a further step, where timm puts auto-augment."""
    steps = list(transform.transforms)
    at = next((i for i, s in enumerate(steps) if not isinstance(s, BEFORE)), len(steps))
    return transforms.Compose([*steps[:at], step, *steps[at:]])
