"""What a run downloads: a model, pretrained weights, a data set; once per node, before its ranks start."""
import socket
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from seresnet_timm.errors import RunError, first_line, printable
from seresnet_timm.files import temporary_folder
from seresnet_timm.launch.checks import names_several_models
from seresnet_timm.launch.plan import Plan, decide_for_network
from seresnet_timm.runs.settings import RunSettings

# kinds of data sets that their reader downloads: on its own, or with --dataset-download
FROM_THE_HUB, ON_REQUEST = ('hfds', 'hfids'), ('torch', 'tfds', 'hfids')


def pull_model(
        settings: RunSettings, plan: Plan, stack: ExitStack, before_download: Callable[[], None]) -> RunSettings:
    """Pull a model that is not on this machine, once per node; in a dry run its configuration only, for the time of it.

    Args:
        settings: Settings of the run.
        plan: The plan that they are of.
        stack: Keeps the temporary folder of a dry run.
        before_download: Called before something is downloaded.
    """
    name = settings.args['model']
    if not _is_remote(name):
        return settings
    before_download()
    from seresnet_timm.hub.pull import architecture_without, pull
    weights = bool(settings.args.get('pretrained')) and not plan.dry_run and not settings.args.get('resume')
    cache = stack.enter_context(temporary_folder(tempfile.gettempdir(), 'seresnet-timm-dry-')) if plan.dry_run else None
    try:
        pulled = pull(name, with_weights=weights, cache=cache)
    except RunError as e:
        checkpoint = plan.checkpoints.get(str(settings.args.get('checkpoint')))
        if checkpoint is None or not settings.reasons.get('model', '').startswith('from '):
            raise
        architecture = architecture_without(checkpoint, e)
        args = {**settings.args, 'model': architecture}
        return replace(settings, args=args, notes=[
            *settings.notes, f'{first_line(e)}: the network is made as {architecture}, which its weights are of.'])
    settings = replace(settings, model_folder=str(pulled.folder), model_commit=pulled.commit)
    # what the plan has no reason for is the user's choice
    return decide_for_network(
        settings, plan.node, [name for name in ('channels_last', 'lean_se') if name in settings.reasons])


def pull_teacher(
        settings: RunSettings, plan: Plan, stack: ExitStack, before_download: Callable[[], None]) -> RunSettings:
    """Pull a teacher, as `pull_model` does."""
    name = settings.args.get('kd_model_name') or ''
    if not _is_remote(name):
        return settings
    before_download()
    from seresnet_timm.hub.pull import pull
    cache = stack.enter_context(temporary_folder(tempfile.gettempdir(), 'seresnet-timm-dry-')) if plan.dry_run else None
    pulled = pull(name, with_weights=not plan.dry_run, cache=cache)
    return replace(settings, teacher_folder=str(pulled.folder))


def needs_the_hub(settings: RunSettings) -> bool:
    """Whether the network of a run, or its teacher, is a model on the Hub or on ModelScope."""
    return any(_is_remote(settings.args.get(key) or '') for key in ('model', 'kd_model_name'))


def _is_remote(name: str) -> bool:
    if ':' not in name:
        return False
    from seresnet_timm.hub.names import is_remote
    return is_remote(name)


@contextmanager
def downloaded(settings: RunSettings, before_download: Callable[[], None]) -> Iterator[None]:
    """Have what the ranks need in the caches; they take it from there, without a network.

    Args:
        settings: Settings of the run.
        before_download: Called before something is downloaded.

    Raises:
        RunError: Something cannot be downloaded.
    """
    args = settings.args
    with ExitStack() as stack:
        names = _pretrained_names(settings)
        if names:
            from seresnet_timm.hub import weights
            before_download()
            for name in names:
                by_hand = weights.download(name) is not None and weights.brought_in_by_hand(name)
                if by_hand:
                    print(f'Pretrained weights of {name}: {printable(by_hand)}.')
            if not args.get('dataset'):  # which may be on the Hub too
                from seresnet_timm.hub.client import offline
                stack.enter_context(offline())
        kind = (args.get('dataset') or '').partition('/')[0].lower()
        if kind in FROM_THE_HUB or kind in ON_REQUEST and args.get('dataset_download'):
            before_download()
            _download_dataset(settings, kind, stack)
        yield


def _pretrained_names(settings: RunSettings) -> List[str]:
    """timm's names whose pretrained weights the run loads: of the network, and of its teacher."""
    args, names = settings.args, []
    if args.get('pretrained') and not _has_own_weights(settings) and not names_several_models(args['model']):
        names.append(args['model'])
    teacher = args.get('kd_model_name')
    if teacher and ':' not in teacher and not Path(teacher).exists():
        names.append(teacher)
    return names


def _has_own_weights(settings: RunSettings) -> bool:
    files = ('pretrained_path', 'checkpoint', 'resume')
    return bool(settings.model_folder or any(settings.args.get(flag) for flag in files))


def _download_dataset(settings: RunSettings, kind: str, stack: ExitStack) -> None:
    """Have timm's reader download a data set, for every split."""
    args, name = settings.args, printable(settings.args['dataset'])
    without: Optional[str] = None
    if kind in FROM_THE_HUB:
        without = _why_no_hub(args['dataset'].partition('/')[2])
        if without:
            from seresnet_timm.hub.client import offline
            stack.enter_context(offline())  # the reader then takes it from its cache at once, or not at all
    from seresnet_timm.process import FIRST_ANSWER
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(FIRST_ANSWER)  # torchvision has no time limit
    try:
        for arguments in _splits(settings):
            _create_dataset(arguments)
    except Exception as e:  # of readers, HTTP clients and the file system
        folder = args.get('data_dir') or ('its cache' if kind in FROM_THE_HUB else '--data-dir')
        where = 'the cache of `datasets` (HF_HOME)' if kind in FROM_THE_HUB else folder
        raise RunError(
            f'The data set {name} cannot be read or downloaded ({without or printable(first_line(e)[:300])}). Check '
            f'--dataset, its splits and the network (HTTPS_PROXY, HF_ENDPOINT); without a network, copy it from a '
            f'machine that has it into {where}, or name a folder of images with --data-dir.') from None
    finally:
        socket.setdefaulttimeout(before)


def _why_no_hub(name: str) -> Optional[str]:
    """Why the Hub cannot be asked for a data set; None if it can. A folder needs no Hub."""
    from seresnet_timm.hub.client import first_answer, make_api
    from seresnet_timm.hub.errors import is_answer, is_unreachable, reason, status_of
    if Path(name).exists():
        return None
    try:
        first_answer(lambda: make_api(None).dataset_info(name))
    except Exception as e:
        if is_unreachable(e) or is_answer(e) and status_of(e) not in (401, 404):
            return reason(e)  # the reader says all else
    return None


def _splits(settings: RunSettings) -> Iterator[Dict[str, Any]]:
    args = settings.args
    splits = {'split': 'num_samples'} if settings.verb == 'validate' else {
        'train_split': 'train_num_samples', 'val_split': 'val_num_samples'}
    for flag, count in splits.items():
        split = args[flag]
        if split:
            yield dict(
                num_samples=args.get(count),
                name=args['dataset'], root=args.get('data_dir'), split=split, is_training=False, batch_size=1,
                download=bool(args.get('dataset_download')),
                trust_remote_code=bool(args.get('dataset_trust_remote_code')),
                input_key=args.get('input_key'), target_key=args.get('target_key'))


def _create_dataset(arguments: Dict[str, Any]) -> None:
    from timm.data import create_dataset
    create_dataset(**arguments)
