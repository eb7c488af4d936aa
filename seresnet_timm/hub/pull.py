"""Download a model from the Hub and verify it."""
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Tuple, Union

import timm
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.hf_api import ModelInfo as Listing

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.errors import RunError, UsageError, first_line, printable, shell_line
from seresnet_timm.files import copy_file, fsync, temporary_folder
from seresnet_timm.hub import modelscope
from seresnet_timm.hub.cache import keep_hashes, pull_from_cache, remove_file, remove_leftovers, set_ref
from seresnet_timm.hub.client import first_answer, hub_name, make_api, say, split_name
from seresnet_timm.hub.errors import explain, explained, is_answer, is_unreachable
from seresnet_timm.hub.names import remote_name
from seresnet_timm.hub.repository import (
    CARD,
    CONFIG,
    CURVES,
    WEIGHTS,
    Digest,
    Pulled,
    choose_files,
    digest_of,
    digest_on_hub,
    is_commit,
    plugin_of,
    read_config,
)
from seresnet_timm.models.create import check_model_config
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.version import __version__

# what a checkpoint of its own needs beside its network
PREPROCESSING = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def pull(
        repo_id: str,
        out: Optional[Union[str, Path]] = None,
        revision: Optional[str] = None,
        token: Optional[str] = None,
        with_weights: bool = True,
        cache: Optional[Path] = None,
        mirror: Optional[str] = None,
) -> Pulled:
    """Download a timm model into the cache and verify it. The cached copy is used when the Hub cannot be reached.

    Args:
        repo_id: 'organisation/name', or 'organisation/name@revision'; with 'modelscope:' before it, of ModelScope,
            where `revision`, `token` and `mirror` do not apply.
        out: Folder to copy the files to, atomically; must be new, empty, or from an earlier pull.
        revision: Branch, tag or commit; the main branch if None.
        token: Access token; that of HF_TOKEN or `hf auth login` if None.
        with_weights: False downloads the configuration only.
        cache: Folder to download to, instead of the cache.
        mirror: Address of another Hub, which gets no token.

    Raises:
        UsageError: `repo_id`, `revision` or `out` is not valid.
        RunError: The Hub, the network or the disk failed, or a file arrived damaged twice.
    """
    on_modelscope = modelscope.is_name(repo_id)
    if not on_modelscope:
        repo_id, revision = split_name(repo_id, revision)
    out = None if out is None else _check_out(Path(out))
    if on_modelscope:
        pulled = modelscope.fetch(repo_id, with_weights, cache)
        _check_config(pulled)
        with modelscope.explained(pulled.repo_id, 'pull'), _folder_beside(out) as new:
            _put_out(pulled, new, out)
        return pulled
    source = Source(repo_id, False if mirror else token, cache, mirror)
    with explained(repo_id, 'pull'), _folder_beside(out) as new:
        for part in remove_leftovers(repo_id, cache):
            say(f'Removed {part}, which a killed download had left.')
        try:
            info = ask_for_files(source, revision)
        except Exception as e:
            if not is_unreachable(e) or mirror:
                sentence = None if mirror or not is_answer(e) else explain(e, repo_id, 'pull')
                if sentence is None:
                    raise
                raise RunError(f'{sentence} Without the Hub, put its config.json and weights into a folder and name '
                               'this as local-dir:FOLDER.')
            pulled = pull_from_cache(repo_id, revision, e, with_weights)
        else:
            try:
                pulled = _pull_from_hub(source, info, with_weights, new)
            finally:
                remove_leftovers(repo_id, cache)  # huggingface_hub before 2 keeps the part of a failed download
            keep_hashes(repo_id, pulled.commit, pulled.sha256, cache)
            if revision != pulled.commit:
                set_ref(repo_id, revision or constants.DEFAULT_REVISION, pulled.commit, cache)
        _check_config(pulled)
        _put_out(pulled, new, out)
    return pulled


def folder_of(model: str) -> Optional[Path]:
    """Folder of the model on the Hub or on ModelScope that a name means, pulled and verified; None for other names."""
    name = remote_name(model)
    return None if name is None else pull(name).folder


