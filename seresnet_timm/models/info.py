"""ModelInfo: what a network and its preprocessing are; it travels in checkpoints, safetensors, run.json and exports."""
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from timm.models import get_model_args

from seresnet_timm.errors import UsageError, printable
from seresnet_timm.models.trusted import (
    MAX_CLASSES,
    MAX_SIZE,
    MAX_TEXT,
    trusted_kwargs,
    trusted_name,
    trusted_numbers,
    trusted_word,
)

SCHEMA = 1
INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest', 'lanczos', 'box', 'hamming', 'random')
CROP_MODES = ('center', 'squash', 'border')
# those of --input-img-mode (engine/values.py, which imports nothing that --help would wait for)
IMAGE_MODES = ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F')
MAX_PIXELS = 8192  # of a side of the input, and of the resized image of which it is cut


@dataclass(frozen=True)
class ModelInfo:
    """A network, its classes and its preprocessing in plain values; None for what is not known.

    Attributes:
        name: timm's name of the architecture, or `hf-hub:org/name@commit`.
        kwargs: Further arguments of the architecture (`--model-kwargs`, `bn_eps`, `global_pool` ...), plain values.
        num_classes: Number of outputs.
        in_chans: Channels of the input.
        class_names: Name of every class, by index.
        input_size: Channels, height and width of the input in pixels, as validation used it.
        mean: Mean of the normalization, by channel.
        std: Standard deviation of the normalization, by channel.
        interpolation: Resize filter of validation.
        crop_pct: Share of the resized image that the validation crop keeps.
        crop_mode: timm's name of the validation crop: 'center', 'squash' or 'border'.
        image_mode: Pillow's mode that images are read in (`--input-img-mode`); None for grey or RGB by the channels.
    """
    name: Optional[str] = None
    kwargs: Dict[str, Any] = field(default_factory=dict)
    num_classes: Optional[int] = None
    in_chans: Optional[int] = None
    class_names: Optional[List[str]] = None
    input_size: Optional[List[int]] = None
    mean: Optional[List[float]] = None
    std: Optional[List[float]] = None
    interpolation: Optional[str] = None
    crop_pct: Optional[float] = None
    crop_mode: Optional[str] = None
    image_mode: Optional[str] = None

    def to_dict(self) -> Dict[str, Any]:
        """Plain values for JSON and checkpoints, with the number of the schema."""
        return {'schema': SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(
            cls, values: Any, origin: str, name_key: str = 'model_info.name',
            kwargs_key: str = 'model_info.kwargs') -> 'ModelInfo':
        """Check and take over what `to_dict` gave, as it is in a file that was only named.

        Fields that a later schema adds are ignored.

        Args:
            values: As the file has them.
            origin: The file, for messages.
            name_key: Where in the file the name is, for messages.
            kwargs_key: Likewise, the arguments of the network.

        Raises:
            UsageError: A value is refused; file and key are named.
        """
        if not isinstance(values, dict) or not isinstance(values.get('schema', SCHEMA), int):
            raise UsageError(f'{printable(origin)}: model_info is not a table of settings: the file is damaged.')
        get = values.get
        name = get('name')
        info = cls(
            name=None if name is None else trusted_name(name, origin, name_key),
            kwargs=trusted_kwargs(get('kwargs'), origin, kwargs_key),
            num_classes=trusted_numbers(get('num_classes'), origin, 'num_classes', 0, MAX_CLASSES, whole=True),
            in_chans=trusted_numbers(get('in_chans'), origin, 'in_chans', 1, MAX_SIZE, whole=True),
            class_names=_class_names(get('class_names'), get('num_classes'), origin),
            input_size=trusted_numbers(get('input_size'), origin, 'input_size', 1, MAX_PIXELS, length=(3,), whole=True),
            mean=trusted_numbers(get('mean'), origin, 'mean', -1e6, 1e6, length=_per_channel(values)),
            std=trusted_numbers(get('std'), origin, 'std', 1e-12, 1e6, length=_per_channel(values)),
            interpolation=trusted_word(get('interpolation'), origin, 'interpolation', INTERPOLATIONS),
            crop_pct=trusted_numbers(get('crop_pct'), origin, 'crop_pct', 1e-3, 10),
            crop_mode=trusted_word(get('crop_mode'), origin, 'crop_mode', CROP_MODES),
            image_mode=trusted_word(get('image_mode'), origin, 'image_mode', IMAGE_MODES),
        )
        # the image is resized to the size of the input divided by crop_pct before it is cropped
        side = max((info.input_size or [1])[1:], default=1) / (info.crop_pct or 1)
        if side > MAX_PIXELS:
            raise UsageError(f'{printable(origin)}: input_size and crop_pct ask for images of {side:,.0f} pixels a '
                             f'side, and {MAX_PIXELS:,} is the most that is taken from a file.')
        return info

    def unknown_preprocessing(self) -> List[str]:
        """What of the preprocessing is not known, in words."""
        return [name.replace('_', ' ') for name in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')
                if getattr(self, name) is None]

    @classmethod
    def of_model(
            cls,
            model: Any,
            data_config: Optional[Dict[str, Any]] = None,
            class_names: Optional[List[str]] = None,
    ) -> 'ModelInfo':
        """What a run saves: a network that timm made, its preprocessing and the names of its classes.

        The name is the architecture's, with every argument it was made with: to make it again needs neither the Hub nor
        the folder from which it may have come.

        Args:
            model: As `timm.create_model` gave it.
            data_config: As timm's `resolve_data_config` gave it.
            class_names: Name of every class, by index.
        """
        model = getattr(model, '_orig_mod', model)
        arguments: Dict[str, Any] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in get_model_args(model).items()}
        num_classes, in_chans = arguments.pop('num_classes', None), arguments.pop('in_chans', None)
        data = data_config or {}
        size = data.get('input_size')  # timm leaves 3 channels in it where only `in_chans` says otherwise
        in_chans = in_chans or (size[0] if size else None)
        if class_names is not None and len(class_names) != num_classes:
            class_names = None
        return cls(
            name=model.pretrained_cfg.get('architecture'),
            kwargs=arguments,
            num_classes=num_classes,
            in_chans=in_chans,
            class_names=None if class_names is None else list(class_names),
            input_size=None if size is None else [in_chans or size[0], *size[1:]],
            mean=list(data['mean']) if data.get('mean') is not None else None,
            std=list(data['std']) if data.get('std') is not None else None,
            interpolation=data.get('interpolation'),
            crop_pct=data.get('crop_pct'),
            crop_mode=data.get('crop_mode'),
        )


def _per_channel(values: Dict[str, Any]) -> Tuple[int, ...]:
    """Lengths that mean and std may have: one for all channels, one for each, or three as most configurations."""
    size = values.get('input_size')
    channels = size[0] if isinstance(size, (list, tuple)) and size else values.get('in_chans')
    return tuple(sorted({1, 3} | ({channels} if isinstance(channels, int) else set())))


def _class_names(names: Any, num_classes: Any, origin: str) -> Optional[List[str]]:
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and len(n) <= MAX_TEXT for n in names):
        raise UsageError(f'{printable(origin)}: class_names is not a list of names: the file is damaged.')
    if isinstance(num_classes, int) and len(names) != num_classes:
        raise UsageError(f'{printable(origin)}: class_names has {len(names)} names for {num_classes} classes: the file '
                         'is damaged.')
    return list(names)
