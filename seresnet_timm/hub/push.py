"""Push models to the Hugging Face Hub, with checks that timm's own push does not have

    push('output/train/RUN', 'org/name', license='apache-2.0')
    pull('org/name')
    timm.create_model('hf-hub:org/name', pretrained=True)  # after `import seresnet_timm`

What this package adds:
  * weights are uploaded as safetensors only; config.json and card describe these weights, not those of timm's tag
  * the hash of every downloaded file is compared with the hash that the Hub names, and a damaged file is removed; the
    files on the Hub are verified after a push
  * without the Hub, a file in the cache is used only if it has the hash that the Hub named when it was downloaded

Endpoint (HF_ENDPOINT), token (HF_TOKEN), proxies, cache (HF_HOME), offline mode (HF_HUB_OFFLINE) and progress bars are
those of huggingface_hub.
"""
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Union

import huggingface_hub
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from seresnet_timm.checkpoints.convert import separate
from seresnet_timm.engine.rules import is_revision
from seresnet_timm.engine.values import LICENSE
from seresnet_timm.errors import RunError, UsageError, first_line, first_names, printable, refuse
from seresnet_timm.files import copy_file, is_utf8, temporary_folder
from seresnet_timm.hub import modelscope
from seresnet_timm.hub.card import make_card
from seresnet_timm.hub.client import ask, first_answer, make_api, say, split_name, time_limit
from seresnet_timm.hub.config import make_config
from seresnet_timm.hub.errors import explain, explained, redact, status_of
from seresnet_timm.hub.repository import CARD, CONFIG, CURVES, SAFE_WEIGHTS, digest_of, digest_on_hub
from seresnet_timm.hub.upload import Source, read_source
from seresnet_timm.process import FIRST_ANSWER, within
from seresnet_timm.runs.curves import draw_curves

STAGING = 'seresnet-timm-push-'


@dataclass
class Pushed:
    """A model that was pushed and verified.

    Attributes:
        repo_id: 'organisation/name'.
        commit: Commit on the Hub; '' on ModelScope, which names none.
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


def push(
        source: Union[str, Path],
        repo_id: str,
        license: Optional[str] = None,
        model: Optional[str] = None,
        num_classes: Optional[int] = None,
        use_ema: Optional[bool] = None,
        private: bool = False,
        revision: Optional[str] = None,
        tag: Optional[str] = None,
        message: Optional[str] = None,
        token: Optional[str] = None,
        ema: Optional[bool] = None,
        class_names: Optional[Union[str, Path]] = None,
) -> Pushed:
    """Push the weights of a run or of a file, their configuration and a model card; verify what has arrived.

    A missing repository or branch is created. A card that is on the Hub is kept.

    Args:
        source: Output folder of a training (its best checkpoint is taken), or a checkpoint.
        repo_id: 'organisation/name'; with 'modelscope:' before it, on ModelScope.
        license: Licence of the weights, an identifier of the Hub; that of the card on the Hub if None.
        model: Architecture, if the file does not tell it or is wrong.
        num_classes: Number of classes, if the weights do not tell it.
        use_ema: Take the moving average (True) or the raw weights; None takes those whose top-1 the run reports.
        private: Make the repository private.
        revision: Branch; main, and on ModelScope master, if None.
        tag: Tag for the new commit.
        message: Commit message.
        token: Access token with write access; that of HF_TOKEN or `hf auth login` if None.
        ema: Older name of `use_ema`.
        class_names: File with the name of a class a line, over the names in the file.

    Raises:
        UsageError: Something in the request is missing or wrong; nothing was sent.
        RunError: The Hub, the network or the disk failed.
    """
    if modelscope.is_name(repo_id):
        asked = ToModelScope(repo_id, license or '', private, revision, tag, message)
        return _push_to_modelscope(
            asked, lambda: read_source(source, model, num_classes, ema if use_ema is None else use_ema, class_names))
    repo_id = _check_request(repo_id, license, revision, tag, token)
    found = read_source(source, model, num_classes, ema if use_ema is None else use_ema, class_names)
    revision = revision or constants.DEFAULT_REVISION
    api = make_api(token)
    with explained(repo_id, 'push'), time_limit():
        target = _inspect_target(api, repo_id, revision, private, tag, license)
    with temporary_folder(tempfile.gettempdir(), STAGING) as folder:
        files = _stage(found, folder, repo_id, license or target.license or '', with_card=not target.has_card)
        with explained(repo_id, 'push'), time_limit():
            additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            with _removed_if_empty(api, repo_id, target):
                parent = _prepare_target(api, repo_id, revision, private, target)
                try:
                    commit = api.create_commit(
                        repo_id,
                        additions,
                        commit_message=message or f'Add {found.architecture}',
                        revision=revision,
                        parent_commit=parent,
                    )
                except Exception:
                    print(file=sys.stderr)  # ends the line of the progress bar, which huggingface_hub leaves open
                    raise
            sha256 = _verify_pushed(api, repo_id, commit.oid, additions)
            if tag is not None:
                _tag(api, repo_id, tag, commit.oid)
    return Pushed(repo_id, commit.oid, printable(str(commit.commit_url)), revision, sha256, found.notes + target.notes)


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Tag a commit; an error says that the model is there."""
    try:
        api.create_tag(repo_id, tag=tag, revision=commit)
    except Exception as e:
        why = 'this Hub takes no tags (404).' if status_of(e) == 404 else explain(e, repo_id, 'push')
        if why is None:
            raise
        raise RunError(f'{repo_id} has the model, as commit {commit}, but not the tag {tag}: {why}') from None


