"""Everything that can be refused before a run starts, all at once, with path and remedy; nothing is written

A check is a function of `Checked` that yields sentences, in the list `CHECKS` of its verb.
"""
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from timm.data import create_transform
from timm.models import get_pretrained_cfg, parse_model_name
from timm.optim import list_optimizers

from seresnet_timm.ascend import optim  # registers the NPU's optimizer
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.read import read_once
from seresnet_timm.data.classes import read_classes, split_folder
from seresnet_timm.data.label_files import (
    check_real_labels,
    read_valid_labels,
    valid_labels_of_timm,
    wrong_real_name,
)
from seresnet_timm.data.loaders import is_folder_dataset
from seresnet_timm.data.trivial_augment import TA_WIDE
from seresnet_timm.engine import timm_names
from seresnet_timm.errors import UsageError, counted, did_you_mean, first_line, printable, refuse, shell_line
from seresnet_timm.files import why_not_writable
from seresnet_timm.launch.checkpoint_checks import (
    check_checkpoint,
    check_named_weights,
    check_train_weights,
    unnamed_classes,
)
from seresnet_timm.launch.resources import check_resources
from seresnet_timm.launch.teacher_checks import check_teacher
from seresnet_timm.models.create import FLAGS, WRONG_ARGUMENT, check_model_name, create_from_args
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.record import DamagedRecord, read_record
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.step.freeze import describe as describe_frozen
from seresnet_timm.step.freeze import freeze
from seresnet_timm.step.half_weights import use_half_weights

# flags of train.py that are arguments of the network too
RATES = ('drop', 'drop_path', 'drop_connect', 'drop_block', 'bn_momentum', 'bn_eps')


class Checked:
    """A run that is checked: its settings, and what several checks need.

    Attributes:
        settings: Settings of the run.
        checkpoints: Checkpoints that were read, by their path.
        args: Flags of the script.
        model: The network without memory; None where its name or arguments are wrong.
        teacher: Its teacher, likewise; None without one.
        notes: What is said of the run, though it is not refused; each a sentence.
    """

    def __init__(self, settings: RunSettings, checkpoints: Dict[str, Checkpoint]):
        self.settings = settings
        self.checkpoints = checkpoints
        self.args = settings.namespace()
        self.model: Optional[Any] = None
        self.teacher: Optional[Any] = None
        self.notes: List[str] = []

    def read(self, path: str) -> Checkpoint:
        """A checkpoint, read once."""
        self.checkpoints[path] = read_once(path, self.checkpoints)
        return self.checkpoints[path]

    def flag(self, name: str) -> Any:
        """Value of a flag; None where the script has no such flag."""
        return getattr(self.args, name, None)


def check(
        settings: RunSettings,
        dry_run: bool = False,
        problems: Optional[List[str]] = None,
        checkpoints: Optional[Dict[str, Checkpoint]] = None,
) -> List[str]:
    """Check a run against the machine, the data and the files that it names.

    Args:
        settings: Settings of the run.
        dry_run: Import no module that `--device-modules` names.
        problems: What was found before.
        checkpoints: Checkpoints that were read before, by their path; those that are read here are added.

    Returns:
        Notes for the plan, each a sentence.

    Raises:
        UsageError: Something is wrong; every problem found is named.
    """
    modules = settings.args.get('device_modules') or []
    missing = list(missing_modules(modules))
    found = [*(problems or []), *missing]
    if not dry_run and not missing:
        import_modules(modules)
    if settings.verb == 'validate' and names_several_models(settings.args['model']):
        if settings.script.is_bundled:
            raise UsageError(f"--model {settings.args['model']}: the bundled validate.py evaluates one model; timm's "
                             'takes several (--scripts timm).')
        refuse(found)
        return []  # timm's script finds the models, and what they need
    run = Checked(settings, {} if checkpoints is None else checkpoints)
    knows_models = not (modules and (dry_run or missing))  # a module may register models, optimizers
    for function in CHECKS[settings.verb]:
        if not knows_models and function in (check_model, check_teacher, check_optimizer):
            continue
        try:
            found += list(function(run))
        except UsageError as e:
            found.append(str(e))
    if not found:
        from seresnet_timm.launch.sample import check_sample
        found = list(check_sample(run))
    refuse(found)
    return run.notes + unnamed_classes(settings, run.checkpoints)