def network_of(checkpoint: Checkpoint, info: ModelInfo) -> Tuple[ModelInfo, Optional[Path]]:
    """The network of a checkpoint, and the folder of the model on the Hub that it is made from; None for none.

    Older files hold the name of that model, and nothing of its configuration.
    """
    name = hub_name(info.name or '')
    if name is None:
        return info, None
    try:
        return info, pull(name, with_weights=False).folder
    except RunError as e:
        architecture = architecture_without(checkpoint, e)
        say(f'{first_line(e)}: the network is made as {architecture}, which the weights in {checkpoint.path} are of.')
        return replace(info, name=architecture), None


def architecture_without(checkpoint: Checkpoint, error: RunError) -> str:
    """Architecture of a checkpoint whose model on the Hub cannot be had, if the file holds all else.

    Raises:
        RunError: It does not; what is missing is named.
    """
    info, architecture = checkpoint.info, checkpoint.arch
    missing = [k for k in PREPROCESSING if getattr(info, k) is None]
    if architecture is not None and not missing:
        return architecture
    what = ', '.join(missing) if architecture is not None else 'architecture'
    remedy = (f"--model {architecture} takes timm's own" if architecture is not None else
              'name the architecture with --model')
    raise RunError(f'{error} Checkpoint {checkpoint.path} was trained from {printable(info.name)} and does not hold '
                   f'its {what}: {remedy}.')


def how_to_use(pulled: Pulled, name: str, out: Optional[str] = None) -> str:
    """Lines that create a pulled model in Python, and evaluate it; `name` is as it was typed."""
    if modelscope.is_name(name):
        model = f'local-dir:{pulled.folder}'
    else:
        repo_id, revision = split_name(name)
        model = f'local-dir:{out}' if out else f'hf-hub:{repo_id}{"@" + revision if revision else ""}'
    plugin = plugin_of(pulled.config['architecture'])
    return (f'  import {plugin + ", " if plugin else ""}timm\n'
            f'  model = timm.create_model({model!r}, pretrained=True)\n'
            f'or\n'
            f'  {shell_line(["seresnet-timm", "validate", "--model", model, "--data-dir", "DIR"])}')


class Source(NamedTuple):
    """Where files come from and go to.

    Attributes:
        repo_id: 'organisation/name'.
        token: Access token; None for that of the user, False for none.
        cache: Folder to download to; None for the cache.
        endpoint: Address of the Hub; None for the user's.
    """
    repo_id: str
    token: Union[str, bool, None] = None
    cache: Optional[Path] = None
    endpoint: Optional[str] = None


def ask_for_files(source: Source, revision: Optional[str]) -> Listing:
    """What the Hub says of a repository: its commit, and its files with their hashes."""
    api = make_api(source.token, source.endpoint)
    return first_answer(lambda: api.model_info(
        source.repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT))


def commit_of_answer(source: Source, info: Listing) -> str:
    commit = info.sha or ''
    if not is_commit(commit):
        raise RunError(f'{source.repo_id}: the Hub at {source.endpoint or constants.ENDPOINT} names no commit: use '
                       'another HF_ENDPOINT.')
    return commit


def _pull_from_hub(source: Source, info: Listing, with_weights: bool, new: Optional[Path]) -> Pulled:
    repo_id, commit = source.repo_id, commit_of_answer(source, info)
    siblings = {s.rfilename: s for s in info.siblings or []}
    sha256, folder = {}, Path()
    for name in choose_files(repo_id, list(siblings), with_weights):
        expected = digest_on_hub(repo_id, siblings[name])
        path = download_verified(source, name, commit, expected, new)
        sha256[name] = expected.value if expected.kind == 'sha256' else digest_of(path, 'sha256').value
        folder = path.parent
    return Pulled(repo_id, commit, folder, sha256, read_config(repo_id, folder))