def _check_request(
        repo_id: str,
        license: Optional[str],
        revision: Optional[str],
        tag: Optional[str],
        token: Optional[str],
) -> str:
    """Refuse what is wrong without a question to the Hub; the checked name of the repository."""
    problems: List[Union[str, UsageError]] = []
    try:
        repo_id, at = split_name(repo_id)
        problems += [f'{repo_id}@{at}: name the branch with --revision.'] if at else []
    except UsageError as e:
        problems.append(e)
    problems += _wrong_texts(license, revision, tag)
    if constants.HF_HUB_OFFLINE:
        problems.append(f'HF_HUB_OFFLINE is set, {printable(repo_id)} cannot be pushed: unset it.')
    elif (token or huggingface_hub.get_token()) is None:
        problems.append('A push needs a token with write access: set HF_TOKEN, or log in with `hf auth login`.')
    refuse(problems)
    return repo_id


def _wrong_texts(license: Optional[str], revision: Optional[str], tag: Optional[str]) -> Iterator[str]:
    for flag, name in (('--revision', revision), ('--tag', tag)):
        if name is not None and not is_revision(name):
            yield f"{flag} '{printable(name)}' is not a valid name: git does not allow it."
    wrong = LICENSE.wrong(license or '')
    if wrong:
        yield f'--license {printable(license)} {wrong}.'


class ToModelScope(NamedTuple):
    """A push to ModelScope, as it was asked for."""
    name: str
    license: str
    private: bool
    revision: Optional[str]
    tag: Optional[str]
    message: Optional[str]


