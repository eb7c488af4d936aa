"""Models to and from the Hugging Face Hub, safer than timm's own push and load

    push('output/train/RUN', 'org/name', license='apache-2.0')
    pull('org/name')
    timm.create_model('hf-hub:org/name', pretrained=True)  # after `import seresnet_timm`

What timm's do not do:
  * weights go as safetensors only; config.json and card claim nothing that belongs to other weights
  * every file that arrives is compared with the hash that the Hub names, and thrown away where it differs; so is
    what has arrived at the Hub after a push
  * a file in the cache is used without the Hub only where it has the hash that the Hub named when it came

Endpoint (HF_ENDPOINT), token (HF_TOKEN), proxies, cache (HF_HOME), offline mode (HF_HUB_OFFLINE) and progress bars are
those of huggingface_hub.
"""
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import huggingface_hub
import timm
import torch
import torch.nn as nn
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data.readers.img_extensions import get_img_extensions
from timm.models import parse_model_name, split_model_name_tag
from timm.models._hub import save_config_for_hf
from timm.utils import natural_key

import seresnet_timm
from seresnet_timm import checkpoints, inspection, model_card, models, results  # noqa: F401  (models registers itself)
from seresnet_timm.errors import RunError, UsageError, suggest
from seresnet_timm.files import fsync, temporary_folder, try_lock
from seresnet_timm.hub_errors import (
    SERVER_ERRORS,
    broke_off,
    explained,
    is_unreachable,
    reason,
    redact,
    remedy,
    status_of,
)

CONFIG, CARD, SAFE_WEIGHTS = 'config.json', 'README.md', 'model.safetensors'
WEIGHTS = (SAFE_WEIGHTS, 'pytorch_model.bin')  # timm's names, in its order
STAGING = 'seresnet-timm-push-'
RETRY_WAITS = (1, 2)  # seconds, after an answer of a Hub in trouble
TIMEOUT = 120  # seconds without an answer; the Hub's own client waits for ever in some requests
# arguments of a training that say how its images are prepared
DATA_ARGS = ('in_chans', 'input_size', 'img_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
# of a pretrained configuration: what says whose weights these are, which new weights cannot inherit
PROVENANCE = (
    'tag', 'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'license', 'description', 'origin_url',
    'paper_name', 'paper_ids', 'notes')


# --- pull -------------------------------------------------------------------------------------------------------------

@dataclass
class Pulled:
    """A model that was pulled and verified.

    Attributes:
        repo_id: 'organisation/name'.
        commit: Commit on the Hub.
        folder: Where its files are: `out`, else the snapshot in the cache.
        sha256: Hash of every file, by name.
        config: Content of config.json.
        cached: Why the Hub was not asked; None if it was.
    """
    repo_id: str
    commit: str
    folder: Path
    sha256: Dict[str, str]
    config: Dict[str, Any]
    cached: Optional[str] = None


class Expected(NamedTuple):
    """What the Hub says of a file: hash function ('sha256', or 'git' for the object id of a small file) and hash."""
    kind: str
    value: str


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


def _split(repo_id: str, revision: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """Repository and revision of 'org/name@revision'.

    Raises:
        UsageError: It is not such a name.
    """
    name, at, given = repo_id.partition('@')
    if at and (not given or revision is not None):
        raise UsageError(f"'{repo_id}' is not a model on the Hub with one revision: write org/name@revision.")
    try:
        validate_repo_id(name)
        is_valid = name.count('/') == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"'{name}' is not the name of a model on the Hub: write organisation/name, of letters, "
                         "digits, '-', '_' and '.'.")
    return name, given or revision


def _api(token: Optional[str]) -> HfApi:
    return HfApi(token=token, library_name='seresnet_timm', library_version=seresnet_timm.__version__)


def _ask(request: Callable[[], Any]) -> Any:
    """Answer to a request; a Hub in trouble is asked again, twice."""
    for wait in RETRY_WAITS:
        try:
            return request()
        except Exception as e:
            if status_of(e) not in SERVER_ERRORS and not broke_off(e):
                raise
            _say(f'Trying again in {wait} s: {reason(e)}.')
            time.sleep(wait)
    return request()


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr)