def import_modules(modules: List[str]) -> None:
    """Import what `--device-modules` names; it may register models and optimizers."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UsageError(f'--device-modules {module} does not import: {e}.')


def missing_modules(modules: List[str]) -> Iterator[str]:
    """Which modules are not there, without executing a line of them: of `a.b` only `a` is looked for."""
    for module in modules:
        top = module.partition('.')[0]
        if not all(part.isidentifier() for part in module.split('.')):
            yield f'--device-modules {printable(module)} is not the name of a module, such as package.module.'
        elif top not in sys.modules and importlib.util.find_spec(top) is None:
            yield f'--device-modules {printable(module)} does not import: there is no module {printable(top)}.'


def names_several_models(model: str) -> bool:
    return model == 'all' or bool(set('*?[') & set(model)) or os.path.isfile(model)


# --- model and weights ------------------------------------------------------------------------------------------------

def check_model(run: Checked) -> Iterator[str]:
    args = run.args
    try:
        source, name = ('local-dir', '') if run.settings.model_folder else parse_model_name(args.model)
    except ValueError as e:
        raise UsageError(f'--model: {e}')
    if source is None:
        check_model_name(name)
        cfg = get_pretrained_cfg(name, allow_unregistered=True)
        has_weights = cfg is not None and cfg.has_weights
        if run.settings.verb == 'validate' and not args.checkpoint and not has_weights:
            yield f'There are no pretrained weights of {args.model} to evaluate: name some with --checkpoint.'
        elif args.pretrained and not has_weights and not any(
                run.flag(k) for k in ('pretrained_path', 'checkpoint', 'resume')):
            yield (f'There are no pretrained weights for {args.model}: leave out --pretrained, or name a file with '
                   '--pretrained-path.')
    _refuse_arguments_with_flags(run)
    rates = {} if run.settings.verb == 'validate' else dict(
        drop_rate=run.flag('drop'), drop_block_rate=run.flag('drop_block'),
        drop_path_rate=run.flag('drop_connect') if run.flag('drop_path') is None else run.flag('drop_path'),
        bn_momentum=run.flag('bn_momentum'), bn_eps=run.flag('bn_eps'))
    try:
        run.model = create_from_args(args, folder=run.settings.model_folder, meta=True, **rates)
    except WRONG_ARGUMENT as e:
        given = [f'--{n.replace("_", "-")} {run.flag(n)}' for n in ('gp', 'in_chans', 'num_classes', *RATES)
                 if run.flag(n) is not None and run.flag(n) != 0]
        raise UsageError(f'{args.model} cannot be made ({printable(first_line(e))}): check {", ".join(given)}.')
    if run.flag('naflex_loader') and type(run.model).__name__ != 'NaFlexVit':
        yield f'--naflex-loader is for networks such as naflexvit_base_patch16_gap, not for {args.model}: leave it out.'
    if run.settings.half_weights:
        use_half_weights(run.model)  # refuses what it does not know
    if run.settings.freeze and run.settings.verb == 'train':
        yield from _freeze(run)


def _refuse_arguments_with_flags(run: Checked) -> None:
    """Refuse arguments of `--model-kwargs` that the plan decides on, or that timm's script would give twice.

    Raises:
        UsageError: There are some. The network is not made: with `pretrained` it would download.
    """
    script, own = run.settings.script, run.flag('model_kwargs') or {}
    names = {'num_classes', 'in_chans', 'pretrained', 'checkpoint_path'}
    if not script.is_bundled:
        from seresnet_timm.timm_scripts.load import arguments_of
        names |= arguments_of(script, 'create_model')
    refuse([f'--model-kwargs {name}={printable(own[name])} has a flag of its own: give it as '
            f'{FLAGS.get(name, ("--" + name,))[0]}.' for name in sorted(names & set(own))])


def _freeze(run: Checked) -> Iterator[str]:
    freeze(run.model, run.settings.freeze)
    run.notes.append(f'--freeze {run.settings.freeze}: {describe_frozen(run.model)}.')
    sources = ('pretrained', 'pretrained_path', 'initial_checkpoint', 'resume')
    if not any(run.flag(name) for name in sources) and run.settings.model_folder is None:
        yield ('--freeze keeps layers as they are, but no weights are loaded, so that they would stay random: add '
               '--pretrained, --pretrained-path or --initial-checkpoint.')


def check_graph(run: Checked) -> Iterator[str]:
    """What `--graph` contradicts; what it cannot capture is said in the plan."""
    asked = run.settings.graph or 'graph' in run.settings.reasons
    if asked and run.settings.verb == 'validate':
        yield '--graph is a flag of train: it captures training steps. Leave it out.'
    elif asked and run.flag('torchcompile'):
        yield ('--graph and --torchcompile both replace the steps of the network: leave one out (--torchcompile-mode '
               'reduce-overhead captures what it compiled).')
    elif asked and not run.settings.fast_step:
        yield "--graph and --fast-step off, which is timm's own set-up, contradict each other: leave one out."


def check_freeze(run: Checked) -> Iterator[str]:
    if run.settings.freeze:
        yield '--freeze is a flag of train: an evaluation changes no weights. Leave it out.'


# --- flags ------------------------------------------------------------------------------------------------------------

def check_precision(run: Checked) -> Iterator[str]:
    args, settings = run.args, run.settings
    if run.flag('amp') and run.flag('model_dtype') not in (None, 'float32'):
        yield f'--amp needs float32 weights, but --model-dtype is {args.model_dtype}: leave out one of the two.'
    if settings.amp_level == 'O2' and args.amp_dtype != 'float16':
        yield f'--amp-level O2 computes in float16, --amp-dtype is {args.amp_dtype}: leave one out.'
    if settings.device.startswith('npu') and run.flag('channels_last'):
        yield '--channels-last is not for an NPU: torch_npu takes contiguous tensors only; leave it out.'


def check_compile(run: Checked) -> Iterator[str]:
    """The name of a compiler for torch.compile."""
    backend = run.flag('torchcompile')
    if backend and backend != 'inductor':
        from torch._dynamo import list_backends  # a second
        known = list_backends(exclude_tags=())
        if backend not in known:
            yield f'--torchcompile {printable(backend)} is unknown: {did_you_mean(backend, known)}'


def check_transforms(run: Checked) -> Iterator[str]:
    """The settings of an augmentation policy, by timm's own transforms."""
    if not run.flag('aa') or run.args.aa == TA_WIDE:
        return
    try:
        create_transform(32, is_training=True, auto_augment=run.args.aa)
    except (AssertionError, KeyError, ValueError, IndexError) as e:
        reason = f' ({first_line(e)})' if str(e) and not isinstance(e, KeyError) else ''
        yield f'--aa {run.args.aa} is not one that timm knows{reason}: see timm.data.'
        return
    policy, *sections = run.args.aa.split('-')
    if policy in ('rand', 'augmix'):
        ignored = [s for s in sections if not re.search(r'\d', s) and not (policy == 'rand' and s.startswith('t'))]
        yield from (f"--aa {run.args.aa}: timm would ignore '{s}', which has no number: correct it or leave it out."
                    for s in ignored)


