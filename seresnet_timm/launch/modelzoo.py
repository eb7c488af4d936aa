"""What the ModelZoo's names mean, in timm's terms

`--batch_size` counts the images of all devices, `--train_epochs` all epochs, warm-up included, and the learning rate
rises to `--learning-rate` in equal steps.
"""
from typing import Any, Dict, Iterable, Mapping

from seresnet_timm.errors import UsageError
from seresnet_timm.launch import devices as devices_flag

WARM_UP_EPOCHS = 5  # of the ModelZoo
# ModelZoo's name -> option of the launcher that means the same
SAME_OPTION = (('addr', 'master_addr'), ('world_size', 'nnodes'), ('rank', 'node_rank'))
# ModelZoo's name -> flag of timm's scripts that means the same, and how it is written
SAME_FLAG = (('data_path', 'data_dir', '--data-dir'), ('mom', 'momentum', '--momentum'),
             ('wd', 'weight_decay', '--weight-decay'), ('learning_rate', 'lr', '--lr'))
SCHEDULE = ('train_epochs', 'learning_rate', 'warm_up_epochs')
TIMMS_SCHEDULE = ('epochs', 'lr', 'warmup_epochs', 'warmup_prefix', 'warmup_lr')


def option(name: str) -> str:
    """A ModelZoo name as it is typed."""
    return '--' + (name.replace('_', '-') if name in ('learning_rate', 'world_size', 'print_freq') else name)


def typed_names(modelzoo: Iterable[str], verb: str) -> Dict[str, str]:
    """For each flag of timm or of the launcher, the ModelZoo's name under which its value was typed, as it is typed.

    Not for `--batch_size` and `--train_epochs`, whose numbers are others than those of timm's flags.
    """
    same = {**{old: flag for old, _, flag in SAME_FLAG},
            **{old: '--' + new.replace('_', '-') for old, new in SAME_OPTION},
            'warm_up_epochs': '--warmup-epochs',
            'print_freq': '--log-interval' if verb == 'train' else '--log-freq'}
    return {same[name]: option(name) for name in modelzoo if name in same}


def launcher_options(modelzoo: Mapping[str, Any], options: Mapping[str, Any], flags: Mapping[str, Any]) -> Dict:
    """The launcher's options, with those that the ModelZoo's names mean.

    Args:
        modelzoo: What was typed under the ModelZoo's names.
        options: The launcher's options that were typed.
        flags: The script's flags that were typed; `device` is read.

    Returns:
        Options, among them `device` if it was named.

    Raises:
        UsageError: Options contradict each other, or have a wrong value.
    """
    options = dict(options)
    for old, new in SAME_OPTION:
        if old in modelzoo:
            if new in options:
                raise UsageError(f'{option(old)} and --{new.replace("_", "-")} mean the same: give one.')
            options[new] = modelzoo[old]
    nproc = options.setdefault('nproc', 'auto')
    if 'device_list' in modelzoo:
        devices = modelzoo['device_list'].split(',')
        if not all(d.isdigit() for d in devices):
            raise UsageError(f'--device_list is a list of device numbers, e.g. 0,1,2,3, got {modelzoo["device_list"]}.')
        if nproc not in ('auto', str(len(devices))):
            raise UsageError(f'--device_list {modelzoo["device_list"]} and --nproc {nproc} contradict each other.')
        options['nproc'] = str(len(devices))
    elif nproc != 'auto' and not (nproc.isdigit() and int(nproc) > 0):
        raise UsageError(f'--nproc is a number of processes or auto, got {nproc}.')
    device = flags.get('device')
    if device == 'gpu':
        device = 'cuda'  # the ModelZoo's name
    if 'gpu' in modelzoo:
        if device is None or device in ('cpu', 'auto') or ':' in device:
            raise UsageError('--gpu is the index of --device npu or cuda: name that too.')
        device = f'{device}:{modelzoo["gpu"]}'
    options['device'] = device
    devices_flag.check_options(options, modelzoo)
    if 'devices' in options:
        options['nproc'] = str(len(devices_flag.parse_devices(options['devices'])))
    if (options.get('loss_scale') or 1) <= 0:
        options['loss_scale'] = None  # -1 is the ModelZoo's word for dynamic
    if options.get('amp_level') == 'O0' and flags.get('amp'):
        raise UsageError('--amp-level O0 is float32, --amp mixed precision: give one of them.')
    return options


