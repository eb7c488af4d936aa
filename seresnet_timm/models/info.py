"""ModelInfo: what a network and its preprocessing are; it travels in checkpoints, safetensors, run.json and exports."""
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

SCHEMA = 1


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

    def to_dict(self) -> Dict[str, Any]:
        """Plain values for JSON and checkpoints, with the number of the schema."""
        return {'schema': SCHEMA, **asdict(self)}