def check_batch(run: Checked) -> Iterator[str]:
    args, settings = run.args, run.settings
    largest = max([args.batch_size] if not run.flag('train_img_sizes') else run.flag('train_batch_sizes') or [
        args.batch_size])
    images, step = settings.num_images.get('train'), largest * settings.world_size
    if images is not None and step > images:
        files = f' ({settings.reasons["images_train"]})' if 'images_train' in settings.reasons else ''
        yield (f'One training batch needs {step} images (-b {largest} on '
               f'{counted(settings.world_size, "process", "processes")}), '
               f'the training split has {images}{files}: lower -b.')
    tta = run.flag('tta') or 0
    if tta > 1 and run.flag('val_split'):
        yield from _check_tta(run, tta)


def _check_tta(run: Checked, tta: int) -> Iterator[str]:
    """That no batch of an evaluation ends between outputs of which --tta takes the mean."""
    batch, images = run.flag('validation_batch_size') or run.args.batch_size, run.settings.num_images.get('val')
    what = f'--tta {tta} takes the mean of {tta} outputs in a row'
    if batch % tta:
        yield f'{what}, -vb {batch} is no multiple of it: give one.'
    elif images is not None and images % (tta * run.settings.world_size):
        yield (f'{what}, and the {images:,} validation images on '
               f'{counted(run.settings.world_size, "process", "processes")} do not divide by it: leave out --tta.')


