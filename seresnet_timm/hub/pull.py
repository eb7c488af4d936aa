"""Download a model from the Hub and verify it."""
import os
import shutil
from pathlib import Path
from typing import Optional, Union

import timm
from huggingface_hub import constants, hf_hub_download

import seresnet_timm
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.files import fsync, temporary_folder
from seresnet_timm.hub import card as model_card
from seresnet_timm.hub.cache import _from_cache, _remove_file, _remove_leftovers, _set_ref
from seresnet_timm.hub.client import _api, _ask, _say, _split
from seresnet_timm.hub.errors import (
    explained,
    is_unreachable,
)
from seresnet_timm.hub.repository import (
    CARD,
    CONFIG,
    WEIGHTS,
    Pulled,
    _choose,
    _digests,
    _expected,
    _read_config,
    plugin_of,
)


def pull(
        repo_id: str,
        out: Optional[Union[str, Path]] = None,
        revision: Optional[str] = None,
        token: Optional[str] = None,
        with_weights: bool = True,
) -> Pulled:
    """Download a timm model into the cache and verify it; the cache does where there is no Hub to be had.

    Args:
        repo_id: 'organisation/name', or 'organisation/name@revision'.
        out: Folder to copy the files to, whole or not at all; must be new, empty, or of an earlier pull.
        revision: Branch, tag or commit; the main branch if None.
        token: Access token; that of HF_TOKEN or `hf auth login` if None.
        with_weights: False gets the configuration only.

    Raises:
        UsageError: `repo_id` or `out` cannot be.
        RunError: The Hub, the network or the disk failed, or a file is not what the Hub says, twice.
    """
    repo_id, revision = _split(repo_id, revision)
    out = None if out is None else _check_out(Path(out))
    with explained(repo_id, 'pull'):
        for part in _remove_leftovers(repo_id):
            _say(f'Removed {part}, which a killed download had left.')
        api = _api(token)
        try:
            info = _ask(lambda: api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT))
        except Exception as e:
            if not is_unreachable(e):
                raise
            pulled = _from_cache(repo_id, revision, e, with_weights)
        else:
            try:
                pulled = _from_hub(repo_id, info, token, with_weights)
            finally:
                _remove_leftovers(repo_id)  # huggingface_hub before 2 keeps the part of a failed download
            if revision != pulled.commit:
                _set_ref(repo_id, revision or constants.DEFAULT_REVISION, pulled.commit)
        _check_config(pulled)
        if out is not None:
            _copy_out(pulled, out)
    return pulled


def how_to_use(pulled: Pulled, name: str, out: Optional[str] = None) -> str:
    """Lines that create a pulled model in Python, and evaluate it."""
    model = f'local-dir:{out}' if out else f'hf-hub:{name}'
    plugin = plugin_of(pulled.config['architecture'])
    return (f'  import {plugin + ", " if plugin else ""}timm\n'
            f"  model = timm.create_model('{model}', pretrained=True)\n"
            f'or\n'
            f'  seresnet-timm validate --model {model} --data-dir DIR')


def pinned(name: str, with_weights: bool = True) -> str:
    """Pull and verify the model of a name like 'org/name@revision'; timm's name for exactly that commit of it."""
    pulled = pull(name, with_weights=with_weights)
    return f'hf-hub:{pulled.repo_id}@{pulled.commit}'


def folder_of(model: str, with_weights: bool = True) -> Optional[Path]:
    """Folder of the model on the Hub that a timm name means, pulled and verified; None for other names."""
    source, _, name = model.partition(':')
    return pull(name, with_weights=with_weights).folder if source in ('hf-hub', 'hf_hub') else None


def _from_hub(repo_id: str, info, token: Optional[str], with_weights: bool) -> Pulled:
    siblings = {s.rfilename: s for s in info.siblings}
    sha256, folder = {}, None
    for name in _choose(repo_id, list(siblings), with_weights):
        expected = _expected(repo_id, siblings[name])
        path = _download(repo_id, name, info.sha, token)
        digest = _digests(path)
        if digest[expected.kind] != expected.value:
            _remove_file(path)
            _say(f'{repo_id}: {name} is not what the Hub says ({expected.kind} {digest[expected.kind][:12]}, not '
                 f'{expected.value[:12]}): removed, downloading it again.')
            path = _download(repo_id, name, info.sha, token)
            digest = _digests(path)
            if digest[expected.kind] != expected.value:
                _remove_file(path)
                raise RunError(
                    f'{repo_id}: {name} arrived damaged twice (hash {digest[expected.kind][:12]}, the Hub says '
                    f'{expected.value[:12]}) and was removed: try again, or another HF_ENDPOINT or proxy.')
        sha256[name] = digest['sha256']
        folder = path.parent
    return Pulled(repo_id, info.sha, folder, sha256, _read_config(repo_id, folder))


def _download(repo_id: str, name: str, commit: str, token: Optional[str]) -> Path:
    return Path(hf_hub_download(
        repo_id, name, revision=commit, token=token,
        library_name='seresnet_timm', library_version=seresnet_timm.__version__))


def _check_config(pulled: Pulled) -> None:
    arch = pulled.config['architecture']
    if timm.is_model(arch):
        return
    requires = pulled.config.get('requires')
    how = (f'do `{requires}` first, as its {CONFIG} says' if isinstance(requires, str) else
           'install a newer timm, or import the package that registers it')
    raise RunError(f"{pulled.repo_id} is a '{arch}', which timm {timm.__version__} does not know: {how}. Its files are "
                   f'in {pulled.folder}.')


def _check_out(out: Path) -> Path:
    if out.suffix in ('.safetensors', '.bin', '.pth'):
        raise UsageError(f'{out}: OUT is a folder, for the weights and their {CONFIG}.')
    known = {CONFIG, CARD, model_card.CURVES, *WEIGHTS}
    if out.exists() and (not out.is_dir() or not {p.name for p in out.iterdir()} <= known):
        raise UsageError(f'{out} exists and is not of an earlier pull: name a new folder.')
    if not out.absolute().parent.is_dir():
        raise UsageError(f'{out}: the folder {out.absolute().parent} does not exist.')
    return out


def _copy_out(pulled: Pulled, out: Path) -> None:
    """Copy the files beside `out`, verify the copies, and rename their folder."""
    with temporary_folder(out.absolute().parent, f'.{out.name}.pull-') as tmp:
        new = tmp / out.name
        new.mkdir()
        for name in pulled.sha256:
            shutil.copyfile(pulled.folder / name, new / name)
            fsync(new / name)
        if out.exists():
            os.rename(out, tmp / 'old')
        os.rename(new, out)
        fsync(out.absolute().parent)
    pulled.folder = out
