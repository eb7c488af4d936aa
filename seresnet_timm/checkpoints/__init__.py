"""Checkpoint files: read safely, told apart, loaded all or not at all.

`read_checkpoint(path)`, `load_weights(model, path, model_name)` and `state_dict_of(checkpoint)` are for users too.
"""
from typing import Any

_PUBLIC = {'read_checkpoint': 'read', 'load_weights': 'fit', 'state_dict_of': 'checkpoint'}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:  # on first use: the modules import torch
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    import importlib
    return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)
