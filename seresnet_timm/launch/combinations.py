"""Flags that do not go together, found in the flags alone: neither torch nor timm is needed

What only the images and the network show is found by `sample`.
"""
from typing import Any, Callable, Iterator, List, Mapping, Tuple

from seresnet_timm.errors import counted
from seresnet_timm.runs.settings import num_epochs

# bands of PIL's image modes, by which an image is converted
BANDS = {
    **dict.fromkeys(('1', 'L', 'P', 'I', 'F'), 1), **dict.fromkeys(('LA', 'La', 'PA'), 2),
    **dict.fromkeys(('RGB', 'YCbCr', 'LAB', 'HSV'), 3), **dict.fromkeys(('RGBA', 'RGBa', 'RGBX', 'CMYK'), 4)}
MODES = {2: 'LA', 4: 'RGBA or CMYK'}  # to suggest, by channels
RESIZE_ONLY = ('box', 'hamming', 'lanczos')  # filters with which Pillow does not rotate
# readers of --dataset that share whole files among processes
STREAMS = ('tfds', 'hfids', 'wds')
MAX_SEED = 2 ** 32 - 1  # of numpy
# flags of several image sizes, and their defaults
IMAGE_SIZES = {
    'train_batch_sizes': None, 'train_size_probs': None, 'train_size_schedule': 'constant',
    'train_size_schedule_spread': 0.65, 'train_size_random_mix': 0.1, 'train_batches_per_epoch': None,
    'variable_batch_loss_scale': 'none'}
# flags of a distillation, and their defaults
DISTILLATION = {
    'kd_distill_type': 'logit', 'kd_loss_type': 'kl', 'kd_temperature': 4.0, 'kd_student_feature_dim': None,
    'kd_teacher_feature_dim': None, 'kd_token_distill_type': 'soft', 'distill_loss_weight': None,
    'task_loss_weight': None}
# those of one kind only
OF_KIND = {
    'kd_temperature': ('logit', 'token'), 'kd_student_feature_dim': ('feature',),
    'kd_teacher_feature_dim': ('feature',), 'kd_token_distill_type': ('token',)}

_CYCLIC = ('cosine', 'tanh', 'poly')
# flags of train that timm accepts and that change nothing: the flags, when that is so, and whether it is
_TRAIN_NEEDS: Tuple[Tuple[str, str, Callable[[Mapping[str, Any]], Any]], ...] = (
    ('clip_mode', 'without --clip-grad', lambda a: a.get('clip_grad') is None),
    ('model_ema_decay model_ema_warmup model_ema_force_cpu', 'without --model-ema', lambda a: not a.get('model_ema')),
    ('mixup_prob mixup_mode mixup_off_epoch', 'without --mixup or --cutmix', lambda a: not uses_mixup(a)),
    ('mixup_switch_prob', 'unless both --mixup and --cutmix are used',
     lambda a: not (a.get('mixup') and (a.get('cutmix') or a.get('cutmix_minmax')))),
    ('remode recount resplit', 'without --reprob', lambda a: not a.get('reprob')),
    ('bce_sum bce_target_thresh bce_pos_weight', 'without --bce-loss', lambda a: not a.get('bce_loss')),
    ('train_crop_mode scale ratio hflip vflip color_jitter color_jitter_prob grayscale_prob gaussian_blur_prob aa '
     'reprob train_interpolation', 'with --no-aug', lambda a: a.get('no_aug')),
    ('color_jitter color_jitter_prob', 'with --aa, unless it is 3a',
     lambda a: a.get('aa') and '3a' not in a['aa'] and not a.get('no_aug')),
    ('train_num_samples val_num_samples epoch_repeats', f'unless --dataset is one of {"/, ".join(STREAMS)}/',
     lambda a: (a.get('dataset') or '').partition('/')[0].lower() not in STREAMS),
    ('layer_decay_min_scale layer_decay_no_opt_scale', 'without --layer-decay', lambda a: not a.get('layer_decay')),
    ('lr_base lr_base_size lr_base_scale', 'with --lr', lambda a: a.get('lr')),
    ('lr_noise_pct lr_noise_std', 'without --lr-noise', lambda a: not a.get('lr_noise')),
    ('warmup_epochs lr_noise', 'with --sched none', lambda a: a.get('sched') == 'none'),
    ('warmup_lr warmup_prefix', 'without --warmup-epochs', lambda a: not a.get('warmup_epochs')),
    *((flags, f'with --sched {{sched}}, only with {", ".join(kinds)}',
       lambda a, kinds=kinds: a.get('sched') not in kinds) for flags, kinds in (
          ('lr_cycle_mul lr_cycle_decay lr_cycle_limit cooldown_epochs', _CYCLIC), ('lr_k_decay', ('cosine', 'poly')),
          ('decay_milestones', ('multistep',)), ('decay_epochs', ('step', 'wsd', 'rsqrt')),
          ('decay_rate', ('step', 'multistep', 'plateau', 'poly')), ('patience_epochs', ('plateau',)),
          ('min_lr', (*_CYCLIC, 'plateau', 'wsd', 'rsqrt')))),
    ('no_resume_opt', 'without --resume', lambda a: not a.get('resume')),
    ('wandb_project wandb_tags wandb_resume_id', 'without --log-wandb', lambda a: not a.get('log_wandb')),
)
_NEEDS = {'train': _TRAIN_NEEDS, 'validate': (
    ('results_format', 'without --results-file', lambda a: not a.get('results_file')),)}
