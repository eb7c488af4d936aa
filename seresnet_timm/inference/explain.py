"""`seresnet-timm explain`: the gates of Squeeze-and-Excitation by depth and class, and class activation maps.

Gates: mean over the images of a class, as in figure 6 of `Squeeze-and-Excitation Networks`
(https://arxiv.org/abs/1709.01507). Maps: Grad-CAM (https://arxiv.org/abs/1610.02391) on the last feature map; for a
network that ends with average pooling and one linear layer that is CAM.
"""
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from seresnet_timm.errors import RunError, UsageError, counted, did_you_mean, first_names, printable
from seresnet_timm.inference.load import LoadedModel
from seresnet_timm.inference.predict import NOT_FINITE, ImageFiles, collate
from seresnet_timm.runs.settings import RunSettings

# timm's SE modules, by the name of the layer that gives the gate
SE_MODULES = {'SEModule', 'SqueezeExcite', 'SqueezeExciteCl', 'EffectiveSEModule'}
GATE_LAYERS = ('gate', 'sigmoid')
SMALLEST_MAP = 4  # rows and columns; a smaller map shows no places


@dataclass
class Block:
    """An SE block of a network, in the order of its depth.

    Attributes:
        name: Name of its module.
        stage: Name of the part of the network that it is in.
        sums: Sum of the gates (channels) over the images of each class.
    """
    name: str
    stage: str
    sums: Dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What the network sees in an image.

    Attributes:
        file: The image.
        group: Class by which its gates are counted.
        predicted: Most likely class.
        probability: Its probability.
        target: Class of the map.
        image: The image as the network gets it (H, W, channels), 0 to 1.
        map: Class activation map (h, w), 0 to 1; None if there is none.
    """
    file: str
    group: int
    predicted: int
    probability: float
    target: int
    image: Any
    map: Optional[Any]


class Explainer:
    """Looks into a network while it predicts images.

    Args:
        settings: Settings as those of `predict`: device, workers, batch size.
        loaded: The model; moved to the device.
        target: Class of the maps; None for the most likely one of each image.
        layer: Layer whose output makes the maps; None for the last feature map, or the last that shows places.

    Attributes:
        blocks: Its SE blocks, with the gates of the images so far; empty if it has none.
        counts: Images so far by class.
        errors: Why files could not be read.
        no_map: Why there is no class activation map; None if there is.

    Raises:
        UsageError: The network has neither SE blocks nor a last feature map.
    """

    def __init__(self, settings: RunSettings, loaded: LoadedModel, target: Optional[int] = None,
                 layer: Optional[str] = None):
        self.settings, self.loaded, self.target = settings, loaded, target
        self.model: Any = loaded.model.to(settings.device).requires_grad_(False)
        self.gate_layers = find_gates(self.model)
        self.blocks = [Block(name, stage_of(name)) for name in self.gate_layers]
        self.counts: Dict[int, int] = {}
        self.errors: Dict[str, str] = {}
        self.layer, self.map_size, self.no_map = self._choose_layer(layer)
        if self.no_map and not self.blocks:
            raise UsageError(f'{printable(loaded.info.name)} has no Squeeze-and-Excitation, and {self.no_map}: there '
                             'is nothing to show.')

    def _choose_layer(self, layer: Optional[str]) -> Tuple[Optional[str], str, Optional[str]]:
        """The layer of the maps (None for the end of forward_features), their size, and why there are none, a clause.

        It is chosen by the sizes that an image of zeros gives.
        """
        modules = dict(self.model.named_modules())
        if layer is not None and layer not in modules:
            known = f'its feature maps are {", ".join(self._stages())}.'
            raise UsageError(f'--layer {printable(layer)} is no layer of {printable(self.loaded.info.name)}: '
                             f'{did_you_mean(layer, modules, known)}')
        names = self._stages() if layer is None else [layer]
        image = torch.zeros(1, *self.loaded.data_config['input_size'], device=self.settings.device)
        with torch.no_grad(), watch({name: modules[name] for name in names}) as outputs:
            features = self.model.forward_features(image) if hasattr(self.model, 'forward_features') else None
            if layer is not None and layer not in outputs:
                self.model(image)
        if layer is not None:
            if layer not in outputs or outputs[layer].ndim != 4:
                raise UsageError(f'--layer {printable(layer)}: its output is no feature map.')
            return layer, self._size(outputs[layer]), None
        if not hasattr(self.model, 'forward_head') or not isinstance(features, torch.Tensor) or features.ndim != 4:
            return None, '', 'it ends with tokens, not with a feature map'
        if min(self._sides(features)) >= SMALLEST_MAP:
            return None, self._size(features), None
        large = [n for n in names if n in outputs and outputs[n].ndim == 4
                 and min(self._sides(outputs[n])) >= SMALLEST_MAP]
        return (large[-1], self._size(outputs[large[-1]]), None) if large else (None, self._size(features), None)

    def _stages(self) -> List[str]:
        """The layers that give feature maps, as timm names them, from the first to the last."""
        info = getattr(self.model, 'feature_info', None) or []
        modules = dict(self.model.named_modules())
        return [entry['module'] for entry in getattr(info, 'info', info)
                if isinstance(entry, dict) and entry.get('module') in modules]

    def _sides(self, features: torch.Tensor) -> Tuple[int, int]:
        shape = features.shape
        return (shape[1], shape[2]) if is_channels_last(self.model, features) else (shape[2], shape[3])

    def _size(self, features: torch.Tensor) -> str:
        return ' x '.join(map(str, self._sides(features)))

    def run(self, files: Sequence[str], groups: Optional[Sequence[int]]) -> Iterator[Seen]:
        """Look at images.

        Args:
            files: The images.
            groups: Class of each; None to take the most likely one.
        """
        batch_size = self.settings.args['batch_size']
        images = ImageFiles(list(files), self.loaded.data_config, self.loaded.image_mode)
        loader = DataLoader(
            images, batch_size=batch_size, num_workers=self.settings.args['workers'], collate_fn=collate)
        for indices, images, errors in loader:
            self.errors.update({files[i]: error for i, error in errors.items()})
            if images is None:
                continue
            try:
                with watch(self.gate_layers) as gates:
                    probabilities, maps, targets = self._forward(images.to(self.settings.device))
            except torch.OutOfMemoryError:
                raise RunError(f'{self.settings.device} is out of memory with -b {batch_size}: try -b '
                               f'{max(1, batch_size // 2)}.')
            finite = probabilities.isfinite().all(dim=1).tolist()
            if not all(finite):
                raise RunError(f'{printable(files[indices[finite.index(False)]])}: {NOT_FINITE}.')
            best = probabilities.max(dim=1)
            own = best.indices.tolist() if groups is None else [groups[i] for i in indices]
            self._count(gates, own)
            shown = self._as_pictures(images)
            for n, i in enumerate(indices):
                yield Seen(files[i], own[n], int(best.indices[n]), float(best.values[n]), int(targets[n]), shown[n],
                           None if maps is None else maps[n].numpy())

    def describe(self, by_folder: bool) -> List[str]:
        """What was found, a sentence each."""
        classes = 'by the class of their folder' if by_folder else 'by the class that was predicted'
        name = printable(self.loaded.info.name)
        images = counted(sum(self.counts.values()), 'image')
        return [
            f'{len(self.blocks)} SE blocks; gates of {images}, {classes}.' if self.blocks else
            f'{name} has no Squeeze-and-Excitation: there are no gates.',
            f'{name} gives no class activation maps: {self.no_map}.' if self.no_map else
            f'Class activation maps: {self.map_size}, from {self.layer or "the last feature map"}.']

    def _forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor]:
        """Probabilities, maps, and the class of each map; on the CPU."""
        if self.no_map:
            with torch.no_grad():
                logits = first(self.model(images))
            maps, targets = None, self._targets(logits)
        else:
            with torch.enable_grad():
                features, logits = self._features_and_logits(images)
                targets = self._targets(logits)
                chosen = logits.gather(1, targets[:, None]).sum()
                gradient, = torch.autograd.grad(chosen, features)
            maps = class_activation(features.detach(), gradient, is_channels_last(self.model, features)).cpu()
        return logits.detach().float().softmax(dim=1).cpu(), maps, targets.cpu()

    def _features_and_logits(self, images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The feature map, a leaf, and the logits that follow from it."""
        if self.layer is None:
            with torch.no_grad():
                features = self.model.forward_features(images)
            features = features.clone().requires_grad_()
            return features, first(self.model.forward_head(features.clone()))
        found: List[torch.Tensor] = []

        def replace(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            found.append(output.detach().clone().requires_grad_())
            return found[-1].clone()  # which the next layer may change in place
        handle = self.model.get_submodule(self.layer).register_forward_hook(replace)
        try:
            logits = first(self.model(images))
        finally:
            handle.remove()
        return found[-1], logits

    def _targets(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=1) if self.target is None else torch.full_like(logits[:, 0], self.target).long()

    def _count(self, gates: Dict[str, torch.Tensor], groups: Sequence[int]) -> None:
        for group in groups:
            self.counts[group] = self.counts.get(group, 0) + 1
        for block in self.blocks:
            values = gates[block.name].flatten(1).double().cpu()
            for group in set(groups):
                total = values[[g == group for g in groups]].sum(dim=0)
                block.sums[group] = block.sums[group] + total if group in block.sums else total

    def _as_pictures(self, images: torch.Tensor) -> Any:
        """The images as the network gets them, without the normalisation, (N, H, W, channels)."""
        config = self.loaded.data_config
        mean, std = (torch.tensor(config[k]).view(1, -1, 1, 1) for k in ('mean', 'std'))
        return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def find_gates(model: nn.Module) -> Dict[str, nn.Module]:
    """The layer of each SE block that gives the gate, by the block's name, in the order of the network."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ in SE_MODULES:
            layer = next((getattr(module, n) for n in GATE_LAYERS if isinstance(getattr(module, n, None), nn.Module)),
                         None)
            if layer is not None:
                found[name] = layer
    return found


def stage_of(name: str) -> str:
    """The part of a network that a block is in: 'layer1' for 'layer1.2.se', 'blocks.0' for 'blocks.0.1.se'."""
    parts = name.split('.')
    return '.'.join(parts[:-2]) or parts[0]


@contextmanager
def watch(layers: Dict[str, nn.Module]) -> Iterator[Dict[str, torch.Tensor]]:
    """The outputs of layers, by their name, while the block runs."""
    outputs: Dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            outputs[name] = output.detach().clone()
        return hook
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def is_channels_last(model: nn.Module, features: torch.Tensor) -> bool:
    """Whether a feature map is (N, H, W, C), as that of Swin."""
    channels = getattr(model, 'num_features', None)
    return str(getattr(model, 'output_fmt', '')).upper() == 'NHWC' or (
        features.shape[1] != channels and features.shape[-1] == channels)


def class_activation(features: torch.Tensor, gradient: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
    """Grad-CAM: channels times the mean of their gradient, added; what speaks against the class is 0.

    Args:
        features: Feature map (N, C, H, W), or (N, H, W, C).
        gradient: Gradient of the class's logit, of the same shape.
        channels_last: The shape is the second one.

    Returns:
        Maps (N, H, W) whose highest value is 1; 0 everywhere where there is no evidence for the class.
    """
    if channels_last:
        features, gradient = features.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    maps = (features * gradient.mean((2, 3), keepdim=True)).sum(dim=1).relu()
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest.clamp(min=torch.finfo(maps.dtype).tiny), 0.)


# --- classes ----------------------------------------------------------------------------------------------------------

def class_names(loaded: LoadedModel) -> List[str]:
    names = loaded.info.class_names
    return list(names) if names is not None else [str(i) for i in range(loaded.info.num_classes or 0)]


def find_class(loaded: LoadedModel, name: str) -> int:
    """The index of a class by its name, its description or its index.

    Raises:
        UsageError: There is no such class.
    """
    names = class_names(loaded)
    for known in (names, loaded.class_descriptions or []):
        found = [str(i) for i, own in enumerate(known) if own == name]
        if len(found) > 1:
            raise UsageError(f'--target {printable(name)} is the name of {len(found)} classes: give an index, one of '
                             f'{first_names(found, 10)}.')
        if found:
            return int(found[0])
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UsageError(f"--target {printable(name)} is not a class of the model: "
                     f"{printable(did_you_mean(name, names, f'it has {len(names)} classes.'))}")


def groups_of(loaded: LoadedModel, files: Sequence[str]) -> Optional[List[int]]:
    """The class of each image by the folder that it is in; None if a folder is not called like a class."""
    names = loaded.info.class_names or []
    index = {name: i for i, name in enumerate(names) if names.count(name) == 1}
    folders = [os.path.basename(os.path.dirname(os.path.abspath(file))) for file in files]
    return [index[folder] for folder in folders] if all(folder in index for folder in folders) else None