def check_optimizer(run: Checked) -> Iterator[str]:
    """The name of the optimizer; a module of `--device-modules` may register more."""
    args = run.args
    name, known = args.opt.lower(), list_optimizers()
    unknown = timm_names.unknown_optimizer(args.opt, known)
    if unknown:
        yield unknown
    if name == optim.NAME and not run.settings.device.startswith('npu'):
        yield (f'--opt {optim.NAME} needs an NPU, the device is {run.settings.device}: use --opt momentum, the same '
               'steps on any device.')
    on_cpu = args.opt_kwargs.get('fused') and run.settings.device.startswith('npu') and optim.fused_without_kernel(name)
    if on_cpu:
        yield (f'--opt {args.opt} with fused=True would compute on the CPU: the installed torch_npu has no kernel for '
               f'{on_cpu}. Leave fused out of --opt-kwargs.')


def check_packages(run: Checked) -> Iterator[str]:
    if run.flag('metrics_avg') and importlib.util.find_spec('sklearn') is None:
        yield '--metrics-avg needs scikit-learn: pip install scikit-learn.'


def check_processes(run: Checked) -> Iterator[str]:
    num_gpu = run.flag('num_gpu') or 1
    if num_gpu > 1:
        yield f'--num-gpu {num_gpu}: use --nproc {num_gpu} instead, which counts every image once.'
    for flag in ('real_labels', 'metrics_avg'):
        if run.flag(flag) and run.settings.world_size > 1:
            yield f'--{flag.replace("_", "-")} needs all predictions in one place: run it on one process (--nproc 1).'


def check_sync_bn(run: Checked) -> Iterator[str]:
    if run.flag('sync_bn') and run.settings.world_size > 1 and run.settings.device == 'cpu':
        yield ('--sync-bn: torch has no synchronised BatchNorm for CPUs: leave it out, or train on one process '
               '(--nproc 1).')


# --- files ------------------------------------------------------------------------------------------------------------

def check_output(run: Checked) -> Iterator[str]:
    folder, resume = RunFolder(run.settings.output), run.args.resume
    reason = why_not_writable(folder.path)
    if reason:
        yield f'Cannot write to {folder.path}: {reason}; name another with --output or --experiment.'
        return
    blocked = folder.blocked()
    if blocked is not None:
        kind = 'folder' if blocked in (folder.logs, folder.tensorboard) else 'file'
        yield (f'{printable(blocked)} is no {kind}, and has the name of one that the run writes: move it away, or name '
               'another folder with --output or --experiment.')
        return
    inside = _split_around(run, folder.path)
    if inside is not None:
        yield (f'{folder.path} is inside {inside}, whose folders are classes: name another folder with --output or '
               '--experiment.')
    elif resume and folder.owns(resume):
        _check_record(run, folder, resume)
        theirs = next((p for p in folder.written_in_place if p.exists() and not os.access(p, os.W_OK)), None)
        if theirs is not None:
            yield (f'{printable(theirs)} may not be written by this user, and the run would go on in it: have its '
                   'rights changed (chmod), or name a folder of your own with --output or --experiment, which can also '
                   f'resume from {printable(resume)}.')
    elif folder.holds_another_run(run.settings):
        start = folder.last if folder.last.is_file() else folder.path / 'CHECKPOINT'
        yield (f'{folder.path} holds another run: name another folder with --experiment or --output, or go on with '
               f'that run by --resume {shell_line([str(start)])}.')