def _choose(repo_id: str, names: List[str], with_weights: bool) -> List[str]:
    """The files of a repository that make the model, and its card."""
    if CONFIG not in names:
        raise RunError(f'{repo_id} is not a timm model: it has no {CONFIG}.')
    chosen = [CONFIG]
    if with_weights:
        weights = next((n for n in WEIGHTS if n in names), None)
        if weights is None:
            raise RunError(f'{repo_id} holds no weights that timm reads ({" or ".join(WEIGHTS)}).')
        chosen.append(weights)
    return chosen + [n for n in (CARD, model_card.CURVES) if n in names]


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


def _expected(repo_id: str, sibling) -> Expected:
    if sibling.lfs is not None:
        return Expected('sha256', sibling.lfs['sha256'])
    if not sibling.blob_id:
        raise RunError(f'{repo_id}: the Hub at {constants.ENDPOINT} names no hash of {sibling.rfilename}, so that it '
                       'cannot be verified: use another HF_ENDPOINT.')
    return Expected('git', sibling.blob_id)


def _download(repo_id: str, name: str, commit: str, token: Optional[str]) -> Path:
    return Path(hf_hub_download(
        repo_id, name, revision=commit, token=token,
        library_name='seresnet_timm', library_version=seresnet_timm.__version__))


def _digests(path: Path) -> Dict[str, str]:
    """Hashes of a file: SHA-256, and git's object id."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f'blob {path.stat().st_size}\0'.encode())
    is_small = path.stat().st_size <= 20_000_000  # the Hub keeps larger ones in LFS, whose hash is SHA-256
    buffer = memoryview(bytearray(1 << 18))
    with open(path, 'rb', buffering=0) as f:
        while length := f.readinto(buffer):
            sha256.update(buffer[:length])
            if is_small:
                git.update(buffer[:length])
    return {'sha256': sha256.hexdigest(), 'git': git.hexdigest()}


def _remove_file(path: Path) -> None:
    """Remove a file from the cache: the link in the snapshot, and the blob that it leads to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _cache_folder(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type='model')


def _set_ref(repo_id: str, revision: str, commit: str) -> None:
    """Note which commit a revision is, once all of it is verified: timm looks there when it is offline."""
    path = _cache_folder(repo_id) / 'refs' / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile('w', dir=path.parent, delete=False) as f:
        f.write(commit)
    os.replace(f.name, path)


def _remove_leftovers(repo_id: str) -> List[Path]:
    """Remove parts of files that no process is downloading any more: one that is holds the lock of the file."""
    cache = _cache_folder(repo_id)
    removed = []
    for part in (cache / 'blobs').glob('*.incomplete'):
        path = cache.parent / '.locks' / cache.name / f'{part.name.split(".")[0]}.lock'
        lock = try_lock(path)
        if lock is None and path.exists():
            continue
        part.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)
        removed.append(part)
    return removed


def _from_cache(repo_id: str, revision: Optional[str], error: BaseException, with_weights: bool) -> Pulled:
    why = reason(error)
    cache = _cache_folder(repo_id)
    ref = cache / 'refs' / (revision or constants.DEFAULT_REVISION)
    commit = ref.read_text().strip() if ref.is_file() else (revision or '')
    folder = cache / 'snapshots' / commit
    names = [p.name for p in folder.iterdir()] if commit and folder.is_dir() else []
    if CONFIG not in names or with_weights and not any(n in names for n in WEIGHTS):
        wanted = f'{repo_id}@{revision}' if revision else repo_id
        raise RunError(f'{wanted} is not in the cache ({constants.HF_HUB_CACHE}), and {why}. {remedy(error)}')
    sha256 = {}
    for name in _choose(repo_id, names, with_weights):
        path = folder / name
        blob = (folder / os.readlink(path)).name if path.is_symlink() else ''
        digest = _digests(path)
        if blob not in digest.values():
            if blob:
                _remove_file(path)
            removed = 'and was removed' if blob else 'or cannot be verified'
            raise RunError(f'{repo_id}: {name} in the cache is damaged {removed}, and {why}: pull again when the Hub '
                           'can be reached.')
        sha256[name] = digest['sha256']
    _say(f'Using the verified copy of {repo_id} in the cache, commit {commit}: {why}.')
    return Pulled(repo_id, commit, folder, sha256, _read_config(repo_id, folder), cached=why)


