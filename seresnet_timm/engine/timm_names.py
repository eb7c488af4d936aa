"""Names of models and optimizers in the text of timm's files, for what is judged before timm is imported

The text has every model and optimizer that timm or this package registers, and every name that timm replaced. It has
not all names of weights: timm makes those of some models in loops, and only of them timm has the last word, as it has
of what a module of `--device-modules` registers. A test compares the names with timm's own.
"""
import importlib.util
import os
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set

from seresnet_timm.errors import did_you_mean, printable

SEVERAL = set('*?[')  # timm's validate.py takes patterns
MODELS, OPTIMIZERS = ('models/*.py',), ('optim/*.py', 'ascend/optim.py')  # of timm and of this package


def is_model(name: str) -> bool:
    """True if the text of timm or of this package defines a model of that name, and its tag."""
    base, dot, tag = name.partition('.')
    if not dot and any(f'\ndef {base}(' in text for text in _texts(MODELS)):  # without looking at all of the text
        return True
    return base in _tags() and (not dot or tag in _tags()[base])


def unknown_model(name: str) -> Optional[str]:
    """The sentence on a name of which timm certainly has no model, or no such weights; None where timm must judge."""
    if not name or name == 'all' or set(':/\\') & set(name) or SEVERAL & set(name) or os.path.exists(name):
        return None
    base, _, tag = name.partition('.')
    if base in _tags():
        no_weights = _no_weights(base, tag)
        return f'Model {base} {no_weights}' if no_weights else None
    return f"Unknown model '{printable(name)}': {_meant(base)}"


def why_no_model(name: str) -> Optional[str]:
    """Likewise, as the end of a sentence that begins with the name."""
    base, _, tag = name.partition('.')
    return unknown_model(name) and (_no_weights(base, tag) if base in _tags() else f'is unknown: {_meant(base)}')


def is_optimizer(name: str) -> bool:
    """True if the text of timm names an optimizer so."""
    name = name.lower().removeprefix('lookahead_')
    return name.isidentifier() and _is_in(fr"['\"]{name}['\"]", OPTIMIZERS)


def unknown_optimizer(name: str, known: Optional[List[str]] = None) -> Optional[str]:
    """The sentence on a name of which there is certainly no optimizer.

    Args:
        name: Its name, as it was typed.
        known: The names that timm knows; None for those in its text.
    """
    lower = name.lower()
    base = lower.removeprefix('lookahead_')
    if base in known if known is not None else is_optimizer(name):
        return None
    hint = did_you_mean(lower, optimizers() if known is None else known,
                        'timm.optim.list_optimizers() names them all.')
    return f"Unknown optimizer --opt '{printable(name)}': {hint}"


def models() -> List[str]:
    """Names of the models that the text of timm and of this package defines."""
    return [name for text in _texts(MODELS) for name in re.findall(r'^@register_model\ndef (\w+)\(', text, re.M)]


def optimizers() -> List[str]:
    """Names of the optimizers that the text of timm registers."""
    pattern = r"(?:OptimInfo\(|\.register_alias\(|^NAME =)\s*(?:name=)?['\"](\w+)['\"]"
    return [name for text in _texts(OPTIMIZERS) for name in re.findall(pattern, text, re.M)]


def _meant(architecture: str) -> str:
    return did_you_mean(architecture, models(), 'timm.list_models() names them all.')


def _no_weights(architecture: str, tag: str) -> Optional[str]:
    tags = _tags()[architecture] if tag else set()
    if not tags or tag in tags:
        return None
    return f"has no weights '{printable(tag)}': there are {', '.join(sorted(tags))}."


@cache
def _tags() -> Dict[str, Set[str]]:
    """What the text has for an architecture: tags of its weights; all of them, or none where a loop makes them.

    Other functions and keys of the files are among the names.
    """
    found: Dict[str, Set[str]] = defaultdict(set)
    for text in _texts(MODELS):
        for function, key, tag in re.findall(r"""^(?:def (\w+)\(| +['"](\w+)(?:\.([\w.-]+))?['"] *:)""", text, re.M):
            found[function or key] |= {tag} - {''}
    return dict(found)


def _is_in(pattern: str, files: Sequence[str]) -> bool:
    return any(re.search(pattern, text, re.M) for text in _texts(files))


def _texts(patterns: Sequence[str]) -> Iterator[str]:
    folders = [Path(__file__).resolve().parents[1]]
    timm = importlib.util.find_spec('timm')
    if timm is not None and timm.origin is not None:
        folders.append(Path(timm.origin).parent)
    for folder in folders:
        for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
            yield file.read_text(encoding='utf-8', errors='replace')