def _push_to_modelscope(asked: ToModelScope, read: Callable[[], Source]) -> Pushed:
    """Push to ModelScope, in one commit; what `read` gives is read after the request was checked."""
    problems: List[Union[str, UsageError]] = []
    try:
        repo_id, at = modelscope.split_name(asked.name)
        problems += [f'{asked.name}: name the branch with --revision.'] if at else []
    except UsageError as e:
        problems.append(e)
    problems += _wrong_texts(asked.license, asked.revision, asked.tag)
    if not asked.license:
        problems.append(f'{asked.name}: name the licence of these weights, e.g. --license apache-2.0.')
    refuse(problems)
    api = modelscope.make_api()
    if not modelscope.has_token():
        raise UsageError('A push needs a token with write access: set MODELSCOPE_API_TOKEN, or log in with `modelscope '
                         'login`.')
    found = read()
    with modelscope.explained(repo_id, 'push'):
        target = modelscope.inspect_target(api, repo_id, asked.private, asked.revision)
    with temporary_folder(tempfile.gettempdir(), STAGING) as folder:
        files = _stage(found, folder, repo_id, asked.license, with_card=not target.has_card)
        if files[SAFE_WEIGHTS].parent != folder:
            copy_file(files[SAFE_WEIGHTS], folder / SAFE_WEIGHTS)
            files[SAFE_WEIGHTS] = folder / SAFE_WEIGHTS
        if CARD in files:
            text = files[CARD].read_text(encoding='utf-8').replace(f"'hf-hub:{repo_id}'", "'local-dir:FOLDER'")
            version = '' if target.revision == modelscope.BRANCH else f'@{target.revision}'
            text = text.replace(
                'import timm\n', f'import timm  # after `seresnet-timm pull {asked.name}{version} FOLDER`\n')
            files[CARD].write_text(text, encoding='utf-8')
        with modelscope.explained(repo_id, 'push'):
            sha256 = modelscope.upload(
                api, repo_id, files, target, private=asked.private, license=asked.license, tag=asked.tag,
                message=asked.message or f'Add {found.architecture}')
    notes = [f'repository: created, {"private" if asked.private else "public"}'] if not target.exists else []
    notes.append('card: the one on ModelScope is kept' if target.has_card else 'card: created')
    return Pushed(repo_id, '', f'{modelscope.endpoint()}/models/{repo_id}', target.revision, sha256,
                  found.notes + notes)


class Target(NamedTuple):
    """What is on the Hub before a push."""
    exists: bool
    head: Optional[str]
    has_card: bool
    license: Optional[str]
    notes: List[str]


def _inspect_target(
        api: HfApi,
        repo_id: str,
        revision: str,
        private: bool,
        tag: Optional[str],
        license: Optional[str],
) -> Target:
    """What is on the Hub; what does not fit to it is refused before anything is written there."""
    exists, head, card = True, None, None
    notes = []
    try:
        info = first_answer(lambda: api.model_info(repo_id, timeout=constants.HF_HUB_ETAG_TIMEOUT))
    except RepositoryNotFoundError as e:
        if status_of(e) == 401 and 'nvalid credentials' in str(e):
            raise
        exists = False
        notes.append(f'repository: created, {"private" if private else "public"}')
    if exists:
        if private and not info.private:
            raise UsageError(f'{repo_id} is public on the Hub: make it private on its page, or leave out --private.')
        refs = ask(lambda: api.list_repo_refs(repo_id))
        if tag is not None and tag in [t.name for t in refs.tags]:
            raise UsageError(f'{repo_id} already has the tag {tag}: choose another one.')
        head = next((b.target_commit for b in refs.branches if b.name == revision), None)
        if head is None:
            notes.append(f'branch: {revision} created, from main')
        card = _card_of(api, repo_id, head)
    has_license = card.data.get('license') if card is not None else None
    has_license = None if has_license is None else printable(str(has_license))
    if license is None and has_license is None:
        raise UsageError(f'{repo_id} has no licence yet: name the licence of these weights, e.g. --license apache-2.0 '
                         '(nothing was sent).')
    if license is not None and has_license not in (None, license):
        raise UsageError(f'The card of {repo_id} says license: {has_license}, --license {license}: change the card on '
                         'the Hub, or leave out --license.')
    if card is not None:
        no_license = f'; it names no licence: add `license: {license}` to it' if has_license is None else ''
        notes.append(f'card: the one on the Hub is kept{no_license}')
    else:
        notes.append('card: created')
    return Target(exists, head, card is not None, has_license, notes)