def download_verified(
        source: Source,
        name: str,
        commit: str,
        expected: Digest,
        new: Optional[Path] = None,
) -> Path:
    """Download a file and compare it with its hash; a damaged one is removed and downloaded once more.

    Args:
        source: Where it comes from.
        name: Its name in the repository.
        commit: The commit.
        expected: Its hash.
        new: Folder to which it is copied meanwhile; None for none.
    """
    # Not HfApi.verify_repo_checksums: it needs huggingface_hub 1.1, which transformers 4 excludes, sends one request
    # more, and hashes every file of the snapshot, also those that other programs have downloaded
    repo_id = source.repo_id
    for attempt in (1, 2):
        path = Path(hf_hub_download(
            repo_id, name, revision=commit, token=source.token, cache_dir=source.cache, endpoint=source.endpoint,
            library_name='seresnet_timm', library_version=__version__))
        with ThreadPoolExecutor(1) as pool:
            copying = None if new is None else pool.submit(_copy, path, new / name)
            actual = digest_of(path, expected.kind)
        if copying is not None:
            copying.result()  # or its error
        if actual == expected:
            return path
        remove_file(path)
        if attempt == 1:
            say(f'{repo_id}: {name} does not have the hash that the Hub names ({actual.kind} {actual.value[:12]}, not '
                f'{expected.value[:12]}): removed, downloading it again.')
    raise RunError(f'{repo_id}: {name} arrived damaged twice (hash {actual.value[:12]}, the Hub names '
                   f'{expected.value[:12]}) and was removed: try again, or use another HF_ENDPOINT or proxy.')


def _check_config(pulled: Pulled) -> None:
    """Refuse a configuration that timm does not know, or with which it would do more than create the network."""
    arch, where = pulled.config['architecture'], f'{CONFIG} of {pulled.repo_id}'
    check_model_config(pulled.config, where)
    if pulled.config.get('pretrained_cfg', pulled.config).get('hf_hub_filename'):  # not the verified file
        raise UsageError(f'{where}: hf_hub_filename is not taken from a file.')
    if timm.is_model(arch):
        return
    requires = pulled.config.get('requires')
    is_import = isinstance(requires, str) and re.fullmatch(r'import \w+(\.\w+)*', requires, re.ASCII)
    how = (f'run `{requires}` first, as its {CONFIG} says' if is_import else
           'install a newer timm, or import the package that registers it')
    raise RunError(f"{pulled.repo_id} is a '{printable(arch)}', which timm {timm.__version__} does not know: {how}. "
                   f'Its files are in {pulled.folder}.')


def _check_out(out: Path) -> Path:
    if out.suffix in ('.safetensors', '.bin', '.pth'):
        raise UsageError(f'{out}: OUT is a folder, for the weights and their {CONFIG}.')
    known = {CONFIG, CARD, CURVES, *WEIGHTS}
    if out.exists() and (not out.is_dir() or not {p.name for p in out.iterdir()} <= known):
        raise UsageError(f'{out} exists and is not from an earlier pull: name a new folder.')
    if not out.absolute().parent.is_dir():
        raise UsageError(f'{out}: the folder {out.absolute().parent} does not exist.')
    return out


@contextmanager
def _folder_beside(out: Optional[Path]) -> Iterator[Optional[Path]]:
    """A new folder that becomes `out` by `_put_out`, else is removed; None without `out`."""
    if out is None:
        yield None
        return
    with temporary_folder(out.absolute().parent, f'.{out.name}.pull-') as tmp:
        new = tmp / out.name
        new.mkdir()
        yield new


def _copy(path: Path, target: Path) -> None:
    copy_file(path, target)
    fsync(target)


def _put_out(pulled: Pulled, new: Optional[Path], out: Optional[Path]) -> None:
    """Rename the new folder to `out`, with all files in it; `pulled` then names `out` as its folder."""
    if new is None or out is None:
        return
    for name in pulled.sha256:
        if not (new / name).exists():
            _copy(pulled.folder / name, new / name)
    if out.exists():
        os.rename(out, new.parent / 'old')
    os.rename(new, out)
    fsync(out.absolute().parent)
    pulled.folder = out