def _read_config(repo_id: str, folder: Path) -> Dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except ValueError as e:
        raise RunError(f'{repo_id}: its {CONFIG} is not JSON ({e}).')
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise RunError(f'{repo_id} is not a timm model: its {CONFIG} names no architecture.')
    return config


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


# --- push -------------------------------------------------------------------------------------------------------------

@dataclass
class Pushed:
    """A model that was pushed and verified.

    Attributes:
        repo_id: 'organisation/name'.
        commit: Commit on the Hub.
        url: Its page.
        revision: Branch.
        sha256: Hash of every pushed file, by name.
        notes: What was decided, with the reason.
    """
    repo_id: str
    commit: str
    url: str
    revision: str
    sha256: Dict[str, str]
    notes: List[str] = field(default_factory=list)


@dataclass
class Source:
    """What is pushed, as read from a run or a file."""
    path: Path
    weights: Dict[str, torch.Tensor]
    model: nn.Module
    args: Dict[str, Any]
    run: Optional[Dict[str, Any]] = None
    row: Optional[Dict[str, float]] = None
    origin: Optional[str] = None
    labels: Optional[List[str]] = None
    weights_are: str = ''
    notes: List[str] = field(default_factory=list)


def push(
        source: Union[str, Path],
        repo_id: str,
        license: Optional[str] = None,
        model: Optional[str] = None,
        num_classes: Optional[int] = None,
        ema: Optional[bool] = None,
        private: bool = False,
        revision: Optional[str] = None,
        tag: Optional[str] = None,
        message: Optional[str] = None,
        token: Optional[str] = None,
) -> Pushed:
    """Push the weights of a run or of a file, their configuration and a model card; verify what has arrived.

    The repository and the branch are made where they are missing. A card that is on the Hub is kept.

    Args:
        source: Output folder of a training (its best checkpoint is taken), or a checkpoint.
        repo_id: 'organisation/name'.
        license: Licence of the weights, an identifier of the Hub; that of the card on the Hub if None.
        model: Architecture, where the file does not say or is wrong.
        num_classes: Number of classes, where the weights do not say.
        ema: Take the moving average (True) or the raw weights; None takes those whose top-1 the run reports.
        private: Make the repository private.
        revision: Branch; main if None.
        tag: Tag for the new commit.
        message: Commit message.
        token: Access token with write access; that of HF_TOKEN or `hf auth login` if None.

    Raises:
        UsageError: Something in the request is missing or wrong; nothing was sent.
        RunError: The Hub, the network or the disk failed.
    """
    repo_id, at = _split(repo_id)
    if at:
        raise UsageError(f'{repo_id}@{at}: name the branch with --revision.')
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f'HF_HUB_OFFLINE is set, {repo_id} cannot be pushed: unset it.')
    if (token or huggingface_hub.get_token()) is None:
        raise UsageError('Pushing needs a token with write access: set HF_TOKEN, or log in with `hf auth login`.')
    if license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise UsageError(f"--license '{license}' is not an identifier: they look like apache-2.0, mit or cc-by-4.0.")
    found = read_source(source, model, num_classes, ema)
    revision = revision or constants.DEFAULT_REVISION
    api = _api(token)
    with explained(repo_id, 'push'), _no_endless_wait():
        target = _inspect_target(api, repo_id, revision, private, tag, license)
    with temporary_folder(tempfile.gettempdir(), STAGING) as folder:
        files = _stage(found, folder, repo_id, license or target.license, make_card=not target.has_card)
        with explained(repo_id, 'push'), _no_endless_wait():
            parent = _prepare_target(api, repo_id, revision, private, target)
            additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            try:
                commit = api.create_commit(
                    repo_id,
                    additions,
                    commit_message=message or f'Add {found.model.pretrained_cfg["architecture"]}',
                    revision=revision,
                    parent_commit=parent,
                )
            except Exception:
                print(file=sys.stderr)  # ends the line of the progress bar, which huggingface_hub leaves open
                raise
            sha256 = _verify_pushed(api, repo_id, commit.oid, additions)
            if tag is not None:
                api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return Pushed(repo_id, commit.oid, str(commit.commit_url), revision, sha256, found.notes + target.notes)


