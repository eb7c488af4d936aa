"""The plan as lines of label and text, each decision with its reason."""
import os
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from seresnet_timm import process
from seresnet_timm.data.workers import describe_workers
from seresnet_timm.errors import counted, printable
from seresnet_timm.launch.plan import Node
from seresnet_timm.runs.record import installed_versions
from seresnet_timm.runs.settings import RunSettings, num_epochs
from seresnet_timm.runs.show import fitted
from seresnet_timm.step.learning_rate import scaled_lr


def print_plan(
        settings: RunSettings, node: Node, changes: List[Tuple[str, str]], is_quiet: bool = False) -> None:
    """Print every decision once, with its reason, before anything starts.

    Args:
        settings: Settings of the run.
        node: This node's part.
        changes: Changes to timm's script, and the outcome of each; empty for the bundled one.
        is_quiet: Notes only.
    """
    if not is_quiet:
        print(f'Plan: {settings.verb} {printable(settings.args["model"])}', file=sys.stderr)
    notes = settings.notes + without_effect(settings)
    if os.path.isfile(settings.args.get('results_file') or ''):
        notes.append(f'--results-file {settings.args["results_file"]} exists and is replaced.')
    lines = [] if is_quiet else describe(settings, node, changes)
    lines += [('note', note) for note in notes]
    for label, text in lines:
        print(fitted(f'  {label:<14} ', printable(text)), file=sys.stderr)
    sys.stderr.flush()


