"""Names of models and optimizers in the text of timm's files, for what is judged before timm is imported

A name that is not there may still be right: a module of `--device-modules` may register it. So timm has the last word.
"""
import importlib.util
import re
from pathlib import Path
from typing import Iterator, List


def is_model(name: str) -> bool:
    """True if the text of timm or of this package defines a model of that name, and its tag."""
    name, dot, tag = name.partition('.')
    if dot and not _is_in(fr"['\"]{re.escape(name + dot + tag)}['\"]", 'models/*.py'):
        return False
    return name.isidentifier() and _is_in(fr"^def {name}\(|^ +['\"]{name}['\"]:", 'models/*.py')


def is_optimizer(name: str) -> bool:
    """True if the text of timm names an optimizer so."""
    name = name.lower().removeprefix('lookahead_')
    return name.isidentifier() and _is_in(fr"['\"]{name}['\"]", 'optim/*.py')


def models() -> List[str]:
    """Names of the models that the text of timm and of this package defines."""
    return [name for text in _texts('models/*.py') for name in re.findall(r'^@register_model\ndef (\w+)\(', text, re.M)]


def _is_in(pattern: str, files: str) -> bool:
    return any(re.search(pattern, text, re.M) for text in _texts(files))


def _texts(files: str) -> Iterator[str]:
    folders = [Path(__file__).resolve().parents[1]]
    timm = importlib.util.find_spec('timm')
    if timm is not None and timm.origin is not None:
        folders.append(Path(timm.origin).parent)
    for folder in folders:
        for file in sorted(folder.glob(files)):
            yield file.read_text(encoding='utf-8', errors='replace')