def read_source(
        source: Union[str, Path],
        model: Optional[str] = None,
        num_classes: Optional[int] = None,
        ema: Optional[bool] = None,
) -> Source:
    """Read what is to be pushed, without the network (a model that was trained from the Hub's excepted).

    Raises:
        UsageError: It cannot be read, or does not say what it is.
    """
    path, run = Path(source), None
    notes = []
    if path.is_dir():
        run = results.read_run(str(path))
        path = next((path / n for n in ('model_best.pth.tar', 'last.pth.tar') if (path / n).is_file()), None)
        if path is None:
            raise UsageError(f'{source} holds neither model_best.pth.tar nor last.pth.tar.')
        if path.name.startswith('last'):
            notes.append(f'{path}: the last epoch, as there is no model_best.pth.tar')
    checkpoint = checkpoints.read_checkpoint(path)
    args = _arguments(checkpoint, Path(source) if run else None)
    arch = model or args.get('model') or inspection.architecture(checkpoint)
    if arch is None:
        raise UsageError(f'{path} does not say what it is: name its architecture with --model.')

    evaluated_ema = bool(args.get('model_ema')) and not args.get('model_ema_force_cpu')
    has_ema = checkpoints.has_ema(checkpoint)
    if ema and not has_ema:
        raise UsageError(f'{path} holds no moving average: leave out --ema.')
    use_ema = ema if ema is not None else bool(run) and has_ema and evaluated_ema
    if has_ema:
        chosen = 'moving average of the weights' if use_ema else 'raw weights'
        why = ', whose top-1 the run reports; --no-ema takes the raw ones' if use_ema else '; --ema takes their average'
        notes.append(f'weights: the {chosen}{why if ema is None else ""}')

    meta = _model_without_memory(arch, num_classes or args.get('num_classes'), args)
    weights = checkpoints.weights_of(checkpoint, meta, use_ema)
    outputs = inspection.num_classes(weights, meta.pretrained_cfg['architecture'])
    if num_classes is None and outputs is not None and outputs != meta.num_classes:
        meta = _model_without_memory(arch, outputs, args)
    misfit = checkpoints.describe_misfit(weights, meta, checkpoints.saved_arch(checkpoint, arch))
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit {arch}: {misfit}.')

    row = None
    if run and not (has_ema and use_ema != evaluated_ema):
        row = next((r for r in run['rows'] if r['epoch'] == checkpoint.get('epoch')), None)
    name = args.get('model') or ''
    origin = name if name.startswith('hf-hub:') or args.get('pretrained') else None
    labels = class_names(args, meta.num_classes)
    if labels is None and args:
        notes.append('label names: none, as the class folders of the training are not at hand')
    return Source(
        path, {k: v.contiguous() for k, v in weights.items()}, meta, args, run, row, origin, labels,
        ('moving average of the weights' if use_ema else ''), notes)


def _arguments(checkpoint: Dict[str, Any], run_dir: Optional[Path]) -> Dict[str, Any]:
    """Arguments of the training that wrote a checkpoint: from itself, else from its run's args.yaml."""
    args = checkpoint.get('args')
    if args is not None:
        return dict(args) if isinstance(args, dict) else dict(vars(args))
    if run_dir is not None and (run_dir / 'args.yaml').is_file():
        with open(run_dir / 'args.yaml') as f:
            return yaml.safe_load(f) or {}
    return {}


def _model_without_memory(name: str, num_classes: Optional[int], args: Dict[str, Any]) -> nn.Module:
    """A model whose parameters have shapes and no memory, as a training's arguments describe it."""
    try:
        source, rest = parse_model_name(name)
    except ValueError as e:
        raise UsageError(f'--model: {e}')
    if source == 'hf-hub':
        name = f'local-dir:{pull(rest, with_weights=False).folder}'
    elif source is None and not timm.is_model(split_model_name_tag(rest)[0]):
        arch = split_model_name_tag(rest)[0]
        raise UsageError(f"Unknown model '{name}': {suggest(arch, timm.list_models(), 'name one with --model.')}")
    settings = {'num_classes': num_classes, 'global_pool': args.get('gp')}
    channels = args.get('in_chans') or (args.get('input_size') or [None])[0]
    if channels:
        settings['in_chans'] = channels
    with torch.device('meta'):
        return timm.create_model(
            name, **{k: v for k, v in settings.items() if v is not None}, **(args.get('model_kwargs') or {}))