def check_names(modelzoo: Mapping[str, Any], flags: Mapping[str, Any], is_recipe: bool) -> None:
    """Refuse a flag that was typed under timm's name and under the ModelZoo's.

    Args:
        modelzoo: What was typed under the ModelZoo's names.
        flags: The script's flags that were typed.
        is_recipe: A recipe runs, whose `--epochs`, `--lr` and `--warmup-epochs` have the ModelZoo's meaning.
    """
    for old, new, flag in SAME_FLAG:
        if old in modelzoo and new in flags:
            raise UsageError(f'{option(old)} and {flag} mean the same: give one of them.')
    if 'batch_size' in modelzoo and 'batch_size' in flags:
        raise UsageError('--batch_size counts the images of all processes, -b those of one: give one of them.')
    if 'train_epochs' in modelzoo and 'epochs' in flags:
        raise UsageError('--train_epochs and --epochs both say how long to train: give one of them.')
    if not is_recipe and any(n in modelzoo for n in SCHEDULE) and any(n in flags for n in TIMMS_SCHEDULE):
        raise UsageError("The ModelZoo's names of the schedule (--train_epochs, --learning-rate, --warm_up_epochs) and "
                         "timm's (--epochs, --lr, --warmup-...) do not mix: use the one or the other.")


def translate(modelzoo: Mapping[str, Any], base: Mapping[str, Any], verb: str, world_size: int) -> Dict[str, Any]:
    """Flags of the script, by timm's names, that the ModelZoo's names mean.

    Args:
        modelzoo: What was typed under the ModelZoo's names, or what a recipe says in their terms.
        base: Settings of preset and config, which they change.
        verb: 'train' or 'validate'.
        world_size: Processes of all nodes.

    Raises:
        UsageError: `--batch_size` does not divide by the number of processes.
    """
    flags: Dict[str, Any] = {}
    if 'data_path' in modelzoo:
        flags['data_dir'] = modelzoo['data_path']
    if 'batch_size' in modelzoo:
        images = modelzoo['batch_size']
        if images % world_size:
            lower = images // world_size * world_size or world_size
            raise UsageError(f'--batch_size {images} does not divide by {world_size} processes: try {lower} or '
                             f'{lower + world_size}.')
        flags['batch_size'] = images // world_size
    if 'print_freq' in modelzoo:
        flags['log_interval' if verb == 'train' else 'log_freq'] = modelzoo['print_freq']
    if verb == 'validate':
        return flags
    for old, new in (('mom', 'momentum'), ('wd', 'weight_decay')):
        if old in modelzoo:
            flags[new] = modelzoo[old]
    if any(n in modelzoo for n in SCHEDULE):
        warm_up = modelzoo.get('warm_up_epochs', base.get('warmup_epochs', WARM_UP_EPOCHS))
        before = base.get('epochs', 300) + (base.get('warmup_epochs', 0) if base.get('warmup_prefix') else 0)
        flags.update(schedule(
            modelzoo.get('train_epochs', before), warm_up, modelzoo.get('learning_rate', base.get('lr', 0.1))))
    return flags


def schedule(epochs: int, warm_up: int, lr: float) -> Dict[str, Any]:
    """The ModelZoo's learning rate of every epoch e of `epochs`, in timm's terms.

    e < warm_up: lr (e + 1) / (warm_up + 1); else lr / 2 (1 + cos(pi (e - warm_up) / (epochs - warm_up))).
    """
    warmup_lr = lr / (warm_up + 1)
    if epochs > warm_up:
        return dict(epochs=epochs - warm_up, warmup_epochs=warm_up, warmup_prefix=True, lr=lr, warmup_lr=warmup_lr)
    # it ends within the warm-up: timm counts that within the epochs then
    return dict(epochs=epochs, warmup_epochs=warm_up, warmup_prefix=False, lr=lr, warmup_lr=warmup_lr)


def visible_devices(modelzoo: Mapping[str, Any]) -> Dict[str, str]:
    """Environment that limits a run to the devices of `--device_list`."""
    if 'device_list' not in modelzoo:
        return {}
    return dict.fromkeys(('ASCEND_RT_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES'), modelzoo['device_list'])
