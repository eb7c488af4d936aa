"""What a run saves about its model: architecture, classes and preprocessing"""
from typing import Any, Dict

import torch.nn as nn

from seresnet_timm.data.classes import names_of_dataset
from seresnet_timm.models.info import ModelInfo


def model_info_of(model: nn.Module, data_config: Dict[str, Any], dataset: Any) -> ModelInfo:
    """The model of a run.

    Args:
        model: As `models.create` made it.
        data_config: Preprocessing, as timm's `resolve_data_config` gave it.
        dataset: Dataset whose reader names the classes.
    """
    return ModelInfo.of_model(model, data_config, names_of_dataset(dataset))