def class_names(args: Dict[str, Any], num_classes: int) -> Optional[List[str]]:
    """Names of the classes by index: the class folders of a training's data, in timm's order; None if not at hand."""
    root = args.get('data_dir') or args.get('data')
    if not root or args.get('dataset') or args.get('class_map'):
        return None
    split = Path(root) / str(args.get('train_split') or 'train')
    if not split.is_dir():
        return None
    images = get_img_extensions(as_set=True)
    folders = [p for p in split.iterdir() if p.is_dir()]
    if not all(any(f.suffix.lower() in images for f in p.iterdir()) for p in folders):
        return None  # nested or empty ones, which timm numbers otherwise
    names = sorted((p.name for p in folders), key=natural_key)
    return names if len(names) == num_classes else None


class Target(NamedTuple):
    """What is on the Hub before a push."""
    exists: bool
    head: Optional[str]
    has_card: bool
    license: Optional[str]
    notes: List[str]


def _inspect_target(
        api: HfApi, repo_id: str, revision: str, private: bool, tag: Optional[str], license: Optional[str]) -> Target:
    """Look at what is on the Hub, and refuse what must not be, before anything is written there."""
    exists, head, card = True, None, None
    notes = []
    try:
        info = _ask(lambda: api.model_info(repo_id, timeout=constants.HF_HUB_ETAG_TIMEOUT))
    except RepositoryNotFoundError as e:
        if status_of(e) == 401 and 'nvalid credentials' in str(e):
            raise
        exists = False
        notes.append(f'repository: made, {"private" if private else "public"}')
    if exists:
        if private and not info.private:
            raise UsageError(f'{repo_id} is public on the Hub: make it private on its page, or leave out --private.')
        refs = _ask(lambda: api.list_repo_refs(repo_id))
        if tag is not None and tag in [t.name for t in refs.tags]:
            raise UsageError(f'{repo_id} has a tag {tag} already: name another.')
        head = next((b.target_commit for b in refs.branches if b.name == revision), None)
        if head is None:
            notes.append(f'branch: {revision} made, from main')
        card = _card_of(api, repo_id, head)
    has_license = card.data.get('license') if card is not None else None
    if license is None and has_license is None:
        raise UsageError(f'{repo_id} has no licence yet: name that of these weights, e.g. --license apache-2.0 '
                         '(nothing was sent).')
    if license is not None and has_license not in (None, license):
        raise UsageError(f'The card of {repo_id} says license: {has_license}, --license {license}: change the card on '
                         'the Hub, or leave out --license.')
    if card is not None:
        unsaid = f'; it names no licence: add `license: {license}` to it' if has_license is None else ''
        notes.append(f'card: kept as it is on the Hub{unsaid}')
    else:
        notes.append('card: made')
    return Target(exists, head, card is not None, has_license, notes)