def _check_record(run: Checked, folder: RunFolder, resume: str) -> None:
    """Refuse a record that the run would go on with, unless the checkpoint holds what is damaged."""
    if not folder.record.exists():
        return
    try:
        read_record(folder.path)
    except DamagedRecord as e:
        if not run.read(resume).run_state.get('history'):
            raise
        run.notes.append(f'{str(e).partition(": move")[0]}: the record goes on with what the checkpoint holds of it.')


def _split_around(run: Checked, folder: Path) -> Optional[Path]:
    """The split of the data that a folder is in; None if it is in none."""
    if not run.args.data_dir or not is_folder_dataset(run.args.dataset):
        return None
    above = [folder.resolve(), *folder.resolve().parents]
    splits = (split_folder(run.args.data_dir, run.flag(name) or '') for name in ('train_split', 'val_split', 'split'))
    return next((split for split in splits if split is not None and split.resolve() in above), None)


def check_results_file(run: Checked) -> Iterator[str]:
    if run.args.results_file:
        path = Path(run.args.results_file).absolute()
        if not path.parent.is_dir():
            yield f'Cannot write {path}: the folder {path.parent} does not exist.'


def check_labels(run: Checked) -> Iterator[str]:
    valid, real = run.flag('valid_labels'), run.flag('real_labels')
    if valid:
        read_valid_labels(valid, run.args.num_classes or (run.model.num_classes if run.model is not None else None))
        if not run.settings.script.is_bundled and not valid_labels_of_timm(valid):
            yield (f"timm's validate.py cannot read --valid-labels {valid}: save it as UTF-8 without a byte order "
                   'mark, with one index a line and no empty lines.')
    if real:
        yield from _check_real_labels(run, real)


def _check_real_labels(run: Checked, path: str) -> Iterator[str]:
    outputs = run.args.num_classes or (run.model.num_classes if run.model is not None else None)
    if run.flag('valid_labels'):
        yield ('--real-labels names classes of all outputs, --valid-labels gives some of them other numbers: leave out '
               'one.')
    if run.flag('dataset'):
        yield f'--real-labels goes by the names of image files, which --dataset {run.args.dataset} does not tell.'
    if outputs is not None and outputs < 5:
        yield f'--real-labels computes top-5, the model has {outputs} outputs.'
    count, images = len(check_real_labels(path, outputs)), run.settings.num_images.get('val')
    root = Path(run.args.data_dir or '')
    if images is not None and images != count:
        yield (f'--real-labels {printable(path)} has labels of {count:,} images, the data has {images:,}: it is for '
               'the whole validation split of ImageNet.')
    elif images is not None and root.is_dir():
        files: Dict[Optional[str], List[str]] = {}
        read_classes(split_folder(root, run.args.split) or root, run.args.class_map or None, files)
        names = (os.path.basename(p) for name, paths in files.items() if name is not None for p in paths)
        yield from filter(None, [wrong_real_name(names, count)])


Check = Callable[[Checked], Iterator[str]]
CHECKS: dict = {
    'train': [check_model, check_graph, check_teacher, check_precision, check_compile, check_transforms, check_batch,
              check_optimizer, check_sync_bn, check_packages,
              check_output, check_train_weights, check_named_weights, check_resources],
    'validate': [check_model, check_graph, check_freeze, check_precision, check_compile, check_transforms,
                 check_packages, check_processes, check_results_file, check_labels, check_checkpoint,
                 check_named_weights, check_resources],
}