def describe(settings: RunSettings, node: Node, changes: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """The plan as lines of label and text."""
    from seresnet_timm.data.image_files import allowed_images
    args, reasons = settings.args, settings.reasons
    each = f'{settings.nproc} on each of {settings.nnodes} nodes; ' if settings.nnodes > 1 and not node.is_rank else ''
    version, folder = installed_versions()['seresnet_timm'], Path(__file__).resolve().parent.parent
    lines = [
        ('package', f'seresnet_timm {version} from {folder}'),
        ('device', f'{settings.device} ({reasons["device"]})'),
        ('processes', f'{settings.world_size} ({each}{reasons["nproc"]})'),
        ('script', settings.script.describe()),
    ]
    if changes:
        lines.append(('changes', ', '.join(n if o == 'applied' else f'{n} ({o})' for n, o in changes)))
    if args.get('device_modules'):
        lines.append(('modules', f'{", ".join(args["device_modules"])} (--device-modules, imported when the run '
                                 'starts)'))
    lines += [('data', data(settings)), ('classes', classes(settings)), ('weights', weights(settings))]
    if args.get('kd_model_name'):
        from seresnet_timm.launch.teacher_checks import describe as describe_teacher
        lines.append(('teacher', describe_teacher(settings)))
    accumulated = f' x {args["grad_accum_steps"]} accumulated' if (args.get('grad_accum_steps') or 1) > 1 else ''
    lines.append(('batch', f'global batch size {settings.global_batch_size} = {args["batch_size"]} x '
                           f'{counted(settings.world_size, "process", "processes")}'
                           f'{accumulated}{_in_brackets(reasons.get("batch_size"))}'))
    if args.get('train_img_sizes'):
        from seresnet_timm.data.scheduled import describe as describe_sizes
        side = args.get('img_size') or (args.get('input_size') or _input_size(args['model']))[-1]
        lines.append(('image sizes', ', '.join(describe_sizes(settings.namespace(), side))))
    if settings.img_sizes:
        lines.append(('image sizes', f'evaluated at {", ".join(map(str, settings.img_sizes))}, one after the other'))
    if settings.verb == 'train':
        lines.append(('learning rate', learning_rate(settings)))
    lines += [('precision', settings.precision), *step(settings)]
    pinned = '; pinned memory, so that the host need not wait for copies' if args['pin_mem'] else ''
    lines.append(('workers', f'{describe_workers(args["workers"], settings.world_size)}, '
                             f'{reasons.get("workers", f"{process.cores()} cores on this node")}{pinned}'))
    lines.append(('images', images(settings)))
    if 'train' in settings.num_images and settings.verb == 'train':
        total = settings.num_images['train']
        allowed = allowed_images(settings.max_bad_images, total)
        lines.append(('bad images', f'the run ends when more than {allowed:,} of {total:,} training images are '
                                    f'bad (--max-bad-images {settings.max_bad_images})'))
    if settings.device.startswith('npu'):
        from seresnet_timm.ascend.setup import describe as describe_npu
        lines.append(('torch_npu', describe_npu()))
    if settings.patience is not None:
        ends = 'the run ends' if settings.early_stop else 'a line says so'
        lines.append(('patience', f'{counted(settings.patience, "epoch")} without a new best {args["eval_metric"]}, '
                                  f'then {ends}'))
    if settings.tensorboard:
        lines.append(('tensorboard', f'seen with: tensorboard --logdir {settings.output}'))
    if settings.output is not None:
        lines.append(('output', settings.output))
    return lines


def without_effect(settings: RunSettings) -> List[str]:
    """Flags that change nothing, or less than one would expect."""
    from seresnet_timm.models.trusted import why_untrusted
    args = settings.args
    unsafe = [k for k, v in (args.get('model_kwargs') or {}).items() if why_untrusted(k, v)]
    if unsafe and settings.verb == 'train':
        return [f'--model-kwargs {", ".join(unsafe)}: not taken from a file later, so that predict, export and push '
                'cannot use the checkpoints of this run; validate can, with the same flags.']
    if settings.patience is not None and args.get('sched') == 'plateau':
        return [f'--patience {settings.patience} tells of epochs without a new best; the plateau schedule waits '
                f'--patience-epochs {args.get("patience_epochs")} before it lowers the learning rate.']
    soft = args.get('mixup') or args.get('cutmix') or args.get('cutmix_minmax') or args.get('smoothing')
    if args.get('bce_loss') and not soft and not args.get('jsd_loss'):
        return ['--bce-loss has no effect without mixup, cutmix or smoothing (as in timm): the loss is cross entropy.']
    return []


def data(settings: RunSettings) -> str:
    args = settings.args
    where = args.get('dataset') or args.get('data_dir') or ''
    if args.get('dataset') and args.get('data_dir'):
        where += f' in {args["data_dir"]}'
    names = {'train': 'training', 'val': 'validation'}
    counts = ' and '.join(
        f'{count:,} {names[split]} images' + _in_brackets(settings.reasons.get(f'images_{split}'))
        for split, count in settings.num_images.items())
    return f'{where}: {counts}' if counts else where


def _input_size(model: str) -> Sequence[int]:
    from seresnet_timm.models.create import native_size
    return native_size(model) or (3, 224, 224)


def _in_brackets(text: Optional[str]) -> str:
    return f' ({text})' if text else ''


def classes(settings: RunSettings) -> str:
    """Outputs of the model, why that many, and the first and last name."""
    outputs, names = settings.args.get('num_classes'), settings.class_names
    text = f'{outputs} outputs' if outputs else "the model's own number of outputs"
    reason = settings.reasons.get('num_classes')
    if reason:
        text += f' ({reason})'
    if names:
        first_last = names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'
        in_data = settings.reasons.get('class_names') or f'{len(names)} classes in the data'
        text += f'; {in_data}, {first_last}'
    return text


def weights(settings: RunSettings) -> str:
    """What the model starts from, or is evaluated with."""
    args = settings.args
    for flag in ('resume', 'checkpoint', 'initial_checkpoint', 'pretrained_path'):
        if args.get(flag):
            average = ', the moving average' if args.get('use_ema') else ''
            taken = [k for k in ('model', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'num_classes')
                     if settings.reasons.get(k, '').startswith('from ')]
            told = f'; {", ".join(taken)} are those of the file' if taken else ''
            return f'--{flag.replace("_", "-")} {args[flag]}{average}{told}'
    if not args.get('pretrained'):
        only = ' (without --pretrained only the architecture of the model is taken)' if ':' in args['model'] else ''
        return f'random, seed {args["seed"]}{only}'
    if settings.model_commit:
        from seresnet_timm.hub.names import describe_version
        return f'{args["model"]}, {describe_version(args["model"], settings.model_commit)}, verified'
    return pretrained(args['model'])


def pretrained(name: str) -> str:
    """Which pretrained weights a name of timm's has, and whether the run downloads them."""
    from seresnet_timm.hub.weights import find_in_cache, source_of
    source = source_of(name)
    if source is None:
        return 'pretrained'
    place = 'in the cache' if find_in_cache(source) else 'not in the cache: the run downloads them'
    return f'pretrained, {source.where}, {place}'


def learning_rate(settings: RunSettings) -> str:
    args = settings.namespace()
    if args.lr:
        lr = f'{args.lr:g}'
    else:
        from seresnet_timm.data.scheduled import images_of_a_step
        lr, reason = scaled_lr(args, images_of_a_step(args, settings.global_batch_size))
        lr = f'{lr:g} ({reason})'
    epochs = num_epochs(settings.args)
    return f'{lr}, {args.opt}, {args.sched} over {counted(epochs, "epoch")}, {args.warmup_epochs} of warm-up'


def step(settings: RunSettings) -> List[Tuple[str, str]]:
    from seresnet_timm.models.create import architecture_of
    from seresnet_timm.step import fast, loss_scaler
    args = settings.namespace()
    architecture = architecture_of(args.model, settings.model_folder)
    lines = [('step', fast.describe(
        settings.verb, args, architecture, settings.device, settings.world_size, settings.fast_step,
        (settings.block_end, settings.reasons.get('lean_se', '--lean-se'))))]
    if 'graph' in settings.reasons:
        lines.append(('graph', f'--graph is not used: {settings.reasons["graph"]}' if not settings.graph else
                      'the kernels of a step are captured once and started together (--graph)'))
    if settings.internal_format is not None and settings.device.startswith('npu'):
        value = 'on' if settings.internal_format else 'off'
        lines.append(('formats', f'internal formats of the NPU {value} (as measured)'))
    if settings.verb == 'train':
        _, scaler = loss_scaler.describe_loss_scaler(settings.device, args.amp, args.amp_dtype, settings.loss_scale)
        lines.append(('loss scaler', scaler))
    return lines


def choices(settings: RunSettings) -> Dict[str, str]:
    """What is used for speed and why, by the names of the settings, for run.json."""
    lines = dict(step(settings))
    found = {'fast_step': lines['step'], 'fast_jpeg': images(settings), 'loss_scale': lines.get('loss scaler')}
    return {name: text for name, text in found.items() if text is not None}


def images(settings: RunSettings) -> str:
    from seresnet_timm.data.fast_jpeg import choose_decoder
    return choose_decoder(settings.namespace(), settings.fast_jpeg)[1]