def _card_of(api: HfApi, repo_id: str, commit: Optional[str]) -> Optional[ModelCard]:
    """The card that is on the Hub; None if there is none."""
    try:
        path = api.hf_hub_download(repo_id, CARD, revision=commit)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    try:
        return ModelCard(Path(path).read_text(encoding='utf-8'), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as e:
        raise UsageError(f'The card of {repo_id} on the Hub cannot be read ({e}): mend it there.')


def _prepare_target(api: HfApi, repo_id: str, revision: str, private: bool, target: Target) -> Optional[str]:
    """Make repository and branch where they are missing; the commit that the push builds on."""
    if not target.exists:
        _ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if target.head is not None:
        return target.head
    if revision != constants.DEFAULT_REVISION:
        _ask(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    return None


def _stage(source: Source, folder: Path, repo_id: str, license: str, make_card: bool) -> Dict[str, Path]:
    """Write the files of a push; by their name in the repository."""
    files = {SAFE_WEIGHTS: folder / SAFE_WEIGHTS, CONFIG: folder / CONFIG}
    if _is_ready(source):
        files[SAFE_WEIGHTS] = source.path  # no copy needed
    else:
        try:
            save_file(source.weights, files[SAFE_WEIGHTS], metadata={'format': 'pt'})
        except (SafetensorError, OSError) as e:
            raise RunError(f'The weights cannot be written to {folder} ({e}): free some room, or set TMPDIR.')
    config = make_config(source, license, files[CONFIG])
    curves = _curves(source, folder)
    if curves is not None:
        files[model_card.CURVES] = curves
    if make_card:
        files[CARD] = folder / CARD
        files[CARD].write_text(model_card.make_card(
            repo_id, license, source.model, config, plugin_of(config['architecture']), source.run, source.row,
            source.args, source.origin, source.weights_are, curves is not None), encoding='utf-8')
    return files


def _is_ready(source: Source) -> bool:
    """The file is what would be written: safetensors, with the model's names and nothing besides."""
    if source.path.suffix != '.safetensors':
        return False
    with safe_open(source.path, framework='pt') as f:
        return set(f.keys()) == set(source.weights) and f.metadata() in (None, {'format': 'pt'})


def make_config(source: Source, license: str, path: Path) -> Dict[str, Any]:
    """Write config.json as timm reads it: the model as trained, and no claim of other weights'."""
    data_config = {k: source.args[k] for k in DATA_ARGS if source.args.get(k) is not None}
    model_config: Dict[str, Any] = {'label_names': source.labels} if source.labels else {}
    save_config_for_hf(source.model, str(path), model_config=model_config, data_config=data_config)
    config = json.loads(path.read_text())
    pretrained = {k: v for k, v in config['pretrained_cfg'].items() if k not in PROVENANCE}
    config['pretrained_cfg'] = dict(pretrained, license=license)
    plugin = plugin_of(config['architecture'])
    if plugin:
        config['requires'] = f'import {plugin}'
    path.write_text(redact(json.dumps(config, indent=2)) + '\n')
    return config


def plugin_of(architecture: str) -> Optional[str]:
    """Python package that registers an architecture with timm; None if timm itself does."""
    package = timm.model_entrypoint(architecture).__module__.split('.')[0]
    return None if package == 'timm' else package


def _curves(source: Source, folder: Path) -> Optional[Path]:
    if source.run is None:
        return None
    path = folder / model_card.CURVES
    try:
        results.draw_curves(source.run, path)
    except UsageError as e:
        drawn = Path(source.run['dir']) / model_card.CURVES
        if not drawn.is_file():
            source.notes.append(f'curves: none ({e})')
            return None
        path = drawn
    return path


def _verify_pushed(
        api: HfApi, repo_id: str, commit: str, additions: List[CommitOperationAdd]) -> Dict[str, str]:
    """Compare what is on the Hub with what was sent; SHA-256 of every file."""
    info = _ask(lambda: api.model_info(
        repo_id, revision=commit, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT))
    siblings = {s.rfilename: s for s in info.siblings}
    sha256 = {}
    for addition in additions:
        name = addition.path_in_repo
        sha256[name] = addition.upload_info.sha256.hex()
        expected = _expected(repo_id, siblings[name]) if name in siblings else None
        if expected is not None and expected.kind == 'git':
            is_there = _digests(Path(addition.path_or_fileobj))['git'] == expected.value
        else:
            is_there = expected is not None and sha256[name] == expected.value
        if not is_there:
            raise RunError(f'{repo_id}: {name} on the Hub is not what was sent (commit {commit}): push again.')
    return sha256


@contextmanager
def _no_endless_wait() -> Iterator[None]:
    """Give the requests of huggingface_hub that have no time limit one; its requests-based versions cannot."""
    session = huggingface_hub.get_session() if hasattr(huggingface_hub, 'get_session') else None
    if not hasattr(session, 'timeout'):
        yield
        return
    before = session.timeout
    session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT if 'HF_HUB_DOWNLOAD_TIMEOUT' in os.environ else TIMEOUT
    try:
        yield
    finally:
        session.timeout = before