def _card_of(api: HfApi, repo_id: str, commit: Optional[str]) -> Optional[ModelCard]:
    """The card that is on the Hub; None if not found."""
    try:
        path = api.hf_hub_download(repo_id, CARD, revision=commit)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    try:
        return ModelCard(Path(path).read_text(encoding='utf-8'), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as e:
        raise UsageError(f'The card of {repo_id} on the Hub cannot be read ({first_line(e)}): fix it there.')


def _prepare_target(api: HfApi, repo_id: str, revision: str, private: bool, target: Target) -> Optional[str]:
    """Create repository and branch if they are missing; the commit that the push builds on."""
    if not target.exists:
        ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if target.head is not None:
        return target.head
    if revision != constants.DEFAULT_REVISION:
        ask(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    return None


@contextmanager
def _removed_if_empty(api: HfApi, repo_id: str, target: Target) -> Iterator[None]:
    """Delete the repository again if this push made it and nothing was committed to it, or say that it remains."""
    try:
        yield
    except BaseException as e:
        if not target.exists:
            left = _delete_empty(api, repo_id)
            if left is not None:
                say(f'{repo_id}: {left}. The same command continues.')
            elif not isinstance(e, RepositoryNotFoundError):
                say(f'{repo_id}: the repository that this push made is deleted again, as nothing was committed.')
        raise


def _delete_empty(api: HfApi, repo_id: str) -> Optional[str]:
    """Delete a repository that holds no files; what remains of it, None if nothing does."""
    try:
        info = first_answer(lambda: api.model_info(repo_id, timeout=constants.HF_HUB_ETAG_TIMEOUT))
        files = [s.rfilename for s in info.siblings or [] if s.rfilename != '.gitattributes']
        if files:
            return f'the push was not confirmed, the repository holds {first_names(files, 3)}'
        within(FIRST_ANSWER, lambda: api.delete_repo(repo_id))
    except RepositoryNotFoundError:
        return None
    except Exception as e:  # of the network, as that before it
        return f'it may be on the Hub, created by this push and empty ({redact(first_line(e))})'
    return None


def _stage(source: Source, folder: Path, repo_id: str, license: str, with_card: bool) -> Dict[str, Path]:
    """Write the files of a push; by their name in the repository."""
    files = {SAFE_WEIGHTS: folder / SAFE_WEIGHTS, CONFIG: folder / CONFIG}
    if _is_ready(source):
        files[SAFE_WEIGHTS] = source.path  # no copy needed
    else:
        try:
            save_file(separate(source.weights), files[SAFE_WEIGHTS], metadata={'format': 'pt'})
        except (SafetensorError, OSError) as e:
            raise RunError(f'The weights cannot be written to {folder} ({first_line(e)}): free disk space, or set '
                           'TMPDIR.')
    config = make_config(source, license, files[CONFIG])
    curves = _curves(source, folder)
    if curves is not None:
        files[CURVES] = curves
    if with_card:
        files[CARD] = folder / CARD
        files[CARD].write_text(make_card(source, repo_id, license, config, curves is not None), encoding='utf-8')
    return files


def _is_ready(source: Source) -> bool:
    """True if the file is what would be written: safetensors with the names of the model, and nothing else."""
    if source.path.suffix != '.safetensors' or not is_utf8(source.path):
        return False
    with safe_open(source.path, framework='pt') as f:
        return set(f.keys()) == set(source.weights) and f.metadata() in (None, {'format': 'pt'})


def _curves(source: Source, folder: Path) -> Optional[Path]:
    """Picture of the curves of a run: a new one, else the one in its folder."""
    if source.run is None:
        return None
    path = folder / CURVES
    try:
        draw_curves(source.run.record, source.run.rows, path)
    except UsageError as e:
        drawn = source.run.folder.curves
        if not drawn.is_file():
            source.notes.append(f'curves: none ({e})')
            return None
        path = drawn
    return path


def _verify_pushed(
        api: HfApi,
        repo_id: str,
        commit: str,
        additions: List[CommitOperationAdd],
) -> Dict[str, str]:
    """Compare what is on the Hub with what was sent; SHA-256 of every file."""
    info = ask(lambda: api.model_info(
        repo_id, revision=commit, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT))
    siblings = {s.rfilename: s for s in info.siblings}
    sha256 = {}
    for addition in additions:
        name = addition.path_in_repo
        sha256[name] = addition.upload_info.sha256.hex()
        on_hub = digest_on_hub(repo_id, siblings[name]) if name in siblings else None
        if on_hub is not None and on_hub.kind == 'git':
            is_there = digest_of(Path(str(addition.path_or_fileobj)), 'git') == on_hub
        else:
            is_there = on_hub is not None and sha256[name] == on_hub.value
        if not is_there:
            raise RunError(f'{repo_id}: {name} on the Hub is not what was sent (commit {commit}): push again.')
    return sha256