_BOTH_NEED = (
    ('amp_dtype', 'without --amp', lambda a: not a.get('amp')),
    ('torchcompile_mode', 'without --torchcompile', lambda a: not a.get('torchcompile')))
# likewise flags of the launcher
_LAUNCHER_NEEDS = {'train': (
    ('fuse_bn', 'in a training, only in validate', lambda a: True),
    ('loss_scale', 'without --amp in float16', lambda a: not a.get('amp') or a.get('amp_dtype') != 'float16'),
    ('lean_se', 'with --model {model}, only with the networks of this package',
     lambda a: ':' not in a['model'] and not a['model'].partition('.')[0].endswith('_ascend'))), 'validate': (
    ('checkpoint_minutes max_bad_steps max_bad_images loss_scale lean_se prof', 'in an evaluation, only in train',
     lambda a: True),)}


def find_without_effect(
        verb: str, args: Mapping[str, Any], asked: Callable[..., bool], options: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on flags that were given and change nothing, because of others.

    Args:
        verb: 'train' or 'validate'.
        args: Every flag of the script, by timm's names.
        asked: Whether the user gave one of the flags that it is called with.
        options: Flags of the launcher that the user gave.
    """
    for flags, when, is_idle in (*_NEEDS[verb], *_BOTH_NEED):
        given = [name for name in flags.split() if args.get(name) and asked(name)]
        if given and is_idle(args):
            yield f'{_no_effect(given)} {when.format(**args)} (as in timm).'
    for flags, when, is_idle in _LAUNCHER_NEEDS[verb]:
        given = [name for name in flags.split() if name in options]
        if given and is_idle(args):
            yield f'{_no_effect(given)} {when.format(**args)}.'
    epochs, warmup = args.get('epochs') or 0, args.get('warmup_epochs') or 0
    if verb == 'train' and asked('epochs') and 0 < epochs <= warmup and not args.get('warmup_prefix') and (
            args.get('sched') not in ('none', '')):
        yield (f'The warm-up of {counted(warmup, "epoch")} is not over when the run of {counted(epochs, "epoch")} '
               'ends: the learning rate does not reach its full value; use fewer --warmup-epochs.')


def find_contradictions(
        verb: str, args: Mapping[str, Any], asked: Callable[..., bool], world_size: int = 1) -> List[str]:
    """Sentences on flags that contradict each other.

    Args:
        verb: 'train' or 'validate'.
        args: Every flag of the script, by timm's names.
        asked: Whether the user gave one of the flags that it is called with.
        world_size: Processes of all nodes.
    """
    found = [*_input(args, asked)]
    if args.get('aa') and verb == 'train':
        found += _auto_augment(args)
    if verb == 'train':
        found += [*_augmentation(args), *_threshold(args), *_schedule(args, asked), *_distillation(args, asked),
                  *_image_sizes(args, asked)]
    kind = (args.get('dataset') or '').partition('/')[0].lower()
    if world_size > 1 and kind in STREAMS and (verb == 'validate' or args.get('val_split')):
        other = 'evaluate on one process (--nproc 1)' if verb == 'validate' else (
            "train without evaluation (--val-split '') and evaluate on one process (validate --nproc 1)")
        found.append(f'--dataset {args["dataset"]} on {world_size} processes: its reader would evaluate some images '
                     f'twice and others never; {other}, or use folders of images.')
    if verb == 'train' and args.get('aug_repeats') and world_size == 1:
        found.append('--aug-repeats shows an image to several processes, and there is one: start more with --nproc, or '
                     'leave it out.')
    if (args.get('seed') or 0) + world_size - 1 > MAX_SEED:
        found.append(f'--seed {args["seed"]} is too large for {world_size} processes, each of which adds its number.')
    return found


def channels_of(args: Mapping[str, Any]) -> int:
    """Channels of the input that the flags ask for."""
    size = args.get('input_size')
    return size[0] if size else args.get('in_chans') or 3


def _channel_flag(args: Mapping[str, Any]) -> str:
    size = args.get('input_size')
    return f'--input-size {" ".join(map(str, size))}' if size else f'--in-chans {channels_of(args)}'


def _input(args: Mapping[str, Any], asked: Callable[..., bool]) -> Iterator[str]:
    size, channels = args.get('input_size'), channels_of(args)
    if size and args.get('in_chans') not in (None, size[0]):
        yield f'{_channel_flag(args)} and --in-chans {args["in_chans"]} contradict each other: give one of them.'
    if size and asked('img_size') and asked('input_size') and list(size[1:]) != [args['img_size']] * 2:
        yield f'{_channel_flag(args)} and --img-size {args["img_size"]} contradict each other: give one of them.'
    for name in ('mean', 'std'):
        values = args.get(name)
        if values and asked(name) and len(values) not in (1, channels):
            counts = '1' if channels == 1 else f'1 or {channels}'
            yield f'--{name} has {len(values)} values, the input has {counted(channels, "channel")}: give {counts}.'
    mode = args.get('input_img_mode') or ('RGB' if channels == 3 else 'L')
    if BANDS.get(mode, channels) != channels:
        if args.get('input_img_mode'):
            hint = f'give --in-chans {BANDS[mode]}, or another mode'
        elif channels in MODES:
            hint = f'add --input-img-mode {MODES[channels]}'
        else:
            hint = 'no image file has so many'
        yield (f'{_channel_flag(args)} does not go with images of mode {mode}, which have '
               f'{counted(BANDS[mode], "channel")}: {hint}.')


def _auto_augment(args: Mapping[str, Any]) -> Iterator[str]:
    channels = channels_of(args)
    if channels not in (1, 3) and not args.get('no_aug'):
        yield (f'--aa {args["aa"]} is for gray and RGB images, {_channel_flag(args)} has {channels} channels: leave '
               'out --aa.')
    if args['aa'].partition('-')[0] not in ('3a', 'ta_wide') and not args.get('no_aug') and (
            args.get('train_interpolation') in RESIZE_ONLY):
        yield (f'--aa {args["aa"]} rotates and shears images, which Pillow cannot do with --train-interpolation '
               f'{args["train_interpolation"]}: take bilinear or bicubic, or leave it out.')
    if args['aa'] == 'ta_wide' and (args.get('aug_splits') or 0) > 1:
        yield '--aa ta_wide does not go with --aug-splits: leave out one, or take another policy.'


def _augmentation(args: Mapping[str, Any]) -> Iterator[str]:
    mixup = uses_mixup(args)
    splits = args.get('aug_splits') or 0
    if args.get('jsd_loss') and not splits:
        yield '--jsd-loss compares augmentation splits: add --aug-splits 3.'
    if args.get('jsd_loss') and mixup:
        yield '--jsd-loss and mixup exclude each other, as mixed images have no single label: leave out one.'
    if args.get('split_bn') and not (splits or args.get('resplit')):
        yield '--split-bn needs --aug-splits or --resplit.'
    if mixup and splits:
        yield 'Mixup and --aug-splits exclude each other: leave out one.'
    if splits and args.get('no_prefetcher'):
        yield '--aug-splits does not go with --no-prefetcher: leave out one.'
    if mixup and args['batch_size'] % 2:
        yield f'Mixup pairs images, but -b {args["batch_size"]} is odd: use an even batch size.'
    if mixup and args.get('mixup_mode') == 'half' and args.get('no_prefetcher'):
        yield '--mixup-mode half does not go with --no-prefetcher: leave out one.'
    if (args.get('train_crop_mode') or 'rrc') == 'rrc' and args.get('scale') and max(args['scale']) > 1:
        yield (f'--scale {" ".join(map(str, args["scale"]))} is a share of the image: give at most 1, e.g. 0.08 1.')


def _threshold(args: Mapping[str, Any]) -> Iterator[str]:
    """A threshold on targets that all of them exceed, or none."""
    threshold, smoothing, classes = args.get('bce_target_thresh'), args.get('smoothing') or 0, args.get('num_classes')
    if not args.get('bce_loss') or threshold is None or not (smoothing or uses_mixup(args)):
        return
    low = smoothing / classes if classes else 0  # the target of an absent class
    high = 1 - smoothing + (smoothing / (classes or 2))
    if threshold >= high:
        yield (f'--bce-target-thresh {threshold:g} is not exceeded by any target, the largest of which is {high:g} '
               f'with --smoothing {smoothing:g}, so that every class counts as absent: lower it, e.g. to 0.2.')
    elif threshold < low or threshold == 0 < smoothing:
        yield (f'--bce-target-thresh {threshold:g} is exceeded by the targets of absent classes too with --smoothing '
               f'{smoothing:g}, so that every class counts as present: raise it, e.g. to 0.2.')


def _schedule(args: Mapping[str, Any], asked: Callable[..., bool]) -> Iterator[str]:
    epochs, warm_up = args['epochs'], args.get('warmup_epochs') or 0
    if not args.get('warmup_prefix') and warm_up > epochs and asked('warmup_epochs', 'warm_up_epochs'):
        yield (f'The warm-up (--warmup-epochs {warm_up}) is longer than the run (--epochs {epochs}): lower the first, '
               'or raise the second.')
    last = num_epochs(args)
    if (args.get('start_epoch') or 0) >= last:
        yield (f'--start-epoch {args["start_epoch"]} is not before the end of the run, which has {last} epochs, from '
               '0 on: lower it, or raise --epochs.')
    if args.get('sched') == 'plateau' and (args.get('decay_rate') or 0) >= 1:
        yield f'--sched plateau needs a --decay-rate below 1, got {args["decay_rate"]}.'


def _distillation(args: Mapping[str, Any], asked: Callable[..., bool]) -> Iterator[str]:
    given = [k for k, default in DISTILLATION.items() if asked(k) and args.get(k) != default]
    if not args.get('kd_model_name'):
        if given:
            flags = ', '.join(f'--{k.replace("_", "-")}' for k in given)
            yield f'{flags} {"needs" if len(given) == 1 else "need"} a teacher: name one with --kd-model-name.'
        return
    kind = args.get('kd_distill_type') or 'logit'
    for name in given:
        if kind not in OF_KIND.get(name, (kind,)):
            yield (f'--{name.replace("_", "-")} is for --kd-distill-type {" or ".join(OF_KIND[name])}, not for '
                   f'{kind}: leave it out.')
    task, distill = args.get('task_loss_weight'), args.get('distill_loss_weight')
    if task is not None and distill is None and task > 1:
        yield (f'--task-loss-weight {task:g} alone gives the distillation the weight {1 - task:g}: give at most 1, or '
               '--distill-loss-weight too.')
    if distill == 0 and (task is None or task > 0) or distill is None and task == 1:
        yield 'The distillation has the weight 0: give it another with --distill-loss-weight, or leave out the teacher.'
    if distill == 0 and task == 0:
        yield '--task-loss-weight and --distill-loss-weight are both 0, so that nothing is learned: raise one.'


def _image_sizes(args: Mapping[str, Any], asked: Callable[..., bool]) -> Iterator[str]:
    sizes = args.get('train_img_sizes')
    given = [k for k, default in IMAGE_SIZES.items() if asked(k) and args.get(k) != default]
    if not sizes:
        if given:
            yield f'{", ".join(map(_flag, given))}: name the sizes of the images too, with --train-img-sizes.'
        return
    for name in ('train_batch_sizes', 'train_size_probs'):
        if args.get(name) and len(args[name]) != len(sizes):
            yield f'{_flag(name)} has {len(args[name])} values, --train-img-sizes {len(sizes)}: give one for each size.'
    if args.get('train_size_probs') and not sum(args['train_size_probs']):
        yield '--train-size-probs are all 0, so that no size can be drawn: raise one.'
    is_progressive = args.get('train_size_schedule') == 'progressive'
    if is_progressive and len(sizes) < 2:
        yield '--train-size-schedule progressive goes from one size to another: give two in --train-img-sizes at least.'
    only = [k for k in given if k in ('train_size_schedule_spread', 'train_size_random_mix')]
    if only and not is_progressive:
        yield f'{", ".join(map(_flag, only))}: for --train-size-schedule progressive only; add it, or leave them out.'
    batches = args.get('train_batch_sizes') or [args['batch_size']]
    if args.get('variable_batch_loss_scale', 'none') != 'none' and len(set(batches)) == 1:
        yield '--variable-batch-loss-scale is for batches of several sizes: add --train-batch-sizes, or leave it out.'
    odd = [n for n in args.get('train_batch_sizes') or () if n % 2]
    if odd and uses_mixup(args):
        yield f'Mixup pairs images, but --train-batch-sizes has the odd number {odd[0]}: use even ones.'
    for name, value in (('--use-multi-epochs-loader', args.get('use_multi_epochs_loader')),
                        ('--aug-splits', args.get('aug_splits'))):
        if value:
            yield f'{name} does not go with --train-img-sizes: leave out one.'
    if (args.get('dataset') or '').partition('/')[0].lower() in STREAMS:
        yield f'--train-img-sizes needs a dataset with positions, which --dataset {args["dataset"]} has not.'


def _no_effect(names: List[str]) -> str:
    return f'{", ".join(map(_flag, names))} {"has" if len(names) == 1 else "have"} no effect'


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def uses_mixup(args: Mapping[str, Any]) -> bool:
    return (args.get('mixup') or 0) > 0 or (args.get('cutmix') or 0) > 0 or args.get('cutmix_minmax') is not None
