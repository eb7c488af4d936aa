"""Names of models that are pulled before they are used: on the Hugging Face Hub, and on ModelScope."""
from typing import Optional

from seresnet_timm.errors import printable
from seresnet_timm.hub import modelscope
from seresnet_timm.hub.client import hub_name


def remote_name(model: str) -> Optional[str]:
    """`hf-hub:org/name` or `modelscope:org/name`, with @revision if it has one, in one spelling; None for other models.

    Raises:
        UsageError: It names a model there, in a way that cannot be.
    """
    if modelscope.is_name(model):
        repo_id, revision = modelscope.split_name(model)
        return f'{modelscope.PREFIX}{repo_id}' + (f'@{revision}' if revision else '')
    repository = hub_name(model)
    return None if repository is None else f'hf-hub:{repository}'


def is_remote(model: str) -> bool:
    """True for a name as `remote_name` writes it."""
    return model.startswith(('hf-hub:', modelscope.PREFIX))


def describe_version(model: str, commit: str) -> str:
    """Which version of a model was pulled; ModelScope names no commit, so that the hash of its files stands for it."""
    return f'{"files" if modelscope.is_name(model) else "commit"} {printable(commit)}'
